//! Cancel and requeue, signed by the operator.

use std::time::Duration;

use common::{
    entry::{Action, Cause},
    ids::{ClusterId, TaskId},
    task::Scope,
    wire::op::Consistency,
};
use serde_json::json;

use crate::{
    client::{
        Client,
        author::{Author, accepted, note_payload},
        tasks::{Found, Freshness},
    },
    clock::parse_duration,
    exit::Outcome,
    printer::Printer,
};

/// `fleet task cancel`, `fleet task requeue`
#[derive(Debug, clap::Args)]
pub struct ChangeArgs {
    /// Id of the task, or its beginning.
    id: String,
    /// Why, for people; the history keeps it.
    #[arg(long, default_value = "")]
    reason: String,
    /// Enter it through this agent and no other.
    #[arg(long, value_name = "AGENT")]
    pub(super) via: Option<String>,
    /// Longest wait for an outcome.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    timeout: Duration,
}

pub(super) async fn cancel(client: &Client, args: &ChangeArgs, printer: &Printer) -> Outcome {
    change(client, args, printer, |task| Action::Cancel { task }).await
}

pub(super) async fn requeue(client: &Client, args: &ChangeArgs, printer: &Printer) -> Outcome {
    let action = |task| Action::Requeue {
        task,
        cause: Cause::Operator,
    };
    change(client, args, printer, action).await
}

async fn change(client: &Client, args: &ChangeArgs, printer: &Printer, action: impl Fn(TaskId) -> Action) -> Outcome {
    let id = client.resolve(&args.id).await?;
    let freshness = Freshness {
        consistency: Consistency::Local,
        staleness_ms_max: None,
    };
    let found = client.find(id, freshness).await?;
    let author = Author::open(client)?;
    let route = author.route(&clusters_for(client, &found)).await?;
    let number = author.reserve(&route, 1).await?;
    let entry = author.sign(
        &route,
        number,
        found.view.scope,
        action(id),
        note_payload(&args.reason)?,
    );
    let entered = author.enter_or_keep(&route, &entry, args.timeout).await?;
    let verdict = accepted(entered.verdict)?;
    printer.object(&json!({
        "task": id.to_hex(), "entry": entered.id.to_hex(), "verdict": verdict, "index": entered.index.0,
        "via": entered.via, "mode": entered.mode.word(),
        "cluster": client.context.cluster_label(entered.cluster), "finality": "cluster_committed",
    }));
    Ok(())
}

/// Through which clusters a change of a task may go: a cluster's own task only through it; a task of the
/// fleet through any, its custodian first.
fn clusters_for(client: &Client, found: &Found) -> Vec<ClusterId> {
    let own = found.view.cluster.unwrap_or(found.view.through);
    match found.view.scope {
        _ if client.context.pinned.is_some() => client.context.asked_clusters(),
        Scope::Cluster => vec![own],
        Scope::Fleet => std::iter::once(own)
            .chain(client.context.clusters().filter(|id| *id != own))
            .collect(),
    }
}
