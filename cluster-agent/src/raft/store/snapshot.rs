//! The port for snapshots, and its two implementations: files, and memory for tests.
//!
//! # Rules
//! * A snapshot is complete or absent: written as a draft beside, flushed, renamed, directory flushed.
//! * The last one is kept; an older one is removed only after the newer one is durable. Who still reads
//!   the older one goes on doing so.
//! * A draft of a snapshot that comes from a peer survives a restart, so that the transfer goes on where
//!   it stood; of all others nothing is left. Names come from digests: nothing from a peer is a name.
//! * Everything but [`SnapshotStore::publish`] may block: it is called inside [`SnapshotStore::run`].
//!
//! A file is `snap-<index>-<term>`, both as 20 digits, so that names sort as positions do; drafts are
//! `own.tmp` and `incoming-<digest>.part`.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use common::ids::{Digest, LogIndex, LogPosition, Term};
use futures::{FutureExt, channel::oneshot, future::BoxFuture};

use super::StoreError;

/// Bytes that can be read at any offset.
pub trait SnapshotBytes: Send + Sync {
    /// How many.
    fn bytes_len(&self) -> u64;

    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`StoreError::Io`], also if there are not so many bytes.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError>;
}

/// A snapshot that is being written or received.
pub trait SnapshotDraft: SnapshotBytes {
    /// Adds bytes at the end.
    ///
    /// # Errors
    /// [`StoreError::Io`]: what was added is unknown; [discard](Self::discard) the draft.
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError>;

    /// Makes what was added survive a loss of power.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn sync(&mut self) -> Result<(), StoreError>;

    /// Removes it.
    fn discard(self: Box<Self>);

    /// What identifies it to its own store.
    fn name(&self) -> &str;
}

/// Which draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DraftName {
    /// Of a snapshot that is made here. Begins empty.
    Own,
    /// Of the snapshot with this digest, from a peer. Begins with what an earlier one left.
    Incoming(Digest),
}

impl DraftName {
    fn file_name(self) -> String {
        match self {
            Self::Own => "own.tmp".into(),
            Self::Incoming(digest) => format!("incoming-{}.part", common::ids::to_hex(&digest.0)),
        }
    }
}

/// Where snapshots live.
pub trait SnapshotStore: Send + Sync + 'static {
    /// Runs `work` where it may compute for long and wait for the disk: beside the runtime's threads, or
    /// at once where there is no disk.
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, Result<(), StoreError>>;

    /// The newest snapshot.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn newest(&self) -> Result<Option<Arc<dyn SnapshotBytes>>, StoreError>;

    /// Opens a draft. Drafts of other incoming snapshots are removed: one comes in at a time.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    fn draft(&self, name: DraftName) -> Result<Box<dyn SnapshotDraft>, StoreError>;

    /// Makes `draft`, which was [synced](SnapshotDraft::sync), the newest snapshot, unless there is one of a higher place: it may
    /// have been taken over from a leader meanwhile. When this returns it survives a loss of power; on an error the one before is
    /// whole.
    fn publish(
        &self,
        draft: Box<dyn SnapshotDraft>,
        at: LogPosition,
    ) -> BoxFuture<'static, Result<Arc<dyn SnapshotBytes>, StoreError>>;
}

/// [`SnapshotStore::run`], with what `work` returns.
///
/// # Errors
/// [`StoreError::Io`] if it could not be run.
pub(crate) async fn run<T: Send + 'static>(
    store: &dyn SnapshotStore,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = oneshot::channel();
    store.run(Box::new(move || drop(sender.send(work())))).await?;
    receiver
        .await
        .map_err(|_| StoreError::Io("work on a snapshot panicked".into()))
}

type Bytes = Arc<Mutex<Vec<u8>>>;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A snapshot or a draft in memory.
#[derive(Clone, Debug, Default)]
pub struct MemoryBytes {
    name: String,
    bytes: Bytes,
    drafts: Arc<Mutex<Option<(String, Bytes)>>>,
}

impl SnapshotBytes for MemoryBytes {
    fn bytes_len(&self) -> u64 {
        lock(&self.bytes).len() as u64
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        let bytes = lock(&self.bytes);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = bytes.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(found.ok_or_else(|| StoreError::Io("read past the end".into()))?);
        Ok(())
    }
}

