//! openraft's state machine over ours: applies in order, keeps the chain, makes and installs snapshots.
//!
//! # Rules
//! * Upon a committed entry: its chain continues the applied history, or nothing more is applied. It is computed here, unless
//!   this process computed it over the same bytes above the same chain before. Give commands to the machine, answer at once.
//!   Blank and membership entries only move the position.
//! * Upon a snapshot: the machine hands out a view in the same step, so that the snapshot stands
//!   between two entries; encoding and writing go on beside. If it cannot be written, the one before
//!   stays, and the log grows until the next one is due.
//! * A snapshot from a peer is checked in full (digest, every frame, every record, every signature that
//!   this member will answer for) before openraft hears of it. A bad one changes nothing.
//! * Upon an installation: make it durable, restore, then answer.
//! * The machine lives in memory. After a restart it is restored from the last snapshot and the log
//!   above it, up to what is known to be committed.
//!
//! # Invariants
//! * apply-order: positions given to the machine ascend without a gap.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    codec::SnapshotHead,
    log::RaftLog,
    signal::Signal,
    snapshot_data::{Checked, SnapshotData, Stored},
    snapshot_file::{SnapshotReader, SnapshotSink, SnapshotSource, SnapshotWriter, verify},
    snapshot_policy::{SnapshotBounds, SnapshotPolicy},
    store::{
        StoreError,
        snapshot::{DraftName, SnapshotBytes, SnapshotDraft, SnapshotStore, run},
    },
    types::{
        Answer, Entry, LogId, Snapshot, SnapshotMeta, StoredMembers, TypeConfig, log_id_from_wire, log_id_to_wire,
        members_from_wire, members_to_wire, position,
    },
};
use common::ids::{Digest, LogPosition, RaftNodeId};
use futures::{Stream, TryStreamExt};
use openraft::{
    EntryPayload, OptionalSend, RaftSnapshotBuilder,
    storage::{EntryResponder, RaftStateMachine},
};
use openraft_rt::AsyncRuntime;

/// Writes a view of the machine that was taken earlier.
pub type SnapshotJob = Box<dyn FnOnce(&mut dyn SnapshotSink) -> Result<(), StoreError> + Send>;

/// Makes a state that was read and checked the machine's state.
pub type RestoreJob = Box<dyn FnOnce() + Send>;

/// Where a snapshot comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// This member's own disk: what is in it was checked before.
    Own,
    /// Another member.
    Peer,
}

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

    /// Takes a view in constant time; the job writes it later, while entries are applied.
    fn snapshot(&self) -> SnapshotJob;

    /// Reads and checks what the machine's [`snapshot`](Self::snapshot) wrote at `position`, beside the
    /// state in force; entries may be applied meanwhile. The job then makes it the state in force.
    ///
    /// # Errors
    /// [`RestoreError`]: nothing changed.
    fn prepare(
        self: Arc<Self>,
        position: LogPosition,
        chain: Digest,
        origin: Origin,
        source: &mut dyn SnapshotSource,
    ) -> Result<RestoreJob, RestoreError>;
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
    newest: Mutex<Option<(SnapshotMeta, Stored)>>,
    policy: Mutex<SnapshotPolicy>,
    signal: Signal,
}

/// Members that left which are remembered.
const LEFT_MAX: usize = 1_024;

#[derive(Clone, Default)]
struct Applied {
    last: Option<LogId>,
    chain: Digest,
    members: StoredMembers,
    /// Who was a member at some applied position since this process started, and is none any more.
    left: Arc<BTreeSet<RaftNodeId>>,
}

