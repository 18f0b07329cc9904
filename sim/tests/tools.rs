//! What `sim shrink`, `replay` and `report` rest on, over real runs; and what the binary says.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use sim::{
    checkers::{Checker, Observation},
    faults::Injected,
    page::page,
    run::{Plan, Report, Staging, run, run_schedule, run_staged},
    schedule::{Schedule, Size, shrink},
};

/// Holds the fleet to what nobody promised: no agent is ever cut off from its majority.
struct NobodyIsCutOff;

impl Checker for NobodyIsCutOff {
    fn name(&self) -> &'static str {
        "nobody-is-cut-off"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            // Before this time processes start one after the other.
            Observation::Side {
                agent,
                has_majority: false,
                ..
            } if now_us > 2_000_000 => Err(format!("{agent} is cut off")),
            _ => Ok(()),
        }
    }
}

/// One cluster is enough, and fast.
fn storms() -> impl Iterator<Item = Plan> {
    let small = (1..64).map(Plan::small).filter(|plan| plan.population.clusters == 1);
    small.map(|mut plan| {
        plan.lasts = Duration::from_secs(14);
        plan.weather.every_us = 1_500_000;
        plan
    })
}

fn judged(schedule: &Schedule) -> Report {
    let staging = Staging {
        replayed: Some(schedule.strikes.clone()),
        checkers: vec![Box::new(NobodyIsCutOff)],
        ..Staging::default()
    };
    run_staged(schedule.plan(), staging)
}

fn fails(schedule: &Schedule) -> bool {
    let violation = judged(schedule).violation;
    violation.is_some_and(|violation| violation.checker == "nobody-is-cut-off")
}

#[test]
fn schedule_that_fails_shrinks_to_what_it_needs_and_is_replayed_from_its_file() {
    let mut storms = storms().map(|plan| Schedule::of(Size::Small, &run(plan)));
    let first = storms.find(|first| first.strikes.len() > 3 && fails(first));
    let (smallest, tries) = shrink(first.expect("some storm cuts somebody off"), 64, fails);
    assert!(
        (1..3).contains(&smallest.strikes.len()),
        "after {tries} tries: {smallest:?}"
    );
    let read = Schedule::from_toml(&smallest.to_toml()).unwrap();
    let (told, again) = (judged(&smallest), judged(&read));
    assert!(told.violation.is_some());
    let is_in_force = |fault: &Injected| fault.until_ms == told.virtual_ms;
    assert!(
        told.faults.iter().any(is_in_force),
        "who cut somebody off is told: {:?}",
        told.faults
    );
    assert_eq!(told, again);
    for at in 0..smallest.strikes.len() {
        let mut less = smallest.clone();
        less.strikes.remove(at);
        assert!(!fails(&less), "what is left is needed");
    }
}

#[test]
fn replayed_schedule_has_the_trace_of_the_run_it_was_taken_from() {
    let mut plan = Plan::byzantine(4);
    plan.lasts = Duration::from_secs(8);
    plan.weather.every_us = 1_500_000;
    let first = run(plan);
    assert!(first.violation.is_none() && !first.strikes.is_empty(), "{first:?}");
    let schedule = Schedule::of(Size::Byzantine, &first);
    let again = run_schedule(&Schedule::from_toml(&schedule.to_toml()).unwrap());
    assert_eq!(first.trace_hash, again.trace_hash);
    assert_eq!(first.faults, again.faults);
}

#[test]
fn page_of_a_run_shows_it_and_needs_no_network() {
    let staging = Staging {
        is_filmed: true,
        ..Staging::default()
    };
    let report = run_staged(storms().next().expect("one in four seeds has one cluster"), staging);
    assert!(report.timeline.samples.len() >= 14);
    let html = page(&report, "0123456789ab", "sim run --seed 3");
    for needed in [
        "c1-",
        "term ",
        "Leaders",
        "Finality lag",
        "Queue depth",
        &report.trace_hash.to_hex(),
    ] {
        assert!(html.contains(needed), "{needed}");
    }
    for fault in &report.faults {
        assert!(html.contains(&fault.what.replace('"', "&quot;")), "{}", fault.what);
    }
    for foreign in ["<script", "http:", "https:", "src=", "url(", "@import"] {
        assert!(!html.contains(foreign), "{foreign}");
    }
    assert_eq!(html.matches("<svg").count(), html.matches("</svg>").count());
    assert!(html.len() < 1_000_000, "{}", html.len());
}

#[test]
fn bench_is_the_load_by_which_speed_is_judged() {
    for seed in [1, 2] {
        let report = run(Plan::bench(seed));
        assert_eq!(report.violation, None);
        let asked_for = 10 * 3 * report.plan.lasts.as_secs();
        let (acked, done, in_force) = (report.tasks_acked, report.completed, report.tasks_final);
        assert!(
            acked >= asked_for * 95 / 100,
            "seed {seed}: {acked} of {asked_for} acknowledged"
        );
        assert!(done >= acked * 80 / 100, "seed {seed}: {done} of {acked} completed");
        assert!(in_force >= acked * 90 / 100, "seed {seed}: {in_force} of {acked} final");
        assert!(!report.faults.is_empty(), "seed {seed}: nothing was broken");
    }
}

/// An empty folder of a test's own.
fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The binary, about to run in `folder`.
fn sim_in(folder: &Path, arguments: &[&str]) -> Command {
    let mut sim = Command::new(env!("CARGO_BIN_EXE_sim"));
    sim.current_dir(folder).args(arguments);
    sim
}

