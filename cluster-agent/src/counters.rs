//! The two numbers a drone may never use twice: of its signed entries, and of its claims and renewals.
//!
//! # Rules
//! * A number is reserved on the disk before it is used. Reservations are made in blocks, so that most
//!   writes cost no flush; a restart leaves a gap, which streams of numbers allow.
//! * The counters of a later data directory begin above all that an earlier one may have used.
//! * A missing or damaged file beside an initialised directory: the agent does not start (exit 78).
//!   A number used twice would carry other content under the author's own signature.

use std::{io, sync::Arc};

use common::{
    codec::{DecodeError, Wire, decode, encode},
    crypto::sha256,
    ids::{Digest, EntryNumber, HolderCounter},
};
use serde::{Deserialize, Serialize};

use crate::ports::Disk;

const FILE: &str = "counters";
/// Numbers reserved at once.
const BLOCK: u64 = 64;
/// Each data directory of a device has 2^40 numbers of its own, far more than it can use, and begins above those of
/// the lost ones.
const DIRECTORY_NUMBERS_BITS: u32 = 40;

/// Of [`Sealed`].
const VERSION: u16 = 2;
/// Of files without a digest, which are read as well.
const UNSEALED_VERSION: u16 = 1;

/// Nothing above these was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Reserved {
    version: u16,
    entry_number: EntryNumber,
    holder_counter: HolderCounter,
}

impl Reserved {
    fn digest(&self) -> Digest {
        sha256(&[b"muster/v1/counters", &encode(self)])
    }
}

impl Wire for Reserved {
    const BYTES_MAX: usize = 64;

    fn validate(&self) -> Result<(), &'static str> {
        match self.version {
            UNSEALED_VERSION | VERSION => Ok(()),
            _ => Err("counter file format version is not 1 or 2"),
        }
    }
}

/// What is on the disk. One bit less in a number would let it be used twice, so the file says whether it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Sealed {
    reserved: Reserved,
    digest: Digest,
}

impl Wire for Sealed {
    const BYTES_MAX: usize = Reserved::BYTES_MAX + size_of::<Digest>();

    fn validate(&self) -> Result<(), &'static str> {
        self.reserved.validate()?;
        if self.digest == self.reserved.digest() {
            Ok(())
        } else {
            Err("its digest is another one")
        }
    }
}

fn sealed(reserved: &Reserved) -> Vec<u8> {
    let reserved = Reserved {
        version: VERSION,
        ..*reserved
    };
    encode(&Sealed {
        reserved,
        digest: reserved.digest(),
    })
}

fn unsealed(bytes: &[u8]) -> Result<Reserved, DecodeError> {
    if bytes.first().copied().map(u16::from) == Some(UNSEALED_VERSION) {
        return decode(bytes);
    }
    decode(bytes).map(|sealed: Sealed| sealed.reserved)
}

/// Why the counters cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CountersError {
    /// The directory was used before, and the file is gone.
    #[error(
        "the file \"{FILE}\" is missing beside used data: numbers must not be used twice. Move the directory away and start \
         on an empty one with the next `incarnation` in the configuration file"
    )]
    Missing,
    /// The file does not decode.
    #[error(
        "the file \"{FILE}\" is damaged ({0}): numbers must not be used twice. Move the directory away and start on an \
         empty one with the next `incarnation` in the configuration file"
    )]
    Damaged(DecodeError),
    /// The disk failed.
    #[error("counters: {0}")]
    Io(#[from] io::Error),
}

/// Hands numbers out.
pub struct Counters {
    disk: Arc<dyn Disk>,
    reserved: Reserved,
    used: Reserved,
}

impl Counters {
    /// Reads the file; makes it if `is_new`, that is, if nothing was ever written beside it. `incarnation`: which
    /// data directory of the device this is, from 1 to
    /// [`INCARNATION_MAX`](common::ids::RaftNodeId::INCARNATION_MAX).
    ///
    /// # Errors
    /// [`CountersError`]; `Io` is 74, the others are 78.
    pub async fn open(disk: Arc<dyn Disk>, is_new: bool, incarnation: u32) -> Result<Self, CountersError> {
        let reserved = match disk.read(FILE)? {
            Some(bytes) => unsealed(&bytes).map_err(CountersError::Damaged)?,
            None if is_new => {
                let below = u64::from(incarnation.saturating_sub(1)) << DIRECTORY_NUMBERS_BITS;
                let first = Reserved {
                    version: VERSION,
                    entry_number: EntryNumber(below),
                    holder_counter: HolderCounter(below),
                };
                disk.replace(FILE, sealed(&first)).await?;
                first
            }
            None => return Err(CountersError::Missing),
        };
        Ok(Self {
            disk,
            reserved,
            used: reserved,
        })
    }

    /// The next number of this device's stream.
    ///
    /// # Errors
    /// Of the disk; the process stops.
    pub async fn next_number(&mut self) -> io::Result<EntryNumber> {
        let next = self.used.entry_number.next();
        if next > self.reserved.entry_number {
            let entry_number = EntryNumber(next.0.saturating_add(BLOCK));
            self.reserve(Reserved {
                entry_number,
                ..self.reserved
            })
            .await?;
        }
        self.used.entry_number = next;
        Ok(next)
    }

    /// The next counter of this device as holder.
    ///
    /// # Errors
    /// Of the disk; the process stops.
    pub async fn next_holder_counter(&mut self) -> io::Result<HolderCounter> {
        let next = self.used.holder_counter.next();
        if next > self.reserved.holder_counter {
            let holder_counter = HolderCounter(next.0.saturating_add(BLOCK));
            self.reserve(Reserved {
                holder_counter,
                ..self.reserved
            })
            .await?;
        }
        self.used.holder_counter = next;
        Ok(next)
    }

