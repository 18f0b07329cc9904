//! The thread that writes: groups become frames, frames become durable, then they are acknowledged.

use std::{
    fs::File,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::Duration,
};

use bytes::Bytes;
use common::ids::LogIndex;
use crc32c::crc32c;

use super::{
    super::{
        LogOp, RECORD_BYTES_MAX, StoreError,
        group_commit::{Fsync, Poison, Queued, acknowledge, io_error, take_group},
        identity::Marker,
    },
    Shared,
    end::{End, EndFile},
    files::{self, Housekeeper},
    frame::{self, BODY_BYTES_MAX, FRAME_BYTES_MAX, Kind, Record, SECTOR_BYTES, Stamp},
    index::{Bounds, Index, Place},
};

/// Longest vote, hint or purge marker.
const META_BYTES_MAX: usize = 64 * 1024;
/// Without a write for this long, the end mark is made durable.
const IDLE: Duration = Duration::from_secs(2);

const _: () = assert!(BODY_BYTES_MAX > RECORD_BYTES_MAX && BODY_BYTES_MAX + 4 * META_BYTES_MAX < FRAME_BYTES_MAX);

/// The segment that comes next.
pub(super) enum Next {
    /// Nobody was asked for it.
    None,
    /// The housekeeper makes it.
    Asked,
    /// It is there, empty.
    Ready(File),
}

/// The segment that is written.
pub(super) struct Active {
    pub number: u64,
    pub file: Arc<File>,
    pub path: PathBuf,
    pub bytes_len: u32,
    /// Where the next frame goes.
    pub offset: u32,
}

pub(super) struct Writer {
    pub dir: PathBuf,
    pub directory: [u8; 16],
    /// Length of a new segment.
    pub segment_bytes: u32,
    pub shared: Arc<Shared>,
    pub active: Active,
    pub next: Next,
    /// The last group that is durable.
    pub group: u64,
    pub housekeeper: Housekeeper,
    pub end: EndFile,
    /// The segment that the mark on the disk names at least. What is in it stands for all that is removed.
    pub marked_segment: u64,
    /// Segments below are gone, or will be.
    pub kept_from: u64,
    /// Goes with the next group.
    pub hint: Option<Bytes>,
    pub marker: Option<Marker>,
    pub fsync: Fsync,
    pub poison: Arc<Poison>,
    /// The frame that is being written, and where its payloads begin.
    pub buffer: Vec<u8>,
    pub payloads: Vec<usize>,
}

impl Writer {
    pub fn run(mut self, waiting: &Receiver<Queued>) {
        loop {
            let is_settled = self.end.is_synced() || self.poison.cause().is_some();
            let first = if is_settled {
                waiting.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                waiting.recv_timeout(IDLE)
            };
            match first {
                Ok(first) => {
                    let (ops, acks) = take_group(first, waiting);
                    let outcome = self.guarded(|writer| writer.write(&ops));
                    acknowledge(&self.poison, acks, &outcome);
                    // Nobody waits for these: a failure shows in the poison and in the next operation.
                    let _ = self.guarded(Self::keep_house);
                }
                Err(RecvTimeoutError::Timeout) => {
                    let _ = self.guarded(|writer| writer.end.sync());
                }
                Err(RecvTimeoutError::Disconnected) => {
                    let _ = self.guarded(Self::finish);
                    return;
                }
            }
        }
    }

