//! The end mark: up to which group the log was acknowledged, in a file of its own.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `MEND` |
//! | 4 | 4 | version of the format, 1 |
//! | 8 | 16 | number of the directory |
//! | 24 | 8 | group: this one and all before it are durable |
//! | 32 | 8 | segment in which it lies |
//! | 40 | 4 | crc32c of bytes 0 to 40 |
//!
//! # Rules
//! * It is written after a group is durable and before the group is acknowledged, so whichever version of it
//!   survives says something true.
//! * That write is not synced: a killed process leaves the newest mark, a power cut one of the last half minute.
//!   It is synced at each start, at each new segment, when nothing was written for a while, and at the end.

use std::{
    fs::{File, TryLockError},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use crc32c::crc32c;

use super::super::{StoreError, group_commit::io_error};

/// Name of the file.
pub(super) const END: &str = "END";
const MAGIC: [u8; 4] = *b"MEND";
const VERSION: u32 = 1;
const SUMMED_BYTES: usize = 40;
const BYTES: usize = 44;
/// The file's length: one sector, which a device writes whole or not at all.
const FILE_BYTES: usize = super::frame::SECTOR_BYTES;

/// What the mark says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub directory: [u8; 16],
    /// The last group that is known to be durable; 0 before the first.
    pub group: u64,
    /// Where it lies; 1 before the first.
    pub segment: u64,
}

impl End {
    fn encode(&self) -> [u8; FILE_BYTES] {
        let mut bytes = [0; FILE_BYTES];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&VERSION.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.directory);
        bytes[24..32].copy_from_slice(&self.group.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.segment.to_le_bytes());
        let sum = crc32c(&bytes[..SUMMED_BYTES]);
        bytes[SUMMED_BYTES..BYTES].copy_from_slice(&sum.to_le_bytes());
        bytes
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let bytes: &[u8; BYTES] = bytes.first_chunk().ok_or("it is too short")?;
        if crc32c(&bytes[..SUMMED_BYTES]).to_le_bytes() != bytes[SUMMED_BYTES..] || bytes[..4] != MAGIC {
            return Err("wrong checksum".into());
        }
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let version = u32::from_le_bytes(bytes[4..8].try_into().expect("four bytes"));
        if version != VERSION {
            return Err(format!("version {version}, only {VERSION} is known"));
        }
        Ok(Self {
            directory: bytes[8..24].try_into().expect("sixteen bytes"),
            group: number(24),
            segment: number(32),
        })
    }
}

/// The file, and the lock on the log.
pub(super) struct EndFile {
    pub path: PathBuf,
    file: File,
    is_synced: bool,
}

impl EndFile {
    /// Opens the mark of the log in `dir`, and keeps others out.
    pub fn open(dir: &Path) -> Result<(Self, End), StoreError> {
        let path = dir.join(END);
        let opened = File::options().read(true).write(true).open(&path);
        let file = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => StoreError::Corrupt(format!("{}: the end mark is gone", path.display())),
            _ => io_error("open", &path, &error),
        })?;
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Io(format!("{}: another process uses this log", path.display())),
            TryLockError::Error(error) => io_error("lock", &path, &error),
        })?;
        let mut bytes = vec![0; BYTES];
        let read = file.read_exact_at(&mut bytes, 0);
        let end = match read {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err("it is too short".into()),
            Err(error) => return Err(io_error("read", &path, &error)),
            Ok(()) => End::parse(&bytes),
        };
        let end = end.map_err(|why| StoreError::Corrupt(format!("{}: {why}", path.display())))?;
        let file = Self {
            path,
            file,
            is_synced: false,
        };
        Ok((file, end))
    }

    /// Makes the mark of an empty log in `dir`, durable but for its name.
    pub fn create(dir: &Path, directory: [u8; 16]) -> Result<(), StoreError> {
        let path = dir.join(END);
        let first = End {
            directory,
            group: 0,
            segment: 1,
        };
        let made = File::create(&path).and_then(|file| {
            file.write_all_at(&first.encode(), 0)?;
            file.sync_all()
        });
        made.map_err(|error| io_error("write", &path, &error))
    }

    /// Replaces the mark. What it says must be durable.
    pub fn write(&mut self, end: &End) -> Result<(), StoreError> {
        self.is_synced = false;
        let written = self.file.write_all_at(&end.encode()[..BYTES], 0);
        written.map_err(|error| io_error("write", &self.path, &error))
    }

    pub fn is_synced(&self) -> bool {
        self.is_synced
    }

    /// Makes the mark durable.
    pub fn sync(&mut self) -> Result<(), StoreError> {
        if !self.is_synced {
            self.file
                .sync_data()
                .map_err(|error| io_error("fsync", &self.path, &error))?;
            self.is_synced = true;
        }
        Ok(())
    }
}
