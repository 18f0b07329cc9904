//! How the log lies in sled: keys, checksums, and entries cut into pieces.
//!
//! | key | value |
//! |---|---|
//! | `00 'v'` | vote, `00 'c'` committed hint: crc32c, bytes |
//! | `00 'p'` | purge marker: crc32c, index, bytes |
//! | `10 index piece` | piece 0: crc32c of the whole, length, bytes; further pieces: bytes |
//!
//! Integers are big-endian in keys, so that sled's order is the log's. sled keeps checksums of its
//! own; ours go from the writer to the reader.

use std::path::Path;

use bytes::Bytes;
use common::ids::LogIndex;
use sled::{Batch, Tree};
use transport::machine::disk_error;

use super::{LogRecord, RECORD_BYTES_MAX, StoreError};

pub(super) const VOTE_KEY: &[u8] = &[0x00, b'v'];
pub(super) const COMMITTED_KEY: &[u8] = &[0x00, b'c'];
pub(super) const PURGED_KEY: &[u8] = &[0x00, b'p'];

const ENTRY_PREFIX: u8 = 0x10;
/// sled writes a leaf of more than a quarter segment (128 KiB) into a file of its own, which nobody
/// flushes: after a loss of power it is gone, and with it what was acknowledged. A leaf holds at most
/// 20 values (16 before it splits, and up to 4 of a sibling it takes in), so that they must be small.
pub(super) const VALUE_BYTES_MAX: usize = 5 * 1024;
/// sled's segment. What sled writes between two of our flushes must fit in one: with random parts of more than that lost, sled
/// looks for the torn end of its log in the wrong segment, or has overwritten segments whose successor is lost, and then
/// wipes or loses what was durable long before.
pub(super) const SEGMENT_BYTES: usize = 4 * 1024 * 1024;
/// Keys put or removed between two flushes.
pub(super) const KEYS_PER_FLUSH_MAX: usize = 64;
/// The segments of logs that older versions have made.
const SEGMENT_BYTES_OLD: usize = 512 * 1024;
const VALUES_PER_LEAF_MAX: usize = 20;
/// A key and what sled adds to it in a leaf, generously.
const KEY_BYTES: usize = 64;
const LEAF_BYTES_MAX: usize = VALUES_PER_LEAF_MAX * (VALUE_BYTES_MAX + KEY_BYTES);
const PIECE_HEADER_BYTES: usize = 8;
/// Removals of one sled batch: it holds a copy of each leaf it touched until it ends.
pub(super) const REMOVALS_PER_BATCH_MAX: usize = 64;
/// Removals of one step of a purge: it shares its flush with as many records that are put.
pub(super) const REMOVALS_PER_STEP: usize = 32;

const _: () = assert!(LEAF_BYTES_MAX < SEGMENT_BYTES_OLD / 4);
// A key is written once, and with its leaf at each tenth change, when the leaf is split or joined, and when sled moves a page out of
// a segment to be freed. Measured with values of the greatest length: a quarter of a leaf per key.
const _: () = assert!(KEYS_PER_FLUSH_MAX * (LEAF_BYTES_MAX / 2 + VALUE_BYTES_MAX + KEY_BYTES) < SEGMENT_BYTES);
const _: () = assert!(REMOVALS_PER_BATCH_MAX <= KEYS_PER_FLUSH_MAX && REMOVALS_PER_STEP < KEYS_PER_FLUSH_MAX);
const _: () = assert!(RECORD_BYTES_MAX + PIECE_HEADER_BYTES <= REMOVALS_PER_BATCH_MAX * VALUE_BYTES_MAX);

fn entry_key(index: LogIndex, piece: u16) -> [u8; 11] {
    let mut key = [0; 11];
    key[0] = ENTRY_PREFIX;
    key[1..9].copy_from_slice(&index.0.to_be_bytes());
    key[9..].copy_from_slice(&piece.to_be_bytes());
    key
}

fn parse_key(key: &[u8]) -> Option<(LogIndex, u16)> {
    let (prefix, rest) = key.split_first()?;
    let (index, piece) = rest.split_first_chunk::<8>()?;
    let piece: &[u8; 2] = piece.try_into().ok()?;
    (*prefix == ENTRY_PREFIX).then(|| (LogIndex(u64::from_be_bytes(*index)), u16::from_be_bytes(*piece)))
}

fn crc(index: LogIndex, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&index.0.to_be_bytes()), bytes)
}

/// Puts a checksum in front of a meta value.
pub(super) fn seal(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = crc32c::crc32c(bytes).to_be_bytes().to_vec();
    sealed.extend_from_slice(bytes);
    sealed
}

