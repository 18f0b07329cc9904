//! A validator's clock for block time: the wall clock read once at the start, carried on by the
//! boot-time clock.
//!
//! # Rules
//! * An offset from the wall clock that appears later is followed at 500 parts per million at most.
//! * Steps of the wall clock are never followed, only reported.
//! * The newest final block shows how late it is at least. A clock that it shows to be slow tells nobody how old anything is,
//!   nor does one that was not compared since the start: with the time of a block that this validator voted for by this
//!   clock, and that a quorum found right as well. A block that others bring says nothing: it may be as old as they are.
//!
//! # Why
//! Block time moves custody. Somebody who can step a wall clock (by a spoofed satellite signal, say)
//! must not be able to step block time. And a machine whose clock has no battery starts in 1970, or hours late: what it
//! holds would look fresh to it for as long as it hears nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use common::{
    block::BlockHeader,
    bug::{self, Bug},
    certificate::Ballot,
    ids::{BlockTime, Digest, Epoch, View},
};
use transport::ports::{Clock, Instant};

/// Fastest change of the offset.
const SLEW_PPM: u64 = 500;

/// Votes of its own for blocks that are not final; beyond it the oldest are forgotten.
const JUDGED_MAX: usize = 1_024;

struct Carried {
    /// Block time less boot time, microseconds.
    offset_us: i128,
    looked_at: Instant,
    /// The offset that the newest final block shows at least, but for what clocks may be off by: its time less boot time
    /// when this validator held it.
    shown_us: i128,
    /// Whether a block that was judged by this clock became final.
    is_compared: bool,
    /// Blocks that this validator voted for, and block time then.
    judged: BTreeMap<(Epoch, View, Digest), BlockTime>,
}

impl Carried {
    fn at(&self, at: Instant) -> BlockTime {
        let us = i128::from(at.us) + self.offset_us;
        BlockTime(u64::try_from(us.max(0)).unwrap_or(u64::MAX))
    }
}

/// The clock; clones share it.
#[derive(Clone)]
pub struct BlockClock {
    clock: Arc<dyn Clock>,
    /// A block may be so far ahead of this clock and be voted for, microseconds.
    bound_us: u64,
    carried: Arc<Mutex<Carried>>,
}

impl BlockClock {
    /// Reads the wall clock. `held` is the time of the newest final block that is on the disk; a block may be `bound_us`
    /// ahead of this clock and be voted for.
    #[must_use]
    pub fn start(clock: Arc<dyn Clock>, held: BlockTime, bound_us: u64) -> Self {
        let at = clock.now();
        let offset_us = i128::from(clock.wall().0) - i128::from(at.us);
        Self {
            clock,
            bound_us,
            carried: Arc::new(Mutex::new(Carried {
                offset_us,
                looked_at: at,
                shown_us: i128::from(held.0) - i128::from(at.us),
                is_compared: false,
                judged: BTreeMap::new(),
            })),
        }
    }

    fn carried(&self) -> MutexGuard<'_, Carried> {
        // Each change is whole before anything can panic.
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Block time now.
    #[must_use]
    pub fn now(&self) -> BlockTime {
        self.carried().at(self.clock.now())
    }

    /// This validator votes for the block of `ballot`, for the first time.
    pub fn judged(&self, ballot: &Ballot) {
        let mut carried = self.carried();
        let now = carried.at(self.clock.now());
        carried.judged.insert((ballot.epoch, ballot.view, ballot.digest), now);
        while carried.judged.len() > JUDGED_MAX {
            carried.judged.pop_first();
        }
    }

    /// A block became final here.
    pub fn saw(&self, header: &BlockHeader) {
        let mut carried = self.carried();
        carried.shown_us = i128::from(header.time.0) - i128::from(self.clock.now().us);
        let place = (header.epoch, header.view, header.digest());
        let judged_at = carried.judged.get(&place).copied();
        // A clock below the parent's time lets the least step pass as well: that compares nothing.
        carried.is_compared |= judged_at.is_some_and(|at| header.time.0 <= at.0.saturating_add(self.bound_us));
        carried.judged = carried
            .judged
            .split_off(&(header.epoch, header.view.next(), Digest::default()));
    }

