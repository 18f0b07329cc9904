//! Which directory holds the log, and how the log moves into a fresh one.
//!
//! sled never gives disk back: its file stays at its greatest size for ever. So a file that has outgrown
//! its quota is left: what is live goes into a fresh directory, and the old one is removed.
//!
//! | where | what |
//! |---|---|
//! | `log/` | the first generation: sled's files |
//! | `log/gen-<n>/` | a later one |
//! | `log/CURRENT` | the name of the generation in force, if it is not the first |
//!
//! # Rules
//! * A generation is in force when `CURRENT` names it; it is whole and durable before. `CURRENT` appears
//!   by rename. So after a crash at any point exactly one generation is in force, with everything that was
//!   acknowledged; whatever else lies there is removed at the next start.
//! * If there is no place for the copy before `CURRENT` changes, the old generation goes on, and so it does if something stands where
//!   the copy should be. A failed flush, and whatever else fails while sled writes the copy, is final.
//! * A file that cannot be removed stops nothing: the next start tries again.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use sled::{Batch, Tree};

use super::{
    StoreError,
    sled_entries::sled_error,
    sled_files::{fsync_error, io_error},
    snapshot::sync_dir,
};

const CURRENT: &str = "CURRENT";
const CURRENT_TEMPORARY: &str = "CURRENT.tmp";
const PREFIX: &str = "gen-";
/// Bytes of one batch of the export.
const EXPORT_BYTES: usize = 64 * 1024;

/// How far a move has come. Tests look at the disk at each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MoveStep {
    /// The fresh directory is there.
    Begun,
    /// Some of what is live is in it.
    Exporting,
    /// All is in it, and durable.
    Exported,
    /// `CURRENT` names it.
    Named,
    /// The old generation is removed.
    Removed,
}

/// Why the log did not move.
pub(super) enum GivenUp {
    /// The old generation goes on.
    Moving(StoreError),
    /// Nothing does: a flush has failed, or may have.
    Everything(StoreError),
}

impl GivenUp {
    fn of_io(path: &Path, error: &io::Error) -> Self {
        Self::Moving(io_error(path, error))
    }

    /// sled does not tell a write that failed from a flush; a full disk is the one failure that says nothing about the device.
    pub fn of_sled(error: sled::Error) -> Self {
        use io::ErrorKind::{QuotaExceeded, StorageFull};
        let is_full = matches!(&error, sled::Error::Io(error) if matches!(error.kind(), StorageFull | QuotaExceeded));
        let error = sled_error(error);
        if is_full {
            Self::Moving(error)
        } else {
            Self::Everything(error)
        }
    }
}

fn number_of(name: &str) -> Option<u64> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// Name and directory of the generation in force under `dir`; the name is empty for the first.
pub(super) fn active(dir: &Path) -> Result<(String, PathBuf), StoreError> {
    let path = dir.join(CURRENT);
    let name = match fs::read_to_string(&path) {
        Ok(name) => name.trim_end().to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((String::new(), dir.to_path_buf())),
        Err(error) => return Err(StoreError::Io(format!("{}: {error}", path.display()))),
    };
    if number_of(&name).is_none() {
        return Err(StoreError::Corrupt(format!("{}: names no generation", path.display())));
    }
    let generation = dir.join(&name);
    if !generation.join("db").exists() {
        return Err(StoreError::Corrupt(format!(
            "{}: names {name}, which is not there",
            path.display()
        )));
    }
    Ok((name, generation))
}

/// Whether there is a log under `dir`.
pub(super) fn has_log(dir: &Path) -> bool {
    active(dir).is_ok_and(|(_, generation)| generation.join("db").exists())
}

/// The directory of the generation after `name`.
pub(super) fn next(dir: &Path, name: &str) -> (String, PathBuf) {
    let name = format!("{PREFIX}{:06}", number_of(name).unwrap_or(0) + 1);
    let path = dir.join(&name);
    (name, path)
}

/// Copies everything of `from` into the empty `to`; `each` is called after every batch.
pub(super) fn export(from: &Tree, to: &Tree, mut each: impl FnMut()) -> Result<(), GivenUp> {
    let (mut batch, mut bytes) = (Batch::default(), 0);
    for item in from.iter() {
        let (key, value) = item.map_err(GivenUp::of_sled)?;
        bytes += key.len() + value.len();
        batch.insert(key, value);
        if bytes >= EXPORT_BYTES {
            to.apply_batch(std::mem::take(&mut batch)).map_err(GivenUp::of_sled)?;
            bytes = 0;
            each();
        }
    }
    to.apply_batch(batch).map_err(GivenUp::of_sled)
}

/// Bytes of what is live.
pub(super) fn live_bytes(tree: &Tree) -> Result<u64, StoreError> {
    tree.iter().try_fold(0, |sum, item| {
        let (key, value) = item.map_err(sled_error)?;
        Ok(sum + (key.len() + value.len()) as u64)
    })
}

/// Makes `dir` anew, without what an earlier move has left there.
pub(super) fn make_empty(dir: &Path) -> Result<(), GivenUp> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(|error| GivenUp::of_io(dir, &error))?;
    }
    fs::create_dir_all(dir).map_err(|error| GivenUp::of_io(dir, &error))
}

/// Puts `name` in force. When this returns it survives a loss of power.
pub(super) fn put_in_force(dir: &Path, name: &str) -> Result<(), GivenUp> {
    let (temporary, path) = (dir.join(CURRENT_TEMPORARY), dir.join(CURRENT));
    let mut file = File::create(&temporary).map_err(|error| GivenUp::of_io(&temporary, &error))?;
    let written = file.write_all(name.as_bytes());
    written.map_err(|error| GivenUp::of_io(&temporary, &error))?;
    let synced = file.sync_all();
    synced.map_err(|error| GivenUp::Everything(fsync_error(&temporary, &error)))?;
    // From here on it may be in force, whatever is reported.
    let renamed = fs::rename(&temporary, &path);
    renamed.map_err(|error| GivenUp::Everything(io_error(&path, &error)))?;
    sync_dir(dir).map_err(GivenUp::Everything)
}

/// Removes every generation but the one in force, and what a move left half-done.
pub(super) fn remove_others(dir: &Path, in_force: &str) -> Result<(), StoreError> {
    let mut is_changed = false;
    for entry in fs::read_dir(dir).map_err(|error| io_error(dir, &error))? {
        let path = entry.map_err(|error| io_error(dir, &error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_of_first = matches!(name.as_str(), "db" | "conf" | "blobs") || name.starts_with("snap.");
        let is_other = number_of(&name).is_some() && name != in_force;
        if !(is_other || name == CURRENT_TEMPORARY || (is_of_first && !in_force.is_empty())) {
            continue;
        }
        tracing::info!(path = %path.display(), "removing what the log has left");
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        if let Err(error) = removed {
            // Nobody reads it, and threads of a database that was just closed may still write there.
            tracing::warn!(path = %path.display(), %error, "it stays until the next start");
        }
        is_changed = true;
    }
    if is_changed { sync_dir(dir) } else { Ok(()) }
}
