//! A run as a file: everything that decides it, each fault on its own, so that some can be left out.
//!
//! # Rules
//! * A schedule has the faults that a run drew: when, for how long, of which sort, and the chance by which a fault
//!   finds its victims when it begins, since it may ask who leads then.
//! * [`shrink`] leaves out what the failure does not need. What is left is read by `sim replay`.

use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::{
    byzantine::Enemy,
    faults::Strike,
    run::{Plan, Report, TICK_US},
    scenario::{ScriptedEnemy, enemies},
};

/// Longest run, virtual seconds.
const SECS_MAX: u64 = 86_400;

/// Latest beginning of a fault in a run of `secs`, virtual microseconds: faults begin at looks, the last of which may come
/// up to a tick after the end.
fn last_strike_us(secs: u64) -> u64 {
    secs * 1_000_000 + TICK_US
}

/// Which population, in files and on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Size {
    /// 1 to 3 clusters of 3 to 7 agents and 4 validators: for finding bugs.
    Small,
    /// 3 clusters of 3 agents and 4 validators, with 10 submits a second each, most of which are completed: for speed.
    Bench,
    /// 50 clusters of 10 agents and 7 validators: for scale.
    Fleet,
    /// 2 clusters of 3 agents and 4 validators, some of all in an enemy's hands: for attacks.
    Byzantine,
}

impl Size {
    /// Its plan.
    #[must_use]
    pub fn plan(self, seed: u64) -> Plan {
        match self {
            Self::Small => Plan::small(seed),
            Self::Bench => Plan::bench(seed),
            Self::Fleet => Plan::fleet(seed),
            Self::Byzantine => Plan::byzantine(seed),
        }
    }

    /// The word in files and commands.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Small => "small",
            Self::Bench => "bench",
            Self::Fleet => "fleet",
            Self::Byzantine => "byzantine",
        }
    }
}

/// One run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// Determines everything below chance.
    pub seed: u64,
    /// Which fleet.
    pub population: Size,
    /// How long the operators write and faults come, virtual seconds.
    pub secs: u64,
    /// For the reader: what broke.
    #[serde(default)]
    pub violation: String,
    /// For the reader: the hash of the run, by the build of `commit`.
    #[serde(default)]
    pub trace_hash: String,
    /// For the reader: the build that wrote the file.
    #[serde(default)]
    pub commit: String,
    /// Processes in an enemy's hands.
    #[serde(default, rename = "enemy")]
    pub enemies: Vec<ScriptedEnemy>,
    /// Faults, ascending by number.
    #[serde(default, rename = "strike")]
    pub strikes: Vec<Strike>,
}

/// What is wrong with a schedule file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schedule: {0}")]
pub struct ScheduleError(String);

impl Schedule {
    /// The schedule of a run of a whole population: its faults as they were drawn, and its enemies.
    #[must_use]
    pub fn of(population: Size, report: &Report) -> Self {
        let plan = &report.plan;
        let enemy = |enemy: Enemy| ScriptedEnemy {
            who: enemy.post.to_string(),
            actor: enemy.actor,
        };
        Self {
            seed: plan.seed,
            population,
            secs: plan.lasts.as_secs(),
            violation: report.violation.as_ref().map(ToString::to_string).unwrap_or_default(),
            trace_hash: report.trace_hash.to_hex(),
            commit: String::new(),
            enemies: plan.enemies.iter().map(enemy).collect(),
            strikes: report.strikes.clone(),
        }
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// [`ScheduleError`] with the key.
    pub fn from_toml(text: &str) -> Result<Self, ScheduleError> {
        let schedule: Self =
            toml::from_str(text).map_err(|error| ScheduleError(error.to_string().trim_end().into()))?;
        if !(1..=SECS_MAX).contains(&schedule.secs) {
            let secs = schedule.secs;
            return Err(ScheduleError(format!("secs {secs} is not in 1 to {SECS_MAX}")));
        }
        let numbers_rise = schedule.strikes.is_sorted_by(|a, b| a.number < b.number);
        if !numbers_rise || !schedule.strikes.is_sorted_by_key(|strike| strike.at_us) {
            return Err(ScheduleError("strikes must ascend by number and at_us".into()));
        }
        schedule.check_times().map_err(ScheduleError)?;
        let enemies = enemies(&schedule.enemies).map_err(ScheduleError)?;
        let population = schedule.population.plan(schedule.seed).population;
        enemies.check(population).map_err(ScheduleError)?;
        Ok(schedule)
    }

    /// Each strike begins while faults come, and does not last beyond what any run does.
    fn check_times(&self) -> Result<(), String> {
        let secs = self.secs;
        for Strike {
            number,
            at_us,
            lasts_us,
            ..
        } in &self.strikes
        {
            if *at_us > last_strike_us(secs) {
                return Err(format!(
                    "strike {number} at_us {at_us} begins after the {secs} s in which faults come, and would do nothing: \
                     let it come earlier, or give the run more secs"
                ));
            }
            if *lasts_us > SECS_MAX * 1_000_000 {
                return Err(format!(
                    "strike {number} lasts_us {lasts_us} is above {SECS_MAX} s, the longest run: give it less time; all \
                     faults end after {secs} s"
                ));
            }
        }
        Ok(())
    }

    /// The same run, cut off after `secs`: without the strikes that would begin later.
    fn cut_to(&self, secs: u64) -> Self {
        let mut cut = Self { secs, ..self.clone() };
        cut.strikes.retain(|strike| strike.at_us <= last_strike_us(secs));
        cut
    }

    /// The file's text.
    ///
    /// # Panics
    /// Never: it holds nothing that TOML cannot say.
    #[must_use]
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("numbers, words and lists of them")
    }

