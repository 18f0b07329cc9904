//! What happens to a frame on a link: drawn from the seed, under the conditions and cuts of the moment.
//!
//! # Rules
//! * A cut is of one direction. Every shape of partition is a set of cut directions.
//! * A cut takes what is sent while it lasts and what is under way when it begins.
//! * A link whose two directions were not both open for [`IDLE_US`] has no connection: a call finds out
//!   that nothing was sent, as with QUIC's idle timeout.
//! * Bandwidth is a queue of each direction: a frame waits for those before it. Above [`QUEUE_US_MAX`]
//!   of waiting it is dropped, as by a full radio buffer.

use std::collections::{BTreeMap, BTreeSet};

use crate::random::Stream;

/// How bad the links are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkConditions {
    /// Shortest one-way delay.
    pub delay_us_min: u64,
    /// Longest one-way delay, spikes apart.
    pub delay_us_max: u64,
    /// Frames lost, per million.
    pub loss_ppm: u64,
    /// Frames held up by `spike_us`, per million: they arrive behind many that were sent later.
    pub spike_ppm: u64,
    /// Delay of a spike, beside the usual one.
    pub spike_us: u64,
    /// Requests that arrive twice, per million.
    pub duplicate_ppm: u64,
    /// Of each direction of each link; 0 is without a limit.
    pub bytes_per_second: u64,
}

/// Silence after which a connection is given up, as in `transport::quic`.
pub const IDLE_US: u64 = 10_000_000;
/// Longest wait for bandwidth.
pub const QUEUE_US_MAX: u64 = 5_000_000;

/// A direction of a link: numbers of the two processes.
pub type Direction = (u32, u32);

/// What becomes of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It never arrives.
    Lost,
    /// It arrives.
    Arrives {
        /// After this time.
        after_us: u64,
        /// And once more after this time.
        again_after_us: Option<u64>,
    },
}

/// The links of one run.
#[derive(Debug)]
pub struct Links {
    random: Stream,
    conditions: LinkConditions,
    /// Cut directions, and since when.
    cuts: BTreeMap<Direction, u64>,
    /// Until when each direction is busy with frames sent before.
    busy_until_us: BTreeMap<Direction, u64>,
}

impl Links {
    /// Open links under `conditions`.
    #[must_use]
    pub fn new(seed: u64, conditions: LinkConditions) -> Self {
        Self {
            random: Stream::split(seed, 0x6e65_7477),
            conditions,
            cuts: BTreeMap::new(),
            busy_until_us: BTreeMap::new(),
        }
    }

    /// The conditions now.
    #[must_use]
    pub fn conditions(&self) -> LinkConditions {
        self.conditions
    }

    /// New conditions for all frames from now on.
    pub fn set_conditions(&mut self, conditions: LinkConditions) {
        self.conditions = conditions;
    }

    /// Cuts exactly `directions`; every other one is open. Cuts that go on keep their beginning.
    pub fn set_cuts(&mut self, directions: &BTreeSet<Direction>, now_us: u64) {
        self.cuts.retain(|direction, _| directions.contains(direction));
        for direction in directions {
            self.cuts.entry(*direction).or_insert(now_us);
        }
    }

    /// Whether frames of this direction are lost now.
    #[must_use]
    pub fn is_cut(&self, direction: Direction) -> bool {
        self.cuts.contains_key(&direction)
    }

    /// Whether frames pass both ways.
    #[must_use]
    pub fn is_open(&self, a: u32, b: u32) -> bool {
        !self.is_cut((a, b)) && !self.is_cut((b, a))
    }

    /// Since when no answer can have come over this link; `None` while it is open.
    #[must_use]
    pub fn silent_since_us(&self, a: u32, b: u32) -> Option<u64> {
        let there = self.cuts.get(&(a, b));
        let back = self.cuts.get(&(b, a));
        there.into_iter().chain(back).min().copied()
    }

    /// A number from the links' own stream.
    pub fn draw(&mut self, low: u64, high: u64) -> u64 {
        self.random.between(low, high)
    }

