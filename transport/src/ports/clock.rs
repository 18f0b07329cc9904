//! Time, tasks and entropy.

use common::ids::BlockTime;

use super::BoxFuture;

/// A reading of this machine's boot-time clock: microseconds since some fixed instant, going on
/// while the machine is suspended, never stepped. Compared only with readings of the same process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant {
    /// Microseconds.
    pub us: u64,
}

impl Instant {
    /// Microseconds from `earlier` to this reading, 0 if `earlier` is later.
    #[must_use]
    pub fn us_since(self, earlier: Self) -> u64 {
        self.us.saturating_sub(earlier.us)
    }

    /// Milliseconds from `earlier` to this reading, 0 if `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Self) -> u64 {
        self.us_since(earlier) / 1_000
    }
}

/// This machine's clocks.
pub trait Clock: Send + Sync + 'static {
    /// The clock that leases, ages and timers count on: CLOCK_MONOTONIC_RAW plus the time suspended.
    fn now(&self) -> Instant;

    /// The wall clock. Only validators read it, once, to propose block time.
    fn wall(&self) -> BlockTime;
}

/// Starts tasks. All tasks of a process end with it.
pub trait Spawner: Send + Sync + 'static {
    /// Runs `task` until it ends. `name` is for logs.
    fn spawn(&self, name: &'static str, task: BoxFuture<()>);
}

/// Random numbers for jitter. Never for keys.
pub trait Entropy: Send + Sync + 'static {
    /// The next number.
    fn next_u64(&self) -> u64;

    /// A number from 0 up to but not including `end` (which is above 0).
    fn below(&self, end: u64) -> u64 {
        // The bias of the remainder is below 2^-32 for the ranges of jitter.
        self.next_u64() % end
    }
}
