//! openraft's state machine over ours: applies in order, keeps the chain, makes and installs snapshots.
//!
//! # Rules
//! * Upon a committed entry: recompute its chain, give commands to the machine, answer at once.
//!   Blank and membership entries only move the position.
//! * Upon a snapshot: the machine hands out a view in the same step, so that the snapshot stands
//!   between two entries; encoding and writing go on beside.
//! * Upon an installation: check the digest, restore, make it durable, then answer.
//! * The machine lives in memory. After a restart it is restored from the last snapshot and the log
//!   above it, up to what is known to be committed.
//!
//! # Invariants
//! * apply-order: positions given to the machine ascend without a gap.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use common::ids::{Digest, LogPosition, RaftNodeId};
use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use openraft_rt::AsyncRuntime;
use sha2::{Digest as _, Sha256};

use super::{
    codec::{self, SNAPSHOT_BYTES_MAX, SnapshotBody},
    log::RaftLog,
    signal::Signal,
    store::{StoreError, snapshot::SnapshotStore},
    types::{
        Answer, Entry, LogId, Snapshot, SnapshotMeta, StoredMembers, TypeConfig, entry_to_wire, log_id_from_wire,
        log_id_to_wire, members_from_wire, members_to_wire, position,
    },
};

/// Encodes a view of the machine that was taken earlier.
pub type SnapshotJob = Box<dyn FnOnce() -> Vec<u8> + Send>;

/// The replicated state machine of a cluster. One task calls everything but the reads of its owner.
///
/// # Rules
/// Equal commands at equal positions give equal states and equal answers on every member.
pub trait ReplicatedMachine: Send + Sync + 'static {
    /// Applies a committed command and answers it. `leader` led the position's term and appended it;
    /// `chain` covers the log up to and with `position`.
    fn apply(&self, position: LogPosition, leader: RaftNodeId, chain: Digest, command: &[u8]) -> Vec<u8>;

    /// Moves the applied position over an entry without a command (a new term, a membership).
    fn advance(&self, position: LogPosition, chain: Digest);

    /// Takes a view in constant time; the job encodes it later, while entries are applied.
    fn snapshot(&self) -> SnapshotJob;

    /// Becomes exactly the machine whose [`snapshot`](Self::snapshot) made `bytes`, at `position`.
    ///
    /// # Errors
    /// [`RestoreError`] leaves the machine as it was; the member stops.
    fn restore(&self, position: LogPosition, chain: Digest, bytes: &[u8]) -> Result<(), RestoreError>;
}

/// A snapshot that the machine does not accept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the snapshot is not one of this machine: {0}")]
pub struct RestoreError(pub String);

/// openraft's state machine. Clones share it.
pub(super) struct MachineAdapter<R> {
    inner: Arc<Inner<R>>,
}

impl<R> Clone for MachineAdapter<R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

struct Inner<R> {
    machine: Arc<dyn ReplicatedMachine>,
    snapshots: Arc<dyn SnapshotStore>,
    log: RaftLog<R>,
    applied: Mutex<Applied>,
    newest: Mutex<Option<(SnapshotMeta, Bytes)>>,
    signal: Signal,
}

#[derive(Clone, Default)]
struct Applied {
    last: Option<LogId>,
    chain: Digest,
    members: StoredMembers,
}

