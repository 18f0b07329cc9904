//! Faults: drawn from the seed, one file per family, each with an end.
//!
//! * [`partition`]: cuts of every shape.
//! * [`quality`]: links that are slow, lossy, narrow, or deliver twice.
//! * [`disk`]: slow, failing, full, rotten and lost disks.
//! * [`clock`]: wall clocks that are wrong when a validator starts, or jump.
//! * [`process`]: crashes, pauses, crashes in the middle of a snapshot or behind an entry, power cycles.
//!
//! # Rules
//! * Recovery stays possible: a disk never loses a part of what was synced (a rotten sector is mended in the end), one
//!   disk at a time is in trouble, and a cluster loses one whole disk (unless a story says more), the next when its machine votes and signs again;
//!   one validator at a time has a wrong wall clock. Everything else may happen to everybody at once.
//! * What a fault does to a link, a disk or a process it does in the name of its number: another fault of the same sort
//!   on the same machine goes on when this one ends.
//! * At the end everything heals and everything runs.

pub mod clock;
pub mod disk;
pub mod partition;
pub mod process;
pub mod quality;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{fleet::SimFleet, random::Stream, scenario::Scripted};

/// One fault, from its beginning to its end.
pub trait Fault: Send {
    /// What it does and to whom, for people.
    fn describe(&self) -> String;

    /// Begins.
    fn begin(&mut self, fleet: &mut SimFleet, now_us: u64);

    /// Something to do now and then.
    fn step(&mut self, _fleet: &mut SimFleet, _now_us: u64) {}

    /// Ends: nothing of it is left.
    fn end(&mut self, fleet: &mut SimFleet, now_us: u64);
}

/// Sort of fault, for counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Cuts.
    Partition,
    /// Bad links.
    Quality,
    /// Bad disks.
    Disk,
    /// Bad wall clocks.
    Clock,
    /// Crashes and pauses.
    Process,
}

impl Family {
    /// In the order of the variants.
    pub const ALL: [Self; 5] = [Self::Partition, Self::Quality, Self::Disk, Self::Clock, Self::Process];

    /// The word in reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::Quality => "quality",
            Self::Disk => "disk",
            Self::Clock => "clock",
            Self::Process => "process",
        }
    }

    fn draw(random: &mut Stream) -> Self {
        match random.between(0, 15) {
            0..=6 => Self::Partition,
            7..=8 => Self::Quality,
            9..=10 => Self::Disk,
            11 => Self::Clock,
            _ => Self::Process,
        }
    }
}

/// A fault that was injected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Sort.
    pub family: Family,
    /// What and to whom.
    pub what: String,
    /// When it began, virtual time.
    pub from_ms: u64,
    /// When it ended, or the run.
    pub until_ms: u64,
}

/// How often faults come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weather {
    /// Mean time between two beginnings; 0 is never.
    pub every_us: u64,
    /// Shortest and longest fault.
    pub lasts_us: (u64, u64),
    /// Faults at once.
    pub at_once_max: usize,
    /// Only this sort; `None`: all.
    pub only: Option<Family>,
}

/// One drawn fault, as it was: the same chance in the same state of the fleet makes the same fault.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Strike {
    /// From 1, in the order of the beginnings.
    pub number: u64,
    /// Sort.
    pub family: Family,
    /// When it begins, virtual microseconds.
    pub at_us: u64,
    /// How long it lasts.
    pub lasts_us: u64,
    /// Where the stream of chance stood, in hexadecimal.
    #[serde(with = "hexadecimal")]
    pub chance: u64,
    /// For the reader: what it was.
    #[serde(default)]
    pub what: String,
}

/// Numbers above those that TOML has.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&format!("{number:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        u64::from_str_radix(&text, 16).map_err(D::Error::custom)
    }
}

struct Active {
    family: Family,
    fault: Box<dyn Fault>,
    from_us: u64,
    until_us: u64,
}

impl Active {
    fn until(&self, now_us: u64) -> Injected {
        Injected {
            family: self.family,
            what: self.fault.describe(),
            from_ms: self.from_us / 1_000,
            until_ms: now_us / 1_000,
        }
    }
}

/// Begins faults, drawn or of a scenario, and ends them.
pub struct Nemesis {
    random: Stream,
    weather: Weather,
    next_us: u64,
    begun: u64,
    script: VecDeque<Scripted>,
    /// Faults that were drawn in another run.
    replayed: VecDeque<Strike>,
    /// Faults that were drawn in this one.
    drawn: Vec<Strike>,
    active: Vec<Active>,
    injected: Vec<Injected>,
}

impl Nemesis {
    /// Faults of `seed` in this weather.
    #[must_use]
    pub fn new(seed: u64, weather: Weather) -> Self {
        let mut random = Stream::split(seed, 0x6661_756c);
        let next_us = if weather.every_us == 0 {
            u64::MAX
        } else {
            2_000_000 + random.between(0, weather.every_us)
        };
        Self {
            random,
            weather,
            next_us,
            begun: 0,
            script: VecDeque::new(),
            replayed: VecDeque::new(),
            drawn: Vec::new(),
            active: Vec::new(),
            injected: Vec::new(),
        }
    }

    /// These faults, ascending by their times, and no others.
    #[must_use]
    pub fn replaying(strikes: Vec<Strike>) -> Self {
        let calm = Weather {
            every_us: 0,
            lasts_us: (0, 0),
            at_once_max: 0,
            only: None,
        };
        Self {
            replayed: strikes.into(),
            ..Self::new(0, calm)
        }
    }

