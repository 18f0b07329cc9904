//! What openraft passes around as "a snapshot": a file that is stored, or one that has come in whole and
//! was found good.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use common::ids::Digest;

use super::{
    codec::WireLogId,
    machine::RestoreJob,
    store::{
        StoreError,
        snapshot::{SnapshotBytes, SnapshotDraft, SnapshotStore, run},
    },
    types::SnapshotMeta,
};

/// A stored snapshot; it can be read even when a newer one has replaced it.
#[derive(Clone)]
pub(super) struct Stored {
    pub bytes: Arc<dyn SnapshotBytes>,
    pub digest: Digest,
    pub store: Arc<dyn SnapshotStore>,
}

impl Stored {
    /// `len` bytes from `offset`.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let bytes = self.bytes.clone();
        let read = move || {
            let mut buffer = vec![0; len];
            bytes.read_at(offset, &mut buffer).map(|()| Bytes::from(buffer))
        };
        run(&*self.store, read).await?
    }
}

/// A snapshot from a peer that was checked in full: what is left is to make it ours.
pub(super) struct Checked {
    pub draft: Box<dyn SnapshotDraft>,
    pub digest: Digest,
    pub meta: SnapshotMeta,
    pub last: WireLogId,
    pub chain: Digest,
    pub restore: RestoreJob,
}

/// Holds a checked snapshot until it is installed. If openraft has no use for it, its draft goes.
pub(super) struct Incoming(Mutex<Option<Checked>>);

impl Incoming {
    pub fn take(&self) -> Option<Checked> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(checked) = self.take() {
            checked.draft.discard();
        }
    }
}

/// openraft's handle of a snapshot.
#[derive(Clone)]
pub(super) enum SnapshotData {
    Stored(Stored),
    Incoming(Arc<Incoming>),
}

impl SnapshotData {
    pub fn incoming(checked: Checked) -> Self {
        Self::Incoming(Arc::new(Incoming(Mutex::new(Some(checked)))))
    }
}

impl fmt::Debug for SnapshotData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stored(stored) => write!(f, "stored {:?}, {} bytes", stored.digest, stored.bytes.bytes_len()),
            Self::Incoming(_) => write!(f, "incoming"),
        }
    }
}
