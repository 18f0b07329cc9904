//! Prints what one `apply` costs on a queue of many tasks, alone and beside views for snapshots.
//!
//! `cargo run --release -p cluster-core --example apply_figures -- 100000`

use std::sync::Arc;

use cluster_core::queue::ClusterQueue;
use common::{
    crypto::AdmittedKey,
    entry::{LogEntry, SignatureOracle, SignedEntry},
    ids::{ChainId, ClusterId, Digest, LogIndex, LogPosition, RaftNodeId, Term},
    task::Scope,
    testing::{Fleet, task},
};

/// Signatures are not what is measured.
struct Trusting;

impl SignatureOracle for Trusting {
    fn is_signed_by(&mut self, _: &SignedEntry, _: &ChainId, _: &AdmittedKey) -> bool {
        true
    }
}

/// Time of this thread on a processor, so that others on the machine do not count; Linux only.
fn on_processor_us() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with scheduler statistics");
    let ns = text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
    ns.expect("a number comes first") / 1e3
}

fn main() {
    let tasks: u64 = std::env::args()
        .nth(1)
        .map_or(100_000, |text| text.parse().expect("a number"));
    let fleet = Fleet::dev();
    let own = ClusterId(0);
    let mut queue = ClusterQueue::genesis(Arc::new(fleet.genesis.clone()), own);
    let leader = RaftNodeId::new(fleet.idx("c1-1"), 1);
    let entries: Vec<SignedEntry> = (1..=tasks + 40_000)
        .map(|number| {
            let mut new = task(&format!("t{number}"));
            new.payload = vec![7; 200].try_into().expect("a small payload");
            fleet.submit("op1", own, number, Scope::Cluster, &new)
        })
        .collect();
    let mut entries = entries.into_iter();
    let mut run = |queue: &mut ClusterQueue, count: u64| {
        let batch: Vec<_> = entries.by_ref().take(count as usize).collect();
        let started = on_processor_us();
        for entry in batch {
            let index = LogIndex(queue.applied().0.index.0 + 1);
            let position = LogPosition { term: Term(1), index };
            queue.apply(
                position,
                leader,
                Digest::default(),
                LogEntry::Author(entry),
                &mut Trusting,
            );
        }
        (on_processor_us() - started) / count as f64
    };
    println!("fill to {tasks}: {:.2} us per apply", run(&mut queue, tasks));
    println!("alone: {:.2} us per apply", run(&mut queue, 10_000));
    let started = on_processor_us();
    let view = queue.view();
    println!("view: {:.1} us", (on_processor_us() - started));
    println!(
        "after a view, which is held: {:.2} us per apply",
        run(&mut queue, 10_000)
    );
    let started = on_processor_us();
    drop(view);
    println!("view dropped: {:.1} us", (on_processor_us() - started));
    println!("alone: {:.2} us per apply", run(&mut queue, 10_000));
    let started = on_processor_us();
    let bytes = queue.to_bytes();
    println!(
        "encoded: {} bytes in {:.0} ms",
        bytes.len(),
        (on_processor_us() - started) / 1e3
    );
}
