//! How far the log reached: told by the log itself, and by a small file beside it.
//!
//! sled takes a damaged record for the torn end of its log, cuts the log there and goes on. What is missing then was
//! acknowledged, and a member without it could vote twice. So each group of operations ends with a [`Head`] in sled that
//! says what the log holds at least, and after each flush its number goes into the file `REACHED` ([`ReachedMark`]).
//!
//! | where | what |
//! |---|---|
//! | tree `head`, key `h` | crc32c, group u64, last index u64, purged index u64, two vote checksums u32 |
//! | `REACHED`, at 0 and at 512 | group u64, crc32c; the two places take turns, so that a torn write leaves the other |
//!
//! # Rules
//! * A head never promises more than any whole prefix of the log from there on holds: it is lowered before a truncation, names both
//!   votes before a vote changes, and is raised after everything else. So no power cut makes a sound log look damaged.
//! * `REACHED` is written after the flush that made its group durable, without a flush of its own. It is flushed when the log has been
//!   quiet for a while, each [`UNSYNCED_MAX`] groups, and at the end.
//!
//! # What is noticed
//! Every loss of acknowledged operations, at every later start, but one: damage to what was acknowledged since `REACHED` last reached the device
//! (about the last second before a power cut; after the death of the process alone nothing is uncovered).
//! sled has cut its file by then: the refusal keeps the directory, not the damaged bytes.

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use common::ids::LogIndex;

use super::{
    LogOp, Recovered, StoreError,
    sled_entries::{seal, unseal},
    sled_files::{fsync_error, io_error},
    snapshot::sync_dir,
};

pub(super) const HEAD_KEY: &[u8] = b"h";
/// Length of a head without its checksum.
const HEAD_BYTES: usize = 32;
/// Groups after which `REACHED` is flushed however busy the log is.
const UNSYNCED_MAX: u32 = 1_024;

const REACHED: &str = "REACHED";
/// A device's smallest unit: no write tears two of them.
const PLACE_BYTES: u64 = 512;
const NUMBER_BYTES: usize = 12;

/// What the log holds at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    /// Groups of operations written so far.
    pub group: u64,
    /// The last record, or the last one that was purged.
    last: LogIndex,
    purged: LogIndex,
    /// Checksum of the vote: the one before and the one after the group.
    votes: [u32; 2],
}

fn checksum(vote: Option<&Bytes>) -> u32 {
    vote.map_or(0, |bytes| crc32c::crc32c(bytes))
}

impl Head {
    /// Of a log that has none yet.
    pub fn of(recovered: &Recovered) -> Self {
        let (last, purged) = reach(recovered);
        let vote = checksum(recovered.vote.as_ref());
        Self {
            group: 0,
            last,
            purged,
            votes: [vote, vote],
        }
    }

    /// Takes what `op` changes. True if the head must be in sled before `op` is.
    pub fn lower(&mut self, op: &LogOp) -> bool {
        match op {
            LogOp::Vote(bytes) => {
                self.votes[1] = checksum(Some(bytes));
                self.votes[0] != self.votes[1]
            }
            LogOp::Truncate { from } => {
                let kept = LogIndex(from.0.saturating_sub(1)).max(self.purged);
                let is_lower = kept < self.last;
                self.last = self.last.min(kept);
                is_lower
            }
            LogOp::Append(_) | LogOp::Purge { .. } | LogOp::Committed(_) => false,
        }
    }