/// Runs the binary in a folder of its own, with this story in it as `story.toml`.
fn sim(name: &str, story: &str, arguments: &[&str]) -> Output {
    let folder = folder(name);
    std::fs::write(folder.join("story.toml"), story).unwrap();
    sim_in(&folder, arguments).output().unwrap()
}

/// Nobody dies in it, and it says that somebody does.
const BROKEN: &str = r#"
    title = "t"
    story = "s"
    clusters = 1
    agents = 3
    validators = 4
    secs = 1
    [expect]
    killed_min = 1
    [[fault]]
    at_ms = 500
    lasts_ms = 500
    kind = "isolate"
    who = ["c1-2"]
"#;

#[test]
fn every_way_to_run_a_story_says_with_which_seed_and_command_it_broke() {
    for command in ["run", "report"] {
        let ran = sim("broken", BROKEN, &[command, "--scenario", "story.toml", "--seed", "9"]);
        let (printed, said) = (
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr),
        );
        assert_eq!(ran.status.code(), Some(1), "{said}");
        assert!(said.contains("sim: seed 9 of commit "), "{command}: {said}");
        assert!(said.contains("processes killed: 0"), "{command}: {said}");
        let again = "again with: sim run --scenario story.toml --seed 9";
        assert!(said.contains(again), "{command}: {said}");
        assert!(
            printed.contains("seed") && printed.contains("commit"),
            "{command}: {printed}"
        );
    }
}

#[test]
fn mistake_in_a_story_is_said_in_words_with_exit_code_6() {
    for (right, wrong) in [
        ("\"c1-2\"", "\"c1-+2\""),
        ("agents = 3", "agents = 2"),
        ("at_ms = 500", "at_ms = 9000000000000000000"),
    ] {
        let ran = sim(
            "mistaken",
            &BROKEN.replace(right, wrong),
            &["run", "--scenario", "story.toml"],
        );
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(6), "{wrong}: {said}");
        assert!(said.starts_with("sim: story.toml: scenario: "), "{wrong}: {said}");
    }
}

#[test]
fn place_that_cannot_be_written_is_named_before_the_run_and_nothing_is_left_where_nothing_is_written() {
    let folder = folder("unwritable");
    std::fs::write(folder.join("kept.toml"), "kept").unwrap();
    std::fs::write(folder.join("story.toml"), BROKEN.replace("agents = 3", "agents = 2")).unwrap();
    let run = |arguments: &[&str]| {
        let ran = sim_in(&folder, arguments).output().unwrap();
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    // A day of a whole fleet: nobody waits for it here.
    let long = ["--population", "fleet", "--secs", "86400"];
    for command in [["shrink", "--seed=1"], ["report", "--seed=1"]] {
        let nowhere = [&command[..], &["--out", "nowhere/out"], &long[..]].concat();
        let (code, said) = run(&nowhere);
        assert_eq!(code, Some(6), "{said}");
        assert!(said.starts_with("sim: nowhere/out: "), "{said}");
    }
    for out in ["new.toml", "kept.toml"] {
        let nothing_breaks = ["shrink", "--seed", "1", "--secs", "1", "--out", out];
        assert_eq!(run(&nothing_breaks), (Some(0), String::new()));
        let (code, said) = run(&["report", "--scenario", "story.toml", "--out", out]);
        assert!(code == Some(6) && said.starts_with("sim: story.toml: "), "{said}");
    }
    assert!(!folder.join("new.toml").exists());
    assert_eq!(std::fs::read_to_string(folder.join("kept.toml")).unwrap(), "kept");
}

#[test]
fn reader_that_has_read_enough_ends_nothing_but_the_printing() {
    let folder = folder("read-enough");
    std::fs::write(folder.join("story.toml"), BROKEN).unwrap();
    for (arguments, code) in [
        (&["run", "--secs", "1"][..], 0),
        (&["soak", "--seeds", "1..2", "--secs", "1"], 0),
        (&["shrink", "--seed", "1", "--secs", "1"], 0),
        (&["run", "--scenario", "story.toml"], 1),
    ] {
        let mut sim = sim_in(&folder, arguments);
        let mut sim = sim.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(sim.stdout.take());
        let ran = sim.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
    // Nobody reads its remarks either.
    let mut sim = sim_in(&folder, &["run", "--scenario", "story.toml"]);
    let mut sim = sim.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    drop(sim.stderr.take());
    assert_eq!(sim.wait().unwrap().code(), Some(1));
}

#[test]
fn mistake_in_a_schedule_is_said_in_words_with_exit_code_6() {
    let mut plan = Plan::small(3);
    plan.lasts = Duration::from_secs(6);
    plan.weather.every_us = 1_500_000;
    let good = Schedule::of(Size::Small, &run(plan));
    assert!(!good.strikes.is_empty());
    let folder = folder("mistaken-schedule");
    for (secs, lasts_us, told) in [
        (6, i64::MAX as u64, "lasts_us 9223372036854775807"),
        (1, 500_000, "at_us"),
    ] {
        let mut bad = Schedule { secs, ..good.clone() };
        bad.strikes[0].lasts_us = lasts_us;
        std::fs::write(folder.join("bad.toml"), bad.to_toml()).unwrap();
        let ran = sim_in(&folder, &["replay", "bad.toml"]).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(6), "{said}");
        assert!(
            said.starts_with("sim: bad.toml: schedule: strike 1 ") && said.contains(told),
            "{said}"
        );
    }
}
