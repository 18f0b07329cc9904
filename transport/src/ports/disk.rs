//! Durable files outside any database: guards, journals, segments, markers.
//!
//! # Rules
//! * What a future returned here reports as done survives a power cut.
//! * An error is final: the caller stops the process. Nothing is retried after a failed fsync.

use std::io;

use super::BoxFuture;

/// The directory that belongs to one process, held exclusively.
pub trait Disk: Send + Sync + 'static {
    /// Whole content of a small file, or `None` if there is no such file.
    ///
    /// # Errors
    /// Of the file system.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a small file: written beside it, fsynced, renamed, directory fsynced.
    fn replace(&self, name: &str, bytes: Vec<u8>) -> BoxFuture<io::Result<()>>;

    /// Removes a file if it is there; the directory is fsynced.
    fn remove(&self, name: &str) -> BoxFuture<io::Result<()>>;

    /// Names of the files whose names begin with `prefix`, ascending.
    ///
    /// # Errors
    /// Of the file system.
    fn list(&self, prefix: &str) -> io::Result<Vec<String>>;

    /// Opens or creates an append-only journal and returns its records in order, each with its offset.
    ///
    /// A torn record at the end is cut off with a log line. Damage anywhere else is
    /// [`io::ErrorKind::InvalidData`]: nothing is deleted, the caller refuses to start.
    ///
    /// # Errors
    /// Of the file system, or damage.
    #[allow(clippy::type_complexity)]
    fn open_journal(&self, name: &str) -> io::Result<(Box<dyn Journal>, Vec<(u64, Vec<u8>)>)>;

    /// All records of a finished journal, which is never appended to again, each with its offset.
    ///
    /// Nothing is changed. All of it was durable before it was finished, so that a torn end is damage like any other.
    ///
    /// # Errors
    /// Of the file system; [`io::ErrorKind::NotFound`]; damage, as [`io::ErrorKind::InvalidData`].
    fn read_journal(&self, name: &str) -> io::Result<Vec<(u64, Vec<u8>)>>;

    /// One record of a finished journal, at an offset that [`Disk::read_journal`] or an append returned.
    /// Takes as long as reading this record.
    ///
    /// # Errors
    /// As [`Disk::read_journal`].
    fn read_record(&self, name: &str, offset: u64) -> io::Result<Vec<u8>>;
}

/// An append-only file of records, each with length and checksum.
pub trait Journal: Send + 'static {
    /// Appends `records` in order; durable when the future is done. Returns their offsets.
    ///
    /// Calls are made one after another: the caller awaits each before the next.
    fn append(&mut self, records: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>>;

    /// The record at an offset that `append` or `open_journal` returned.
    ///
    /// # Errors
    /// Of the file system, or damage.
    fn read(&self, offset: u64) -> io::Result<Vec<u8>>;

    /// Replaces the journal by one that holds `records`: new file, fsync, rename, directory fsync.
    /// Returns their offsets.
    fn rewrite(&mut self, records: Vec<Vec<u8>>) -> BoxFuture<io::Result<Vec<u64>>>;

    /// Length in bytes.
    fn bytes(&self) -> u64;
}
