//! A drone's own verbs, through the local socket of its agent, which signs them.

use std::{path::PathBuf, time::Duration};

use common::{entry::Progress, ids::TaskId};
use serde_json::{Value, json};
use transport::local::{ErrorCode, LocalCallError, LocalClient, LocalError, Reply, Request};

use crate::{
    client::Client,
    clock::parse_duration,
    exit::{Exit, Failure, Outcome},
    printer::Printer,
};

/// What the drone does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Claim,
    Start,
    Pause,
    Resume,
    Complete,
    Fail,
    Release,
}

/// `fleet task claim|start|pause|resume|complete|fail|release`
#[derive(Debug, clap::Args)]
pub struct OnboardArgs {
    /// Id of the task, or its beginning.
    id: String,
    /// Label of the agent on this machine whose drone acts.
    #[arg(long = "as", value_name = "AGENT")]
    agent: String,
    /// For people; the history keeps it.
    #[arg(long, default_value = "")]
    reason: String,
    /// With `fail`: another try makes sense.
    #[arg(long)]
    retriable: bool,
    /// Longest wait for an outcome.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    timeout: Duration,
}

fn request(verb: Verb, task: TaskId, args: &OnboardArgs) -> Request {
    let fence = None;
    let reason = args.reason.clone();
    let progress = |progress| Request::Progress { task, fence, progress };
    match verb {
        Verb::Claim => Request::Claim { task },
        Verb::Start => progress(Progress::Started),
        Verb::Pause => progress(Progress::Paused),
        Verb::Resume => progress(Progress::Resumed),
        Verb::Complete => Request::Complete { task, fence, reason },
        Verb::Fail => Request::Fail {
            task,
            fence,
            reason,
            retriable: args.retriable,
        },
        Verb::Release => Request::Release { task, fence },
    }
}

pub(super) async fn run(client: &Client, verb: Verb, args: &OnboardArgs, printer: &Printer) -> Outcome {
    let peer = client.context.peer(&args.agent)?;
    let socket: &PathBuf = peer.socket.as_ref().ok_or_else(|| {
        Failure::new(
            Exit::Invalid,
            format!("the context names no local socket of {}", args.agent),
        )
        .todo("use an agent of this machine, or add its socket to the context file")
    })?;
    let task = client.resolve(&args.id).await?;
    let mut local = LocalClient::connect(socket).await.map_err(|e| call_failure(&e))?;
    let answer = local
        .call(&request(verb, task, args), args.timeout)
        .await
        .map_err(|e| call_failure(&e))?;
    let reply = answer.map_err(|e| local_failure(&e))?;
    printer.object(&reply_json(&task, &reply));
    Ok(())
}

fn reply_json(task: &TaskId, reply: &Reply) -> Value {
    json!({
        "task": task.to_hex(), "entry": reply.entry, "verdict": reply.verdict, "index": reply.index, "fence": reply.fence,
    })
}

fn call_failure(error: &LocalCallError) -> Failure {
    match error {
        LocalCallError::Connect { .. } => {
            Failure::new(Exit::NoConnection, error).todo("check that the agent runs on this machine")
        }
        LocalCallError::Malformed(_) => Failure::new(Exit::Failed, error),
        LocalCallError::Broken(_) | LocalCallError::Timeout(_) => Failure::new(Exit::OutcomeUnknown, error)
            .todo("look at `fleet task get`, then do it again: it does no harm"),
    }
}

/// The exit code of an agent's error.
fn local_failure(error: &LocalError) -> Failure {
    let exit = match error.code {
        ErrorCode::NoQuorum | ErrorCode::Unavailable => Exit::NoQuorum,
        ErrorCode::Denied => Exit::Denied,
        ErrorCode::Conflict | ErrorCode::Rejected => Exit::Conflict,
        ErrorCode::Invalid | ErrorCode::NotFound => Exit::Invalid,
        ErrorCode::UnknownOutcome => Exit::OutcomeUnknown,
    };
    let mut failure = Failure::new(exit, &error.reason);
    failure.id.clone_from(&error.id);
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_errors_map_to_exit_codes() {
        for (code, exit) in [
            (ErrorCode::NoQuorum, Exit::NoQuorum),
            (ErrorCode::Unavailable, Exit::NoQuorum),
            (ErrorCode::Denied, Exit::Denied),
            (ErrorCode::Conflict, Exit::Conflict),
            (ErrorCode::Rejected, Exit::Conflict),
            (ErrorCode::Invalid, Exit::Invalid),
            (ErrorCode::NotFound, Exit::Invalid),
            (ErrorCode::UnknownOutcome, Exit::OutcomeUnknown),
        ] {
            let error = LocalError {
                id: Some("ab".into()),
                ..LocalError::new(code, "why")
            };
            let failure = local_failure(&error);
            assert_eq!(
                (failure.exit, failure.what.as_str(), failure.id.as_deref()),
                (exit, "why", Some("ab"))
            );
        }
    }
}
