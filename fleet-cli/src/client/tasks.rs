//! Finds tasks over all clusters, and one by the beginning of its id.
//!
//! # Rules
//! * A task's own cluster knows its newest state; what another cluster or a validator says of it is what
//!   is final.
//! * A prefix names a task only if it names exactly one.

use std::collections::BTreeMap;

use common::{
    codec::BoundedVec,
    ids::{ClusterId, TaskId},
    task::TaskState,
    wire::op::{Consistency, Finality, OpAnswer, OpRequest, TaskView},
};
use futures::future::join_all;
use tokio::time::Instant;

use super::{Client, Peer, aged::Read};
use crate::exit::{Exit, Failure, Outcome};

/// How fresh an answer must be.
#[derive(Clone, Copy, Debug)]
pub struct Freshness {
    /// How it may be answered.
    pub consistency: Consistency,
    /// Older is an error.
    pub staleness_ms_max: Option<u64>,
}

impl Freshness {
    /// Whether only the task's own cluster can answer so.
    fn is_promise(self) -> bool {
        match self.consistency {
            Consistency::Linearizable => true,
            Consistency::Local => self.staleness_ms_max.is_some(),
            Consistency::Final => false,
        }
    }
}

/// The cluster that knows the newest state of a task.
fn own_cluster(view: &TaskView) -> ClusterId {
    view.cluster.unwrap_or(view.through)
}

/// A task and who said so.
#[derive(Clone, Debug)]
pub struct Found {
    /// The task.
    pub view: TaskView,
    /// Label of the process that answered.
    pub from: String,
    /// How it was read.
    pub read: Read,
}

/// Tasks over the clusters asked.
#[derive(Debug)]
pub struct Listed {
    /// In order of their ids.
    pub rows: Vec<Found>,
    /// Why clusters were passed over.
    pub gaps: Vec<Failure>,
    /// Who answered, and how: also those without a task.
    pub answers: Vec<(String, Read)>,
}

/// Ranks what is said of a task: its own cluster first, then what is final at a greater height.
fn rank(view: &TaskView, from: Option<ClusterId>) -> (bool, u64) {
    let height = match view.finality {
        Finality::Final { height, .. } => height.0 + 3,
        Finality::ClusterCommitted => 2,
        Finality::Refused { .. } => 1,
        Finality::Buffered => 0,
    };
    let is_in_log = height >= 2;
    (is_in_log && from.is_some() && view.cluster == from, height)
}

struct Merge {
    rows: BTreeMap<TaskId, ((bool, u64), Found)>,
}

impl Merge {
    fn take(&mut self, peer: &Peer, view: TaskView, read: &Read) {
        let rank = rank(&view, peer.cluster);
        if self.rows.get(&view.id).is_none_or(|(known, _)| rank > *known) {
            let found = Found {
                from: peer.label.clone(),
                read: read.clone(),
                view,
            };
            self.rows.insert(found.view.id, (rank, found));
        }
    }

    fn into_rows(self) -> Vec<Found> {
        self.rows.into_values().map(|(_, found)| found).collect()
    }
}

impl Client {
    /// All tasks in one of `states` (all if empty), in order of their ids.
    ///
    /// # Errors
    /// If a cluster gives no answer of the freshness asked for; `allows_gaps` passes such clusters over,
    /// with their failures in the second list.
    pub async fn tasks(&self, states: &[TaskState], freshness: Freshness, allows_gaps: bool) -> Outcome<Listed> {
        let clusters = self.context.asked_clusters();
        let asked = join_all(clusters.iter().map(|cluster| self.tasks_of(*cluster, freshness))).await;
        let mut merge = Merge { rows: BTreeMap::new() };
        let (mut gaps, mut answers) = (Vec::new(), Vec::new());
        for answer in asked {
            match answer {
                Ok((peer, rows, read)) => {
                    rows.into_iter().for_each(|(view, read)| merge.take(&peer, view, &read));
                    answers.push((peer.label, read));
                }
                Err(failure) if allows_gaps => gaps.push(failure),
                Err(failure) => return Err(failure),
            }
        }
        if gaps.len() == clusters.len() {
            return Err(gaps.swap_remove(0));
        }
        // One cluster's answer went on ageing while another's was waited for.
        for (from, read) in &answers {
            read.check(from, freshness.staleness_ms_max)?;
        }
        // Filtered here and not there: another cluster's older view must not bring a task back.
        let mut rows = merge.into_rows();
        rows.retain(|found| states.is_empty() || states.contains(&found.view.state));
        Ok(Listed { rows, gaps, answers })
    }

