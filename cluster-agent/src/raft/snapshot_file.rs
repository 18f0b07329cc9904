//! A snapshot as a file: frames that are packed and checked one by one, and a digest over all of them.
//!
//! | bytes | what |
//! |---|---|
//! | 8 | `mstrsnp1` |
//! | frames | section `u8`, length `u32`, packed length `u32`, crc32c `u32` over those and the packed bytes, packed bytes |
//! | 32 | SHA-256 of everything before: the name of the snapshot on the wire |
//!
//! Integers are big-endian. Frames are packed with LZ4 (block format), or stored as they are where that
//! is shorter: then both lengths are equal. The first frame (section 0) is the [`SnapshotHead`]; the
//! last (section 255) holds the number of frames before it. Sections between belong to the machine.
//!
//! # Rules
//! * Writing and reading hold one frame in memory, never the whole.
//! * Lengths are checked before anything is allocated, the checksum before anything is unpacked.
//! * Nothing in a file is used before [`verify`] has compared its digest.

use common::ids::Digest;
use sha2::{Digest as _, Sha256};

use super::{
    codec::{self, SNAPSHOT_BYTES_MAX, SnapshotHead},
    store::{
        StoreError,
        snapshot::{SnapshotBytes, SnapshotDraft},
    },
};

const MAGIC: &[u8; 8] = b"mstrsnp1";
const HEADER_BYTES: usize = 13;
const DIGEST_BYTES: u64 = 32;
const HEAD_SECTION: u8 = 0;
const END_SECTION: u8 = 255;
/// Longest frame, unpacked: a piece and the longest record that may end it.
pub(super) const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// How much is read at once for the digest.
const CHUNK_BYTES: usize = 256 * 1024;

/// Where a machine puts its state, piece by piece.
pub trait SnapshotSink {
    /// Adds a piece of at most 1 MiB. `section` is the machine's, from 1 to 254.
    ///
    /// # Errors
    /// [`StoreError`]: the disk failed, or the snapshot would pass its bound.
    fn put(&mut self, section: u8, bytes: &[u8]) -> Result<(), StoreError>;
}

/// Where a machine takes a state from, piece by piece, in the order in which it was put.
pub trait SnapshotSource {
    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] or [`StoreError::Io`].
    fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, StoreError>;
}

fn corrupt<T>(why: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Corrupt(format!("snapshot: {}", why.into())))
}

/// Writes a snapshot into a draft.
pub(super) struct SnapshotWriter<'d> {
    draft: &'d mut dyn SnapshotDraft,
    hash: Sha256,
    frames: u64,
}

impl<'d> SnapshotWriter<'d> {
    /// Begins with `head` in an empty draft.
    pub fn begin(draft: &'d mut dyn SnapshotDraft, head: SnapshotHead) -> Result<Self, StoreError> {
        let mut writer = Self {
            draft,
            hash: Sha256::new(),
            frames: 0,
        };
        writer.write(MAGIC)?;
        writer.frame(HEAD_SECTION, &codec::encode(head))?;
        Ok(writer)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        if self.draft.bytes_len() + bytes.len() as u64 > SNAPSHOT_BYTES_MAX - DIGEST_BYTES {
            return Err(StoreError::Misuse(format!(
                "a snapshot above {SNAPSHOT_BYTES_MAX} bytes: the state is larger than a cluster may have"
            )));
        }
        self.hash.update(bytes);
        self.draft.append(bytes)
    }

    fn frame(&mut self, section: u8, bytes: &[u8]) -> Result<(), StoreError> {
        if bytes.len() > FRAME_BYTES_MAX {
            return Err(StoreError::Misuse(format!(
                "a piece of {} bytes, at most {FRAME_BYTES_MAX} allowed",
                bytes.len()
            )));
        }
        let packed = lz4_flex::block::compress(bytes);
        let packed = if packed.len() < bytes.len() { &packed } else { bytes };
        let mut header = [0; HEADER_BYTES];
        header[0] = section;
        header[1..5].copy_from_slice(&(bytes.len() as u32).to_be_bytes());
        header[5..9].copy_from_slice(&(packed.len() as u32).to_be_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..9]), packed);
        header[9..].copy_from_slice(&sum.to_be_bytes());
        self.write(&header)?;
        self.write(packed)?;
        self.frames += 1;
        Ok(())
    }

    /// Ends the file; returns its digest. It is not durable yet.
    pub fn finish(mut self) -> Result<Digest, StoreError> {
        let frames = self.frames;
        self.frame(END_SECTION, &frames.to_be_bytes())?;
        let digest = Digest(self.hash.finalize().into());
        self.draft.append(&digest.0)?;
        Ok(digest)
    }
}

