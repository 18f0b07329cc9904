//! `sim soak`: many seeds, several at a time.
//!
//! # Rules
//! * A run that panics is a violation of its seed. The others go on.
//! * Whoever asked for faults and got none is told so: such a soak shows little.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use serde_json::{Value, json};

use super::{
    COMMIT, Output, Shape, complain, complain_of,
    say::{note, say},
    timed,
};
use crate::run::{Report, run};

/// What broke with one seed.
struct Broken {
    seed: u64,
    checker: &'static str,
    /// Virtual time; `None` if the run did not get as far as a report.
    at_ms: Option<u64>,
    what: String,
    command: String,
    wall: Duration,
}

#[derive(Default)]
struct Totals {
    runs: u64,
    virtual_ms: u64,
    node_ms: u64,
    faults: BTreeMap<&'static str, u64>,
    /// Deeds of enemies, by their actor.
    enemies: BTreeMap<&'static str, u64>,
    tasks_acked: u64,
    violations: Vec<Broken>,
}

/// A soak says how far it is every so many runs.
const RUNS_PER_WORD: u64 = 50;

/// Runs the seeds; whether all were clean.
pub(super) fn soak((from, to): (u64, u64), jobs: u8, shape: Shape, output: Output) -> bool {
    let next = AtomicU64::new(from);
    let totals = Mutex::new(Totals::default());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to {
                return;
            }
            let outcome = attempt(|| run(shape.plan(seed)));
            let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
            totals.add(seed, outcome, &shape.command(seed));
            if totals.runs.is_multiple_of(RUNS_PER_WORD) {
                note(&format!("{} of {} runs, {}", totals.runs, to - from, totals.in_words()));
            }
        }
    };
    #[allow(
        clippy::disallowed_methods,
        reason = "how fast the simulator is, beside the simulation"
    )]
    let began = std::time::Instant::now();
    #[expect(clippy::disallowed_methods, reason = "runs share nothing: each has its own time")]
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    let mut totals = totals.into_inner().unwrap_or_else(PoisonError::into_inner);
    totals.violations.sort_by_key(|broken| broken.seed);
    let wall = began.elapsed();
    let is_said = say(&match output {
        Output::Json => totals.as_json((from, to), wall).to_string(),
        Output::Table => totals.as_table((from, to), wall),
    });
    if shape.plan(from).weather.every_us > 0 && totals.faults.is_empty() {
        note("no fault came in any of these runs: more --secs or a smaller --fault-every brings some");
    }
    is_said && totals.violations.is_empty()
}

/// A run and the wall time it took; of one that panicked, what it said.
fn attempt(run: impl FnOnce() -> Report) -> (Result<Report, String>, Duration) {
    // Nothing of the run is looked at after a panic.
    timed(|| {
        catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            text.unwrap_or_else(|| "a panic without words".into())
        })
    })
}

impl Totals {
    /// Adds the run of `seed`, and says on stderr what broke in it. `command` runs it again.
    fn add(&mut self, seed: u64, (outcome, wall): (Result<Report, String>, Duration), command: &str) {
        self.runs += 1;
        let report = match outcome {
            Ok(report) => report,
            Err(panic) => {
                complain_of(seed, &format!("panicked: {panic}"), command);
                return self.violations.push(Broken {
                    seed,
                    checker: "no-panic",
                    at_ms: None,
                    what: panic,
                    command: command.to_owned(),
                    wall,
                });
            }
        };
        complain(&report, command);
        self.virtual_ms += report.virtual_ms;
        self.node_ms += report.virtual_ms * u64::from(report.plan.population.nodes());
        for fault in &report.faults {
            *self.faults.entry(fault.family.word()).or_default() += 1;
        }
        for enemy in &report.enemies {
            *self.enemies.entry(enemy.actor.word()).or_default() += enemy.deeds.values().sum::<u64>();
        }
        self.tasks_acked += report.tasks_acked;
        self.violations.extend(report.violation.map(|violation| Broken {
            seed,
            checker: violation.checker,
            at_ms: Some(violation.at_ms),
            what: violation.what,
            command: command.to_owned(),
            wall,
        }));
    }

