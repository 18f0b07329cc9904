//! The production log store: files of a fixed size, written in order, never sorted and never rewritten.
//!
//! In: operations, in groups (`group_commit`). Out: one write and one `fdatasync` per group.
//!
//! | file | what |
//! |---|---|
//! | `log/<number>.seg` | a segment, 16 hexadecimal digits: frames (`frame`), then zeros. One frame holds one group |
//! | `log/END` | up to which group the log was acknowledged (`end`) |
//! | `log/next.unfinished` | a segment that is being made |
//!
//! # Rules
//! * A segment is full of zeros and durable before it has its name (`files`). The next one is made when half of
//!   the one before is full.
//! * A group is durable before the next one is written. So of the whole log only the last group can be torn.
//! * The first frame of a segment repeats vote, hint, purge marker and range of the log. A segment goes when no
//!   record of the log is in it and a later one has a durable frame.
//! * Truncations and purges are records; the later one wins.
//! * No two groups share a page of 4,096 bytes: what is acknowledged is never written again.
//! * A hint goes with the next group.
//! * What a start finds is durable before it is relied on: the last group, and zeros where the longest next one may
//!   lie, are written and synced once more, because an earlier process may have failed to.
//!
//! # What a start decides
//! The group at which reading ends is the one after the last that is whole and in its place. `END` says which
//! group was acknowledged at least.
//!
//! | found there | decision |
//! |---|---|
//! | zeros up to the end of the file | the end of the log |
//! | the group is not later than `END` | refused: it was acknowledged |
//! | a later group follows, in this segment or the next | refused: groups are durable in order, so it was acknowledged |
//! | its header is whole, and a sector that was not zeros is, or its last bytes are zeros | torn: cut, with a warning |
//! | the begin of a header, then zeros; or zeros, then sectors of a group without its first one | torn: cut, with a warning |
//! | its header is whole, no piece is missing, the checksum is wrong | refused: changed after it was written |
//! | a first sector that is neither zeros nor a header | refused: changed after it was written |
//! | a segment or `END` is gone, `END` is damaged, or something is of another directory | refused |
//! | the file is shorter than it was made | refused, unless the next group's first sector is there, and empty |
//!
//! Refused means [`StoreError::Corrupt`], and that no byte was changed. What is cut is overwritten with zeros, durably,
//! before the log goes on: it cannot come back.
//!
//! Not decidable is one case: a power cut comes within two seconds of the last acknowledgement (afterwards `END` is
//! synced), and of exactly the last acknowledged group the disk returns a whole sector as zeros. That looks like a
//! torn write. A flipped bit does not. A device that tears within 512 bytes makes a start refuse what could be
//! cut: the wrong side for comfort, the right one for votes.
//!
//! # Invariants
//! * durable-before-acknowledged, log-contiguous, purge-marked (`super`).
//!
//! # Why
//! docs/decisions/0025.

mod end;
mod files;
mod frame;
mod index;
mod recover;
mod writer;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard},
};

use common::ids::LogIndex;
use crc32c::crc32c;

use self::{
    end::{End, EndFile},
    files::Housekeeper,
    frame::{FRAME_BYTES_MAX, SECTOR_BYTES},
    index::{Index, Place},
    recover::{Found, Repair, recover},
    writer::{Next, Writer, active},
};
use super::{
    Done, LogOp, LogRecord, LogStore, Recovered, StoreError,
    group_commit::{Fsync, GroupCommit, Poison, io_error},
    identity::Marker,
    snapshot::sync_dir,
};

/// Files that are kept open for reading.
const OPEN_FILES_MAX: usize = 16;

/// Settings of a segment log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentOptions {
    /// Length of a new segment, a multiple of 512. It is written twice: zeros first.
    pub segment_bytes: u32,
}

impl Default for SegmentOptions {
    fn default() -> Self {
        Self {
            segment_bytes: 4 * 1024 * 1024,
        }
    }
}

/// A [`LogStore`] of segment files. Dropping it finishes what is queued and closes the files.
pub struct SegmentLog {
    recovered: Recovered,
    /// No group was ever durable here.
    is_new: bool,
    shared: Arc<Shared>,
    commit: GroupCommit,
}

/// Whether there is a log of segments in `dir`, be it a damaged one.
pub(super) fn has_log(dir: &Path) -> bool {
    dir.join(end::END).exists() || files::list(dir).is_ok_and(|segments| !segments.is_empty())
}

