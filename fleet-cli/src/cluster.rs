//! `fleet cluster`: the regional clusters and their agents.

use common::wire::op::{AgentStatus, Mode, OpAnswer, OpRequest};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::{AskError, Client, Peer, READ_DEADLINE, aged::age},
    exit::{Exit, Failure, Outcome},
    printer::{Printer, column, wide},
    view,
};

/// `fleet cluster`
#[derive(Debug, clap::Subcommand)]
pub enum ClusterCommand {
    /// One line per cluster.
    List,
    /// One line per agent.
    Status {
        /// Only this cluster.
        cluster: Option<String>,
    },
    /// Hands the leadership of a cluster over. Needs the role op.admin.
    TransferLeader {
        /// Which cluster.
        cluster: String,
        /// Label of the agent that shall lead; by default the one that follows best.
        #[arg(long, value_name = "AGENT")]
        to: Option<String>,
    },
}

/// Runs `fleet cluster`.
///
/// # Errors
/// With the exit code of the fate.
pub async fn run(client: &Client, command: ClusterCommand, printer: &Printer) -> Outcome {
    match command {
        ClusterCommand::List => {
            printer.rows(&COLUMNS, &rows(client).await);
            Ok(())
        }
        ClusterCommand::Status { cluster } => {
            let cluster = cluster.map(|label| client.context.cluster(&label)).transpose()?;
            let agents = client.context.agents(cluster);
            let sent = Instant::now();
            let mut statuses = client.agent_status(&agents).await;
            age_all(&mut statuses, sent);
            let rows: Vec<Value> = agents
                .iter()
                .zip(statuses)
                .map(|(peer, status)| agent_row(client, peer, status))
                .collect();
            let columns = [
                column("AGENT", "agent"),
                column("CLUSTER", "cluster"),
                column("ROLE", "role"),
                column("MODE", "mode"),
                column("SINCE", "mode_age"),
                column("TERM", "term"),
                column("APPLIED", "applied"),
                column("HEIGHT", "global_height"),
                column("AGE", "age"),
                column("OUTBOX", "outbox_batches"),
                column("BUFFER", "buffer_entries"),
                wide("BYTES", "outbox_bytes"),
                wide("FINAL SEQ", "final_seq"),
                wide("QUEUE DIGEST", "queue_digest"),
                wide("UPTIME", "uptime"),
                wide("ALARMS", "alarms"),
                wide("PROBLEM", "problem"),
            ];
            printer.rows(&columns, &rows);
            Ok(())
        }
        ClusterCommand::TransferLeader { cluster, to } => {
            transfer_leader(client, &cluster, to.as_deref(), printer).await
        }
    }
}