    fn node_hours(&self) -> f64 {
        self.node_ms as f64 / 3.6e6
    }

    fn in_words(&self) -> String {
        format!(
            "{:.1} node-hours, {} faults, {} violations",
            self.node_hours(),
            self.faults.values().sum::<u64>(),
            self.violations.len()
        )
    }

    fn as_json(&self, (from, to): (u64, u64), wall: Duration) -> Value {
        let violation = |broken: &Broken| {
            json!({
                "seed": broken.seed,
                "checker": broken.checker,
                "at_ms": broken.at_ms,
                "what": broken.what,
                "command": broken.command,
                "wall_seconds": broken.wall.as_secs_f64(),
            })
        };
        json!({
            "seeds": [from, to],
            "commit": COMMIT,
            "runs": self.runs,
            "sim_seconds": self.virtual_ms as f64 / 1e3,
            "node_hours": self.node_hours(),
            "wall_seconds": wall.as_secs_f64(),
            "faults": self.faults.values().sum::<u64>(),
            "faults_by_family": self.faults,
            "enemies": self.enemies,
            "tasks_acked": self.tasks_acked,
            "violations": self.violations.iter().map(violation).collect::<Vec<_>>(),
        })
    }

    fn as_table(&self, (from, to): (u64, u64), wall: Duration) -> String {
        let by_word = |counts: &BTreeMap<&'static str, u64>| {
            let counts: Vec<String> = counts.iter().map(|(word, count)| format!("{count} {word}")).collect();
            if counts.is_empty() {
                "none".to_owned()
            } else {
                counts.join(", ")
            }
        };
        let mut lines = vec![
            format!("seeds         {from}..{to} (commit {COMMIT})"),
            format!("runs          {}", self.runs),
            format!("node-hours    {:.1}", self.node_hours()),
            format!("virtual time  {:.1} s", self.virtual_ms as f64 / 1e3),
            format!("wall time     {:.1} s", wall.as_secs_f64()),
            format!("faults        {}", by_word(&self.faults)),
        ];
        if !self.enemies.is_empty() {
            lines.push(format!("enemies       {}", by_word(&self.enemies)));
        }
        lines.push(format!("tasks         {} acknowledged", self.tasks_acked));
        lines.push(format!("violations    {}", self.violations.len()));
        for broken in &self.violations {
            let when = broken.at_ms.map_or_else(
                || "no report".to_owned(),
                |at_ms| format!("at {}.{:03} s", at_ms / 1_000, at_ms % 1_000),
            );
            lines.push(format!(
                "  seed {}, {when}: {}: {}",
                broken.seed, broken.checker, broken.what
            ));
            lines.push(format!("    {}", broken.command));
        }
        lines.join("\n") + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Plan;

    #[test]
    fn run_that_panics_is_a_violation_and_the_soak_goes_on() {
        let mut totals = Totals::default();
        let clean = || {
            let mut plan = Plan::small(3);
            plan.lasts = Duration::from_secs(1);
            run(plan)
        };
        totals.add(2, attempt(|| panic!("a bug of {}", "ours")), "sim run --seed 2");
        totals.add(3, attempt(clean), "sim run --seed 3");
        assert_eq!((totals.runs, totals.violations.len()), (2, 1));
        assert!(totals.virtual_ms > 0);
        let first = &totals.as_json((2, 4), Duration::ZERO)["violations"][0];
        assert_eq!(
            (&first["seed"], &first["checker"], &first["what"], &first["command"]),
            (
                &2.into(),
                &"no-panic".into(),
                &"a bug of ours".into(),
                &"sim run --seed 2".into()
            )
        );
        let table = totals.as_table((2, 4), Duration::ZERO);
        for needed in ["seeds         2..4", "violations    1", "    sim run --seed 2\n"] {
            assert!(table.contains(needed), "{needed}: {table}");
        }
    }
}
