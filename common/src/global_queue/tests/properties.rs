//! Random histories.

use proptest::prelude::*;

use super::*;
use crate::{
    entry::{Cause, VerifyEach},
    ids::LogIndex,
    task::AfterCustody,
    verdict::Reason,
};

/// What a random step asks for; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
struct Op {
    cluster: u8,
    drone: u8,
    kind: u8,
    task: u8,
    flags: u8,
    verdict: u8,
}

#[derive(Clone, Debug)]
struct Step {
    batches: Vec<Vec<Op>>,
    again: Vec<u8>,
    step_ms: u64,
}

fn op() -> impl Strategy<Value = Op> {
    (any::<u8>(), any::<u8>(), 0..16u8, any::<u8>(), any::<u8>(), any::<u8>()).prop_map(
        |(cluster, drone, kind, task, flags, verdict)| Op {
            cluster,
            drone,
            kind,
            task,
            flags,
            verdict,
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    (
        prop::collection::vec(prop::collection::vec(op(), 0..5), 0..4),
        prop::collection::vec(any::<u8>(), 0..3),
        prop_oneof![Just(20u64), Just(700), Just(2_900), Just(5_000)],
    )
        .prop_map(|(batches, again, step_ms)| Step {
            batches,
            again,
            step_ms,
        })
}

struct World {
    ledger: Ledger,
    tasks: Vec<TaskId>,
    sent: Vec<CertifiedBatch>,
    count: u32,
}

impl World {
    fn new(retention: Retention) -> Self {
        let mut ledger = Ledger::new(Fleet::new(3, 1, 1));
        ledger.queue = ledger.queue.with_retention(retention);
        Self {
            ledger,
            tasks: Vec::new(),
            sent: Vec::new(),
            count: 0,
        }
    }

    fn new_task(&mut self, op: &Op) -> Task {
        self.count += 1;
        // Few keys, so that they repeat.
        let mut task = task(&format!("k{}", self.count % 40));
        task.priority = op.flags;
        task.after_custody = if op.flags & 1 == 0 {
            AfterCustody::Hold
        } else {
            AfterCustody::Reassign
        };
        if op.flags & 2 != 0 {
            task.places = vec![place_in(u32::from(op.task % 4))].try_into().unwrap();
        }
        if op.flags % 8 == 4 {
            task.deadline = Some(self.ledger.queue.time().plus_ms(u64::from(op.task) * 100));
        }
        if op.flags % 16 == 8 && !self.tasks.is_empty() {
            let mut after = vec![self.pick(op.task), self.pick(op.task.wrapping_add(op.flags))];
            after.sort_unstable();
            after.dedup();
            task.after = after.try_into().unwrap();
        }
        task
    }

    fn pick(&self, number: u8) -> TaskId {
        self.tasks[usize::from(number) % self.tasks.len()]
    }

    /// Mostly an open task of the cluster, so that histories get somewhere; sometimes any.
    fn pick_of(&self, cluster: ClusterId, op: &Op) -> TaskId {
        let own: Vec<TaskId> = self.ledger.queue.open_tasks_of(cluster).map(|row| row.id).collect();
        if own.is_empty() || op.verdict >= 224 {
            self.pick(op.task)
        } else {
            own[usize::from(op.task) % own.len()]
        }
    }

    fn entry(&mut self, op: &Op, cluster: ClusterId) -> SignedEntry {
        let drone = format!("c{}-1", u32::from(op.drone) % 3 + 1);
        let author = if op.flags & 16 == 0 { drone.as_str() } else { "op1" };
        let scope = if op.flags & 32 == 0 {
            Scope::Fleet
        } else {
            Scope::Cluster
        };
        if op.kind < 3 || self.tasks.is_empty() {
            let task = self.new_task(op);
            let entry = self.ledger.submit(author, cluster, scope, &task);
            self.tasks.push(entry.id(&self.ledger.fleet.chain).into());
            return entry;
        }
        let id = self.pick_of(cluster, op);
        let known = self.ledger.queue.task(&id);
        let fence = known
            .and_then(|row| row.standing.life.holder)
            .filter(|_| op.flags & 0b1100_0000 != 0)
            .map_or(
                Fence {
                    assignment: Assignment(1),
                    founding: Founding(0),
                    index: LogIndex(3),
                },
                |holder| holder.fence,
            );
        let assignment = known.map_or(Assignment(0), |row| row.standing.assignment);
        let counter = HolderCounter(u64::from(op.flags));
        let action = match op.kind {
            3..=7 => Action::Claim {
                task: id,
                assignment,
                counter,
            },
            8 => start(id, fence),
            9 => Action::Progress {
                task: id,
                fence,
                progress: Progress::Paused,
            },
            10 => complete(id, fence),
            11 => Action::Fail {
                task: id,
                fence,
                counter,
                retriable: op.flags & 1 != 0,
            },
            12 => release(id, fence),
            13 => Action::Requeue {
                task: id,
                cause: if op.flags & 1 == 0 {
                    Cause::Operator
                } else {
                    Cause::LeaseEnded {
                        fence,
                        renewed_at: fence.index,
                    }
                },
            },
            14 => Action::ForceRequeue { task: id },
            _ => Action::Cancel { task: id },
        };
        self.ledger.entry(author, cluster, scope, action)
    }

    fn batch(&mut self, ops: &[Op]) -> CertifiedBatch {
        let cluster = ClusterId(ops.first().map_or(0, |op| u32::from(op.cluster) % 3));
        let rows = ops
            .iter()
            .map(|op| {
                let verdict = match op.verdict % 16 {
                    0 => Verdict::Late,
                    1 => Verdict::Rejected(Reason::Fenced),
                    _ => Verdict::Granted,
                };
                (verdict, self.entry(op, cluster))
            })
            .collect();
        self.ledger.batch(cluster, rows)
    }

    fn run(&mut self, step: &Step) -> BlockOutcome {
        let mut batches: Vec<CertifiedBatch> = step.batches.iter().map(|ops| self.batch(ops)).collect();
        self.sent.extend(batches.clone());
        for again in &step.again {
            if !self.sent.is_empty() {
                let at = usize::from(*again) % batches.len().max(1);
                let old = self.sent[usize::from(*again) % self.sent.len()].clone();
                batches.insert(at.min(batches.len()), old);
            }
        }
        // `Ledger::block` checks every invariant, the root from scratch among them.
        self.ledger.block(batches, step.step_ms)
    }
}

/// The one in use, or one that is met at once.
fn retention() -> impl Strategy<Value = Retention> {
    let short = (1..12u64, 0..4usize, 0..4_000usize, 0..4usize).prop_map(|(blocks, rows, bytes, lines)| Retention {
        blocks,
        rows,
        bytes,
        lines,
    });
    prop_oneof![1 => Just(RETENTION), 3 => short]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_every_invariant_and_snapshots_replay(
        steps in prop::collection::vec(step(), 1..20),
        retention in retention(),
    ) {
        let mut world = World::new(retention);
        let genesis = world.ledger.fleet.genesis.clone();
        let mut twin = GlobalQueue::genesis(&genesis);
        for step in &steps {
            let outcome = world.run(step);
            let block = &world.ledger.blocks[&outcome.height];
            // A copy that went through bytes before every block ends the same.
            twin = GlobalQueue::from_bytes(&twin.to_bytes(), &genesis).unwrap().with_retention(retention);
            let finalized = block.clone().verify(&world.ledger.fleet.chain, &world.ledger.fleet.set).unwrap();
            let bodies: Vec<Option<OrderedBatch<'_>>> = block
                .block
                .refs
                .iter()
                .enumerate()
                .map(|(at, named)| {
                    let batch = &world.ledger.batches[&named.digest];
                    OrderedBatch::finalized(&finalized, at, &batch.header, &batch.entries)
                })
                .collect();
            let again = twin.apply(&block.block, &bodies, &mut VerifyEach).unwrap();
            prop_assert_eq!(&again, &outcome);
            prop_assert_eq!(&twin, &world.ledger.queue);
            let (counted, encoded) = (twin.state_bytes(), twin.to_bytes().len() as u64);
            prop_assert!(counted <= encoded && encoded <= counted + 4_096, "{} of {}", counted, encoded);
        }
    }

    #[test]
    fn batches_given_twice_or_out_of_order_change_nothing(
        steps in prop::collection::vec(step(), 1..8),
        shuffle in any::<u8>(),
    ) {
        let mut world = World::new(RETENTION);
        for step in &steps {
            world.run(step);
        }
        let count = |ledger: &Ledger| ledger.queue.clusters().map(|id| ledger.queue.cursor(id).unwrap().clone()).collect::<Vec<_>>();
        let rows = |ledger: &Ledger| ledger.queue.tasks(None, usize::MAX).map(|row| (row.id, row.submitted.clone())).collect::<Vec<_>>();
        // What a beatless block does by itself (assignment, deadlines) is the same with or without them.
        let mut with = world.ledger.clone();
        let executed: Vec<CertifiedBatch> = world
            .sent
            .iter()
            .filter(|batch| batch.header.seq < world.ledger.queue.cursor(batch.header.cluster).unwrap().next_seq)
            .cloned()
            .collect();
        let mut again = executed;
        again.reverse();
        let len = again.len().max(1);
        again.rotate_left(usize::from(shuffle) % len);
        again.truncate(100);
        with.block(again, 20);
        world.ledger.block(vec![], 20);
        prop_assert_eq!(count(&with), count(&world.ledger));
        prop_assert_eq!(rows(&with), rows(&world.ledger));
        prop_assert_eq!(with.queue.counts_by_state(), world.ledger.queue.counts_by_state());
    }
}
