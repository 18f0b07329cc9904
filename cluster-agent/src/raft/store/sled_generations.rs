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
//! * Upon a failure before `CURRENT` changes: the old generation goes on.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use sled::{Batch, Tree};

use super::{
    StoreError,
    sled_entries::sled_error,
    snapshot::{sync_dir, write_durably},
};

const CURRENT: &str = "CURRENT";
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
pub(super) fn export(from: &Tree, to: &Tree, mut each: impl FnMut()) -> Result<(), StoreError> {
    let (mut batch, mut bytes) = (Batch::default(), 0);
    for item in from.iter() {
        let (key, value) = item.map_err(sled_error)?;
        bytes += key.len() + value.len();
        batch.insert(key, value);
        if bytes >= EXPORT_BYTES {
            to.apply_batch(std::mem::take(&mut batch)).map_err(sled_error)?;
            bytes = 0;
            each();
        }
    }
    to.apply_batch(batch).map_err(sled_error)
}

/// Bytes of what is live.
pub(super) fn live_bytes(tree: &Tree) -> Result<u64, StoreError> {
    tree.iter().try_fold(0, |sum, item| {
        let (key, value) = item.map_err(sled_error)?;
        Ok(sum + (key.len() + value.len()) as u64)
    })
}

/// Puts `name` in force. When this returns it survives a loss of power.
pub(super) fn put_in_force(dir: &Path, name: &str) -> Result<(), StoreError> {
    write_durably(dir, CURRENT, name.as_bytes())
}

/// Removes every generation but the one in force, and what a move left half-done.
pub(super) fn remove_others(dir: &Path, in_force: &str) -> Result<(), StoreError> {
    let fail = |path: &Path, error: io::Error| StoreError::Io(format!("{}: {error}", path.display()));
    let mut is_changed = false;
    for entry in fs::read_dir(dir).map_err(|error| fail(dir, error))? {
        let path = entry.map_err(|error| fail(dir, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_of_first = matches!(name.as_str(), "db" | "conf" | "blobs") || name.starts_with("snap.");
        let is_other = number_of(&name).is_some() && name != in_force;
        if !(is_other || name == "CURRENT.tmp" || (is_of_first && !in_force.is_empty())) {
            continue;
        }
        tracing::info!(path = %path.display(), "removing what the log has left");
        let removed = if path.is_dir() {
            fs::remove_dir_all(&path)
        } else {
            fs::remove_file(&path)
        };
        removed.map_err(|error| fail(&path, error))?;
        is_changed = true;
    }
    if is_changed { sync_dir(dir) } else { Ok(()) }
}
