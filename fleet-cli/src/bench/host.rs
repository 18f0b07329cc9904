//! The fleet of a measurement, and connections to it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{
    ids::{ClusterId, to_hex},
    wire::op::{OpAnswer, OpRequest, Telemetry},
};
use tokio::time::{Instant, sleep};

use super::Target;
use crate::{
    client::{AskError, Client, Peer, connect},
    clock,
    dev::{fleet::DevFleet, layout::Layout, plan::Plan},
    exit::{Exit, Failure, Outcome},
    files,
};

/// Longest wait for a fleet to begin, and for one to be whole again after a kill.
pub const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Connections at most: an agent keeps this many places for operators.
const CONNECTIONS_MAX: u32 = 8;
/// Authors, so that no author's rate is what is measured.
pub const AUTHORS: u32 = 16;
/// `f_type` of a file system in memory (statfs(2)).
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// The bound that a run of some seconds would reach: nothing leaves the outbox while no validator runs. It stands in each result.
pub const RAISED: &str = "[limits]\noutbox_bytes = \"8GiB\"\n";

/// A running fleet with the directory it lives in.
pub struct Host {
    /// Its processes.
    pub fleet: DevFleet,
    dir: PathBuf,
}

impl Host {
    /// Makes and starts the fleet of `plan`, and waits until it is ready. Whatever happens after, its processes end with this value.
    ///
    /// # Errors
    /// A directory in use or in memory; a process that does not start, with the end of its log.
    pub async fn start(mut plan: Plan, dir: Option<&Path>, deadline: Duration) -> Outcome<Self> {
        plan.operators = AUTHORS;
        let dir = make_dir(dir)?;
        let fleet = DevFleet::open(Layout::new(&dir), Some(plan))?.killed_on_drop();
        let mut host = Self { fleet, dir };
        let names = host.fleet.plan.names();
        host.fleet.start(&names)?;
        let context = host.fleet.layout.context();
        let fleet = &mut host.fleet;
        connect::with(&context, async |client| {
            fleet.wait_ready(client, &names, deadline).await
        })
        .await?;
        Ok(host)
    }

    /// Process ids of all that run.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        self.fleet.pids().into_iter().map(|(_, pid)| pid).collect()
    }

    /// Connections for `clients` loops.
    ///
    /// # Errors
    /// Of the files of the fleet.
    pub fn connections(&self, clients: u32) -> Outcome<Vec<Arc<Client>>> {
        let count = clients.min(CONNECTIONS_MAX);
        let open = |_| connect::open(&self.fleet.layout.context()).map(Arc::new);
        (0..count).map(open).collect()
    }

    /// Ends the fleet and removes what it wrote.
    ///
    /// # Errors
    /// Of the file system.
    pub async fn end(mut self) -> Outcome {
        let names = self.fleet.plan.names();
        self.fleet.kill(&names).await?;
        // Nothing depends on it: what cannot be removed stays where it is.
        let _ = std::fs::remove_dir_all(&self.dir);
        Ok(())
    }
}

fn make_dir(dir: Option<&Path>) -> Outcome<PathBuf> {
    let path = match dir {
        Some(dir) if std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) => {
            return Err(
                Failure::new(Exit::RefusedForSafety, format!("{} is not empty", dir.display()))
                    .todo("choose another --dir"),
            );
        }
        Some(dir) => dir.to_owned(),
        None => std::env::temp_dir().join(format!("muster-bench-{}", to_hex(&clock::random::<4>()?))),
    };
    files::private_dir(&path)?;
    let found = rustix::fs::statfs(&path)
        .map_err(|e| Failure::new(Exit::Failed, format!("cannot look at {}: {e}", path.display())))?;
    if found.f_type as i64 == TMPFS_MAGIC {
        return Err(Failure::new(
            Exit::Invalid,
            format!("{} lies in memory: flushes would cost nothing there", path.display()),
        )
        .todo("name a directory on a disk with --dir, or with TMPDIR"));
    }
    Ok(path)
}

/// Closes connections in good order, so that the agents have their places free.
pub async fn close(clients: &[Arc<Client>]) {
    futures::future::join_all(clients.iter().map(|client| client.close())).await;
}

/// Whom clients ask, in turn.
///
/// # Errors
/// A cluster without a leader after [`READY_DEADLINE`].
pub async fn targets(client: &Client, target: Target) -> Outcome<Vec<Peer>> {
    match target {
        Target::All => Ok(client.context.agents(None).into_iter().cloned().collect()),
        Target::Leader => {
            let mut leaders = Vec::new();
            for cluster in client.context.clusters() {
                leaders.push(leader(client, cluster).await?);
            }
            Ok(leaders)
        }
    }
}

/// The leader of a cluster, waited for.
///
/// # Errors
/// None after [`READY_DEADLINE`].
pub async fn leader(client: &Client, cluster: ClusterId) -> Outcome<Peer> {
    let agents = client.context.agents(Some(cluster));
    let end = Instant::now() + READY_DEADLINE;
    loop {
        let statuses = client.agent_status(&agents).await;
        let leads = |status: &Result<common::wire::op::AgentStatus, _>| status.as_ref().is_ok_and(|s| s.is_leader);
        if let Some(at) = statuses.iter().position(leads) {
            return Ok(agents[at].clone());
        }
        if Instant::now() >= end {
            let label = client.context.cluster_label(cluster);
            return Err(Failure::new(Exit::NoQuorum, format!("cluster {label} has no leader")));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Makes every connection before the first measured request.
///
/// # Errors
/// An agent that does not answer.
pub async fn warm(clients: &[Arc<Client>], targets: &[Peer]) -> Outcome {
    for client in clients {
        for peer in targets {
            let answer = client.ask(peer, &OpRequest::Status, Duration::from_secs(5)).await;
            answer.map_err(|error| client.failure_of(peer, error))?;
        }
    }
    Ok(())
}

/// What a process measured of itself.
///
/// # Errors
/// No answer, or one to something else.
pub async fn telemetry(client: &Client, peer: &Peer) -> Outcome<Telemetry> {
    match client.ask(peer, &OpRequest::Telemetry, Duration::from_secs(10)).await {
        Ok(OpAnswer::Telemetry(telemetry)) => Ok(telemetry),
        Ok(_) => Err(client.failure_of(peer, AskError::Malformed)),
        Err(error) => Err(client.failure_of(peer, error)),
    }
}
