//! An append-only file of records.
//!
//! ```text
//! header: "MUSTERJL" | format version u32 | salt u32 | crc32c of the 16 bytes before
//! record: length u32 (its top bit: first of its append) | crc32c(salt, length, bytes) u32 | bytes
//! ```
//! All numbers little endian.
//!
//! # Rules
//! * One append is one write and one fdatasync. It is durable when its future is done.
//! * A power cut may leave any part of the last, unfinished append: the file is cut before its first
//!   damaged record, with a log line. What came before it is whole.
//! * What a journal holds when it is opened is durable before anybody is told of it.
//! * Damage with a later append behind it is no power cut, since that append came after a sync: the
//!   journal is refused with `InvalidData`, and nothing is changed.
//! * After a failed write or sync every later call fails: what is on the disk is unknown then, and
//!   syncing again may report success for data that was dropped.
//!
//! # Why the salt
//! Looking for a later append means looking for a valid record at any byte. Without a salt a payload
//! could hold bytes that look like one, and a power cut in the right record would stop the process.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    blocking,
    disk::{Directory, disk_error},
};
use crate::ports::{BoxFuture, Journal};

/// Longest record.
pub const JOURNAL_RECORD_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest append; a longer list of records is written as several, each synced.
pub const JOURNAL_GROUP_BYTES_MAX: usize = 16 * 1024 * 1024;

const MAGIC: &[u8; 8] = b"MUSTERJL";
const FORMAT_VERSION: u32 = 1;
const FILE_HEADER_BYTES: usize = 20;
const RECORD_HEADER_BYTES: usize = 8;
const FIRST_OF_APPEND: u32 = 1 << 31;

/// Records with their offsets.
type Records = Vec<(u64, Vec<u8>)>;

/// A journal on this machine's disk.
#[derive(Debug)]
pub(super) struct MachineJournal {
    directory: Arc<Directory>,
    name: String,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    file: File,
    end: u64,
    salt: u32,
    /// What went wrong; every later call repeats it.
    poison: Option<String>,
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn checksum(salt: u32, length_word: u32, bytes: &[u8]) -> u32 {
    let seeded = crc32c::crc32c_append(salt, &length_word.to_le_bytes());
    crc32c::crc32c_append(seeded, bytes)
}

/// A salt that nobody who writes records can know: see "Why the salt".
#[expect(
    clippy::disallowed_methods,
    reason = "production's port: the simulator's journals have no salt"
)]
fn new_salt() -> u32 {
    rand::random()
}

