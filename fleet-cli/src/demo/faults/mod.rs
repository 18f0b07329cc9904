//! What the demo breaks: a leader, a validator, a whole cluster is killed and restarted; a leader, an
//! agent, a whole cluster is cut off and reached again.
//!
//! * [`scene`]: one fault while it lasts, and what was seen of it.
//!
//! # Rules
//! * A fault lasts until enough was acknowledged meanwhile, within bounds: it must be felt, and the
//!   fleet must be seen to work on.
//! * Agents that are cut off are asked all the while: what they refuse and how old they say they are is
//!   journaled.
//! * It has healed when every process of it answers and its cluster, or the validators, work as before.

mod scene;

use std::{pin::pin, time::Duration};

use common::{
    ids::ClusterId,
    task::{Task, TaskKind},
};
use futures::future::{Either, select};
use tokio::time::{Instant, sleep, sleep_until};
use transport::{local::TaskSpec, relay::Rule};

use self::scene::{Picture, Scene, leader};
use super::{
    journal::{Event, Journal},
    minority::{Probe, observe},
};
use crate::{
    client::{Client, Peer},
    dev::{cut, fleet::DevFleet},
    exit::{Exit, Failure, Outcome},
};

/// Longest wait for a restart or for agents to find each other again.
const HEAL_DEADLINE: Duration = Duration::from_secs(45);
/// How often the fleet is looked at during a fault.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// What is broken, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The leader of a cluster is killed.
    KillLeader(ClusterId),
    /// A validator is killed.
    KillValidator,
    /// All agents of a cluster are killed.
    KillCluster(ClusterId),
    /// The leader of a cluster is cut off from everybody.
    CutLeader(ClusterId),
    /// A follower of a cluster is cut off from everybody.
    CutAgent(ClusterId),
    /// A cluster is cut off from all validators.
    CutCluster(ClusterId),
}

impl Fault {
    /// The kind, as the judge knows it.
    fn kind(self) -> &'static str {
        match self {
            Self::KillLeader(_) => "leader_killed",
            Self::KillValidator => "validator_killed",
            Self::KillCluster(_) => "cluster_killed",
            Self::CutLeader(_) => "leader_cut",
            Self::CutAgent(_) => "agent_cut",
            Self::CutCluster(_) => "cluster_cut",
        }
    }

    fn cluster(self) -> Option<ClusterId> {
        match self {
            Self::KillValidator => None,
            Self::KillLeader(cluster)
            | Self::KillCluster(cluster)
            | Self::CutLeader(cluster)
            | Self::CutAgent(cluster)
            | Self::CutCluster(cluster) => Some(cluster),
        }
    }

    /// Whether the fault takes the cluster's leader away.
    fn hits_leader(self) -> bool {
        matches!(self, Self::KillLeader(_) | Self::CutLeader(_))
    }

    fn is_cut(self) -> bool {
        matches!(self, Self::CutLeader(_) | Self::CutAgent(_) | Self::CutCluster(_))
    }

    /// Whether the agents that it hits have no majority any more.
    fn leaves_minority(self) -> bool {
        matches!(self, Self::CutLeader(_) | Self::CutAgent(_))
    }
}

/// The faults and when they begin, in percent of the day. The last of them ends before the day's requests do.
pub const SCHEDULE: [(u64, Fault); 6] = [
    (3, Fault::KillLeader(ClusterId(0))),
    (14, Fault::CutLeader(ClusterId(1))),
    (27, Fault::KillValidator),
    (39, Fault::CutCluster(ClusterId(0))),
    (52, Fault::CutAgent(ClusterId(2))),
    (64, Fault::KillCluster(ClusterId(2))),
];

