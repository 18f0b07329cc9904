//! What may be wrong with a simulated disk, and where rot is found.

/// What is wrong with a disk; the worse the later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskTrouble {
    /// Nothing.
    #[default]
    Healthy,
    /// A sync takes this many times as long.
    Slow {
        /// Factor.
        times: u64,
    },
    /// Every sync ends with an input/output error.
    Failing,
    /// There is no space left.
    Full,
    /// What stands at a drawn place is not what was written there.
    Rotten {
        /// What is rotten.
        what: Rotten,
        /// The place, in thousandths of the length.
        at: u16,
    },
}

/// What stands on a sector that changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rotten {
    /// A record of each journal and log: it does not fit its checksum, and the disk's own code says so.
    Records,
    /// Each small file: one bit of it is another, and nothing below the shell knows.
    Files,
    /// Each snapshot, likewise.
    Snapshots,
}

impl DiskTrouble {
    /// Which of `count` records cannot be read.
    pub(crate) fn rotten(self, count: usize) -> Option<usize> {
        self.place(Rotten::Records, count as u64).map(|place| place as usize)
    }

    /// Which of `count` records or bytes is rotten.
    fn place(self, of: Rotten, count: u64) -> Option<u64> {
        match self {
            Self::Rotten { what, at } if what == of => {
                Some(count * u64::from(at) / 1_000).filter(|place| *place < count)
            }
            _ => None,
        }
    }

    /// Changes one bit of `read`, which stands from `offset` on in `len` bytes, if the rotten one is in it.
    pub(crate) fn flip(self, of: Rotten, read: &mut [u8], offset: u64, len: u64) {
        let place = self.place(of, len).and_then(|place| place.checked_sub(offset));
        if let Some(byte) = place.and_then(|place| read.get_mut(usize::try_from(place).ok()?)) {
            *byte ^= 1 << (len % 8);
        }
    }
}
