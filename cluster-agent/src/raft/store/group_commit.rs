//! What log stores on a disk share: one writer thread, groups of operations, one failure for good.
//!
//! # Rules
//! * One thread owns every change: it takes what waits, up to [`GROUP_OPS_MAX`] operations or
//!   [`GROUP_BYTES_MAX`], makes it durable at once, and acknowledges in order.
//! * After any error or panic of that thread the store is poisoned: everything fails from then on. A panic of who is
//!   told counts: whether he knows what became of his operation is unknown.
//!
//! # Why one thread
//! A flush blocks for milliseconds on flash. A thread of its own groups what arrives meanwhile, and
//! the runtime's threads never wait for the disk.

use std::{
    fs::File,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use transport::machine::disk_error;

use super::{Done, LogOp, StoreError};
use crate::raft::signal::Signal;

/// Operations of one group.
pub const GROUP_OPS_MAX: usize = 256;
/// Bytes of one group; one larger operation stands alone.
pub const GROUP_BYTES_MAX: usize = 256 * 1024;
/// Operations that may wait. The layer above bounds what it has in flight far below.
const QUEUE_OPS_MAX: usize = 8_192;

/// Makes a file's bytes durable. Replaced in tests by one that fails.
pub(super) type Fsync = Box<dyn FnMut(&File) -> io::Result<()> + Send>;

/// An operation and whom to tell.
pub(super) type Queued = (LogOp, Done);

/// The first failure; never taken back.
#[derive(Debug, Default)]
pub(super) struct Poison {
    cause: Mutex<Option<String>>,
    signal: Signal,
}

impl Poison {
    pub(super) fn cause(&self) -> Option<String> {
        self.cause.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, cause: &StoreError) {
        tracing::error!(error = %cause, "the log store is poisoned");
        let mut slot = self.cause.lock().unwrap_or_else(PoisonError::into_inner);
        slot.get_or_insert_with(|| cause.to_string());
        drop(slot);
        self.signal.notify();
    }

    /// Runs one step on the file `path`; an error or panic in it poisons the store. Nothing runs after that.
    pub(super) fn guard<T>(&self, path: &Path, step: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(cause) = self.cause() {
            return Err(StoreError::Poisoned(cause));
        }
        let outcome = catch_unwind(AssertUnwindSafe(step));
        let outcome = outcome.unwrap_or_else(|_| Err(StoreError::Io("the log writer panicked".into())));
        let outcome = outcome.map_err(|error| error.at(path));
        if let Err(error) = &outcome {
            self.set(error);
        }
        outcome
    }
}

/// The way to the writer thread of a store.
pub(super) struct GroupCommit {
    /// `None` once closed.
    opened: RwLock<Option<Opened>>,
    poison: Arc<Poison>,
}

struct Opened {
    queue: SyncSender<Queued>,
    writer: JoinHandle<()>,
}

impl GroupCommit {
    /// Starts `writer` on a thread of its own. It ends when the queue does.
    pub(super) fn start(
        poison: Arc<Poison>,
        writer: impl FnOnce(&Receiver<Queued>) + Send + 'static,
    ) -> io::Result<Self> {
        let (queue, waiting) = sync_channel(QUEUE_OPS_MAX);
        let poisoned = poison.clone();
        let work = move || {
            // Its steps are guarded; this is for what lies between them.
            if catch_unwind(AssertUnwindSafe(|| writer(&waiting))).is_err() {
                poisoned.set(&StoreError::Io("the log writer panicked".into()));
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "production's port: the simulator's log has no writer thread"
        )]
        let spawned = std::thread::Builder::new().name("raft-log".into()).spawn(work);
        Ok(Self {
            opened: RwLock::new(Some(Opened {
                queue,
                writer: spawned?,
            })),
            poison,
        })
    }

    /// Queues `op`, or answers at once that the store has failed or was closed.
    pub(super) fn submit(&self, op: LogOp, done: Done) {
        if let Some(failure) = self.failure() {
            return done(Err(failure));
        }
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let Some(opened) = opened.as_ref() else {
            return done(Err(StoreError::Closed));
        };
        if let Err(refused) = opened.queue.send((op, done)) {
            (refused.0.1)(Err(self.failure().unwrap_or(StoreError::Closed)));
        }
    }

    /// Lets the writer finish what is queued, and waits for its end. Later operations fail.
    pub(super) fn close(&self) {
        let opened = self.opened.write().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Opened { queue, writer }) = opened else {
            return;
        };
        drop(queue);
        if writer.join().is_err() {
            tracing::error!("the log writer panicked");
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.opened.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    pub(super) fn failure(&self) -> Option<StoreError> {
        self.poison.cause().map(StoreError::Poisoned)
    }

    /// Resolves at the first failure.
    pub(super) async fn failed(&self) -> StoreError {
        loop {
            let seen = self.poison.signal.version();
            if let Some(failure) = self.failure() {
                return failure;
            }
            self.poison.signal.changed(seen).await;
        }
    }
}

/// Takes what waits, up to the bounds of a group.
pub(super) fn take_group(first: Queued, waiting: &Receiver<Queued>) -> (Vec<LogOp>, Vec<Done>) {
    let mut bytes_len = first.0.bytes_len();
    let (mut ops, mut acks) = (vec![first.0], vec![first.1]);
    while ops.len() < GROUP_OPS_MAX && bytes_len < GROUP_BYTES_MAX {
        let Ok((op, ack)) = waiting.try_recv() else { break };
        bytes_len += op.bytes_len();
        ops.push(op);
        acks.push(ack);
    }
    (ops, acks)
}

/// Tells all who wait, in order; a panic of one of them poisons the store, and the others are told.
pub(super) fn acknowledge(poison: &Poison, acks: Vec<Done>, outcome: &Result<(), StoreError>) {
    for ack in acks {
        let outcome = outcome.clone();
        if catch_unwind(AssertUnwindSafe(|| ack(outcome))).is_err() {
            poison.set(&StoreError::Io("an acknowledgement of the log panicked".into()));
        }
    }
}

/// An error of the file system at `path`, with what to do about it.
pub(super) fn io_error(doing: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(disk_error(doing, path, error).to_string())
}

impl StoreError {
    /// Says which file it was, where that is not said yet.
    fn at(self, path: &Path) -> Self {
        let name = path.display().to_string();
        match self {
            Self::Io(why) if !why.contains(&name) => Self::Io(format!("{name}: {why}")),
            other => other,
        }
    }
}
