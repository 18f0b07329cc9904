//! A simulated disk: what was not synced is gone after a crash.
//!
//! A sync takes virtual time and is in the trace. The files outlive the process; what a killed process
//! was still writing does not.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use transport::ports::{BoxFuture, Disk, Journal};

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

#[derive(Default)]
struct Files {
    small: BTreeMap<String, Vec<u8>>,
    journals: BTreeMap<String, Vec<(u64, Vec<u8>)>>,
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

    /// Waits as long as a sync takes, and records it with what it made durable. A process that is
    /// killed meanwhile never gets here: its bytes are lost.
    pub(super) async fn sync(&self, what: &[u8]) {
        let timing = self.0.timing;
        let us = {
            let mut random = self.0.random.lock().unwrap_or_else(PoisonError::into_inner);
            random.between(timing.sync_us_min, timing.sync_us_max)
        };
        tokio::time::sleep(Duration::from_micros(us)).await;
        self.0.trace.record(Event::Synced, self.0.owner, self.0.owner, what);
    }
}

impl Disk for SimDisk {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.files().small.get(name).cloned())
    }

    fn replace(&self, name: &str, bytes: Vec<u8>) -> BoxFuture<io::Result<()>> {
        let (disk, name) = (self.clone(), name.to_owned());
        Box::pin(async move {
            disk.sync(&bytes).await;
            disk.files().small.insert(name, bytes);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> BoxFuture<io::Result<()>> {
        let (disk, name) = (self.clone(), name.to_owned());
        Box::pin(async move {
            disk.sync(name.as_bytes()).await;
            let mut files = disk.files();
            files.small.remove(&name);
            files.journals.remove(&name);
            Ok(())
        })
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
        let records = self.files().journals.entry(name.to_owned()).or_default().clone();
        Ok((
            Box::new(SimJournal {
                disk: self.clone(),
                name: name.to_owned(),
            }),
            records,
        ))
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

impl SimJournal {
    fn extend(records: &mut Vec<(u64, Vec<u8>)>, new: Vec<Vec<u8>>) -> Vec<u64> {
        new.into_iter()
            .map(|bytes| {
                let offset = next_offset(records);
                records.push((offset, bytes));
                offset
            })
            .collect()
    }
}

impl Journal for SimJournal {
    fn append(&mut self, new: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let (disk, name) = (self.disk.clone(), self.name.clone());
        Box::pin(async move {
            disk.sync(&new.concat()).await;
            Ok(Self::extend(disk.files().journals.entry(name).or_default(), new))
        })
    }

    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let files = self.disk.files();
        let records = files.journals.get(&self.name).map_or(&[][..], Vec::as_slice);
        let at = records.binary_search_by_key(&offset, |record| record.0);
        at.map(|at| records[at].1.clone())
            .map_err(|_| io::Error::from(io::ErrorKind::NotFound))
    }

    fn rewrite(&mut self, new: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let (disk, name) = (self.disk.clone(), self.name.clone());
        Box::pin(async move {
            disk.sync(&new.concat()).await;
            let mut records = Vec::new();
            let offsets = Self::extend(&mut records, new);
            disk.files().journals.insert(name, records);
            Ok(offsets)
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
