//! `fleet bench`: figures of a fleet of real processes on this machine, made for the run and removed after it.
//!
//! * [`host`]: the fleet, its clients, what its processes cost. [`load`]: closed loops and their sums.
//! * [`entries`]: what is signed and submitted.
//! * [`submit`], [`read`], [`failover`], [`finality`], [`idle`]: one measurement each.
//!
//! # Rules
//! * Nothing is switched off for a measurement: every flush reaches the disk, every member verifies every signature.
//!   A directory in memory is refused.
//! * What is changed for a run (quotas that the run would exhaust) stands in its result.
//! * The load shares the machine with the fleet; both costs are in every result.
//! * However it ends, Ctrl-C too, no process stays behind.

mod entries;
mod failover;
mod finality;
mod host;
mod idle;
mod load;
mod proc;
mod read;
mod submit;

use std::path::Path;

use serde_json::Value;

use crate::{
    dev::Interrupt,
    draft::Profile,
    exit::Outcome,
    printer::{Column, Printer},
};

/// `fleet bench`
#[derive(Debug, clap::Subcommand)]
pub enum BenchCommand {
    /// Durable submits, in closed loops.
    Submit(submit::SubmitArgs),
    /// Linearizable reads of one task, in closed loops.
    Read(read::ReadArgs),
    /// Time from the kill of a leader to the next acknowledged submit.
    Failover(failover::FailoverArgs),
    /// Time until a submit has its place in the global order, at a given rate.
    Finality(finality::FinalityArgs),
    /// What a cluster costs that has nothing to do.
    Idle(idle::IdleArgs),
}

/// What all measurements with clients share.
#[derive(Clone, Debug, clap::Args)]
pub struct LoadArgs {
    /// Clients, each with one request in flight; one run for each number.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1000", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    pub clients: Vec<u32>,
    /// Seconds that are measured, after one second that is not.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub secs: u64,
    /// Whom clients ask: the leader of each cluster, or all agents in turn.
    #[arg(long, value_enum, default_value_t = Target::Leader)]
    pub target: Target,
    /// Constants of time.
    #[arg(long, value_enum, default_value_t = Profile::Lan)]
    pub profile: Profile,
    /// Three clusters of three agents and four validators, instead of one cluster of three and no validators.
    #[arg(long)]
    pub full_fleet: bool,
}

/// Whom clients ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Target {
    /// The leader of each cluster.
    Leader,
    /// All agents in turn.
    All,
}

impl Target {
    fn word(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::All => "all",
        }
    }
}

/// Runs `fleet bench` with a fleet in `dir`, which must not hold anything; by default in a directory that is removed.
///
/// # Errors
/// A fleet that does not start, or a fault of this machine.
pub async fn run(command: BenchCommand, dir: Option<&Path>, printer: &Printer) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    match command {
        BenchCommand::Submit(args) => submit::run(&args, dir, &mut interrupt, printer).await,
        BenchCommand::Read(args) => read::run(&args, dir, &mut interrupt, printer).await,
        BenchCommand::Failover(args) => failover::run(&args, dir, &mut interrupt, printer).await,
        BenchCommand::Finality(args) => finality::run(&args, dir, &mut interrupt, printer).await,
        BenchCommand::Idle(args) => idle::run(&args, dir, &mut interrupt, printer).await,
    }
}

/// Results: a line each for scripts, as soon as it is there; a table at the end for people.
struct Report<'a> {
    printer: &'a Printer,
    columns: &'a [Column],
    rows: Vec<Value>,
}

impl<'a> Report<'a> {
    fn new(printer: &'a Printer, columns: &'a [Column]) -> Self {
        Self {
            printer,
            columns,
            rows: Vec::new(),
        }
    }

    fn add(&mut self, row: Value) {
        if self.printer.is_json() {
            self.printer.line(&row.to_string());
        } else {
            self.rows.push(row);
        }
    }

    fn end(self) {
        if !self.printer.is_json() {
            self.printer.rows(self.columns, &self.rows);
        }
    }
}
