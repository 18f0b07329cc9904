//! Disks in trouble: slow, failing, or full. The process on such a disk must stop, lose nothing that it
//! acknowledged, and go on when the disk is well again.

use super::{Fault, all_names, pick};
use crate::{fleet::SimFleet, ports::DiskTrouble, random::Stream};

/// The same trouble of the disks of some processes.
pub struct Disk {
    who: Vec<String>,
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
    Box::new(Disk::new(vec![who], trouble))
}

impl Disk {
    /// `trouble` of the disks of `who`.
    #[must_use]
    pub fn new(who: Vec<String>, trouble: DiskTrouble) -> Self {
        Self { who, trouble }
    }
}

impl Fault for Disk {
    fn describe(&self) -> String {
        format!("disk of {}: {:?}", self.who.join(","), self.trouble)
    }

    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.set_trouble(name, self.trouble);
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.set_trouble(name, DiskTrouble::Healthy);
        }
    }
}
