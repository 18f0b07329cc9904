//! A simulated disk: what was not synced may be gone after a crash.
//!
//! # Rules
//! * A sync takes virtual time and is in the trace. What was synced outlives every crash.
//! * Of what was being written when its process was killed or its sync failed, a drawn part is on the
//!   disk: a prefix of the records of a journal (the torn one behind it is cut off at the next
//!   opening), the old or the new content of a small file.
//! * Trouble of a disk ([`DiskTrouble`]) begins with the next sync. A process that met a failed sync must stop.

mod trouble;

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use transport::ports::{BoxFuture, Disk, Journal};
pub use trouble::{DiskTrouble, Rotten};

use crate::{
    random::Stream,
    trace::{Event, Trace},
};

/// How long a sync takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskTiming {
    /// Shortest sync.
    pub sync_us_min: u64,
    /// Longest sync.
    pub sync_us_max: u64,
}

/// What reading such a place gives: every real store has a checksum on each record.
pub(super) fn rot() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "a record of the simulated disk does not fit its checksum",
    )
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Write {
    Replace(String, Vec<u8>),
    Remove(String),
    Append(String, Vec<Vec<u8>>),
    Rewrite(String, Vec<Vec<u8>>),
}

/// Small files and journals.
type Contents = (BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<(u64, Vec<u8>)>>);

#[derive(Default)]
struct Files {
    small: BTreeMap<String, Vec<u8>>,
    journals: BTreeMap<String, Vec<(u64, Vec<u8>)>>,
    /// A copy of both, as somebody made it once.
    backup: Option<Contents>,
    /// Begun and not yet synced, by number.
    in_flight: BTreeMap<u64, Write>,
    writes: u64,
    trouble: DiskTrouble,
}

impl Files {
    fn begin(&mut self, write: Write) -> u64 {
        self.writes += 1;
        self.in_flight.insert(self.writes, write);
        self.writes
    }

    fn apply(&mut self, write: Write) {
        match write {
            Write::Replace(name, bytes) => drop(self.small.insert(name, bytes)),
            Write::Remove(name) => {
                self.small.remove(&name);
                self.journals.remove(&name);
            }
            Write::Append(name, new) => drop(extend(self.journals.entry(name).or_default(), new)),
            Write::Rewrite(name, new) => {
                let mut records = Vec::new();
                extend(&mut records, new);
                self.journals.insert(name, records);
            }
        }
    }

    /// What of an unsynced write the disk has: all, nothing, or for a journal the first records.
    fn tear(&mut self, write: Write, random: &mut Stream) {
        match write {
            Write::Append(name, mut new) => {
                new.truncate(random.between(0, new.len() as u64) as usize);
                self.apply(Write::Append(name, new));
            }
            whole if random.between(0, 1) == 1 => self.apply(whole),
            _ => {}
        }
    }
}

struct Inner {
    owner: u32,
    timing: DiskTiming,
    trace: Trace,
    random: Mutex<Stream>,
    files: Mutex<Files>,
}

/// The disk of one process, over all its lives.
#[derive(Clone)]
pub struct SimDisk(Arc<Inner>);

impl SimDisk {
    /// An empty disk of the process `owner`.
    #[must_use]
    pub fn new(owner: u32, seed: u64, timing: DiskTiming, trace: Trace) -> Self {
        let random = Mutex::new(Stream::split(seed, 0x6469_736b ^ u64::from(owner) << 32));
        Self(Arc::new(Inner {
            owner,
            timing,
            trace,
            random,
            files: Mutex::default(),
        }))
    }

    fn files(&self) -> MutexGuard<'_, Files> {
        self.0.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn random(&self) -> MutexGuard<'_, Stream> {
        self.0.random.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins or ends trouble.
    pub fn set_trouble(&self, trouble: DiskTrouble) {
        self.files().trouble = trouble;
    }

    /// What is wrong with it now.
    #[must_use]
    pub fn trouble(&self) -> DiskTrouble {
        self.files().trouble
    }