/// Takes the checksum off again.
pub(super) fn unseal(what: &str, sealed: &[u8]) -> Result<Bytes, StoreError> {
    let parts = sealed.split_first_chunk::<4>();
    let (sum, bytes) = parts.ok_or_else(|| StoreError::Corrupt(format!("{what}: {} bytes", sealed.len())))?;
    if crc32c::crc32c(bytes).to_be_bytes() != *sum {
        return Err(StoreError::Corrupt(format!("{what}: wrong checksum")));
    }
    Ok(Bytes::copy_from_slice(bytes))
}

/// Length of a record's bytes.
pub(super) fn check_length(record: &LogRecord) -> Result<u32, StoreError> {
    let bytes_len = u32::try_from(record.bytes.len()).ok();
    bytes_len
        .filter(|len| *len as usize <= RECORD_BYTES_MAX)
        .ok_or_else(|| {
            StoreError::Misuse(format!(
                "record of {} bytes, at most {RECORD_BYTES_MAX} allowed",
                record.bytes.len()
            ))
        })
}

/// Keys of a record.
pub(super) fn pieces(record: &LogRecord) -> usize {
    (record.bytes.len() + PIECE_HEADER_BYTES)
        .div_ceil(VALUE_BYTES_MAX)
        .max(1)
}

/// Puts a record into `tree`. One of several pieces is put as a batch, so that no crash leaves a part of it.
///
/// A batch costs sled a write of its own beside the values', and a wake-up of all its threads for it; a record in one piece
/// needs none, since sled recovers a prefix of what was put.
pub(super) fn put(tree: &Tree, record: &LogRecord) -> Result<(), StoreError> {
    let bytes = &record.bytes;
    let bytes_len = check_length(record)?;
    let (head, tail) = bytes.split_at(bytes.len().min(VALUE_BYTES_MAX - PIECE_HEADER_BYTES));
    let mut first = Vec::with_capacity(PIECE_HEADER_BYTES + head.len());
    first.extend_from_slice(&crc(record.index, bytes).to_be_bytes());
    first.extend_from_slice(&bytes_len.to_be_bytes());
    first.extend_from_slice(head);
    if tail.is_empty() {
        return tree
            .insert(entry_key(record.index, 0), first)
            .map(drop)
            .map_err(sled_error);
    }
    let mut batch = Batch::default();
    batch.insert(&entry_key(record.index, 0), first);
    for (piece, bytes) in (1u16..).zip(tail.chunks(VALUE_BYTES_MAX)) {
        batch.insert(&entry_key(record.index, piece), bytes);
    }
    tree.apply_batch(batch).map_err(sled_error)
}

/// Puts records together from pieces that come in order.
#[derive(Default)]
struct Assembler {
    index: LogIndex,
    sum: u32,
    bytes_len: usize,
    pieces: u16,
    bytes: Vec<u8>,
}

impl Assembler {
    fn add(&mut self, index: LogIndex, piece: u16, value: &[u8]) -> Result<Option<LogRecord>, StoreError> {
        let corrupt = |why: &str| StoreError::Corrupt(format!("entry {index}, piece {piece}: {why}"));
        if piece == 0 {
            if self.pieces != 0 {
                return Err(corrupt(&format!("entry {} is incomplete", self.index)));
            }
            let (sum, rest) = value.split_first_chunk::<4>().ok_or_else(|| corrupt("no checksum"))?;
            let (len, rest) = rest.split_first_chunk::<4>().ok_or_else(|| corrupt("no length"))?;
            self.index = index;
            self.sum = u32::from_be_bytes(*sum);
            self.bytes_len = u32::from_be_bytes(*len) as usize;
            self.bytes = rest.to_vec();
        } else if self.pieces != piece || self.index != index {
            return Err(corrupt("out of order"));
        } else {
            self.bytes.extend_from_slice(value);
        }
        self.pieces = piece + 1;
        if self.bytes.len() < self.bytes_len {
            return Ok(None);
        }
        let bytes = std::mem::take(&mut self.bytes);
        self.pieces = 0;
        if bytes.len() != self.bytes_len || crc(index, &bytes) != self.sum {
            return Err(corrupt("wrong length or checksum"));
        }
        Ok(Some(LogRecord {
            index,
            bytes: bytes.into(),
        }))
    }

    fn finish(&self) -> Result<(), StoreError> {
        if self.pieces == 0 {
            Ok(())
        } else {
            Err(StoreError::Corrupt(format!("entry {} is incomplete", self.index)))
        }
    }
}

