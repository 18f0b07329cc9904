//! When a view has lasted long enough.
//!
//! # Rules
//! * D = half the round trip of the slowest member of my fastest quorum, clamped to [D_min, D_max];
//!   D_max while a quorum is not measured.
//! * The leader timer is 2D, the view timer 3D, and 3D more once if something must be fetched.
//! * Both grow by half with each consecutive view that is not finalized, up to 32 D_max and no further.
//!   A finalization resets them; a notarization resets the leader timer, below the depth cap.
//! * They start when the leader can have what waits: 2D after I heard of a batch, which it may have to fetch; at once if the
//!   leader is known to be silent. They rest while nothing waits, until `idle_block_interval` has passed since the last
//!   block, and again if all they ran for was a block that became final.
//! * A block without references is proposed half a leader timer after the view was entered; if all it has to bring is a
//!   root, 10D after, at most 3 D_max: by then a batch may have come, and takes the root along.

use std::collections::BTreeMap;

use common::{ids::NodeIdx, quorum::is_bft_quorum, validator_set::ValidatorSet};

use crate::{clock::Instant, config::Timing};

/// Timers end here: this many times D_max.
const TIMER_DELAYS_MAX: u64 = 32;
/// An owed root waits so many times D for a batch to travel with, and at most so many times D_max: as long as a block
/// may take.
const ROOT_DELAYS: (u64, u64) = (10, 3);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Running {
    leader_at: Option<Instant>,
    view_at: Instant,
    is_extended: bool,
    /// Only since a block is not final.
    is_for_finality: bool,
}

/// The timers of the current view.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Pacemaker {
    timing: Timing,
    round_trips_us: BTreeMap<NodeIdx, u64>,
    delay_us: u64,
    views_unfinalized: u32,
    views_unnotarized: u32,
    entered: Instant,
    last_block: Instant,
    running: Option<Running>,
}

impl Pacemaker {
    /// Timers that rest, at `now`.
    #[must_use]
    pub fn new(timing: Timing, now: Instant) -> Self {
        Self {
            timing,
            round_trips_us: BTreeMap::new(),
            delay_us: timing.delay_us_max,
            views_unfinalized: 0,
            views_unnotarized: 0,
            entered: now,
            last_block: now,
            running: None,
        }
    }

    /// A measured round trip, smoothed by whoever measures (mean + 4 deviations).
    pub fn measured(&mut self, peer: NodeIdx, round_trip_us: u64, me: Option<NodeIdx>, set: &ValidatorSet) {
        if set.position(peer).is_none() {
            return;
        }
        self.round_trips_us.insert(peer, round_trip_us);
        let mut delays: Vec<(u64, u64)> = set
            .members()
            .iter()
            .filter_map(|v| {
                let delay_us = if Some(v.device) == me {
                    0
                } else {
                    self.round_trips_us.get(&v.device)? / 2
                };
                Some((delay_us, v.weight))
            })
            .collect();
        delays.sort_unstable();
        let mut weight = 0;
        let slowest = delays.iter().find(|(_, w)| {
            weight += w;
            is_bft_quorum(weight, set.total_weight())
        });
        let Timing {
            delay_us_min,
            delay_us_max,
            ..
        } = self.timing;
        self.delay_us = slowest.map_or(delay_us_max, |(delay_us, _)| {
            (*delay_us).clamp(delay_us_min, delay_us_max)
        });
    }

    /// A view begins. Its timers rest until [`start`](Self::start).
    pub fn enter(&mut self, now: Instant) {
        self.entered = now;
        self.running = None;
        self.views_unfinalized = self.views_unfinalized.saturating_add(1);
        self.views_unnotarized = self.views_unnotarized.saturating_add(1);
    }

    /// Starts the timers if they rest. `leader_is_silent`: then the leader timer is 0.
    pub fn start(&mut self, now: Instant, leader_is_silent: bool) {
        self.start_for_finality(now, leader_is_silent);
        if let Some(running) = &mut self.running {
            running.is_for_finality = false;
        }
    }

