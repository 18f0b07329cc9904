//! A validator's clock for block time: the wall clock read once at the start, carried on by the
//! boot-time clock.
//!
//! # Rules
//! * An offset from the wall clock that appears later is followed at 500 parts per million at most.
//! * Steps of the wall clock are never followed, only reported.
//! * Final blocks show how late it is at least. A clock that they show to be slow, or that no block was compared with
//!   since the start, tells nobody how old anything is.
//!
//! # Why
//! Block time moves custody. Somebody who can step a wall clock (by a spoofed satellite signal, say)
//! must not be able to step block time. And a machine whose clock has no battery starts in 1970, or hours late: what it
//! holds would look fresh to it for as long as it hears nothing.

use std::sync::{Arc, Mutex, PoisonError};

use common::{
    bug::{self, Bug},
    ids::BlockTime,
};
use transport::ports::{Clock, Instant};

/// Fastest change of the offset.
const SLEW_PPM: u64 = 500;

struct Carried {
    /// Block time less boot time, microseconds.
    offset_us: i128,
    looked_at: Instant,
    /// The offset that final blocks show at least, but for what clocks may be off by: the latest block time less boot time
    /// when this validator held the block.
    shown_us: i128,
    /// Whether a block became final here since the start.
    is_compared: bool,
}

/// The clock; clones share it.
#[derive(Clone)]
pub struct BlockClock {
    clock: Arc<dyn Clock>,
    carried: Arc<Mutex<Carried>>,
}

impl BlockClock {
    /// Reads the wall clock. `held` is the time of the newest block that is on the disk.
    #[must_use]
    pub fn start(clock: Arc<dyn Clock>, held: BlockTime) -> Self {
        let at = clock.now();
        let offset_us = i128::from(clock.wall().0) - i128::from(at.us);
        Self {
            clock,
            carried: Arc::new(Mutex::new(Carried {
                offset_us,
                looked_at: at,
                shown_us: i128::from(held.0) - i128::from(at.us),
                is_compared: false,
            })),
        }
    }

    /// Block time now.
    #[must_use]
    pub fn now(&self) -> BlockTime {
        let carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        let us = i128::from(self.clock.now().us) + carried.offset_us;
        BlockTime(u64::try_from(us.max(0)).unwrap_or(u64::MAX))
    }

    /// A block of `time` became final here.
    pub fn saw(&self, time: BlockTime) {
        let shown_us = i128::from(time.0) - i128::from(self.clock.now().us);
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        carried.shown_us = carried.shown_us.max(shown_us);
        carried.is_compared = true;
    }

    /// Block time now, to measure the age of something. `None` if no block became final here since the start, or if those
    /// that did show that this clock is slow by more than `error_ms`, which clocks may be off by.
    #[must_use]
    pub fn now_if_compared(&self, error_ms: u64) -> Option<BlockTime> {
        let now = self.now();
        let carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        let slow_us = carried.shown_us - carried.offset_us;
        let is_good = carried.is_compared && slow_us <= i128::from(error_ms) * 1_000;
        (is_good || bug::active(Bug::StartClockTrusted)).then_some(now)
    }

    /// Looks at the wall clock and follows it a little. Returns how far it is ahead of block time,
    /// in microseconds. Called about once per second.
    pub fn follow(&self) -> i64 {
        let (at, wall) = (self.clock.now(), self.clock.wall());
        let mut carried = self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        let ahead = i128::from(wall.0) - i128::from(at.us) - carried.offset_us;
        let most = i128::from(at.us_since(carried.looked_at) * SLEW_PPM / 1_000_000);
        carried.offset_us += ahead.clamp(-most, most);
        carried.looked_at = at;
        i64::try_from(ahead).unwrap_or(if ahead > 0 { i64::MAX } else { i64::MIN })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

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
        let clock = BlockClock::start(hands.clone(), BlockTime(0));
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
        let clock = BlockClock::start(hands.clone(), BlockTime(0));
        hands.wall_us.store(0, Ordering::Relaxed);
        let mut last = clock.now();
        for second in 1..10 {
            hands.boot_us.store(second * 1_000_000, Ordering::Relaxed);
            clock.follow();
            assert!(clock.now() > last);
            last = clock.now();
        }
    }

    #[test]
    fn clock_tells_ages_once_a_block_became_final_and_never_if_blocks_show_that_it_is_slow() {
        let start = |wall_us: u64, held_us: u64| {
            let hands = Arc::new(Hands::default());
            hands.wall_us.store(wall_us, Ordering::Relaxed);
            (BlockClock::start(hands.clone(), BlockTime(held_us)), hands)
        };
        let error_ms = 600;
        let (right, _) = start(5_000_000_000, 4_000_000_000);
        assert_eq!(right.now_if_compared(error_ms), None, "it heard nothing yet");
        right.saw(BlockTime(5_000_600_000));
        assert_eq!(right.now_if_compared(error_ms), Some(BlockTime(5_000_000_000)));
        right.saw(BlockTime(5_000_600_001));
        assert_eq!(right.now_if_compared(error_ms), None, "slow by more than clocks may be");
        // In 1970, and what is on the disk says better.
        let (slow, hands) = start(0, 4_000_000_000);
        slow.saw(BlockTime(1));
        // An hour later it is past the block, and as slow as before.
        hands.boot_us.store(4_500_000_000, Ordering::Relaxed);
        assert!(slow.now() > BlockTime(4_000_000_000));
        assert_eq!(slow.now_if_compared(error_ms), None);
    }
}