    /// Block time now, to measure the age of something. `None` if no block that was judged by this clock became final since
    /// the start, or if the newest shows that this clock is slow by more than `error_ms`, which clocks may be off by.
    #[must_use]
    pub fn now_if_compared(&self, error_ms: u64) -> Option<BlockTime> {
        let carried = self.carried();
        let now = carried.at(self.clock.now());
        let slow_us = carried.shown_us - carried.offset_us;
        let is_good = carried.is_compared && slow_us <= i128::from(error_ms) * 1_000;
        (is_good || bug::active(Bug::StartClockTrusted)).then_some(now)
    }

    /// Looks at the wall clock and follows it a little. Returns how far it is ahead of block time,
    /// in microseconds. Called about once per second.
    pub fn follow(&self) -> i64 {
        let (at, wall) = (self.clock.now(), self.clock.wall());
        let mut carried = self.carried();
        let ahead = i128::from(wall.0) - i128::from(at.us) - carried.offset_us;
        let most = i128::from(at.us_since(carried.looked_at) * SLEW_PPM / 1_000_000);
        carried.offset_us += ahead.clamp(-most, most);
        carried.looked_at = at;
        i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN })
    }
}

/// What may have passed while block time went on by `measured_ms`: the clock under it may be slow by `drift_ppm`, and it may
/// have followed a wall clock that was turned back.
#[must_use]
pub fn elapsed_ms_at_most(measured_ms: u64, drift_ppm: u32) -> u64 {
    let shown_ppm = 1_000_000_u64.saturating_sub(u64::from(drift_ppm) + SLEW_PPM).max(1);
    let elapsed_ms = (u128::from(measured_ms) * 1_000_000).div_ceil(u128::from(shown_ppm));
    u64::try_from(elapsed_ms).unwrap_or(u64::MAX).saturating_add(1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    const BOUND_US: u64 = 500_000;

    #[derive(Default)]
    struct Hands {
        boot_us: AtomicU64,
        wall_us: AtomicU64,
    }

    impl Clock for Hands {
        fn now(&self) -> Instant {
            Instant {
                us: self.boot_us.load(Ordering::Relaxed),
            }
        }

        fn wall(&self) -> BlockTime {
            BlockTime(self.wall_us.load(Ordering::Relaxed))
        }
    }

    #[test]
    fn step_of_the_wall_clock_is_followed_at_500_ppm_only() {
        let hands = Arc::new(Hands::default());
        hands.wall_us.store(1_000_000_000, Ordering::Relaxed);
        let clock = BlockClock::start(hands.clone(), BlockTime(0), BOUND_US);
        assert_eq!(clock.now(), BlockTime(1_000_000_000));
        hands.boot_us.store(1_000_000, Ordering::Relaxed);
        hands.wall_us.store(5_000_000_000, Ordering::Relaxed);
        assert_eq!(clock.now(), BlockTime(1_001_000_000));
        assert_eq!(clock.follow(), 3_999_000_000);
        assert_eq!(clock.now(), BlockTime(1_001_000_500));
        // A second look at once moves nothing further.
        clock.follow();
        assert_eq!(clock.now(), BlockTime(1_001_000_500));
    }

    #[test]
    fn wall_clock_that_goes_back_never_turns_block_time_back() {
        let hands = Arc::new(Hands::default());
        hands.wall_us.store(1_000_000_000, Ordering::Relaxed);
        let clock = BlockClock::start(hands.clone(), BlockTime(0), BOUND_US);
        hands.wall_us.store(0, Ordering::Relaxed);
        let mut last = clock.now();
        for second in 1..10 {
            hands.boot_us.store(second * 1_000_000, Ordering::Relaxed);
            clock.follow();
            assert!(clock.now() > last);
            last = clock.now();
        }
    }

    /// A block of this time that became final, in the view of its number; voted for if `is_judged`.
    fn sees(clock: &BlockClock, view: u64, us: u64, is_judged: bool) {
        let header = BlockHeader {
            view: View(view),
            time: BlockTime(us),
            ..header()
        };
        if is_judged {
            clock.judged(&header.ballot());
        }
        clock.saw(&header);
    }

    fn header() -> BlockHeader {
        let fleet = common::testing::Fleet::new(1, 3, 4);
        common::testing::BlockChain::new(&fleet, Digest::default())
            .block(&fleet, &[], 1)
            .header
    }

    fn started(wall_us: u64, held_us: u64) -> (BlockClock, Arc<Hands>) {
        let hands = Arc::new(Hands::default());
        hands.wall_us.store(wall_us, Ordering::Relaxed);
        (BlockClock::start(hands.clone(), BlockTime(held_us), BOUND_US), hands)
    }

    const ERROR_MS: u64 = 600;

    #[test]
    fn clock_tells_ages_once_a_block_that_it_judged_became_final() {
        let (right, hands) = started(5_000_000_000, 4_000_000_000);
        assert_eq!(right.now_if_compared(ERROR_MS), None, "it heard nothing yet");
        // Brought by somebody who is cut off as well, hours old perhaps.
        sees(&right, 1, 4_500_000_000, false);
        assert_eq!(right.now_if_compared(ERROR_MS), None);
        sees(&right, 2, 5_000_000_000 + BOUND_US, true);
        assert_eq!(right.now_if_compared(ERROR_MS), Some(BlockTime(5_000_000_000)));
        sees(&right, 3, 5_000_600_001, false);
        assert_eq!(right.now_if_compared(ERROR_MS), None, "slow by more than clocks may be");
        hands.boot_us.store(1_000_000, Ordering::Relaxed);
        sees(&right, 4, 5_000_800_000, false);
        assert!(right.now_if_compared(ERROR_MS).is_some(), "the newest counts");
    }

    #[test]
    fn clock_that_the_disk_or_a_block_shows_to_be_slow_tells_no_age() {
        let (slow, hands) = started(0, 4_000_000_000);
        // An hour later it is past the block on the disk, and as slow as before.
        hands.boot_us.store(4_500_000_000, Ordering::Relaxed);
        assert!(slow.now() > BlockTime(4_000_000_000));
        assert_eq!(slow.now_if_compared(ERROR_MS), None);
        // Below the time of its parent it votes for the least step, which says nothing of this clock.
        sees(&slow, 1, 9_000_000_001, true);
        hands.boot_us.store(9_000_000_001, Ordering::Relaxed);
        assert_eq!(slow.now_if_compared(ERROR_MS), None);
    }

    #[test]
    fn age_of_an_hour_counts_what_a_slow_clock_did_not_show() {
        assert_eq!(elapsed_ms_at_most(0, 500), 1);
        assert_eq!(elapsed_ms_at_most(3_600_000, 500), 3_603_605);
        assert_eq!(elapsed_ms_at_most(u64::MAX, u32::MAX), u64::MAX);
    }

    #[test]
    fn votes_for_blocks_that_never_become_final_are_forgotten() {
        let (clock, _) = started(5_000_000_000, 0);
        for view in 0..2 * JUDGED_MAX as u64 {
            let header = BlockHeader {
                view: View(view),
                ..header()
            };
            clock.judged(&header.ballot());
        }
        assert_eq!(clock.carried().judged.len(), JUDGED_MAX);
        sees(&clock, 3 * JUDGED_MAX as u64, 5_000_000_000, true);
        assert!(clock.carried().judged.is_empty());
    }
}
