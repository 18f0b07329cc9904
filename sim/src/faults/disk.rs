//! One disk in trouble: slow, failing, or full. The process on it must stop, lose nothing that it
//! acknowledged, and go on when the disk is well again.

use super::{Fault, all_names, pick};
use crate::{fleet::SimFleet, ports::DiskTrouble, random::Stream};

struct Disk {
    who: String,
    trouble: DiskTrouble,
}

/// Draws whose disk, and what is wrong with it.
pub fn draw(fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    let who = pick(random, &all_names(fleet));
    let trouble = match random.between(0, 3) {
        0 | 1 => DiskTrouble::Slow {
            times: random.between(10, 300),
        },
        2 => DiskTrouble::Failing,
        _ => DiskTrouble::Full,
    };
    Box::new(Disk { who, trouble })
}

impl Fault for Disk {
    fn describe(&self) -> String {
        format!("disk of {}: {:?}", self.who, self.trouble)
    }

    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        fleet.set_trouble(&self.who, self.trouble);
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        fleet.set_trouble(&self.who, DiskTrouble::Healthy);
    }
}
