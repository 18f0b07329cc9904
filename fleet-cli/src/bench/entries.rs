//! What a benchmark submits: tasks whose encoding has a given length, signed by many authors.
//!
//! # Rules
//! * Each entry is signed when it is sent, inside of the measured time: signing is part of a submit.
//! * Numbers of an author ascend in the order of signing; no number is used twice.

use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use common::{
    crypto::{AdmittedKey, DeviceKey},
    entry::{Action, EntryDraft, SignedEntry},
    ids::{ChainId, ClusterId, DeviceId, EntryNumber, Height, KeyVersion, TaskId},
    task::{Scope, Task, TaskKind},
    verdict::Verdict,
    wire::{
        cluster::WriteOutcome,
        frame::RefusalCode,
        op::{OpAnswer, OpRequest, WriteRefusal},
    },
};
use transport::{identity::KeyFile, ports::CallError};

use super::{host::AUTHORS, load::Fault};
use crate::{
    client::{
        AskError, Client, Peer,
        author::{not_after, task_payload},
    },
    exit::{Exit, Failure, Outcome},
};

/// Encoded length of each task.
pub const TASK_BYTES: usize = 256;
/// How long one submit may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long each primitive is measured.
const PRIMITIVE_TIME: Duration = Duration::from_millis(300);

struct Author {
    device: DeviceId,
    key: DeviceKey,
    number: AtomicU64,
}

/// Signs tasks, each author in turn.
pub struct Signer {
    chain: ChainId,
    authors: Vec<Author>,
    turn: AtomicU64,
    scope: Scope,
}

impl Signer {
    /// The operators of a benchmark's fleet, whose keys lie in `operators`.
    ///
    /// # Errors
    /// Of the key files.
    pub fn open(client: &Client, operators: &Path, scope: Scope) -> Outcome<Self> {
        let mut authors = Vec::new();
        for n in 1..=AUTHORS {
            let label = format!("op{n}");
            let key = KeyFile::load(&operators.join(format!("{label}.key")))
                .map_err(|e| Failure::new(Exit::Invalid, e))?
                .device_key();
            let member = client.context.registry.by_label(&label);
            let member =
                member.ok_or_else(|| Failure::new(Exit::Failed, format!("{label} is not in the genesis file")))?;
            authors.push(Author {
                device: member.id,
                key,
                number: AtomicU64::new(0),
            });
        }
        Ok(Self {
            chain: client.context.chain,
            authors,
            turn: AtomicU64::new(0),
            scope,
        })
    }

    /// Signs the submission of a new task of [`TASK_BYTES`] through `cluster`.
    pub fn submit(&self, cluster: ClusterId) -> SignedEntry {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let author = &self.authors[(turn % self.authors.len() as u64) as usize];
        self.sign(author, cluster, turn)
    }

    fn sign(&self, author: &Author, cluster: ClusterId, nth: u64) -> SignedEntry {
        let number = author.number.fetch_add(1, Ordering::Relaxed) + 1;
        let draft = EntryDraft {
            author: author.device,
            key_version: KeyVersion(0),
            cluster,
            number: EntryNumber(number),
            not_after_height: not_after(Height(0)),
            scope: self.scope,
            action: Action::Submit,
        };
        SignedEntry::sign(&author.key, &self.chain, draft, task_payload(&task(nth)))
    }

    /// Submits a new task through `peer` and returns its id once it is on the disks of a majority and accepted.
    ///
    /// # Errors
    /// The kind of the failure.
    pub async fn send(&self, client: &Client, peer: &Peer) -> Result<TaskId, Fault> {
        let cluster = peer.cluster.ok_or("not an agent")?;
        let entry = self.submit(cluster);
        let id = TaskId::from(entry.id(&self.chain));
        enter(client, peer, entry, DEADLINE).await.map(|()| id)
    }

