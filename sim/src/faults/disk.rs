//! Disks in trouble: slow, failing, full, rotten, or lost. The process on such a disk must stop, lose nothing that it
//! acknowledged, and go on when the disk is well again.

use super::{Fault, all_names, pick};
use crate::{
    fleet::SimFleet,
    ports::{DiskTrouble, Rotten},
    random::Stream,
};

/// The same trouble of the disks of some processes.
pub struct Disk {
    number: u64,
    who: Vec<String>,
    trouble: DiskTrouble,
}

/// A sector of a disk changed, and is mended from a copy in the end. What stands there is never taken for less than it
/// was: a process that reads it stops, or refuses to start, and a snapshot is not taken by those whom it is sent to.
pub struct Rot {
    number: u64,
    who: Vec<String>,
    what: Rotten,
    at: u16,
    /// The process loses power, and reads everything again; or it goes on, and may read what is rotten.
    loses_power: bool,
    /// Down when the sector was mended.
    refused: usize,
}

impl Rot {
    /// A record at `at` thousandths of the length of everything that the disks of `who` hold, as the fault `number`.
    /// `who` lose power.
    #[must_use]
    pub fn new(number: u64, who: Vec<String>, at: u16) -> Self {
        Self {
            number,
            who,
            what: Rotten::Records,
            at,
            loses_power: true,
            refused: 0,
        }
    }

    /// The same of something else than records.
    #[must_use]
    pub fn of(self, what: Rotten) -> Self {
        Self { what, ..self }
    }

    /// The same under processes that go on.
    #[must_use]
    pub fn under_running(self) -> Self {
        Self {
            loses_power: false,
            ..self
        }
    }
}

/// Draws what of one disk is rotten. What a running validator reads, the checkers read with it.
fn draw_rot(number: u64, who: String, fleet: &SimFleet, random: &mut Stream) -> Rot {
    let rot = Rot::new(number, vec![who.clone()], random.between(0, 999) as u16);
    let (is_agent, is_other, goes_on) = (
        fleet.log(&who).is_some(),
        random.between(0, 1) == 1,
        random.between(0, 1) == 1,
    );
    let rot = match (is_agent, is_other) {
        (_, false) => rot,
        (true, true) if rot.at.is_multiple_of(2) => rot.of(Rotten::Snapshots),
        // Its counters.
        (true, true) => rot.of(Rotten::Files),
        (false, true) => rot.of(Rotten::Files),
    };
    if is_agent && goes_on { rot.under_running() } else { rot }
}

/// Disks are lost with all that they hold. Agents come back on empty ones, under new Raft ids; validators do not.
pub struct Lost {
    who: Vec<String>,
    down_us: u64,
}

impl Lost {
    /// `who`, down for `down_us`.
    #[must_use]
    pub fn new(who: Vec<String>, down_us: u64) -> Self {
        Self { who, down_us }
    }
}

/// Draws whose disk, and what is wrong with it.
pub fn draw(number: u64, fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    let who = pick(random, &all_names(fleet));
    let trouble = match random.between(0, 6) {
        0 | 1 => DiskTrouble::Slow {
            times: random.between(10, 300),
        },
        2 => DiskTrouble::Failing,
        5 | 6 => {
            let may_lose = match random.between(0, 3) {
                0 => fleet.validators_with_a_disk_to_lose(),
                _ => fleet.agents_with_a_disk_to_lose(),
            };
            if may_lose.is_empty() {
                DiskTrouble::Slow { times: 50 }
            } else {
                let who = pick(random, &may_lose);
                return Box::new(Lost::new(vec![who], random.between(200_000, 8_000_000)));
            }
        }
        3 => return Box::new(draw_rot(number, who, fleet, random)),
        _ => DiskTrouble::Full,
    };
    Box::new(Disk::new(number, vec![who], trouble))
}

impl Disk {
    /// `trouble` of the disks of `who`, as the fault `number`.
    #[must_use]
    pub fn new(number: u64, who: Vec<String>, trouble: DiskTrouble) -> Self {
        Self { number, who, trouble }
    }
}

impl Fault for Rot {
    fn describe(&self) -> String {
        let (what, at, who, refused) = (self.what, self.at, self.who.join(","), self.refused);
        let how = if self.loses_power { "" } else { ", which runs on" };
        format!("bit rot of {what:?} at {at} of 1000 on the disk of {who}{how} ({refused} refused to start)")
    }

    fn begin(&mut self, fleet: &mut SimFleet, now_us: u64) {
        for name in &self.who {
            let (what, at) = (self.what, self.at);
            fleet.set_trouble(self.number, name, DiskTrouble::Rotten { what, at });
            if self.loses_power {
                fleet.cut_power(name, now_us);
            }
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        self.refused = self.who.iter().filter(|name| !fleet.is_running(name)).count();
        for name in &self.who {
            fleet.set_trouble(self.number, name, DiskTrouble::Healthy);
        }
    }
}

impl Fault for Lost {
    fn describe(&self) -> String {
        format!("disk of {} lost", self.who.join(","))
    }

    fn begin(&mut self, fleet: &mut SimFleet, now_us: u64) {
        // A hacked drone goes on under the id that its hand signs for.
        let suspects = fleet.witness.suspects();
        for name in self.who.iter().filter(|name| !suspects.has_process(name)) {
            fleet.lose_disk(name, now_us + self.down_us);
        }
    }

    fn end(&mut self, _fleet: &mut SimFleet, _now_us: u64) {}
}

impl Fault for Disk {
    fn describe(&self) -> String {
        format!("disk of {}: {:?}", self.who.join(","), self.trouble)
    }

    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.set_trouble(self.number, name, self.trouble);
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.set_trouble(self.number, name, DiskTrouble::Healthy);
        }
    }
}