/// Records from `from` to before `to`, without a gap, at least one and then up to `bytes_max`.
pub(super) fn read(tree: &Tree, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
    let (mut found, mut bytes_used, mut next) = (Vec::new(), 0usize, from);
    if from >= to {
        return Ok(found);
    }
    let mut assembler = Assembler::default();
    for item in tree.range(entry_key(from, 0)..entry_key(to, 0)) {
        let (key, value) = item.map_err(sled_error)?;
        let (index, piece) = parse_key(&key).ok_or_else(|| StoreError::Corrupt("a foreign key".into()))?;
        if index != next || (piece == 0 && bytes_used >= bytes_max && !found.is_empty()) {
            break;
        }
        let Some(record) = assembler.add(index, piece, &value)? else {
            continue;
        };
        bytes_used = bytes_used.saturating_add(record.bytes.len());
        if bytes_used > bytes_max && !found.is_empty() {
            return Ok(found);
        }
        next = index.next();
        found.push(record);
    }
    assembler.finish()?;
    Ok(found)
}

/// Checks every record above `purged` and returns the first and last.
pub(super) fn verify(tree: &Tree, purged: Option<LogIndex>) -> Result<Option<(LogIndex, LogIndex)>, StoreError> {
    let from = purged.map_or(LogIndex(0), LogIndex::next);
    let mut assembler = Assembler::default();
    let mut range: Option<(LogIndex, LogIndex)> = None;
    for item in tree.range(entry_key(from, 0)..) {
        let (key, value) = item.map_err(sled_error)?;
        let (index, piece) = parse_key(&key).ok_or_else(|| StoreError::Corrupt("a foreign key".into()))?;
        let Some(record) = assembler.add(index, piece, &value)? else {
            continue;
        };
        range = match range {
            None if purged.is_some() && record.index != from => {
                return Err(StoreError::Corrupt(format!(
                    "entries {from} to {} are missing",
                    record.index
                )));
            }
            None => Some((record.index, record.index)),
            Some((_, last)) if last.next() != record.index => {
                return Err(StoreError::Corrupt(format!(
                    "entries between {last} and {} are missing",
                    record.index
                )));
            }
            Some((first, _)) => Some((first, record.index)),
        };
    }
    assembler.finish()?;
    Ok(range)
}

/// Up to [`REMOVALS_PER_STEP`] keys at or below `upto`, oldest first.
pub(super) fn oldest_keys(tree: &Tree, upto: LogIndex) -> Result<Vec<sled::IVec>, StoreError> {
    let end = entry_key(upto, u16::MAX);
    let keys = tree
        .range(entry_key(LogIndex(0), 0)..=end)
        .keys()
        .take(REMOVALS_PER_STEP);
    keys.collect::<Result<_, _>>().map_err(sled_error)
}

/// Up to [`REMOVALS_PER_BATCH_MAX`] keys at or above `from`, newest first, whole records only, so
/// that a crash between two batches leaves no torn record.
pub(super) fn newest_keys(tree: &Tree, from: LogIndex) -> Result<Vec<sled::IVec>, StoreError> {
    let (mut keys, mut whole) = (Vec::new(), 0);
    for key in tree
        .range(entry_key(from, 0)..)
        .keys()
        .rev()
        .take(REMOVALS_PER_BATCH_MAX)
    {
        let key = key.map_err(sled_error)?;
        let is_first_piece = parse_key(&key).is_some_and(|(_, piece)| piece == 0);
        keys.push(key);
        if is_first_piece {
            whole = keys.len();
        }
    }
    keys.truncate(whole);
    Ok(keys)
}

/// The purge marker's value: index and marker.
pub(super) fn purged_value(upto: LogIndex, marker: &[u8]) -> Vec<u8> {
    let mut value = upto.0.to_be_bytes().to_vec();
    value.extend_from_slice(marker);
    seal(&value)
}

pub(super) fn parse_purged(sealed: &[u8]) -> Result<(LogIndex, Bytes), StoreError> {
    let value = unseal("purge marker", sealed)?;
    let parts = value.split_first_chunk::<8>();
    let (index, marker) = parts.ok_or_else(|| StoreError::Corrupt("purge marker without an index".into()))?;
    Ok((LogIndex(u64::from_be_bytes(*index)), Bytes::copy_from_slice(marker)))
}

pub(super) fn sled_error(error: sled::Error) -> StoreError {
    match error {
        sled::Error::Corruption { .. } => StoreError::Corrupt(error.to_string()),
        sled::Error::Io(error) => StoreError::Io(disk_error("write", Path::new("the log"), &error).to_string()),
        other => StoreError::Io(other.to_string()),
    }
}
