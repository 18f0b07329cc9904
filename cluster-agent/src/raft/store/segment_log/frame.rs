//! One group of operations as it lies in a segment: encoding, checking, and telling torn from damaged.
//!
//! A frame begins on a page of 4,096 bytes and ends on a sector of 512. Integers are little-endian.
//!
//! | at | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `MLOG` |
//! | 4 | 2 | version of the format, 2 |
//! | 6 | 2 | 0 |
//! | 8 | 16 | number of the directory, drawn when it was made |
//! | 24 | 8 | number of the segment |
//! | 32 | 4 | place of this frame in the file |
//! | 36 | 4 | length of the segment's file |
//! | 40 | 8 | number of the group: one more than that of the frame before |
//! | 48 | 4 | length of the body |
//! | 52 | 4 | crc32c of the body |
//! | 56 | 4 | crc32c of bytes 0 to 56 and of the map |
//! | 60 | n | map: bit i says that sector i of this frame has at least 16 bytes that are not zero |
//! | 60 + n | | body: records, each of kind (1), length (4), index (8), payload |
//! | | at least 16 | `a5` up to the end of the last sector |
//!
//! # Rules
//! * A file is zeros before its first frame, and each frame is written over zeros. So a sector of a frame is
//!   either as it was written or zeros, if the power goes: devices write a sector whole or not at all.
//! * No two frames share a page: a device that loses the page which is being written loses nothing of the group before.
//! * A frame is *torn* if a sector is zeros that was not, or if its end is zeros (a write that failed in the
//!   middle). Anything else that does not add up is *damage*: bytes changed after they were written.
//! * A stale frame never passes: it says which directory, segment and place it was written for.

use crc32c::{crc32c, crc32c_append};

/// Version of the format.
pub(super) const FORMAT_VERSION: u16 = 2;
/// What a device writes whole or not at all.
pub(super) const SECTOR_BYTES: usize = 512;
/// What a kernel writes at once, and a device of today rewrites at once.
pub(super) const PAGE_BYTES: usize = 4096;
/// Records of one frame, unless a single one is longer.
pub(super) const BODY_BYTES_MAX: usize = 512 * 1024;
/// Length of a frame with the longest record and everything that may precede it at the begin of a segment.
pub(super) const FRAME_BYTES_MAX: usize = 1024 * 1024;

const MAGIC: [u8; 4] = *b"MLOG";
const FIXED_BYTES: usize = 60;
const SUMMED_BYTES: usize = 56;
const RECORD_HEADER_BYTES: usize = 13;
const PAD: u8 = 0xa5;
const PAD_BYTES_MIN: usize = 16;
/// Bytes that are not zero, from which on a sector cannot become zeros by a few flipped bits.
const STRONG_BYTES: usize = 16;

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The log entry at `index`.
    Entry = 1,
    /// The vote.
    Vote = 2,
    /// The hint of what is committed.
    Committed = 3,
    /// Everything up to `index` is purged; the payload is the marker.
    Purge = 4,
    /// Everything from `index` on is dropped.
    Truncate = 5,
    /// Begin of a segment: the log holds records from `index`; the payload says how many (8 bytes).
    Range = 6,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        let all = [
            Self::Entry,
            Self::Vote,
            Self::Committed,
            Self::Purge,
            Self::Truncate,
            Self::Range,
        ];
        all.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A record, borrowed from an operation or from a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub kind: Kind,
    pub index: u64,
    pub payload: &'a [u8],
}

impl Record<'_> {
    /// Bytes in a frame.
    pub fn encoded_len(&self) -> usize {
        RECORD_HEADER_BYTES + self.payload.len()
    }
}

/// Where a frame stands, and which one it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    pub directory: [u8; 16],
    pub segment: u64,
    pub offset: u32,
    pub segment_bytes: u32,
    pub group: u64,
}

/// Lengths that follow from the length of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    sectors: usize,
    /// Where the body begins.
    body_at: usize,
}

impl Shape {
    fn of(body_len: usize) -> Self {
        let sectors_with = |map_len: usize| (FIXED_BYTES + map_len + body_len + PAD_BYTES_MIN).div_ceil(SECTOR_BYTES);
        let (mut map_len, mut sectors) = (0, sectors_with(0));
        while map_len != sectors.div_ceil(8) {
            map_len = sectors.div_ceil(8);
            sectors = sectors_with(map_len);
        }
        Self {
            sectors,
            body_at: FIXED_BYTES + map_len,
        }
    }

    fn frame_len(self) -> usize {
        self.sectors * SECTOR_BYTES
    }
}

/// Length of a frame with a body of `body_len` bytes.
pub(super) fn frame_len(body_len: usize) -> usize {
    Shape::of(body_len).frame_len()
}

/// Where a frame may begin behind one that ends at `end`, in a file of `file_len` bytes.
pub(super) fn place_behind(end: usize, file_len: usize) -> usize {
    end.next_multiple_of(PAGE_BYTES).min(file_len)
}

