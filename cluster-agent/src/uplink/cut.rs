//! The leader closes batches early, and gives a sign of life where nothing happens.
//!
//! # Rules
//! * Upon something open for the batch interval: `Cut` of the open batch. While more than
//!   `PENDING_BEFORE_SLOWER` batches wait to become final the interval grows with their number: a batch that has to
//!   wait anyway may as well hold more, and each costs an attestation of every member and its turn when the link is
//!   back. Up to half of the pace of beats: by then the drones' claims and renewals are in a batch, as soon as
//!   there is anybody to take it.
//! * Upon silence for a quarter of the custody time, with nothing open and nothing in the outbox:
//!   `Beat`. It renews custody; it would be a no-op while batches wait to become final.
//! * One proposal at a time. A proposal of a leader that is no more is a no-op by its number.

use std::{sync::Arc, time::Duration};

use common::{entry::LogEntry, ids::BatchSeq};

use crate::{raft::ProposeOutcome, shell::Shell};

/// Closed batches on their way with which the interval is as configured: finality takes some intervals.
const PENDING_BEFORE_SLOWER: u64 = 8;
/// An open batch may wait for so many batch intervals in any case.
const INTERVALS_MIN: u64 = 8;

/// Time after which the open batch closes, while `pending` batches are closed and not final. `beat_after_us`: the pace of
/// beats. All in microseconds.
fn open_us(pending: u64, interval_us: u64, beat_after_us: u64) -> u64 {
    let intervals = pending.saturating_sub(PENDING_BEFORE_SLOWER).saturating_add(1);
    let longest_us = interval_us.saturating_mul(INTERVALS_MIN).max(beat_after_us / 2);
    interval_us.saturating_mul(intervals).min(longest_us)
}

impl Shell {
    /// Runs as long as the agent.
    pub(crate) async fn close_batches(self: Arc<Self>) {
        let beat_after_us = u64::from(self.genesis.timing.lease.custody_ms) * 1_000 / 4;
        let mut closed: Option<(BatchSeq, u64)> = None;
        let mut open_since_us: Option<(BatchSeq, u64)> = None;
        while !self.is_ending() {
            let now_us = self.now_us();
            let pulse = self.machine.pulse().get();
            if closed.is_none_or(|(seq, _)| seq != pulse.closed) {
                // A leader that has just begun does not know when the last batch closed: it beats at once.
                let at_us = if closed.is_none() { 0 } else { now_us };
                closed = Some((pulse.closed, at_us));
            }
            let open_seq = pulse.closed.next();
            if pulse.open_len == 0 {
                open_since_us = None;
            } else if open_since_us.is_none_or(|(seq, _)| seq != open_seq) {
                open_since_us = Some((open_seq, now_us));
            }
            let interval_us = u64::try_from(self.limits.batch_interval.as_micros()).unwrap_or(u64::MAX);
            let pending = pulse.closed.0.saturating_sub(pulse.last_final.0);
            let open_us = open_us(pending, interval_us, beat_after_us);
            let cut_at = open_since_us.map(|(_, since)| since.saturating_add(open_us));
            let is_silent = pulse.open_len == 0 && pulse.last_final == pulse.closed;
            let beat_at = closed
                .map(|(_, at)| at.saturating_add(beat_after_us))
                .filter(|_| is_silent);
            let due = match (cut_at, beat_at) {
                (Some(at), _) if at <= now_us => Some(LogEntry::Cut { seq: open_seq }),
                (None, Some(at)) if at <= now_us => Some(LogEntry::Beat { seq: open_seq }),
                _ => None,
            };
            match due {
                Some(entry) if self.is_leader() => self.propose_close(&entry).await,
                // Not leading: look again when something changed, and now and then.
                Some(_) => self.pause(Duration::from_millis(self.raft_config.heartbeat_ms)).await,
                None => {
                    let next = cut_at.or(beat_at).map_or(beat_after_us, |at| at.saturating_sub(now_us));
                    let wait = Duration::from_micros(next.clamp(1_000, 1_000_000));
                    let changed = self.machine.turn().wait_until(|now| *now != pulse.into());
                    let _ = self.within(wait, changed).await;
                }
            }
        }
    }

    async fn propose_close(&self, entry: &LogEntry) {
        let deadline = Duration::from_millis(2 * self.raft_config.election_timeout_ms_max);
        match self.propose(entry, deadline).await {
            ProposeOutcome::Committed { .. } => {}
            outcome @ (ProposeOutcome::Refused(_) | ProposeOutcome::Unknown) => {
                tracing::debug!(?outcome, "the open batch was not closed; it is tried again");
                self.pause(Duration::from_millis(self.raft_config.heartbeat_ms)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_batch_waits_longer_only_while_many_wait_before_it() {
        for pending in 0..=8 {
            assert_eq!(open_us(pending, 100, 10_000), 100, "{pending} pending");
        }
        assert_eq!(open_us(9, 100, 10_000), 200);
        assert_eq!(open_us(15, 100, 10_000), 800);
    }

    #[test]
    fn open_batch_waits_for_half_a_beat_at_most_or_for_some_slow_intervals() {
        assert_eq!(open_us(u64::MAX, 100, 10_000), 5_000);
        assert_eq!(open_us(u64::MAX, 1_000, 10_000), 8_000);
        assert_eq!(open_us(u64::MAX, u64::MAX, u64::MAX), u64::MAX);
    }
}
