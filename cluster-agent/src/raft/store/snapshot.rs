//! The port for snapshots, and its two implementations: files, and memory for tests.
//!
//! # Rules
//! * A snapshot is complete or absent: written beside, flushed, renamed, directory flushed.
//! * The last one is kept; an older one is removed only after the newer one is durable.
//!
//! A file is `snap-<index>-<term>`, both as 20 digits, so that names sort as positions do.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use bytes::Bytes;
use common::ids::LogPosition;
use futures::{FutureExt, future::BoxFuture};

use super::StoreError;
use crate::raft::codec::SNAPSHOT_BYTES_MAX;

/// Where snapshots live.
pub trait SnapshotStore: Send + Sync + 'static {
    /// The newest snapshot, as it was saved.
    fn load(&self) -> BoxFuture<'static, Result<Option<Bytes>, StoreError>>;

    /// Makes `bytes` the newest snapshot. When this returns it survives a loss of power.
    fn save(&self, at: LogPosition, bytes: Bytes) -> BoxFuture<'static, Result<(), StoreError>>;
}

/// Snapshots in memory: "restart" is to use the same value again.
#[derive(Clone, Debug, Default)]
pub struct MemorySnapshots {
    newest: Arc<Mutex<Option<Bytes>>>,
}

impl SnapshotStore for MemorySnapshots {
    fn load(&self) -> BoxFuture<'static, Result<Option<Bytes>, StoreError>> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone();
        async move { Ok(newest) }.boxed()
    }

    fn save(&self, _at: LogPosition, bytes: Bytes) -> BoxFuture<'static, Result<(), StoreError>> {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(bytes);
        async { Ok(()) }.boxed()
    }
}

/// Snapshots as files in one directory of their own.
#[derive(Clone, Debug)]
pub struct FileSnapshots {
    dir: PathBuf,
}

impl FileSnapshots {
    /// Uses `dir`, which is created if it is missing. Left-over temporary files are removed.
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

    fn load_newest(&self) -> Result<Option<Bytes>, StoreError> {
        let Some(name) = snapshots(&self.dir)?.pop() else {
            return Ok(None);
        };
        let path = self.dir.join(name);
        let bytes_len = fs::metadata(&path).map_err(|error| fail(&path, &error))?.len();
        if bytes_len > SNAPSHOT_BYTES_MAX as u64 {
            return Err(StoreError::Corrupt(format!("{}: {bytes_len} bytes", path.display())));
        }
        fs::read(&path)
            .map(|bytes| Some(bytes.into()))
            .map_err(|error| fail(&path, &error))
    }

    fn save_newest(&self, at: LogPosition, bytes: &[u8]) -> Result<(), StoreError> {
        let name = format!("snap-{:020}-{:020}", at.index.0, at.term.0);
        write_durably(&self.dir, &name, bytes)?;
        for older in snapshots(&self.dir)?.into_iter().filter(|other| *other < name) {
            let path = self.dir.join(older);
            fs::remove_file(&path).map_err(|error| fail(&path, &error))?;
        }
        Ok(())
    }
}

impl SnapshotStore for FileSnapshots {
    fn load(&self) -> BoxFuture<'static, Result<Option<Bytes>, StoreError>> {
        let this = self.clone();
        blocking(move || this.load_newest()).boxed()
    }

    fn save(&self, at: LogPosition, bytes: Bytes) -> BoxFuture<'static, Result<(), StoreError>> {
        let this = self.clone();
        blocking(move || this.save_newest(at, &bytes)).boxed()
    }
}

/// Files are read and written beside the runtime's threads: a snapshot is megabytes.
#[expect(
    clippy::disallowed_methods,
    reason = "production's port: the simulator keeps snapshots in memory"
)]
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.unwrap_or_else(|error| Err(StoreError::Io(format!("snapshot task: {error}"))))
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
