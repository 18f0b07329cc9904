//! Checks a proof file with the genesis file alone.

use std::collections::BTreeMap;

use super::{EventProof, OutcomeProof, Segment, SignedHeader, TaskProof};
use crate::{
    batch::{BatchHeader, EntryLeaf},
    block::{BatchRef, BlockHeader, FinalityError},
    bug::{self, Bug},
    codec::{DecodeError, Label, decode},
    entry::{Action, EntryHeader, SignedEntry, StaticFault, StaticVerdict},
    genesis::Genesis,
    global_queue::{MachineEvent, Outcome, What},
    ids::{BatchSeq, BlockTime, ChainId, ClusterId, DeviceId, Digest, EntryId, Founding, Height, LogIndex, TaskId},
    limits::ROOT_LAG,
    merkle::Climb,
    registry::Registry,
    task::{Scope, Task, TaskState},
    validator_set::ValidatorSet,
    verdict::Verdict,
};

/// Which way did not lead to its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathName {
    /// From the entry to the batch's entries root.
    Entry,
    /// From the batch to the block's refs root.
    Batch,
    /// From the outcome to the outcome root.
    Outcome,
}

impl core::fmt::Display for PathName {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::Entry => "entry is not in its batch",
            Self::Batch => "batch is not in its block",
            Self::Outcome => "outcome is not under the outcome root",
        })
    }
}

/// Why a file proves nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// No proof file, a damaged one, or of another version.
    #[error("not a proof file: {0}")]
    Decode(#[from] DecodeError),
    /// Of another fleet.
    #[error("a proof of fleet {got}, the genesis file is of {want}")]
    WrongFleet {
        /// Of the file.
        got: ChainId,
        /// Of the genesis file.
        want: ChainId,
    },
    /// A header does not follow the one before.
    #[error("the header at height {0} does not follow the one before")]
    BrokenChain(Height),
    /// A run of headers is not final.
    #[error("the header at height {height} is not final: {error}")]
    NotFinal {
        /// Height of the last of the run.
        height: Height,
        /// Why.
        error: FinalityError,
    },
    /// What is given as the submission is none.
    #[error("the file's first entry is no submission")]
    NoSubmission,
    /// The submission is malformed or not signed by its author.
    #[error("the submission: {0}")]
    Submission(StaticFault),
    /// An author that is not in the genesis file, or a key that it never had.
    #[error("the author {0} of event {1} is not in the genesis file, or never had this key")]
    UnknownAuthor(DeviceId, usize),
    /// An author's signature does not verify.
    #[error("the author's signature of event {0} does not verify")]
    BadSignature(usize),
    /// The file has no header at this height.
    #[error("event {event} needs the header at height {height}, which is not in the file")]
    MissingHeader {
        /// Position of the event.
        event: usize,
        /// Height needed.
        height: Height,
    },
    /// A path does not lead to the root in the header.
    #[error("event {event}: the {path}")]
    WrongPath {
        /// Position of the event.
        event: usize,
        /// Which path.
        path: PathName,
    },
    /// Parts of an event that do not belong together, or to this task.
    #[error("event {0} is about something else: {1}")]
    Mismatch(usize, &'static str),
    /// Events that do not ascend, or do not begin with the submission.
    #[error("event {0} is out of order")]
    OutOfOrder(usize),
}

/// One event that the file proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenEvent {
    /// What it was.
    pub what: What,
    /// Height of the block that ordered it.
    pub height: Height,
    /// Time of that block.
    pub time: BlockTime,
    /// Digest of that block's header.
    pub block: Digest,
    /// The entry; `None` for a decision of the machinery.
    pub entry: Option<ProvenEntry>,
    /// Decision and state of the task afterwards; `None` while they are pending.
    pub outcome: Option<(Verdict, TaskState)>,
}

/// The entry behind an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProvenEntry {
    /// Its identity.
    pub id: EntryId,
    /// Who signed it.
    pub author: DeviceId,
    /// The author's name in the genesis file.
    pub author_label: Label,
    /// Cluster whose log holds it.
    pub cluster: ClusterId,
    /// Founding of that log.
    pub founding: Founding,
    /// Where in that log.
    pub index: LogIndex,
    /// The batch that carried it.
    pub seq: BatchSeq,
    /// What the cluster decided.
    pub cluster_verdict: Verdict,
}

/// What a file proves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProofReport {
    /// The task.
    pub task_id: TaskId,
    /// Who submitted it.
    pub author: DeviceId,
    /// The author's name in the genesis file.
    pub author_label: Label,
    /// Whose queue it is in.
    pub scope: Scope,
    /// Cluster it was submitted through.
    pub through: ClusterId,
    /// What is to be done, as it was signed.
    pub task: Task,
    /// In order.
    pub events: Vec<ProvenEvent>,
    /// State after the newest event with a decision; `None` while all are pending.
    pub state: Option<TaskState>,
}