    /// Takes what `op` has added.
    pub fn raise(&mut self, op: &LogOp) {
        match op {
            LogOp::Vote(_) => self.votes[0] = self.votes[1],
            LogOp::Append(records) => self.last = records.last().map_or(self.last, |record| record.index),
            LogOp::Purge { upto, .. } => {
                self.purged = self.purged.max(*upto);
                self.last = self.last.max(*upto);
            }
            LogOp::Truncate { .. } | LogOp::Committed(_) => {}
        }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_BYTES);
        for number in [self.group, self.last.0, self.purged.0] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        for vote in self.votes {
            bytes.extend_from_slice(&vote.to_be_bytes());
        }
        seal(&bytes)
    }

    pub fn decode(sealed: &[u8]) -> Result<Self, StoreError> {
        let bytes = unseal("head", sealed)?;
        if bytes.len() != HEAD_BYTES {
            return Err(StoreError::Corrupt(format!("head: {} bytes", bytes.len())));
        }
        let number = |at: usize| u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 of 32 bytes"));
        let vote = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("4 of 32 bytes"));
        Ok(Self {
            group: number(0),
            last: LogIndex(number(8)),
            purged: LogIndex(number(16)),
            votes: [vote(24), vote(28)],
        })
    }

    /// Whether `recovered` holds what this promises.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`]: acknowledged operations are missing.
    pub fn check(&self, recovered: &Recovered) -> Result<(), StoreError> {
        let (last, purged) = reach(recovered);
        let vote = checksum(recovered.vote.as_ref());
        if last < self.last {
            return Err(lost(&format!("it ends at {last}, and once held {}", self.last)));
        }
        if purged < self.purged {
            return Err(lost(&format!(
                "it is purged to {purged}, and once was to {}",
                self.purged
            )));
        }
        if !self.votes.contains(&vote) {
            return Err(lost("the vote is an older one"));
        }
        Ok(())
    }
}

/// The last index and the last purged one.
fn reach(recovered: &Recovered) -> (LogIndex, LogIndex) {
    let purged = recovered.purged.as_ref().map_or(LogIndex(0), |(upto, _)| *upto);
    let last = recovered.records.map_or(purged, |(_, last)| last.max(purged));
    (last, purged)
}

fn lost(why: &str) -> StoreError {
    StoreError::Corrupt(format!(
        "acknowledged operations are missing: {why}. Keep the directory, and start on an empty one with the next `incarnation` in the configuration file"
    ))
}

/// The file `REACHED`.
pub(super) struct ReachedMark {
    file: File,
    path: PathBuf,
    unsynced: u32,
}

impl ReachedMark {
    /// Opens the mark in `dir`, or makes an empty one; and the last group that it knows of.
    pub fn open(dir: &Path) -> Result<(Self, Option<u64>), StoreError> {
        let path = dir.join(REACHED);
        let fail = |error: io::Error| io_error(&path, &error);
        let is_new = !path.exists();
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(fail)?;
        let mut places = [0; 2 * PLACE_BYTES as usize];
        if file.metadata().map_err(fail)?.len() < places.len() as u64 {
            // A new one, or one that a power cut left without its bytes: from now on no write changes its size.
            file.write_all_at(&places, 0).map_err(fail)?;
            file.sync_all().map_err(fail)?;
        }
        if is_new {
            sync_dir(dir)?;
        }
        file.read_exact_at(&mut places, 0).map_err(fail)?;
        let known = places.chunks(PLACE_BYTES as usize).filter_map(parse).max();
        let unsynced = 0;
        Ok((Self { file, path, unsynced }, known))
    }

    /// Notes that `group` is durable.
    pub fn write(&mut self, group: u64) -> Result<(), StoreError> {
        let mut number = group.to_be_bytes().to_vec();
        number.extend_from_slice(&crc32c::crc32c(&group.to_be_bytes()).to_be_bytes());
        let place = group % 2 * PLACE_BYTES;
        let written = self.file.write_all_at(&number, place);
        written.map_err(|error| io_error(&self.path, &error))?;
        self.unsynced += 1;
        if self.unsynced >= UNSYNCED_MAX {
            self.sync()
        } else {
            Ok(())
        }
    }

    pub fn is_unsynced(&self) -> bool {
        self.unsynced > 0
    }

