//! Asks agents that are cut off, as an operator in their radio range would: writes through them, reads
//! from them, and journals every answer.
//!
//! # Rules
//! * A write goes to one agent and no other. Its signed bytes are the same in every try, so that what
//!   may have been written is written once.
//! * After the heal the same bytes must get their one outcome.

use std::time::Duration;

use common::{
    codec::BoundedVec,
    entry::{Action, SignedEntry},
    ids::{ClusterId, TaskId},
    task::{Scope, Task},
    wire::{
        cluster::WriteOutcome,
        op::{Consistency, OpAnswer, OpRequest, WriteRefusal},
    },
};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

use super::journal::{Event, Journal, ReadView};
use crate::{
    client::{
        AskError, Client, Peer,
        author::{Author, task_payload},
    },
    exit::{Failure, Outcome},
};

/// Between two rounds at one agent.
const PAUSE: Duration = Duration::from_millis(150);
/// Longest wait for the answer to a write.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// Longest wait for the answer to a read.
const READ_DEADLINE: Duration = Duration::from_secs(2);
/// Pages of one read.
const PAGES_MAX: usize = 16;
/// Longest wait for the outcome of a write after the heal.
const OUTCOME_DEADLINE: Duration = Duration::from_secs(20);

/// A write that is tried at one agent while it is cut off.
pub struct Probe {
    entry: SignedEntry,
    cluster: ClusterId,
}

impl Probe {
    /// Signs the write. To be made before the cut: afterwards nobody may tell which numbers were used.
    ///
    /// # Errors
    /// Of the operator's files, or nobody answers.
    pub async fn sign(client: &Client, cluster: ClusterId, task: &Task) -> Outcome<Self> {
        let author = Author::open(client)?;
        let route = author.route(&[cluster]).await?;
        let number = author.reserve(&route, 1).await?;
        let entry = author.sign(&route, number, Scope::Cluster, Action::Submit, task_payload(task));
        Ok(Self { entry, cluster })
    }

    async fn try_at(&self, client: &Client, journal: &Journal, fault: usize, peer: &Peer) {
        let begin = Instant::now();
        let answer = client
            .ask(peer, &OpRequest::Enter(self.entry.clone()), WRITE_DEADLINE)
            .await;
        let outcome = match answer {
            Ok(OpAnswer::Write { outcome, .. }) => match outcome {
                WriteOutcome::Committed(_) => "committed".into(),
                WriteOutcome::Unknown => "unknown".into(),
                WriteOutcome::Refused(WriteRefusal::NoQuorum { .. }) => "no_quorum".into(),
                WriteOutcome::Refused(refusal) => format!("{refusal:?}"),
            },
            Ok(_) => "another answer".into(),
            Err(AskError::Call(error)) if error.had_no_effect() => format!("{error}"),
            // Whoever does not hear the answer does not know the outcome.
            Err(_) => "unknown".into(),
        };
        let took_ms = begin.elapsed().as_millis() as u64;
        journal.record(Event::Probed {
            fault,
            agent: peer.label.clone(),
            outcome,
            took_ms,
        });
    }

    /// After the heal: brings the same bytes in. Whether some try had written them or none, they stand in
    /// the log once and have one outcome.
    ///
    /// # Errors
    /// It stays unknown, or is refused.
    pub async fn settle(&self, client: &Client) -> Outcome {
        let author = Author::open(client)?;
        let route = author.route(&[self.cluster]).await?;
        author
            .enter(&route, &self.entry, OUTCOME_DEADLINE)
            .await
            .map(|_| ())
            .map_err(|failure| Failure {
                what: format!(
                    "a write that was tried at a cut-off agent has no outcome after the heal: {}",
                    failure.what
                ),
                ..failure
            })
    }
}

/// Reads from `agents` and tries `probe` at each of them, until this future is dropped.
pub async fn observe(client: &Client, journal: &Journal, fault: usize, agents: &[Peer], probe: Option<&Probe>) {
    let each = agents.iter().map(|peer| async move {
        loop {
            read(client, journal, fault, peer, ReadView::Cluster).await;
            read(client, journal, fault, peer, ReadView::Final).await;
            sleep(PAUSE).await;
        }
    });
    let tries = agents.iter().map(|peer| async move {
        while let Some(probe) = probe {
            probe.try_at(client, journal, fault, peer).await;
            sleep(PAUSE).await;
        }
    });
    futures::join!(join_all(each), join_all(tries));
}

/// Reads everything that the agent shows, a page at a time; each page is an answer with an age of its own.
async fn read(client: &Client, journal: &Journal, fault: usize, peer: &Peer, view: ReadView) {
    let mut after: Option<TaskId> = None;
    for _ in 0..PAGES_MAX {
        let request = OpRequest::Tasks {
            states: BoundedVec::new(),
            after,
            limit: 256,
            consistency: match view {
                ReadView::Cluster => Consistency::Local,
                ReadView::Final => Consistency::Final,
            },
            staleness_ms_max: None,
        };
        let sent_ms = journal.now_ms();
        let answer = client.ask(peer, &request, READ_DEADLINE).await;
        let Ok(OpAnswer::Tasks { tasks, more, context }) = answer else {
            return;
        };
        let last = tasks.last().map(|task| task.id);
        let upto = if more { last } else { None };
        journal.record(Event::Read {
            fault,
            agent: peer.label.clone(),
            cluster: peer
                .cluster
                .map(|id| client.context.cluster_label(id))
                .unwrap_or_default(),
            view,
            sent_ms,
            mode: context.mode.word().into(),
            staleness_ms: context.staleness_ms,
            after: after.map(|id| id.to_hex()),
            upto: upto.map(|id| id.to_hex()),
            tasks: tasks.iter().map(|task| task.id.to_hex()).collect(),
        });
        if upto.is_none() || upto == after {
            return;
        }
        after = upto;
    }
}
