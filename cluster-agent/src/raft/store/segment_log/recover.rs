//! Reads the segments back: what the log holds, where it ends, and what is to be mended. Changes nothing.
//!
//! The decisions stand in the table of [`super`].

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use common::ids::LogIndex;
use crc32c::crc32c;

use super::{
    super::{StoreError, group_commit::io_error},
    end::{END, End},
    files,
    frame::{self, FORMAT_VERSION, Header, Kind, Record, SECTOR_BYTES, Stamp},
    index::{Index, Place},
};

/// Longest file that is read as a segment.
const SEGMENT_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// What the files hold.
pub(super) struct Found {
    pub index: Index,
    /// The oldest segment, and the one that is written next.
    pub oldest: u64,
    pub segment: u64,
    pub segment_bytes: u32,
    /// Where the next frame goes.
    pub offset: u32,
    /// The last group; 0 before the first.
    pub group: u64,
    /// The last group's frame, and where it lies.
    pub last_frame: Option<(u32, Vec<u8>)>,
    /// Whether the segment after that is there, empty and whole.
    pub has_next: bool,
    pub repairs: Vec<Repair>,
}

/// What has to be changed before the log goes on. Nothing acknowledged lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repair {
    /// A group that was not written to its end: zeros from `from` up to `to`.
    Cut { segment: u64, from: u64, to: u64 },
    /// The file ends in the middle of nothing: zeros up to its length.
    Lengthen { segment: u64, from: u64, to: u64 },
    /// A segment without a whole frame in it.
    Remove { segment: u64 },
}

/// A segment's bytes, with zeros up to whole sectors.
struct Segment {
    number: u64,
    path: PathBuf,
    bytes: Vec<u8>,
    file_len: usize,
}

/// How the frames of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// The file is full.
    Full,
    /// Nothing is where the next frame would begin, or only the begin of its header.
    Nothing,
    /// The frame there, of so many bytes, was not written to its end.
    Torn(usize),
    /// The frame of this group was changed after it was written.
    Damaged(u64),
}

impl Segment {
    fn read(dir: &Path, number: u64) -> Result<Self, StoreError> {
        let path = files::path_of(dir, number);
        let file = files::open(dir, number, false)?;
        let file_len = file.metadata().map_err(|error| io_error("read", &path, &error))?.len();
        if file_len > SEGMENT_BYTES_MAX {
            return Err(StoreError::Corrupt(format!(
                "{}: {file_len} bytes, at most {SEGMENT_BYTES_MAX} expected",
                path.display()
            )));
        }
        let file_len = usize::try_from(file_len).expect("checked above");
        let mut bytes = vec![0; file_len];
        let read = |file: &File, bytes: &mut [u8]| file.read_exact_at(bytes, 0);
        read(&file, &mut bytes).map_err(|error| io_error("read", &path, &error))?;
        bytes.resize(file_len.next_multiple_of(SECTOR_BYTES), 0);
        Ok(Self {
            number,
            path,
            bytes,
            file_len,
        })
    }

    fn corrupt(&self, at: usize, why: impl std::fmt::Display) -> StoreError {
        StoreError::Corrupt(format!("{} at {at}: {why}", self.path.display()))
    }

    /// The header at `at`, if there is one that was written for this place.
    fn header(&self, at: usize, directory: &[u8; 16]) -> Option<Header> {
        let header = Header::parse(self.bytes.get(at..)?)?;
        let Stamp {
            directory: of,
            segment,
            offset,
            ..
        } = header.stamp;
        (of == *directory && segment == self.number && offset as usize == at).then_some(header)
    }

    /// The first group that begins at or behind `from`.
    fn group_behind(&self, from: usize, directory: &[u8; 16]) -> Option<u64> {
        let mut places = (from..self.bytes.len()).step_by(SECTOR_BYTES);
        places.find_map(|at| self.header(at, directory).map(|header| header.stamp.group))
    }

    /// End of what is not zero at or behind `from`, in whole sectors.
    fn used_behind(&self, from: usize) -> Option<usize> {
        let mut sectors = self.bytes[from..].chunks(SECTOR_BYTES);
        let last = sectors.rposition(|sector| sector.iter().any(|byte| *byte != 0))?;
        Some(from + (last + 1) * SECTOR_BYTES)
    }
}

/// The log as far as it was read.
struct Replay {
    directory: [u8; 16],
    index: Index,
    /// The oldest segment.
    oldest: u64,
    /// The last group; `None` before the first frame of the oldest segment.
    group: Option<u64>,
    /// Place and length of the last frame in the segment that was read last.
    last_frame: Option<(usize, usize)>,
}

