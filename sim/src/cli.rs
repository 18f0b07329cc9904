//! The fleet simulator's command line.
//!
//! `sim run --seed S` runs one fleet and prints what it came to; the same seed gives the same trace hash.
//! `sim soak --seeds A..B` runs many, and prints each that broke something with the command that shows it.
//! `sim shrink` leaves out of a failing run what it does not need, `sim replay` runs what is left, `sim report` draws a run.
//! `sim mutants` breaks rules on purpose and shows which checker notices.

mod print;
mod say;
mod soak;
mod tools;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, Subcommand, ValueEnum};

use print::{as_json, as_table};
use say::{note, say};
use soak::soak;
use tools::{EXIT_INVALID, invalid};

use crate::{
    mutants::{self, Stage},
    run::{Plan, Report, run, run_scenario, run_with},
    scenario::Scenario,
    schedule::Size,
};

#[derive(Parser)]
#[command(name = "sim", version, about = "Runs whole fleets in virtual time, from one seed")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs one fleet under a workload and faults; exit 1 when an invariant broke.
    Run {
        /// Determines the run.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        shape: Shape,
        /// A story from configs/scenarios, instead of drawn faults.
        #[arg(long, conflicts_with_all = ["population", "secs", "fault_every"])]
        scenario: Option<PathBuf>,
        /// A plan that suits a seeded bug, instead of a population.
        #[arg(long, value_parser = stage, conflicts_with_all = ["population", "secs", "fault_every", "scenario"])]
        stage: Option<Stage>,
        /// Only this checker judges.
        #[arg(long, value_parser = checker, requires = "stage")]
        checker: Option<&'static str>,
        /// Breaks a rule on purpose, on a stage that suits it.
        #[cfg(feature = "seeded-bugs")]
        #[arg(long, value_parser = bug, requires = "stage")]
        bug: Option<common::bug::Bug>,
        /// How the result is printed.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Shows that the checkers see: breaks one rule after the other; exit 1 when one is not noticed.
    Mutants {
        /// So many rows of the table only, spread evenly; which ones follows from the commit.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        sample: Option<u16>,
        /// Only rows of this bug.
        #[arg(long)]
        bug: Option<String>,
        /// Seeds tried for each row.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=1_000))]
        seeds_max: u64,
        /// Rows at a time.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
        jobs: u8,
        /// How the result is printed.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Leaves out the faults, enemies and time that a violation does not need; exit 1 when there is a violation.
    Shrink {
        /// The run that breaks something.
        #[arg(long)]
        seed: u64,
        #[command(flatten)]
        shape: Shape,
        /// Runs that may be tried.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        tries_max: u32,
        /// Where the smallest schedule is written; default: `shrunk-SEED.toml`.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Runs a schedule that `shrink` wrote; exit 1 when an invariant broke, or when the same build leaves another trace.
    Replay {
        /// The file.
        file: PathBuf,
        /// How the result is printed.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
    /// Runs one fleet and writes one page that shows it, for a browser without a network; exit 1 when an invariant broke.
    Report {
        /// Determines the run; a schedule has its own.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        #[command(flatten)]
        shape: Shape,
        /// A story from configs/scenarios, instead of drawn faults.
        #[arg(long, conflicts_with_all = ["population", "secs", "fault_every"])]
        scenario: Option<PathBuf>,
        /// A schedule that `shrink` wrote, instead of drawn faults.
        #[arg(long, conflicts_with_all = ["seed", "population", "secs", "fault_every", "scenario"])]
        schedule: Option<PathBuf>,
        /// Where the page is written.
        #[arg(long, default_value = "report.html")]
        out: PathBuf,
    },
    /// Runs many seeds; exit 1 when an invariant broke in any.
    Soak {
        /// First seed and the one behind the last, as in 0..200.
        #[arg(long, value_parser = seeds)]
        seeds: (u64, u64),
        /// Runs at a time.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
        jobs: u8,
        #[command(flatten)]
        shape: Shape,
        /// How the result is printed.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, clap::Args)]
struct Shape {
    /// Which fleet.
    #[arg(long, value_enum, default_value_t = Size::Small)]
    population: Size,
    /// Virtual seconds of work and faults; the fleet settles after them.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    secs: Option<u64>,
    /// Mean virtual seconds between two faults; 0 is none.
    #[arg(long, value_parser = clap::value_parser!(u64).range(0..=86_400))]
    fault_every: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn stage(text: &str) -> Result<Stage, String> {
    Stage::of(text).ok_or_else(|| format!("\"{text}\" is none of {}", Stage::ALL.map(Stage::word).join(", ")))
}

fn checker(text: &str) -> Result<&'static str, String> {
    let known = crate::checkers::NAMES.iter().find(|name| **name == text);
    known.copied().ok_or_else(|| {
        let problem = if crate::witness::OF_THE_RUN.contains(&text) {
            format!("\"{text}\" is judged by the run itself, by no checker; checkers are")
        } else {
            format!("\"{text}\" is none of")
        };
        format!("{problem} {}", crate::checkers::NAMES.join(", "))
    })
}

#[cfg(feature = "seeded-bugs")]
fn bug(text: &str) -> Result<common::bug::Bug, String> {
    let known = common::bug::Bug::ALL.iter().find(|bug| bug.word() == text);
    known.copied().ok_or_else(|| format!("\"{text}\" is no seeded bug"))
}

fn seeds(text: &str) -> Result<(u64, u64), String> {
    let bad = || format!("\"{text}\" is no range of seeds such as 0..200");
    let (from, to) = text.split_once("..").ok_or_else(bad)?;
    let range = (from.parse().map_err(|_| bad())?, to.parse().map_err(|_| bad())?);
    if range.0 < range.1 { Ok(range) } else { Err(bad()) }
}

impl Shape {
    fn plan(self, seed: u64) -> Plan {
        let mut plan = self.population.plan(seed);
        if let Some(secs) = self.secs {
            plan.lasts = Duration::from_secs(secs);
        }
        if let Some(secs) = self.fault_every {
            plan.weather.every_us = secs * 1_000_000;
        }
        plan
    }

    /// The command that runs `seed` alone.
    fn command(self, seed: u64) -> String {
        let population = match self.population {
            Size::Small => String::new(),
            other => format!(" --population {}", other.word()),
        };
        let option = |name: &str, value: Option<u64>| value.map_or(String::new(), |value| format!(" --{name} {value}"));
        let (secs, every) = (option("secs", self.secs), option("fault-every", self.fault_every));
        format!("sim run --seed {seed}{population}{secs}{every}")
    }
}

/// Does what the command line asks for.
#[must_use]
pub fn main() -> ExitCode {
    if let Err(error) = common::crypto::known_answers::check() {
        note(&error.to_string());
        return ExitCode::from(78);
    }
    let is_clean = match Arguments::parse().command {
        Command::Run {
            seed,
            scenario: Some(path),
            output,
            ..
        } => match read_scenario(&path) {
            Ok(scenario) => {
                let again = format!("sim run --scenario {} --seed {seed}", path.display());
                run_one(output, &again, || run_scenario(&scenario, seed))
            }
            Err(problem) => return invalid(&path, problem),
        },
        Command::Run {
            seed,
            stage: Some(stage),
            checker,
            #[cfg(feature = "seeded-bugs")]
            bug,
            output,
            ..
        } => {
            #[cfg(not(feature = "seeded-bugs"))]
            let bug = None;
            #[cfg(feature = "seeded-bugs")]
            bug.into_iter().for_each(common::bug::activate);
            let again = mutants::command(stage, seed, bug, checker);
            let plan = Plan {
                judge: checker,
                ..stage.plan(seed)
            };
            run_one(output, &again, || run_with(plan, &stage.script()))
        }
        Command::Mutants {
            sample,
            bug,
            seeds_max,
            jobs,
            output,
        } => return judge_checkers(sample, bug.as_deref(), seeds_max, jobs, output),
        Command::Shrink {
            seed,
            shape,
            tries_max,
            out,
        } => return tools::shrink(shape, seed, tries_max, out),
        Command::Replay { file, output } => return tools::replay(&file, output),
        Command::Report {
            seed,
            shape,
            scenario,
            schedule,
            out,
        } => return tools::report(shape, seed, scenario, schedule, &out),
        Command::Run {
            seed, shape, output, ..
        } => run_one(output, &shape.command(seed), || run(shape.plan(seed))),
        Command::Soak {
            seeds,
            jobs,
            shape,
            output,
        } => soak(seeds, jobs, shape, output),
    };
    if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The commit this binary was built from, or `unknown` outside of a checkout.
const COMMIT: &str = env!("MUSTER_COMMIT");

fn read_scenario(path: &Path) -> Result<Scenario, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Scenario::from_toml(&text).map_err(|error| error.to_string())
}

/// What a run gave, and the wall time it took.
fn timed<T>(run: impl FnOnce() -> T) -> (T, Duration) {
    #[allow(
        clippy::disallowed_methods,
        reason = "how fast the simulator is, beside the simulation"
    )]
    let began = std::time::Instant::now();
    let given = run();
    (given, began.elapsed())
}

fn run_one(output: Output, again: &str, run: impl FnOnce() -> Report) -> bool {
    let (report, wall) = timed(run);
    let is_said = say(&match output {
        Output::Json => as_json(&report, wall).to_string(),
        Output::Table => as_table(&report, wall),
    });
    complain(&report, again);
    is_said && report.violation.is_none()
}

fn judge_checkers(sample: Option<u16>, bug: Option<&str>, seeds_max: u64, jobs: u8, output: Output) -> ExitCode {
    let rows = mutants::rows(sample.map(usize::from), bug, COMMIT);
    if rows.is_empty() {
        note(&format!("\"{}\" is no seeded bug", bug.unwrap_or_default()));
        return ExitCode::from(EXIT_INVALID);
    }
    note(&format!("rows {} of commit {COMMIT}", mutants::places(&rows)));
    let judged = mutants::build().and_then(|binary| mutants::judge(&binary, &rows, seeds_max, jobs));
    let outcomes = match judged {
        Ok(outcomes) => outcomes,
        Err(problem) => {
            note(&problem);
            return ExitCode::from(EXIT_INVALID);
        }
    };
    let is_said = say(&match output {
        Output::Json => mutants::as_json(&outcomes).to_string(),
        Output::Table => mutants::as_table(&outcomes),
    });
    if is_said && outcomes.iter().all(mutants::Outcome::is_good) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn complain(report: &Report, again: &str) {
    if let Some(violation) = &report.violation {
        complain_of(report.plan.seed, &format!("at {violation}"), again);
    }
}

fn complain_of(seed: u64, what: &str, again: &str) {
    note(&format!("seed {seed} of commit {COMMIT} {what}"));
    note(&format!("again with: {again}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_run_judges_itself_is_no_checker_and_is_said_to_be_none() {
        assert_eq!(checker("durable"), Ok("durable"));
        for name in crate::witness::OF_THE_RUN {
            let told = checker(name).unwrap_err();
            assert!(told.contains("by the run itself") && told.contains("durable"), "{told}");
        }
        assert!(checker("durabel").unwrap_err().contains("is none of durable"));
    }

    #[test]
    fn run_has_one_source() {
        let is_accepted = |line: &str| Arguments::try_parse_from(line.split(' ')).is_ok();
        for line in [
            "sim run --seed 3 --secs 5",
            "sim run --seed 3 --scenario f",
            "sim run --seed 3 --stage storm",
            "sim report --seed 3 --scenario f",
            "sim report --schedule f",
        ] {
            assert!(is_accepted(line), "{line}");
        }
        for line in [
            "sim run --scenario f --secs 5",
            "sim run --scenario f --population fleet",
            "sim run --scenario f --stage storm",
            "sim run --stage storm --fault-every 5",
            "sim report --scenario f --secs 5",
            "sim report --scenario f --schedule f",
            "sim report --schedule f --seed 3",
            "sim report --schedule f --secs 5",
        ] {
            assert!(!is_accepted(line), "{line}");
        }
    }
}
