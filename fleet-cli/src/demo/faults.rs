//! What the demo breaks: a leader, a validator, a whole cluster. Each is killed, watched, restarted.
//!
//! # Rules
//! * A fault lasts until enough was acknowledged meanwhile, within bounds: it must be felt, and the
//!   fleet must be seen to work on.
//! * It has healed when every process of it answers and its cluster, or the validators, work as before.

use std::time::Duration;

use common::{ids::ClusterId, wire::op::OpRequest};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    journal::{Event, Journal},
    judge::ACKNOWLEDGED_PER_FAULT_MIN,
};
use crate::{
    client::Client,
    dev::fleet::DevFleet,
    exit::{Exit, Failure, Outcome},
};

/// Shortest fault.
const LASTS_MIN: Duration = Duration::from_secs(4);
/// Longest fault: below custody, which would end.
const LASTS_MAX: Duration = Duration::from_secs(9);
/// Longest wait for a restart.
const HEAL_DEADLINE: Duration = Duration::from_secs(45);
/// A process that does not answer for this long is silent.
const SILENCE: Duration = Duration::from_millis(600);
/// How often the fleet is looked at during a fault.
const LOOK_EVERY: Duration = Duration::from_millis(150);

/// What is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The leader of a cluster.
    Leader(ClusterId),
    /// A validator.
    Validator,
    /// All agents of a cluster.
    Cluster(ClusterId),
}

impl Target {
    fn word(self) -> &'static str {
        match self {
            Self::Leader(_) => "leader",
            Self::Validator => "validator",
            Self::Cluster(_) => "cluster",
        }
    }
}

/// The faults and when they begin, in percent of the day.
pub const SCHEDULE: [(u64, Target); 3] = [
    (10, Target::Leader(ClusterId(0))),
    (36, Target::Validator),
    (62, Target::Cluster(ClusterId(2))),
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
    for (fault, (percent, target)) in SCHEDULE.into_iter().enumerate() {
        sleep_until(begin + Duration::from_millis(seconds * 10 * percent)).await;
        let names = targets(fleet, client, target).await?;
        let before = Picture::take(client, target, &[]).await;
        note(&format!("killing {} {}", target.word(), names.join(", ")));
        journal.record(Event::Killed {
            fault,
            kind: target.word().into(),
            targets: names.clone(),
        });
        fleet.kill(&names).await?;
        let effect = watch(client, journal, target, &names, &before).await;
        fleet.start(&names)?;
        fleet.wait_ready(client, &names, HEAL_DEADLINE).await?;
        note(&format!("restarted {}: {effect}", names.join(", ")));
        journal.record(Event::Healed { fault, effect });
    }
    Ok(())
}

async fn targets(fleet: &DevFleet, client: &Client, target: Target) -> Outcome<Vec<String>> {
    match target {
        Target::Cluster(cluster) => fleet.plan.meant_by(&client.context.cluster_label(cluster)),
        Target::Validator => {
            let validators = client.context.validators();
            let label = validators.get(1).or(validators.first()).map(|peer| peer.label.clone());
            label
                .map(|label| vec![label])
                .ok_or_else(|| Failure::new(Exit::Failed, "the fleet has no validator"))
        }
        Target::Leader(cluster) => {
            let end = Instant::now() + HEAL_DEADLINE;
            loop {
                if let Some((label, _)) = leader(client, cluster, &[]).await {
                    return Ok(vec![label]);
                }
                if Instant::now() > end {
                    return Err(Failure::new(
                        Exit::Failed,
                        format!("{} has no leader", client.context.cluster_label(cluster)),
                    ));
                }
                sleep(LOOK_EVERY).await;
            }
        }
    }
}

/// The leader of a cluster, by its own word, and its term. `down` are not asked: they would be waited for.
async fn leader(client: &Client, cluster: ClusterId, down: &[String]) -> Option<(String, u64)> {
    let mut agents = client.context.agents(Some(cluster));
    agents.retain(|peer| !down.contains(&peer.label));
    let statuses = client.agent_status(&agents).await;
    let leads = agents
        .iter()
        .zip(statuses)
        .filter_map(|(peer, status)| Some((peer, status.ok()?)));
    leads
        .filter(|(_, status)| status.is_leader)
        .map(|(peer, status)| (peer.label.clone(), status.context.term.0))
        .max_by_key(|(_, term)| *term)
}

/// What is looked at before and during a fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Picture {
    leader: Option<(String, u64)>,
    height: u64,
}

impl Picture {
    async fn take(client: &Client, target: Target, down: &[String]) -> Self {
        let leader = match target {
            Target::Leader(cluster) | Target::Cluster(cluster) => leader(client, cluster, down).await,
            Target::Validator => None,
        };
        let mut validators = client.context.validators();
        validators.retain(|peer| !down.contains(&peer.label));
        let statuses = client.validator_status(&validators).await;
        let height = statuses
            .iter()
            .flatten()
            .map(|status| status.height.0)
            .max()
            .unwrap_or(0);
        Self { leader, height }
    }
}

/// Watches a fault until it has lasted long enough, and says what was seen.
async fn watch(client: &Client, journal: &Journal, target: Target, names: &[String], before: &Picture) -> String {
    let begin = Instant::now();
    let acknowledged = journal.totals();
    let mut new_leader: Option<(String, u64, Duration)> = None;
    let mut last = Picture::default();
    loop {
        last = Picture::take(client, target, names).await.or(last);
        if new_leader.is_none()
            && let (Target::Leader(_), Some((label, term))) = (target, &last.leader)
            && !names.contains(label)
        {
            new_leader = Some((label.clone(), *term, begin.elapsed()));
        }
        let since = journal.totals().submits - acknowledged.submits;
        let is_enough = since > ACKNOWLEDGED_PER_FAULT_MIN && begin.elapsed() >= LASTS_MIN;
        if is_enough || begin.elapsed() >= LASTS_MAX {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    let hit: Vec<_> = client
        .context
        .peers
        .iter()
        .filter(|peer| names.contains(&peer.label))
        .collect();
    let answers = client.ask_all_within(&hit, &OpRequest::Status, SILENCE).await;
    let is_silent = answers.iter().all(Result::is_err);
    let writes = journal.totals().acknowledged - acknowledged.acknowledged;
    let blocks = last.height.saturating_sub(before.height);
    let rest = format!("{writes} writes acknowledged and {blocks} blocks finalized meanwhile");
    match target {
        Target::Leader(_) => match (new_leader, &before.leader) {
            (Some((label, term, after)), Some((_, old))) => {
                format!(
                    "{label} leads after {} ms, term {old} to {term}; {rest}",
                    after.as_millis()
                )
            }
            _ => format!("NO NEW LEADER in {} ms; {rest}", begin.elapsed().as_millis()),
        },
        Target::Validator if is_silent && blocks > 0 => {
            format!(
                "it did not answer, the others finalized from height {} to {}; {rest}",
                before.height, last.height
            )
        }
        Target::Validator => format!("heights {} to {}; {rest}", before.height, last.height),
        Target::Cluster(_) => {
            let silent = if is_silent {
                "none of it answered"
            } else {
                "IT STILL ANSWERED"
            };
            format!(
                "{silent} for {} ms, the other clusters went on; {rest}",
                begin.elapsed().as_millis()
            )
        }
    }
}

impl Picture {
    /// This picture; a height that nobody told keeps the one known before.
    fn or(self, before: Self) -> Self {
        Self {
            height: self.height.max(before.height),
            ..self
        }
    }
}
