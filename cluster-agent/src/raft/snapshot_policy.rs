//! When a snapshot is due, and how much log is kept below one.
//!
//! # Rules
//! * A snapshot is due after a number of entries or of bytes since the last, whichever comes first; but if
//!   the last one has more than 4 MiB, not before as much was written to the log. So what is written for
//!   snapshots stays within what is written to the log itself.
//! * Of a large one, 32 MiB or a quarter of it are enough, whichever is more: a restart applies the log again.
//! * Below a snapshot the log keeps a number of entries, and of those no more than a number of bytes.
//!
//! # Why
//! openraft counts entries only. One entry may be a quarter of a megabyte (a part of a block), and a
//! state may be a gigabyte.

use std::collections::VecDeque;

use common::{
    bug::{self, Bug},
    ids::LogIndex,
};

/// A snapshot up to this size delays nothing.
const SMALL_BYTES: u64 = 4 * 1024 * 1024;
/// From this much log on, a quarter of the last snapshot is enough for the next one.
const LARGE_BYTES: u64 = 32 * 1024 * 1024;
/// Distance of two marks in the log.
const MARK_BYTES: u64 = 64 * 1024;
/// What an entry weighs beside its command: ids, chain, checksums.
const ENTRY_BYTES: u64 = 96;

/// Bounds that the configuration gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SnapshotBounds {
    pub entries: u64,
    pub bytes: u64,
    pub kept_bytes: u64,
}

/// Counts what was applied.
#[derive(Debug)]
pub(super) struct SnapshotPolicy {
    bounds: SnapshotBounds,
    entries_since: u64,
    bytes_since: u64,
    last_bytes: u64,
    is_building: bool,
    /// Bytes of all entries applied up to and with an index.
    marks: VecDeque<(LogIndex, u64)>,
    bytes_total: u64,
}

impl SnapshotPolicy {
    pub fn new(bounds: SnapshotBounds) -> Self {
        Self {
            bounds,
            entries_since: 0,
            bytes_since: 0,
            last_bytes: 0,
            is_building: false,
            marks: VecDeque::new(),
            bytes_total: 0,
        }
    }

    /// An entry with a command of this length was applied.
    pub fn applied(&mut self, index: LogIndex, command_len: usize) {
        let bytes = command_len as u64 + ENTRY_BYTES;
        self.entries_since += 1;
        self.bytes_since += bytes;
        self.bytes_total += bytes;
        if self
            .marks
            .back()
            .is_none_or(|(_, then)| then + MARK_BYTES <= self.bytes_total)
        {
            self.marks.push_back((index, self.bytes_total));
        }
    }

    /// A view was taken for a new snapshot.
    pub fn begun(&mut self) {
        self.is_building = true;
        (self.entries_since, self.bytes_since) = (0, 0);
    }

    /// The snapshot that was begun is there, or was given up.
    pub fn ended(&mut self, bytes: Option<u64>) {
        self.is_building = false;
        self.last_bytes = bytes.unwrap_or(self.last_bytes);
    }

    /// A snapshot of `bytes` was installed at `index`: what was counted before means nothing now.
    pub fn installed(&mut self, bytes: u64) {
        (self.entries_since, self.bytes_since) = (0, 0);
        self.last_bytes = bytes;
        self.marks.clear();
    }

    pub fn is_due(&self) -> bool {
        let is_reached = self.entries_since >= self.bounds.entries || self.bytes_since >= self.bounds.bytes;
        let is_worth = self.last_bytes <= SMALL_BYTES
            || self.bytes_since >= self.last_bytes.min(LARGE_BYTES.max(self.last_bytes / 4));
        is_reached && is_worth && !self.is_building && !bug::active(Bug::LogNeverPurged)
    }

    /// The log may be purged up to here, given a snapshot at `snapshot` and what was purged before, so
    /// that no more than the bound in bytes is kept below the snapshot. `None`: nothing to do.
    pub fn purge_to(&mut self, snapshot: LogIndex, purged: LogIndex) -> Option<LogIndex> {
        while self.marks.front().is_some_and(|(index, _)| *index <= purged) {
            self.marks.pop_front();
        }
        let below: Vec<_> = self.marks.iter().take_while(|(index, _)| *index <= snapshot).collect();
        let (_, bytes) = below.last()?;
        let floor = bytes.saturating_sub(self.bounds.kept_bytes);
        let found = below.iter().rev().find(|(_, then)| *then < floor)?;
        Some(found.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> SnapshotPolicy {
        SnapshotPolicy::new(SnapshotBounds {
            entries: 10,
            bytes: 1_000_000,
            kept_bytes: 300_000,
        })
    }

    fn apply(policy: &mut SnapshotPolicy, indexes: std::ops::Range<u64>, command_len: usize) {
        for index in indexes {
            policy.applied(LogIndex(index), command_len);
        }
    }

    #[test]
    fn entries_or_bytes_make_a_snapshot_due() {
        let mut by_entries = policy();
        apply(&mut by_entries, 1..10, 10);
        assert!(!by_entries.is_due());
        apply(&mut by_entries, 10..11, 10);
        assert!(by_entries.is_due());
        let mut by_bytes = policy();
        apply(&mut by_bytes, 1..5, 250_000);
        assert!(by_bytes.is_due());
        by_bytes.begun();
        apply(&mut by_bytes, 5..50, 250_000);
        assert!(!by_bytes.is_due(), "one is being built");
        by_bytes.ended(Some(1_000));
        assert!(by_bytes.is_due());
    }

    #[test]
    fn snapshot_delays_the_next_until_as_much_was_logged_or_a_quarter_of_a_large_one() {
        let due_after = |last_bytes| {
            let mut policy = policy();
            policy.begun();
            policy.ended(Some(last_bytes));
            (1..).find(|index| {
                apply(&mut policy, *index..index + 1, 250_000);
                policy.is_due()
            })
        };
        assert_eq!(due_after(4_000_000), Some(4), "a small one delays nothing");
        assert_eq!(due_after(20_000_000), Some(80));
        assert_eq!(due_after(100_000_000), Some(135), "32 MiB");
        assert_eq!(due_after(400_000_000), Some(400));
    }

    #[test]
    fn log_below_a_snapshot_is_bounded_in_bytes() {
        let mut policy = policy();
        apply(&mut policy, 1..101, 100_000);
        let upto = policy.purge_to(LogIndex(100), LogIndex(0)).unwrap();
        assert!((LogIndex(95)..LogIndex(98)).contains(&upto), "{upto}");
        assert_eq!(policy.purge_to(LogIndex(100), upto), None);
        assert_eq!(policy.purge_to(LogIndex(50), upto), None, "never above the snapshot");
    }

    #[test]
    fn small_log_is_not_purged_by_bytes() {
        let mut policy = policy();
        apply(&mut policy, 1..1_000, 10);
        assert_eq!(policy.purge_to(LogIndex(999), LogIndex(0)), None);
    }
}
