//! An append-only sequence of records in segment files, written by one task.
//! In: encoded records. Out: their places, once durable. Called by: the batch store and the block store.
//!
//! # Rules
//! * Upon a record: append it to the last segment together with all others that wait; durable, then answered.
//! * Upon a segment at its size: begin the next one. A finished segment is never written again.
//! * Upon any error: the validator stops. Nothing is retried after a failed fsync.
//! * Opening reads one segment after another and keeps none of their records. The last segment stays open, and
//!   of the finished ones the [`FINISHED_OPEN_MAX`] that were read last; another is opened, and checked, when it is read.
//!
//! # Invariants
//! * The order of the records on the disk is the order in which they were handed over.
//!
//! # Why
//! One writer, because a caller may go away in the middle (its connection broke) and an append must
//! not. Segments, because a later version drops old ones whole; today everything is kept.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{mpsc, oneshot};
use transport::ports::{Disk, Journal, Spawner};

use crate::{exit::Stop, halt::Halt};

/// Size at which a segment is finished, in bytes.
pub const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;
/// Appends that may wait for the writer.
const APPENDS_WAITING_MAX: usize = 256;
/// Finished segments that are open at once.
pub const FINISHED_OPEN_MAX: usize = 16;
/// Bytes that the writer gathers for one fsync.
const GROUP_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Where a record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    segment: u32,
    offset: u64,
}

/// The store was stopped by a failure of the disk, or its validator is ending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store has stopped")]
pub struct Stopped;

struct Append {
    records: Vec<Vec<u8>>,
    done: oneshot::Sender<Vec<Place>>,
}

/// Handle of one sequence; clones share it.
#[derive(Clone)]
pub struct Segments {
    files: Arc<Mutex<Files>>,
    appends: mpsc::Sender<Append>,
}

/// The segments' files.
struct Files {
    disk: Arc<dyn Disk>,
    name: &'static str,
    /// Number of the last segment, and it.
    last: (u32, Box<dyn Journal>),
    /// Finished ones that are open, the one read last at the end.
    finished: VecDeque<(u32, Box<dyn Journal>)>,
}

impl Files {
    fn read(&mut self, place: Place) -> io::Result<Vec<u8>> {
        let (last, journal) = &self.last;
        if place.segment == *last {
            return journal.read(place.offset);
        }
        let known = self.finished.iter().position(|(segment, _)| *segment == place.segment);
        let open = match known.and_then(|at| self.finished.remove(at)) {
            Some(open) => open,
            None => {
                let file = file_name(self.name, place.segment);
                // Opening makes a file that is missing; a finished segment is not.
                if self.disk.list(&file)?.is_empty() {
                    let gone = format!("{file} was here and is missing");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, gone));
                }
                (place.segment, self.disk.open_journal(&file)?.0)
            }
        };
        let record = open.1.read(place.offset);
        self.finished.push_back(open);
        if self.finished.len() > FINISHED_OPEN_MAX {
            self.finished.pop_front();
        }
        record
    }

    /// Begins the next segment; the last one is finished.
    fn begin_next(&mut self) -> io::Result<()> {
        let next = self.last.0 + 1;
        let (journal, _) = self.disk.open_journal(&file_name(self.name, next))?;
        self.last = (next, journal);
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Guarded sections do not panic halfway: they push or index.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn file_name(name: &str, segment: u32) -> String {
    format!("{name}-{segment:06}.seg")
}

impl Segments {
    /// Opens the sequence `name`, gives every record to `found`, the oldest first, and starts its writer.
    ///
    /// # Errors
    /// Of the file system, or of `found`; [`io::ErrorKind::InvalidData`] if a record is damaged or a segment is
    /// missing: the operator restores the disk or replaces the validator.
    pub fn open(
        disk: &Arc<dyn Disk>,
        spawner: &Arc<dyn Spawner>,
        halt: &Halt,
        name: &'static str,
        segment_bytes: u64,
        mut found: impl FnMut(Place, Vec<u8>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let files = disk.list(&format!("{name}-"))?;
        let mut last = None;
        for segment in 0..files.len().max(1) as u32 {
            let file = file_name(name, segment);
            if files.get(segment as usize).is_some_and(|found| *found != file) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{file} is missing, found {}", files[segment as usize]),
                ));
            }
            let (journal, records) = disk.open_journal(&file)?;
            for (offset, record) in records {
                found(Place { segment, offset }, record)?;
            }
            last = Some((segment, journal));
        }
        let files = Arc::new(Mutex::new(Files {
            disk: disk.clone(),
            name,
            last: last.expect("the first segment is opened or made"),
            finished: VecDeque::new(),
        }));
        let (appends, waiting) = mpsc::channel(APPENDS_WAITING_MAX);
        let writer = Writer {
            name,
            segment_bytes,
            files: files.clone(),
            halt: halt.clone(),
        };
        spawner.spawn(name, Box::pin(writer.run(waiting)));
        Ok(Self { files, appends })
    }

    /// Appends `records` in order. They are durable when this returns.
    ///
    /// # Errors
    /// [`Stopped`]: the validator is ending.
    pub async fn append(&self, records: Vec<Vec<u8>>) -> Result<Vec<Place>, Stopped> {
        let (done, places) = oneshot::channel();
        self.appends.send(Append { records, done }).await.map_err(|_| Stopped)?;
        places.await.map_err(|_| Stopped)
    }

    /// The record at `place`.
    ///
    /// # Errors
    /// Of the file system, or damage: the caller stops the validator.
    pub fn read(&self, place: Place) -> Result<Vec<u8>, Stop> {
        let mut files = lock(&self.files);
        files.read(place).map_err(Stop::storage(files.name))
    }
}

