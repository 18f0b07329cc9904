//! One validator's wall clock is wrong: it jumped, or the machine booted without a battery.

use super::{Fault, pick};
use crate::{fleet::SimFleet, ports::EPOCH, random::Stream};

/// A clock that is this far off shows 1970 when a run begins, and goes on from there.
const TO_1970_US: i64 = -(EPOCH.0 as i64);

/// Wall clocks that are off.
pub struct Clock {
    who: Vec<String>,
    offset_us: i64,
}

/// Draws whose clock, and by how much it is off.
pub fn draw(fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    let who = vec![pick(random, &fleet.validator_names())];
    let hour_us = 3_600_000_000;
    let offset_us = match random.between(0, 3) {
        0 => TO_1970_US,
        1 => random.between(1_000_000, hour_us) as i64,
        2 => -(random.between(1_000_000, hour_us) as i64),
        _ => random.between(100_000, 2_000_000) as i64,
    };
    Box::new(Clock { who, offset_us })
}

impl Clock {
    /// The machines of `who` booted without a battery.
    #[must_use]
    pub fn in_1970(who: Vec<String>) -> Self {
        Self {
            who,
            offset_us: TO_1970_US,
        }
    }
}

impl Fault for Clock {
    fn describe(&self) -> String {
        format!("wall clock of {} off by {} us", self.who.join(","), self.offset_us)
    }

    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.clock(name).set_wall_offset_us(self.offset_us);
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.clock(name).set_wall_offset_us(0);
        }
    }
}
