//! One directory of one process.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    blocking,
    journal::{self, MachineJournal},
};
use crate::ports::{BoxFuture, Disk, Journal};

/// `error` with what was tried, where, and what the operator does about it. Its kind stays.
#[must_use]
pub fn disk_error(doing: &str, path: &Path, error: &io::Error) -> io::Error {
    use io::ErrorKind as Kind;
    let remedy = match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded => {
            "; there is no space: make room on that disk and start again, nothing that was acknowledged is lost"
        }
        Kind::ReadOnlyFilesystem | Kind::PermissionDenied => "; make it writable for this process and start again",
        // Of these the caller says more, or there is nothing to do.
        Kind::InvalidData | Kind::NotFound | Kind::WouldBlock | Kind::ResourceBusy => "",
        _ => "; the disk may be failing: look at it, then start again, nothing that was acknowledged is lost",
    };
    io::Error::new(
        error.kind(),
        format!("cannot {doing} {}: {error}{remedy}", path.display()),
    )
}

const LOCK_FILE: &str = "LOCK";
/// Ends the names of files that are being written; what a crash left of them is ignored and overwritten.
const UNFINISHED: &str = ".unfinished";

/// The directory, held with an exclusive `flock` for as long as this value or a journal of it lives.
///
/// File operations block the thread that polls the future, see [`crate::machine`].
#[derive(Clone, Debug)]
pub struct MachineDisk {
    directory: Arc<Directory>,
}

/// The directory itself, shared with its journals.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
    /// Held, never read: the lock ends with the file.
    _lock: File,
    open_journals: Mutex<BTreeSet<String>>,
}

impl MachineDisk {
    /// Opens `path`, creating it with mode 0700 if need be, and locks it.
    ///
    /// # Errors
    /// Of the file system; [`io::ErrorKind::WouldBlock`] if another process holds the directory.
    pub fn open(path: &Path) -> io::Result<Self> {
        let context = |what: &str, source: io::Error| disk_error(what, path, &source);
        if !path.is_dir() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(|error| context("create the data directory", error))?;
            if let Some(parent) = path.parent().filter(|parent| *parent != Path::new("")) {
                File::open(parent)?.sync_all()?;
            }
        }
        let handle = File::open(path).map_err(|error| context("open the data directory", error))?;
        let lock = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join(LOCK_FILE))
            .map_err(|error| context("open the lock file in", error))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            if error == rustix::io::Errno::WOULDBLOCK {
                let text = format!(
                    "the data directory {} is held by another process; perhaps this agent or validator is running \
                     already: stop it, or give this one a `data_dir` of its own",
                    path.display()
                );
                return io::Error::new(io::ErrorKind::WouldBlock, text);
            }
            context("lock", error.into())
        })?;
        // Names that a killed process made may be in the cache only. From here on they are relied on.
        handle.sync_all().map_err(|error| context("sync", error))?;
        Ok(Self {
            directory: Arc::new(Directory {
                path: path.to_owned(),
                handle,
                _lock: lock,
                open_journals: Mutex::new(BTreeSet::new()),
            }),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.directory.path
    }
}

impl Directory {
    pub(super) fn path_of(&self, name: &str) -> PathBuf {
        assert!(
            !name.is_empty() && !name.contains('/') && !name.starts_with('.') && !name.ends_with(UNFINISHED),
            "{name:?} is not the name of a file in the data directory"
        );
        self.path.join(name)
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    /// Writes a whole file beside `name`, makes it durable and gives it its name: afterwards `name` is
    /// either the old file or the new one. Returns the new file, open for reading and writing.
    pub(super) fn write_whole(&self, name: &str, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<File> {
        let path = self.path_of(name);
        self.write_unfinished(name, &path, write)
            .map_err(|error| disk_error("write", &path, &error))
    }

    fn write_unfinished(
        &self,
        name: &str,
        path: &Path,
        write: impl FnOnce(&mut File) -> io::Result<()>,
    ) -> io::Result<File> {
        let unfinished = self.path.join(format!("{name}{UNFINISHED}"));
        let mut file = fs::OpenOptions::new()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(&unfinished)?;
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)?;
        self.sync()?;
        Ok(file)
    }

    pub(super) fn note_open(&self, name: &str) -> io::Result<()> {
        let mut open = self.open_journals.lock().unwrap_or_else(PoisonError::into_inner);
        if open.insert(name.to_owned()) {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!("journal {name} is open already in this process"),
        ))
    }

    pub(super) fn note_closed(&self, name: &str) {
        self.open_journals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }
}

impl Disk for MachineDisk {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let path = self.directory.path_of(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(disk_error("read", &path, &error)),
        }
    }

    fn replace(&self, name: &str, bytes: Vec<u8>) -> BoxFuture<io::Result<()>> {
        let (directory, name) = (self.directory.clone(), name.to_owned());
        Box::pin(async move { blocking(|| directory.write_whole(&name, |file| file.write_all(&bytes)).map(|_| ())) })
    }

    fn remove(&self, name: &str) -> BoxFuture<io::Result<()>> {
        let (directory, name) = (self.directory.clone(), name.to_owned());
        Box::pin(async move {
            let path = directory.path_of(&name);
            let removed = blocking(|| match fs::remove_file(&path) {
                Ok(()) => directory.sync(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            });
            removed.map_err(|error| disk_error("remove", &path, &error))
        })
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.directory.path)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let is_ours = name != LOCK_FILE && !name.starts_with('.') && !name.ends_with(UNFINISHED);
            if is_ours && name.starts_with(prefix) && entry.file_type()?.is_file() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open_journal(&self, name: &str) -> io::Result<(Box<dyn Journal>, Vec<(u64, Vec<u8>)>)> {
        let (journal, records) = MachineJournal::open(self.directory.clone(), name)?;
        Ok((Box::new(journal), records))
    }

    fn read_journal(&self, name: &str) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let path = self.directory.path_of(name);
        journal::read_finished(&path, name).map_err(|error| disk_error("read", &path, &error))
    }

    fn read_record(&self, name: &str, offset: u64) -> io::Result<Vec<u8>> {
        let path = self.directory.path_of(name);
        journal::read_finished_record(&path, name, offset).map_err(|error| disk_error("read", &path, &error))
    }
}