impl Applied {
    fn set_members(&mut self, members: StoredMembers) {
        let ids = |members: &StoredMembers| -> BTreeSet<RaftNodeId> {
            let nodes = members.membership().nodes();
            nodes.map(|(id, _)| RaftNodeId(*id)).collect()
        };
        let (before, now) = (ids(&self.members), ids(&members));
        if before != now {
            let left = self.left.union(&before).filter(|id| !now.contains(id)).copied();
            let mut left: BTreeSet<_> = left.collect();
            while left.len() > LEFT_MAX {
                left.pop_first();
            }
            self.left = Arc::new(left);
        }
        self.members = members;
    }
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
        bounds: SnapshotBounds,
        signal: Signal,
    ) -> Result<Self, StoreError> {
        let store = snapshots.clone();
        let newest = run(&*snapshots, move || newest_of(&store)).await??;
        let mut policy = SnapshotPolicy::new(bounds);
        if let Some((_, stored)) = &newest {
            policy.installed(stored.bytes.bytes_len());
        }
        let applied = Mutex::new(Applied::default());
        let inner = Inner {
            machine,
            snapshots,
            log,
            applied,
            newest: Mutex::new(newest),
            policy: Mutex::new(policy),
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

    /// Whether `id` was a member by what is committed, and is none any more: as far back as this process
    /// has applied the log.
    pub fn has_left(&self, id: RaftNodeId) -> bool {
        lock(&self.inner.applied).left.contains(&id)
    }

    /// Last entry of the newest snapshot; position 0 without one.
    pub fn snapshot_position(&self) -> LogPosition {
        let newest = lock(&self.inner.newest);
        newest.as_ref().map(|(meta, _)| position_of(meta)).unwrap_or_default()
    }

    fn apply_one(&self, entry: &Entry) -> Result<Vec<u8>, StoreError> {
        let id = log_id_to_wire(&entry.id);
        let previous = lock(&self.inner.applied).chain;
        let chain = entry.chain_above(previous);
        if entry.chain.is_some_and(|stored| stored != chain) {
            let index = id.index;
            return Err(StoreError::Corrupt(format!(
                "entry {index} does not continue the applied history"
            )));
        }
        let at = position(&entry.id);
        let command_len = match &entry.payload {
            EntryPayload::Normal(command) => command.0.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        };
        lock(&self.inner.policy).applied(at.index, command_len);
        let answer = match &entry.payload {
            EntryPayload::Normal(command) => self.inner.machine.apply(at, id.leader, chain, &command.0),
            EntryPayload::Blank | EntryPayload::Membership(_) => {
                self.inner.machine.advance(at, chain);
                Vec::new()
            }
        };
        let mut applied = lock(&self.inner.applied);
        applied.last = Some(entry.id);
        applied.chain = chain;
        if let EntryPayload::Membership(members) = &entry.payload {
            applied.set_members(StoredMembers::new(Some(entry.id), members.clone()));
        }
        Ok(answer)
    }

    fn builder(&self) -> SnapshotBuilder<R> {
        let applied = lock(&self.inner.applied).clone();
        lock(&self.inner.policy).begun();
        SnapshotBuilder {
            adapter: self.clone(),
            applied,
            job: Mutex::new(Some(self.inner.machine.snapshot())),
        }
    }

    /// Whether a snapshot should be made now.
    pub fn is_snapshot_due(&self) -> bool {
        lock(&self.inner.policy).is_due()
    }

    /// Where the log may be purged to for want of bytes, if it was purged up to `purged`.
    pub fn purge_to(&self, purged: LogPosition) -> Option<u64> {
        let snapshot = self.snapshot_position().index;
        let upto = lock(&self.inner.policy).purge_to(snapshot, purged.index)?;
        Some(upto.0.saturating_sub(1))
    }

    /// Makes a draft the newest snapshot, unless there is a newer one.
    async fn keep(&self, meta: SnapshotMeta, draft: Box<dyn SnapshotDraft>, digest: Digest) -> Result<(), StoreError> {
        let is_old = lock(&self.inner.newest)
            .as_ref()
            .is_some_and(|(kept, _)| kept.last_log_id >= meta.last_log_id);
        if is_old {
            draft.discard();
            return Ok(());
        }
        let bytes = self.inner.snapshots.publish(draft, position_of(&meta)).await?;
        let stored = Stored {
            bytes,
            digest,
            store: self.inner.snapshots.clone(),
        };
        let mut newest = lock(&self.inner.newest);
        // One may have been installed while this one was being published.
        if newest
            .as_ref()
            .is_none_or(|(kept, _)| kept.last_log_id < meta.last_log_id)
        {
            *newest = Some((meta, stored));
        }
        Ok(())
    }

    /// Reads a snapshot from a peer in full and prepares its installation. A bad one is removed.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] for what the sender is to blame for, [`StoreError::Io`] for our disk.
    pub async fn check_incoming(
        &self,
        mut draft: Box<dyn SnapshotDraft>,
        announced: Digest,
    ) -> Result<Checked, StoreError> {
        let machine = self.inner.machine.clone();
        let check = move || {
            let read = draft.sync().and_then(|()| {
                if verify(&*draft)? != announced {
                    return Err(StoreError::Corrupt(
                        "the frames do not have the announced digest".into(),
                    ));
                }
                prepare(&machine, &*draft, Origin::Peer)
            });
            match read {
                Ok((meta, head, restore)) => Ok(Checked {
                    draft,
                    digest: announced,
                    meta,
                    last: head.last.expect("a snapshot of nothing was refused"),
                    chain: head.chain,
                    restore,
                }),
                Err(error) => {
                    draft.discard();
                    Err(error)
                }
            }
        };
        run(&*self.inner.snapshots, check).await?
    }

    /// Keeps a copy of a snapshot that another store holds.
    async fn adopt(&self, meta: SnapshotMeta, stored: &Stored) -> Result<(), StoreError> {
        let (store, bytes, digest) = (self.inner.snapshots.clone(), stored.bytes.clone(), stored.digest);
        let copy = move || {
            let mut draft = store.draft(DraftName::Own)?;
            let (mut offset, mut chunk) = (0, vec![0; 256 * 1024]);
            while offset < bytes.bytes_len() {
                let len = (bytes.bytes_len() - offset).min(chunk.len() as u64) as usize;
                bytes.read_at(offset, &mut chunk[..len])?;
                draft.append(&chunk[..len])?;
                offset += len as u64;
            }
            draft.sync().map(|()| draft)
        };
        let draft = run(&*self.inner.snapshots, copy).await??;
        self.keep(meta, draft, digest).await
    }

    fn current(&self) -> Option<Snapshot> {
        let newest = lock(&self.inner.newest).clone();
        newest.map(|(meta, stored)| Snapshot {
            meta,
            snapshot: SnapshotData::Stored(stored),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The newest snapshot of a store, its digest compared.
fn newest_of(store: &Arc<dyn SnapshotStore>) -> Result<Option<(SnapshotMeta, Stored)>, StoreError> {
    let Some(bytes) = store.newest()? else {
        return Ok(None);
    };
    let digest = verify(&*bytes)?;
    let (_, head) = SnapshotReader::begin(&*bytes)?;
    let stored = Stored {
        bytes: bytes.clone(),
        digest,
        store: store.clone(),
    };
    Ok(Some((meta_of(&head)?, stored)))
}

/// Where a snapshot stands; position 0 if it is of nothing.
fn position_of(meta: &SnapshotMeta) -> LogPosition {
    meta.last_log_id.as_ref().map_or(LogPosition::default(), position)
}

fn meta_of(head: &SnapshotHead) -> Result<SnapshotMeta, StoreError> {
    let members = members_from_wire(&head.membership).map_err(|why| StoreError::Corrupt(why.to_owned()))?;
    Ok(SnapshotMeta {
        last_log_id: head.last.map(log_id_from_wire),
        last_membership: StoredMembers::new(head.membership_at.map(log_id_from_wire), members),
    })
}

/// Reads a snapshot whose digest was compared, up to its end, and prepares the machine's state.
fn prepare(
    machine: &Arc<dyn ReplicatedMachine>,
    bytes: &dyn SnapshotBytes,
    origin: Origin,
) -> Result<(SnapshotMeta, SnapshotHead, RestoreJob), StoreError> {
    let (mut source, head) = SnapshotReader::begin(bytes)?;
    let meta = meta_of(&head)?;
    let Some(last) = head.last else {
        return Err(StoreError::Corrupt("a snapshot of nothing".into()));
    };
    let at = LogPosition {
        term: last.term,
        index: last.index,
    };
    let prepared = machine.clone().prepare(at, head.chain, origin, &mut source);
    let restore = prepared.map_err(|error| StoreError::Corrupt(error.to_string()))?;
    if source.next()?.is_some() {
        return Err(StoreError::Corrupt(
            "the machine left a part of the snapshot unread".into(),
        ));
    }
    Ok((meta, head, restore))
}

/// Writes a whole snapshot into a draft and makes it durable; a draft that failed is removed.
fn write(
    store: &dyn SnapshotStore,
    head: SnapshotHead,
    job: SnapshotJob,
) -> Result<(Box<dyn SnapshotDraft>, Digest), StoreError> {
    let mut draft = store.draft(DraftName::Own)?;
    let written = SnapshotWriter::begin(&mut *draft, head).and_then(|mut writer| {
        job(&mut writer)?;
        writer.finish()
    });
    match written.and_then(|digest| draft.sync().map(|()| digest)) {
        Ok(digest) => Ok((draft, digest)),
        Err(error) => {
            draft.discard();
            Err(error)
        }
    }
}

/// A view of the machine between two entries, on its way to the disk.
pub(super) struct SnapshotBuilder<R> {
    adapter: MachineAdapter<R>,
    applied: Applied,
    job: Mutex<Option<SnapshotJob>>,
}

impl<R: AsyncRuntime> SnapshotBuilder<R> {
    async fn build(&self) -> Result<(), StoreError> {
        let job = lock(&self.job)
            .take()
            .ok_or_else(|| StoreError::Misuse("a snapshot is built once".into()))?;
        let members = &self.applied.members;
        let head = SnapshotHead {
            last: self.applied.last.as_ref().map(log_id_to_wire),
            chain: self.applied.chain,
            membership_at: members.log_id().as_ref().map(log_id_to_wire),
            membership: members_to_wire(members.membership()),
        };
        let store = self.adapter.inner.snapshots.clone();
        let (draft, digest) = run(&*self.adapter.inner.snapshots, move || write(&*store, head, job)).await??;
        let meta = SnapshotMeta {
            last_log_id: self.applied.last,
            last_membership: members.clone(),
        };
        self.adapter.keep(meta, draft, digest).await
    }
}

impl<R: AsyncRuntime> RaftSnapshotBuilder<TypeConfig<R>> for SnapshotBuilder<R> {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let built = self.build().await;
        let newest = self.adapter.current();
        let bytes = match (&built, &newest) {
            (Ok(()), Some(snapshot)) => match &snapshot.snapshot {
                SnapshotData::Stored(stored) => Some(stored.bytes.bytes_len()),
                SnapshotData::Incoming(_) => None,
            },
            _ => None,
        };
        lock(&self.adapter.inner.policy).ended(bytes);
        match (built, newest) {
            (Ok(()), Some(newest)) => Ok(newest),
            (Ok(()), None) => Err(StoreError::Io("a snapshot that was just kept is missing".into()).into()),
            (Err(error), Some(newest)) => {
                tracing::error!(%error, "no snapshot is made; the one before stays, and the log grows");
                Ok(newest)
            }
            (Err(error), None) => Err(error.into()),
        }
    }
}

impl<R: AsyncRuntime> RaftStateMachine<TypeConfig<R>> for MachineAdapter<R> {
    type SnapshotData = SnapshotData;
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

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let (found, last, chain, restore, bytes_len) = match snapshot {
            SnapshotData::Incoming(incoming) => {
                let checked = incoming.take();
                let checked = checked.ok_or_else(|| StoreError::Misuse("a snapshot is installed once".into()))?;
                let bytes_len = checked.draft.bytes_len();
                // Durable first: a machine that is ahead of its disk would be lost with the process.
                self.keep(checked.meta.clone(), checked.draft, checked.digest).await?;
                (checked.meta, checked.last, checked.chain, checked.restore, bytes_len)
            }
            SnapshotData::Stored(stored) => {
                let (machine, bytes) = (self.inner.machine.clone(), stored.bytes.clone());
                let read = move || prepare(&machine, &*bytes, Origin::Own);
                let (found, head, restore) = run(&*self.inner.snapshots, read).await??;
                if self.snapshot_position() < position_of(&found) {
                    self.adopt(found.clone(), &stored).await?;
                }
                let last = head.last.expect("a snapshot of nothing was refused");
                (found, last, head.chain, restore, stored.bytes.bytes_len())
            }
        };
        if found != *meta {
            return Err(StoreError::Corrupt("the snapshot is of another position than announced".into()).into());
        }
        restore();
        self.inner.log.note_snapshot(last, chain);
        let mut applied = lock(&self.inner.applied);
        (applied.last, applied.chain) = (meta.last_log_id, chain);
        applied.set_members(meta.last_membership.clone());
        drop(applied);
        lock(&self.inner.policy).installed(bytes_len);
        self.inner.signal.notify();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        Ok(self.current())
    }
}