    async fn reserve(&mut self, reserved: Reserved) -> io::Result<()> {
        self.disk.replace(FILE, sealed(&reserved)).await?;
        self.reserved = reserved;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::ids::RaftNodeId;
    use transport::memory::MemoryDisk;

    use super::*;

    async fn open(disk: &MemoryDisk, is_new: bool) -> Counters {
        Counters::open(Arc::new(disk.clone()), is_new, 1).await.unwrap()
    }

    #[tokio::test]
    async fn no_number_is_used_twice_over_crashes() {
        let disk = MemoryDisk::new();
        let (mut last_number, mut last_counter) = (EntryNumber(0), HolderCounter(0));
        for life in 0..5 {
            let mut counters = open(&disk, life == 0).await;
            for _ in 0..BLOCK + 3 {
                let number = counters.next_number().await.unwrap();
                let counter = counters.next_holder_counter().await.unwrap();
                assert!(number > last_number && counter > last_counter);
                (last_number, last_counter) = (number, counter);
            }
            disk.crash();
        }
        assert!(last_number.0 < 5 * (2 * BLOCK + 8), "a restart skips at most a block");
    }

    #[tokio::test]
    async fn later_data_directory_begins_above_all_that_an_earlier_one_may_have_used() {
        let mut highest = EntryNumber(0);
        for incarnation in [1, 2, 3, RaftNodeId::INCARNATION_MAX] {
            let mut counters = Counters::open(Arc::new(MemoryDisk::new()), true, incarnation)
                .await
                .unwrap();
            let (number, counter) = (
                counters.next_number().await.unwrap(),
                counters.next_holder_counter().await.unwrap(),
            );
            assert!(number > highest && number.0 == counter.0);
            highest = EntryNumber(number.0 + (1 << DIRECTORY_NUMBERS_BITS) - 2);
        }
        assert!(highest.0 < 1 << 53, "{highest}");
    }

    #[tokio::test]
    async fn number_is_not_handed_out_if_its_reservation_fails() {
        let disk = MemoryDisk::new();
        let mut counters = open(&disk, true).await;
        disk.fail();
        assert!(counters.next_number().await.is_err());
    }

    #[tokio::test]
    async fn missing_and_damaged_files_are_refused() {
        let disk = MemoryDisk::new();
        let missing = Counters::open(Arc::new(disk.clone()), false, 1).await;
        assert!(matches!(missing, Err(CountersError::Missing)));
        disk.replace(FILE, vec![1, 2]).await.unwrap();
        let damaged = Counters::open(Arc::new(disk), true, 1).await;
        assert!(matches!(damaged, Err(CountersError::Damaged(_))));
    }

    #[tokio::test]
    async fn file_with_one_other_bit_is_refused_whichever_it_is() {
        let disk = MemoryDisk::new();
        open(&disk, true).await.next_number().await.unwrap();
        let good = disk.read(FILE).unwrap().unwrap();
        for bit in 0..8 * good.len() {
            let mut bent = good.clone();
            bent[bit / 8] ^= 1 << (bit % 8);
            disk.replace(FILE, bent).await.unwrap();
            let opened = Counters::open(Arc::new(disk.clone()), false, 1).await;
            assert!(matches!(opened, Err(CountersError::Damaged(_))), "bit {bit}");
        }
    }

    #[tokio::test]
    async fn file_without_a_digest_is_read_and_has_one_from_the_next_reservation_on() {
        let disk = MemoryDisk::new();
        let before = Reserved {
            version: UNSEALED_VERSION,
            entry_number: EntryNumber(700),
            holder_counter: HolderCounter(90),
        };
        disk.replace(FILE, encode(&before)).await.unwrap();
        let mut counters = open(&disk, false).await;
        assert_eq!(counters.next_number().await.unwrap(), EntryNumber(701));
        let written: Sealed = decode(&disk.read(FILE).unwrap().unwrap()).unwrap();
        assert!(written.reserved.entry_number > EntryNumber(700));
        assert_eq!(written.reserved.holder_counter, HolderCounter(90));
    }

    #[test]
    fn no_number_is_used_twice_over_power_cuts() {
        const TEST: &str = "counters::tests::no_number_is_used_twice_over_power_cuts";
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        if let Some((data, report)) = powercut::worker() {
            return runtime.block_on(async {
                let disk: Arc<dyn Disk> = Arc::new(transport::machine::MachineDisk::open(data.as_ref()).unwrap());
                let is_new = disk.list(FILE).unwrap().is_empty();
                let mut counters = Counters::open(disk, is_new, 1).await.unwrap();
                loop {
                    let number = counters.next_number().await.unwrap();
                    report.say(format!("{number} {}", counters.next_holder_counter().await.unwrap()));
                }
            });
        }
        let (machine, mut rng) = (powercut::Machine::new(), powercut::Rng::new(powercut::first_seed()));
        let mut last = (0, 0);
        for seed in 0..12 {
            let mut life = machine.run(TEST, machine.data().to_str().unwrap());
            let wanted = 1 + rng.below(3 * BLOCK) as usize;
            let mut lines: Vec<String> = std::iter::from_fn(|| life.next_line()).take(wanted).collect();
            lines.extend(life.kill());
            for line in lines {
                let (number, counter) = line.split_once(' ').unwrap();
                let next: (u64, u64) = (number.parse().unwrap(), counter.parse().unwrap());
                assert!(
                    next.0 > last.0 && next.1 > last.1,
                    "cut {seed}: {next:?} after {last:?}"
                );
                last = next;
            }
            let mix = powercut::Cut::Mix { seed };
            machine.cut(if seed % 2 == 0 { powercut::Cut::Drop } else { mix });
        }
    }
}