struct Writer {
    name: &'static str,
    segment_bytes: u64,
    files: Arc<Mutex<Files>>,
    halt: Halt,
}

impl Writer {
    async fn run(self, mut waiting: mpsc::Receiver<Append>) {
        while let Some(first) = waiting.recv().await {
            let mut group = vec![first];
            let bytes = |append: &Append| append.records.iter().map(Vec::len).sum::<usize>();
            let mut gathered = bytes(&group[0]);
            while gathered < GROUP_BYTES_MAX {
                let Ok(next) = waiting.try_recv() else { break };
                gathered += bytes(&next);
                group.push(next);
            }
            let (mut records, mut owners) = (Vec::new(), Vec::new());
            for append in group {
                owners.push((append.records.len(), append.done));
                records.extend(append.records);
            }
            match self.write(records).await {
                Ok(places) => {
                    let mut places = places.into_iter();
                    for (count, done) in owners {
                        // A caller that went away does not mind.
                        let _ = done.send(places.by_ref().take(count).collect());
                    }
                }
                Err(error) => {
                    // Said before the owners hear that the store has stopped: the first reason counts.
                    self.halt.stop(Stop::storage(self.name)(error));
                    return;
                }
            }
        }
    }

    /// Makes `records` durable at the end of the last segment, or of a new one.
    async fn write(&self, records: Vec<Vec<u8>>) -> io::Result<Vec<Place>> {
        let (segment, appending) = {
            let mut files = lock(&self.files);
            if files.last.1.bytes() >= self.segment_bytes {
                files.begin_next()?;
            }
            let (segment, journal) = &mut files.last;
            (*segment, journal.append(records))
        };
        let offsets = appending.await?;
        Ok(offsets.into_iter().map(|offset| Place { segment, offset }).collect())
    }
}

#[cfg(test)]
mod tests {
    use transport::{machine::MachineDisk, memory::MemoryDisk};

    use super::*;
    use crate::test_ports::{on, spawner};

    fn open(disk: &Arc<dyn Disk>, bytes: u64) -> io::Result<(Segments, Vec<Vec<u8>>)> {
        let mut records = Vec::new();
        let found = |_, record| {
            records.push(record);
            Ok(())
        };
        let segments = Segments::open(disk, &spawner(), &Halt::default(), "x", bytes, found)?;
        Ok((segments, records))
    }

    #[tokio::test]
    async fn records_come_back_in_order_over_many_segments() {
        let disk = MemoryDisk::new();
        let (segments, _) = open(&on(&disk), 100).unwrap();
        let mut want = Vec::new();
        for i in 0..40u8 {
            let places = segments.append(vec![vec![i; 10], vec![i, 1]]).await.unwrap();
            assert_eq!(segments.read(places[1]).unwrap(), [i, 1]);
            want.extend([vec![i; 10], vec![i, 1]]);
        }
        assert!(
            disk.list("x-").unwrap().len() > 5,
            "segments are finished at their size"
        );
        disk.crash();
        let (_, records) = open(&on(&disk), 100).unwrap();
        assert_eq!(records, want);
    }