impl Replay {
    /// Takes the frames of `segment` in order. Returns where they end, how, and how long the file was made.
    fn take(&mut self, segment: &Segment) -> Result<(usize, Stop, Option<u32>), StoreError> {
        let (mut at, mut made_len) = (0, None);
        while at < segment.bytes.len() {
            let Some(header) = Header::parse(&segment.bytes[at..]) else {
                let sector = &segment.bytes[at..at + SECTOR_BYTES];
                let is_empty = sector.iter().all(|byte| *byte == 0);
                let is_torn = || frame::is_torn_header(sector) && segment.used_behind(at + SECTOR_BYTES).is_none();
                if is_empty || is_torn() {
                    return Ok((at, Stop::Nothing, made_len));
                }
                return Err(segment.corrupt(at, "neither a group nor the end of the log is here"));
            };
            self.check(segment, at, &header)?;
            let group = header.stamp.group;
            let Some(frame) = segment.bytes.get(at..at + header.frame_len()) else {
                return Ok((at, Stop::Damaged(group), made_len));
            };
            let Some((body_at, body)) = header.body(frame) else {
                let stop = if header.is_torn(frame) {
                    Stop::Torn(frame.len())
                } else {
                    Stop::Damaged(group)
                };
                return Ok((at, stop, made_len));
            };
            let records = frame::records(body).ok_or_else(|| segment.corrupt(at, "records do not add up"))?;
            for (payload_at, record) in records {
                let place = Place {
                    segment: segment.number,
                    offset: u32::try_from(at + body_at + payload_at).expect("files are shorter"),
                    len: u32::try_from(record.payload.len()).expect("frames are shorter"),
                    sum: crc32c(record.payload),
                };
                self.apply(record, place).map_err(|why| segment.corrupt(at, why))?;
            }
            self.group = Some(group);
            self.last_frame = Some((at, frame.len()));
            made_len = Some(header.stamp.segment_bytes);
            at = frame::place_behind(at + frame.len(), segment.bytes.len());
        }
        Ok((at, Stop::Full, made_len))
    }

    /// Whether a whole header belongs here, and next.
    fn check(&self, segment: &Segment, at: usize, header: &Header) -> Result<(), StoreError> {
        let stamp = &header.stamp;
        if header.version != FORMAT_VERSION {
            let (got, of) = (
                header.version,
                if header.version < FORMAT_VERSION {
                    "an older"
                } else {
                    "a newer"
                },
            );
            let text = format!("format {got} of {of} release, only {FORMAT_VERSION} is known");
            return Err(segment.corrupt(at, text));
        }
        if stamp.directory != self.directory {
            return Err(segment.corrupt(at, "a group of another data directory"));
        }
        if stamp.segment != segment.number || stamp.offset as usize != at {
            let text = format!("a group of segment {} at {}", stamp.segment, stamp.offset);
            return Err(segment.corrupt(at, text));
        }
        let wanted = match self.group {
            Some(group) => Some(group + 1),
            None if self.oldest == 1 => Some(1),
            None => None,
        };
        if wanted.is_some_and(|wanted| wanted != stamp.group) {
            let text = format!("group {} where {} belongs", stamp.group, wanted.unwrap_or(0));
            return Err(segment.corrupt(at, text));
        }
        Ok(())
    }

    fn apply(&mut self, record: Record<'_>, place: Place) -> Result<(), String> {
        if record.kind != Kind::Range {
            return self.index.apply(record, place);
        }
        let count = u64::from_le_bytes(record.payload.try_into().map_err(|_| "a range without a count")?);
        let range = match count.checked_sub(1) {
            None => None,
            Some(more) => {
                let last = record.index.checked_add(more).ok_or("a range beyond all indexes")?;
                Some((LogIndex(record.index), LogIndex(last)))
            }
        };
        if self.group.is_none() && self.oldest > 1 {
            self.index.begin_with(range);
        } else if self.index.bounds.records != range {
            let have = self.index.bounds.records;
            return Err(format!(
                "the segment begins with records {range:?}, but there are {have:?}"
            ));
        }
        Ok(())
    }
}

/// Reads the log in `dir`.
///
/// # Errors
/// [`StoreError::Corrupt`] for what no power cut leaves; see the table of [`super`].
pub(super) fn recover(dir: &Path, end: &End, segment_bytes: u32) -> Result<Found, StoreError> {
    let (oldest, newest) = without_gap(dir)?;
    let mut replay = Replay {
        directory: end.directory,
        index: Index::default(),
        oldest,
        group: None,
        last_frame: None,
    };
    let mut found = Found {
        index: Index::default(),
        oldest,
        segment: oldest,
        segment_bytes,
        offset: 0,
        group: 0,
        last_frame: None,
        has_next: false,
        repairs: Vec::new(),
    };
    for number in oldest..=newest {
        let segment = Segment::read(dir, number)?;
        let (at, stop, made_len) = replay.take(&segment)?;
        check_stop(&segment, at, stop, &replay)?;
        if made_len.is_none() && number > 1 {
            // No whole group: nothing of the log is here or behind.
            break;
        }
        if let Some((at, len)) = replay.last_frame.take() {
            let offset = u32::try_from(at).expect("files are shorter");
            found.last_frame = Some((offset, segment.bytes[at..at + len].to_vec()));
        }
        // What an earlier segment has behind its end does no harm: this one goes on where it ends.
        found.repairs = repairs_of(&segment, at, stop, made_len)?;
        found.segment = number;
        found.offset = u32::try_from(at).expect("files are shorter");
        found.segment_bytes = made_len.unwrap_or(u32::try_from(segment.file_len).expect("checked when it was read"));
    }
    unused_segments(dir, newest, segment_bytes, &replay, &mut found)?;
    found.group = replay.group.unwrap_or(0);
    check_all_is_there(dir, end, &replay, &found)?;
    found.index = replay.index;
    Ok(found)
}