impl SnapshotDraft for MemoryBytes {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        lock(&self.bytes).extend_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        Ok(())
    }

    fn discard(self: Box<Self>) {
        let mut kept = lock(&self.drafts);
        if kept.as_ref().is_some_and(|(name, _)| *name == self.name) {
            *kept = None;
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Where a snapshot stands in the log, ordered as the names of files are.
type Place = (LogIndex, Term);

/// Snapshots in memory: "restart" is to use the same value again.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshots {
    newest: Arc<Mutex<Option<(Place, MemoryBytes)>>>,
    /// The incoming draft.
    incoming: Arc<Mutex<Option<(String, Bytes)>>>,
}

impl MemorySnapshots {
    /// Bytes of the draft that a peer sends, if there is one.
    #[must_use]
    pub fn incoming_bytes(&self) -> Option<u64> {
        lock(&self.incoming).as_ref().map(|(_, bytes)| lock(bytes).len() as u64)
    }
}

impl SnapshotStore for MemorySnapshots {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, Result<(), StoreError>> {
        work();
        async { Ok(()) }.boxed()
    }

    fn newest(&self) -> Result<Option<Arc<dyn SnapshotBytes>>, StoreError> {
        Ok(lock(&self.newest).clone().map(|(_, bytes)| Arc::new(bytes) as _))
    }

    fn draft(&self, name: DraftName) -> Result<Box<dyn SnapshotDraft>, StoreError> {
        let mut draft = MemoryBytes {
            name: name.file_name(),
            bytes: Bytes::default(),
            drafts: self.incoming.clone(),
        };
        if matches!(name, DraftName::Incoming(_)) {
            let mut kept = lock(&self.incoming);
            match &*kept {
                Some((name, bytes)) if *name == draft.name => draft.bytes = bytes.clone(),
                _ => *kept = Some((draft.name.clone(), draft.bytes.clone())),
            }
        }
        Ok(Box::new(draft))
    }

    fn publish(
        &self,
        draft: Box<dyn SnapshotDraft>,
        at: LogPosition,
    ) -> BoxFuture<'static, Result<Arc<dyn SnapshotBytes>, StoreError>> {
        let mut bytes = vec![0; usize::try_from(draft.bytes_len()).unwrap_or(usize::MAX)];
        let read = draft.read_at(0, &mut bytes);
        draft.discard();
        let newest = MemoryBytes {
            bytes: Arc::new(Mutex::new(bytes)),
            ..MemoryBytes::default()
        };
        let published = read.map(|()| {
            let place = (at.index, at.term);
            let mut kept = lock(&self.newest);
            if kept.as_ref().is_none_or(|(newer, _)| *newer <= place) {
                *kept = Some((place, newest.clone()));
            }
            Arc::new(newest) as Arc<dyn SnapshotBytes>
        });
        async { published }.boxed()
    }
}

/// Snapshots as files in one directory of their own.
#[derive(Clone, Debug)]
pub struct FileSnapshots {
    dir: PathBuf,
}

struct FileBytes {
    path: PathBuf,
    name: String,
    file: File,
    bytes_len: u64,
}

impl FileBytes {
    fn fail(&self, error: &io::Error) -> StoreError {
        fail(&self.path, error)
    }
}

impl SnapshotBytes for FileBytes {
    fn bytes_len(&self) -> u64 {
        self.bytes_len
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|error| self.fail(&error))
    }
}

impl SnapshotDraft for FileBytes {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        // At an offset of our own: a failed write may have left bytes behind the end.
        let written = self.file.write_all_at(bytes, self.bytes_len);
        written.map_err(|error| self.fail(&error))?;
        self.bytes_len += bytes.len() as u64;
        Ok(())
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.file.sync_all().map_err(|error| self.fail(&error))
    }

    fn discard(self: Box<Self>) {
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            // The next start removes it, or the next draft of its name begins over it.
            tracing::warn!(path = %self.path.display(), %error, "a draft of a snapshot is not removed");
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

impl FileSnapshots {
    /// Uses `dir`, which is created if it is missing. Left-over temporary files are removed; a draft from
    /// a peer is kept.
    ///
    /// # Errors
    /// [`StoreError::Io`].
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let dir = dir.into();
        fs::create_dir_all(&dir).map_err(|error| fail(&dir, &error))?;
        for name in names(&dir)? {
            if name.ends_with(".tmp") {
                let path = dir.join(name);
                fs::remove_file(&path).map_err(|error| fail(&path, &error))?;
            }
        }
        sync_dir(&dir)?;
        if let Some(parent) = dir.parent() {
            sync_dir(parent)?;
        }
        Ok(Self { dir })
    }

    fn open_file(&self, name: &str, is_draft: bool) -> Result<FileBytes, StoreError> {
        let path = self.dir.join(name);
        let opened = File::options().read(true).write(is_draft).create(is_draft).open(&path);
        let file = opened.map_err(|error| fail(&path, &error))?;
        let bytes_len = file.metadata().map_err(|error| fail(&path, &error))?.len();
        Ok(FileBytes {
            path,
            name: name.to_owned(),
            file,
            bytes_len,
        })
    }

    fn publish_now(&self, draft: &dyn SnapshotDraft, at: LogPosition) -> Result<Arc<dyn SnapshotBytes>, StoreError> {
        let name = format!("snap-{:020}-{:020}", at.index.0, at.term.0);
        let path = self.dir.join(&name);
        fs::rename(self.dir.join(draft.name()), &path).map_err(|error| fail(&path, &error))?;
        sync_dir(&self.dir)?;
        for older in snapshots(&self.dir)?.into_iter().filter(|other| *other < name) {
            let path = self.dir.join(older);
            fs::remove_file(&path).map_err(|error| fail(&path, &error))?;
        }
        Ok(Arc::new(self.open_file(&name, false)?))
    }
}