    #[tokio::test]
    async fn records_of_many_more_segments_than_are_open_are_read_in_any_order() {
        let disk = MemoryDisk::new();
        let (segments, _) = open(&on(&disk), 10).unwrap();
        let count = 3 * FINISHED_OPEN_MAX as u8;
        let mut places = Vec::new();
        for i in 0..count {
            places.extend(segments.append(vec![vec![i; 20]]).await.unwrap());
        }
        let check = |segments: &Segments| {
            for i in (0..count).chain((0..count).rev()) {
                assert_eq!(segments.read(places[usize::from(i)]).unwrap(), [i; 20]);
                assert!(lock(&segments.files).finished.len() <= FINISHED_OPEN_MAX);
            }
        };
        check(&segments);
        disk.crash();
        let (segments, records) = open(&on(&disk), 10).unwrap();
        assert_eq!(records.len(), usize::from(count));
        assert!(
            lock(&segments.files).finished.is_empty(),
            "opening keeps only the last one open"
        );
        check(&segments);
    }

    #[tokio::test]
    async fn appends_of_many_callers_share_an_fsync_and_each_finds_its_own() {
        let disk = MemoryDisk::new();
        let (segments, _) = open(&on(&disk), SEGMENT_BYTES).unwrap();
        let appends = (0..50u8).map(|i| segments.append(vec![vec![i], vec![i, i]]));
        for (i, places) in (0u8..).zip(futures::future::join_all(appends).await) {
            let places = places.unwrap();
            assert_eq!(segments.read(places[0]).unwrap(), [i]);
            assert_eq!(segments.read(places[1]).unwrap(), [i, i]);
        }
    }

    #[tokio::test]
    async fn caller_that_goes_away_does_not_stop_the_append() {
        let disk = MemoryDisk::new();
        let (segments, _) = open(&on(&disk), SEGMENT_BYTES).unwrap();
        let gone = segments.append(vec![vec![7]]);
        // Polled once, so that it was handed over, then dropped.
        assert!(futures::FutureExt::now_or_never(gone).is_none());
        segments.append(vec![vec![8]]).await.unwrap();
        disk.crash();
        assert_eq!(open(&on(&disk), SEGMENT_BYTES).unwrap().1, [vec![7], vec![8]]);
    }

    #[tokio::test]
    async fn failing_disk_stops_the_validator() {
        let disk = MemoryDisk::new();
        let halt = Halt::default();
        let segments = Segments::open(&on(&disk), &spawner(), &halt, "x", SEGMENT_BYTES, |_, _| Ok(())).unwrap();
        disk.fail();
        assert_eq!(segments.append(vec![vec![1]]).await, Err(Stopped));
        // The reason is there before any caller hears of the stop, or the caller's guess would be shown.
        let reason = halt.reason().expect("the writer has said why");
        assert_eq!(reason.exit_code(), crate::exit::EXIT_DISK);
        assert_eq!(segments.append(vec![vec![2]]).await, Err(Stopped));
    }

    #[tokio::test]
    async fn missing_segment_is_damage() {
        let disk = MemoryDisk::new();
        let (segments, _) = open(&on(&disk), 10).unwrap();
        for i in 0..3 {
            segments.append(vec![vec![i; 20]]).await.unwrap();
        }
        disk.crash();
        disk.remove("x-000001.seg").await.unwrap();
        let Err(error) = open(&on(&disk), 10) else {
            panic!("opened with a hole")
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test]
    async fn torn_tail_is_cut_off_and_damage_in_the_middle_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x-000000.seg");
        let write = async || {
            let disk: Arc<dyn Disk> = Arc::new(MachineDisk::open(dir.path()).unwrap());
            let (segments, _) = open(&disk, SEGMENT_BYTES).unwrap();
            for i in 0..3u8 {
                segments.append(vec![vec![i; 100]]).await.unwrap();
            }
        };
        write().await;
        // The writer's task ends with its handle; then the directory is free.
        let disk = loop {
            match MachineDisk::open(dir.path()) {
                Ok(disk) => break disk,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        drop(disk);
        let whole = std::fs::read(&file).unwrap();
        std::fs::write(&file, &whole[..whole.len() - 50]).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(MachineDisk::open(dir.path()).unwrap());
        let (segments, records) = open(&disk, SEGMENT_BYTES).unwrap();
        assert_eq!(records, [vec![0; 100], vec![1; 100]]);
        let places = segments.append(vec![vec![9; 3]]).await.unwrap();
        assert_eq!(segments.read(places[0]).unwrap(), [9; 3]);
        drop((segments, disk));
        let mut flipped = whole;
        flipped[60] ^= 1;
        let disk = loop {
            match MachineDisk::open(dir.path()) {
                Ok(disk) => break disk,
                Err(_) => tokio::task::yield_now().await,
            }
        };
        std::fs::write(&file, flipped).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(disk);
        let Err(error) = open(&disk, SEGMENT_BYTES) else {
            panic!("opened with a flipped bit")
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