    /// Every task that one agent of `cluster` knows.
    async fn tasks_of(&self, cluster: ClusterId, freshness: Freshness) -> Outcome<(Peer, Vec<(TaskView, Read)>, Read)> {
        let mut failure = None;
        for peer in self.context.agents(Some(cluster)) {
            match self.pages(peer, freshness).await {
                Ok((rows, read)) => return Ok((peer.clone(), rows, read)),
                Err(e) if failure.as_ref().is_none_or(|f: &Failure| f.exit == Exit::NoConnection) => failure = Some(e),
                Err(_) => {}
            }
        }
        let label = self.context.cluster_label(cluster);
        Err(failure
            .unwrap_or_else(|| Failure::new(Exit::NoConnection, format!("the context names no agent of {label}"))))
    }

    /// The rows, and how the oldest page was read.
    async fn pages(&self, peer: &Peer, freshness: Freshness) -> Outcome<(Vec<(TaskView, Read)>, Read)> {
        let mut rows = Vec::new();
        let (mut after, mut oldest) = (None, None::<Read>);
        loop {
            let request = OpRequest::Tasks {
                states: BoundedVec::new(),
                after,
                limit: 256,
                consistency: freshness.consistency,
                staleness_ms_max: freshness.staleness_ms_max,
            };
            let page = self
                .ask_until(&[peer], &request, |_, answer, sent| match answer {
                    OpAnswer::Tasks { tasks, more, context } => Some((tasks, more, Read::new(context, sent))),
                    _ => None,
                })
                .await?;
            let (tasks, more, read) = page;
            let older = oldest.map_or(read.clone(), |oldest| oldest.older(read.clone()));
            let last = tasks.last().map(|view| view.id);
            // A page that does not move on would be asked for without end.
            let moves_on = last > after;
            rows.extend(tasks.into_inner().into_iter().map(|view| (view, read.clone())));
            if !more || !moves_on {
                return Ok((rows, older));
            }
            (after, oldest) = (last, Some(older));
        }
    }

    /// One task, from whoever knows it best.
    ///
    /// # Errors
    /// [`Exit::Invalid`] if nobody who answers knows it; staleness and quorum by their codes.
    pub async fn find(&self, id: TaskId, freshness: Freshness) -> Outcome<Found> {
        let request = OpRequest::Task {
            task: id,
            consistency: freshness.consistency,
            staleness_ms_max: freshness.staleness_ms_max,
        };
        let clusters = self.context.asked_clusters();
        let asked = join_all(clusters.iter().map(|cluster| async {
            let agents = self.context.agents(Some(*cluster));
            self.ask_until(&agents, &request, |peer, answer, sent| match answer {
                OpAnswer::Task { task, context } => Some((peer.clone(), task, Read::new(context, sent))),
                _ => None,
            })
            .await
        }))
        .await;
        let mut merge = Merge { rows: BTreeMap::new() };
        let (mut failures, mut left) = (BTreeMap::new(), None);
        for (cluster, answer) in clusters.iter().zip(asked) {
            match answer {
                Ok((peer, Some(view), read)) => merge.take(&peer, view, &read),
                Ok((_, None, _)) => {}
                // It ended there and left.
                Err(e) if e.exit == Exit::Invalid => left = Some(e),
                Err(e) => {
                    failures.insert(*cluster, e);
                }
            }
        }
        if merge.rows.is_empty() && freshness.consistency == Consistency::Local {
            self.find_kept(&request, &mut merge).await;
        }
        match merge.into_rows().pop() {
            Some(found) => match failures.remove(&own_cluster(&found.view)) {
                // What another cluster knows of it is not what was asked for.
                Some(failure) if freshness.is_promise() => Err(failure),
                _ => {
                    found.read.check(&found.from, freshness.staleness_ms_max)?;
                    Ok(found)
                }
            },
            None => Err(failures.into_values().next_back().or(left).unwrap_or_else(|| {
                Failure::new(Exit::Invalid, format!("no cluster knows a task {}", id.to_hex()))
                    .means("it was never committed, or is not final yet where you asked, or ended so long ago that nothing is kept of it")
                    .todo("look at `fleet task list`")
            })),
        }
    }

