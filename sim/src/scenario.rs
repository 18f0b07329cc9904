//! Scenarios: stories that a fleet operator knows, as files in `configs/scenarios`.
//!
//! # Rules
//! * A scenario says the population, how long it lasts, and which faults come when. Nothing else is drawn
//!   but what happens below chance: delays, losses, the workload.
//! * Unknown keys are errors, and so are names that the fleet does not have, times beyond the story, and faults that
//!   would do nothing. Times are whole seconds or milliseconds; the key says which.
//! * A story that did not come about, as its expectation says, fails like one that broke a promise.

mod check;
mod expectation;
mod islands;
mod scripted;

use std::{num::NonZeroU64, sync::PoisonError, time::Duration};

use cluster_agent::raft::LinkProfile;
use serde::{Deserialize, Serialize};

use self::islands::Lookout;
pub use self::{
    expectation::Expectation,
    scripted::{Kind, Scripted},
};
use crate::{
    byzantine::{ActorKind, Enemies, Enemy, Post},
    fleet::Population,
    run::{KEEPS_ALL, Plan, Report, Staging, run_staged},
};

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
        let post = Post::parse(&enemy.who).filter(|post| post.to_string() == enemy.who);
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

    fn population(&self) -> Population {
        Population {
            clusters: self.clusters,
            agents: self.agents,
            validators: self.validators,
        }
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

    /// Runs the story with the chance of `seed`, and judges whether it came about.
    pub(crate) fn run<'a>(&'a self, seed: u64, staging: Staging<'a>) -> Report {
        let lookout = Lookout::default();
        let islands = lookout.shown();
        let mut checkers = staging.checkers;
        checkers.push(Box::new(lookout));
        let mut report = run_staged(
            self.plan(seed),
            Staging {
                script: &self.faults,
                checkers,
                ..staging
            },
        );
        let islands = *islands.lock().unwrap_or_else(PoisonError::into_inner);
        self.expect.judge(&mut report, islands);
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_ne!(scenario.expect, Expectation::default(), "{}", path.display());
            files += 1;
        }
        assert!(files >= 8, "{files} scenarios");
    }
}
