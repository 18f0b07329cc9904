//! Which kind of log a member has.
//!
//! # Rules
//! * A log keeps its kind: a directory that holds one is opened as what it is, whatever the configuration says.
//! * A new log is of the configured kind.
//! * Two logs in one directory are refused: nobody can say which one was acknowledged.

use std::path::Path;

use common::ids::LogIndex;
use serde::Deserialize;

use super::{
    Done, LogOp, LogRecord, LogStore, Recovered, StoreError,
    durable_sled::{DurableSled, SledOptions},
    identity::Marker,
    segment_log::{self, SegmentLog, SegmentOptions},
    sled_generations,
};

/// The kinds of log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogKind {
    /// Plain files, written in order: [`SegmentLog`].
    #[default]
    Segments,
    /// [`DurableSled`].
    Sled,
}

/// Settings of a member's log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Kind of a log that is made.
    pub kind: LogKind,
    /// Settings, if it is one of segments.
    pub segments: SegmentOptions,
    /// Settings, if it is one in sled.
    pub sled: SledOptions,
}

/// A member's log on its disk.
pub enum MemberLog {
    /// See [`LogKind::Segments`].
    Segments(SegmentLog),
    /// See [`LogKind::Sled`].
    Sled(DurableSled),
}

impl MemberLog {
    /// Whether there is a log in `dir`, be it a damaged one.
    #[must_use]
    pub fn is_in(dir: &Path) -> bool {
        segment_log::has_log(dir) || sled_generations::has_log(dir)
    }

    /// Opens the log in `dir`, or makes one. `directory`: number of the data directory, see
    /// [`DirectoryMeta`](super::identity::DirectoryMeta). `marker` is made durable before the first acknowledgement.
    ///
    /// # Errors
    /// [`StoreError`], of the kind of log that is there.
    pub fn open(dir: &Path, directory: [u8; 16], options: LogOptions, marker: Marker) -> Result<Self, StoreError> {
        // A log in sled that lost a part is still one in sled, which says what is wrong with it.
        let is_there = |name| dir.join(name).exists();
        let has_sled = sled_generations::has_log(dir) || is_there("conf") || is_there("CURRENT");
        let has_segments = segment_log::has_log(dir);
        let kind = match (has_segments, has_sled) {
            (true, true) => {
                let text = format!("{}: a log of segments and one in sled lie here", dir.display());
                return Err(StoreError::Corrupt(text));
            }
            (true, false) => LogKind::Segments,
            (false, true) => LogKind::Sled,
            (false, false) => options.kind,
        };
        if kind != options.kind {
            tracing::warn!(
                path = %dir.display(), found = ?kind, configured = ?options.kind,
                "the log is of another kind than configured; it is used as it is"
            );
        }
        match kind {
            LogKind::Segments => SegmentLog::open(dir, directory, options.segments, marker).map(Self::Segments),
            LogKind::Sled => DurableSled::open(dir, options.sled, marker).map(Self::Sled),
        }
    }

    /// Its kind.
    #[must_use]
    pub fn kind(&self) -> LogKind {
        match self {
            Self::Segments(_) => LogKind::Segments,
            Self::Sled(_) => LogKind::Sled,
        }
    }

    /// Whether nothing was ever acknowledged from here before it was opened, as far as its kind can tell: one of
    /// segments counts its groups, one in sled looks at what it holds.
    ///
    /// # Errors
    /// [`StoreError`] of a store that has failed.
    pub fn is_new(&self) -> Result<bool, StoreError> {
        match self {
            Self::Segments(log) => Ok(log.is_new()),
            Self::Sled(log) => Ok(log.recovered()? == Recovered::default()),
        }
    }

    fn store(&self) -> &dyn LogStore {
        match self {
            Self::Segments(log) => log,
            Self::Sled(log) => log,
        }
    }

    /// Finishes what is queued and gives the files free, though others still hold this store: every
    /// later operation fails. Waits for the disk.
    pub fn close(&self) {
        match self {
            Self::Segments(log) => log.close(),
            Self::Sled(log) => log.close(),
        }
    }

    /// The first failure, if there was one. The process must stop.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        match self {
            Self::Segments(log) => log.failure(),
            Self::Sled(log) => log.failure(),
        }
    }

    /// Resolves at the first failure. The process must stop.
    pub async fn failed(&self) -> StoreError {
        match self {
            Self::Segments(log) => log.failed().await,
            Self::Sled(log) => log.failed().await,
        }
    }
}

impl LogStore for MemberLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        self.store().recovered()
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        self.store().read(from, to, bytes_max)
    }

    fn submit(&self, op: LogOp, done: Done) {
        self.store().submit(op, done);
    }
}
