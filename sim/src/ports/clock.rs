//! Clocks of a simulated machine: virtual time since the run began, as an imperfect clock shows it.
//!
//! # Rules
//! * The boot-time clock drifts at a constant rate within the fleet's bound. It is never stepped, and goes
//!   on over the lives of a process: the machine was not booted.
//! * The wall clock has an offset that faults change: it jumps, and starts in 1970 on a machine without
//!   a battery.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

use common::ids::BlockTime;
use transport::ports::{Clock, Instant};

use crate::trace::Trace;

/// The wall clock of the fleet when a run begins: a fixed instant, 2026-01-01T00:00:00Z.
pub const EPOCH: BlockTime = BlockTime(1_767_225_600_000_000);

/// The clocks of one machine. Clones are the same clocks.
#[derive(Clone, Debug)]
pub struct SimClock {
    trace: Trace,
    offset_us: u64,
    drift_ppm: i64,
    wall_offset_us: Arc<AtomicI64>,
}

impl SimClock {
    /// Clocks in the time of `trace`. `offset_us` is what the boot-time clock showed when the run began;
    /// it gains `drift_ppm` microseconds per second.
    #[must_use]
    pub fn new(trace: Trace, offset_us: u64, drift_ppm: i64) -> Self {
        Self {
            trace,
            offset_us,
            drift_ppm,
            wall_offset_us: Arc::default(),
        }
    }

    /// Sets the wall clock `offset_us` off the true time.
    pub fn set_wall_offset_us(&self, offset_us: i64) {
        self.wall_offset_us.store(offset_us, Ordering::Relaxed);
    }

    /// What the wall clock is off by.
    #[must_use]
    pub fn wall_offset_us(&self) -> i64 {
        self.wall_offset_us.load(Ordering::Relaxed)
    }

    /// What the boot-time clock shows at the true time `true_us` of the run.
    #[must_use]
    pub fn shows_at(&self, true_us: u64) -> u64 {
        let gained = i128::from(true_us) * i128::from(self.drift_ppm) / 1_000_000;
        let shown = i128::from(self.offset_us) + i128::from(true_us) + gained;
        u64::try_from(shown).expect("drift is far below the rate of time")
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant {
            us: self.shows_at(self.trace.now_us()),
        }
    }

    fn wall(&self) -> BlockTime {
        let true_us = EPOCH.0 + self.trace.now_us();
        BlockTime(true_us.saturating_add_signed(self.wall_offset_us()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_virtual_time(test: impl FnOnce()) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async { test() });
    }

    #[test]
    fn drift_grows_with_time_and_the_wall_clock_does_not_move_the_other() {
        in_virtual_time(|| {
            let clock = SimClock::new(Trace::begin(), 7, -500);
            assert_eq!(clock.shows_at(0), 7);
            assert_eq!(clock.shows_at(10_000_000), 7 + 10_000_000 - 5_000);
            let before = clock.now();
            clock.set_wall_offset_us(-(EPOCH.0 as i64));
            assert_eq!((clock.now(), clock.wall()), (before, BlockTime(0)));
        });
    }
}
