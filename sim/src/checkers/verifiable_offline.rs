//! verifiable-offline: a proof file convinces somebody who holds only the genesis file, and says what the honest
//! validators' final state says of the task: its events with their places and decisions, and its state. One in which a
//! signature, a path, a header or a place differs convinces nobody.

use std::sync::Arc;

use common::{
    codec::{BoundedVec, decode},
    crypto::Signature,
    genesis::Genesis,
    global_queue::HistoryEvent,
    ids::Height,
    merkle::Climb,
    proof::{self, EventProof, ProofReport, ProvenEntry, ProvenEvent, TaskProof},
};

use super::{Checker, Observation};

/// Holds the genesis file.
pub struct VerifiableOffline {
    genesis: Arc<Genesis>,
}

impl VerifiableOffline {
    /// For proofs under `genesis`.
    #[must_use]
    pub fn new(genesis: Arc<Genesis>) -> Self {
        Self { genesis }
    }
}

/// A proof in which one thing differs, and what that is.
type Spoilt = (&'static str, TaskProof);

/// One for each kind of thing that a verifier must look at, as far as `proof` has it. Attestations are in no proof: that a block
/// is final shows that validators checked them.
fn spoilt(proof: &TaskProof) -> Vec<Spoilt> {
    let of = |what, spoil: &dyn Fn(&mut TaskProof) -> Option<()>| {
        let mut spoilt = proof.clone();
        spoil(&mut spoilt).map(|()| (what, spoilt))
    };
    let of_entry =
        |what, spoil: &dyn Fn(&mut EventProof) -> Option<()>| of(what, &|proof| change(&mut proof.events, spoil));
    let kinds = [
        of("signature of the submission", &|proof| {
            proof.submit.signature = flipped(&proof.submit.signature);
            Some(())
        }),
        of("header of a block", &|proof| {
            change(&mut proof.segments, |segment| {
                change(&mut segment.headers, |header| {
                    header.time.0 ^= 1;
                    Some(())
                })
            })
        }),
        of_entry("signature of an author", &|event| match event {
            EventProof::Entry {
                signed: Some(signed), ..
            } => {
                signed.signature = flipped(&signed.signature);
                Some(())
            }
            _ => None,
        }),
        of_entry("place of an entry", &|event| match event {
            EventProof::Entry { leaf, .. } => {
                leaf.index.0 ^= 1;
                Some(())
            }
            EventProof::Machine { .. } => None,
        }),
        of_entry("path to a batch", &|event| match event {
            EventProof::Entry { leaf_path, .. } => lead_astray(leaf_path),
            EventProof::Machine { .. } => None,
        }),
        of_entry("header of a batch", &|event| match event {
            EventProof::Entry { batch, .. } => {
                batch.seq.0 ^= 1;
                Some(())
            }
            EventProof::Machine { .. } => None,
        }),
        of_entry("path to a block", &|event| match event {
            EventProof::Entry { batch_path, .. } => lead_astray(batch_path),
            EventProof::Machine { .. } => None,
        }),
        of_entry("path of a decision", &|event| match event {
            EventProof::Entry {
                outcome: Some(outcome), ..
            }
            | EventProof::Machine { outcome, .. } => lead_astray(&mut outcome.path),
            EventProof::Entry { outcome: None, .. } => None,
        }),
    ];
    let finalizations = proof.segments.iter().map(|segment| &segment.finality.finalization);
    let of_validators = finalizations
        .flat_map(|finalization| &finalization.signers.signatures)
        .filter_map(|signature| {
            of("signature of a validator", &|proof| {
                change(&mut proof.segments, |segment| {
                    change(&mut segment.finality.finalization.signers.signatures, |each| {
                        (each == signature).then(|| *each = flipped(each))
                    })
                })
            })
        });
    kinds.into_iter().flatten().chain(of_validators).collect()
}

/// Spoils the first one that `spoil` can.
fn change<T, const MAX: usize>(all: &mut BoundedVec<T, MAX>, spoil: impl FnMut(&mut T) -> Option<()>) -> Option<()> {
    let mut items = std::mem::take(all).into_inner();
    let changed = items.iter_mut().find_map(spoil);
    *all = items.try_into().ok()?;
    changed
}

/// With one bit of it flipped.
fn flipped(signature: &Signature) -> Signature {
    let mut bytes = signature.to_bytes();
    bytes[0] ^= 1;
    Signature::from_bytes(&bytes)
}

/// To another root. `None` if it has no step: what is looked at is the root then.
fn lead_astray(path: &mut Climb) -> Option<()> {
    change(&mut path.steps, |step| {
        step.sibling.0[0] ^= 1;
        Some(())
    })
}

/// Whether `verify`, which says if a proof convinces, is convinced by none of the spoilt ones.
fn refuses_spoilt(proof: &TaskProof, verify: impl Fn(&TaskProof) -> bool) -> Result<(), String> {
    match spoilt(proof).iter().find(|(_, spoilt)| verify(spoilt)) {
        Some((what, _)) => Err(format!("a proof convinces in which the {what} is spoilt")),
        None => Ok(()),
    }
}

/// Whether it is this event that is proven. Its decision may be pending.
fn is_proven(event: &HistoryEvent, proven: &ProvenEvent) -> bool {
    let place = |entry: &ProvenEntry| (entry.id, entry.author, entry.cluster, entry.founding, entry.index);
    let entry = event
        .entry
        .map(|entry| (entry.id, entry.author, entry.cluster, entry.founding, entry.index));
    let decision = (event.verdict, event.state);
    (event.what, event.height, entry) == (proven.what, proven.height, proven.entry.as_ref().map(place))
        && proven.outcome.is_none_or(|proven| proven == decision)
}

/// Walks through the task's history: all that was decided at `decided` or below is proven with its decision, what came
/// later may be missing, and there is nothing else.
fn tells(report: &ProofReport, history: &[HistoryEvent], decided: Height) -> Result<(), String> {
    let mut proven = report.events.iter().peekable();
    let mut state = None;
    for event in history {
        let found = proven.next_if(|proven| is_proven(event, proven));
        let decision = found.and_then(|proven| proven.outcome);
        if decision.is_none() && event.height <= decided {
            return Err(format!(
                "lacks {:?} of height {}, or its decision {:?}",
                event.what, event.height, event.verdict
            ));
        }
        state = decision.map(|(_, after)| after).or(state);
    }
    if let Some(surplus) = proven.next() {
        return Err(format!(
            "has {:?} of height {}, which the final state does not have",
            surplus.what, surplus.height
        ));
    }
    if report.state == state {
        return Ok(());
    }
    Err(format!("says {:?}, and its events end in {state:?}", report.state))
}

impl Checker for VerifiableOffline {
    fn name(&self) -> &'static str {
        "verifiable-offline"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Proof {
            task,
            bytes,
            history,
            decided,
        } = seen
        else {
            return Ok(());
        };
        let of_task = |what: String| format!("the proof of task {} {what}", task.to_hex());
        match proof::verify(bytes, &self.genesis) {
            Ok(report) if report.task_id == *task => {
                tells(&report, history, *decided).map_err(of_task)?;
                let proof: TaskProof = decode(bytes).map_err(|error| error.to_string())?;
                refuses_spoilt(&proof, |spoilt| proof::verify_proof(spoilt, &self.genesis).is_ok())
            }
            Ok(_) => Err(of_task("is of another task".into())),
            Err(error) => Err(of_task(format!("convinces nobody: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{
        codec::encode,
        entry::Action,
        limits::ROOT_LAG,
        proof::build_proof,
        task::TaskState,
        testing::{Fleet, Ledger, task},
    };

    use super::{super::*, *};

    const HOME: ClusterId = ClusterId(0);

    /// A task that was submitted, and canceled some blocks later; and the state and proof before that.
    struct Canceled {
        ledger: Ledger,
        task: TaskId,
        before: TaskProof,
    }

    fn canceled() -> Canceled {
        let mut ledger = Ledger::new(Fleet::dev());
        let submit = ledger.submit("op1", HOME, Scope::Cluster, &task("sample"));
        let task = TaskId::from(submit.id(&ledger.fleet.chain));
        put(&mut ledger, submit);
        let before = build_proof(&task, &ledger.queue, &ledger).unwrap();
        let cancel = ledger.entry("op1", HOME, Scope::Cluster, Action::Cancel { task });
        put(&mut ledger, cancel);
        Canceled { ledger, task, before }
    }

    /// A block with one entry, and those above it with the root over its decision.
    fn put(ledger: &mut Ledger, entry: common::entry::SignedEntry) {
        let beside = ledger.submit("op1", HOME, Scope::Cluster, &task(&ledger.queue.height().to_string()));
        let batch = ledger.granted(HOME, vec![entry, beside]);
        let beat = ledger.beat(ClusterId(1));
        ledger.block(vec![batch, beat], 100);
        for _ in 0..ROOT_LAG {
            ledger.block(Vec::new(), 100);
        }
    }

    impl Canceled {
        fn history(&self) -> Vec<HistoryEvent> {
            self.ledger.queue.task(&self.task).unwrap().standing.events.clone()
        }

        fn proof(&self) -> TaskProof {
            build_proof(&self.task, &self.ledger.queue, &self.ledger).unwrap()
        }

        /// What the checker says of `proof` beside `history`.
        fn told(&self, proof: &TaskProof, history: Vec<HistoryEvent>, decided: Height) -> Result<(), String> {
            let proof = Observation::Proof {
                task: self.task,
                bytes: encode(proof),
                history,
                decided,
            };
            let genesis = Arc::new(self.ledger.fleet.genesis.clone());
            judge(VerifiableOffline::new(genesis), &[(0, proof)])
        }

        fn decided(&self) -> Height {
            Height(self.ledger.queue.height().0 - ROOT_LAG)
        }
    }

    #[test]
    fn file_that_proves_nothing_is_caught() {
        let genesis = Arc::new(Fleet::dev().genesis);
        let proof = Observation::Proof {
            task: TaskId([1; 32]),
            bytes: vec![1, 2, 3],
            history: Vec::new(),
            decided: Height(0),
        };
        assert!(judge(VerifiableOffline::new(genesis), &[(0, proof)]).is_err());
    }

    #[test]
    fn verifier_that_looks_away_from_one_thing_is_caught() {
        let run = canceled();
        let (proof, genesis) = (run.proof(), &run.ledger.fleet.genesis);
        let convinces = |proof: &TaskProof| proof::verify_proof(proof, genesis).is_ok();
        assert_eq!(refuses_spoilt(&proof, convinces), Ok(()));
        let kinds: Vec<Spoilt> = spoilt(&proof);
        for what in [
            "signature of the submission",
            "signature of an author",
            "signature of a validator",
            "header of a block",
            "header of a batch",
            "place of an entry",
            "path to a batch",
            "path to a block",
            "path of a decision",
        ] {
            let (_, blind) = kinds.iter().find(|(kind, _)| *kind == what).expect(what);
            let told = refuses_spoilt(&proof, |proof| proof == blind || convinces(proof));
            assert!(told.unwrap_err().contains(what));
        }
    }

    #[test]
    fn proof_without_an_event_or_with_a_stale_state_is_caught() {
        let run = canceled();
        let (history, decided) = (run.history(), run.decided());
        assert_eq!(history.last().unwrap().state, TaskState::Canceled);
        assert_eq!(run.told(&run.proof(), history.clone(), decided), Ok(()));
        let stale = run.told(&run.before, history.clone(), decided);
        assert!(stale.unwrap_err().contains("lacks"), "it says that the task is open");
        let below = Height(history.last().unwrap().height.0 - 1);
        assert_eq!(run.told(&run.before, history, below), Ok(()), "it happened since");
    }

    #[test]
    fn proof_without_a_decision_that_was_signed_is_caught() {
        let run = canceled();
        let mut pending = run.proof();
        let mut events: Vec<_> = pending.events.iter().cloned().collect();
        if let Some(proof::EventProof::Entry { outcome, .. }) = events.last_mut() {
            *outcome = None;
        }
        pending.events = events.try_into().unwrap();
        let told = run.told(&pending, run.history(), run.decided());
        assert!(told.unwrap_err().contains("or its decision"));
    }

    #[test]
    fn proof_of_what_the_final_state_does_not_have_is_caught() {
        let run = canceled();
        let (history, decided) = (run.history(), run.decided());
        let surplus = run.told(&run.proof(), history[..1].to_vec(), decided);
        assert!(surplus.unwrap_err().contains("does not have"));
        let changed = |change: fn(&mut HistoryEvent)| {
            let mut history = history.clone();
            change(history.last_mut().unwrap());
            run.told(&run.proof(), history, decided)
        };
        assert!(changed(|event| event.state = TaskState::Completed).is_err());
        assert!(changed(|event| event.height = event.height.next()).is_err());
        assert!(changed(|event| event.entry.as_mut().unwrap().index = LogIndex(99)).is_err());
    }
}
