//! What a run looks at from outside: sizes, health, heights, and how it stood at the end.

use std::{collections::BTreeMap, sync::Arc};

use cluster_agent::raft::RaftConfig;
use cluster_core::{batcher::Batcher, queue::ClusterQueue};
use common::{
    global_queue::{HistoryEvent, Row},
    ids::{ClusterId, Height, TaskId},
    limits::ROOT_LAG,
    task::{Scope, TaskState},
    wire::op::Mode,
};

use super::{WORK_AFTER, WORK_MAX, WRITE_EVERY_MAX, World};
use crate::{
    checkers::{Fate, Health, Observation},
    timeline::Sample,
};

/// Records above what snapshots leave that a log may have: what comes in while one is made on a slow disk, and purged.
const LOG_SLACK: u64 = 1_000;

/// Bytes of the rows that wait to become final, whatever the batcher takes their sum for.
fn outbox_bytes(batcher: &Batcher) -> u64 {
    let closed = batcher.outbox().flat_map(|batch| batch.entries.iter());
    let rows = closed.chain(batcher.open_rows());
    rows.map(|row| row.encoded_len() as u64).sum()
}

/// What became of all tasks.
#[derive(Default)]
pub(super) struct Tally {
    pub by_state: BTreeMap<&'static str, u64>,
    pub left: u64,
    pub moved: u64,
}

impl World {
    pub(super) fn inspect(&self) {
        self.fleet.witness.look_at_logs();
        let (entries, kept) = self.plan.conditions.snapshot_entries;
        let quota = self
            .plan
            .conditions
            .limits(&RaftConfig::for_profile(self.plan.conditions.profile))
            .outbox_bytes_max;
        for name in self.fleet.honest_validators() {
            let Some(validator) = self.fleet.validator(&name) else {
                continue;
            };
            let executed = validator.executed().get();
            self.fleet.witness.see(&Observation::Holds {
                validator: name,
                height: executed.queue.height(),
                holdings: executed.holdings.clone(),
            });
        }
        for name in self.fleet.agent_names() {
            let (Some(agent), Some(log)) = (self.fleet.agent(&name), self.fleet.log(&name)) else {
                continue;
            };
            let cluster = agent.machine().with(|state| state.queue.cluster());
            let status = agent.raft().status();
            self.fleet.witness.tell_stand(cluster, &name, &status);
            let records = log.range().map_or(0, |(first, last)| last.0 + 1 - first.0);
            self.fleet.witness.see(&Observation::Sizes {
                agent: name.clone(),
                outbox_bytes: agent.machine().with(|state| outbox_bytes(state.queue.batcher())),
                outbox_bytes_max: quota,
                log_records: records,
                log_records_max: entries + kept + LOG_SLACK,
            });
        }
    }

    /// Adds a sample to the timeline, if there is one.
    pub(super) fn film(&mut self) {
        let Some(mut timeline) = self.timeline.take() else {
            return;
        };
        let at_ms = self.trace.now_us() / 1_000;
        let acknowledged = self.desk.journal().acknowledged.len() as u64;
        let clusters = self.fleet.clusters();
        let leader = |members: &Vec<String>| {
            let name = self.fleet.leader(members)?;
            let term = self.fleet.agent(&name)?.status().context.term.0;
            Some((name, term))
        };
        let most = |members: &Vec<String>, of: fn(&ClusterQueue) -> u64| {
            let agents = members.iter().filter_map(|name| self.fleet.agent(name));
            agents
                .map(|agent| agent.machine().with(|state| of(&state.queue)))
                .max()
                .unwrap_or(0)
        };
        let honest = self.fleet.honest_validators();
        let highest = honest.iter().filter_map(|name| self.fleet.validator(name));
        let highest = highest.map(|validator| validator.executed().get().queue.height()).max();
        let sample = Sample {
            at_ms,
            leaders: clusters.iter().map(leader).collect(),
            open_tasks: clusters
                .iter()
                .map(|members| most(members, |queue| queue.open_tasks()))
                .collect(),
            outbox_bytes: clusters
                .iter()
                .map(|members| most(members, |queue| queue.batcher().pending_bytes()))
                .collect(),
            finality_lag_ms: timeline.lag_ms(at_ms, acknowledged, self.tasks_final()),
            heights: (self.lowest_height(), highest.unwrap_or_default()),
        };
        timeline.samples.push(sample);
        self.timeline = Some(timeline);
    }