    /// The same, until what is not final is.
    pub fn start_for_finality(&mut self, now: Instant, leader_is_silent: bool) {
        if self.running.is_none() {
            let leader_us = if leader_is_silent { 0 } else { self.leader_timer_us() };
            self.running = Some(Running {
                leader_at: Some(now.plus_us(leader_us)),
                view_at: now.plus_us(self.view_timer_us()),
                is_extended: false,
                is_for_finality: true,
            });
        }
    }

    /// Something that this view needs must be fetched: once per view the view timer is longer.
    pub fn fetching(&mut self) {
        let more = self.view_timer_us();
        if let Some(running) = self.running.as_mut().filter(|running| !running.is_extended) {
            running.is_extended = true;
            running.view_at = running.view_at.plus_us(more);
        }
    }

    /// A block was notarized.
    pub fn notarized(&mut self, now: Instant, is_below_cap: bool) {
        self.last_block = now;
        if is_below_cap {
            self.views_unnotarized = 0;
        }
    }

    /// A block was finalized.
    pub fn finalized(&mut self, now: Instant) {
        self.last_block = now;
        self.running = self.running.filter(|running| !running.is_for_finality);
        self.views_unfinalized = 0;
        self.views_unnotarized = 0;
    }

    /// The leader of this view gave a sign: its timer has no more to say.
    pub fn leader_spoke(&mut self) {
        if let Some(running) = &mut self.running {
            running.leader_at = None;
        }
    }

    /// Whether the leader has been silent for too long.
    #[must_use]
    pub fn is_leader_due(&self, now: Instant) -> bool {
        self.running
            .is_some_and(|running| running.leader_at.is_some_and(|at| at <= now))
    }

    /// Whether the view has lasted too long. The view timer then runs once more, for the next resend.
    pub fn take_view_due(&mut self, now: Instant) -> bool {
        let again = now.plus_us(self.view_timer_us());
        match self.running.as_mut().filter(|running| running.view_at <= now) {
            Some(running) => {
                running.view_at = again;
                true
            }
            None => false,
        }
    }

    /// Whether the timers run.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// Whether a block is due although nothing waits.
    #[must_use]
    pub fn is_idle_over(&self, now: Instant) -> bool {
        self.idle_until() <= now
    }

    /// Until when nothing has to happen if nothing waits.
    #[must_use]
    pub fn idle_until(&self) -> Instant {
        self.last_block.plus_us(self.timing.idle_block_interval_us)
    }

    /// When a leader proposes a block without references, to finalize those below: half its leader timer after it
    /// entered the view. Usually the finalize votes for them have arrived by then.
    #[must_use]
    pub fn empty_block_at(&self) -> Instant {
        self.entered.plus_us(self.leader_timer_us() / 2)
    }

    /// When a leader proposes a block that brings nothing but a root.
    #[must_use]
    pub fn owed_root_at(&self) -> Instant {
        let (measured, most) = ROOT_DELAYS;
        let patience_us = (measured * self.delay_us).min(most * self.timing.delay_us_max);
        self.entered
            .plus_us(patience_us.min(self.timing.idle_block_interval_us))
    }

