//! Scenarios: stories that a fleet operator knows, as files in `configs/scenarios`.
//!
//! # Rules
//! * A scenario says the population, how long it lasts, and which faults come when. Nothing else is drawn
//!   but what happens below chance: delays, losses, the workload.
//! * Unknown keys are errors. Times are whole seconds or milliseconds; the key says which.
//! * A story that did not come about, as its expectation says, fails like one that broke a promise.

mod expectation;

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU64,
    time::Duration,
};

use cluster_agent::raft::LinkProfile;
use common::quorum::is_bft_quorum;
use serde::{Deserialize, Serialize};

pub use self::expectation::Expectation;
use crate::{
    byzantine::{ActorKind, Enemies, Enemy, Post},
    faults::{
        Family, Fault,
        clock::Clock,
        disk::{Disk, Lost, Rot},
        partition::{Partition, between, one_way, ring, three_ways},
        process::{Crash, CrashInApply, CrashInSnapshot, Pause},
        quality::Quality,
    },
    fleet::{Population, SimFleet},
    ports::{DiskTrouble, LinkConditions},
    run::{KEEPS_ALL, Plan},
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
    /// Kills `who` as soon as they have applied an entry; they are started again a second later.
    CrashInApply,
    /// Kills the first of `who` as soon as it writes a snapshot, its own or one that it was sent.
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
    /// `who` start again under wall clocks that show 1970, and once more when the fault ends.
    ClockIn1970,
    /// A fifth of all frames is lost; `who` does not count.
    Lossy,
    /// Every link carries 16 kB a second and has eight times the delay; `who` does not count.
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

/// One process in an enemy's hands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScriptedEnemy {
    /// A validator (`v2`), a member (`c1-3`), or `leader c1`.
    pub who: String,
    /// What is done with it.
    pub actor: ActorKind,
}

/// The enemies that a file lists.
///
/// # Errors
/// Who cannot be one, for people; or that there are more than [`Enemies::MAX`].
pub(crate) fn enemies(listed: &[ScriptedEnemy]) -> Result<Enemies, String> {
    let read = |enemy: &ScriptedEnemy| {
        let post = Post::parse(&enemy.who);
        let post = post.ok_or_else(|| format!("who \"{}\" cannot be an enemy", enemy.who))?;
        let actor = enemy.actor;
        Ok(Enemy { post, actor })
    };
    let enemies = listed.iter().map(read).collect::<Result<Vec<_>, String>>()?;
    if enemies.len() > Enemies::MAX {
        return Err(format!("{} enemies, at most {}", enemies.len(), Enemies::MAX));
    }
    Ok(Enemies::of(&enemies))
}

/// A story.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// In a few words.
    pub title: String,
    /// What an operator would see, and what must hold.
    pub story: String,
    /// Clusters.
    pub clusters: u32,
    /// Agents in each.
    pub agents: u32,
    /// Validators.
    pub validators: u32,
    /// What agents suppose of their links; `dev` if it is not said.
    #[serde(default = "profile")]
    pub profile: LinkProfile,
    /// How long the operators write and faults come, virtual seconds.
    pub secs: u64,
    /// Between two writes through one cluster.
    #[serde(default = "write_every_ms")]
    pub write_every_ms: u64,
    /// Agents make a snapshot after this many entries, and keep half of them below it; drawn if it is not said.
    #[serde(default)]
    pub snapshot_entries: Option<u64>,
    /// Machines keep one part in so many of what the program keeps of closed tasks; all of it if it is not said.
    #[serde(default = "keeps_one_in")]
    pub keeps_one_in: NonZeroU64,
    /// Processes in an enemy's hands, from the beginning; leaders from the third second on.
    #[serde(default, rename = "enemy")]
    pub enemies: Vec<ScriptedEnemy>,
    /// What it must show.
    #[serde(default)]
    pub expect: Expectation,
    /// Ascending by `at_ms`.
    #[serde(default, rename = "fault")]
    pub faults: Vec<Scripted>,
}

fn profile() -> LinkProfile {
    LinkProfile::Dev
}

fn keeps_one_in() -> NonZeroU64 {
    KEEPS_ALL
}

fn write_every_ms() -> u64 {
    100
}

/// What is wrong with a scenario file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("scenario: {0}")]
pub struct ScenarioError(String);

impl Scenario {
    /// Reads a file's text.
    ///
    /// # Errors
    /// [`ScenarioError`] with the key.
    pub fn from_toml(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self =
            toml::from_str(text).map_err(|error| ScenarioError(error.to_string().trim_end().into()))?;
        scenario.check().map_err(ScenarioError)?;
        Ok(scenario)
    }