/// Checks a proof file.
///
/// # Errors
/// [`ProofError`]: it proves nothing.
pub fn verify(bytes: &[u8], genesis: &Genesis) -> Result<ProofReport, ProofError> {
    verify_proof(&decode::<TaskProof>(bytes)?, genesis)
}

/// Checks a decoded proof.
///
/// # Errors
/// [`ProofError`]: it proves nothing.
pub fn verify_proof(proof: &TaskProof, genesis: &Genesis) -> Result<ProofReport, ProofError> {
    let registry = Registry::from_genesis(genesis);
    let chain = *registry.chain();
    if proof.chain != chain {
        return Err(ProofError::WrongFleet {
            got: proof.chain,
            want: chain,
        });
    }
    let headers = final_headers(&proof.segments, &chain, &ValidatorSet::from_genesis(genesis))?;
    let submit = check_submission(&proof.submit, &registry)?;
    let checker = Checker {
        registry: &registry,
        headers,
        submit,
        task: submit.id(&chain).into(),
    };
    let mut events = Vec::with_capacity(proof.events.len());
    let mut newest = Height(0);
    for (at, event) in proof.events.iter().enumerate() {
        let proven = checker.event(at, event)?;
        if proven.height < newest {
            return Err(ProofError::OutOfOrder(at));
        }
        newest = proven.height;
        events.push(proven);
    }
    if events.is_empty() {
        return Err(ProofError::OutOfOrder(0));
    }
    Ok(ProofReport {
        task_id: checker.task,
        author: submit.author,
        author_label: checker.label(&submit.author, 0)?,
        scope: submit.scope,
        through: submit.cluster,
        task: proof.submit.task()?,
        state: events
            .iter()
            .rev()
            .find_map(|event| event.outcome)
            .map(|outcome| outcome.1),
        events,
    })
}

/// All headers of the file by height, each shown to be final.
fn final_headers<'a>(
    segments: &'a [Segment],
    chain: &ChainId,
    set: &ValidatorSet,
) -> Result<BTreeMap<Height, &'a BlockHeader>, ProofError> {
    let mut headers: BTreeMap<Height, &BlockHeader> = BTreeMap::new();
    for segment in segments {
        let mut below: Option<&BlockHeader> = None;
        for header in &segment.headers {
            let follows = below.is_none_or(|below| {
                header.parent == below.digest() && below.height.0.checked_add(1) == Some(header.height.0)
            });
            let ascends = headers
                .last_key_value()
                .is_none_or(|(newest, _)| *newest < header.height);
            if !follows || !ascends {
                return Err(ProofError::BrokenChain(header.height));
            }
            headers.insert(header.height, header);
            below = Some(header);
        }
        let last = below.expect("a decoded run holds a header");
        segment
            .finality
            .verify(last, chain, set)
            .map_err(|error| ProofError::NotFinal {
                height: last.height,
                error,
            })?;
    }
    Ok(headers)
}

fn check_submission<'a>(submit: &'a SignedEntry, registry: &Registry) -> Result<&'a EntryHeader, ProofError> {
    if submit.header.action != Action::Submit {
        return Err(ProofError::NoSubmission);
    }
    match submit.clone().check(registry) {
        StaticVerdict::Good(_) => Ok(&submit.header),
        StaticVerdict::Bad(fault) => Err(ProofError::Submission(fault)),
        StaticVerdict::UnknownKey => Err(ProofError::UnknownAuthor(submit.header.author, 0)),
    }
}

struct Checker<'a> {
    registry: &'a Registry,
    headers: BTreeMap<Height, &'a BlockHeader>,
    submit: &'a EntryHeader,
    task: TaskId,
}

