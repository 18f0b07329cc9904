//! A validator's clock for block time: the wall clock read once at the start, carried on by the
//! boot-time clock.
//!
//! # Rules
//! * An offset from the wall clock that appears later is followed at 500 parts per million at most.
//! * Steps of the wall clock are never followed, only reported.
//!
//! # Why
//! Block time moves custody. Somebody who can step a wall clock (by a spoofed satellite signal, say)
//! must not be able to step block time.

use std::sync::{Arc, Mutex, PoisonError};

use common::ids::BlockTime;
use transport::ports::{Clock, Instant};

/// Fastest change of the offset.
const SLEW_PPM: u64 = 500;

struct Carried {
    /// Block time less boot time, microseconds.
    offset_us: i128,
    looked_at: Instant,
}

/// The clock; clones share it.
#[derive(Clone)]
pub struct BlockClock {
    clock: Arc<dyn Clock>,
    carried: Arc<Mutex<Carried>>,
}

impl BlockClock {
    /// Reads the wall clock.
    #[must_use]
    pub fn start(clock: Arc<dyn Clock>) -> Self {
        let at = clock.now();
        let offset_us = i128::from(clock.wall().0) - i128::from(at.us);
        Self {
            clock,
            carried: Arc::new(Mutex::new(Carried {
                offset_us,
                looked_at: at,
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
        let clock = BlockClock::start(hands.clone());
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
        let clock = BlockClock::start(hands.clone());
        hands.wall_us.store(0, Ordering::Relaxed);
        let mut last = clock.now();
        for second in 1..10 {
            hands.boot_us.store(second * 1_000_000, Ordering::Relaxed);
            clock.follow();
            assert!(clock.now() > last);
            last = clock.now();
        }
    }
}