    /// Durable records of a journal from number `from` on, and how many there are; all of them if there are fewer.
    #[must_use]
    pub fn journal_from(&self, name: &str, from: usize) -> (Vec<Vec<u8>>, usize) {
        let files = self.files();
        let records = files.journals.get(name).map_or(&[][..], Vec::as_slice);
        let new = records.get(from..).unwrap_or(records).iter();
        (new.map(|(_, bytes)| bytes.clone()).collect(), records.len())
    }

    /// The process is gone: decides what is left of its unsynced writes.
    pub fn crash(&self) {
        let mut files = self.files();
        for write in std::mem::take(&mut files.in_flight).into_values() {
            files.tear(write, &mut self.random());
        }
    }

    /// Everything on it is gone.
    pub fn wipe(&self) {
        let mut files = self.files();
        files.in_flight.clear();
        (files.small, files.journals) = Contents::default();
    }

    /// Copies what is synced.
    pub fn back_up(&self) {
        let mut files = self.files();
        files.backup = Some((files.small.clone(), files.journals.clone()));
    }

    /// Puts the last copy in the place of everything. False if there is none.
    pub fn restore(&self) -> bool {
        let mut files = self.files();
        let Some((small, journals)) = files.backup.clone() else {
            return false;
        };
        (files.small, files.journals) = (small, journals);
        files.in_flight.clear();
        true
    }

    /// A number of the disk's own stream.
    pub(super) fn draw(&self, low: u64, high: u64) -> u64 {
        self.random().between(low, high)
    }

    /// Waits as long as a sync takes, and records it with what it made durable. A process that is
    /// killed meanwhile never gets here.
    pub(super) async fn sync(&self, what: &[&[u8]]) -> io::Result<()> {
        let timing = self.0.timing;
        let trouble = self.trouble();
        let times = if let DiskTrouble::Slow { times } = trouble {
            times
        } else {
            1
        };
        let us = times * self.draw(timing.sync_us_min, timing.sync_us_max);
        tokio::time::sleep(Duration::from_micros(us)).await;
        match self.trouble() {
            DiskTrouble::Failing => Err(io::Error::other("input/output error of the simulated disk")),
            DiskTrouble::Full => Err(io::Error::from(io::ErrorKind::StorageFull)),
            DiskTrouble::Healthy | DiskTrouble::Slow { .. } | DiskTrouble::Rotten { .. } => {
                self.0.trace.record(Event::Synced, self.0.owner, self.0.owner, what);
                Ok(())
            }
        }
    }

    async fn write(self, write: Write, bytes: Vec<u8>) -> io::Result<()> {
        let number = self.files().begin(write);
        let synced = self.sync(&[&bytes]).await;
        let mut files = self.files();
        if let Some(write) = files.in_flight.remove(&number) {
            match &synced {
                Ok(()) => files.apply(write),
                Err(_) => files.tear(write, &mut self.random()),
            }
        }
        synced
    }
}