impl SnapshotStore for FileSnapshots {
    #[expect(
        clippy::disallowed_methods,
        reason = "production's port: the simulator keeps snapshots in memory"
    )]
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, Result<(), StoreError>> {
        let running = tokio::task::spawn_blocking(work);
        async move {
            let outcome = running.await;
            outcome.map_err(|error| StoreError::Io(format!("snapshot task: {error}")))
        }
        .boxed()
    }

    fn newest(&self) -> Result<Option<Arc<dyn SnapshotBytes>>, StoreError> {
        let newest = snapshots(&self.dir)?.pop();
        newest
            .map(|name| self.open_file(&name, false).map(|file| Arc::new(file) as _))
            .transpose()
    }

    fn draft(&self, name: DraftName) -> Result<Box<dyn SnapshotDraft>, StoreError> {
        let file_name = name.file_name();
        if matches!(name, DraftName::Incoming(_)) {
            for other in names(&self.dir)? {
                if other.ends_with(".part") && other != file_name {
                    let path = self.dir.join(other);
                    fs::remove_file(&path).map_err(|error| fail(&path, &error))?;
                }
            }
        }
        let mut draft = self.open_file(&file_name, true)?;
        if name == DraftName::Own {
            draft.file.set_len(0).map_err(|error| draft.fail(&error))?;
            draft.bytes_len = 0;
        }
        Ok(Box::new(draft))
    }

    fn publish(
        &self,
        draft: Box<dyn SnapshotDraft>,
        at: LogPosition,
    ) -> BoxFuture<'static, Result<Arc<dyn SnapshotBytes>, StoreError>> {
        let this = self.clone();
        let (sender, receiver) = oneshot::channel();
        let running = self.run(Box::new(move || {
            let published = this.publish_now(&*draft, at);
            if published.is_err() {
                draft.discard();
            }
            drop(sender.send(published));
        }));
        async move {
            running.await?;
            let panicked = |_| StoreError::Io("publishing a snapshot panicked".into());
            receiver.await.map_err(panicked)?
        }
        .boxed()
    }
}

/// Writes `dir/name` so that it is complete or absent after a crash.
///
/// # Errors
/// [`StoreError::Io`]; a left-over `.tmp` is harmless.
pub(super) fn write_durably(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
    let (temporary, path) = (dir.join(format!("{name}.tmp")), dir.join(name));
    let write = || -> io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &path)
    };
    write().map_err(|error| fail(&path, &error))?;
    sync_dir(dir)
}

/// Makes created, renamed and removed names in `dir` durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    let dir = if dir.as_os_str().is_empty() {
        Path::new(".")
    } else {
        dir
    };
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| fail(dir, &error))
}

fn snapshots(dir: &Path) -> Result<Vec<String>, StoreError> {
    let mut found: Vec<String> = names(dir)?
        .into_iter()
        .filter(|name| name.starts_with("snap-") && !name.ends_with(".tmp"))
        .collect();
    found.sort();
    Ok(found)
}

fn names(dir: &Path) -> Result<Vec<String>, StoreError> {
    let entries = fs::read_dir(dir).map_err(|error| fail(dir, &error))?;
    entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<io::Result<_>>()
        .map_err(|error| fail(dir, &error))
}

fn fail(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(transport::machine::disk_error("use", path, error).to_string())
}

#[cfg(test)]
#[path = "snapshot_tests.rs"]
mod tests;
