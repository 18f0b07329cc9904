//! The door of operators (`muster-op/1`): what finalized blocks say, and how this validator is.
//! In: requests of devices with the role `op.read`. Out: answers. Called by: [`crate::service`].
//!
//! # Rules
//! * Every read is of the executed final state, and says how old it may be. A linearizable read is
//!   the business of a cluster: here it is answered as unsupported.
//! * Upon a read that is older than the asker allows: `TooStale` with the age.
//! * Nothing is written here: entries go to an agent.
//!
//! # Invariants
//! * honest-staleness: the age is measured from the time of the last final block, with the errors that
//!   block time and clocks may have added to it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    block::FinalizedBlock,
    codec::{Label, Wire, decode, encode},
    genesis::RoleSet,
    global_queue::GlobalQueue,
    ids::{DeviceId, LogIndex, NodeIdx, TaskId, Term},
    proof::ProveError,
    registry::Registry,
    task::TaskState,
    validator_set::ValidatorSet,
    wire::{
        frame::{Protocol, Refusal, RefusalCode},
        op::{Consistency, Mode, OpAnswer, OpRequest, ReadContext, TaskView, Telemetry, ValidatorStatus},
    },
};
use tokio::sync::Semaphore;
use transport::ports::{Clock, Instant, Transport};

use crate::{
    batch_store::BatchStore,
    block_store::BlockStore,
    block_time::{BlockClock, elapsed_ms_at_most},
    executed::ExecutedWatch,
    exit::Stop,
    halt::Halt,
    peers::Peers,
    prove::Prover,
    stopwatch::Stopwatch,
};

/// Tasks in one answer.
const TASKS_PER_ANSWER_MAX: usize = 256;
/// Blocks in one answer.
const BLOCKS_PER_ANSWER_MAX: usize = 64;
/// Encoded blocks or tasks in one answer, in bytes.
const ANSWER_ROOM_BYTES: usize = OpAnswer::BYTES_MAX - 64 * 1024;
/// Rows looked at for one answer, so that a rare state does not cost a whole scan.
const ROWS_PER_ANSWER_MAX: usize = 65_536;
/// Proofs under construction: each reads many blocks.
const PROOFS_MAX: usize = 2;
/// How long a proof may wait for its turn.
const PROOF_WAIT: Duration = Duration::from_secs(5);

/// What the door of operators needs.
pub struct ApiParts {
    /// Who may ask.
    pub registry: Arc<Registry>,
    /// This validator.
    pub device: DeviceId,
    /// Its name.
    pub label: Label,
    /// Who votes.
    pub set: Arc<ValidatorSet>,
    /// The state to read.
    pub executed: ExecutedWatch,
    /// Final blocks.
    pub blocks: BlockStore,
    /// Their batches.
    pub batches: BatchStore,
    /// How long blocks and batches took.
    pub stopwatch: Stopwatch,
    /// Builds proofs.
    pub prover: Prover,
    /// Other validators.
    pub peers: Peers,
    /// Says which of them are connected.
    pub transport: Arc<dyn Transport>,
    /// Time since the start.
    pub clock: Arc<dyn Clock>,
    /// Block time now.
    pub block_clock: BlockClock,
    /// To stop on a failure of the disk.
    pub halt: Halt,
}

/// The door of operators.
pub struct Api {
    parts: ApiParts,
    started: Instant,
    proofs: Semaphore,
}

impl Api {
    /// A door over `parts`, of a process that starts now.
    #[must_use]
    pub fn new(parts: ApiParts) -> Self {
        Self {
            started: parts.clock.now(),
            proofs: Semaphore::new(PROOFS_MAX),
            parts,
        }
    }

    /// Answers one request of the device `from`.
    ///
    /// # Errors
    /// What the operator is told.
    pub async fn handle(&self, from: NodeIdx, body: Bytes) -> Result<Bytes, Refusal> {
        let may_read = self
            .parts
            .registry
            .by_idx(from)
            .is_some_and(|member| member.may(RoleSet::OP_READ));
        if !may_read {
            return Err(Refusal::new(RefusalCode::Denied, "needs the role op.read"));
        }
        let request: OpRequest =
            decode(&body).map_err(|error| Refusal::new(RefusalCode::Invalid, &error.to_string()))?;
        let answer = self.answer(request).await?;
        Ok(encode(&answer).into())
    }