    fn check(&self) -> Result<(), String> {
        let sizes = [
            ("clusters", self.clusters, 1..=50),
            ("agents", self.agents, 1..=32),
            ("validators", self.validators, 1..=32),
        ];
        if let Some((key, got, want)) = sizes.into_iter().find(|(_, got, want)| !want.contains(got)) {
            return Err(format!("{key} {got} is not in {} to {}", want.start(), want.end()));
        }
        if !(1..=86_400).contains(&self.secs) || !(1..=60_000).contains(&self.write_every_ms) {
            return Err("secs must be 1 to 86400 and write_every_ms 1 to 60000".into());
        }
        if self
            .snapshot_entries
            .is_some_and(|entries| !(20..=100_000).contains(&entries))
        {
            return Err("snapshot_entries must be 20 to 100000".into());
        }
        enemies(&self.enemies)?.check(self.population())?;
        if self
            .faults
            .iter()
            .any(|fault| fault.who.is_empty() && !matches!(fault.kind, Kind::Lossy | Kind::Thin))
        {
            return Err("every fault but lossy and thin must say who".into());
        }
        if !self.faults.is_sorted_by_key(|fault| fault.at_ms) {
            return Err("faults must ascend by at_ms".into());
        }
        self.check_overlaps()?;
        self.check_losses()?;
        self.check_clocks()?;
        let words = self.faults.iter().flat_map(|fault| &fault.who);
        for word in words {
            self.check_word(word).map_err(|why| format!("who \"{word}\" {why}"))?;
        }
        Ok(())
    }

    /// All links are in one condition at a time, and wall clocks are wrong at one machine at a time.
    fn check_overlaps(&self) -> Result<(), String> {
        let shared = |kind| match kind {
            Kind::Lossy | Kind::Thin => Some("links"),
            Kind::ClockIn1970 => Some("clocks"),
            _ => None,
        };
        let mut ends_ms = BTreeMap::new();
        for fault in &self.faults {
            let Some(what) = shared(fault.kind) else { continue };
            if ends_ms.get(what).is_some_and(|end_ms| *end_ms > fault.at_ms) {
                return Err(format!(
                    "a second fault of the {what} begins at {} ms, before the first has ended: give them one after the other",
                    fault.at_ms
                ));
            }
            ends_ms.insert(what, fault.at_ms + fault.lasts_ms);
        }
        Ok(())
    }

    /// Validators whose disks are lost do not come back: with those in enemies' hands they must leave a quorum.
    fn check_losses(&self) -> Result<(), String> {
        let losses = self.faults.iter().filter(|fault| fault.kind == Kind::DiskLost);
        let words: BTreeSet<&str> = losses.flat_map(|fault| &fault.who).map(String::as_str).collect();
        let mut lost: BTreeSet<String> = (1..=self.validators).map(|number| format!("v{number}")).collect();
        lost.retain(|name| {
            [name.as_str(), "validators", "all"]
                .iter()
                .any(|word| words.contains(word))
        });
        if lost.is_empty() {
            return Ok(());
        }
        let enemies = enemies(&self.enemies)?;
        let hacked = enemies.iter().filter(|enemy| matches!(enemy.post, Post::Validator(_)));
        lost.extend(hacked.map(|enemy| enemy.post.to_string()));
        let (lost, all) = (lost.len() as u64, u64::from(self.validators));
        if is_bft_quorum(all - lost, all) {
            return Ok(());
        }
        Err(format!(
            "disk_lost and enemies take {lost} of {all} validators for good, and the others could agree on nothing: name \
             fewer, or let them crash"
        ))
    }

    /// Validators with wrong wall clocks are at most as many as the fleet withstands: the others' clocks are the time.
    fn check_clocks(&self) -> Result<(), String> {
        for fault in self.faults.iter().filter(|fault| fault.kind == Kind::ClockIn1970) {
            let is_word = |word: &str| fault.who.iter().any(|who| who == word);
            let is_everybody = is_word("validators") || is_word("all");
            let is_wrong = |number: &u32| is_everybody || is_word(&format!("v{number}"));
            let wrong = (1..=self.validators).filter(is_wrong).count() as u64;
            let all = u64::from(self.validators);
            if !is_bft_quorum(all - wrong, all) {
                return Err(format!(
                    "clock_in1970 at {} ms is of {wrong} of {all} validators, and the others are no quorum that knows \
                     the time: name fewer",
                    fault.at_ms
                ));
            }
        }
        Ok(())
    }

    fn population(&self) -> Population {
        Population {
            clusters: self.clusters,
            agents: self.agents,
            validators: self.validators,
        }
    }

    fn check_word(&self, word: &str) -> Result<(), &'static str> {
        let number = |text: &str, most: u32| text.parse::<u32>().is_ok_and(|number| (1..=most).contains(&number));
        let is_cluster = |text: &str| text.strip_prefix('c').is_some_and(|text| number(text, self.clusters));
        let is_agent = |text: &str| {
            let split = text.split_once('-');
            split.is_some_and(|(cluster, agent)| is_cluster(cluster) && number(agent, self.agents))
        };
        let is_validator = |text: &str| text.strip_prefix('v').is_some_and(|text| number(text, self.validators));
        let is_group = matches!(word, "validators" | "agents" | "all");
        let is_leader = word.strip_prefix("leader ").is_some_and(is_cluster);
        if is_group || is_leader || is_cluster(word) || is_agent(word) || is_validator(word) {
            return Ok(());
        }
        Err("is no process, cluster or group of this fleet")
    }

    /// The plan of this story with the chance of `seed`.
    #[must_use]
    pub fn plan(&self, seed: u64) -> Plan {
        let mut plan = if self.profile == LinkProfile::Dev {
            Plan::small(seed)
        } else {
            Plan::fleet(seed)
        };
        plan.conditions.profile = self.profile;
        plan.conditions.keeps_one_in = self.keeps_one_in;
        plan.population = self.population();
        plan.enemies = enemies(&self.enemies).expect("it was checked when it was read");
        plan.lasts = Duration::from_secs(self.secs);
        if let Some(entries) = self.snapshot_entries {
            plan.conditions.snapshot_entries = (entries, entries / 2);
        }
        plan.load.write_every = Duration::from_millis(self.write_every_ms);
        plan.weather.every_us = 0;
        plan
    }
}

