//! What the drone's own software is shown: tasks, and where its agent stands.

use cluster_core::queue::ClusterQueue;
use common::{
    entry::Fence,
    ids::{DeviceId, TaskId},
    registry::Registry,
    task::{Scope, TaskState},
    wire::op::{Consistency, Finality, TaskView},
};
use transport::local::{
    Reply, TaskRow, base64,
    message::{PlaceJson, StatusRow},
};

use crate::{api::op::tasks_of, machine::State, shell::Shell};

impl Shell {
    pub(super) fn local_status(&self) -> Reply {
        let raft = self.raft.status();
        let (context, now) = self.machine.with(|state| {
            let context = self.context(state, &raft, Consistency::Local);
            (context, self.mode.get())
        });
        let cluster = &self.genesis.clusters[self.me.cluster.0 as usize];
        let leader = raft.leader.and_then(|leader| self.registry.by_idx(leader.idx()));
        let status = StatusRow {
            label: self.me.label.as_str().to_owned(),
            device: self.me.device.to_hex(),
            cluster: cluster.label.as_str().to_owned(),
            mode: now.mode.word().to_owned(),
            mode_since_us: now.since_us,
            mode_before: now.before.map(|mode| mode.word().to_owned()),
            is_leader: raft.leader == Some(self.me.raft),
            leader: leader.map(|member| member.label.as_str().to_owned()),
            applied: context.applied.0,
            global_height: context.global_height.0,
        };
        Reply {
            status: Some(status),
            staleness_ms: context.staleness_ms,
            position: Some(self.position_at(context.applied)),
            now_us: Some(self.now_us()),
            ..Reply::default()
        }
    }

    pub(super) fn rows(&self, state: &mut State, views: Vec<TaskView>, more: bool) -> Reply {
        let mut rows: Vec<TaskRow> = views.into_iter().map(|view| self.row(state, view)).collect();
        // The clock is read after the answer is built, and before the deadlines leave.
        let now_us = self.now_us();
        for row in rows.iter_mut().filter(|row| row.is_mine) {
            row.may_run_until_us = row.task_id().and_then(|task| state.leases.may_run(&task, now_us));
        }
        let staleness_us = state.freshness.staleness_us(now_us);
        Reply {
            tasks: Some(rows),
            more: Some(more),
            staleness_ms: staleness_us.map(|age_us| age_us.div_ceil(1_000)),
            position: Some(self.position_at(state.queue.applied().0.index)),
            now_us: Some(now_us),
            ..Reply::default()
        }
    }

    fn row(&self, state: &State, view: TaskView) -> TaskRow {
        let holder = holder_of(state, &view);
        let clusters = &self.genesis.clusters;
        let cluster = view.cluster.and_then(|cluster| clusters.get(cluster.0 as usize));
        TaskRow {
            id: view.id.to_hex(),
            key: String::from_utf8_lossy(&view.task.key).into_owned(),
            state: view.state,
            kind: view.task.kind,
            scope: view.scope,
            cluster: cluster.map(|cluster| cluster.label.as_str().to_owned()),
            holder: holder.map(|(device, _)| label_of(&self.registry, &device)),
            is_mine: view.state.is_held() && holder.is_some_and(|(device, _)| device == self.me.device),
            fence: holder.map(|(_, fence)| fence.into()),
            may_run_until_us: None,
            priority: view.task.priority,
            attempts: view.attempts,
            percent: view.percent,
            places: view.task.places.iter().copied().map(PlaceJson).collect(),
            earliest_start_ms: view.task.earliest_start.map(|time| time.0 / 1_000),
            deadline_ms: view.task.deadline.map(|time| time.0 / 1_000),
            after: view.task.after.iter().map(|task| task.to_hex()).collect(),
            payload_base64: base64::encode(&view.task.payload),
            final_height: match view.finality {
                Finality::Buffered | Finality::Refused { .. } | Finality::ClusterCommitted => None,
                Finality::Final { height, .. } => Some(height.0),
            },
        }
    }
}

/// Who holds the task, or held it last while its state is `unknown`.
fn holder_of(state: &State, view: &TaskView) -> Option<(DeviceId, Fence)> {
    let shown = view.holder.map(|holder| (holder.device, holder.fence));
    let last = || {
        let row = state.queue.task_row(&view.id)?;
        row.life.holder.map(|holder| (holder.device, holder.fence))
    };
    shown.or_else(|| if view.state == TaskState::Unknown { last() } else { None })
}

fn label_of(registry: &Registry, device: &DeviceId) -> String {
    registry
        .by_id(device)
        .map_or_else(|| device.to_string(), |member| member.label.as_str().to_owned())
}

pub(super) fn tasks_in_scope(
    state: &State,
    states: &[TaskState],
    after: Option<TaskId>,
    limit: usize,
    scope: Option<Scope>,
) -> (Vec<TaskView>, bool) {
    let (mut found, mut from) = (Vec::new(), after);
    loop {
        let (page, more) = tasks_of(state, states, from, limit, Consistency::Local);
        from = page.last().map(|task| task.id);
        let is_wanted = |task: &TaskView| scope.is_none_or(|scope| task.scope == scope);
        found.extend(page.into_iter().filter(is_wanted));
        if !more || found.len() > limit {
            let is_cut = found.len() > limit;
            return (found, more || is_cut);
        }
    }
}

/// What `device` holds, and behind it what it could claim; and whether there is more of them.
pub(super) fn work_of(queue: &ClusterQueue, device: &DeviceId, limit: usize) -> (Vec<TaskView>, bool) {
    let mut tasks: Vec<TaskId> = queue.held_by(device).map(|held| held.task).take(limit + 1).collect();
    tasks.extend(queue.claimable(limit + 1 - tasks.len()));
    let more = tasks.len() > limit;
    tasks.truncate(limit);
    let views = tasks.iter().filter_map(|task| queue.task_view(task)).collect();
    (views, more)
}