    /// Draws what becomes of a frame of `bytes` bytes sent at `now_us`. `may_repeat`: it is a request,
    /// which may arrive twice.
    pub fn fate(&mut self, direction: Direction, bytes: usize, may_repeat: bool, now_us: u64) -> Fate {
        let conditions = self.conditions;
        let is_lost = self.random.happens_ppm(conditions.loss_ppm);
        let mut after_us = self.delay_us();
        let is_doubled = may_repeat && self.random.happens_ppm(conditions.duplicate_ppm);
        let again_after_us = is_doubled.then(|| after_us + self.delay_us());
        if is_lost || self.is_cut(direction) {
            return Fate::Lost;
        }
        if let Some(sending_us) = (bytes as u64 * 1_000_000).checked_div(conditions.bytes_per_second) {
            let busy = self.busy_until_us.entry(direction).or_insert(0);
            let waits_us = busy.saturating_sub(now_us);
            if waits_us > QUEUE_US_MAX {
                return Fate::Lost;
            }
            *busy = now_us + waits_us + sending_us;
            after_us += waits_us + sending_us;
        }
        Fate::Arrives {
            after_us,
            again_after_us,
        }
    }

    fn delay_us(&mut self) -> u64 {
        let conditions = self.conditions;
        let spike_us = if self.random.happens_ppm(conditions.spike_ppm) {
            conditions.spike_us
        } else {
            0
        };
        spike_us + self.random.between(conditions.delay_us_min, conditions.delay_us_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn links(conditions: LinkConditions) -> Links {
        Links::new(1, conditions)
    }

    fn after(fate: Fate) -> u64 {
        match fate {
            Fate::Arrives { after_us, .. } => after_us,
            Fate::Lost => panic!("it should arrive"),
        }
    }

    #[test]
    fn cut_direction_loses_and_the_other_one_does_not() {
        let mut links = links(LinkConditions::default());
        links.set_cuts(&[(1, 2)].into(), 5);
        assert_eq!(links.fate((1, 2), 1, false, 6), Fate::Lost);
        assert_eq!(after(links.fate((2, 1), 1, false, 6)), 0);
        assert!(!links.is_open(1, 2) && !links.is_open(2, 1) && links.is_open(1, 3));
        links.set_cuts(&[(1, 2), (2, 1)].into(), 9);
        assert_eq!(links.silent_since_us(2, 1), Some(5), "the older cut goes on");
        links.set_cuts(&BTreeSet::new(), 12);
        assert_eq!(links.silent_since_us(1, 2), None);
        assert_eq!(after(links.fate((1, 2), 1, false, 13)), 0);
    }

    #[test]
    fn narrow_link_makes_frames_wait_and_drops_them_when_its_queue_is_full() {
        let mut links = links(LinkConditions {
            bytes_per_second: 1_000,
            ..LinkConditions::default()
        });
        assert_eq!(after(links.fate((1, 2), 1_000, false, 0)), 1_000_000);
        assert_eq!(after(links.fate((1, 2), 5_000, false, 0)), 6_000_000);
        assert_eq!(links.fate((1, 2), 1, false, 0), Fate::Lost);
        assert_eq!(
            after(links.fate((2, 1), 1_000, false, 0)),
            1_000_000,
            "directions do not share"
        );
        assert_eq!(after(links.fate((1, 2), 1_000, false, 5_500_000)), 1_500_000);
    }

    #[test]
    fn requests_are_doubled_and_answers_are_not() {
        let mut links = links(LinkConditions {
            duplicate_ppm: 1_000_000,
            ..LinkConditions::default()
        });
        let doubled = |fate| {
            matches!(
                fate,
                Fate::Arrives {
                    again_after_us: Some(_),
                    ..
                }
            )
        };
        assert!(doubled(links.fate((1, 2), 1, true, 0)));
        assert!(!doubled(links.fate((1, 2), 1, false, 0)));
    }

    #[test]
    fn spike_lets_later_frames_overtake() {
        let mut links = links(LinkConditions {
            spike_ppm: 500_000,
            spike_us: 1_000,
            ..LinkConditions::default()
        });
        let drawn: BTreeSet<u64> = (0..50).map(|_| after(links.fate((1, 2), 1, false, 0))).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [0, 1_000]);
    }
}
