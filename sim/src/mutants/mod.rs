//! The checkers are checked: rules are broken on purpose ([`common::bug`]), and a named checker must notice.
//!
//! # Rules
//! * A second binary is built with the feature `seeded-bugs`; this one has no bug in it. Each run is a process of its
//!   own.
//! * In a run with a bug only the checker of its row judges. A panic, or an end of a process, notices nothing.
//! * A run that does not end is killed after ten minutes, and noticed nothing.
//! * The same seed without the bug must pass before *all* checkers, in the same binary.

mod stage;
mod table;

use std::{
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::bug::Bug;
use serde_json::{Value, json};

pub use stage::Stage;
pub use table::{Row, TABLE};

/// What came of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The row.
    pub row: Row,
    /// Seeds that were run, from 1.
    pub seeds_tried: u64,
    /// The first that showed the bug, and what the checker said.
    pub caught: Option<(u64, String)>,
    /// What is wrong with that seed without the bug; `None` if it is clean.
    pub unclean: Option<String>,
}

impl Outcome {
    /// Caught, and clean without the bug.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.caught.is_some() && self.unclean.is_none()
    }

    /// Shows it again.
    #[must_use]
    pub fn command(&self) -> String {
        let seed = self.caught.as_ref().map_or(1, |(seed, _)| *seed);
        command(self.row.stage, seed, Some(self.row.bug), Some(self.row.checker))
    }
}

/// The command that runs `seed` on this stage, as somebody would type it.
#[must_use]
pub fn command(stage: Stage, seed: u64, bug: Option<Bug>, checker: Option<&str>) -> String {
    // Only this binary has the bugs in it.
    let binary = if bug.is_some() { "sim-seeded" } else { "sim" };
    format!("{binary} {}", arguments(stage, seed, bug, checker).join(" "))
}

fn arguments(stage: Stage, seed: u64, bug: Option<Bug>, checker: Option<&str>) -> Vec<String> {
    let mut arguments = ["run", "--stage", stage.word(), "--seed"].map(str::to_owned).to_vec();
    arguments.push(seed.to_string());
    for (option, value) in [("--bug", bug.map(Bug::word)), ("--checker", checker)] {
        arguments.extend(value.into_iter().flat_map(|value| [option, value].map(str::to_owned)));
    }
    arguments
}

/// Rows of the table: all, those of one bug, or `sample` of them. A sample is spread evenly, and begins at a row that
/// follows from the `commit` (hexadecimal digits), so that in time every row is met.
#[must_use]
pub fn rows(sample: Option<usize>, bug: Option<&str>, commit: &str) -> Vec<Row> {
    let rows = TABLE.iter().filter(|row| bug.is_none_or(|bug| bug == row.bug.word()));
    let rows: Vec<Row> = rows.copied().collect();
    let Some(wanted) = sample.filter(|wanted| *wanted < rows.len()) else {
        return rows;
    };
    // A build from outside of a checkout knows no commit.
    let first = u64::from_str_radix(commit, 16).unwrap_or(0) % rows.len() as u64;
    let spread = (0..wanted).map(|at| first as usize + at * rows.len() / wanted);
    spread.map(|at| rows[at % rows.len()]).collect()
}

/// Places of `rows` in the table, from 1, for people.
#[must_use]
pub fn places(rows: &[Row]) -> String {
    let places = rows.iter().filter_map(|row| TABLE.iter().position(|each| each == row));
    let places: Vec<String> = places.map(|at| (at + 1).to_string()).collect();
    format!("{} of {}", places.join(", "), TABLE.len())
}

