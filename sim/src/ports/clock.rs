//! Clocks of a simulated machine: virtual time since the run began, as an imperfect clock shows it.
//!
//! # Rules
//! * The boot-time clock drifts at a constant rate within the fleet's bound. It is never stepped, and goes
//!   on over the lives of a process. It begins anew, at zero, when its machine loses power.
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
    /// What the boot-time clock showed when the run began; after a restart, what it would have shown.
    offset_us: Arc<AtomicI64>,
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
            offset_us: Arc::new(signed(offset_us.into()).into()),
            drift_ppm,
            wall_offset_us: Arc::default(),
        }
    }

    /// The machine loses power: the boot-time clock shows zero.
    pub fn restart(&self) {
        let before_us = self.gained_at(self.trace.now_us());
        self.offset_us.store(signed(-before_us), Ordering::Relaxed);
    }

    /// Clocks of the same rate that go on when this machine loses power: those of a device with power of its own.
    #[must_use]
    pub fn apart(&self) -> Self {
        Self {
            offset_us: Arc::new(self.offset_us.load(Ordering::Relaxed).into()),
            ..self.clone()
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
        let shown = i128::from(self.offset_us.load(Ordering::Relaxed)) + self.gained_at(true_us);
        u64::try_from(shown).expect("it is not asked what it showed before its machine booted")
    }

    /// What it gains from the beginning of the run to the true time `true_us`.
    fn gained_at(&self, true_us: u64) -> i128 {
        let true_us = i128::from(true_us);
        true_us + true_us * i128::from(self.drift_ppm) / 1_000_000
    }
}

fn signed(us: i128) -> i64 {
    i64::try_from(us).expect("no machine runs for millennia")
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
    use std::time::Duration;

    use super::*;

    fn in_virtual_time(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(test);
    }

    #[test]
    fn drift_grows_with_time_and_the_wall_clock_does_not_move_the_other() {
        in_virtual_time(async {
            let clock = SimClock::new(Trace::begin(), 7, -500);
            assert_eq!(clock.shows_at(0), 7);
            assert_eq!(clock.shows_at(10_000_000), 7 + 10_000_000 - 5_000);
            let before = clock.now();
            clock.set_wall_offset_us(-(EPOCH.0 as i64));
            assert_eq!((clock.now(), clock.wall()), (before, BlockTime(0)));
        });
    }

    #[test]
    fn boot_time_begins_anew_with_the_power_and_keeps_its_rate() {
        for drift_ppm in [-500, 0, 250_000] {
            in_virtual_time(async {
                let trace = Trace::begin();
                let clock = SimClock::new(trace.clone(), 60_000_000, drift_ppm);
                let (seen_elsewhere, other) = (clock.clone(), clock.apart());
                tokio::time::advance(Duration::from_secs(3)).await;
                let now_us = trace.now_us();
                let before_us = clock.shows_at(now_us + 5_000_000);
                clock.restart();
                assert_eq!((clock.now().us, seen_elsewhere.now().us), (0, 0));
                let second_us = 1_000_000_u64.strict_add_signed(drift_ppm);
                assert_eq!(clock.shows_at(now_us + 1_000_000), second_us);
                assert_eq!(other.shows_at(now_us + 5_000_000), before_us);
            });
        }
    }
}