    /// Asks every agent for a task that no cluster knows: one may keep it for lack of a quorum.
    async fn find_kept(&self, request: &OpRequest, merge: &mut Merge) {
        let clusters = self.context.asked_clusters();
        let agents = self.context.agents(None);
        let is_asked = |peer: &&Peer| peer.cluster.is_some_and(|cluster| clusters.contains(&cluster));
        let agents: Vec<&Peer> = agents.into_iter().filter(is_asked).collect();
        let sent = Instant::now();
        for (peer, answer) in agents.iter().zip(self.ask_all(&agents, request).await) {
            if let Ok(OpAnswer::Task {
                task: Some(view),
                context,
            }) = answer
            {
                merge.take(peer, view, &Read::new(context, sent));
            }
        }
    }

    /// The task whose id begins with `prefix` (hexadecimal, with or without `t-`).
    ///
    /// # Errors
    /// [`Exit::Invalid`]: none, or more than one.
    pub async fn resolve(&self, prefix: &str) -> Outcome<TaskId> {
        let digits = prefix.strip_prefix("t-").unwrap_or(prefix).to_ascii_lowercase();
        if let Some(id) = TaskId::from_hex(&digits) {
            return Ok(id);
        }
        let is_hex = digits.bytes().all(|b| b.is_ascii_hexdigit());
        if !is_hex || digits.is_empty() || digits.len() > 64 {
            return Err(Failure::new(
                Exit::Invalid,
                format!("{prefix:?} is no task id, nor the beginning of one"),
            ));
        }
        let freshness = Freshness {
            consistency: Consistency::Local,
            staleness_ms_max: None,
        };
        let listed = self.tasks(&[], freshness, true).await?;
        pick(
            &digits,
            listed.rows.iter().map(|found| found.view.id),
            listed.gaps.len(),
        )
    }
}

fn pick(digits: &str, ids: impl Iterator<Item = TaskId>, gaps: usize) -> Outcome<TaskId> {
    let found: Vec<TaskId> = ids.filter(|id| id.to_hex().starts_with(digits)).collect();
    match found.as_slice() {
        [id] => Ok(*id),
        [] if gaps > 0 => Err(Failure::new(
            Exit::NoConnection,
            format!("no task begins with {digits}, and {gaps} clusters do not answer"),
        )
        .todo("give the whole id, or try again when they answer")),
        [] => Err(Failure::new(Exit::Invalid, format!("no task begins with {digits}"))),
        many => {
            let some: Vec<String> = many.iter().take(4).map(|id| id.to_hex()).collect();
            Err(Failure::new(
                Exit::Invalid,
                format!("{} tasks begin with {digits}: {}", many.len(), some.join(", ")),
            )
            .means("it is not clear which is meant; nothing was sent")
            .todo("give more digits"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(first: u8) -> TaskId {
        let mut bytes = [0; 32];
        bytes[0] = first;
        TaskId(bytes)
    }

    #[test]
    fn prefix_names_a_task_only_if_it_names_exactly_one() {
        let ids = [id(0xab), id(0xac)];
        assert_eq!(pick("ab", ids.into_iter(), 0), Ok(id(0xab)));
        let twice = pick("a", ids.into_iter(), 0).unwrap_err();
        assert!(
            twice.exit == Exit::Invalid && twice.what.starts_with("2 tasks"),
            "{twice}"
        );
        assert_eq!(pick("b", ids.into_iter(), 0).unwrap_err().exit, Exit::Invalid);
        assert_eq!(pick("b", ids.into_iter(), 1).unwrap_err().exit, Exit::NoConnection);
    }
}
