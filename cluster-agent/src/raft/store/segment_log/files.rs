//! The segments as files: their names, making the next one ahead of time, removing old ones.
//!
//! # Rules
//! * A segment has its name only once it is full of zeros, and durable. So writing into it moves neither its
//!   size nor its blocks, a sync of it needs no commit of the file system's journal, and a full disk is
//!   met here, where nothing is lost.
//! * Segments go from the oldest on, each one's name durably before the next one's: what is left has no gap.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use super::{
    super::{
        StoreError,
        group_commit::{Poison, io_error},
        snapshot::sync_dir,
    },
    frame::SECTOR_BYTES,
};

const EXTENSION: &str = ".seg";
/// A segment that is being made; what a crash left of it is overwritten.
const UNFINISHED: &str = "next.unfinished";
/// Zeros of one write.
const FILL_BYTES: usize = 256 * 1024;
/// What may wait for the housekeeper: one segment to make, and removals, of which a later one says all.
const ERRANDS_MAX: usize = 4;

/// Path of the segment `number` of the log in `dir`.
pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:016x}{EXTENSION}"))
}

fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(EXTENSION).filter(|digits| digits.len() == 16)?;
    u64::from_str_radix(digits, 16).ok()
}

/// Numbers of the segments in `dir`, ascending.
pub(super) fn list(dir: &Path) -> Result<Vec<u64>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| io_error("read", dir, &error))? {
        let entry = entry.map_err(|error| io_error("read", dir, &error))?;
        found.extend(entry.file_name().to_str().and_then(number_of));
    }
    found.sort_unstable();
    Ok(found)
}

/// Opens a segment.
pub(super) fn open(dir: &Path, number: u64, is_writable: bool) -> Result<File, StoreError> {
    let path = path_of(dir, number);
    let opened = File::options().read(true).write(is_writable).open(&path);
    opened.map_err(|error| io_error("open", &path, &error))
}

/// Writes zeros from `from` up to `to`.
pub(super) fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; FILL_BYTES];
    let mut at = from;
    while at < to {
        let len = usize::try_from(to - at).map_or(FILL_BYTES, |left| left.min(FILL_BYTES));
        file.write_all_at(&zeros[..len], at)?;
        at += len as u64;
    }
    Ok(())
}

/// An empty segment under its name, durable. Upon an error there is nothing of it.
pub(super) fn prepare(dir: &Path, number: u64, bytes_len: u32) -> Result<File, StoreError> {
    assert!((bytes_len as usize).is_multiple_of(SECTOR_BYTES), "whole sectors");
    let (unfinished, path) = (dir.join(UNFINISHED), path_of(dir, number));
    let make = || -> io::Result<File> {
        let mut options = File::options();
        let file = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&unfinished)?;
        fill(&file, 0, bytes_len.into())?;
        file.sync_all()?;
        fs::rename(&unfinished, &path)?;
        Ok(file)
    };
    let made = make().map_err(|error| {
        // Its space may be what others need now. If this fails too, the next one overwrites it.
        let _ = fs::remove_file(&unfinished);
        io_error("write", &path, &error)
    })?;
    sync_dir(dir)?;
    Ok(made)
}

/// Removes the segment `number` durably.
pub(super) fn remove(dir: &Path, number: u64) -> Result<(), StoreError> {
    let path = path_of(dir, number);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, &error)),
        _ => sync_dir(dir),
    }
}

/// Removes what a crash left of a segment that was being made.
pub(super) fn remove_unfinished(dir: &Path) -> Result<(), StoreError> {
    let path = dir.join(UNFINISHED);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", &path, &error)),
        _ => Ok(()),
    }
}

/// What the housekeeper is asked to do.
enum Errand {
    /// Make this segment.
    Prepare(u64),
    /// Remove all segments from the oldest up to before this one.
    RemoveBelow(u64),
}

/// A thread beside the writer that makes and removes segments. It sleeps unless it is asked.
pub(super) struct Housekeeper {
    /// `None` once it is told to end.
    errands: Option<SyncSender<Errand>>,
    prepared: Receiver<(u64, Result<File, StoreError>)>,
    thread: Option<JoinHandle<()>>,
}

impl Housekeeper {
    /// For the log in `dir`, whose oldest segment is `oldest`. A removal that fails poisons the store; a segment
    /// that cannot be made is told to who asks for it.
    pub fn start(dir: &Path, oldest: u64, segment_bytes: u32, poison: Arc<Poison>) -> Result<Self, StoreError> {
        let (errands, asked) = sync_channel(ERRANDS_MAX);
        let (answers, prepared) = sync_channel(ERRANDS_MAX);
        let place = dir.to_path_buf();
        let work = move || {
            let mut oldest = oldest;
            for errand in asked {
                match errand {
                    Errand::Prepare(number) => {
                        // Nobody waits any more when the log is being closed.
                        let _ = answers.send((number, prepare(&place, number, segment_bytes)));
                    }
                    Errand::RemoveBelow(kept) => {
                        while oldest < kept {
                            if poison.guard(&place, || remove(&place, oldest)).is_err() {
                                return;
                            }
                            oldest += 1;
                        }
                    }
                }
            }
        };
        #[expect(
            clippy::disallowed_methods,
            reason = "production's port: the simulator's log has no files"
        )]
        let spawned = std::thread::Builder::new().name("raft-log-files".into()).spawn(work);
        let thread = spawned.map_err(|error| io_error("start a thread for", dir, &error))?;
        Ok(Self {
            errands: Some(errands),
            prepared,
            thread: Some(thread),
        })
    }

    fn ask(&self, errand: Errand) -> bool {
        let sent = self.errands.as_ref().map(|errands| errands.try_send(errand));
        matches!(sent, Some(Ok(())))
    }

    /// Asks for the segment `number`; false if it is too busy.
    pub fn prepare(&self, number: u64) -> bool {
        self.ask(Errand::Prepare(number))
    }

    /// Asks for the removal of everything below `kept`; false if it is too busy.
    pub fn remove_below(&self, kept: u64) -> bool {
        self.ask(Errand::RemoveBelow(kept))
    }

    /// Waits for the segment that was asked for.
    pub fn prepared(&self, number: u64) -> Result<File, StoreError> {
        loop {
            let (made, outcome) = self.prepared.recv().map_err(|_| StoreError::Closed)?;
            if made == number {
                return outcome;
            }
        }
    }
}

impl Drop for Housekeeper {
    fn drop(&mut self) {
        self.errands = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the log's housekeeper panicked");
        }
    }
}
