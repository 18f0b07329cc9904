//! sled's files: made, opened and synced so that a loss of power at any point leaves a log that opens.
//!
//! # Rules
//! * A log is made beside its place and moved there once it is whole: sled does not sync its settings, and
//!   does not open what a power cut in the middle of its first start leaves.
//! * What a killed process left in the page cache is made durable before sled opens it: sled frees and overwrites by what it reads.
//! * Before opening, `snap.*.generating` is deleted: a crash while sled opened leaves it, and sled
//!   takes it for its newest index and fails for ever. If sled reports corruption its index files are
//!   set aside and the log is replayed from the start, once.
//! * No thread of sled's own writes: its periodic flush would move pages through many segments before they are synced
//!   (`sled_entries::SEGMENT_BYTES`).

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::Duration,
};

use sled::Db;

use super::{
    StoreError,
    durable_sled::SledOptions,
    group_commit::{self, Fsync},
    sled_entries::{SEGMENT_BYTES, sled_error},
    snapshot::sync_dir,
};

/// How often and how long apart a locked database is tried: two seconds in all.
const LOCK_TRIES: u32 = 2_000;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// The log itself.
pub(super) const RAFT_TREE: &str = "raft";
/// How far it reaches (`sled_head`).
pub(super) const HEAD_TREE: &str = "head";

/// Makes an empty log: complete and durable before it has its name.
///
/// # Errors
/// [`StoreError::Io`].
pub(super) fn create(dir: &Path, options: SledOptions) -> Result<(), StoreError> {
    let has_content = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if has_content {
        // Something else lies there: sled adds its files to it, or says why not.
        return Ok(());
    }
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let beside = dir.with_file_name(name);
    if beside.exists() {
        fs::remove_dir_all(&beside).map_err(|error| io_error(&beside, &error))?;
    }
    fs::create_dir_all(&beside).map_err(|error| io_error(&beside, &error))?;
    let db = open_sled(&beside, options)?;
    db.open_tree(RAFT_TREE).map_err(sled_error)?;
    db.open_tree(HEAD_TREE).map_err(sled_error)?;
    sync_everything(&beside, &db, &mut (Box::new(File::sync_data) as Fsync))?;
    drop(db);
    fs::rename(&beside, dir).map_err(|error| io_error(dir, &error))?;
    dir.parent().map_or(Ok(()), sync_dir)
}

/// Opens the log in `dir`, whatever a crash has left there.
///
/// # Errors
/// [`StoreError::Io`] or [`StoreError::Corrupt`].
pub(super) fn open(dir: &Path, options: SledOptions, fsync: &mut Fsync) -> Result<Db, StoreError> {
    remove_unfinished_indexes(dir)?;
    sync_database(dir, fsync)?;
    match open_unlocked(dir, options) {
        Err(StoreError::Corrupt(why)) => {
            tracing::warn!(
                why,
                "sled reports corruption: its index is set aside and the log replayed"
            );
            set_indexes_aside(dir)?;
            open_unlocked(dir, options)
        }
        other => other,
    }
}

/// Makes durable what a process that was killed left in the page cache. sled frees and overwrites what the log as it reads it
/// does not need any more; after a loss of power the log as it was would still need it.
fn sync_database(dir: &Path, fsync: &mut Fsync) -> Result<(), StoreError> {
    let path = dir.join("db");
    match File::options().read(true).write(true).open(&path) {
        Ok(file) => fsync(&file).map_err(|error| fsync_error(&path, &error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error(&path, &error)),
    }
}

/// sled's threads keep its lock for a moment after it was closed, as does a process that is ending.
fn open_unlocked(dir: &Path, options: SledOptions) -> Result<Db, StoreError> {
    let mut tries_left = LOCK_TRIES;
    loop {
        match open_sled(dir, options) {
            Err(StoreError::Io(why)) if tries_left > 0 && why.contains("could not acquire lock") => {
                tries_left -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            other => return other,
        }
    }
}

/// sled 0.34 panics on some damage, so a panic is an answer here.
pub(super) fn open_sled(dir: &Path, options: SledOptions) -> Result<Db, StoreError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(options.cache_bytes)
        .flush_every_ms(None)
        .segment_size(segment_bytes(dir))
        .use_compression(false)
        .print_profile_on_drop(false);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(sled_error),
        Err(_) => Err(StoreError::Corrupt("sled panicked while it opened the log".into())),
    }
}

/// Length of the segments of the log in `dir`: sled opens it with no other. Logs of older versions have short ones.
pub(super) fn segment_bytes(dir: &Path) -> usize {
    let conf = fs::read(dir.join("conf")).unwrap_or_default();
    let text = String::from_utf8_lossy(&conf);
    let named = text.lines().find_map(|line| line.strip_prefix("segment_size: "));
    named
        .and_then(|number| number.trim().parse().ok())
        .unwrap_or(SEGMENT_BYTES)
}

/// Makes what opening wrote durable, and returns our own descriptor of sled's file.
pub(super) fn sync_everything(dir: &Path, db: &Db, fsync: &mut Fsync) -> Result<File, StoreError> {
    let path = dir.join("db");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| io_error(&path, &error))?;
    db.flush().map_err(sled_error)?;
    fsync(&file).map_err(|error| fsync_error(&path, &error))?;
    for path in [dir.join("conf")].into_iter().chain(index_files(dir)?) {
        // sled may remove an index at any time.
        match File::open(&path).and_then(|file| file.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&path, &error)),
            _ => {}
        }
    }
    sync_dir(&dir.join("blobs"))?;
    sync_dir(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)?;
    Ok(file)
}

/// An acknowledgement would promise more than such a file keeps.
pub(super) fn check_no_blobs(blobs: &Path) -> Result<(), StoreError> {
    let first = fs::read_dir(blobs).map_err(|error| io_error(blobs, &error))?.next();
    match first {
        None => Ok(()),
        Some(found) => {
            let path = found.map_err(|error| io_error(blobs, &error))?.path();
            Err(StoreError::Io(format!(
                "{}: sled moved a leaf into a file that it does not flush",
                path.display()
            )))
        }
    }
}

pub(super) fn index_files(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| io_error(dir, &error))? {
        let path = entry.map_err(|error| io_error(dir, &error))?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("snap."))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn remove_unfinished_indexes(dir: &Path) -> Result<(), StoreError> {
    for path in index_files(dir)? {
        if path.extension().is_some_and(|extension| extension == "generating") {
            tracing::warn!(path = %path.display(), "removing an index that sled did not finish");
            fs::remove_file(&path).map_err(|error| io_error(&path, &error))?;
        }
    }
    sync_dir(dir)
}

fn set_indexes_aside(dir: &Path) -> Result<(), StoreError> {
    let aside = dir.join("aside");
    fs::create_dir_all(&aside).map_err(|error| io_error(&aside, &error))?;
    for path in index_files(dir)? {
        let name = path.file_name().expect("index files have names");
        fs::rename(&path, aside.join(name)).map_err(|error| io_error(&path, &error))?;
    }
    sync_dir(&aside)?;
    sync_dir(dir)
}

pub(super) fn fsync_error(path: &Path, error: &io::Error) -> StoreError {
    group_commit::io_error("fsync", path, error)
}

pub(super) fn io_error(path: &Path, error: &io::Error) -> StoreError {
    group_commit::io_error("use", path, error)
}