/// Asks the leader to hand over, and says who leads then.
async fn transfer_leader(client: &Client, cluster: &str, to: Option<&str>, printer: &Printer) -> Outcome {
    let id = client.context.cluster(cluster)?;
    let wanted = to.map(|label| client.context.peer(label)).transpose()?;
    if let Some(peer) = wanted.filter(|peer| peer.cluster != Some(id)) {
        let text = format!("{} is no agent of {cluster}", peer.label);
        return Err(Failure::new(Exit::Usage, text));
    }
    let agents = client.context.agents(Some(id));
    let statuses = client.agent_status(&agents).await;
    let answered: Vec<(&Peer, &AgentStatus)> = agents
        .iter()
        .zip(&statuses)
        .filter_map(|(peer, status)| Some((*peer, status.as_ref().ok()?)))
        .collect();
    // Of two that believe it, the one of the later term.
    let leader = answered.iter().filter(|(_, status)| status.is_leader);
    let leader = leader.max_by_key(|(_, status)| status.context.term);
    let Some((peer, status)) = leader else {
        let exit = if answered.is_empty() {
            Exit::NoConnection
        } else {
            Exit::NoQuorum
        };
        return Err(
            Failure::new(exit, format!("no agent of {cluster} that answers leads it")).means("nothing changed"),
        );
    };
    let to = match wanted {
        None => None,
        Some(wanted) => Some(
            *status
                .voters
                .iter()
                .find(|voter| voter.idx() == wanted.idx)
                .ok_or_else(|| {
                    Failure::new(Exit::Invalid, format!("{} is no voter of {cluster}", wanted.label))
                        .means("nothing changed")
                })?,
        ),
    };
    let request = OpRequest::TransferLeader { to };
    let answer = client.ask(peer, &request, READ_DEADLINE).await;
    let (now, term) = match answer.map_err(|error| client.failure_of(peer, error))? {
        OpAnswer::Leader { leader, term } => (leader, term),
        _ => return Err(client.failure_of(peer, AskError::Malformed)),
    };
    let label = now.map(|id| client.context.raft_label(id));
    let is_done = match to {
        Some(to) => now == Some(to),
        None => now.is_some() && now != status.context.leader,
    };
    if !is_done {
        let now = label.unwrap_or_else(|| "nobody".into());
        return Err(Failure::new(
            Exit::OutcomeUnknown,
            format!("{cluster} is led by {now} in term {}", term.0),
        )
        .means("the leadership was not taken over in time")
        .todo("look at `fleet cluster status`, then ask again"));
    }
    printer.object(&json!({"cluster": cluster, "from": peer.label, "leader": label, "term": term.0}));
    Ok(())
}

/// Columns of [`rows`].
pub const COLUMNS: [crate::printer::Column; 13] = [
    column("CLUSTER", "cluster"),
    column("LEADER", "leader"),
    column("TERM", "term"),
    column("UP", "up"),
    column("QUORUM", "quorum"),
    column("MODE", "mode"),
    column("SINCE", "mode_age"),
    column("APART", "apart"),
    column("LAG", "lag_heights"),
    column("AGE", "age"),
    column("OUTBOX", "outbox_batches"),
    wide("ALARMS", "alarms"),
    wide("TASKS", "tasks"),
];

/// Brings ages up to now, in what was asked for at `sent`.
fn age_all(statuses: &mut [Result<AgentStatus, AskError>], sent: Instant) {
    for status in statuses.iter_mut().flatten() {
        age(&mut status.context, sent.elapsed());
    }
}

/// One row per cluster, from all agents that answer.
pub async fn rows(client: &Client) -> Vec<Value> {
    let sent = Instant::now();
    let statuses = client.agent_status(&client.context.agents(None)).await;
    rows_of(client, statuses, sent)
}

/// One row per cluster, from what all agents of the context answered to a question that was sent at `sent`.
pub fn rows_of(client: &Client, mut statuses: Vec<Result<AgentStatus, AskError>>, sent: Instant) -> Vec<Value> {
    let agents = client.context.agents(None);
    age_all(&mut statuses, sent);
    let height = statuses
        .iter()
        .flatten()
        .map(|status| status.context.global_height.0)
        .max()
        .unwrap_or(0);
    client
        .context
        .clusters()
        .map(|id| {
            let of: Vec<&AgentStatus> = agents
                .iter()
                .zip(&statuses)
                .filter(|(peer, _)| peer.cluster == Some(id))
                .filter_map(|(_, s)| s.as_ref().ok())
                .collect();
            let total = agents.iter().filter(|peer| peer.cluster == Some(id)).count();
            // The one who knows best: the leader, else who applied most.
            let best = of
                .iter()
                .max_by_key(|status| (status.is_leader, status.context.term, status.context.applied));
            let voters = best.map_or(total, |status| status.voters.len());
            let needed = common::quorum::raft_quorum(voters);
            // That they answer here does not say that they reach each other.
            let has_quorum = of.len() >= needed && of.iter().any(|status| status.context.mode != Mode::ReadOnly);
            json!({
                "cluster": client.context.cluster_label(id),
                "leader": best.and_then(|s| s.context.leader).map(|id| client.context.raft_label(id)),
                "term": best.map(|s| s.context.term.0),
                "up": format!("{}/{total}", of.len()),
                "quorum": if has_quorum { "ok" } else { "lost" },
                "mode": best.map_or("unknown", |s| s.context.mode.word()),
                "mode_age": best.map(|s| view::age(Some(s.mode_age_ms))),
                "apart": apart(best.copied(), &of),
                "lag_heights": best.map(|s| height - s.context.global_height.0),
                "age": best.map_or("unknown".into(), |s| view::age(s.context.global_age_ms)),
                "outbox_batches": best.map(|s| s.outbox_batches),
                "alarms": alarms(&of),
                "tasks": best.map(|s| view::counts(&s.tasks)),
            })
        })
        .collect()
}

