//! Time, as it enters the core: two readings that the caller takes together.

use common::ids::BlockTime;

/// Microseconds of a clock that never jumps and counts suspended time. Timers live on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// This instant plus `us` microseconds, held at the end of the range.
    #[must_use]
    pub fn plus_us(self, us: u64) -> Self {
        Self(self.0.saturating_add(us))
    }
}

/// One moment, on both clocks of a validator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Now {
    /// For timers.
    pub at: Instant,
    /// For block time: the wall clock read once at start, carried on by the clock that never jumps.
    pub clock: BlockTime,
}
