//! Wall clocks are wrong: machines booted without a battery, or with the wrong hour, or a clock jumped.
//!
//! # Rules
//! * A validator reads its wall clock when it starts, and follows it at 500 parts per million later. So most of these
//!   faults start their victims anew under the wrong clock; a jump alone moves block time by next to nothing.
//! * Whoever started under a wrong clock is started once more when the clock is right again, as by an operator.

use std::fmt;

use super::{Fault, pick};
use crate::{fleet::SimFleet, ports::EPOCH, random::Stream};

/// A clock that is this far off shows 1970 when a run begins, and goes on from there.
const TO_1970_US: i64 = -(EPOCH.0 as i64);
/// Time from the loss of power until the process runs again.
const BOOT_US: u64 = 300_000;
/// How far a clock is off that is nearly right: on both sides of what validators accept of each other.
const NEARLY_US: (u64, u64) = (100_000, 2_000_000);
/// How far a clock is off that has the wrong hour.
const HOUR_US: (u64, u64) = (1_000_000, 3_600_000_000);

/// How a clock came to be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    /// Its machine booted, and the process starts under the wrong clock.
    Booted,
    /// It was moved under a running process.
    Jumped,
}

impl fmt::Display for How {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Booted => "booted with",
            Self::Jumped => "jumped to",
        })
    }
}

/// Wall clocks that are off.
pub struct Clock {
    who: Vec<String>,
    offset_us: i64,
    how: How,
}

/// Draws whose clock, how it came to be wrong, and by how much it is off.
pub fn draw(fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    let who = vec![pick(random, &fleet.validators_left())];
    let mut by = |(least, most)| random.between(least, most) as i64;
    let (how, offset_us) = match by((0, 7)) {
        0 | 1 => (How::Booted, TO_1970_US),
        2 => (How::Booted, by(HOUR_US)),
        3 => (How::Booted, -by(HOUR_US)),
        4 => (How::Booted, by(NEARLY_US)),
        5 => (How::Booted, -by(NEARLY_US)),
        6 => (How::Jumped, TO_1970_US),
        _ => (How::Jumped, by(HOUR_US)),
    };
    Box::new(Clock { who, offset_us, how })
}

impl Clock {
    /// The machines of `who` booted, with clocks that are off by `offset_us`.
    #[must_use]
    pub fn booted(who: Vec<String>, offset_us: i64) -> Self {
        let how = How::Booted;
        Self { who, offset_us, how }
    }

    /// The machines of `who` booted without a battery.
    #[must_use]
    pub fn in_1970(who: Vec<String>) -> Self {
        Self::booted(who, TO_1970_US)
    }

    /// The clocks of `who` jumped by `offset_us`.
    #[must_use]
    pub fn jumped(who: Vec<String>, offset_us: i64) -> Self {
        let how = How::Jumped;
        Self { who, offset_us, how }
    }
}

impl Fault for Clock {
    fn describe(&self) -> String {
        let (who, how, off) = (self.who.join(","), self.how, self.offset_us);
        match off {
            TO_1970_US => format!("{who} {how} a wall clock in 1970"),
            _ => format!("{who} {how} a wall clock off by {off} us"),
        }
    }

    fn begin(&mut self, fleet: &mut SimFleet, now_us: u64) {
        for name in &self.who {
            fleet.clock(name).set_wall_offset_us(self.offset_us);
            if self.how == How::Booted {
                fleet.cut_power(name, now_us + BOOT_US);
            }
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, now_us: u64) {
        for name in &self.who {
            fleet.clock(name).set_wall_offset_us(0);
            if fleet.started_off_us(name) != 0 {
                fleet.kill(name, now_us + BOOT_US);
            }
        }
    }
}