/// Builds the binary with the bugs in it, and says where it is.
///
/// # Errors
/// What is missing, for people: this is a checkout's command, not one of an installed binary.
pub fn build() -> Result<PathBuf, String> {
    let workspace = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let this = std::env::current_exe().map_err(|error| error.to_string())?;
    let target = this
        .parent()
        .and_then(Path::parent)
        .ok_or("this binary is in no target directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(&cargo)
        .current_dir(workspace)
        .args([
            "build",
            "--profile",
            "checked",
            "--locked",
            "-p",
            "sim",
            "--features",
            "seeded-bugs",
        ])
        .args(["--bin", "sim-seeded", "--target-dir"])
        .arg(target)
        .status()
        .map_err(|error| {
            format!(
                "{} cannot be run ({error}): the bugs are built from the checkout at {}",
                cargo.display(),
                workspace.display()
            )
        })?;
    let binary = target.join("checked/sim-seeded");
    if status.success() && binary.exists() {
        Ok(binary)
    } else {
        Err(format!("cargo did not build {}", binary.display()))
    }
}

/// A run that takes longer never ends: some bugs go round in circles.
const RUN_MAX: Duration = Duration::from_secs(600);
/// Between two looks at a run.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What a run printed and said. One that does not end is killed.
#[allow(clippy::disallowed_methods, reason = "watches a simulation, and is none")]
fn output_of(binary: &Path, arguments: &[String]) -> std::io::Result<(String, String)> {
    let mut child = Command::new(binary)
        .args(arguments)
        .args(["-o", "json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    // Both are read while it runs: a full pipe would stop it.
    let read = |pipe: Option<Box<dyn Read + Send>>| {
        std::thread::spawn(move || {
            let mut text = Vec::new();
            let read = pipe.map_or(Ok(0), |mut pipe| pipe.read_to_end(&mut text));
            read.map(|_| String::from_utf8_lossy(&text).into_owned())
        })
    };
    let printed = read(child.stdout.take().map(|pipe| Box::new(pipe) as _));
    let said = read(child.stderr.take().map(|pipe| Box::new(pipe) as _));
    let looks_max = RUN_MAX.as_millis() / LOOK_EVERY.as_millis();
    let mut looks = 0;
    while child.try_wait()?.is_none() {
        if looks == looks_max {
            child.kill()?;
            child.wait()?;
            break;
        }
        std::thread::sleep(LOOK_EVERY);
        looks += 1;
    }
    let text = |thread: std::thread::JoinHandle<std::io::Result<String>>| {
        thread
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("what it said could not be read")))
    };
    Ok((text(printed)?, text(said)?))
}

/// The violation that a run printed, if it printed one.
fn violation_of(binary: &Path, arguments: &[String]) -> Result<Option<(String, String)>, String> {
    let (printed, said) = output_of(binary, arguments).map_err(|error| format!("{}: {error}", binary.display()))?;
    let Some(report) = printed
        .lines()
        .last()
        .and_then(|line| serde_json::from_str::<Value>(line).ok())
    else {
        // It did not get as far as a report: a panic of the simulator itself, or it was killed.
        return Ok(Some(("no report".into(), said)));
    };
    let Some(first) = report["violations"].as_array().and_then(|all| all.first()) else {
        return Ok(None);
    };
    let text = |key: &str| first[key].as_str().unwrap_or_default().to_owned();
    Ok(Some((text("checker"), text("what"))))
}

fn judge_row(binary: &Path, row: Row, seeds_max: u64) -> Result<Outcome, String> {
    let mut outcome = Outcome {
        row,
        seeds_tried: 0,
        caught: None,
        unclean: None,
    };
    for seed in 1..=seeds_max {
        outcome.seeds_tried = seed;
        match violation_of(binary, &arguments(row.stage, seed, Some(row.bug), Some(row.checker)))? {
            Some((checker, what)) if checker == row.checker => {
                let clean = violation_of(binary, &arguments(row.stage, seed, None, None))?;
                outcome.unclean = clean.map(|(checker, what)| format!("{checker}: {what}"));
                outcome.caught = Some((seed, what));
                return Ok(outcome);
            }
            Some(_) | None => {}
        }
    }
    Ok(outcome)
}

/// Runs the seeds 1, 2, ... of each row until its checker objects, `jobs` rows at a time.
///
/// # Errors
/// The binary cannot be run.
pub fn judge(binary: &Path, rows: &[Row], seeds_max: u64, jobs: u8) -> Result<Vec<Outcome>, String> {
    let next = AtomicUsize::new(0);
    let judged = Mutex::new(Vec::new());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(row) = rows.get(at) else { return };
            let outcome = judge_row(binary, *row, seeds_max);
            if let Ok(outcome) = &outcome {
                eprintln!("sim: {}", as_line(outcome));
            }
            judged
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push((at, outcome));
        }
    };
    #[expect(clippy::disallowed_methods, reason = "each thread watches a process of its own")]
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(work);
        }
    });
    let mut judged = judged.into_inner().unwrap_or_else(PoisonError::into_inner);
    judged.sort_by_key(|(at, _)| *at);
    judged.into_iter().map(|(_, outcome)| outcome).collect()
}