/// What its agents warn of.
fn alarms(of: &[&AgentStatus]) -> Vec<String> {
    let alarms = of.iter().flat_map(|status| {
        let label = status.label.as_str();
        status.alarms.iter().map(move |alarm| format!("{label} {alarm}"))
    });
    alarms.collect()
}

/// Agents that are in another mode than the one who knows best: those on the wrong side of a cut.
fn apart(best: Option<&AgentStatus>, of: &[&AgentStatus]) -> Vec<Value> {
    let mode = best.map(|status| status.context.mode);
    of.iter()
        .filter(|status| Some(status.context.mode) != mode)
        .map(|status| {
            json!({
                "agent": status.label.as_str(),
                "mode": status.context.mode.word(),
                "mode_age": view::age(Some(status.mode_age_ms)),
            })
        })
        .collect()
}

/// A learner has no vote: it is new, or its disk is.
fn role(status: &AgentStatus) -> &'static str {
    match status {
        status if status.is_leader => "leader",
        status if status.voters.contains(&status.raft) => "follower",
        _ => "learner",
    }
}

fn agent_row(client: &Client, peer: &Peer, status: Result<AgentStatus, AskError>) -> Value {
    let cluster = peer.cluster.map(|id| client.context.cluster_label(id));
    match status {
        Ok(status) => json!({
            "agent": peer.label,
            "cluster": cluster,
            "role": role(&status),
            "incarnation": status.raft.incarnation(),
            "mode": status.context.mode.word(),
            "mode_age": view::age(Some(status.mode_age_ms)),
            "mode_age_ms": status.mode_age_ms,
            "leader": status.context.leader.map(|id| client.context.raft_label(id)),
            "term": status.context.term.0,
            "applied": status.context.applied.0,
            "last_index": status.last_index.0,
            "global_height": status.context.global_height.0,
            "staleness_ms": status.context.staleness_ms,
            "global_age_ms": status.context.global_age_ms,
            "age": view::age(status.context.global_age_ms),
            "outbox_batches": status.outbox_batches,
            "outbox_bytes": status.outbox_bytes,
            "buffer_entries": status.buffer_entries,
            "buffer_bytes": status.buffer_bytes,
            "final_seq": status.final_seq.0,
            "queue_digest": status.queue_digest.to_hex(),
            "global_digest": status.global_digest.to_hex(),
            "tasks": view::counts(&status.tasks),
            "alarms": alarms(&[&status]),
            "uptime": format!("{} s", status.uptime_us / 1_000_000),
        }),
        Err(error) => json!({
            "agent": peer.label, "cluster": cluster, "role": "down", "mode": "unknown", "age": "unknown",
            "problem": client.failure_of(peer, error).what,
        }),
    }
}

#[cfg(test)]
mod tests {
    use common::testing::Fleet;

    use super::*;
    use crate::client::testing::agent_status;

    #[test]
    fn agent_that_does_not_vote_is_a_learner() {
        let fleet = Fleet::dev();
        let mut status = agent_status(&fleet, "c1-1", Vec::new());
        assert_eq!(role(&status), "leader");
        status.is_leader = false;
        assert_eq!(role(&status), "follower");
        status.voters = Vec::new().try_into().unwrap();
        assert_eq!(role(&status), "learner");
    }
}
