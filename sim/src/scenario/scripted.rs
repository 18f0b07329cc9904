//! Faults of a scenario: what is said in the file, and the fault that comes of it.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::{
    faults::{
        Family, Fault,
        clock::Clock,
        disk::{Disk, Lost, Rot},
        partition::{Partition, between, one_way, ring, three_ways},
        process::{Crash, CrashInApply, CrashInSnapshot, Pause, PowerLoss},
        quality::Quality,
    },
    fleet::{Population, SimFleet},
    ports::{DiskTrouble, LinkConditions},
};

/// Where the rot of a scenario is, in thousandths of what a disk holds.
const ROT_AT: u16 = 700;

/// What a fault of a scenario does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Cuts `who` as one group from everybody else.
    Isolate,
    /// The same, on and off.
    Flap,
    /// Nothing that `who` sends arrives outside.
    OneWayOut,
    /// Nothing from outside arrives at `who`.
    OneWayIn,
    /// No two of `who` reach each other.
    InPieces,
    /// Each of `who` only reaches its two neighbours.
    Ring,
    /// `who` fall apart into three groups, none of which is a majority of five or more.
    ThreeWays,
    /// Cuts `who` from all validators.
    FromValidators,
    /// Kills `who`; they are started again when the fault ends.
    Crash,
    /// The machines of `who` lose power: as `crash`, and their boot-time clocks begin anew.
    PowerLoss,
    /// Kills the drones of `who` as soon as they have applied an entry; they are started again a second later.
    CrashInApply,
    /// Kills the one drone of `who` as soon as it writes a snapshot, its own or one that it was sent.
    CrashInSnapshot,
    /// Stops every step of `who`.
    Pause,
    /// Every sync of the disks of `who` fails.
    DiskFails,
    /// The disks of `who` are full.
    DiskFull,
    /// The disks of `who` are a hundred times as slow.
    DiskSlow,
    /// A sector of the disks of `who` changed; they lose power, and refuse to start until the fault ends.
    DiskRots,
    /// The disks of `who` are lost. Drones come back on empty ones, as new members, when the fault ends; validators do not.
    DiskLost,
    /// The validators `who` start again under wall clocks that show 1970, and once more when the fault ends. Drones do not
    /// read theirs.
    ClockIn1970,
    /// A fifth of all frames is lost, of whomever.
    Lossy,
    /// Every link carries 16 kB a second and has eight times the delay.
    Thin,
}

/// One fault of a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scripted {
    /// When it begins, virtual milliseconds.
    pub at_ms: u64,
    /// How long it lasts.
    pub lasts_ms: u64,
    /// What it does.
    pub kind: Kind,
    /// To whom: a process (`c1-2`), the members of a cluster (`c1`), `validators`, `agents`, `all`, or `leader c1`:
    /// whoever leads the cluster then.
    #[serde(default)]
    pub who: Vec<String>,
}

/// The processes that `word` means in a fleet of this population. A leader, whom only the run knows, stands for
/// himself under the word. `None` if the fleet has nothing of that name.
fn meant(word: &str, population: Population) -> Option<BTreeSet<String>> {
    let numbered = |prefix: &str, most| -> Vec<String> { (1..=most).map(|at| format!("{prefix}{at}")).collect() };
    let members = |cluster: &str| numbered(&format!("{cluster}-"), population.agents);
    let clusters = numbered("c", population.clusters);
    let agents = || clusters.iter().flat_map(|cluster| members(cluster));
    let validators = numbered("v", population.validators);
    let is_cluster = |name: &str| clusters.iter().any(|cluster| cluster == name);
    let names = match word {
        "validators" => validators,
        "agents" => agents().collect(),
        "all" => agents().chain(validators).collect(),
        word => match word.strip_prefix("leader ").filter(|cluster| is_cluster(cluster)) {
            // Nobody else leads.
            Some(cluster) if population.agents == 1 => members(cluster),
            Some(_) => vec![word.to_owned()],
            None if is_cluster(word) => members(word),
            None => vec![agents().chain(validators).find(|name| name == word)?],
        },
    };
    Some(names.into_iter().collect())
}

impl Scripted {
    /// The processes that may be meant, most of them at once. A leader stands under his word (`leader c1`), unless
    /// every member of his cluster is named.
    ///
    /// # Errors
    /// The word that names nothing of this population.
    pub(super) fn meant(&self, population: Population) -> Result<BTreeSet<String>, &str> {
        let mut names = BTreeSet::new();
        for word in &self.who {
            names.extend(meant(word, population).ok_or(word.as_str())?);
        }
        let all = names.clone();
        names.retain(|name| {
            let cluster = name
                .strip_prefix("leader ")
                .and_then(|cluster| meant(cluster, population));
            cluster.is_none_or(|members| !members.is_subset(&all))
        });
        Ok(names)
    }

