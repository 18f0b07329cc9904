//! How long it usually takes until a closed batch is final, as this member sees it.
//!
//! # Rules
//! * At first it is what slow round trips come to, and never less: what was measured in quiet hours says little of busy ones.
//! * Every member learns it from all that it signed, also one that never submits: by it a member judges whether the leader
//!   holds a batch back. One that judges by a guess sends everything again wherever finality takes longer than the guess,
//!   and one that counts from its own submission takes what the leader's brought about for an answer to its own (Karn and
//!   Partridge 1987).
//! * Of batches that become final together the newest counts: the others waited for the same thing.
//! * A batch that has to wait behind others counts from when it is among those that are submitted.
//! * A sample counts as at most twice what is usual: an hour without validators is not the usual time.
//! * Smoothed as round trips are (RFC 6298, §2.3: an eighth of each sample).
//! * Patience with the leader does not grow beyond a multiple of what was supposed: one that holds back every batch makes
//!   all of them late, and would otherwise teach the others to wait for ever longer.

use std::time::Duration;

/// Round trips from the close of a batch to its finality: attested and submitted (1), stored and heard of (1), fetched by
/// the others (1), agreed (1.5), brought back (0.5) and committed in the cluster (1).
const ROUND_TRIPS: u64 = 6;
/// Bounds of what is supposed: disks and busy machines, and settings beyond reason.
const SUPPOSED_US_MIN: u64 = 300_000;
const SUPPOSED_US_MAX: u64 = 10_000_000;
/// Most that is usual.
const USUAL_US_MAX: u64 = 30_000_000;
/// Patience is twice what is usual, and at most twice this many times what was supposed.
const TIMES_SUPPOSED_MAX: u64 = 2;

/// The smoothed time from the close of a batch to its finality.
pub(super) struct UsualFinality {
    supposed_us: u64,
    us: u64,
}

impl UsualFinality {
    /// Before anything was measured, with round trips of at most `rtt`, and blocks that come back in groups, one per
    /// `batch_interval`.
    pub fn supposed(rtt: Duration, batch_interval: Duration) -> Self {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(SUPPOSED_US_MAX);
        let supposed_us = micros(rtt)
            .saturating_mul(ROUND_TRIPS)
            .saturating_add(micros(batch_interval))
            .clamp(SUPPOSED_US_MIN, SUPPOSED_US_MAX);
        Self {
            supposed_us,
            us: supposed_us,
        }
    }

    /// Microseconds.
    pub fn us(&self) -> u64 {
        self.us
    }

    /// How long the leader is trusted with a batch that is not final, microseconds.
    pub fn patience_us(&self) -> u64 {
        2 * self.us.min(TIMES_SUPPOSED_MAX * self.supposed_us)
    }

    /// The newest batch of those that just became final took so long.
    pub fn learn(&mut self, took_us: u64) {
        let took_us = took_us.min(2 * self.us);
        self.us = ((7 * self.us + took_us) / 8).clamp(self.supposed_us, USUAL_US_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supposed(rtt_ms: u64, interval_ms: u64) -> UsualFinality {
        UsualFinality::supposed(Duration::from_millis(rtt_ms), Duration::from_millis(interval_ms))
    }

    fn after(samples: impl IntoIterator<Item = u64>) -> u64 {
        let mut usual = supposed(5, 20);
        samples.into_iter().for_each(|took_us| usual.learn(took_us));
        usual.us()
    }

    #[test]
    fn long_round_trips_are_supposed_to_make_finality_slow() {
        let us = |rtt_ms, interval_ms| supposed(rtt_ms, interval_ms).us();
        assert_eq!((us(5, 20), us(10, 40)), (SUPPOSED_US_MIN, SUPPOSED_US_MIN));
        assert_eq!((us(100, 400), us(450, 1_800)), (1_000_000, 4_500_000));
        assert_eq!(us(u64::MAX, u64::MAX), SUPPOSED_US_MAX);
    }

    #[test]
    fn what_always_takes_as_long_becomes_usual() {
        for took_us in [300_000, 1_000_000, 20_000_000] {
            let usual_us = after([took_us; 100]);
            assert!(
                (took_us * 9 / 10..=took_us).contains(&usual_us),
                "{took_us}: {usual_us}"
            );
        }
    }

    #[test]
    fn one_batch_that_waited_for_hours_changes_little() {
        assert_eq!(after([u64::MAX]), SUPPOSED_US_MIN / 8 * 9);
        assert_eq!(after([u64::MAX; 100]), USUAL_US_MAX);
    }

    #[test]
    fn fast_finality_does_not_make_impatient() {
        assert_eq!(after([0; 100]), SUPPOSED_US_MIN);
    }

    #[test]
    fn leader_that_holds_every_batch_back_teaches_no_more_than_a_bounded_patience() {
        let mut usual = supposed(100, 400);
        let first_us = usual.patience_us();
        for _ in 0..1_000 {
            // Until the others have waited long enough, and a little.
            usual.learn(usual.patience_us() + 500_000);
        }
        assert_eq!((first_us, usual.patience_us()), (2_000_000, 4_000_000));
    }
}
