//! `sim shrink`, `sim replay` and `sim report`.

use std::{
    fs::{File, OpenOptions},
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use super::{
    COMMIT, Output, Shape, complain, read_scenario, run_one,
    say::{note, say},
};
use crate::{
    page::page,
    run::{Staging, run, run_schedule, run_staged},
    schedule::{Schedule, shrink as shrunk},
    witness::Violation,
};

/// Input that is invalid, or a file that cannot be read or written.
pub(super) const EXIT_INVALID: u8 = 6;

pub(super) fn invalid(path: &Path, problem: impl std::fmt::Display) -> ExitCode {
    note(&format!("{}: {problem}", path.display()));
    ExitCode::from(EXIT_INVALID)
}

/// Whether `path` can be written, asked before minutes of work: a file that is there keeps what it holds, and none is
/// left where none was.
fn check_writable(path: &Path) -> io::Result<()> {
    match File::create_new(path) {
        Ok(_) => std::fs::remove_file(path),
        Err(error) if error.kind() == ErrorKind::AlreadyExists => OpenOptions::new().write(true).open(path).map(drop),
        Err(error) => Err(error),
    }
}

fn read_schedule(path: &Path) -> Result<Schedule, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Schedule::from_toml(&text).map_err(|error| error.to_string())
}

/// Runs `seed`, and if it breaks something finds and writes the smallest schedule that breaks the same.
pub(super) fn shrink(shape: Shape, seed: u64, tries_max: u32, out: Option<PathBuf>) -> ExitCode {
    let out = out.unwrap_or_else(|| PathBuf::from(format!("shrunk-{seed}.toml")));
    if let Err(error) = check_writable(&out) {
        return invalid(&out, error);
    }
    let report = run(shape.plan(seed));
    let Some(Violation { checker, .. }) = report.violation else {
        say(&format!(
            "seed {seed} of commit {COMMIT} breaks nothing: there is nothing to shrink"
        ));
        return ExitCode::SUCCESS;
    };
    let first = Schedule::of(shape.population, &report);
    note(&format!("{} faults: {}", first.strikes.len(), first.violation));
    let (faults, mut last) = (first.strikes.len(), report);
    let (mut smallest, tries) = shrunk(first, tries_max, |smaller| {
        let report = run_schedule(smaller);
        let is_same = report
            .violation
            .as_ref()
            .is_some_and(|violation| violation.checker == checker);
        let outcome = if is_same { "still broken" } else { "not broken so" };
        note(&format!(
            "{} faults, {} s: {outcome}",
            smaller.strikes.len(),
            smaller.secs
        ));
        if is_same {
            last = report;
        }
        is_same
    });
    smallest.violation = last.violation.as_ref().map(ToString::to_string).unwrap_or_default();
    smallest.trace_hash = last.trace_hash.to_hex();
    smallest.commit = COMMIT.to_owned();
    let text = smallest.to_toml();
    say(&text);
    if let Err(error) = std::fs::write(&out, &text) {
        return invalid(&out, error);
    }
    let needed = smallest.strikes.len();
    say(&format!(
        "# {needed} of {faults} faults are needed ({tries} tries)\n# again with: sim replay {}",
        out.display()
    ));
    ExitCode::FAILURE
}

/// Runs a schedule. It fails when something broke, or when this build wrote another trace into the file.
pub(super) fn replay(file: &Path, output: Output) -> ExitCode {
    let schedule = match read_schedule(file) {
        Ok(schedule) => schedule,
        Err(problem) => return invalid(file, problem),
    };
    let mut hash = String::new();
    let again = format!("sim replay {}", file.display());
    let is_clean = run_one(output, &again, || {
        let report = run_schedule(&schedule);
        hash = report.trace_hash.to_hex();
        report
    });
    let differs = !schedule.trace_hash.is_empty() && schedule.trace_hash != hash;
    if differs {
        note(&format!(
            "the trace differs from the one in the file, which commit {} wrote; this is {COMMIT}",
            schedule.commit
        ));
    }
    if is_clean && !(differs && is_same_build(&schedule.commit)) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Whether `commit` is that of this build, which must do again what it did. Other builds may do otherwise; edits that
/// were not committed are not told apart.
fn is_same_build(commit: &str) -> bool {
    commit == COMMIT && COMMIT != "unknown"
}

/// Runs a fleet before a camera and writes the page.
pub(super) fn report(
    shape: Shape,
    seed: u64,
    scenario: Option<PathBuf>,
    schedule: Option<PathBuf>,
    out: &Path,
) -> ExitCode {
    if let Err(error) = check_writable(out) {
        return invalid(out, error);
    }
    let mut staging = Staging {
        is_filmed: true,
        ..Staging::default()
    };
    let (report, again) = match (scenario, schedule) {
        (Some(path), _) => {
            let scenario = match read_scenario(&path) {
                Ok(scenario) => scenario,
                Err(problem) => return invalid(&path, problem),
            };
            let again = format!("sim run --scenario {} --seed {seed}", path.display());
            (scenario.run(seed, staging), again)
        }
        (None, Some(path)) => {
            let schedule = match read_schedule(&path) {
                Ok(schedule) => schedule,
                Err(problem) => return invalid(&path, problem),
            };
            staging.replayed = Some(schedule.strikes.clone());
            let again = format!("sim replay {}", path.display());
            (run_staged(schedule.plan(), staging), again)
        }
        (None, None) => (run_staged(shape.plan(seed), staging), shape.command(seed)),
    };
    complain(&report, &again);
    if let Err(error) = std::fs::write(out, page(&report, COMMIT, &again)) {
        return invalid(out, error);
    }
    say(&format!(
        "{} (seed {} of commit {COMMIT})",
        out.display(),
        report.plan.seed
    ));
    if report.violation.is_none() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
