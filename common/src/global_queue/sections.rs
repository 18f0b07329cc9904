//! The state as a stream of bounded pieces, for files that are larger than memory should hold twice.
//!
//! # Rules
//! * Pieces come in the order of [`Section`]; rows ascend by key, over all pieces of a section.
//! * A piece holds whole records, canonical, one after another. It ends with the record that brings it
//!   to [`PIECE_BYTES`], so a piece is never longer than that and one record.
//! * Restoring adds rows as they come and checks the whole at the end, with the root.

use super::{
    GlobalQueue, RestoreError, Retired, Standing, Submitted,
    row::{StreamRow, TaskKeyRow},
    snapshot::{Builder, Small},
};
use crate::{
    codec::{DecodeError, append, take},
    genesis::Genesis,
    ids::TaskId,
};

/// A piece ends when it has this many bytes or more.
pub const PIECE_BYTES: usize = 128 * 1024;

/// What the records of a piece are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// Everything small; one record, one piece, the first.
    Small,
    /// Tasks.
    Tasks,
    /// Tasks that left.
    Retired,
    /// Task keys of fleet scope.
    TaskKeys,
    /// Number streams.
    Streams,
}

/// Gathers records into pieces for `put`.
pub struct Pieces<'a, P> {
    bytes: Vec<u8>,
    put: &'a mut P,
}

impl<'a, P> Pieces<'a, P> {
    /// No record yet.
    pub fn new(put: &'a mut P) -> Self {
        Self { bytes: Vec::new(), put }
    }

    /// Adds a record; gives a full piece away.
    ///
    /// # Errors
    /// What `put` says.
    pub fn add<T: serde::Serialize, E>(&mut self, record: &T) -> Result<(), E>
    where
        P: FnMut(&[u8]) -> Result<(), E>,
    {
        append(&mut self.bytes, record);
        if self.bytes.len() >= PIECE_BYTES {
            (self.put)(&self.bytes)?;
            self.bytes.clear();
        }
        Ok(())
    }

    /// Gives the rest away.
    ///
    /// # Errors
    /// What `put` says.
    pub fn finish<E>(self) -> Result<(), E>
    where
        P: FnMut(&[u8]) -> Result<(), E>,
    {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            (self.put)(&self.bytes)
        }
    }
}

impl GlobalQueue {
    /// Gives the whole state to `put`, piece by piece.
    ///
    /// # Errors
    /// The first error of `put`.
    pub fn write_sections<E>(&self, mut put: impl FnMut(Section, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let mut small = Vec::new();
        append(&mut small, &Small::of(self));
        put(Section::Small, &small)?;
        let mut put_tasks = |bytes: &[u8]| put(Section::Tasks, bytes);
        let mut pieces = Pieces::new(&mut put_tasks);
        for (id, row) in self.tasks.iter() {
            pieces.add(&(id, &*row.submitted, &row.standing))?;
        }
        pieces.finish()?;
        let mut put_retired = |bytes: &[u8]| put(Section::Retired, bytes);
        let mut pieces = Pieces::new(&mut put_retired);
        for (_, line) in self.retired.iter() {
            pieces.add(line)?;
        }
        pieces.finish()?;
        let mut put_keys = |bytes: &[u8]| put(Section::TaskKeys, bytes);
        let mut pieces = Pieces::new(&mut put_keys);
        for (_, row) in self.task_keys.iter() {
            pieces.add(row)?;
        }
        pieces.finish()?;
        let mut put_streams = |bytes: &[u8]| put(Section::Streams, bytes);
        let mut pieces = Pieces::new(&mut put_streams);
        for (_, row) in self.streams.iter() {
            pieces.add(row)?;
        }
        pieces.finish()
    }
}

/// A state that is being restored from pieces.
pub struct Restoring {
    builder: Builder,
    small: Option<Small>,
    newest: Section,
}

impl Restoring {
    /// Nothing yet, for the fleet of `genesis`.
    #[must_use]
    pub fn new(genesis: &Genesis) -> Self {
        Self {
            builder: Builder::new(genesis),
            small: None,
            newest: Section::Small,
        }
    }

    /// Adds the next piece. The caller has bounded its length.
    ///
    /// # Errors
    /// [`RestoreError`]: drop the whole.
    pub fn add(&mut self, section: Section, mut bytes: &[u8]) -> Result<(), RestoreError> {
        if section < self.newest || (section == Section::Small) != self.small.is_none() {
            return Err(RestoreError::Malformed);
        }
        self.newest = section;
        let bytes = &mut bytes;
        while !bytes.is_empty() {
            match section {
                Section::Small => {
                    let small: Small = take(bytes)?;
                    self.builder.check_version(small.version, small.chain)?;
                    if self.small.replace(small).is_some() {
                        return Err(RestoreError::Malformed);
                    }
                }
                Section::Tasks => {
                    let (id, submitted, standing): (TaskId, Submitted, Standing) = take(bytes)?;
                    self.builder.task(id, submitted, standing)?;
                }
                Section::Retired => self.builder.retired(take::<Retired>(bytes)?)?,
                Section::TaskKeys => self.builder.task_key(take::<TaskKeyRow>(bytes)?)?,
                Section::Streams => self.builder.stream(take::<StreamRow>(bytes)?)?,
            }
        }
        Ok(())
    }

    /// The state, if its root is the one that was written.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn finish(self) -> Result<GlobalQueue, RestoreError> {
        self.builder.finish(self.small.ok_or(RestoreError::Malformed)?)
    }
}

impl From<DecodeError> for RestoreError {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}