    /// Runs one step; an error or panic in it poisons the store for good.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let (poison, path) = (self.poison.clone(), self.active.path.clone());
        poison.guard(&path, || step(self))
    }

    /// Makes `ops` durable, in order.
    fn write(&mut self, ops: &[LogOp]) -> Result<(), StoreError> {
        let bounds = self.shared.index().bounds;
        check(ops, bounds).map_err(StoreError::Misuse)?;
        let hint = ops.iter().rev().find_map(|op| match op {
            LogOp::Committed(bytes) => Some(bytes.clone()),
            _ => None,
        });
        // A newer one says all that an older one does.
        self.hint = hint.or_else(|| self.hint.take());
        let mut records: Vec<Record<'_>> = ops.iter().flat_map(records_of).collect();
        if records.is_empty() {
            return Ok(());
        }
        let hint = self.hint.take();
        records.extend(hint.iter().map(|bytes| meta(Kind::Committed, bytes)));
        parts(&records).try_for_each(|part| self.write_frame(part))
    }

    /// One write, one sync.
    fn write_frame(&mut self, records: &[Record<'_>]) -> Result<(), StoreError> {
        let body_len: usize = records.iter().map(Record::encoded_len).sum();
        let opening = self.opening();
        let opening_len: usize = opening.records().iter().map(Record::encoded_len).sum();
        let at_begin = frame::frame_len(body_len + opening_len);
        let needed = if self.active.offset == 0 {
            at_begin
        } else {
            frame::frame_len(body_len)
        };
        if self.active.offset as usize + needed > self.active.bytes_len as usize {
            self.rotate(at_begin)?;
        }
        let mut all = Vec::new();
        let records = if self.active.offset == 0 {
            all.extend(opening.records());
            all.extend_from_slice(records);
            &all[..]
        } else {
            records
        };
        let stamp = Stamp {
            directory: self.directory,
            segment: self.active.number,
            offset: self.active.offset,
            segment_bytes: self.active.bytes_len,
            group: self.group + 1,
        };
        frame::encode(&mut self.buffer, &mut self.payloads, &stamp, records);
        let Active { file, path, offset, .. } = &self.active;
        file.write_all_at(&self.buffer, (*offset).into())
            .map_err(|error| io_error("write", path, &error))?;
        (self.fsync)(file).map_err(|error| io_error("fsync", path, &error))?;
        if let Some(marker) = self.marker.take() {
            marker.set()?;
        }
        self.publish(records);
        self.group += 1;
        let (end, file_len) = (
            self.active.offset as usize + self.buffer.len(),
            self.active.bytes_len as usize,
        );
        self.active.offset = u32::try_from(frame::place_behind(end, file_len)).expect("files are shorter");
        self.end.write(&End {
            directory: self.directory,
            group: self.group,
            segment: self.active.number,
        })
    }

    /// What a segment begins with, so that older ones can go.
    fn opening(&self) -> Opening {
        let index = self.shared.index();
        let first = index.bounds.records.map_or(0, |(first, _)| first.0);
        Opening {
            vote: index.vote.clone(),
            committed: index.committed.clone(),
            purged: index.bounds.purged.map(|upto| (upto, index.marker.clone())),
            first,
            count: index.bounds.len().to_le_bytes(),
        }
    }

    /// Lets readers see what is durable now.
    fn publish(&self, records: &[Record<'_>]) {
        let place = |(record, payload_at): (&Record<'_>, &usize)| Place {
            segment: self.active.number,
            offset: self.active.offset + u32::try_from(*payload_at).expect("frames are shorter"),
            len: u32::try_from(record.payload.len()).expect("frames are shorter"),
            sum: crc32c(record.payload),
        };
        let places: Vec<Place> = records.iter().zip(&self.payloads).map(place).collect();
        self.shared.change(|index: &mut Index| {
            for (record, place) in records.iter().zip(places) {
                let applied = index.apply(*record, place);
                applied.expect("checked before it was written");
            }
        });
    }

    /// Goes on in the next segment, with room for a frame of `needed` bytes. Upon an error all is as it was.
    fn rotate(&mut self, needed: usize) -> Result<(), StoreError> {
        let number = self.active.number + 1;
        let make = || files::prepare(&self.dir, number, self.segment_bytes);
        let file = match std::mem::replace(&mut self.next, Next::None) {
            Next::Ready(file) => file,
            // What stood in its way may be gone by now.
            Next::Asked => self.housekeeper.prepared(number).or_else(|_| make())?,
            Next::None => make()?,
        };
        let path = files::path_of(&self.dir, number);
        let mut bytes_len = self.segment_bytes;
        if needed > bytes_len as usize {
            let longer = u32::try_from(needed.next_multiple_of(SECTOR_BYTES)).expect("frames are shorter");
            files::fill(&file, bytes_len.into(), longer.into())
                .and_then(|()| file.sync_all())
                .map_err(|error| io_error("write", &path, &error))?;
            bytes_len = longer;
        }
        let file = Arc::new(file);
        self.shared.open_segment(number, file.clone());
        self.active = Active {
            number,
            file,
            path,
            bytes_len,
            offset: 0,
        };
        Ok(())
    }

    /// What nobody waits for: the next segment is made and old ones go.
    fn keep_house(&mut self) -> Result<(), StoreError> {
        let Active {
            number,
            offset,
            bytes_len,
            ..
        } = self.active;
        if number > self.marked_segment {
            self.end.sync()?;
            self.marked_segment = number;
        }
        let is_half_full = offset > bytes_len / 2;
        if is_half_full && matches!(self.next, Next::None) && self.housekeeper.prepare(number + 1) {
            self.next = Next::Asked;
        }
        let oldest = self.shared.index().oldest_segment().unwrap_or(number);
        if oldest > self.kept_from && self.housekeeper.remove_below(oldest) {
            self.shared.close_segments_below(oldest);
            self.kept_from = oldest;
        }
        Ok(())
    }

    /// The last words of a log that is closed.
    fn finish(&mut self) -> Result<(), StoreError> {
        if let Some(hint) = self.hint.take() {
            self.write_frame(&[meta(Kind::Committed, &hint)])?;
        }
        self.end.sync()
    }
}

/// State that a segment begins with.
struct Opening {
    vote: Option<Bytes>,
    committed: Option<Bytes>,
    purged: Option<(LogIndex, Bytes)>,
    first: u64,
    count: [u8; 8],
}

impl Opening {
    fn records(&self) -> Vec<Record<'_>> {
        let vote = self.vote.iter().map(|bytes| meta(Kind::Vote, bytes));
        let committed = self.committed.iter().map(|bytes| meta(Kind::Committed, bytes));
        let purged = self.purged.iter().map(|(upto, marker)| Record {
            kind: Kind::Purge,
            index: upto.0,
            payload: marker,
        });
        // Behind the purge marker, which would take records away.
        let range = Record {
            kind: Kind::Range,
            index: self.first,
            payload: &self.count,
        };
        vote.chain(committed).chain(purged).chain([range]).collect()
    }
}