impl Disk for SimDisk {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let files = self.files();
        let mut bytes = files.small.get(name).cloned();
        if let Some(bytes) = &mut bytes {
            let len = bytes.len() as u64;
            files.trouble.flip(Rotten::Files, bytes, 0, len);
        }
        Ok(bytes)
    }

    fn replace(&self, name: &str, bytes: Vec<u8>) -> BoxFuture<io::Result<()>> {
        Box::pin(
            self.clone()
                .write(Write::Replace(name.to_owned(), bytes.clone()), bytes),
        )
    }

    fn remove(&self, name: &str) -> BoxFuture<io::Result<()>> {
        Box::pin(self.clone().write(Write::Remove(name.to_owned()), name.into()))
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let files = self.files();
        let mut names: Vec<String> = files
            .small
            .keys()
            .chain(files.journals.keys())
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    fn open_journal(&self, name: &str) -> io::Result<(Box<dyn Journal>, Vec<(u64, Vec<u8>)>)> {
        let trouble = self.trouble();
        let records = self.files().journals.entry(name.to_owned()).or_default().clone();
        if trouble.rotten(records.len()).is_some() {
            return Err(rot());
        }
        Ok((
            Box::new(SimJournal {
                disk: self.clone(),
                name: name.to_owned(),
            }),
            records,
        ))
    }

    fn read_journal(&self, name: &str) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let files = self.files();
        let records = files.journals.get(name).ok_or(io::ErrorKind::NotFound)?;
        if files.trouble.rotten(records.len()).is_some() {
            return Err(rot());
        }
        Ok(records.clone())
    }

    fn read_record(&self, name: &str, offset: u64) -> io::Result<Vec<u8>> {
        let files = self.files();
        let records = files.journals.get(name).map_or(&[][..], Vec::as_slice);
        let at = records
            .binary_search_by_key(&offset, |record| record.0)
            .map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        if files.trouble.rotten(records.len()) == Some(at) {
            return Err(rot());
        }
        Ok(records[at].1.clone())
    }
}

struct SimJournal {
    disk: SimDisk,
    name: String,
}

/// Bytes that a record takes beside its content, as on a real disk.
const RECORD_OVERHEAD: u64 = 8;

fn next_offset(records: &[(u64, Vec<u8>)]) -> u64 {
    records
        .last()
        .map_or(0, |(offset, bytes)| offset + bytes.len() as u64 + RECORD_OVERHEAD)
}

fn extend(records: &mut Vec<(u64, Vec<u8>)>, new: Vec<Vec<u8>>) -> Vec<u64> {
    new.into_iter()
        .map(|bytes| {
            let offset = next_offset(records);
            records.push((offset, bytes));
            offset
        })
        .collect()
}

/// Where records of these lengths stand behind `from`.
fn offsets(from: u64, new: &[Vec<u8>]) -> Vec<u64> {
    let next = |at: &mut u64, bytes: &Vec<u8>| {
        let offset = *at;
        *at += bytes.len() as u64 + RECORD_OVERHEAD;
        Some(offset)
    };
    new.iter().scan(from, next).collect()
}