impl SegmentLog {
    /// Opens or creates the log in `dir`, which belongs to the data directory numbered `directory`. `marker` is made
    /// durable before the first acknowledgement.
    ///
    /// # Errors
    /// [`StoreError::Io`], or [`StoreError::Corrupt`] with nothing changed: keep the directory and join again with
    /// an empty one under a new Raft id.
    ///
    /// # Panics
    /// If the length of a segment is 0 or no multiple of 512.
    pub fn open(dir: &Path, directory: [u8; 16], options: SegmentOptions, marker: Marker) -> Result<Self, StoreError> {
        Self::open_with(dir, directory, options, marker, Box::new(File::sync_data))
    }

    pub(super) fn open_with(
        dir: &Path,
        directory: [u8; 16],
        options: SegmentOptions,
        marker: Marker,
        mut fsync: Fsync,
    ) -> Result<Self, StoreError> {
        let SegmentOptions { segment_bytes } = options;
        assert!(
            segment_bytes > 0 && (segment_bytes as usize).is_multiple_of(SECTOR_BYTES),
            "segments of {segment_bytes} bytes"
        );
        if !has_log(dir) {
            create(dir, directory, segment_bytes)?;
        }
        let (mut end_file, end) = EndFile::open(dir)?;
        if end.directory != directory {
            return Err(StoreError::Corrupt(format!(
                "{}: the log of another data directory",
                end_file.path.display()
            )));
        }
        let found = recover(dir, &end, segment_bytes)?;
        files::remove_unfinished(dir)?;
        mend(dir, &found.repairs)?;
        settle(dir, &end, &found, &mut fsync)?;
        end_file.write(&End {
            directory,
            group: found.group,
            segment: found.segment,
        })?;
        end_file.sync()?;
        let (poison, shared) = (Arc::new(Poison::default()), Arc::new(Shared::new(dir, found.index)));
        let recovered = shared.index().recovered();
        let active = active(dir, found.segment, found.segment_bytes, found.offset)?;
        shared.open_segment(active.number, active.file.clone());
        let next = match found.has_next {
            true => Next::Ready(files::open(dir, found.segment + 1, true)?),
            false => Next::None,
        };
        let writer = Writer {
            dir: dir.to_path_buf(),
            directory,
            segment_bytes,
            shared: shared.clone(),
            active,
            next,
            group: found.group,
            housekeeper: Housekeeper::start(dir, found.oldest, segment_bytes, poison.clone())?,
            end: end_file,
            marked_segment: found.segment,
            kept_from: found.oldest,
            hint: None,
            marker: Some(marker),
            fsync,
            poison: poison.clone(),
            buffer: Vec::new(),
            payloads: Vec::new(),
        };
        let started = GroupCommit::start(poison, move |waiting| writer.run(waiting));
        Ok(Self {
            recovered,
            is_new: found.group == 0,
            shared,
            commit: started.map_err(|error| io_error("start a thread for", dir, &error))?,
        })
    }

    /// Whether nothing was ever written here before it was opened.
    #[must_use]
    pub fn is_new(&self) -> bool {
        self.is_new
    }

    /// Finishes what is queued and gives the files free, though others still hold this store: every
    /// later operation fails. Waits for the disk.
    pub fn close(&self) {
        self.commit.close();
        self.shared.close_segments_below(u64::MAX);
    }

    /// The first failure, if there was one. The process must stop.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        self.commit.failure()
    }

    /// Resolves at the first failure. The process must stop.
    pub async fn failed(&self) -> StoreError {
        self.commit.failed().await
    }
}

impl Drop for SegmentLog {
    fn drop(&mut self) {
        self.close();
    }
}

impl LogStore for SegmentLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        self.failure().map_or_else(|| Ok(self.recovered.clone()), Err)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        if self.commit.is_closed() {
            return Err(StoreError::Closed);
        }
        self.shared.read(from, to, bytes_max)
    }

    fn submit(&self, op: LogOp, done: Done) {
        self.commit.submit(op, done);
    }
}

/// What readers and the writer share: where records lie, and the files in which they do.
struct Shared {
    dir: PathBuf,
    index: RwLock<Index>,
    /// In the order in which they were opened; beyond [`OPEN_FILES_MAX`] the first goes.
    open: Mutex<VecDeque<(u64, Arc<File>)>>,
}

impl Shared {
    fn new(dir: &Path, index: Index) -> Self {
        Self {
            dir: dir.to_path_buf(),
            index: RwLock::new(index),
            open: Mutex::default(),
        }
    }

    fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Index)) {
        change(&mut self.index.write().unwrap_or_else(PoisonError::into_inner));
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        let places = self.index().range(from, to, bytes_max);
        let mut found = Vec::with_capacity(places.len());
        for (index, place) in places {
            match self.read_place(place) {
                Ok(bytes) => found.push(LogRecord {
                    index,
                    bytes: bytes.into(),
                }),
                // Purged in the meantime, and its segment removed.
                Err(_) if self.index().range(index, LogIndex(index.0 + 1), 0) != [(index, place)] => break,
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn read_place(&self, place: Place) -> Result<Vec<u8>, StoreError> {
        let file = self.file(place.segment)?;
        let path = || files::path_of(&self.dir, place.segment);
        let mut bytes = vec![0; place.len as usize];
        let read = file.read_exact_at(&mut bytes, place.offset.into());
        read.map_err(|error| io_error("read", &path(), &error))?;
        if crc32c(&bytes) != place.sum {
            return Err(StoreError::Corrupt(format!(
                "{} at {}: a record was changed after it was written",
                path().display(),
                place.offset
            )));
        }
        Ok(bytes)
    }

    fn file(&self, segment: u64) -> Result<Arc<File>, StoreError> {
        let cached = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.iter().find(|(number, _)| *number == segment).cloned()
        };
        if let Some((_, file)) = cached {
            return Ok(file);
        }
        let file = Arc::new(files::open(&self.dir, segment, false)?);
        self.open_segment(segment, file.clone());
        Ok(file)
    }

    fn open_segment(&self, number: u64, file: Arc<File>) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(other, _)| *other != number);
        open.push_back((number, file));
        if open.len() > OPEN_FILES_MAX {
            open.pop_front();
        }
    }

    fn close_segments_below(&self, kept: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(number, _)| *number >= kept);
    }
}

/// Makes an empty log: complete and durable before it has its name.
fn create(dir: &Path, directory: [u8; 16], segment_bytes: u32) -> Result<(), StoreError> {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let beside = dir.with_file_name(name);
    let make = || -> io::Result<()> {
        if beside.exists() {
            fs::remove_dir_all(&beside)?;
        }
        fs::create_dir_all(&beside)
    };
    make().map_err(|error| io_error("create", &beside, &error))?;
    EndFile::create(&beside, directory)?;
    files::prepare(&beside, 1, segment_bytes)?;
    fs::rename(&beside, dir).map_err(|error| io_error("create", dir, &error))?;
    dir.parent().map_or(Ok(()), sync_dir)
}

/// Does what recovery found to be necessary, durably.
fn mend(dir: &Path, repairs: &[Repair]) -> Result<(), StoreError> {
    for repair in repairs {
        let (segment, from, to) = match *repair {
            Repair::Cut { segment, from, to } => (segment, from, to),
            Repair::Lengthen { segment, from, to } => (segment, from, to),
            Repair::Remove { segment } => {
                let path = files::path_of(dir, segment);
                tracing::warn!(path = %path.display(), "removing a segment of the log that was never in use");
                files::remove(dir, segment)?;
                continue;
            }
        };
        let path = files::path_of(dir, segment);
        if matches!(repair, Repair::Cut { .. }) {
            tracing::warn!(
                path = %path.display(), from, to,
                "the last group of the log was not written to its end and was not acknowledged: it is cut off"
            );
        } else {
            tracing::warn!(
                path = %path.display(), from, to,
                "a segment of the log is shorter than it was made; nothing of the log was there: it is lengthened"
            );
        }
        let file = files::open(dir, segment, true)?;
        files::fill(&file, from, to)
            .and_then(|()| file.sync_all())
            .map_err(|error| io_error("write", &path, &error))?;
    }
    Ok(())
}

/// Makes durable what was read, which may be in the page cache only. The last group and the zeros behind it are written
/// once more: a sync that failed in an earlier process leaves clean pages that are not on the disk, be it of a group or
/// of the zeros that cut one.
fn settle(dir: &Path, end: &End, found: &Found, fsync: &mut Fsync) -> Result<(), StoreError> {
    for number in end.segment.max(found.oldest)..=found.segment {
        let path = files::path_of(dir, number);
        let file = files::open(dir, number, true)?;
        if number == found.segment
            && found.group > end.group
            && let Some((offset, frame)) = &found.last_frame
        {
            file.write_all_at(frame, (*offset).into())
                .map_err(|error| io_error("write", &path, &error))?;
        }
        if number == found.segment {
            let (from, end) = (u64::from(found.offset), u64::from(found.segment_bytes));
            files::fill(&file, from, end.min(from + FRAME_BYTES_MAX as u64))
                .map_err(|error| io_error("write", &path, &error))?;
        }
        fsync(&file).map_err(|error| io_error("fsync", &path, &error))?;
    }
    sync_dir(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)
}

#[cfg(test)]
mod tests;