/// The oldest and the newest segment; all between them are there.
fn without_gap(dir: &Path) -> Result<(u64, u64), StoreError> {
    let numbers = files::list(dir)?;
    let (Some(&oldest), Some(&newest)) = (numbers.first(), numbers.last()) else {
        return Err(StoreError::Corrupt(format!("{}: no segment", dir.display())));
    };
    if let Some(pair) = numbers.windows(2).find(|pair| pair[1] != pair[0] + 1) {
        let lost = files::path_of(dir, pair[0] + 1);
        return Err(StoreError::Corrupt(format!("{}: the segment is gone", lost.display())));
    }
    Ok((oldest, newest))
}

/// Whether everything that was acknowledged was read.
fn check_all_is_there(dir: &Path, end: &End, replay: &Replay, found: &Found) -> Result<(), StoreError> {
    if replay.group.is_none() && replay.oldest > 1 {
        let path = files::path_of(dir, replay.oldest);
        return Err(StoreError::Corrupt(format!("{}: no group is in it", path.display())));
    }
    if end.group > found.group {
        return Err(StoreError::Corrupt(format!(
            "{}: the log was acknowledged up to group {}, and ends with group {} in {}",
            dir.join(END).display(),
            end.group,
            found.group,
            files::path_of(dir, found.segment).display()
        )));
    }
    if let Some((from, to)) = replay.index.missing() {
        let text = format!("{}: entries {from} to {to} are missing", dir.display());
        return Err(StoreError::Corrupt(text));
    }
    Ok(())
}

/// Refuses an end that no power cut leaves.
fn check_stop(segment: &Segment, at: usize, stop: Stop, replay: &Replay) -> Result<(), StoreError> {
    if let Stop::Damaged(group) = stop {
        return Err(segment.corrupt(at, format!("group {group} was changed after it was written")));
    }
    let behind = segment.group_behind((at + SECTOR_BYTES).min(segment.bytes.len()), &replay.directory);
    if let Some(group) = behind {
        return Err(segment.corrupt(at, format!("a group is damaged or missing before group {group}")));
    }
    Ok(())
}

/// What has to be mended in the segment where the log ends, if it ends in this one.
fn repairs_of(segment: &Segment, at: usize, stop: Stop, made_len: Option<u32>) -> Result<Vec<Repair>, StoreError> {
    let made_len = made_len.map_or(segment.bytes.len(), |len| len as usize);
    // A place for the next frame that is in the file and empty shows that only zeros are gone.
    let has_place = stop == Stop::Nothing && at + SECTOR_BYTES <= segment.file_len;
    if segment.file_len > made_len || (segment.file_len < made_len && !has_place) {
        let text = format!("the file was made {made_len} bytes long and is {}", segment.file_len);
        return Err(segment.corrupt(at, text));
    }
    let cut = segment.used_behind(at).map(|to| Repair::Cut {
        segment: segment.number,
        from: at as u64,
        to: to.min(made_len) as u64,
    });
    let lengthen = (segment.file_len < made_len).then_some(Repair::Lengthen {
        segment: segment.number,
        from: segment.file_len as u64,
        to: made_len as u64,
    });
    Ok(cut.into_iter().chain(lengthen).collect())
}

/// Looks at the segments behind the log's end: at most one is kept, empty.
fn unused_segments(
    dir: &Path,
    newest: u64,
    segment_bytes: u32,
    replay: &Replay,
    found: &mut Found,
) -> Result<(), StoreError> {
    // Newest first, so that a crash in between leaves no gap.
    for number in (found.segment + 1..=newest).rev() {
        let segment = Segment::read(dir, number)?;
        let is_torn = matches!(segment.header(0, &replay.directory), Some(header)
            if number == found.segment + 1 && header.stamp.group == replay.group.unwrap_or(0) + 1);
        let from = if is_torn { SECTOR_BYTES } else { 0 };
        if let Some(group) = segment.group_behind(from, &replay.directory) {
            return Err(segment.corrupt(0, format!("a group is damaged or missing before group {group}")));
        }
        let is_whole = segment.used_behind(0).is_none() && segment.file_len == segment_bytes as usize;
        if is_whole && number == found.segment + 1 {
            found.has_next = true;
        } else {
            found.repairs.push(Repair::Remove { segment: number });
        }
    }
    Ok(())
}