    async fn answer(&self, request: OpRequest) -> Result<OpAnswer, Refusal> {
        let executed = self.parts.executed.get();
        let queue = executed.queue.as_ref();
        match request {
            OpRequest::Enter(_) => Ok(unsupported("entries go to an agent of their cluster")),
            OpRequest::Task {
                task,
                consistency,
                staleness_ms_max,
            } => Ok(self.refused(queue, consistency, staleness_ms_max).unwrap_or_else(|| {
                match (queue.view(&task), no_longer_kept(queue, &task)) {
                    (None, Some(left)) => left,
                    (task, _) => OpAnswer::Task {
                        task,
                        context: self.context(queue),
                    },
                }
            })),
            OpRequest::Tasks {
                states,
                after,
                limit,
                consistency,
                staleness_ms_max,
            } => Ok(self
                .refused(queue, consistency, staleness_ms_max)
                .unwrap_or_else(|| self.tasks(queue, &states, after, usize::from(limit)))),
            OpRequest::History { task } => Ok(self.history(queue, &task)),
            OpRequest::Prove { task } => self.prove(queue, &task).await,
            OpRequest::HighestNumber {
                author,
                key_version,
                cluster,
            } => Ok(OpAnswer::HighestNumber(queue.highest_number(
                author,
                key_version,
                cluster,
            ))),
            OpRequest::EnterOrBuffer(_) | OpRequest::Buffered { .. } => Ok(unsupported("ask an agent")),
            OpRequest::TransferLeader { .. } => Ok(unsupported("ask the cluster's leader")),
            OpRequest::Status => self.status().map_err(|stop| self.failed(stop)),
            OpRequest::Telemetry => {
                let parts = &self.parts;
                Ok(OpAnswer::Telemetry(Telemetry::new(
                    parts.transport.sent(),
                    parts.stopwatch.times(),
                )))
            }
            OpRequest::Blocks { from, limit } => {
                let limit = usize::from(limit).min(BLOCKS_PER_ANSWER_MAX);
                let blocks: Vec<FinalizedBlock> = self
                    .parts
                    .blocks
                    .range(from, limit, ANSWER_ROOM_BYTES)
                    .map_err(|stop| self.failed(stop))?;
                Ok(OpAnswer::Blocks(blocks.try_into().expect("cut at the bound")))
            }
        }
    }

    fn failed(&self, stop: Stop) -> Refusal {
        self.parts.halt.stop(stop);
        Refusal::new(RefusalCode::NotNow, "stopping")
    }

    /// How old the state may be: the time since its last block, and what clocks may be off by. Unknown where this clock may be
    /// wrong.
    fn staleness_ms(&self, queue: &GlobalQueue) -> Option<u64> {
        let bounds = &queue.genesis_file().timing.clocks;
        let error_ms = u64::from(bounds.block_time_bound_ms) + u64::from(bounds.clock_error_ms);
        let now = self.parts.block_clock.now_if_compared(error_ms)?;
        Some(elapsed_ms_at_most(now.ms_since(queue.time()), bounds.drift_ppm) + error_ms)
    }

    fn refused(&self, queue: &GlobalQueue, consistency: Consistency, max: Option<u64>) -> Option<OpAnswer> {
        if consistency == Consistency::Linearizable {
            return Some(unsupported("linearizable reads are a cluster's: ask an agent"));
        }
        let staleness_ms = self.staleness_ms(queue);
        let is_too_stale = max.is_some_and(|max| staleness_ms.is_none_or(|age| age > max));
        is_too_stale.then_some(OpAnswer::TooStale {
            staleness_ms,
            mode: Mode::Normal,
        })
    }

    fn history(&self, queue: &GlobalQueue, task: &TaskId) -> OpAnswer {
        let events = queue.history(task);
        if events.is_empty() {
            return no_longer_kept(queue, task).unwrap_or(OpAnswer::NotFound);
        }
        OpAnswer::History {
            events: events
                .try_into()
                .expect("a row keeps fewer events than an answer holds"),
            context: self.context(queue),
        }
    }

