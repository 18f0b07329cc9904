//! One fault while it lasts: what was there before, what was seen meanwhile, when it has lasted long enough.

use std::time::Duration;

use common::{ids::ClusterId, wire::op::OpRequest};
use tokio::time::{Instant, sleep};

use super::{
    super::{
        honesty::{READS_MIN, REFUSALS_MIN},
        journal::{Event, Journal, Totals},
        judge::ACKNOWLEDGED_PER_FAULT_MIN,
    },
    Fault, LOOK_EVERY,
};
use crate::{
    client::{Client, Peer},
    dev::cut,
};

/// Shortest fault.
const LASTS_MIN: Duration = Duration::from_secs(4);
/// Longest fault: below custody, which would end.
const LASTS_MAX: Duration = Duration::from_secs(9);
/// A process that does not answer for this long is silent.
const SILENCE: Duration = Duration::from_millis(600);

/// One fault.
pub struct Scene<'a> {
    /// Asks.
    pub client: &'a Client,
    /// Notes.
    pub journal: &'a Journal,
    /// Which of the schedule.
    pub number: usize,
    /// What is broken.
    pub fault: Fault,
    /// What was seen before it.
    pub before: Picture,
    /// The processes that it hits.
    pub hit: Vec<Peer>,
}

/// What is looked at before and during a fault.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    leader: Option<(String, u64)>,
    height: u64,
    final_seq: u64,
}

/// The leader of a cluster, by its own word, and its term. `down` are not asked: they would be waited for.
pub async fn leader(client: &Client, cluster: ClusterId, down: &[String]) -> Option<(String, u64)> {
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

impl Picture {
    /// Looks. `down` are not asked.
    pub async fn take(client: &Client, fault: Fault, down: &[String]) -> Self {
        let (mut found, mut final_seq) = (None, 0);
        if let Some(cluster) = fault.cluster() {
            found = leader(client, cluster, down).await;
            let mut agents = client.context.agents(Some(cluster));
            agents.retain(|peer| !down.contains(&peer.label));
            let statuses = client.agent_status(&agents).await;
            final_seq = statuses
                .iter()
                .flatten()
                .map(|status| status.final_seq.0)
                .max()
                .unwrap_or(0);
        }
        let mut validators = client.context.validators();
        validators.retain(|peer| !down.contains(&peer.label));
        let statuses = client.validator_status(&validators).await;
        let height = statuses.iter().flatten().map(|status| status.height.0).max();
        Self {
            leader: found,
            height: height.unwrap_or(0),
            final_seq,
        }
    }

    /// This picture; a number that nobody told keeps the one known before.
    fn or(self, before: Self) -> Self {
        Self {
            height: self.height.max(before.height),
            final_seq: self.final_seq.max(before.final_seq),
            ..self
        }
    }
}

impl Scene<'_> {
    /// Labels of the processes that it hits.
    pub fn names(&self) -> Vec<String> {
        self.hit.iter().map(|peer| peer.label.clone()).collect()
    }

    /// What is to be cut off.
    pub fn target(&self) -> cut::Target {
        match self.fault {
            Fault::CutCluster(cluster) => cut::Target::Cluster {
                name: self.client.context.cluster_label(cluster),
            },
            _ => cut::Target::Agent {
                name: self.hit.first().map(|peer| peer.label.clone()).unwrap_or_default(),
            },
        }
    }

    /// Journals that the fault is there.
    pub fn has_begun(&self) {
        self.journal.record(Event::Broken {
            fault: self.number,
            kind: self.fault.kind().into(),
            targets: self.names(),
        });
    }

    /// Watches until the fault has lasted long enough, and says what was seen.
    pub async fn watch(&self) -> String {
        let begin = Instant::now();
        let at_begin = self.journal.totals();
        // Processes that are down would be waited for; a cut-off leader calls itself one.
        let down = if matches!(self.fault, Fault::CutCluster(_)) {
            Vec::new()
        } else {
            self.names()
        };
        let mut new_leader: Option<(String, u64, Duration)> = None;
        let mut last = Picture::default();
        loop {
            last = Picture::take(self.client, self.fault, &down).await.or(last);
            if new_leader.is_none()
                && let Some((label, term)) = &last.leader
                && !self.names().contains(label)
            {
                new_leader = Some((label.clone(), *term, begin.elapsed()));
            }
            let is_felt = begin.elapsed() >= LASTS_MIN && self.is_felt(&at_begin);
            if is_felt || begin.elapsed() >= LASTS_MAX {
                return self.effect(&at_begin, new_leader, &last, begin.elapsed()).await;
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether as much was seen as the judge wants to see.
    fn is_felt(&self, at_begin: &Totals) -> bool {
        let now = self.journal.totals();
        let mut is_felt = now.submits - at_begin.submits > ACKNOWLEDGED_PER_FAULT_MIN;
        if matches!(self.fault, Fault::CutCluster(_)) {
            is_felt &= now.islands > at_begin.islands;
        }
        if self.fault.is_cut() {
            is_felt &= now.reads - at_begin.reads >= 2 * READS_MIN;
        }
        if self.fault.leaves_minority() {
            is_felt &= now.refused - at_begin.refused >= REFUSALS_MIN;
        }
        is_felt
    }

    async fn effect(
        &self,
        at_begin: &Totals,
        new_leader: Option<(String, u64, Duration)>,
        last: &Picture,
        lasted: Duration,
    ) -> String {
        let now = self.journal.totals();
        let writes = now.acknowledged - at_begin.acknowledged;
        let blocks = last.height.saturating_sub(self.before.height);
        let rest = format!("{writes} writes acknowledged and {blocks} blocks finalized meanwhile");
        let refused = format!("{} writes refused for want of a quorum", now.refused - at_begin.refused);
        let led = match (&new_leader, &self.before.leader) {
            (Some((label, term, after)), Some((_, old))) => {
                format!("{label} leads after {} ms, term {old} to {term}", after.as_millis())
            }
            _ => format!("NO NEW LEADER in {} ms", lasted.as_millis()),
        };
        match self.fault {
            Fault::KillLeader(_) => format!("{led}; {rest}"),
            Fault::CutLeader(_) => format!("{led}; {refused}; {rest}"),
            Fault::CutAgent(_) => format!("the others went on without it; {refused}; {rest}"),
            Fault::CutCluster(_) => format!(
                "the cluster went on{}, {} of its batches became final; {rest}",
                if now.islands > at_begin.islands {
                    " and called itself an island"
                } else {
                    ""
                },
                last.final_seq.saturating_sub(self.before.final_seq)
            ),
            Fault::KillValidator if blocks > 0 && self.is_silent().await => format!(
                "it did not answer, the others finalized from height {} to {}; {rest}",
                self.before.height, last.height
            ),
            Fault::KillValidator => format!("heights {} to {}; {rest}", self.before.height, last.height),
            Fault::KillCluster(_) => {
                let silent = if self.is_silent().await {
                    "none of it answered"
                } else {
                    "IT STILL ANSWERED"
                };
                format!(
                    "{silent} for {} ms, the other clusters went on; {rest}",
                    lasted.as_millis()
                )
            }
        }
    }

    async fn is_silent(&self) -> bool {
        let hit: Vec<&Peer> = self.hit.iter().collect();
        let answers = self.client.ask_all_within(&hit, &OpRequest::Status, SILENCE).await;
        answers.iter().all(Result::is_err)
    }
}