impl Checker<'_> {
    fn event(&self, at: usize, event: &EventProof) -> Result<ProvenEvent, ProofError> {
        match event {
            EventProof::Machine { height, outcome } => {
                let proven = self.outcome(at, *height, outcome)?;
                let Outcome::Machine { task, what, state } = proven else {
                    return Err(ProofError::Mismatch(at, "not a decision of the machinery"));
                };
                self.check_task(at, Some(task))?;
                if at == 0 {
                    return Err(ProofError::OutOfOrder(at));
                }
                self.proven(at, *height, What::Machine(what), None, Some((Verdict::Granted, state)))
            }
            EventProof::Entry {
                height,
                signed,
                leaf,
                leaf_path,
                batch,
                batch_path,
                outcome,
            } => {
                let header = self.signed(at, signed.as_ref())?;
                self.check_place(at, *height, (leaf, leaf_path), (batch, batch_path))?;
                if header.id(self.registry.chain()) != leaf.id || header.cluster != batch.cluster {
                    return Err(ProofError::Mismatch(at, "the place is that of another entry"));
                }
                let decided = outcome
                    .as_ref()
                    .map(|outcome| self.decided(at, *height, leaf.id, outcome))
                    .transpose()?;
                let entry = ProvenEntry {
                    id: leaf.id,
                    author: header.author,
                    author_label: self.label(&header.author, at)?,
                    cluster: batch.cluster,
                    founding: leaf.founding,
                    index: leaf.index,
                    seq: batch.seq,
                    cluster_verdict: leaf.verdict,
                };
                let what = What::of(&header.action).ok_or(ProofError::Mismatch(at, "a renewal"))?;
                self.proven(at, *height, what, Some(entry), decided)
            }
        }
    }

    fn proven(
        &self,
        at: usize,
        height: Height,
        what: What,
        entry: Option<ProvenEntry>,
        outcome: Option<(Verdict, TaskState)>,
    ) -> Result<ProvenEvent, ProofError> {
        let header = self.header(at, height)?;
        Ok(ProvenEvent {
            what,
            height,
            time: header.time,
            block: header.digest(),
            entry,
            outcome,
        })
    }

    /// The signed header of an event's entry, its signature checked. The first is the submission.
    fn signed<'b>(&'b self, at: usize, signed: Option<&'b SignedHeader>) -> Result<&'b EntryHeader, ProofError> {
        let Some(signed) = signed else {
            return if at == 0 {
                Ok(self.submit)
            } else {
                Err(ProofError::OutOfOrder(at))
            };
        };
        if at == 0 {
            return Err(ProofError::OutOfOrder(at));
        }
        let header = &signed.header;
        self.check_task(at, header.action.task())?;
        let key = self
            .registry
            .key(&header.author, header.key_version)
            .ok_or(ProofError::UnknownAuthor(header.author, at))?;
        if !key.verifies(&header.preimage(self.registry.chain()), &signed.signature) {
            return Err(ProofError::BadSignature(at));
        }
        Ok(header)
    }

    fn check_place(
        &self,
        at: usize,
        height: Height,
        (leaf, leaf_path): (&EntryLeaf, &Climb),
        (batch, batch_path): (&BatchHeader, &Climb),
    ) -> Result<(), ProofError> {
        let wrong = |path| ProofError::WrongPath { event: at, path };
        if leaf_path.root_from(leaf.digest()) != batch.entries_root {
            return Err(wrong(PathName::Entry));
        }
        let named = BatchRef {
            cluster: batch.cluster,
            founding: batch.founding,
            seq: batch.seq,
            digest: batch.digest(self.registry.chain()),
        };
        if batch_path.root_from(named.leaf()) != self.header(at, height)?.refs_root {
            return Err(wrong(PathName::Batch));
        }
        Ok(())
    }

    fn decided(
        &self,
        at: usize,
        height: Height,
        id: EntryId,
        outcome: &OutcomeProof,
    ) -> Result<(Verdict, TaskState), ProofError> {
        match self.outcome(at, height, outcome)? {
            Outcome::Entry {
                id: decided,
                task,
                verdict,
                state: Some(state),
                ..
            } if decided == id => {
                self.check_task(at, task)?;
                Ok((verdict, state))
            }
            _ => Err(ProofError::Mismatch(at, "the outcome is that of another entry")),
        }
    }

    /// The outcome, if it is under the outcome root of its block.
    fn outcome(&self, at: usize, height: Height, proof: &OutcomeProof) -> Result<Outcome, ProofError> {
        let lag = height.0.checked_add(ROOT_LAG).map(Height);
        let header = self.header(at, lag.ok_or(ProofError::OutOfOrder(at))?)?;
        let is_under = proof.path.root_from(proof.outcome.leaf()) == header.outcome_root;
        if !is_under && !bug::active(Bug::DecisionUnchecked) {
            return Err(ProofError::WrongPath {
                event: at,
                path: PathName::Outcome,
            });
        }
        Ok(proof.outcome)
    }

    fn header(&self, at: usize, height: Height) -> Result<&BlockHeader, ProofError> {
        self.headers
            .get(&height)
            .copied()
            .ok_or(ProofError::MissingHeader { event: at, height })
    }

    fn check_task(&self, at: usize, task: Option<TaskId>) -> Result<(), ProofError> {
        if task == Some(self.task) {
            Ok(())
        } else {
            Err(ProofError::Mismatch(at, "of another task"))
        }
    }

    fn label(&self, author: &DeviceId, at: usize) -> Result<Label, ProofError> {
        self.registry
            .by_id(author)
            .map(|member| member.label.clone())
            .ok_or(ProofError::UnknownAuthor(*author, at))
    }
}

impl ProvenEvent {
    /// The word used in tables and JSON.
    #[must_use]
    pub fn word(&self) -> &'static str {
        self.what.word()
    }

    /// The cluster that a decision of the machinery placed the task with.
    #[must_use]
    pub fn assigned_to(&self) -> Option<ClusterId> {
        match self.what {
            What::Machine(MachineEvent::Assigned { cluster, .. }) => Some(cluster),
            _ => None,
        }
    }
}