fn file_header(salt: u32) -> [u8; FILE_HEADER_BYTES] {
    let mut header = [0; FILE_HEADER_BYTES];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&salt.to_le_bytes());
    let crc = crc32c::crc32c(&header[..16]);
    header[16..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// The salt of a file that begins with a good header.
fn read_file_header(name: &str, bytes: &[u8]) -> io::Result<u32> {
    if bytes.len() < FILE_HEADER_BYTES || bytes[..8] != MAGIC[..] {
        return Err(invalid(format!(
            "{name} is not a journal: its header is missing or damaged"
        )));
    }
    if u32_at(bytes, 16) != crc32c::crc32c(&bytes[..16]) {
        return Err(invalid(format!("the header of journal {name} is damaged")));
    }
    let version = u32_at(bytes, 8);
    if version != FORMAT_VERSION {
        return Err(invalid(format!(
            "journal {name} has format version {version}, this build reads {FORMAT_VERSION}; use the build that wrote it"
        )));
    }
    Ok(u32_at(bytes, 12))
}

/// Appends the encoding of one record to `out`.
fn encode_record(out: &mut Vec<u8>, salt: u32, record: &[u8], is_first: bool) {
    assert!(
        record.len() <= JOURNAL_RECORD_BYTES_MAX,
        "a journal record of {} bytes, at most {JOURNAL_RECORD_BYTES_MAX} allowed",
        record.len()
    );
    let length_word = record.len() as u32 | if is_first { FIRST_OF_APPEND } else { 0 };
    out.extend(length_word.to_le_bytes());
    out.extend(checksum(salt, length_word, record).to_le_bytes());
    out.extend(record);
}

/// The record at `at`, or `None` if there is no whole and undamaged one.
fn record_at(bytes: &[u8], at: usize, salt: u32) -> Option<(&[u8], bool)> {
    let body_at = at.checked_add(RECORD_HEADER_BYTES)?;
    let header = bytes.get(at..body_at)?;
    let length_word = u32_at(header, 0);
    let len = (length_word & !FIRST_OF_APPEND) as usize;
    if len > JOURNAL_RECORD_BYTES_MAX {
        return None;
    }
    let record = bytes.get(body_at..body_at + len)?;
    let is_whole = checksum(salt, length_word, record) == u32_at(header, 4);
    is_whole.then_some((record, length_word & FIRST_OF_APPEND != 0))
}

/// Whether an append begins anywhere after `damaged_at`.
fn has_later_append(bytes: &[u8], damaged_at: usize, salt: u32) -> bool {
    if bytes.len() - damaged_at > JOURNAL_GROUP_BYTES_MAX + RECORD_HEADER_BYTES + JOURNAL_RECORD_BYTES_MAX {
        return true;
    }
    // Where the next record is if only the bytes of this one are damaged: the usual case, found at once.
    let length_word = bytes.get(damaged_at..damaged_at + 4).map(|word| u32_at(word, 0));
    let guess = length_word.map(|word| damaged_at + RECORD_HEADER_BYTES + (word & !FIRST_OF_APPEND) as usize);
    let begins_append = |at: usize| matches!(record_at(bytes, at, salt), Some((_, true)));
    guess.is_some_and(begins_append) || (damaged_at + 1..bytes.len()).any(begins_append)
}

/// All whole records from the begin of a file's bytes, and where they end.
fn whole_records(bytes: &[u8], salt: u32) -> (Records, usize) {
    let mut records = Vec::new();
    let mut at = FILE_HEADER_BYTES;
    while let Some((record, _)) = record_at(bytes, at, salt) {
        records.push((at as u64, record.to_vec()));
        at += RECORD_HEADER_BYTES + record.len();
    }
    (records, at)
}

fn damaged(name: &str, at: usize) -> io::Error {
    invalid(format!(
        "journal {name} is damaged at byte {at}, before records that were written later; nothing was changed: restore \
         the file, or rebuild this machine's state from its peers"
    ))
}

/// All records of a file's bytes, and where the good part ends.
fn scan(name: &str, bytes: &[u8], salt: u32) -> io::Result<(Records, u64)> {
    let (records, end) = whole_records(bytes, salt);
    if end < bytes.len() {
        if has_later_append(bytes, end, salt) {
            return Err(damaged(name, end));
        }
        tracing::warn!(
            journal = name,
            at = end,
            lost_bytes = bytes.len() - end,
            "the last append was not finished and is cut off"
        );
    }
    Ok((records, end as u64))
}

/// All records of the finished journal `name` in `path`. What was written later is in other files, so that a torn end is damage.
pub(super) fn read_finished(path: &Path, name: &str) -> io::Result<Records> {
    let bytes = std::fs::read(path)?;
    let (records, end) = whole_records(&bytes, read_file_header(name, &bytes)?);
    if end < bytes.len() {
        return Err(damaged(name, end));
    }
    Ok(records)
}

/// The record at `offset` of the finished journal `name` in `path`.
pub(super) fn read_finished_record(path: &Path, name: &str, offset: u64) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let end = file.metadata()?.len();
    let mut header = vec![0; FILE_HEADER_BYTES.min(usize::try_from(end).unwrap_or(usize::MAX))];
    file.read_exact_at(&mut header, 0)?;
    read_record(&file, read_file_header(name, &header)?, end, offset)
}

/// The record at `offset` of a file whose good part ends at `end`.
fn read_record(file: &File, salt: u32, end: u64, offset: u64) -> io::Result<Vec<u8>> {
    let damaged = || invalid(format!("the journal is damaged at byte {offset}"));
    let mut header = [0; RECORD_HEADER_BYTES];
    if offset < FILE_HEADER_BYTES as u64 || offset + RECORD_HEADER_BYTES as u64 > end {
        return Err(damaged());
    }
    file.read_exact_at(&mut header, offset)?;
    let length_word = u32_at(&header, 0);
    let len = (length_word & !FIRST_OF_APPEND) as usize;
    if len > JOURNAL_RECORD_BYTES_MAX || offset + (RECORD_HEADER_BYTES + len) as u64 > end {
        return Err(damaged());
    }
    let mut record = vec![0; len];
    file.read_exact_at(&mut record, offset + RECORD_HEADER_BYTES as u64)?;
    if checksum(salt, length_word, &record) != u32_at(&header, 4) {
        return Err(damaged());
    }
    Ok(record)
}

impl MachineJournal {
    pub(super) fn open(directory: Arc<Directory>, name: &str) -> io::Result<(Self, Records)> {
        let path = directory.path_of(name);
        directory.note_open(name)?;
        let opened = Self::open_noted(&directory, name, &path);
        if opened.is_err() {
            directory.note_closed(name);
        }
        let (state, records) = opened.map_err(|error| disk_error("open", &path, &error))?;
        let journal = Self {
            directory,
            name: name.to_owned(),
            state: Arc::new(Mutex::new(state)),
        };
        Ok((journal, records))
    }

