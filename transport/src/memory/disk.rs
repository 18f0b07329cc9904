//! A disk in memory that loses on a crash what was not durable yet.

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::ports::{BoxFuture, Disk, Journal};

/// Bytes of a record beside its own, as on a real disk: offsets are not dense.
const RECORD_HEADER_BYTES: u64 = 8;

#[derive(Clone, Debug, Default)]
struct JournalFile {
    /// Offset and record, ascending.
    records: Vec<(u64, Vec<u8>)>,
    end: u64,
}

impl JournalFile {
    fn at(&self, offset: u64) -> io::Result<Vec<u8>> {
        let found = self.records.binary_search_by_key(&offset, |(offset, _)| *offset);
        let at =
            found.map_err(|_| io::Error::new(io::ErrorKind::InvalidData, format!("no record at byte {offset}")))?;
        Ok(self.records[at].1.clone())
    }

    fn push(&mut self, records: Vec<Vec<u8>>) -> Vec<u64> {
        records
            .into_iter()
            .map(|record| {
                let offset = self.end;
                self.end += RECORD_HEADER_BYTES + record.len() as u64;
                self.records.push((offset, record));
                offset
            })
            .collect()
    }
}

#[derive(Debug, Default)]
struct Files {
    /// Grows with each crash: handles from before it are dead.
    life: u64,
    small: BTreeMap<String, Vec<u8>>,
    journals: BTreeMap<String, JournalFile>,
    fails_from_now_on: bool,
}

/// A disk in memory. Clones are the same disk.
///
/// What a future reports as done survives [`MemoryDisk::crash`]; a future dropped before that, or not
/// done at the crash, leaves nothing.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Files>>);

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, Files> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process dies: open journals are dead, writes not yet reported as done are gone.
    pub fn crash(&self) {
        let mut files = self.lock();
        files.life += 1;
        files.fails_from_now_on = false;
    }

    /// Lets every write fail from now on until the next [`MemoryDisk::crash`]: a disk that is full or broken.
    pub fn fail(&self) {
        self.lock().fails_from_now_on = true;
    }

    /// Applies `write` when the future is done, unless the process died in between.
    fn write<T: Send + 'static>(
        &self,
        life: u64,
        write: impl FnOnce(&mut Files) -> io::Result<T> + Send + 'static,
    ) -> BoxFuture<io::Result<T>> {
        let disk = self.clone();
        Box::pin(async move {
            // The time between write and sync, in which a crash loses the data.
            tokio::task::yield_now().await;
            let mut files = disk.lock();
            files.check(life)?;
            if files.fails_from_now_on {
                return Err(io::Error::other("the disk fails"));
            }
            write(&mut files)
        })
    }
}

impl Files {
    fn check(&self, life: u64) -> io::Result<()> {
        if self.life == life {
            Ok(())
        } else {
            Err(io::Error::other("the process of this handle has crashed"))
        }
    }
}

impl Disk for MemoryDisk {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.lock().small.get(name).cloned())
    }

    fn replace(&self, name: &str, bytes: Vec<u8>) -> BoxFuture<io::Result<()>> {
        let (life, name) = (self.lock().life, name.to_owned());
        self.write(life, move |files| {
            files.small.insert(name, bytes);
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> BoxFuture<io::Result<()>> {
        let (life, name) = (self.lock().life, name.to_owned());
        self.write(life, move |files| {
            files.small.remove(&name);
            files.journals.remove(&name);
            Ok(())
        })
    }

    fn list(&self, prefix: &str) -> io::Result<Vec<String>> {
        let files = self.lock();
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
        let mut files = self.lock();
        let records = files.journals.entry(name.to_owned()).or_default().records.clone();
        let journal = MemoryJournal {
            disk: self.clone(),
            name: name.to_owned(),
            life: files.life,
        };
        Ok((Box::new(journal), records))
    }

    fn read_journal(&self, name: &str) -> io::Result<Vec<(u64, Vec<u8>)>> {
        let files = self.lock();
        let journal = files.journals.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(journal.records.clone())
    }

    fn read_record(&self, name: &str, offset: u64) -> io::Result<Vec<u8>> {
        let files = self.lock();
        files.journals.get(name).ok_or(io::ErrorKind::NotFound)?.at(offset)
    }
}

struct MemoryJournal {
    disk: MemoryDisk,
    name: String,
    life: u64,
}

impl Journal for MemoryJournal {
    fn append(&mut self, records: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let name = self.name.clone();
        self.disk.write(self.life, move |files| {
            let journal = files.journals.get_mut(&name).ok_or(io::ErrorKind::NotFound)?;
            Ok(journal.push(records))
        })
    }

    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let files = self.disk.lock();
        files.check(self.life)?;
        files
            .journals
            .get(&self.name)
            .ok_or(io::ErrorKind::NotFound)?
            .at(offset)
    }

    fn rewrite(&mut self, records: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let name = self.name.clone();
        self.disk.write(self.life, move |files| {
            let mut journal = JournalFile::default();
            let offsets = journal.push(records);
            files.journals.insert(name, journal);
            Ok(offsets)
        })
    }

    fn bytes(&self) -> u64 {
        let files = self.disk.lock();
        files.journals.get(&self.name).map_or(0, |journal| journal.end)
    }
}