    /// When to look again.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        match self.running {
            Some(running) => running.leader_at.map_or(running.view_at, |at| at.min(running.view_at)),
            None => self.idle_until(),
        }
    }

    /// How long a leader takes to fetch a batch that it was told of.
    #[must_use]
    pub fn notice_timer_us(&self) -> u64 {
        2 * self.delay_us
    }

    /// How long a request may take before it is made again.
    #[must_use]
    pub fn fetch_timer_us(&self) -> u64 {
        (3 * self.delay_us).min(TIMER_DELAYS_MAX * self.timing.delay_us_max)
    }

    fn leader_timer_us(&self) -> u64 {
        self.grown(2 * self.delay_us, self.views_unnotarized)
    }

    fn view_timer_us(&self) -> u64 {
        self.grown(3 * self.delay_us, self.views_unfinalized)
    }

    /// `base_us` times 1.5 for each view after the first that was entered since the last reset.
    fn grown(&self, base_us: u64, views: u32) -> u64 {
        let max = TIMER_DELAYS_MAX * self.timing.delay_us_max;
        let mut timer_us = base_us;
        // With pipelining the view before is final only while this one runs: that is no failure.
        for _ in 1..views {
            if timer_us >= max {
                break;
            }
            timer_us += timer_us / 2;
        }
        timer_us.min(max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::fixture::validator_set;

    const TIMING: Timing = Timing {
        delay_us_min: 1_000,
        delay_us_max: 100_000,
        idle_block_interval_us: 1_000_000,
        block_time_bound_us: 500_000,
    };

    fn pacemaker() -> Pacemaker {
        let set = validator_set(&[1, 1, 1, 1]);
        let mut pacemaker = Pacemaker::new(TIMING, Instant(0));
        for peer in 1..4 {
            pacemaker.measured(NodeIdx(peer), 20_000 * u64::from(peer), Some(NodeIdx(0)), &set);
        }
        pacemaker
    }

    #[test]
    fn delay_is_half_the_round_trip_of_the_slowest_of_the_fastest_quorum() {
        // Me, peer 1 and peer 2 are a quorum of four: peer 2 has 40 ms there and back.
        assert_eq!(pacemaker().delay_us, 20_000);
    }

    #[test]
    fn delay_is_clamped_and_the_longest_while_unknown() {
        let set = validator_set(&[1, 1, 1, 1]);
        let mut pacemaker = Pacemaker::new(TIMING, Instant(0));
        assert_eq!(pacemaker.delay_us, TIMING.delay_us_max);
        for peer in 0..4 {
            pacemaker.measured(NodeIdx(peer), 2, None, &set);
        }
        assert_eq!(pacemaker.delay_us, TIMING.delay_us_min);
        for peer in 0..4 {
            pacemaker.measured(NodeIdx(peer), u64::MAX, None, &set);
        }
        assert_eq!(pacemaker.delay_us, TIMING.delay_us_max);
    }

    #[test]
    fn timers_grow_by_half_up_to_the_bound_and_a_finalization_resets_them() {
        let mut pacemaker = pacemaker();
        let timer = |pacemaker: &mut Pacemaker| {
            pacemaker.enter(Instant(0));
            (pacemaker.leader_timer_us(), pacemaker.view_timer_us())
        };
        assert_eq!(timer(&mut pacemaker), (40_000, 60_000));
        assert_eq!(timer(&mut pacemaker), (60_000, 90_000));
        for _ in 0..100 {
            timer(&mut pacemaker);
        }
        assert_eq!(timer(&mut pacemaker), (3_200_000, 3_200_000));
        pacemaker.notarized(Instant(0), true);
        assert_eq!(timer(&mut pacemaker), (40_000, 3_200_000), "the leader timer only");
        pacemaker.enter(Instant(0));
        pacemaker.notarized(Instant(0), false);
        assert_eq!(timer(&mut pacemaker).0, 90_000, "at the cap nothing is reset");
        pacemaker.finalized(Instant(0));
        assert_eq!(timer(&mut pacemaker), (40_000, 60_000));
    }

    #[test]
    fn timers_rest_until_something_waits() {
        let mut pacemaker = pacemaker();
        pacemaker.enter(Instant(5));
        assert!(!pacemaker.take_view_due(Instant(999_999)));
        assert_eq!(pacemaker.next_deadline(), Instant(1_000_000));
        pacemaker.start(Instant(10), false);
        assert_eq!(pacemaker.next_deadline(), Instant(40_010));
        assert!(pacemaker.is_leader_due(Instant(40_010)));
        pacemaker.leader_spoke();
        assert_eq!(pacemaker.next_deadline(), Instant(60_010));
        assert!(pacemaker.take_view_due(Instant(60_010)));
        assert_eq!(
            pacemaker.next_deadline(),
            Instant(120_010),
            "it runs again, for the resend"
        );
    }
}