    fn open_noted(directory: &Directory, name: &str, path: &Path) -> io::Result<(State, Records)> {
        let mut file = match File::options().read(true).write(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let salt = new_salt();
                let file = directory.write_whole(name, |file| file.write_all(&file_header(salt)))?;
                let state = State {
                    file,
                    end: FILE_HEADER_BYTES as u64,
                    salt,
                    poison: None,
                };
                return Ok((state, Vec::new()));
            }
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let salt = read_file_header(name, &bytes)?;
        let (records, end) = scan(name, &bytes, salt)?;
        if end < bytes.len() as u64 {
            file.set_len(end)?;
        }
        // A process that was killed may have left a record in the page cache only. From here on it is relied on.
        file.sync_all()?;
        let state = State {
            file,
            end,
            salt,
            poison: None,
        };
        Ok((state, records))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for MachineJournal {
    fn drop(&mut self) {
        self.directory.note_closed(&self.name);
    }
}

impl State {
    fn check(&self) -> io::Result<()> {
        match &self.poison {
            None => Ok(()),
            Some(what) => Err(io::Error::other(format!("the journal failed before: {what}"))),
        }
    }

    /// Runs `work`; if it fails, every later call fails.
    fn poisoning<T>(&mut self, work: impl FnOnce(&mut Self) -> io::Result<T>) -> io::Result<T> {
        self.check()?;
        let outcome = work(self);
        if let Err(error) = &outcome {
            self.poison = Some(error.to_string());
        }
        outcome
    }

    fn append(&mut self, path: &Path, records: &[Vec<u8>]) -> io::Result<Vec<u64>> {
        let mut offsets = Vec::with_capacity(records.len());
        let mut group = Vec::new();
        for record in records {
            let len = RECORD_HEADER_BYTES + record.len();
            if !group.is_empty() && group.len() + len > JOURNAL_GROUP_BYTES_MAX {
                self.write_group(path, &group)?;
                group.clear();
            }
            offsets.push(self.end + group.len() as u64);
            let is_first = group.is_empty();
            encode_record(&mut group, self.salt, record, is_first);
        }
        if !group.is_empty() {
            self.write_group(path, &group)?;
        }
        Ok(offsets)
    }

    fn write_group(&mut self, path: &Path, group: &[u8]) -> io::Result<()> {
        let fail = |doing: &str, error: io::Error| disk_error(doing, path, &error);
        self.file
            .write_all_at(group, self.end)
            .map_err(|error| fail("write", error))?;
        self.file.sync_data().map_err(|error| fail("fsync", error))?;
        self.end += group.len() as u64;
        Ok(())
    }

    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        read_record(&self.file, self.salt, self.end, offset)
    }

    fn rewrite(&mut self, directory: &Directory, name: &str, records: &[Vec<u8>]) -> io::Result<Vec<u64>> {
        let salt = new_salt();
        let mut offsets = Vec::with_capacity(records.len());
        let mut end = FILE_HEADER_BYTES as u64;
        let file = directory.write_whole(name, |file| {
            let mut out = io::BufWriter::new(file);
            out.write_all(&file_header(salt))?;
            let mut encoded = Vec::new();
            for record in records {
                encoded.clear();
                // Each is an append of its own: the file is whole before it has its name.
                encode_record(&mut encoded, salt, record, true);
                out.write_all(&encoded)?;
                offsets.push(end);
                end += encoded.len() as u64;
            }
            out.flush()
        })?;
        (self.file, self.end, self.salt) = (file, end, salt);
        Ok(offsets)
    }
}

impl Journal for MachineJournal {
    fn append(&mut self, records: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let (state, path) = (self.state.clone(), self.directory.path_of(&self.name));
        Box::pin(async move { blocking(|| lock(&state).poisoning(|state| state.append(&path, &records))) })
    }

    fn read(&self, offset: u64) -> io::Result<Vec<u8>> {
        let state = self.lock();
        state.check()?;
        let path = self.directory.path_of(&self.name);
        state.read(offset).map_err(|error| disk_error("read", &path, &error))
    }

    fn rewrite(&mut self, records: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>> {
        let (state, directory, name) = (self.state.clone(), self.directory.clone(), self.name.clone());
        Box::pin(async move { blocking(|| lock(&state).poisoning(|state| state.rewrite(&directory, &name, &records))) })
    }

    fn bytes(&self) -> u64 {
        self.lock().end
    }
}