    /// What became of all tasks, by the validator that has executed most.
    pub(super) fn tally(&self) -> Tally {
        let names = self.fleet.honest_validators();
        let states = names.iter().filter_map(|name| self.fleet.validator(name));
        let states = states.map(|validator| validator.executed().get().queue.clone());
        let Some(state) = states.max_by_key(|state| state.height()) else {
            return Tally::default();
        };
        let counts = TaskState::ALL.iter().zip(state.counts_by_state());
        let has_moved = |row: &&Row| {
            row.standing
                .cluster
                .is_some_and(|cluster| cluster != row.submitted.through)
        };
        Tally {
            by_state: counts.map(|(state, count)| (state.word(), u64::from(count))).collect(),
            left: state.left(),
            moved: state.tasks(None, usize::MAX).filter(has_moved).count() as u64,
        }
    }

    pub(super) fn lowest_height(&self) -> Height {
        let names = self.fleet.honest_validators();
        let heights = names.iter().map(|name| {
            let validator = self.fleet.validator(name);
            validator.map_or(Height(0), |validator| validator.executed().get().queue.height())
        });
        heights.min().unwrap_or_default()
    }

    /// Height up to which every honest validator has the root over what was decided.
    pub(super) fn lowest_decided(&self) -> Height {
        Height(self.lowest_height().0.saturating_sub(ROOT_LAG))
    }

    /// What the final state of a validator says of a task.
    pub(super) fn history(&self, validator: &str, task: &TaskId) -> Option<Vec<HistoryEvent>> {
        let executed = self.fleet.validator(validator)?.executed().get();
        Some(executed.queue.task(task)?.standing.events.clone())
    }

    /// What the newest final state says of the fleet's tasks that were acknowledged.
    pub(super) fn fates(&self) -> Option<Observation> {
        let names = self.fleet.honest_validators();
        let states = names.iter().filter_map(|name| self.fleet.validator(name));
        let states = states.map(|validator| validator.executed().get().queue.clone());
        let state = states.max_by_key(|state| state.height())?;
        let fate = |task: &TaskId| {
            let standing = &state.task(task).filter(|row| row.scope() == Scope::Fleet)?.standing;
            // A history with gaps explains nothing.
            (standing.events_dropped == 0).then(|| Fate {
                state: standing.life.state,
                events: standing.events.clone(),
            })
        };
        let journal = self.desk.journal();
        let fates = journal
            .acknowledged
            .keys()
            .filter_map(|task| Some((*task, fate(task)?)));
        Some(Observation::Fates {
            time: state.time(),
            tasks: Arc::new(fates.collect()),
        })
    }

    /// Batches that every honest validator has executed.
    pub(super) fn batches_final(&self) -> u64 {
        let names = self.fleet.honest_validators();
        let executed = names.iter().map(|name| {
            let Some(validator) = self.fleet.validator(name) else {
                return 0;
            };
            let executed = validator.executed().get();
            let queue = &executed.queue;
            let next = queue.clusters().filter_map(|cluster| queue.next_batch(cluster));
            next.map(|(_, seq)| seq.0.saturating_sub(1)).sum()
        });
        executed.min().unwrap_or_default()
    }

    /// Clusters that have not shown since `healed_us` that tasks are taken and done there.
    fn idle(&self, healed_us: u64) -> Vec<(ClusterId, &'static str)> {
        let load = self.plan.load;
        let is_short = self.plan.lasts < WORK_AFTER;
        if is_short || load.write_every > WRITE_EVERY_MAX || load.work_max > WORK_MAX {
            return Vec::new();
        }
        let suspects = self.fleet.witness.suspects();
        let journal = self.desk.journal();
        let clusters = (0..self.plan.population.clusters).map(ClusterId);
        clusters
            .filter(|cluster| !suspects.has_cluster(*cluster))
            .filter_map(|cluster| Some((cluster, journal.lacks_since(cluster, healed_us)?)))
            .collect()
    }

