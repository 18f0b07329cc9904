//! Where each record lies, and which operations fit the log. In memory only; files are not touched here.

use std::collections::VecDeque;

use bytes::Bytes;
use common::ids::LogIndex;

use super::{
    super::Recovered,
    frame::{Kind, Record},
};

/// Where a record's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Number of the segment.
    pub segment: u64,
    /// First byte in its file.
    pub offset: u32,
    /// Bytes.
    pub len: u32,
    /// crc32c of the bytes.
    pub sum: u32,
}

/// First and last index of the log. Decides whether an operation fits, without looking at records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// What the purge marker stands for.
    pub purged: Option<LogIndex>,
    /// First and last record.
    pub records: Option<(LogIndex, LogIndex)>,
}

impl Bounds {
    /// Adds the record at `index`, or says why it does not fit.
    pub fn append(&mut self, index: LogIndex) -> Result<(), String> {
        let below = self.records.map(|(_, last)| last).or(self.purged);
        if let Some(below) = below
            && Some(index) != below.0.checked_add(1).map(LogIndex)
        {
            return Err(format!("append at {index} above {below}"));
        }
        let first = self.records.map_or(index, |(first, _)| first);
        self.records = Some((first, index));
        Ok(())
    }

    /// Drops records at or above `from`.
    pub fn truncate(&mut self, from: LogIndex) {
        self.records = self.records.and_then(|(first, last)| {
            let below = from.previous().filter(|_| from > first)?;
            Some((first, last.min(below)))
        });
    }

    /// Drops records at or below `upto`.
    pub fn purge(&mut self, upto: LogIndex) -> Result<(), String> {
        if let Some(purged) = self.purged.filter(|purged| upto < *purged) {
            return Err(format!("purge up to {upto} after a purge up to {purged}"));
        }
        self.purged = Some(upto);
        self.records = self.records.filter(|(_, last)| *last > upto);
        self.records = self
            .records
            .map(|(first, last)| (first.max(LogIndex(upto.0 + 1)), last));
        Ok(())
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        self.records.map_or(0, |(first, last)| last.0 - first.0 + 1)
    }
}

/// What the log holds.
#[derive(Debug, Default)]
pub(super) struct Index {
    pub vote: Option<Bytes>,
    pub committed: Option<Bytes>,
    /// Of the purge marker's index, see `bounds`.
    pub marker: Bytes,
    pub bounds: Bounds,
    /// Places of the newest records. While files are read back, older ones may lie in segments that are gone;
    /// afterwards there is one for each record.
    places: VecDeque<Place>,
}

impl Index {
    /// Begins with records that lie in segments which are gone: later a purge or truncation takes them back, or
    /// the log is damaged.
    pub fn begin_with(&mut self, records: Option<(LogIndex, LogIndex)>) {
        self.bounds.records = records;
        self.places.clear();
    }

    /// Does what `record` says, which lies at `place`, or says why it does not fit.
    pub fn apply(&mut self, record: Record<'_>, place: Place) -> Result<(), String> {
        let index = LogIndex(record.index);
        let payload = || Bytes::copy_from_slice(record.payload);
        match record.kind {
            Kind::Entry => {
                self.bounds.append(index)?;
                self.places.push_back(place);
            }
            Kind::Vote => self.vote = Some(payload()),
            Kind::Committed => self.committed = Some(payload()),
            Kind::Purge => self.purge(index, payload())?,
            Kind::Truncate => self.truncate(index),
            // It repeats what is known.
            Kind::Range => {}
        }
        Ok(())
    }

    fn truncate(&mut self, from: LogIndex) {
        let before = self.bounds.len();
        self.bounds.truncate(from);
        let dropped = usize::try_from(before - self.bounds.len()).unwrap_or(usize::MAX);
        self.places.truncate(self.places.len().saturating_sub(dropped));
    }

    fn purge(&mut self, upto: LogIndex, marker: Bytes) -> Result<(), String> {
        self.bounds.purge(upto)?;
        self.marker = marker;
        let kept = usize::try_from(self.bounds.len()).unwrap_or(usize::MAX);
        self.places.drain(..self.places.len().saturating_sub(kept));
        Ok(())
    }

    /// Records whose segment is gone.
    pub fn missing(&self) -> Option<(LogIndex, LogIndex)> {
        let missing = self.bounds.len() - self.places.len() as u64;
        let (first, _) = self.bounds.records.filter(|_| missing > 0)?;
        Some((first, LogIndex(first.0 + missing - 1)))
    }

    /// Places from `from` up to before `to`, without a gap, at least one if there is one and then as many as fit in
    /// `bytes_max`.
    pub fn range(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Vec<(LogIndex, Place)> {
        let (mut found, mut bytes_used) = (Vec::new(), 0usize);
        let Some((_, last)) = self.bounds.records.filter(|_| self.missing().is_none()) else {
            return found;
        };
        let first = LogIndex(last.0 + 1 - self.places.len() as u64);
        if from < first || from >= to {
            return found;
        }
        let skip = usize::try_from(from.0 - first.0).unwrap_or(usize::MAX);
        for (index, place) in (from.0..to.0).map(LogIndex).zip(self.places.iter().skip(skip)) {
            bytes_used = bytes_used.saturating_add(place.len as usize);
            if !found.is_empty() && bytes_used > bytes_max {
                break;
            }
            found.push((index, *place));
        }
        found
    }

    /// What a store says of itself when it is opened.
    pub fn recovered(&self) -> Recovered {
        Recovered {
            vote: self.vote.clone(),
            committed: self.committed.clone(),
            purged: self.bounds.purged.map(|upto| (upto, self.marker.clone())),
            records: self.bounds.records,
        }
    }

    /// The oldest segment with a record in it.
    pub fn oldest_segment(&self) -> Option<u64> {
        self.places.front().map(|place| place.segment)
    }
}
