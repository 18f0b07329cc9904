//! Gathers what the judge needs from the fleet when the day is over: final states, digests, proofs.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use common::{
    codec::BoundedVec,
    ids::TaskId,
    proof,
    task::TaskState,
    verdict::{Reason, Verdict},
    wire::op::{Consistency, Finality, OpAnswer, OpRequest, TaskView},
};
use futures::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use super::{
    generator::SplitMix,
    journal::{Event, Journal},
    judge::{Digests, FinalTask, Proofs},
};
use crate::{client::Client, view::text_or_hex};

/// How often finality is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Proofs that are fetched at one time.
const PROOFS_AT_ONCE: usize = 8;
/// One proof in so many is also tried with a flipped bit.
const TAMPER_EVERY: usize = 50;

/// Everything that is final, as one validator says; the next is asked if it does not answer.
pub async fn final_tasks(client: &Client) -> Option<BTreeMap<TaskId, TaskView>> {
    for peer in client.context.validators() {
        let mut tasks = BTreeMap::new();
        let mut after = None;
        loop {
            let request = OpRequest::Tasks {
                states: BoundedVec::new(),
                after,
                limit: 256,
                consistency: Consistency::Final,
                staleness_ms_max: None,
            };
            let Ok(OpAnswer::Tasks { tasks: page, more, .. }) =
                client.ask(peer, &request, Duration::from_secs(4)).await
            else {
                break;
            };
            let last = page.last().map(|view| view.id);
            let moves_on = last > after;
            tasks.extend(page.into_inner().into_iter().map(|view| (view.id, view)));
            if !more || !moves_on {
                return Some(tasks);
            }
            after = last;
        }
    }
    None
}

/// Whether the task itself is in the fleet's order; a second submission under one key is not.
fn is_final(view: &TaskView) -> bool {
    match view.finality {
        Finality::Final { verdict, .. } => !matches!(
            verdict,
            Verdict::Rejected(Reason::DuplicateOf(_) | Reason::KeyConflict(_))
        ),
        Finality::Buffered | Finality::Refused { .. } | Finality::ClusterCommitted => false,
    }
}