    /// How the fleet is, which healed at `healed_us`.
    pub(super) fn health(&self, healed_us: u64) -> Health {
        let idle = self.idle(healed_us);
        let (mut leaderless, mut unwell, mut outsiders) = (Vec::new(), Vec::new(), Vec::new());
        let mut outbox_bytes = 0;
        let suspects = self.fleet.witness.suspects();
        let clusters = (0..).zip(self.fleet.clusters());
        for (number, members) in clusters.filter(|(number, _)| !suspects.has_cluster(ClusterId(*number))) {
            let leader = self.fleet.leader(&members);
            let leader = leader.and_then(|name| Some(self.fleet.agent(&name)?.status().raft));
            let follows = |name: &String| {
                let known = self.fleet.agent(name).map(|agent| agent.status().context.leader);
                known == Some(leader)
            };
            if leader.is_none() || !members.iter().all(follows) {
                leaderless.push(ClusterId(number));
            }
            outsiders.extend(self.fleet.outsiders(ClusterId(number)));
            for agent in members.iter().filter_map(|name| self.fleet.agent(name)) {
                let status = agent.status();
                let context = &status.context;
                let knows = context.staleness_ms.is_some() && context.global_age_ms.is_some();
                if context.mode != Mode::Normal || !knows {
                    unwell.push(status.label.as_str().to_owned());
                }
                outbox_bytes += agent.machine().with(|state| {
                    let batcher = state.queue.batcher();
                    let rows = batcher.outbox().filter(|batch| !batch.entries.is_empty());
                    rows.map(|batch| batch.bytes).sum::<u64>() + batcher.open_len() as u64
                });
            }
        }
        let (acknowledged, open_writes) = {
            let journal = self.desk.journal();
            (journal.acknowledged.len() as u64, journal.open_writes)
        };
        Health {
            leaderless,
            unwell,
            outsiders,
            idle,
            open_writes,
            outbox_bytes,
            not_final: acknowledged - self.tasks_final(),
            height: self.lowest_height(),
        }
    }

    /// Acknowledged tasks that every validator's final state has, or had until they had ended and were due.
    pub(super) fn tasks_final(&self) -> u64 {
        let (names, witness) = (self.fleet.honest_validators(), &self.fleet.witness);
        let states: Vec<_> = names
            .iter()
            .map(|name| Some(self.fleet.validator(name)?.executed().get().queue.clone()))
            .collect();
        let is_final = |task: &&TaskId| {
            let has = |state: &Option<Arc<common::global_queue::GlobalQueue>>| {
                state.as_ref().is_some_and(|state| witness.knows(state, task))
            };
            states.iter().all(has)
        };
        self.desk.journal().acknowledged.keys().filter(is_final).count() as u64
    }

    /// Where everybody stands, for whoever looks into a violation.
    pub(super) fn processes(&self) -> Vec<String> {
        let agent = |name: &String| {
            let Some(agent) = self.fleet.agent(name) else {
                return format!("{name}: down");
            };
            let (status, raft) = (agent.status(), agent.raft().status());
            let context = &status.context;
            let (closed, open) = agent.machine().with(|state| {
                let batcher = state.queue.batcher();
                (batcher.last_closed().seq, batcher.open_len())
            });
            format!(
                "{name}: {:?} of term {} under {:?}, applied {} of {}, snapshot {}, purged {}, batches {closed} closed and \
                 {} final, {open} rows open, outbox {} bytes, height {}, {}, age {:?} ms, global age {:?} ms",
                raft.role,
                context.term,
                context.leader.map(|id| id.idx().0),
                context.applied,
                status.last_index,
                raft.snapshot.index,
                raft.purged.index,
                status.final_seq,
                status.outbox_bytes,
                context.global_height,
                context.mode.word(),
                context.staleness_ms,
                context.global_age_ms,
            )
        };
        let validator = |name: &String| {
            let Some(validator) = self.fleet.validator(name) else {
                return format!("{name}: down");
            };
            let executed = validator.executed().get();
            let queue = &executed.queue;
            let next: Vec<String> = queue
                .clusters()
                .filter_map(|cluster| Some(format!("{} of {cluster}", queue.next_batch(cluster)?.1)))
                .collect();
            let (height, next) = (validator.blocks().tip().0, next.join(", "));
            format!(
                "{name}: view {}, height {height}, executed {}, next batches {next}{}",
                executed.view,
                queue.height(),
                if executed.is_listening { ", listening" } else { "" }
            )
        };
        let agents = self.fleet.agent_names();
        let validators = self.fleet.validator_names();
        agents
            .iter()
            .map(agent)
            .chain(validators.iter().map(validator))
            .collect()
    }
}