    /// Adds the faults of a scenario, which come when it says.
    #[must_use]
    pub fn with_script(self, script: &[Scripted]) -> Self {
        Self {
            script: script.iter().cloned().collect(),
            ..self
        }
    }

    fn follow_script(&mut self, fleet: &mut SimFleet, now_us: u64) {
        while let Some(scripted) = self.script.pop_front_if(|next| next.at_ms * 1_000 <= now_us) {
            self.begun += 1;
            let (family, fault) = scripted.make(self.begun, fleet);
            // By the clock of the story: of two that touch the first ends before the second begins.
            let until_us = (scripted.at_ms + scripted.lasts_ms) * 1_000;
            self.begin(fleet, family, fault, now_us, until_us);
        }
    }

    fn begin(&mut self, fleet: &mut SimFleet, family: Family, mut fault: Box<dyn Fault>, from_us: u64, until_us: u64) {
        fault.begin(fleet, from_us);
        self.active.push(Active {
            family,
            fault,
            from_us,
            until_us,
        });
    }

    /// Begins and ends what is due at `now_us`.
    pub fn step(&mut self, fleet: &mut SimFleet, now_us: u64) {
        self.end_due(fleet, now_us, |active| active.until_us <= now_us);
        for active in &mut self.active {
            active.fault.step(fleet, now_us);
        }
        self.follow_script(fleet, now_us);
        while let Some(strike) = self.replayed.pop_front_if(|next| next.at_us <= now_us) {
            let fault = draw(&strike, fleet, &mut Stream::new(strike.chance));
            self.begin(fleet, strike.family, fault, now_us, now_us + strike.lasts_us);
        }
        if now_us < self.next_us {
            return;
        }
        let pause_us = self
            .random
            .between(self.weather.every_us / 4, self.weather.every_us * 7 / 4);
        self.next_us = now_us + pause_us;
        if self.active.len() < self.weather.at_once_max {
            self.strike(fleet, now_us);
        }
    }

    fn strike(&mut self, fleet: &mut SimFleet, now_us: u64) {
        self.begun += 1;
        let drawn = Family::draw(&mut self.random);
        let family = self.weather.only.unwrap_or(drawn);
        let is_alone = matches!(family, Family::Quality | Family::Disk | Family::Clock);
        if is_alone && self.active.iter().any(|active| active.family == family) {
            return;
        }
        let mut strike = Strike {
            number: self.begun,
            family,
            at_us: now_us,
            lasts_us: 0,
            chance: self.random.state(),
            what: String::new(),
        };
        let fault = draw(&strike, fleet, &mut self.random);
        let (shortest_us, longest_us) = self.weather.lasts_us;
        strike.lasts_us = self.random.between(shortest_us, longest_us);
        strike.what = fault.describe();
        self.begin(fleet, family, fault, now_us, now_us + strike.lasts_us);
        self.drawn.push(strike);
    }

    fn end_due(&mut self, fleet: &mut SimFleet, now_us: u64, is_due: impl Fn(&Active) -> bool) {
        let mut going_on = Vec::new();
        for mut active in std::mem::take(&mut self.active) {
            if !is_due(&active) {
                going_on.push(active);
                continue;
            }
            active.fault.end(fleet, now_us);
            self.injected.push(active.until(now_us));
        }
        self.active = going_on;
    }

    /// Ends every fault, and begins no other.
    pub fn heal(&mut self, fleet: &mut SimFleet, now_us: u64) {
        self.next_us = u64::MAX;
        self.script.clear();
        self.replayed.clear();
        self.end_due(fleet, now_us, |_| true);
        fleet.let_all_start();
    }

    /// What was drawn, in the order of the beginnings.
    #[must_use]
    pub fn drawn(&self) -> &[Strike] {
        &self.drawn
    }

    /// What was injected, in the order of their ends. What is still in force, as when a violation ends the run, comes
    /// last and lasts until `now_us`.
    #[must_use]
    pub fn injected(&self, now_us: u64) -> Vec<Injected> {
        let in_force = self.active.iter().map(|active| active.until(now_us));
        self.injected.iter().cloned().chain(in_force).collect()
    }
}

/// Whom a fault hits and how.
fn draw(strike: &Strike, fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    match strike.family {
        Family::Partition => partition::draw(strike.number, fleet, random),
        Family::Quality => quality::draw(fleet, random),
        Family::Disk => disk::draw(strike.number, fleet, random),
        Family::Clock => clock::draw(fleet, random),
        Family::Process => process::draw(strike.number, fleet, random),
    }
}

/// One of `from`, by drawing.
///
/// # Panics
/// If there is none.
fn pick<T: Clone>(random: &mut Stream, from: &[T]) -> T {
    let last = from.len().checked_sub(1).expect("there is something to draw from");
    from[random.between(0, last as u64) as usize].clone()
}

/// A drawn subset of `count` of `from`, the rest behind it.
fn split<T: Clone>(random: &mut Stream, from: &[T], count: usize) -> (Vec<T>, Vec<T>) {
    let mut rest = from.to_vec();
    let mut drawn = Vec::new();
    for _ in 0..count.min(rest.len()) {
        let at = random.between(0, rest.len() as u64 - 1) as usize;
        drawn.push(rest.swap_remove(at));
    }
    (drawn, rest)
}

/// Every process, twins each by itself, but those that are lost for good.
fn all_names(fleet: &SimFleet) -> Vec<String> {
    let mut names = fleet.agent_names();
    names.extend(fleet.validator_machines());
    names
}