    /// What one core can sign and verify, measured now on this machine. Uses up numbers of the first author.
    #[must_use]
    pub fn primitives(&self) -> Primitives {
        let author = &self.authors[0];
        let key = AdmittedKey::admit(&author.key.public()).expect("a key that was made here is admitted");
        let sign_us = mean_us(|| drop(std::hint::black_box(self.sign(author, ClusterId(0), 0))));
        let entry = self.sign(author, ClusterId(0), 0);
        let verify_us = mean_us(|| assert!(std::hint::black_box(&entry).is_signed_by(&self.chain, &key)));
        Primitives { sign_us, verify_us }
    }
}

/// Costs of one core, microseconds.
#[derive(Clone, Copy, Debug)]
pub struct Primitives {
    /// Of one signature.
    pub sign_us: f64,
    /// Of one verification.
    pub verify_us: f64,
}

impl Primitives {
    /// Submits per second that this machine could do if it did nothing but sign once and verify on three members.
    #[must_use]
    pub fn bound_per_s(&self) -> f64 {
        let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
        cores * 1e6 / (3.0 * self.verify_us + self.sign_us)
    }
}

fn mean_us(mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    let mut count = 0_u32;
    while begin.elapsed() < PRIMITIVE_TIME {
        work();
        count += 1;
    }
    begin.elapsed().as_secs_f64() * 1e6 / f64::from(count)
}

/// A task that is encoded in [`TASK_BYTES`].
fn task(nth: u64) -> Task {
    let key = nth.to_be_bytes().to_vec().try_into().expect("a key of 8 bytes");
    let mut task = Task::new(key, TaskKind::Survey);
    let bare = common::codec::encode(&task).len();
    // The length of a payload above 127 bytes takes one byte more than that of an empty one.
    let fill = TASK_BYTES - bare - 1;
    task.payload = vec![7; fill].try_into().expect("below the bound of a payload");
    task
}

/// Enters signed bytes through `peer`; done when they are committed and accepted.
///
/// # Errors
/// The kind of the failure.
pub async fn enter(client: &Client, peer: &Peer, entry: SignedEntry, deadline: Duration) -> Result<(), Fault> {
    match client.ask(peer, &OpRequest::Enter(entry), deadline).await {
        Ok(OpAnswer::Write { outcome, .. }) => match outcome {
            WriteOutcome::Committed(answer) if answer.verdict == Verdict::Granted => Ok(()),
            WriteOutcome::Committed(answer) => Err(format!("rejected: {:?}", answer.verdict)),
            WriteOutcome::Refused(refusal) => Err(refusal_word(&refusal)),
            WriteOutcome::Unknown => Err("unknown".to_owned()),
        },
        Ok(_) => Err("malformed".to_owned()),
        Err(error) => Err(fault_of(&error)),
    }
}

fn refusal_word(refusal: &WriteRefusal) -> Fault {
    match refusal {
        WriteRefusal::NoQuorum { .. } => "no quorum".to_owned(),
        WriteRefusal::CatchingUp { .. } => "catching up".to_owned(),
        WriteRefusal::Overloaded { what, .. } => format!("overloaded: {what}"),
        WriteRefusal::Rejected { verdict, .. } => format!("rejected: {verdict:?}"),
    }
}

/// The kind of a failed call.
#[must_use]
pub fn fault_of(error: &AskError) -> Fault {
    let word = match error {
        AskError::Call(CallError::Refused(refusal)) => match refusal.code {
            RefusalCode::Denied => "denied",
            RefusalCode::Invalid => "invalid",
            RefusalCode::NotFound => "not found",
            RefusalCode::Busy => "busy",
            RefusalCode::NotNow => "not now",
        },
        AskError::Call(CallError::Unreachable(_)) => "unreachable",
        AskError::Call(CallError::Timeout(_)) => "timeout",
        AskError::Call(CallError::Broken(_)) => "broken",
        AskError::Malformed => "malformed",
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_has_the_length_that_is_announced() {
        for nth in [0, 1, u64::from(u32::MAX), u64::MAX] {
            assert_eq!(task_payload(&task(nth)).len(), TASK_BYTES, "{nth}");
        }
    }
}
