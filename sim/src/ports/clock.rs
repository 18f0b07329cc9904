//! Clocks of a simulated process: virtual time since the run began.

use common::ids::BlockTime;
use transport::ports::{Clock, Instant};

use crate::trace::Trace;

/// The wall clock of the fleet when a run begins: a fixed instant, 2026-01-01T00:00:00Z.
pub const EPOCH: BlockTime = BlockTime(1_767_225_600_000_000);

/// One process's clocks. `offset_us` is what its boot-time clock showed when the run began.
#[derive(Clone, Debug)]
pub struct SimClock {
    trace: Trace,
    offset_us: u64,
}

impl SimClock {
    /// A clock in the time of `trace`.
    #[must_use]
    pub fn new(trace: Trace, offset_us: u64) -> Self {
        Self { trace, offset_us }
    }
}

impl Clock for SimClock {
    fn now(&self) -> Instant {
        Instant {
            us: self.offset_us + self.trace.now_us(),
        }
    }

    fn wall(&self) -> BlockTime {
        BlockTime(EPOCH.0 + self.trace.now_us())
    }
}
