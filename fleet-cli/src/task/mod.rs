//! `fleet task`: everything about one task, from its submission to its proof.
//!
//! * [`submit`]: new tasks, one or many.
//! * [`read`]: list, get, watch, history.
//! * [`change`]: cancel, requeue.
//! * [`onboard`]: a drone's own verbs, through its local socket.
//! * [`proof`]: prove and verify.

mod bulk;
mod change;
mod onboard;
mod proof;
mod read;
mod submit;

use std::{path::Path, time::Duration};

use common::wire::op::Consistency;

use crate::{
    client::{Client, connect, tasks::Freshness},
    clock::parse_duration,
    exit::Outcome,
    printer::Printer,
};

/// `fleet task`
#[derive(Debug, clap::Subcommand)]
pub enum TaskCommand {
    /// Queues a task, or many from a file.
    Submit(Box<submit::SubmitArgs>),
    /// Lists tasks.
    List(read::ListArgs),
    /// Shows one task.
    Get(read::GetArgs),
    /// Shows one task's changes until it ends.
    Watch(read::WatchArgs),
    /// Shows all events of one task.
    History(read::HistoryArgs),
    /// Ends an open task. A drone that holds it is told.
    Cancel(change::ChangeArgs),
    /// Queues a failed or expired task again.
    Requeue(change::ChangeArgs),
    /// As a drone: takes a task.
    Claim(onboard::OnboardArgs),
    /// As a drone: begins with a task that it holds.
    Start(onboard::OnboardArgs),
    /// As a drone: pauses.
    Pause(onboard::OnboardArgs),
    /// As a drone: goes on.
    Resume(onboard::OnboardArgs),
    /// As a drone: the task is done.
    Complete(onboard::OnboardArgs),
    /// As a drone: the task could not be done.
    Fail(onboard::OnboardArgs),
    /// As a drone: gives a task back.
    Release(onboard::OnboardArgs),
    /// Writes the proof file of a task.
    Prove(proof::ProveArgs),
    /// Checks a proof file, offline: it and the genesis file are all that is read.
    Verify(proof::VerifyArgs),
}

/// How fresh an answer must be.
#[derive(Clone, Debug, clap::Args)]
pub struct ReadArgs {
    /// Includes every acknowledged write, what the asked process has applied, or what is final.
    #[arg(long, value_enum, default_value_t = ConsistencyWord::Local)]
    consistency: ConsistencyWord,
    /// Fail (exit 9) rather than answer with something older.
    #[arg(long, value_parser = parse_duration)]
    max_staleness: Option<Duration>,
    /// Ask this agent and no other.
    #[arg(long, value_name = "AGENT")]
    via: Option<String>,
}

/// The word for a consistency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ConsistencyWord {
    /// Includes every write acknowledged before.
    Linearizable,
    /// What finalized blocks say.
    Final,
    /// What the process has applied, with its age.
    Local,
}

impl ReadArgs {
    fn freshness(&self) -> Freshness {
        Freshness {
            consistency: match self.consistency {
                ConsistencyWord::Linearizable => Consistency::Linearizable,
                ConsistencyWord::Final => Consistency::Final,
                ConsistencyWord::Local => Consistency::Local,
            },
            staleness_ms_max: self.max_staleness.map(|age| age.as_millis() as u64),
        }
    }
}

/// Runs `fleet task` with the context file at `context`.
///
/// # Errors
/// With the exit code of the fate.
pub async fn run(command: TaskCommand, context: &Path, printer: &Printer) -> Outcome {
    // Offline: no context, no network.
    if let TaskCommand::Verify(args) = command {
        return proof::verify(&args, printer);
    }
    connect::with(context, async |client| with_client(command, client, printer).await).await
}

impl TaskCommand {
    /// The only agent to ask, if one is named.
    fn via(&self) -> Option<&str> {
        let via = match self {
            Self::Submit(args) => &args.via,
            Self::List(args) => &args.read.via,
            Self::Get(args) => &args.read.via,
            Self::Watch(args) => &args.read.via,
            Self::History(args) => &args.via,
            Self::Cancel(args) | Self::Requeue(args) => &args.via,
            _ => &None,
        };
        via.as_deref()
    }
}

async fn with_client(command: TaskCommand, client: &Client, printer: &Printer) -> Outcome {
    let pinned = command.via().map(|via| client.pinned_to(via)).transpose()?;
    let client = pinned.as_ref().unwrap_or(client);
    match command {
        TaskCommand::Submit(args) => submit::run(client, *args, printer).await,
        TaskCommand::List(args) => read::list(client, &args, printer).await,
        TaskCommand::Get(args) => read::get(client, &args, printer).await,
        TaskCommand::Watch(args) => read::watch(client, &args, printer).await,
        TaskCommand::History(args) => read::history(client, &args, printer).await,
        TaskCommand::Cancel(args) => change::cancel(client, &args, printer).await,
        TaskCommand::Requeue(args) => change::requeue(client, &args, printer).await,
        TaskCommand::Claim(args) => onboard::run(client, onboard::Verb::Claim, &args, printer).await,
        TaskCommand::Start(args) => onboard::run(client, onboard::Verb::Start, &args, printer).await,
        TaskCommand::Pause(args) => onboard::run(client, onboard::Verb::Pause, &args, printer).await,
        TaskCommand::Resume(args) => onboard::run(client, onboard::Verb::Resume, &args, printer).await,
        TaskCommand::Complete(args) => onboard::run(client, onboard::Verb::Complete, &args, printer).await,
        TaskCommand::Fail(args) => onboard::run(client, onboard::Verb::Fail, &args, printer).await,
        TaskCommand::Release(args) => onboard::run(client, onboard::Verb::Release, &args, printer).await,
        TaskCommand::Prove(args) => proof::prove(client, &args, printer).await,
        TaskCommand::Verify(_) => Ok(()),
    }
}
