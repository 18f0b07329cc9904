//! How long it usually takes until a closed batch is final, as this member sees it.
//!
//! # Rules
//! * At first it is what slow round trips come to.
//! * Every member learns it, also one that never submits: by it a member judges whether the leader holds a batch
//!   back. One that judges by a guess sends everything again wherever links are slower than the guess, and one that
//!   counts from its own submission takes what the leader's brought about for an answer to its own (Karn and
//!   Partridge 1987).
//! * Of batches that become final together the newest counts: the others waited for the same thing.
//! * A sample counts as at most twice what is usual: an hour without validators is not the usual time.
//! * It never exceeds four times what was supposed at first. A leader that holds batches back makes every one of them
//!   late, and would otherwise teach the others to wait for ever longer.
//! * Smoothed as round trips are (RFC 6298, §2.3: an eighth of each sample).

use std::time::Duration;

/// Round trips from the close of a batch to its finality: attested and submitted (1), stored and heard of (1), fetched by
/// the others (1), agreed (1.5), brought back (0.5) and committed in the cluster (1).
const ROUND_TRIPS: u64 = 6;
/// Least that is supposed before anything was measured: disks and busy machines.
const FIRST_US_MIN: u64 = 300_000;
/// Bounds of what is taken for usual; the upper one in times of what was supposed.
const MIN_US: u64 = 100_000;
const TIMES_SUPPOSED_MAX: u64 = 4;
/// Most that is supposed.
const FIRST_US_MAX: u64 = 10_000_000;

/// The smoothed time from the close of a batch to its finality.
pub(super) struct UsualFinality {
    us: u64,
    most_us: u64,
}

impl UsualFinality {
    /// Before anything was measured, with round trips of at most `rtt`, and blocks that come back in groups, one per
    /// `group_interval`.
    pub fn supposed(rtt: Duration, group_interval: Duration) -> Self {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(FIRST_US_MAX);
        let us = us(rtt).saturating_mul(ROUND_TRIPS).saturating_add(us(group_interval));
        let us = us.clamp(FIRST_US_MIN, FIRST_US_MAX);
        let most_us = TIMES_SUPPOSED_MAX * us;
        Self { us, most_us }
    }

    pub fn us(&self) -> u64 {
        self.us
    }

    /// The newest batch of those that just became final took so long.
    pub fn learn(&mut self, took_us: u64) {
        let took_us = took_us.min(2 * self.us);
        self.us = ((7 * self.us + took_us) / 8).clamp(MIN_US, self.most_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(samples: impl IntoIterator<Item = u64>) -> u64 {
        let mut usual = UsualFinality::supposed(Duration::from_millis(5), Duration::from_millis(20));
        samples.into_iter().for_each(|took_us| usual.learn(took_us));
        usual.us()
    }

    #[test]
    fn long_round_trips_are_supposed_to_make_finality_slow() {
        let supposed = |rtt_ms, interval_ms| {
            UsualFinality::supposed(Duration::from_millis(rtt_ms), Duration::from_millis(interval_ms)).us()
        };
        assert_eq!((supposed(5, 20), supposed(10, 20)), (FIRST_US_MIN, FIRST_US_MIN));
        assert_eq!((supposed(100, 200), supposed(450, 900)), (800_000, 3_600_000));
        assert_eq!(supposed(u64::MAX, u64::MAX), FIRST_US_MAX);
    }

    #[test]
    fn what_always_takes_as_long_becomes_usual() {
        for took_us in [150_000, 300_000, 700_000, 1_200_000] {
            let usual_us = after([took_us; 100]);
            assert!(
                (took_us * 9 / 10..=took_us).contains(&usual_us),
                "{took_us}: {usual_us}"
            );
        }
    }

    #[test]
    fn one_batch_that_waited_for_hours_changes_little() {
        assert_eq!(after([u64::MAX]), FIRST_US_MIN / 8 * 9);
    }

    #[test]
    fn leader_that_holds_every_batch_back_teaches_no_more_than_a_bounded_patience() {
        let mut usual = UsualFinality::supposed(Duration::from_millis(100), Duration::from_millis(200));
        let supposed_us = usual.us();
        for _ in 0..1_000 {
            // Held back until the others have waited long enough.
            usual.learn(3 * usual.us());
        }
        assert_eq!(usual.us(), 4 * supposed_us);
    }

    #[test]
    fn fast_finality_does_not_make_impatient() {
        assert_eq!(after([0; 100]), MIN_US);
    }
}
