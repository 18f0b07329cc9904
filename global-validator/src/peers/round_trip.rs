//! How long a message to a validator and its answer take, with what they vary by.
//!
//! # Rules
//! * Smoothed time and deviation as in RFC 6298, section 2; the estimate is their sum, the deviation four times.
//! * Only what was answered counts: a lost message says nothing about how long others take.
//!
//! # Why
//! The timers of a view hang on it. With the mean alone half of all messages come later than the timers suppose,
//! and views of leaders that did nothing wrong are given up.

use std::time::Duration;

/// Smoothed round trips to one peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundTrips {
    /// Smoothed time and deviation, microseconds; none before the first sample.
    smoothed: Option<(u64, u64)>,
}

impl RoundTrips {
    /// Takes a round trip that was measured.
    pub fn measured(&mut self, took: Duration) {
        let took_us = u64::try_from(took.as_micros())
            .unwrap_or(u64::MAX / 16)
            .min(u64::MAX / 16);
        self.smoothed = Some(match self.smoothed {
            None => (took_us, took_us / 2),
            Some((mean_us, deviation_us)) => (
                (7 * mean_us + took_us) / 8,
                (3 * deviation_us + mean_us.abs_diff(took_us)) / 4,
            ),
        });
    }

    /// Mean and four deviations, microseconds, if anything was measured.
    #[must_use]
    pub fn estimate_us(&self) -> Option<u64> {
        self.smoothed.map(|(mean_us, deviation_us)| mean_us + 4 * deviation_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(round_trips_ms: impl IntoIterator<Item = u64>) -> Option<u64> {
        let mut trips = RoundTrips::default();
        for ms in round_trips_ms {
            trips.measured(Duration::from_millis(ms));
        }
        trips.estimate_us()
    }

    #[test]
    fn steady_link_is_estimated_at_its_time_and_a_varying_one_above_its_longest() {
        assert_eq!(after([]), None);
        let steady = after([20; 100]).unwrap();
        assert!((20_000..21_000).contains(&steady), "{steady}");
        let varying = after((0..100).map(|turn| if turn % 2 == 0 { 5 } else { 40 })).unwrap();
        assert!(varying > 40_000, "{varying}");
    }

    #[test]
    fn absurd_round_trip_does_not_overflow() {
        let mut trips = RoundTrips::default();
        for _ in 0..3 {
            trips.measured(Duration::MAX);
        }
        assert!(trips.estimate_us() > Some(u64::MAX / 32));
    }
}