impl Scripted {
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
                let down_us = self.lasts_ms * 1_000;
                let who = who.into_iter().map(|name| (name, down_us)).collect();
                (Family::Process, Box::new(Crash { what: "crash", who }))
            }
            Kind::CrashInApply => (Family::Process, Box::new(CrashInApply::new(number, who, 1_000_000))),
            Kind::CrashInSnapshot => {
                let first = who.first().cloned().expect("a scenario says who");
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        title = "t"
        story = "s"
        clusters = 2
        agents = 3
        validators = 4
        secs = 5
        [[fault]]
        at_ms = 1000
        lasts_ms = 500
        kind = "isolate"
        who = ["leader c2", "c1-3", "v4", "validators"]
    "#;

    #[test]
    fn mistakes_are_named() {
        assert!(Scenario::from_toml(GOOD).is_ok());
        let with = |from: &str, to: &str| Scenario::from_toml(&GOOD.replace(from, to)).unwrap_err().to_string();
        assert!(with("c1-3", "c3-1").contains("c3-1"));
        assert!(with("v4", "v5").contains("v5"));
        assert!(with("leader c2", "leader v1").contains("leader v1"));
        assert!(with("isolate", "vanish").contains("vanish"));
        assert!(with("lasts_ms", "lasts").contains("lasts"));
        assert!(with("secs = 5", "secs = 0").contains("secs"));
        assert!(with("clusters = 2", "clusters = 0").contains("clusters"));
        assert!(with("[[fault]]", "[expect]\nkilled = 1\n[[fault]]").contains("killed"));
        let lossy = "[[fault]]\nat_ms = 500\nlasts_ms = 501\nkind = \"lossy\"\n";
        let thin = "[[fault]]\nat_ms = 1000\nlasts_ms = 500\nkind = \"thin\"\n[[fault]]";
        assert!(with("[[fault]]", &format!("{lossy}{thin}")).contains("links"));
        let clock = "[[fault]]\nat_ms = 500\nlasts_ms = 501\nkind = \"clock_in1970\"\nwho = [\"v1\"]\n";
        let clocks = format!("{clock}{}[[fault]]", clock.replace("500", "1000"));
        assert!(with("[[fault]]", &clocks).contains("clocks"));
        let all = format!(
            "{}[[fault]]",
            clock.replace("501", "500").replace("\"v1\"", "\"v1\", \"v3\"")
        );
        assert!(with("[[fault]]", &all).contains("2 of 4"));
        let loses =
            |who| format!("[[fault]]\nat_ms = 500\nlasts_ms = 1\nkind = \"disk_lost\"\nwho = [{who}]\n[[fault]]");
        assert!(with("[[fault]]", &loses(r#""v1", "v2""#)).contains("2 of 4"));
        assert!(with("[[fault]]", &loses(r#""all""#)).contains("4 of 4"));
        let hacked = format!("[[enemy]]\nwho = \"v2\"\nactor = \"withholder\"\n{}", loses(r#""v1""#));
        assert!(with("[[fault]]", &hacked).contains("2 of 4"));
        assert!(Scenario::from_toml(&GOOD.replace("[[fault]]", &loses(r#""v1", "c1-1""#))).is_ok());
        let apart = GOOD.replace("[[fault]]", &format!("{}{thin}", lossy.replace("501", "500")));
        assert!(Scenario::from_toml(&apart).is_ok());
    }

    #[test]
    fn every_scenario_file_is_good_and_tells_a_story() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/scenarios");
        let mut files = 0;
        for file in std::fs::read_dir(folder).unwrap() {
            let path = file.unwrap().path();
            let scenario = Scenario::from_toml(&std::fs::read_to_string(&path).unwrap());
            let scenario = scenario.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert!(
                !(scenario.faults.is_empty() && scenario.enemies.is_empty()) && scenario.story.len() > 40,
                "{}",
                path.display()
            );
            let ends_ms = scenario.faults.iter().map(|fault| fault.at_ms + fault.lasts_ms).max();
            assert!(
                ends_ms.unwrap_or(0) <= scenario.secs * 1_000,
                "{}: healed before its end",
                path.display()
            );
            assert_ne!(scenario.expect, Expectation::default(), "{}", path.display());
            files += 1;
        }
        assert!(files >= 8, "{files} scenarios");
    }
}
