//! An append-only sequence of records in segment files, written by one task.
//! In: encoded records. Out: their places, once durable. Called by: the batch store and the block store.
//!
//! # Rules
//! * Upon a record: append it to the last segment together with all others that wait; durable, then answered.
//! * Upon a segment at its size: begin the next one. A finished segment is never written again.
//! * Upon any error: the validator stops. Nothing is retried after a failed fsync.
//! * Opening reads one segment after another and keeps none of their records. Only the last may have a torn end, since
//!   it was synced before another was begun; it alone stays open.
//!
//! # Invariants
//! * The order of the records on the disk is the order in which they were handed over.
//!
//! # Why
//! One writer, because a caller may go away in the middle (its connection broke) and an append must
//! not. Segments, because a later version drops old ones whole; today everything is kept.

use std::{
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
    disk: Arc<dyn Disk>,
    name: &'static str,
    last: Arc<Mutex<Last>>,
    appends: mpsc::Sender<Append>,
}

/// The segment that is written.
struct Last {
    number: u32,
    journal: Box<dyn Journal>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Guarded sections do not panic halfway: they push or index.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file of a segment of the sequence `name`.
#[must_use]
pub fn file_name(name: &str, segment: u32) -> String {
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
        for (number, listed) in (0..).zip(&files) {
            let file = file_name(name, number);
            if *listed != file {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{file} is missing, found {listed}"),
                ));
            }
        }
        let number = files.len().saturating_sub(1) as u32;
        let mut tell = |segment, records: Vec<(u64, Vec<u8>)>| {
            let mut records = records.into_iter();
            records.try_for_each(|(offset, record)| found(Place { segment, offset }, record))
        };
        for finished in 0..number {
            tell(finished, disk.read_journal(&file_name(name, finished))?)?;
        }
        let (journal, records) = disk.open_journal(&file_name(name, number))?;
        tell(number, records)?;
        let last = Arc::new(Mutex::new(Last { number, journal }));
        let (appends, waiting) = mpsc::channel(APPENDS_WAITING_MAX);
        let writer = Writer {
            disk: disk.clone(),
            name,
            segment_bytes,
            last: last.clone(),
            halt: halt.clone(),
        };
        spawner.spawn(name, Box::pin(writer.run(waiting)));
        Ok(Self {
            disk: disk.clone(),
            name,
            last,
            appends,
        })
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
        let last = lock(&self.last);
        let read = if place.segment == last.number {
            last.journal.read(place.offset)
        } else {
            drop(last);
            self.disk
                .read_record(&file_name(self.name, place.segment), place.offset)
        };
        read.map_err(Stop::storage(self.name))
    }
}

struct Writer {
    disk: Arc<dyn Disk>,
    name: &'static str,
    segment_bytes: u64,
    last: Arc<Mutex<Last>>,
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
            let mut last = lock(&self.last);
            if last.journal.bytes() >= self.segment_bytes {
                let number = last.number + 1;
                let (journal, _) = self.disk.open_journal(&file_name(self.name, number))?;
                *last = Last { number, journal };
            }
            (last.number, last.journal.append(records))
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

    /// The directory, once the writer before has let go of it.
    async fn machine_disk(dir: &std::path::Path) -> Arc<dyn Disk> {
        loop {
            match MachineDisk::open(dir) {
                Ok(disk) => return Arc::new(disk),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Ten segments of a record each, and where these are.
    async fn ten_segments(dir: &std::path::Path) -> Vec<Place> {
        let disk = machine_disk(dir).await;
        let (segments, _) = open(&disk, 30).unwrap();
        let mut places = Vec::new();
        for i in 0..10u8 {
            places.extend(segments.append(vec![vec![i; 20]]).await.unwrap());
        }
        for (i, place) in places.iter().enumerate().rev() {
            assert_eq!(segments.read(*place).unwrap(), [i as u8; 20]);
        }
        places
    }

    #[tokio::test]
    async fn finished_segments_are_read_in_any_order_and_only_the_last_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let places = ten_segments(dir.path()).await;
        let disk = machine_disk(dir.path()).await;
        let (segments, records) = open(&disk, 30).unwrap();
        assert_eq!(records.len(), 10);
        for (i, place) in places.iter().enumerate().rev() {
            assert_eq!(segments.read(*place).unwrap(), [i as u8; 20]);
        }
        let is_open = |number| disk.open_journal(&file_name("x", number)).is_err();
        assert!(is_open(9) && (0..9).all(|number| !is_open(number)));
    }

    #[tokio::test]
    async fn damage_at_the_end_of_a_finished_segment_is_no_torn_append() {
        let dir = tempfile::tempdir().unwrap();
        let places = ten_segments(dir.path()).await;
        let file = dir.path().join(file_name("x", 4));
        let disk = machine_disk(dir.path()).await;
        let (segments, _) = open(&disk, 30).unwrap();
        let mut damaged = std::fs::read(&file).unwrap();
        *damaged.last_mut().unwrap() ^= 1;
        std::fs::write(&file, &damaged).unwrap();
        assert!(segments.read(places[4]).is_err());
        assert_eq!(segments.read(places[3]).unwrap(), [3; 20]);
        drop((segments, disk));
        let disk = machine_disk(dir.path()).await;
        let error = open(&disk, 30).map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains("x-000004.seg"), "{error}");
        assert_eq!(std::fs::read(&file).unwrap(), damaged, "nothing was changed");
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
        drop(machine_disk(dir.path()).await);
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
        let disk = machine_disk(dir.path()).await;
        std::fs::write(&file, flipped).unwrap();
        let Err(error) = open(&disk, SEGMENT_BYTES) else {
            panic!("opened with a flipped bit")
        };
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
