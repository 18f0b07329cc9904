//! The clock that leases count on.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{SystemTime, UNIX_EPOCH},
};

use common::ids::BlockTime;
use rustix::time::{ClockId, clock_gettime};

use crate::ports::{Clock, Instant};

/// Readings of two clocks one after the other differ by less than this unless the machine slept.
const READING_JITTER_US: u64 = 1_000;

/// CLOCK_MONOTONIC_RAW plus the time suspended, which is CLOCK_BOOTTIME minus CLOCK_MONOTONIC.
///
/// # Why not one of the three
/// RAW stops while the machine is suspended, MONOTONIC as well and is slewed by NTP, and BOOTTIME is
/// slewed too, by more than the drift that the lease rule assumes. The difference of the two slewed
/// clocks is exact.
#[derive(Debug, Default)]
pub struct MachineClock {
    /// Grows only: a reading never goes back because two system calls were further apart.
    suspended_us: AtomicU64,
}

impl MachineClock {
    /// A clock; all of one machine agree up to a millisecond per suspension.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

fn read_us(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    let (s, ns) = (u64::try_from(time.tv_sec), u64::try_from(time.tv_nsec));
    s.expect("these clocks start at boot") * 1_000_000 + ns.expect("nanoseconds are below 10^9") / 1_000
}

impl Clock for MachineClock {
    fn now(&self) -> Instant {
        let monotonic = read_us(ClockId::Monotonic);
        let suspended = read_us(ClockId::Boottime).saturating_sub(monotonic);
        let noted = self.suspended_us.load(Ordering::Acquire);
        if suspended > noted + READING_JITTER_US {
            self.suspended_us.fetch_max(suspended, Ordering::AcqRel);
        }
        let suspended = self.suspended_us.load(Ordering::Acquire);
        Instant {
            us: read_us(ClockId::MonotonicRaw) + suspended,
        }
    }

    #[allow(clippy::disallowed_methods, reason = "this is the port's implementation")]
    fn wall(&self) -> BlockTime {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        BlockTime(u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX))
    }
}
