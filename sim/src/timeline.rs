//! How a run looked second by second, for people: who led, how much waited, how far finality was behind.

use std::collections::VecDeque;

use common::ids::Height;

/// One look at the fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Virtual time.
    pub at_ms: u64,
    /// Leader and term of each cluster, if it has one.
    pub leaders: Vec<Option<(String, u64)>>,
    /// Open tasks of each cluster, as the member sees them that sees most.
    pub open_tasks: Vec<u64>,
    /// Bytes in the fullest outbox of each cluster.
    pub outbox_bytes: Vec<u64>,
    /// Age of the oldest acknowledged task that is not final everywhere.
    pub finality_lag_ms: u64,
    /// Lowest and highest final height of an honest validator.
    pub heights: (Height, Height),
}

/// Samples of a run, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The samples.
    pub samples: Vec<Sample>,
    /// When so many tasks were acknowledged; in order.
    acknowledged: VecDeque<(u64, u64)>,
}

impl Timeline {
    /// Takes note that `acknowledged` tasks are acknowledged at `at_ms` and `finalized` of them final. Returns the age
    /// of the oldest of the others, to the length of a sample.
    pub fn lag_ms(&mut self, at_ms: u64, acknowledged: u64, finalized: u64) -> u64 {
        if self.acknowledged.back().is_none_or(|(_, count)| *count < acknowledged) {
            self.acknowledged.push_back((at_ms, acknowledged));
        }
        while self.acknowledged.front().is_some_and(|(_, count)| *count <= finalized) {
            self.acknowledged.pop_front();
        }
        self.acknowledged.front().map_or(0, |(since_ms, _)| at_ms - since_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lag_is_the_age_of_the_oldest_that_is_not_final() {
        let mut timeline = Timeline::default();
        assert_eq!(timeline.lag_ms(1_000, 0, 0), 0);
        assert_eq!(timeline.lag_ms(2_000, 5, 0), 0);
        assert_eq!(timeline.lag_ms(3_000, 8, 4), 1_000);
        assert_eq!(timeline.lag_ms(4_000, 8, 5), 1_000);
        assert_eq!(timeline.lag_ms(5_000, 8, 8), 0);
    }
}