    fn context(&self, queue: &GlobalQueue) -> ReadContext {
        let staleness_ms = self.staleness_ms(queue);
        ReadContext {
            consistency: Consistency::Final,
            applied: LogIndex(0),
            term: Term(0),
            leader: None,
            mode: Mode::Normal,
            staleness_ms,
            global_height: queue.height(),
            global_age_ms: staleness_ms,
        }
    }

    fn tasks(&self, queue: &GlobalQueue, states: &[TaskState], after: Option<TaskId>, limit: usize) -> OpAnswer {
        let limit = limit.clamp(1, TASKS_PER_ANSWER_MAX);
        let (mut tasks, mut room, mut more): (Vec<TaskView>, _, _) = (Vec::new(), ANSWER_ROOM_BYTES, false);
        for row in queue.tasks(after, ROWS_PER_ANSWER_MAX) {
            if !states.is_empty() && !states.contains(&row.state()) {
                continue;
            }
            let view = queue.view_of(row);
            // A task's bound and a page for the rest of its view.
            let bytes = encode(&view.task).len() + 4096;
            if tasks.len() == limit || bytes > room {
                more = true;
                break;
            }
            room -= bytes;
            tasks.push(view);
        }
        OpAnswer::Tasks {
            tasks: tasks.try_into().expect("cut at the bound"),
            more,
            context: self.context(queue),
        }
    }

    async fn prove(&self, queue: &GlobalQueue, task: &TaskId) -> Result<OpAnswer, Refusal> {
        let busy = || Refusal::new(RefusalCode::Busy, "too many proofs at once");
        let _turn = tokio::time::timeout(PROOF_WAIT, self.proofs.acquire())
            .await
            .map_err(|_| busy())?
            .map_err(|_| busy())?;
        match self.parts.prover.prove(queue, task) {
            Ok(Ok(proof)) => Ok(OpAnswer::Proof(
                encode(&proof).try_into().expect("a proof's bound is the answer's"),
            )),
            Ok(Err(ProveError::UnknownTask(_))) => Ok(no_longer_kept(queue, task).unwrap_or(OpAnswer::NotFound)),
            Ok(Err(error)) => Err(Refusal::new(RefusalCode::NotNow, &error.to_string())),
            Err(stop) => Err(self.failed(stop)),
        }
    }

    fn status(&self) -> Result<OpAnswer, Stop> {
        let parts = &self.parts;
        let executed = parts.executed.get();
        let queue = &executed.queue;
        let (height, block) = parts.blocks.tip();
        let block_time = match parts.blocks.at(height)? {
            Some(last) => last.block.header.time,
            None => queue.time(),
        };
        let pending: usize = queue
            .clusters()
            .filter_map(|cluster| {
                let (founding, next) = queue.next_batch(cluster)?;
                Some(parts.batches.from_seq(cluster, founding, next).len())
            })
            .sum();
        let up = parts
            .peers
            .iter()
            .filter(|link| parts.transport.is_connected(&link.device, Protocol::Bft))
            .count();
        let now_us = i128::from(parts.block_clock.now().0);
        let offset_us = (now_us - i128::from(block_time.0)).clamp(i64::MIN.into(), i64::MAX.into());
        Ok(OpAnswer::Validator(ValidatorStatus {
            device: parts.device,
            label: parts.label.clone(),
            epoch: executed.epoch,
            view: executed.view,
            height,
            block,
            executed: queue.height(),
            state_digest: queue.state_root(),
            block_time,
            clock_offset_us: offset_us as i64,
            pending_batches: u32::try_from(pending).unwrap_or(u32::MAX),
            validators_up: up as u16 + 1,
            validators: parts.set.members().len() as u16,
            is_listening: executed.is_listening,
            tasks: queue.counts_by_state(),
            uptime_us: parts.clock.now().us_since(self.started),
        }))
    }
}

fn unsupported(why: &str) -> OpAnswer {
    OpAnswer::Unsupported(Label::new(why).expect("our words are short and plain"))
}

/// The answer about a task that ended and left.
fn no_longer_kept(queue: &GlobalQueue, task: &TaskId) -> Option<OpAnswer> {
    queue.retired(task).map(|line| OpAnswer::NoLongerKept {
        state: line.state,
        ended: line.ended,
        height: queue.height(),
    })
}
