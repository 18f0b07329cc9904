//! What the wire says of tasks, in JSON and in the words of tables.

use common::{
    ids::{TaskId, to_hex},
    task::{Task, TaskState},
    verdict::Verdict,
    wire::op::{Consistency, EventView, Finality},
};
use serde_json::{Value, json};
use transport::local::{fixed::format_fixed, spec::place_to_json};

use crate::{
    client::{Context, aged::Read, tasks::Found},
    clock::format_time,
};

/// A verdict as a word and, if rejected, a reason.
#[must_use]
pub fn verdict_words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Granted => "granted".into(),
        Verdict::Late => "late".into(),
        Verdict::Rejected(reason) => format!("rejected: {reason}"),
    }
}

/// Bytes as text where they are printable text, else in hexadecimal digits with `0x`.
#[must_use]
pub fn text_or_hex(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", to_hex(bytes)),
    }
}

/// A task as a row: everything that one look should show.
#[must_use]
pub fn task_row(context: &Context, found: &Found) -> Value {
    let view = &found.view;
    let (finality, height) = finality_words(&view.finality);
    json!({
        "id": view.id.to_hex(),
        "short": short(&view.id),
        "key": text_or_hex(&view.task.key),
        "state": view.state.word(),
        "kind": view.task.kind,
        "priority": view.task.priority,
        "scope": view.scope,
        "author": context.device_label(&view.author),
        "through": context.cluster_label(view.through),
        "cluster": view.cluster.map(|id| context.cluster_label(id)),
        "holder": view.holder.map(|holder| context.device_label(&holder.device)),
        "fence": view.holder.map(|holder| transport::local::FenceJson::from(holder.fence)),
        "attempts": view.attempts,
        "percent": view.percent,
        "deadline": view.task.deadline.map(format_time),
        "custody_until": view.custody_until.map(format_time),
        "finality": finality,
        "final_height": height,
        "read": read_context(context, &found.read, &found.from),
    })
}

/// A row with the task's whole content.
#[must_use]
pub fn task_object(context: &Context, found: &Found) -> Value {
    let mut row = task_row(context, found);
    if let (Value::Object(row), Value::Object(content)) = (&mut row, content(&found.view.task, context)) {
        row.remove("short");
        row.extend(content);
    }
    row
}

fn content(task: &Task, context: &Context) -> Value {
    let places: Vec<Value> = task
        .places
        .iter()
        .map(|place| serde_json::from_str(&place_to_json(place)).unwrap_or(Value::Null))
        .collect();
    let labels: serde_json::Map<String, Value> = task
        .labels
        .iter()
        .map(|(name, value)| (name.to_string(), json!(value.as_str())))
        .collect();
    json!({
        "revision": task.revision,
        "earliest_start": task.earliest_start.map(format_time),
        "places": places,
        "payload_g": task.payload_g,
        "requester": task.requester.as_str(),
        "labels": labels,
        "capabilities": task.constraints.capabilities.iter().map(|c| c.as_str()).collect::<Vec<_>>(),
        "only_cluster": task.constraints.cluster.map(|id| context.cluster_label(id)),
        "after": task.after.iter().map(|id| id.to_hex()).collect::<Vec<_>>(),
        "on_lease_loss": task.on_lease_loss,
        "after_custody": task.after_custody,
        "max_attempts": task.attempts_max,
        "payload": text_or_hex(&task.payload),
    })
}

/// Who said it, how fresh it is now.
#[must_use]
pub fn read_context(context: &Context, read: &Read, from: &str) -> Value {
    let read = read.now();
    json!({
        "from": from,
        "consistency": read.consistency,
        "mode": read.mode.word(),
        "leader": read.leader.map(|id| context.raft_label(id)),
        "applied": read.applied.0,
        "term": read.term.0,
        "staleness_ms": read.staleness_ms,
        "global_height": read.global_height.0,
        "global_age_ms": read.global_age_ms,
    })
}

/// The same in one line for people.
#[must_use]
pub fn read_words(read: &Read, from: &str) -> String {
    let read = read.now();
    let consistency = match read.consistency {
        Consistency::Linearizable => "linearizable",
        Consistency::Local => "local",
        Consistency::Final => "final",
    };
    let mode = read.mode.word();
    format!("{consistency} from {from}, mode {mode}, age {}", age(read.staleness_ms))
}

fn finality_words(finality: &Finality) -> (String, Option<u64>) {
    match finality {
        Finality::Buffered => ("buffered".into(), None),
        Finality::Refused { verdict } => (format!("refused ({})", verdict_words(verdict)), None),
        Finality::ClusterCommitted => ("cluster_committed".into(), None),
        Finality::Final { height, verdict } => match verdict {
            Verdict::Granted => ("final".into(), Some(height.0)),
            other => (format!("final ({})", verdict_words(other)), Some(height.0)),
        },
    }
}

/// An event of a task's history.
#[must_use]
pub fn event_row(context: &Context, event: &EventView) -> Value {
    json!({
        "what": event.what.as_str(),
        "state": event.state.word(),
        "verdict": verdict_words(&event.verdict),
        "author": event.author.map(|id| context.device_label(&id)),
        "cluster": event.cluster.map(|id| context.cluster_label(id)),
        "index": event.index.map(|index| index.0),
        "height": event.height.map(|height| height.0),
        "note": text_or_hex(&event.note),
        "entry": event.entry.map(|id| id.to_hex()),
    })
}

/// The first digits of a task's id, for tables.
#[must_use]
pub fn short(id: &TaskId) -> String {
    id.to_hex()[..12].to_owned()
}

/// Counts by state as an object, without the zeros.
#[must_use]
pub fn counts(tasks: &[u32; 10]) -> Value {
    let pairs = TaskState::ALL.iter().zip(tasks).filter(|(_, count)| **count > 0);
    Value::Object(
        pairs
            .map(|(state, count)| (state.word().to_owned(), json!(count)))
            .collect(),
    )
}

/// Milliseconds as seconds for people; `unknown` for nothing.
#[must_use]
pub fn age(ms: Option<u64>) -> String {
    ms.map_or("unknown".into(), |ms| format!("{} s", format_fixed(ms as i64, 3)))
}
