//! Small files that must be whole: written beside, fsynced, renamed, directory fsynced.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
};

use crate::exit::{Exit, Failure, Outcome};

/// Creates a directory of mode 0700 with its parents, if it is not there.
///
/// # Errors
/// Of the file system.
pub fn private_dir(path: &Path) -> Outcome {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(Failure::io(format!("cannot create {}", path.display())))
}

/// Writes a file that must not exist yet. Mode 0600.
///
/// # Errors
/// [`Exit::RefusedForSafety`] if it exists.
pub fn write_new(path: &Path, bytes: &[u8]) -> Outcome {
    if path.exists() {
        return Err(
            Failure::new(Exit::RefusedForSafety, format!("{} exists already", path.display()))
                .todo("choose another path, or move the old file away"),
        );
    }
    replace(path, bytes)
}

/// Replaces a file, durably and at once. Mode 0600.
///
/// # Errors
/// Of the file system.
pub fn replace(path: &Path, bytes: &[u8]) -> Outcome {
    write_durably(path, bytes).map_err(Failure::io(format!("cannot write {}", path.display())))
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::File::open(dir)?.sync_all()
}

/// Reads a file of at most `bytes_max` bytes.
///
/// # Errors
/// [`Exit::Invalid`]: missing, unreadable or too long.
pub fn read_bounded(path: &Path, bytes_max: u64) -> Outcome<Vec<u8>> {
    let invalid =
        |e: &dyn std::fmt::Display| Failure::new(Exit::Invalid, format!("cannot read {}: {e}", path.display()));
    let file = fs::File::open(path).map_err(|e| invalid(&e))?;
    let mut bytes = Vec::new();
    file.take(bytes_max + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| invalid(&e))?;
    if bytes.len() as u64 > bytes_max {
        return Err(invalid(&format!("more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

/// Holds a lock file until dropped: one process at a time.
#[derive(Debug)]
pub struct Lock {
    _file: fs::File,
}

impl Lock {
    /// Takes the lock, waiting for nobody.
    ///
    /// # Errors
    /// [`Exit::Conflict`] if another process has it.
    pub fn take(path: &Path) -> Outcome<Self> {
        let file = open_lock(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            Failure::new(
                Exit::Conflict,
                format!("another fleet command holds {}", path.display()),
            )
            .todo("wait until it ends")
        })?;
        Ok(Self { _file: file })
    }

    /// Takes the lock, waiting for the process that has it.
    ///
    /// # Errors
    /// Of the file system.
    pub fn wait(path: &Path) -> Outcome<Self> {
        let file = open_lock(path)?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|e| Failure::new(Exit::Failed, format!("cannot lock {}: {e}", path.display())))?;
        Ok(Self { _file: file })
    }
}

fn open_lock(path: &Path) -> Outcome<fs::File> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(Failure::io(format!("cannot open {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_file_is_not_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_new(&path, b"1").unwrap();
        assert_eq!(write_new(&path, b"2").unwrap_err().exit, Exit::RefusedForSafety);
        assert_eq!(read_bounded(&path, 10).unwrap(), b"1");
        replace(&path, b"22").unwrap();
        assert_eq!(read_bounded(&path, 1).unwrap_err().exit, Exit::Invalid);
    }

    #[test]
    fn lock_is_one_holders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let held = Lock::take(&path).unwrap();
        assert_eq!(Lock::take(&path).unwrap_err().exit, Exit::Conflict);
        drop(held);
        Lock::take(&path).unwrap();
    }
}