impl Journal for SimJournal {
    fn append(&mut self, new: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let (disk, name) = (self.disk.clone(), self.name.clone());
        let at = offsets(self.bytes(), &new);
        Box::pin(async move {
            let bytes = new.concat();
            disk.write(Write::Append(name, new), bytes).await?;
            Ok(at)
        })
    }

    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        self.disk.read_record(&self.name, offset)
    }

    fn rewrite(&mut self, new: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let (disk, name) = (self.disk.clone(), self.name.clone());
        let at = offsets(0, &new);
        Box::pin(async move {
            let bytes = new.concat();
            disk.write(Write::Rewrite(name, new), bytes).await?;
            Ok(at)
        })
    }

    fn bytes(&self) -> u64 {
        self.disk
            .files()
            .journals
            .get(&self.name)
            .map_or(0, |records| next_offset(records))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use futures::FutureExt;

    use super::*;

    const TIMING: DiskTiming = DiskTiming {
        sync_us_min: 1_000,
        sync_us_max: 1_000,
    };

    fn in_virtual_time<T>(test: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(test)
    }

    fn rotten(what: Rotten, at: u16) -> DiskTrouble {
        DiskTrouble::Rotten { what, at }
    }

    /// Records left of `written`, all unsynced when the process was killed.
    async fn left_after_a_crash(seed: u64) -> usize {
        let disk = SimDisk::new(0, seed, TIMING, Trace::begin());
        let (mut journal, _) = disk.open_journal("j").unwrap();
        journal.append(vec![vec![0]]).await.unwrap();
        let mut unsynced = journal.append(vec![vec![1], vec![2], vec![3]]);
        assert!((&mut unsynced).now_or_never().is_none());
        drop(unsynced);
        disk.crash();
        let (_, records) = disk.open_journal("j").unwrap();
        assert_eq!(records[0].1, [0], "what was synced stays");
        let bytes: Vec<u8> = records.iter().map(|record| record.1[0]).collect();
        assert_eq!(bytes, (0..records.len() as u8).collect::<Vec<_>>());
        records.len() - 1
    }

    #[test]
    fn crash_leaves_a_drawn_prefix_of_unsynced_records() {
        in_virtual_time(async {
            let mut drawn = BTreeSet::new();
            for seed in 0..64 {
                drawn.insert(left_after_a_crash(seed).await);
            }
            assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        });
    }

    #[test]
    fn small_file_is_old_or_new_after_a_crash_and_never_between() {
        in_virtual_time(async {
            let mut found = BTreeSet::new();
            for seed in 0..32 {
                let disk = SimDisk::new(0, seed, TIMING, Trace::begin());
                disk.replace("f", vec![1]).await.unwrap();
                assert!(disk.replace("f", vec![2, 2]).now_or_never().is_none());
                disk.crash();
                found.insert(disk.read("f").unwrap().unwrap());
            }
            assert_eq!(found.into_iter().collect::<Vec<_>>(), [vec![1], vec![2, 2]]);
        });
    }

    #[test]
    fn rotten_record_is_refused_where_it_is_read_and_nothing_else_is() {
        in_virtual_time(async {
            let disk = SimDisk::new(0, 1, TIMING, Trace::begin());
            let (mut journal, _) = disk.open_journal("j").unwrap();
            let at = journal.append(vec![vec![1], vec![2], vec![3]]).await.unwrap();
            disk.set_trouble(rotten(Rotten::Records, 500));
            assert_eq!(journal.read(at[0]).unwrap(), [1]);
            assert_eq!(journal.read(at[1]).unwrap_err().kind(), io::ErrorKind::InvalidData);
            assert_eq!(disk.open_journal("j").err().unwrap().kind(), io::ErrorKind::InvalidData);
            assert!(disk.open_journal("empty").is_ok());
            disk.set_trouble(DiskTrouble::Healthy);
            assert_eq!(disk.open_journal("j").unwrap().1.len(), 3);
        });
    }

    #[test]
    fn rotten_small_file_has_one_other_bit_until_it_is_mended() {
        in_virtual_time(async {
            let disk = SimDisk::new(0, 1, TIMING, Trace::begin());
            disk.replace("f", vec![7; 10]).await.unwrap();
            disk.set_trouble(rotten(Rotten::Snapshots, 999));
            assert_eq!(disk.read("f").unwrap(), Some(vec![7; 10]));
            disk.set_trouble(rotten(Rotten::Files, 999));
            let read = disk.read("f").unwrap().unwrap();
            assert_eq!(read[..9], [7; 9]);
            assert_eq!((read[9] ^ 7).count_ones(), 1);
            assert_eq!(disk.read("g").unwrap(), None);
            disk.set_trouble(DiskTrouble::Healthy);
            assert_eq!(disk.read("f").unwrap(), Some(vec![7; 10]));
        });
    }

    #[test]
    fn trouble_fails_the_write_and_ends_with_healing() {
        in_virtual_time(async {
            let disk = SimDisk::new(0, 1, TIMING, Trace::begin());
            disk.set_trouble(DiskTrouble::Full);
            let error = disk.replace("f", vec![1]).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::StorageFull);
            disk.set_trouble(DiskTrouble::Failing);
            assert!(disk.replace("f", vec![1]).await.is_err());
            disk.set_trouble(rotten(Rotten::Records, 0));
            assert!(
                disk.replace("f", vec![2]).await.is_ok(),
                "only what was written is rotten"
            );
            disk.set_trouble(DiskTrouble::Slow { times: 3 });
            let began = tokio::time::Instant::now();
            disk.replace("f", vec![3]).await.unwrap();
            assert_eq!(began.elapsed(), Duration::from_millis(3));
            assert_eq!(disk.read("f").unwrap(), Some(vec![3]));
        });
    }
}