    pub fn sync(&mut self) -> Result<(), StoreError> {
        if self.is_unsynced() {
            let synced = self.file.sync_data();
            synced.map_err(|error| fsync_error(&self.path, &error))?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

fn parse(place: &[u8]) -> Option<u64> {
    let (group, rest) = place.get(..NUMBER_BYTES)?.split_first_chunk::<8>()?;
    (crc32c::crc32c(group).to_be_bytes() == *rest && group != &[0; 8]).then(|| u64::from_be_bytes(*group))
}

/// Whether a log whose head is `head` reaches to the group that `REACHED` knows of.
///
/// # Errors
/// [`StoreError::Corrupt`]: acknowledged operations are missing.
pub(super) fn check_reached(head: Option<&Head>, known: Option<u64>) -> Result<(), StoreError> {
    let reached = head.map(|head| head.group);
    if reached >= known {
        return Ok(());
    }
    let (reached, known) = (reached.unwrap_or(0), known.unwrap_or(0));
    Err(lost(&format!(
        "its last group of operations is {reached}, and once was {known}"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::store::LogRecord;

    fn recovered(last: u64, purged: u64, vote: &'static str) -> Recovered {
        Recovered {
            vote: Some(vote.into()),
            committed: None,
            purged: (purged > 0).then(|| (LogIndex(purged), "marker".into())),
            records: (last > purged).then_some((LogIndex(purged + 1), LogIndex(last))),
        }
    }

    #[test]
    fn head_refuses_whatever_is_missing_and_takes_whatever_was_added() {
        let head = Head::of(&recovered(10, 5, "a"));
        for (log, is_whole) in [
            (recovered(10, 5, "a"), true),
            (recovered(12, 7, "a"), true),
            (recovered(9, 5, "a"), false),
            (recovered(10, 4, "a"), false),
            (recovered(10, 5, "b"), false),
            (Recovered::default(), false),
        ] {
            assert_eq!(head.check(&log).is_ok(), is_whole, "{log:?}");
        }
        assert_eq!(Head::decode(&head.encode()), Ok(head));
    }

    #[test]
    fn head_before_an_operation_holds_before_and_after_it() {
        let mut head = Head::of(&recovered(10, 5, "a"));
        assert!(head.lower(&LogOp::Vote("b".into())));
        for vote in ["a", "b"] {
            head.check(&recovered(10, 5, vote)).unwrap();
        }
        head.raise(&LogOp::Vote("b".into()));
        assert!(head.check(&recovered(10, 5, "a")).is_err());
        let truncate = LogOp::Truncate { from: LogIndex(8) };
        assert!(head.lower(&truncate));
        head.raise(&truncate);
        for last in 7..=10 {
            head.check(&recovered(last, 5, "b")).unwrap();
        }
        assert!(head.check(&recovered(6, 5, "b")).is_err());
        let record = LogRecord {
            index: LogIndex(8),
            bytes: "x".into(),
        };
        let append = LogOp::Append(vec![record]);
        assert!(!head.lower(&append));
        head.check(&recovered(7, 5, "b")).unwrap();
        head.raise(&append);
        assert!(head.check(&recovered(7, 5, "b")).is_err());
        let purge = LogOp::Purge {
            upto: LogIndex(9),
            marker: "marker".into(),
        };
        assert!(!head.lower(&purge));
        head.raise(&purge);
        head.check(&recovered(9, 9, "b")).unwrap();
        assert!(head.check(&recovered(8, 5, "b")).is_err());
    }

    #[test]
    fn mark_survives_a_torn_write_and_never_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (mut mark, known) = ReachedMark::open(dir.path()).unwrap();
        assert_eq!(known, None);
        for group in 1..=7 {
            mark.write(group).unwrap();
        }
        mark.sync().unwrap();
        assert_eq!(ReachedMark::open(dir.path()).unwrap().1, Some(7));
        // The write of 8 tore: the place of 6 is neither.
        mark.file.write_all_at(&[0xff; 5], 0).unwrap();
        assert_eq!(ReachedMark::open(dir.path()).unwrap().1, Some(7));
        check_reached(
            Some(&Head {
                group: 7,
                ..Head::default()
            }),
            Some(7),
        )
        .unwrap();
        check_reached(None, None).unwrap();
        for head in [
            None,
            Some(Head {
                group: 6,
                ..Head::default()
            }),
        ] {
            let refused = check_reached(head.as_ref(), Some(7));
            assert!(
                matches!(&refused, Err(StoreError::Corrupt(why)) if why.contains("once was 7")),
                "{refused:?}"
            );
        }
    }
}
