//! Cuts of every shape: a set of cut directions between processes.

use std::collections::BTreeSet;

use super::{Fault, pick, split};
use crate::{fleet::SimFleet, ports::Direction, random::Stream};

/// A partition.
pub struct Partition {
    number: u64,
    shape: &'static str,
    who: String,
    directions: BTreeSet<Direction>,
    /// On and off for this long, in turn; 0 is a steady cut.
    flaps_us: u64,
    next_flap_us: u64,
    is_on: bool,
}

/// Both directions between each of `a` and each of `b`.
#[must_use]
pub fn between(fleet: &SimFleet, a: &[String], b: &[String]) -> BTreeSet<Direction> {
    let mut directions = one_way(fleet, a, b);
    directions.extend(one_way(fleet, b, a));
    directions
}

/// The directions from each of `from` to each of `to`. Who has a twin is meant with it.
#[must_use]
pub fn one_way(fleet: &SimFleet, from: &[String], to: &[String]) -> BTreeSet<Direction> {
    let pairs = from.iter().flat_map(|a| to.iter().map(move |b| (a, b)));
    let mut directions = BTreeSet::new();
    for (a, b) in pairs.filter(|(a, b)| a != b) {
        for near in fleet.ids(a) {
            directions.extend(fleet.ids(b).map(|far| (near.0, far.0)));
        }
    }
    directions
}

fn others(fleet: &SimFleet, than: &[String]) -> Vec<String> {
    let mut names = super::all_names(fleet);
    names.retain(|name| !than.contains(name));
    names
}

/// Three groups of `members` that do not reach each other.
#[must_use]
pub fn three_ways(fleet: &SimFleet, members: &[String]) -> BTreeSet<Direction> {
    let groups: Vec<&[String]> = members.chunks(members.len().div_ceil(3).max(1)).collect();
    let mut directions = BTreeSet::new();
    for (at, a) in groups.iter().enumerate() {
        for b in &groups[at + 1..] {
            directions.extend(between(fleet, a, b));
        }
    }
    directions
}

/// Every member only reaches its two neighbours in a ring.
#[must_use]
pub fn ring(fleet: &SimFleet, members: &[String]) -> BTreeSet<Direction> {
    let count = members.len();
    let mut directions = BTreeSet::new();
    for (at, a) in members.iter().enumerate() {
        for (to, b) in members.iter().enumerate() {
            let apart = at.abs_diff(to);
            if apart > 1 && apart < count - 1 {
                directions.extend(one_way(fleet, std::slice::from_ref(a), std::slice::from_ref(b)));
            }
        }
    }
    directions
}

/// Draws a shape and its victims.
pub fn draw(number: u64, fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    let clusters = fleet.clusters();
    let cluster = pick(random, &clusters);
    let validators = fleet.validators_left();
    let members = if random.between(0, 3) == 0 {
        validators.clone()
    } else {
        cluster.clone()
    };
    let minority = (members.len() - 1) / 2;
    let drawn = random.between(1, (minority as u64).max(1)) as usize;
    let (few, many) = split(random, &members, drawn);
    let (shape, who, directions) = match random.between(0, 11) {
        0 | 1 => {
            let leader = fleet.leader(&cluster).unwrap_or_else(|| pick(random, &cluster));
            let who = vec![leader];
            (
                "isolated leader",
                who.clone(),
                between(fleet, &who, &others(fleet, &who)),
            )
        }
        2 => {
            let who = vec![pick(random, &super::all_names(fleet))];
            ("isolated", who.clone(), between(fleet, &who, &others(fleet, &who)))
        }
        3 => ("split", few.clone(), between(fleet, &few, &many)),
        4 => ("one way out", few.clone(), one_way(fleet, &few, &others(fleet, &few))),
        5 => ("one way in", few.clone(), one_way(fleet, &others(fleet, &few), &few)),
        6 => {
            let (middle, ends) = split(random, &members, 1);
            let half = ends.len() / 2;
            ("bridge", middle, between(fleet, &ends[..half], &ends[half..]))
        }
        7 if members.len() > 3 => ("ring", members.clone(), ring(fleet, &members)),
        7 if members.len() > 2 => ("in three", members.clone(), three_ways(fleet, &members)),
        7 | 8 => ("in pieces", members.clone(), between(fleet, &members, &members)),
        9 => (
            "cluster from validators",
            cluster.clone(),
            between(fleet, &cluster, &validators),
        ),
        10 => {
            let who = vec![pick(random, &validators)];
            (
                "isolated validator",
                who.clone(),
                between(fleet, &who, &others(fleet, &who)),
            )
        }
        _ => {
            let agents = fleet.agent_names();
            (
                "all clusters from validators",
                agents.clone(),
                between(fleet, &agents, &validators),
            )
        }
    };
    let flaps_us = if random.between(0, 4) == 0 {
        random.between(150_000, 2_000_000)
    } else {
        0
    };
    Box::new(Partition::new(number, shape, &who, directions, flaps_us))
}

impl Partition {
    /// Cuts `directions` in the name of the fault `number`; on and off for `flaps_us` each, unless 0.
    #[must_use]
    pub fn new(
        number: u64,
        shape: &'static str,
        who: &[String],
        directions: BTreeSet<Direction>,
        flaps_us: u64,
    ) -> Self {
        Self {
            number,
            shape,
            who: who.join(","),
            directions,
            flaps_us,
            next_flap_us: 0,
            is_on: false,
        }
    }

    fn set(&mut self, fleet: &mut SimFleet, is_on: bool) {
        self.is_on = is_on;
        let directions = if is_on {
            self.directions.clone()
        } else {
            BTreeSet::new()
        };
        fleet.set_cuts(self.number, directions);
    }
}

impl Fault for Partition {
    fn describe(&self) -> String {
        let flapping = if self.flaps_us > 0 { ", flapping" } else { "" };
        format!("{} {}{flapping}", self.shape, self.who)
    }

    fn begin(&mut self, fleet: &mut SimFleet, now_us: u64) {
        self.next_flap_us = now_us + self.flaps_us;
        self.set(fleet, true);
    }

    fn step(&mut self, fleet: &mut SimFleet, now_us: u64) {
        if self.flaps_us > 0 && now_us >= self.next_flap_us {
            self.next_flap_us = now_us + self.flaps_us;
            self.set(fleet, !self.is_on);
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        self.set(fleet, false);
    }
}