fn meta(kind: Kind, payload: &[u8]) -> Record<'_> {
    Record {
        kind,
        index: 0,
        payload,
    }
}

/// The records that stand for `op`, but for hints.
fn records_of(op: &LogOp) -> Vec<Record<'_>> {
    match op {
        LogOp::Vote(bytes) => vec![meta(Kind::Vote, bytes)],
        LogOp::Committed(_) => Vec::new(),
        LogOp::Append(records) => records
            .iter()
            .map(|record| Record {
                kind: Kind::Entry,
                index: record.index.0,
                payload: &record.bytes,
            })
            .collect(),
        LogOp::Truncate { from } => vec![Record {
            kind: Kind::Truncate,
            index: from.0,
            payload: &[],
        }],
        LogOp::Purge { upto, marker } => vec![Record {
            kind: Kind::Purge,
            index: upto.0,
            payload: marker,
        }],
    }
}

/// Cuts `records` into the bodies of frames. Each is a group of its own: it is durable before the next is written.
fn parts<'a, 'b>(records: &'b [Record<'a>]) -> impl Iterator<Item = &'b [Record<'a>]> {
    let mut rest = records;
    std::iter::from_fn(move || {
        let mut bytes_len = 0;
        let fits = rest.iter().take_while(|record| {
            bytes_len += record.encoded_len();
            bytes_len <= BODY_BYTES_MAX
        });
        let count = fits.count().max(1).min(rest.len());
        let (part, behind) = rest.split_at(count);
        rest = behind;
        (!part.is_empty()).then_some(part)
    })
}

/// Whether `ops` fit the log and the bounds of a record.
fn check(ops: &[LogOp], mut bounds: Bounds) -> Result<(), String> {
    let check_len = |what: &str, bytes: &Bytes, max: usize| match bytes.len() {
        len if len > max => Err(format!("{what} of {len} bytes, at most {max} allowed")),
        _ => Ok(()),
    };
    for op in ops {
        match op {
            LogOp::Vote(bytes) => check_len("vote", bytes, META_BYTES_MAX)?,
            LogOp::Committed(bytes) => check_len("committed hint", bytes, META_BYTES_MAX)?,
            LogOp::Append(records) => {
                for record in records {
                    check_len("record", &record.bytes, RECORD_BYTES_MAX)?;
                    bounds.append(record.index)?;
                }
            }
            LogOp::Truncate { from } => bounds.truncate(*from),
            LogOp::Purge { upto, marker } => {
                check_len("purge marker", marker, META_BYTES_MAX)?;
                bounds.purge(*upto)?;
            }
        }
    }
    Ok(())
}

/// The segment `number` of the log in `dir`, to be written from `offset` on.
pub(super) fn active(dir: &Path, number: u64, bytes_len: u32, offset: u32) -> Result<Active, StoreError> {
    Ok(Active {
        number,
        file: Arc::new(files::open(dir, number, true)?),
        path: files::path_of(dir, number),
        bytes_len,
        offset,
    })
}