fn is_strong(sector: &[u8]) -> bool {
    sector.iter().filter(|byte| **byte != 0).nth(STRONG_BYTES - 1).is_some()
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Writes a frame with `records` into `buffer`, and where each payload begins in it into `payloads`.
pub(super) fn encode(buffer: &mut Vec<u8>, payloads: &mut Vec<usize>, stamp: &Stamp, records: &[Record<'_>]) {
    let body_len = records.iter().map(Record::encoded_len).sum();
    let shape = Shape::of(body_len);
    assert!(
        shape.frame_len() <= FRAME_BYTES_MAX,
        "a frame of {} bytes",
        shape.frame_len()
    );
    buffer.clear();
    payloads.clear();
    buffer.resize(shape.body_at, 0);
    for record in records {
        let len = u32::try_from(record.payload.len()).expect("a frame is shorter than that");
        buffer.push(record.kind as u8);
        buffer.extend_from_slice(&len.to_le_bytes());
        buffer.extend_from_slice(&record.index.to_le_bytes());
        payloads.push(buffer.len());
        buffer.extend_from_slice(record.payload);
    }
    let body_sum = crc32c(&buffer[shape.body_at..]);
    buffer.resize(shape.frame_len(), PAD);
    buffer[..4].copy_from_slice(&MAGIC);
    buffer[4..6].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    buffer[8..24].copy_from_slice(&stamp.directory);
    buffer[24..32].copy_from_slice(&stamp.segment.to_le_bytes());
    buffer[32..36].copy_from_slice(&stamp.offset.to_le_bytes());
    buffer[36..40].copy_from_slice(&stamp.segment_bytes.to_le_bytes());
    buffer[40..48].copy_from_slice(&stamp.group.to_le_bytes());
    buffer[48..52].copy_from_slice(&u32::try_from(body_len).expect("a frame is shorter").to_le_bytes());
    buffer[52..56].copy_from_slice(&body_sum.to_le_bytes());
    // The first sector is strong by its header alone, whatever the map says of it.
    for sector in 0..shape.sectors {
        let is_strong = is_strong(&buffer[sector * SECTOR_BYTES..(sector + 1) * SECTOR_BYTES]);
        buffer[FIXED_BYTES + sector / 8] |= u8::from(is_strong) << (sector % 8);
    }
    let sum = header_sum(buffer, shape);
    buffer[SUMMED_BYTES..FIXED_BYTES].copy_from_slice(&sum.to_le_bytes());
}

fn header_sum(frame: &[u8], shape: Shape) -> u32 {
    crc32c_append(crc32c(&frame[..SUMMED_BYTES]), &frame[FIXED_BYTES..shape.body_at])
}

/// What stands at the begin of a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub version: u16,
    pub stamp: Stamp,
    body_len: usize,
    body_sum: u32,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("a slice of that length")
}

impl Header {
    /// The header at the begin of `bytes`, if it is one and whole. `bytes`: at least a sector.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < SECTOR_BYTES || bytes[..4] != MAGIC {
            return None;
        }
        let body_len = u32::from_le_bytes(number(bytes, 48)) as usize;
        // Before anything is added to it.
        let shape = (body_len <= FRAME_BYTES_MAX).then(|| Shape::of(body_len))?;
        let is_whole = shape.frame_len() <= FRAME_BYTES_MAX
            && header_sum(bytes, shape) == u32::from_le_bytes(number(bytes, SUMMED_BYTES));
        is_whole.then(|| Self {
            version: u16::from_le_bytes(number(bytes, 4)),
            stamp: Stamp {
                directory: number(bytes, 8),
                segment: u64::from_le_bytes(number(bytes, 24)),
                offset: u32::from_le_bytes(number(bytes, 32)),
                segment_bytes: u32::from_le_bytes(number(bytes, 36)),
                group: u64::from_le_bytes(number(bytes, 40)),
            },
            body_len,
            body_sum: u32::from_le_bytes(number(bytes, 52)),
        })
    }

    /// Length of the frame.
    pub fn frame_len(&self) -> usize {
        frame_len(self.body_len)
    }

    /// The frame's body, and where it begins; `None` if it is not as it was written. `frame`: the whole frame.
    pub fn body<'a>(&self, frame: &'a [u8]) -> Option<(usize, &'a [u8])> {
        let at = Shape::of(self.body_len).body_at;
        let body = frame.get(at..at + self.body_len)?;
        (crc32c(body) == self.body_sum).then_some((at, body))
    }

    /// Whether a frame with this header, whose body is not as it was written, was not written to its end.
    pub fn is_torn(&self, frame: &[u8]) -> bool {
        let was_strong = |sector: usize| frame[FIXED_BYTES + sector / 8] >> (sector % 8) & 1 == 1;
        let mut sectors = frame.chunks(SECTOR_BYTES).enumerate();
        sectors.any(|(at, sector)| was_strong(at) && is_zero(sector)) || is_zero(&frame[frame.len() - PAD_BYTES_MIN..])
    }
}

/// Whether `sector`, which has no valid header and nothing behind it, holds less than a whole header.
pub(super) fn is_torn_header(sector: &[u8]) -> bool {
    let used = sector.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let body_len = u32::from_le_bytes(number(sector, 48)) as usize;
    used <= FIXED_BYTES || (body_len <= FRAME_BYTES_MAX && used <= Shape::of(body_len).body_at)
}

/// The records of a body, each with the place of its payload in the body; `None` if they do not add up.
pub(super) fn records(body: &[u8]) -> Option<Vec<(usize, Record<'_>)>> {
    let (mut found, mut at) = (Vec::new(), 0);
    while at < body.len() {
        let header = body.get(at..at + RECORD_HEADER_BYTES)?;
        let len = u32::from_le_bytes(number(header, 1)) as usize;
        at += RECORD_HEADER_BYTES;
        let record = Record {
            kind: Kind::from_byte(header[0])?,
            index: u64::from_le_bytes(number(header, 5)),
            payload: body.get(at..at.checked_add(len)?)?,
        };
        found.push((at, record));
        at += len;
    }
    Some(found)
}
