//! The fleet simulator's command line.
//!
//! `sim run --seed S` runs a small fleet and prints the trace hash; the same seed gives the same hash.
#![forbid(unsafe_code)]

use std::{process::ExitCode, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};
use serde_json::json;
use sim::{
    run::{Plan, Report, run},
    trace::Event,
};

#[derive(Parser)]
#[command(name = "sim", version, about = "Runs whole fleets in virtual time, from one seed")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs 3 clusters of 3 agents and 4 validators under a small workload.
    Run {
        /// Determines the run.
        #[arg(long)]
        seed: u64,
        /// Tasks submitted through each cluster.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        tasks: u32,
        /// Frames lost, per million.
        #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(0..=500_000))]
        loss_ppm: u64,
        /// How often a process or a whole cluster is killed and started again.
        #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000))]
        kills: u32,
        /// Longest virtual time, seconds.
        #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=86_400))]
        seconds: u64,
        /// How the result is printed.
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    Table,
    Json,
}

fn main() -> ExitCode {
    if let Err(error) = common::crypto::known_answers::check() {
        eprintln!("sim: {error}");
        return ExitCode::from(78);
    }
    let Command::Run {
        seed,
        tasks,
        loss_ppm,
        kills,
        seconds,
        output,
    } = Arguments::parse().command;
    let mut plan = Plan::small(seed);
    plan.load.tasks_per_cluster = tasks;
    plan.conditions.links.loss_ppm = loss_ppm;
    plan.kills = kills;
    plan.lasts = Duration::from_secs(seconds);
    let report = run(plan);
    match output {
        Output::Json => println!("{}", as_json(&report)),
        Output::Table => print_table(&report),
    }
    if report.verdict.is_clean() && report.ended.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "sim: seed {seed} of commit {COMMIT} is not clean: {:?} {:?}",
        report.verdict, report.ended
    );
    ExitCode::from(1)
}

/// The commit this binary was built from, or `unknown` outside of a checkout.
const COMMIT: &str = env!("MUSTER_COMMIT");

const EVENTS: [(&str, Event); 6] = [
    ("delivered", Event::Delivered),
    ("dropped", Event::Dropped),
    ("synced", Event::Synced),
    ("applied", Event::Applied),
    ("started", Event::Started),
    ("killed", Event::Killed),
];

fn as_json(report: &Report) -> serde_json::Value {
    let counts: serde_json::Map<String, serde_json::Value> = EVENTS
        .iter()
        .map(|(word, event)| ((*word).to_owned(), report.counts.of(*event).into()))
        .collect();
    let verdict = &report.verdict;
    json!({
        "seed": report.seed,
        "commit": COMMIT,
        "trace_hash": report.trace_hash.to_hex(),
        "events": counts,
        "virtual_ms": report.virtual_ms,
        "acknowledged": verdict.acknowledged,
        "finalized": verdict.finalized,
        "completed": verdict.completed,
        "lost": verdict.lost,
        "doubled": verdict.doubled,
        "forks": verdict.forks,
        "height": verdict.height.0,
        "retries": report.retries,
        "clean": verdict.is_clean() && report.ended.is_empty(),
    })
}

fn print_table(report: &Report) {
    let verdict = &report.verdict;
    println!("seed          {} (commit {COMMIT})", report.seed);
    println!("trace hash    {}", report.trace_hash.to_hex());
    for (word, event) in EVENTS {
        println!("{word:<13} {}", report.counts.of(event));
    }
    println!(
        "virtual time  {}.{:03} s",
        report.virtual_ms / 1_000,
        report.virtual_ms % 1_000
    );
    println!(
        "acknowledged  {}, final {}, completed {}",
        verdict.acknowledged, verdict.finalized, verdict.completed
    );
    println!(
        "lost          {}, doubled {}, forks {}",
        verdict.lost, verdict.doubled, verdict.forks
    );
    println!("height        {}", verdict.height);
}