impl SnapshotSink for SnapshotWriter<'_> {
    fn put(&mut self, section: u8, bytes: &[u8]) -> Result<(), StoreError> {
        if section == HEAD_SECTION || section == END_SECTION {
            return Err(StoreError::Misuse(format!("section {section} is not a machine's")));
        }
        self.frame(section, bytes)
    }
}

/// Compares the digest at the end of a snapshot with its contents, and returns it.
///
/// # Errors
/// [`StoreError::Corrupt`], or [`StoreError::Io`] if it cannot be read.
pub(super) fn verify(bytes: &dyn SnapshotBytes) -> Result<Digest, StoreError> {
    let Some(contents) = bytes.bytes_len().checked_sub(DIGEST_BYTES) else {
        return corrupt(format!("{} bytes", bytes.bytes_len()));
    };
    if bytes.bytes_len() > SNAPSHOT_BYTES_MAX {
        return corrupt(format!(
            "{} bytes, at most {SNAPSHOT_BYTES_MAX} allowed",
            bytes.bytes_len()
        ));
    }
    let (mut hash, mut offset, mut chunk) = (Sha256::new(), 0, vec![0; CHUNK_BYTES]);
    while offset < contents {
        let len = (contents - offset).min(CHUNK_BYTES as u64) as usize;
        bytes.read_at(offset, &mut chunk[..len])?;
        hash.update(&chunk[..len]);
        offset += len as u64;
    }
    let mut digest = [0; DIGEST_BYTES as usize];
    bytes.read_at(contents, &mut digest)?;
    if hash.finalize()[..] == digest {
        Ok(Digest(digest))
    } else {
        corrupt("it does not have its digest")
    }
}

/// Reads the frames of a snapshot that was [verified](verify).
pub(super) struct SnapshotReader<'b> {
    bytes: &'b dyn SnapshotBytes,
    offset: u64,
    end: u64,
    frames: u64,
    is_ended: bool,
}

impl<'b> SnapshotReader<'b> {
    /// Reads the head.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(bytes: &'b dyn SnapshotBytes) -> Result<(Self, SnapshotHead), StoreError> {
        let mut reader = Self {
            bytes,
            offset: 0,
            end: bytes.bytes_len().saturating_sub(DIGEST_BYTES),
            frames: 0,
            is_ended: false,
        };
        let mut magic = [0; MAGIC.len()];
        reader.read(&mut magic)?;
        if magic != *MAGIC {
            return corrupt("not a snapshot of a format that this build reads");
        }
        let (section, head) = reader.frame()?;
        if section != HEAD_SECTION {
            return corrupt("it does not begin with its head");
        }
        let head = codec::decode(&head).or_else(|error| corrupt(format!("head: {error}")))?;
        Ok((reader, head))
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<(), StoreError> {
        if self.offset + buffer.len() as u64 > self.end {
            return corrupt("cut short");
        }
        self.bytes.read_at(self.offset, buffer)?;
        self.offset += buffer.len() as u64;
        Ok(())
    }

    fn frame(&mut self) -> Result<(u8, Vec<u8>), StoreError> {
        let mut header = [0; HEADER_BYTES];
        self.read(&mut header)?;
        let number = |at: usize| u32::from_be_bytes(header[at..at + 4].try_into().expect("four bytes"));
        let (len, packed_len) = (number(1) as usize, number(5) as usize);
        if len > FRAME_BYTES_MAX || packed_len > len {
            return corrupt(format!("a frame of {packed_len} bytes for {len}"));
        }
        let mut packed = vec![0; packed_len];
        self.read(&mut packed)?;
        if crc32c::crc32c_append(crc32c::crc32c(&header[..9]), &packed) != number(9) {
            return corrupt(format!("frame {} has another checksum", self.frames));
        }
        self.frames += 1;
        let bytes = if packed_len == len {
            packed
        } else {
            let unpacked = lz4_flex::block::decompress(&packed, len);
            unpacked.or_else(|error| corrupt(format!("a frame does not unpack: {error}")))?
        };
        if bytes.len() == len {
            Ok((header[0], bytes))
        } else {
            corrupt("a frame has another length than it says")
        }
    }
}

impl SnapshotSource for SnapshotReader<'_> {
    fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, StoreError> {
        if self.is_ended {
            return Ok(None);
        }
        let frames = self.frames;
        match self.frame()? {
            (HEAD_SECTION, _) => corrupt("a second head"),
            (END_SECTION, bytes) => {
                if bytes != frames.to_be_bytes() || self.offset != self.end {
                    return corrupt("frames are missing, or follow its end");
                }
                self.is_ended = true;
                Ok(None)
            }
            (section, bytes) => Ok(Some((section, bytes))),
        }
    }
}

#[cfg(test)]
#[path = "snapshot_file_tests.rs"]
mod tests;