fn as_line(outcome: &Outcome) -> String {
    let Row {
        bug, checker, stage, ..
    } = outcome.row;
    let (bug, stage, tried) = (bug.word(), stage.word(), outcome.seeds_tried);
    let came = match (&outcome.caught, &outcome.unclean) {
        (Some((seed, _)), None) => format!("caught with seed {seed}"),
        (Some((seed, _)), Some(why)) => format!("seed {seed} is not clean without the bug: {why}"),
        (None, _) => format!("NOT CAUGHT in {tried} seeds"),
    };
    format!("{bug:<26} {checker:<22} {stage:<12} {came}")
}

/// The table for people.
#[must_use]
pub fn as_table(outcomes: &[Outcome]) -> String {
    let good = outcomes.iter().filter(|outcome| outcome.is_good()).count();
    let lines = outcomes.iter().map(|outcome| as_line(outcome) + "\n");
    lines.collect::<String>() + &format!("{good} of {} caught\n", outcomes.len())
}

/// The same for programs.
#[must_use]
pub fn as_json(outcomes: &[Outcome]) -> Value {
    let row = |outcome: &Outcome| {
        json!({
            "bug": outcome.row.bug.word(),
            "checker": outcome.row.checker,
            "stage": outcome.row.stage.word(),
            "caught": outcome.is_good(),
            "seeds_tried": outcome.seeds_tried,
            "first_seed": outcome.caught.as_ref().map(|(seed, _)| *seed),
            "what": outcome.caught.as_ref().map(|(_, what)| what.clone()),
            "unclean": outcome.unclean,
            "command": outcome.command(),
        })
    };
    Value::Array(outcomes.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sample_is_spread_over_the_table() {
        let sample = rows(Some(4), None, "unknown");
        assert_eq!(sample.len(), 4);
        assert_eq!(sample[0], TABLE[0]);
        assert!(sample[3].bug > sample[0].bug);
        assert_eq!(rows(None, None, "3"), TABLE);
        assert!(rows(Some(10_000), Some("dedup-off"), "3").len() < 3);
    }

    #[test]
    fn sample_moves_with_the_commit_and_meets_every_row() {
        let samples = |commit: u64| rows(Some(8), None, &format!("{commit:012x}"));
        let (first, next) = (samples(0xfdad_8fee_0000), samples(0xfdad_8fee_0001));
        assert_eq!(first, samples(0xfdad_8fee_0000));
        assert!(first.iter().all(|row| !next.contains(row)), "{first:?}, {next:?}");
        let commits = 0..TABLE.len() as u64;
        let met: Vec<Row> = commits.flat_map(samples).collect();
        for row in TABLE {
            let times = met.iter().filter(|each| *each == row).count();
            assert_eq!(times, 8, "each row is met as often as others: {row:?}");
        }
    }

    #[test]
    fn places_are_those_of_the_table() {
        let sample = rows(Some(4), None, &format!("{:x}", TABLE.len() - 1));
        let (last, second) = (TABLE.len(), TABLE.len() / 4);
        assert!(
            places(&sample).starts_with(&format!("{last}, {second}, ")),
            "{}",
            places(&sample)
        );
        assert!(places(&sample).ends_with(&format!(" of {last}")));
    }

    #[test]
    fn command_of_a_stage_leaves_nothing_out() {
        let Row { bug, checker, stage } = TABLE[0];
        let seeded = format!("--bug {} --checker {checker}", bug.word());
        assert_eq!(
            command(stage, 3, Some(bug), Some(checker)),
            format!("sim-seeded run --stage {} --seed 3 {seeded}", stage.word())
        );
        assert_eq!(
            command(stage, 3, None, Some(checker)),
            format!("sim run --stage {} --seed 3 --checker {checker}", stage.word())
        );
        assert_eq!(
            command(stage, 3, None, None),
            format!("sim run --stage {} --seed 3", stage.word())
        );
    }

    #[test]
    fn row_that_nobody_noticed_or_that_fails_without_the_bug_is_not_good() {
        let outcome = |caught, unclean| Outcome {
            row: TABLE[0],
            seeds_tried: 1,
            caught,
            unclean,
        };
        let caught = Some((3, "what".to_owned()));
        assert!(outcome(caught.clone(), None).is_good());
        assert!(outcome(caught.clone(), None).command().contains("--seed 3 --bug"));
        assert!(!outcome(None, None).is_good());
        assert!(!outcome(caught, Some("recovers: slow".into())).is_good());
    }
}