impl<R: AsyncRuntime> MachineAdapter<R> {
    /// Loads the newest snapshot; openraft then restores from it.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if it does not have its digest: the member must not start, since the
    /// log below it is purged.
    pub async fn open(
        machine: Arc<dyn ReplicatedMachine>,
        snapshots: Arc<dyn SnapshotStore>,
        log: RaftLog<R>,
        signal: Signal,
    ) -> Result<Self, StoreError> {
        let newest = match snapshots.load().await? {
            None => None,
            Some(bytes) => {
                let (meta, _) = open_snapshot(&bytes).map_err(StoreError::Corrupt)?;
                Some((meta, bytes))
            }
        };
        let applied = Mutex::new(Applied::default());
        let inner = Inner {
            machine,
            snapshots,
            log,
            applied,
            newest: Mutex::new(newest),
            signal,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Position and chain of the last applied entry; position 0 before the first.
    pub fn applied(&self) -> (LogPosition, Digest) {
        let applied = lock(&self.inner.applied);
        (
            applied.last.as_ref().map_or(LogPosition::default(), position),
            applied.chain,
        )
    }

    /// Last entry of the newest snapshot; position 0 without one.
    pub fn snapshot_position(&self) -> LogPosition {
        let newest = lock(&self.inner.newest);
        let last = newest
            .as_ref()
            .and_then(|(meta, _)| meta.last_log_id.as_ref().map(position));
        last.unwrap_or_default()
    }

    fn apply_one(&self, entry: &Entry) -> Result<Vec<u8>, StoreError> {
        let wire = entry_to_wire(entry).map_err(|error| StoreError::Corrupt(error.to_string()))?;
        let previous = lock(&self.inner.applied).chain;
        let chain = wire.chain(previous);
        if entry.chain.is_some_and(|stored| stored != chain) {
            let index = wire.id.index;
            return Err(StoreError::Corrupt(format!(
                "entry {index} does not continue the applied history"
            )));
        }
        let at = position(&entry.id);
        let answer = match &entry.payload {
            EntryPayload::Normal(command) => self.inner.machine.apply(at, wire.id.leader, chain, &command.0),
            EntryPayload::Blank | EntryPayload::Membership(_) => {
                self.inner.machine.advance(at, chain);
                Vec::new()
            }
        };
        let mut applied = lock(&self.inner.applied);
        applied.last = Some(entry.id);
        applied.chain = chain;
        if let EntryPayload::Membership(members) = &entry.payload {
            applied.members = StoredMembers::new(Some(entry.id), members.clone());
        }
        Ok(answer)
    }

    fn builder(&self) -> SnapshotBuilder<R> {
        let applied = lock(&self.inner.applied).clone();
        SnapshotBuilder {
            adapter: self.clone(),
            applied,
            job: Mutex::new(Some(self.inner.machine.snapshot())),
        }
    }

    async fn keep(&self, meta: SnapshotMeta, bytes: Bytes) -> Result<(), StoreError> {
        if lock(&self.inner.newest)
            .as_ref()
            .is_some_and(|(kept, _)| kept.last_log_id >= meta.last_log_id)
        {
            return Ok(());
        }
        let at = meta.last_log_id.as_ref().map_or(LogPosition::default(), position);
        self.inner.snapshots.save(at, bytes.clone()).await?;
        *lock(&self.inner.newest) = Some((meta, bytes));
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Digest in front, so that a torn or foreign file is refused before it is decoded.
fn seal_snapshot(body: SnapshotBody) -> Bytes {
    let encoded = codec::encode(body);
    let mut sealed = Vec::with_capacity(encoded.len() + 32);
    sealed.extend_from_slice(&Sha256::digest(&encoded));
    sealed.extend_from_slice(&encoded);
    sealed.into()
}

/// # Errors
/// What is wrong with the bytes, for the log.
pub(super) fn open_snapshot(bytes: &[u8]) -> Result<(SnapshotMeta, SnapshotBody), String> {
    let Some((digest, encoded)) = bytes.split_at_checked(32) else {
        return Err(format!("snapshot of {} bytes", bytes.len()));
    };
    if Sha256::digest(encoded)[..] != *digest {
        return Err("the snapshot does not have its digest".into());
    }
    let body: SnapshotBody = codec::decode(encoded).map_err(|error| format!("snapshot: {error}"))?;
    let members = members_from_wire(&body.membership)?;
    let meta = SnapshotMeta {
        last_log_id: body.last.map(log_id_from_wire),
        last_membership: StoredMembers::new(body.membership_at.map(log_id_from_wire), members),
    };
    Ok((meta, body))
}

/// A view of the machine between two entries, on its way to the disk.
pub(super) struct SnapshotBuilder<R> {
    adapter: MachineAdapter<R>,
    applied: Applied,
    job: Mutex<Option<SnapshotJob>>,
}

impl<R: AsyncRuntime> RaftSnapshotBuilder<TypeConfig<R>> for SnapshotBuilder<R> {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let job = lock(&self.job)
            .take()
            .ok_or_else(|| StoreError::Misuse("a snapshot is built once".into()))?;
        let machine = job();
        let bytes_max = SNAPSHOT_BYTES_MAX - 64 * 1024;
        if machine.len() > bytes_max {
            let got = machine.len();
            return Err(StoreError::Misuse(format!("snapshot of {got} bytes, at most {bytes_max} allowed")).into());
        }
        let members = &self.applied.members;
        let bytes = seal_snapshot(SnapshotBody {
            last: self.applied.last.as_ref().map(log_id_to_wire),
            chain: self.applied.chain,
            membership_at: members.log_id().as_ref().map(log_id_to_wire),
            membership: members_to_wire(members.membership()),
            machine: machine.try_into().expect("the length was just checked"),
        });
        let meta = SnapshotMeta {
            last_log_id: self.applied.last,
            last_membership: members.clone(),
        };
        self.adapter.keep(meta.clone(), bytes.clone()).await?;
        Ok(Snapshot { meta, snapshot: bytes })
    }
}

impl<R: AsyncRuntime> RaftStateMachine<TypeConfig<R>> for MachineAdapter<R> {
    type SnapshotData = Bytes;
    type SnapshotBuilder = SnapshotBuilder<R>;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembers), io::Error> {
        let applied = lock(&self.inner.applied);
        Ok((applied.last, applied.members.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig<R>>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let answer = self.apply_one(&entry)?;
            if let Some(responder) = responder {
                responder.send(Answer(answer));
            }
        }
        self.inner.signal.notify();
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder<R> {
        self.builder()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, bytes: Bytes) -> Result<(), io::Error> {
        let (found, body) = open_snapshot(&bytes).map_err(StoreError::Corrupt)?;
        if found != *meta {
            return Err(StoreError::Corrupt("the snapshot is of another position than announced".into()).into());
        }
        let Some(last) = body.last else {
            return Err(StoreError::Corrupt("a snapshot of nothing".into()).into());
        };
        let at = LogPosition {
            term: last.term,
            index: last.index,
        };
        // Durable first: a machine that is ahead of its disk would be lost with the process.
        self.keep(found, bytes).await?;
        let restored = self.inner.machine.restore(at, body.chain, &body.machine);
        restored.map_err(|error| StoreError::Corrupt(error.to_string()))?;
        self.inner.log.note_snapshot(last, body.chain);
        *lock(&self.inner.applied) = Applied {
            last: meta.last_log_id,
            chain: body.chain,
            members: meta.last_membership.clone(),
        };
        self.inner.signal.notify();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let newest = lock(&self.inner.newest).clone();
        Ok(newest.map(|(meta, snapshot)| Snapshot { meta, snapshot }))
    }
}