    /// What is run; its faults are [`strikes`](Self::strikes).
    ///
    /// # Panics
    /// If an enemy is none: files are checked when they are read.
    #[must_use]
    pub fn plan(&self) -> Plan {
        Plan {
            lasts: Duration::from_secs(self.secs),
            enemies: enemies(&self.enemies).expect("checked when it was read or drawn"),
            ..self.population.plan(self.seed)
        }
    }
}

/// The smallest schedule found that still fails: faults, enemies and time that the failure does not need are
/// left out, in halves, quarters and one by one. `fails` is asked at most `tries_max` times. Returns how often it was.
pub fn shrink(first: Schedule, tries_max: u32, mut fails: impl FnMut(&Schedule) -> bool) -> (Schedule, u32) {
    let mut tries = 0;
    let mut smallest = first;
    let mut try_it = |smallest: &mut Schedule, smaller: Schedule| {
        if tries == tries_max {
            return false;
        }
        tries += 1;
        let still_fails = fails(&smaller);
        if still_fails {
            *smallest = smaller;
        }
        still_fails
    };
    let mut chunk = smallest.strikes.len();
    while chunk > 0 {
        let mut at = 0;
        while at < smallest.strikes.len() {
            let mut smaller = smallest.clone();
            smaller.strikes.drain(at..(at + chunk).min(smallest.strikes.len()));
            if !try_it(&mut smallest, smaller) {
                at += chunk;
            }
        }
        chunk /= 2;
    }
    for at in (0..smallest.enemies.len()).rev() {
        let mut smaller = smallest.clone();
        smaller.enemies.remove(at);
        try_it(&mut smallest, smaller);
    }
    let busy_until_us = smallest
        .strikes
        .iter()
        .map(|strike| strike.at_us + strike.lasts_us)
        .max();
    let needed_secs = busy_until_us.unwrap_or(0) / 1_000_000 + 1;
    for secs in [needed_secs, smallest.secs / 2, smallest.secs * 3 / 4] {
        if (1..smallest.secs).contains(&secs) {
            let smaller = smallest.cut_to(secs);
            if try_it(&mut smallest, smaller) {
                break;
            }
        }
    }
    (smallest, tries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{byzantine::ActorKind, faults::Family};

    fn schedule() -> Schedule {
        let enemy = ScriptedEnemy {
            who: "v2".into(),
            actor: ActorKind::Twins,
        };
        let strike = |number: u64| Strike {
            number,
            family: Family::ALL[number as usize % Family::ALL.len()],
            at_us: number * 1_000_000,
            lasts_us: 500_000,
            chance: u64::MAX - number,
            what: "anything".into(),
        };
        Schedule {
            seed: 5,
            population: Size::Byzantine,
            secs: 30,
            violation: String::new(),
            trace_hash: String::new(),
            commit: String::new(),
            enemies: vec![enemy],
            strikes: (1..=12).map(strike).collect(),
        }
    }

    #[test]
    fn file_says_all_there_is_to_a_run() {
        let first = schedule();
        let read = Schedule::from_toml(&first.to_toml());
        assert_eq!(read, Ok(first.clone()));
        assert_eq!(read.map(|read| read.plan().enemies), Ok(first.plan().enemies));
    }

    #[test]
    fn mistakes_in_a_file_are_named() {
        let text = schedule().to_toml();
        let told = |from: &str, to: &str| {
            Schedule::from_toml(&text.replacen(from, to, 1))
                .unwrap_err()
                .to_string()
        };
        assert!(told("secs = 30", "secs = 0").contains("secs"));
        assert!(told("number = 1\n", "number = 99\n").contains("ascend"));
        assert!(told("who = \"v", "who = \"x").contains("cannot be an enemy"));
        assert!(told("seed", "sead").contains("sead"));
        let late = told("secs = 30", "secs = 11");
        assert!(
            late.contains("strike 12") && late.contains("12000000") && late.contains("11 s"),
            "{late}"
        );
        let long = told("lasts_us = 500000", "lasts_us = 9223372036854775807");
        assert!(
            long.contains("strike 1 ") && long.contains("9223372036854775807"),
            "{long}"
        );
    }

    #[test]
    fn what_a_failure_does_not_need_is_left_out() {
        let first = schedule();
        let needed = [first.strikes[2].number, first.strikes[7].number];
        let fails = |schedule: &Schedule| {
            let has = |number: &u64| schedule.strikes.iter().any(|strike| strike.number == *number);
            needed.iter().all(has)
        };
        let (smallest, tries) = shrink(first.clone(), 200, fails);
        let left: Vec<u64> = smallest.strikes.iter().map(|strike| strike.number).collect();
        assert_eq!(left, needed);
        assert!(smallest.enemies.is_empty() && smallest.secs < first.secs && tries < 100);
    }

    #[test]
    fn strikes_that_no_longer_come_are_left_out_with_the_time() {
        let first = Schedule { secs: 20, ..schedule() };
        let fails = |schedule: &Schedule| schedule.secs == 10 || *schedule == first;
        let (smallest, _) = shrink(first.clone(), 200, fails);
        assert_eq!(smallest.secs, 10);
        assert_eq!(smallest.strikes.last().map(|strike| strike.number), Some(10));
        assert_eq!(Schedule::from_toml(&smallest.to_toml()), Ok(smallest));
    }

    #[test]
    fn tries_are_bounded() {
        let (smallest, tries) = shrink(schedule(), 3, |_| false);
        assert_eq!((smallest, tries), (schedule(), 3));
    }
}
