//! List, get, watch, history.

use std::time::Duration;

use common::{
    task::TaskState,
    wire::op::{Finality, OpAnswer, OpRequest},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use transport::local::message::state_from_word;

use super::ReadArgs;
use crate::{
    client::{Client, aged::Read, tasks::Found},
    clock::parse_duration,
    exit::{Exit, Failure, Outcome},
    printer::{Printer, column, wide},
    view,
};

/// `fleet task list`
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    /// Only these states, separated by commas: queued, assigned, claimed, underway, paused, completed,
    /// failed, canceled, expired, unknown.
    #[arg(long, value_delimiter = ',', value_parser = parse_state)]
    state: Vec<TaskState>,
    /// At most this many.
    #[arg(long)]
    limit: Option<usize>,
    #[command(flatten)]
    pub(super) read: ReadArgs,
}

/// `fleet task get`
#[derive(Debug, clap::Args)]
pub struct GetArgs {
    /// Id of the task, or its beginning.
    id: String,
    #[command(flatten)]
    pub(super) read: ReadArgs,
}

/// `fleet task watch`
#[derive(Debug, clap::Args)]
pub struct WatchArgs {
    /// Id of the task, or its beginning.
    id: String,
    /// Longest watch.
    #[arg(long, value_parser = parse_duration)]
    deadline: Option<Duration>,
    #[command(flatten)]
    pub(super) read: ReadArgs,
}

/// `fleet task history`
#[derive(Debug, clap::Args)]
pub struct HistoryArgs {
    /// Id of the task, or its beginning.
    id: String,
    /// Ask this agent and no other.
    #[arg(long, value_name = "AGENT")]
    pub(super) via: Option<String>,
}

fn parse_state(word: &str) -> Result<TaskState, String> {
    state_from_word(word).ok_or_else(|| format!("{word:?} is no state"))
}

pub(super) async fn list(client: &Client, args: &ListArgs, printer: &Printer) -> Outcome {
    // A cluster that does not answer must not look like one without tasks.
    let listed = client.tasks(&args.state, args.read.freshness(), false).await?;
    let mut found = listed.rows;
    found.sort_by_key(|row| (std::cmp::Reverse(row.view.task.priority), row.view.id));
    let total = found.len();
    found.truncate(args.limit.unwrap_or(usize::MAX));
    let rows: Vec<Value> = found.iter().map(|row| view::task_row(&client.context, row)).collect();
    let columns = [
        column("ID", "short"),
        column("KEY", "key"),
        column("STATE", "state"),
        column("KIND", "kind"),
        column("PRIO", "priority"),
        column("CLUSTER", "cluster"),
        column("HOLDER", "holder"),
        column("FINALITY", "finality"),
        wide("SCOPE", "scope"),
        wide("AUTHOR", "author"),
        wide("TRIES", "attempts"),
        wide("DEADLINE", "deadline"),
        wide("FENCE", "fence"),
        wide("FULL ID", "id"),
    ];
    printer.rows(&columns, &rows);
    if total > rows.len() {
        printer.note(&format!("{} of {total} tasks", rows.len()));
    }
    for (from, read) in &listed.answers {
        printer.note(&view::read_words(read, from));
    }
    Ok(())
}

pub(super) async fn get(client: &Client, args: &GetArgs, printer: &Printer) -> Outcome {
    let id = client.resolve(&args.id).await?;
    let found = client.find(id, args.read.freshness()).await?;
    printer.object(&view::task_object(&client.context, &found));
    Ok(())
}

fn is_over(found: &Found) -> bool {
    let is_settled = matches!(found.view.finality, Finality::Final { .. } | Finality::Refused { .. });
    !found.view.state.is_open() && is_settled
}

pub(super) async fn watch(client: &Client, args: &WatchArgs, printer: &Printer) -> Outcome {
    let id = client.resolve(&args.id).await?;
    let end = args.deadline.map(|deadline| Instant::now() + deadline);
    let mut shown: Option<(Value, Value, Value, Value)> = None;
    loop {
        let found = client.find(id, args.read.freshness()).await?;
        let row = view::task_row(&client.context, &found);
        let field = |name: &str| row.get(name).cloned().unwrap_or(Value::Null);
        let now = (field("state"), field("holder"), field("percent"), field("finality"));
        if shown.as_ref() != Some(&now) {
            let word = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let holder = found
                .view
                .holder
                .map(|h| format!(" by {}", client.context.device_label(&h.device)));
            let text = format!(
                "{} {}{} ({})",
                view::short(&id),
                word(&now.0),
                holder.unwrap_or_default(),
                word(&now.3)
            );
            let text = format!("{text}   [{}]", view::read_words(&found.read, &found.from));
            printer.event(&row, &text);
            shown = Some(now);
        }
        if is_over(&found) {
            return Ok(());
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Err(
                Failure::new(Exit::OutcomeUnknown, "the task has not ended within the deadline")
                    .means("nothing is wrong with that")
                    .todo("watch again")
                    .id(id.to_hex()),
            );
        }
        sleep(Duration::from_millis(200)).await;
    }
}

pub(super) async fn history(client: &Client, args: &HistoryArgs, printer: &Printer) -> Outcome {
    let id = client.resolve(&args.id).await?;
    let request = OpRequest::History { task: id };
    // Its cluster knows what is not final yet; a validator knows what is.
    let freshness = super::Freshness {
        consistency: common::wire::op::Consistency::Local,
        staleness_ms_max: None,
    };
    let cluster = client
        .find(id, freshness)
        .await
        .ok()
        .and_then(|found| found.view.cluster);
    let mut peers = cluster
        .map(|cluster| client.context.agents(Some(cluster)))
        .unwrap_or_default();
    peers.extend(client.context.validators());
    let (from, events, read) = client
        .ask_until(&peers, &request, |peer, answer, sent| match answer {
            OpAnswer::History { events, context } if !events.is_empty() => {
                Some((peer.label.clone(), events, Read::new(context, sent)))
            }
            _ => None,
        })
        .await?;
    let rows: Vec<Value> = events
        .iter()
        .map(|event| view::event_row(&client.context, event))
        .collect();
    let columns = [
        column("EVENT", "what"),
        column("STATE", "state"),
        column("DECISION", "verdict"),
        column("BY", "author"),
        column("CLUSTER", "cluster"),
        column("INDEX", "index"),
        column("HEIGHT", "height"),
        column("NOTE", "note"),
        wide("ENTRY", "entry"),
    ];
    printer.rows(&columns, &rows);
    printer.note(&view::read_words(&read, &from));
    if rows.is_empty() {
        printer.object(&json!({"task": id.to_hex(), "events": 0}));
    }
    Ok(())
}