/// Journals when each task is first seen final. Runs until it is dropped.
pub async fn watch_finality(client: &Client, journal: &Journal) {
    let mut seen = BTreeSet::new();
    loop {
        if let Some(tasks) = final_tasks(client).await {
            for view in tasks.values().filter(|view| is_final(view)) {
                if seen.insert(view.id) {
                    journal.record(Event::SeenFinal { task: view.id.to_hex() });
                }
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Waits until every task is over, and returns the last picture whatever it is.
pub async fn wait_over(
    client: &Client,
    acknowledged: &BTreeSet<String>,
    limit: Duration,
) -> BTreeMap<String, FinalTask> {
    let end = Instant::now() + limit;
    let mut picture = BTreeMap::new();
    loop {
        if let Some(tasks) = final_tasks(client).await {
            picture = tasks.values().filter(|view| is_final(view)).map(final_task).collect();
        }
        let is_over = |id: &String| picture.get(id).is_some_and(|task: &FinalTask| !task.state.is_open());
        if acknowledged.iter().all(is_over) || Instant::now() >= end {
            return picture;
        }
        sleep(LOOK_EVERY).await;
    }
}

fn final_task(view: &TaskView) -> (String, FinalTask) {
    let task = FinalTask {
        key: text_or_hex(&view.task.key),
        state: view.state,
        after: view.task.after.iter().map(|id| id.to_hex()).collect(),
    };
    (view.id.to_hex(), task)
}

/// Compares the digests of all processes at equal positions, until each was compared with another.
pub async fn compare_digests(client: &Client, limit: Duration) -> Digests {
    let end = Instant::now() + limit;
    let peers: Vec<_> = client.context.peers.iter().collect();
    let mut digests = Digests {
        expected: peers.len(),
        ..Digests::default()
    };
    // By position (what, where): who says which digest.
    let mut said: BTreeMap<(String, u64), BTreeMap<String, String>> = BTreeMap::new();
    loop {
        for (peer, answer) in peers.iter().zip(client.ask_all(&peers, &OpRequest::Status).await) {
            let mut say = |what: String, at: u64, digest: String| {
                said.entry((what, at)).or_default().insert(peer.label.clone(), digest);
            };
            match answer {
                Ok(OpAnswer::Validator(status)) => {
                    say("global state".into(), status.executed.0, status.state_digest.to_hex());
                    say("block".into(), status.height.0, status.block.to_hex());
                }
                Ok(OpAnswer::Agent(status)) => {
                    say(
                        "global state".into(),
                        status.context.global_height.0,
                        status.global_digest.to_hex(),
                    );
                    let queue = format!("queue of {}", client.context.cluster_label(status.cluster));
                    say(queue, status.context.applied.0, status.queue_digest.to_hex());
                }
                _ => {}
            }
        }
        digests.compared.clear();
        for ((what, _), by) in &said {
            if what == "global state" && by.len() > 1 {
                digests.compared.extend(by.keys().cloned());
            }
        }
        if digests.compared.len() >= digests.expected || Instant::now() >= end {
            break;
        }
        sleep(Duration::from_millis(70)).await;
    }
    for ((what, at), by) in &said {
        let different: BTreeSet<&String> = by.values().collect();
        if different.len() > 1 {
            digests.differences.push(format!("{what} at {at}: {by:?}"));
        }
    }
    digests
}

/// Fetches and verifies the proof of every task, offline but for the fetching.
pub async fn gather_proofs(
    client: &Client,
    acknowledged: &BTreeSet<String>,
    finals: &BTreeMap<String, FinalTask>,
    seed: u64,
) -> Proofs {
    let mut proofs = Proofs::default();
    let work = acknowledged.iter().enumerate().map(|(nth, task)| async move {
        let bytes = fetch_proof(client, task, finals.get(task).map(|task| task.state), nth).await;
        (nth, task, bytes)
    });
    let mut fetched = stream::iter(work).buffer_unordered(PROOFS_AT_ONCE);
    let mut random = SplitMix::new(seed);
    while let Some((nth, task, outcome)) = fetched.next().await {
        let bytes = match outcome {
            Ok(bytes) => bytes,
            Err(failure) => {
                proofs.failures.push(format!("{task}: {failure}"));
                continue;
            }
        };
        proofs.verified.insert(task.clone());
        if nth % TAMPER_EVERY == 0 {
            let mut tampered = bytes;
            let bit = random.below(tampered.len() as u64 * 8);
            tampered[(bit / 8) as usize] ^= 1 << (bit % 8);
            proofs.tampered.0 += 1;
            proofs.tampered.1 += usize::from(proof::verify(&tampered, &client.context.genesis).is_err());
        }
    }
    proofs
}

/// One task's proof, verified, and about that task in that state.
async fn fetch_proof(client: &Client, task: &str, state: Option<TaskState>, nth: usize) -> Result<Vec<u8>, String> {
    let id = TaskId::from_hex(task).ok_or("no task id")?;
    let mut validators = client.context.validators();
    let shift = nth % validators.len().max(1);
    validators.rotate_left(shift);
    let end = Instant::now() + Duration::from_secs(8);
    loop {
        let found = client
            .ask_until(
                &validators,
                &OpRequest::Prove { task: id },
                |_, answer, _| match answer {
                    OpAnswer::Proof(bytes) => Some(bytes.into_inner()),
                    _ => None,
                },
            )
            .await
            .map_err(|failure| failure.what)
            .and_then(|bytes| check_proof(&bytes, client, &id, state).map(|()| bytes));
        // The root over a task's last event is in a later block: ask again shortly.
        if found.is_ok() || Instant::now() >= end {
            return found;
        }
        sleep(LOOK_EVERY).await;
    }
}

fn check_proof(bytes: &[u8], client: &Client, task: &TaskId, state: Option<TaskState>) -> Result<(), String> {
    let report = proof::verify(bytes, &client.context.genesis).map_err(|e| e.to_string())?;
    if report.task_id != *task {
        return Err(format!("is about {}", report.task_id.to_hex()));
    }
    if report.state != state {
        return Err(format!("says {:?}, the fleet says {state:?}", report.state));
    }
    Ok(())
}
