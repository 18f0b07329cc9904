//! Ids and counters as types of their own, so that a term is never compared with a view.
//!
//! Counters have no arithmetic beyond what the protocols need: [`next`](LogIndex::next) and
//! comparison. None wraps: `next` asserts, because a counter at its end is a bug of ours.

use core::{cmp::Ordering, fmt};

use serde::{Deserialize, Serialize};

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl $name {
            /// The counter after this one.
            ///
            /// # Panics
            /// At the end of the range, which no honest history reaches.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a counter reached its end"))
            }

            /// The counter before this one, or `None` at zero.
            #[must_use]
            pub fn previous(self) -> Option<Self> {
                self.0.checked_sub(1).map(Self)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter!(
    /// Raft term (Ongaro 2014, §3.3).
    Term(u64)
);
counter!(
    /// Position of an entry in one cluster's Raft log; the first entry has index 1.
    LogIndex(u64)
);
counter!(
    /// Position of a block in the global chain; the genesis state has height 0.
    Height(u64)
);
counter!(
    /// A leader's turn in the BFT protocol, counted per epoch; the first view is 1.
    View(u64)
);
counter!(
    /// Lifetime of one validator set, and only that.
    Epoch(u64)
);
counter!(
    /// Dense number of a cluster's batches; the first batch has sequence 1.
    BatchSeq(u64)
);
counter!(
    /// How often a cluster was founded anew; 0 is the founding in the genesis file.
    Founding(u32)
);
counter!(
    /// How often a fleet-scope task was assigned or taken back; 0 for cluster-scope tasks.
    Assignment(u64)
);
counter!(
    /// Version of a device's key; the key in the genesis file has version 0.
    KeyVersion(u32)
);
counter!(
    /// Number of an author-signed entry in the stream (author, key version, cluster).
    EntryNumber(u64)
);
counter!(
    /// A holder's own counter over its claims and renewals; orders them whatever order they arrive in.
    HolderCounter(u64)
);
counter!(
    /// Regional cluster, by its position in the genesis file. Ties are broken by the lowest.
    ClusterId(u32)
);
counter!(
    /// Small number of a registered device, never reused; bit positions in certificates refer to sets
    /// that are ordered by it.
    NodeIdx(u32)
);

/// Microseconds since the Unix epoch, as proposed by validators and agreed on in blocks.
///
/// Not a reading of this machine's clock: see `ARCHITECTURE.md`, "Time".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct BlockTime(pub u64);

impl BlockTime {
    /// This time plus `ms` milliseconds, held at the end of the range.
    #[must_use]
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms.saturating_mul(1_000)))
    }

    /// Milliseconds from `earlier` to this time, 0 if `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0) / 1_000
    }
}

/// A Raft member: one data directory of one device. `NodeIdx << 32 | incarnation`.
///
/// A drone that lost its disk gets a new incarnation, since the same id could vote twice in a term.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RaftNodeId(pub u64);

impl RaftNodeId {
    /// Greatest incarnation. Each has 2^40 numbers of entries and of claims, below 2^53 together, so that they are exact in every
    /// JSON reader.
    pub const INCARNATION_MAX: u32 = 1 << 13;

    /// The id of `incarnation` (from 1) of the device with number `idx`.
    #[must_use]
    pub fn new(idx: NodeIdx, incarnation: u32) -> Self {
        Self(u64::from(idx.0) << 32 | u64::from(incarnation))
    }

    /// The device's number.
    #[must_use]
    pub fn idx(self) -> NodeIdx {
        NodeIdx((self.0 >> 32) as u32)
    }

    /// Which data directory of the device, from 1.
    #[must_use]
    pub fn incarnation(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Display for RaftNodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.idx(), self.incarnation())
    }
}

/// Where an entry stands in a cluster's Raft log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LogPosition {
    /// Term of the leader that appended the entry.
    pub term: Term,
    /// Index of the entry.
    pub index: LogIndex,
}

macro_rules! hash_id {
    ($(#[$doc:meta])* $name:ident, $short:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; 32]);

        impl Ord for $name {
            /// The order of the bytes. Digests mostly differ in the first eight, which are one number: ordered
            /// maps compare a lot.
            #[inline]
            fn cmp(&self, other: &Self) -> Ordering {
                let first = |id: &Self| u64::from_be_bytes(*id.0.first_chunk().expect("32 is more than 8"));
                first(self)
                    .cmp(&first(other))
                    .then_with(|| self.0[8..].cmp(&other.0[8..]))
            }
        }

        impl PartialOrd for $name {
            #[inline]
            fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $name {
            /// All 64 hexadecimal digits.
            #[must_use]
            pub fn to_hex(self) -> String {
                crate::ids::to_hex(&self.0)
            }

            /// Parses exactly 64 hexadecimal digits.
            #[must_use]
            pub fn from_hex(text: &str) -> Option<Self> {
                let mut bytes = [0; 32];
                crate::ids::from_hex(text, &mut bytes).then_some(Self(bytes))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        /// A short form for people; equality is always over all 32 bytes.
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str($short)?;
                for byte in &self.0[..6] {
                    write!(f, "{byte:02x}")?;
                }
                Ok(())
            }
        }
    };
}

hash_id!(
    /// A SHA-256 digest.
    Digest,
    ""
);
hash_id!(
    /// Identity of a fleet: the digest of its genesis file. In every signed byte string.
    ChainId,
    "f-"
);
hash_id!(
    /// Identity of a device: the digest of its first public key, so it survives key rotation.
    DeviceId,
    "d-"
);
hash_id!(
    /// Identity of an author-signed entry: the digest of its signed bytes, without the signature.
    EntryId,
    "e-"
);
hash_id!(
    /// Identity of a task: the entry id of its `Submit`.
    TaskId,
    "t-"
);

impl From<EntryId> for TaskId {
    fn from(id: EntryId) -> Self {
        Self(id.0)
    }
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)]);
        text.push(DIGITS[usize::from(byte & 15)]);
    }
    text
}

/// Fills `out` from exactly `2 * out.len()` hexadecimal digits; false leaves `out` unspecified.
pub fn from_hex(text: &str, out: &mut [u8]) -> bool {
    let text = text.as_bytes();
    if text.len() != out.len() * 2 {
        return false;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        let (Some(high), Some(low)) = ((pair[0] as char).to_digit(16), (pair[1] as char).to_digit(16)) else {
            return false;
        };
        *byte = (high << 4 | low) as u8;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_in_the_order_of_their_bytes() {
        for byte in 0..32 {
            let mut bytes = [7; 32];
            bytes[byte] += 1;
            bytes[byte + 1..].fill(0);
            assert_eq!(Digest([7; 32]).cmp(&Digest(bytes)), [7; 32].cmp(&bytes));
            assert_eq!(Digest(bytes).cmp(&Digest([7; 32])), bytes.cmp(&[7; 32]));
        }
        assert_eq!(Digest([7; 32]).cmp(&Digest([7; 32])), Ordering::Equal);
    }

    #[test]
    fn raft_id_holds_device_number_and_incarnation() {
        let id = RaftNodeId::new(NodeIdx(7), 3);
        assert_eq!((id.idx(), id.incarnation()), (NodeIdx(7), 3));
        assert!(RaftNodeId::new(NodeIdx(7), 4) > id);
    }

    #[test]
    fn hex_is_parsed_only_at_full_length() {
        let digest = Digest([0xab; 32]);
        assert_eq!(Digest::from_hex(&digest.to_hex()), Some(digest));
        assert_eq!(Digest::from_hex("ab"), None);
        assert_eq!(Digest::from_hex(&"zz".repeat(32)), None);
    }
}