/// Breaks and heals one thing after another.
///
/// # Errors
/// What does not heal.
pub async fn play(
    fleet: &mut DevFleet,
    client: &Client,
    journal: &Journal,
    begin: Instant,
    seconds: u64,
    note: impl Fn(&str),
) -> Outcome {
    for (number, (percent, fault)) in SCHEDULE.into_iter().enumerate() {
        sleep_until(begin + Duration::from_millis(seconds * 10 * percent)).await;
        let hit = targets(fleet, client, fault).await?;
        let scene = Scene {
            client,
            journal,
            number,
            fault,
            before: Picture::take(client, fault, &[]).await,
            hit,
        };
        let names = scene.names();
        note(&format!("{} {}", fault.kind(), names.join(", ")));
        let effect = if fault.is_cut() {
            cut_off(fleet, &scene).await?
        } else {
            kill(fleet, &scene).await?
        };
        note(&format!("healed {}: {effect}", names.join(", ")));
        journal.record(Event::Healed { fault: number, effect });
    }
    Ok(())
}

async fn kill(fleet: &mut DevFleet, scene: &Scene<'_>) -> Outcome<String> {
    let names = scene.names();
    scene.has_begun();
    fleet.kill(&names).await?;
    let effect = scene.watch().await;
    fleet.start(&names)?;
    fleet.wait_ready(scene.client, &names, HEAL_DEADLINE).await?;
    Ok(effect)
}

async fn cut_off(fleet: &mut DevFleet, scene: &Scene<'_>) -> Outcome<String> {
    let probe = match scene.fault.cluster().filter(|_| scene.fault.leaves_minority()) {
        Some(cluster) => Some(Probe::sign(scene.client, cluster, &probe_task(scene)?).await?),
        None => None,
    };
    let target = scene.target();
    cut::cut(&fleet.layout, &fleet.plan, &target, None, Rule::CUT).await?;
    scene.has_begun();
    let observed = observe(scene.client, scene.journal, scene.number, &scene.hit, probe.as_ref());
    let effect = match select(pin!(scene.watch()), pin!(observed)).await {
        Either::Left((effect, _)) => effect,
        Either::Right(_) => String::new(),
    };
    cut::heal(&fleet.layout, &fleet.plan, &[]).await?;
    fleet.wait_ready(scene.client, &scene.names(), HEAL_DEADLINE).await?;
    if let Some(probe) = probe {
        probe.settle(scene.client).await?;
    }
    Ok(effect)
}

/// A task that is offered to agents without a majority.
fn probe_task(scene: &Scene<'_>) -> Outcome<Task> {
    TaskSpec::new(format!("probe-{}", scene.number), TaskKind::Survey)
        .resolve(&scene.client.context.genesis)
        .map_err(|e| Failure::new(Exit::Invalid, e))
}

async fn targets(fleet: &DevFleet, client: &Client, fault: Fault) -> Outcome<Vec<Peer>> {
    let known = |label: &String| client.context.peers.iter().find(|peer| peer.label == *label).cloned();
    match fault {
        Fault::KillValidator => {
            let validators = client.context.validators();
            let second = validators.get(1).or(validators.first());
            second
                .map(|peer| vec![(*peer).clone()])
                .ok_or_else(|| Failure::new(Exit::Failed, "the fleet has no validator"))
        }
        Fault::KillCluster(cluster) | Fault::CutCluster(cluster) => {
            let names = fleet.plan.meant_by(&client.context.cluster_label(cluster))?;
            Ok(names.iter().filter_map(known).collect())
        }
        Fault::KillLeader(cluster) | Fault::CutLeader(cluster) | Fault::CutAgent(cluster) => {
            let leader = wait_leader(client, cluster).await?;
            let agents = client.context.agents(Some(cluster));
            let is_meant = |peer: &&Peer| (peer.label == leader) == fault.hits_leader();
            Ok(agents.into_iter().find(is_meant).cloned().into_iter().collect())
        }
    }
}

async fn wait_leader(client: &Client, cluster: ClusterId) -> Outcome<String> {
    let end = Instant::now() + HEAL_DEADLINE;
    loop {
        if let Some((label, _)) = leader(client, cluster, &[]).await {
            return Ok(label);
        }
        if Instant::now() > end {
            let label = client.context.cluster_label(cluster);
            return Err(Failure::new(Exit::Failed, format!("{label} has no leader")));
        }
        sleep(LOOK_EVERY).await;
    }
}
