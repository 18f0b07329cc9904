//! One value of everything that crosses a process or a disk, made with fixed keys.

mod blocks;
mod messages;
mod operators;
mod tasks;

use common::{
    certificate::{NullifyBallot, Vote},
    codec::{Label, Wire, encode},
    entry::Fence,
    ids::{Assignment, ClusterId, Epoch, Founding, Height, LogIndex, TaskId, View},
    task::Scope,
    testing::Fleet,
};

pub use self::blocks::ledger;
use self::{
    blocks::{batches, blocks, certificates, outcomes_and_proof, two_batches, two_blocks},
    messages::{bft_and_feed, frames_and_cluster},
    operators::{operators_answers, operators_requests},
    tasks::{actions, submit, tasks_and_entries},
};

/// Takes the samples.
pub trait Samples {
    /// One value under the name of its file.
    fn add<T: Wire + PartialEq + Clone + 'static>(&mut self, name: &str, value: T);
}

const C1: ClusterId = ClusterId(0);
const C2: ClusterId = ClusterId(1);
const TASK: TaskId = TaskId([0xa5; 32]);
const FENCE: Fence = Fence {
    assignment: Assignment(3),
    founding: Founding(1),
    index: LogIndex(300),
};

/// Every sample, in the order of the journey.
pub fn collect(all: &mut impl Samples) {
    let fleet = Fleet::dev();
    tasks_and_entries(all, &fleet);
    batches(all, &fleet);
    blocks(all, &fleet);
    certificates(all, &fleet);
    outcomes_and_proof(all);
    bft_and_feed(all, &fleet);
    frames_and_cluster(all, &fleet);
    operators_requests(all, &fleet);
    operators_answers(all, &fleet);
}

fn label(text: &str) -> Label {
    Label::new(text).expect("a short label")
}

/// Every identity and every signed byte string, one after the other with its length.
pub fn digests() -> Vec<u8> {
    let fleet = Fleet::dev();
    let ledger = ledger();
    let [batch, _] = two_batches(&fleet);
    let [block, _] = two_blocks(&fleet);
    let mut parts: Vec<Vec<u8>> = vec![
        fleet.chain.0.to_vec(),
        fleet.id("op1").0.to_vec(),
        fleet.roster(C1).digest().0.to_vec(),
        fleet.set.digest().0.to_vec(),
        batch.digest(&fleet.chain).0.to_vec(),
        batch.entries[0].leaf(&fleet.chain).0.to_vec(),
        batch.entries.last().unwrap().id(&fleet.chain).0.to_vec(),
        block.digest().0.to_vec(),
        block.refs[0].leaf().0.to_vec(),
        common::block::genesis_digest(&fleet.chain).0.to_vec(),
        ledger.queue.state_root().0.to_vec(),
        ledger.outcomes[&Height(2)].outcome_root.0.to_vec(),
    ];
    parts.push(submit(&fleet).preimage(&fleet.chain));
    for (_, action) in actions() {
        let entry = fleet.entry("c1-1", C1, 7, Scope::Cluster, action);
        parts.push(entry.preimage(&fleet.chain));
        parts.push(entry.id(&fleet.chain).0.to_vec());
    }
    let ballot = block.header.ballot();
    let nullify = NullifyBallot {
        epoch: Epoch(0),
        view: View(300),
    };
    for vote in [Vote::Notarize(ballot), Vote::Finalize(ballot), Vote::Nullify(nullify)] {
        parts.push(vote.preimage(&fleet.chain));
    }
    // The proposal's preimage shows in its signature, which is a function of it.
    parts.push(encode(&fleet.propose(block, None)));
    parts
        .into_iter()
        .flat_map(|part| (part.len() as u32).to_be_bytes().into_iter().chain(part))
        .collect()
}