    /// Who is meant, in this moment.
    fn victims(&self, fleet: &SimFleet) -> Vec<String> {
        let mut names = BTreeSet::new();
        for word in &self.who {
            match word.as_str() {
                "validators" => names.extend(fleet.validator_machines()),
                "agents" => names.extend(fleet.agent_names()),
                "all" => names.extend(fleet.agent_names().into_iter().chain(fleet.validator_machines())),
                word => names.extend(named(fleet, word)),
            }
        }
        names.into_iter().collect()
    }

    /// The fault, and its family for counts. `number` tells what it does from what others do.
    #[must_use]
    pub fn make(&self, number: u64, fleet: &SimFleet) -> (Family, Box<dyn Fault>) {
        let who = self.victims(fleet);
        let mut outside: Vec<String> = fleet.agent_names();
        outside.extend(fleet.validator_names());
        outside.retain(|name| !who.contains(name));
        let cut = |shape, directions, flaps_us| -> (Family, Box<dyn Fault>) {
            let partition = Partition::new(number, shape, &who, directions, flaps_us);
            (Family::Partition, Box::new(partition))
        };
        let disk =
            |trouble| -> (Family, Box<dyn Fault>) { (Family::Disk, Box::new(Disk::new(number, who.clone(), trouble))) };
        let down = |who: Vec<String>| {
            let down_us = self.lasts_ms * 1_000;
            who.into_iter().map(|name| (name, down_us)).collect()
        };
        let usual = fleet.conditions.links;
        match self.kind {
            Kind::Isolate => cut("isolated", between(fleet, &who, &outside), 0),
            Kind::Flap => cut("isolated", between(fleet, &who, &outside), 700_000),
            Kind::OneWayOut => cut("one way out", one_way(fleet, &who, &outside), 0),
            Kind::OneWayIn => cut("one way in", one_way(fleet, &outside, &who), 0),
            Kind::InPieces => cut("in pieces", between(fleet, &who, &who), 0),
            Kind::Ring => cut("ring", ring(fleet, &who), 0),
            Kind::ThreeWays => cut("in three", three_ways(fleet, &who), 0),
            Kind::FromValidators => cut("from validators", between(fleet, &who, &fleet.validator_names()), 0),
            Kind::Crash => {
                let who = down(who);
                (Family::Process, Box::new(Crash { what: "crash", who }))
            }
            Kind::PowerLoss => (Family::Process, Box::new(PowerLoss { who: down(who) })),
            Kind::CrashInApply => (Family::Process, Box::new(CrashInApply::new(number, who, 1_000_000))),
            Kind::CrashInSnapshot => {
                let first = who.first().cloned().expect("it was checked when it was read");
                (
                    Family::Process,
                    Box::new(CrashInSnapshot::new(number, first, 1_000_000)),
                )
            }
            Kind::Pause => (Family::Process, Box::new(Pause { number, who })),
            Kind::DiskFails => disk(DiskTrouble::Failing),
            Kind::DiskFull => disk(DiskTrouble::Full),
            Kind::DiskSlow => disk(DiskTrouble::Slow { times: 100 }),
            Kind::DiskLost => (Family::Disk, Box::new(Lost::new(who, self.lasts_ms * 1_000))),
            Kind::DiskRots => (Family::Disk, Box::new(Rot::new(number, who, ROT_AT))),
            Kind::ClockIn1970 => (Family::Clock, Box::new(Clock::in_1970(who))),
            Kind::Lossy => {
                let conditions = LinkConditions {
                    loss_ppm: 200_000,
                    ..usual
                };
                (Family::Quality, Box::new(Quality::new("lossy", conditions)))
            }
            Kind::Thin => {
                let conditions = LinkConditions {
                    bytes_per_second: 16_000,
                    delay_us_max: usual.delay_us_max * 8,
                    ..usual
                };
                (Family::Quality, Box::new(Quality::new("thin", conditions)))
            }
        }
    }
}

/// A process, the members of a cluster, or its leader.
fn named(fleet: &SimFleet, word: &str) -> Vec<String> {
    let members = |cluster: &str| {
        let prefix = format!("{cluster}-");
        let mut names = fleet.agent_names();
        names.retain(|name| name.starts_with(&prefix));
        names
    };
    if let Some(cluster) = word.strip_prefix("leader ") {
        let members = members(cluster);
        // Without a leader the first member is as good as any.
        let leader = fleet.leader(&members).or_else(|| members.first().cloned());
        return leader.into_iter().collect();
    }
    let of_cluster = members(word);
    if of_cluster.is_empty() {
        vec![word.to_owned()]
    } else {
        of_cluster
    }
}
