//! The buffer with its journal: what it says is durable before anybody hears of it.

use std::{
    io,
    sync::{Arc, Mutex},
};

use common::{
    codec::encode,
    entry::SignedEntry,
    ids::{ChainId, EntryId},
    wire::op::BufferedState,
};
use transport::watch::Watch;

use super::{Buffer, BufferLimits, BufferRecord, BufferRefusal, ReplayError, VERSION};
use crate::{
    ports::{Disk, Journal},
    shell::lock,
};

/// Name of the journal.
const FILE: &str = "buffer";

/// The journal is rewritten when it has grown by this much.
const COMPACT_BYTES: u64 = 1024 * 1024;

/// Why the buffer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BufferError {
    /// The records contradict each other, or are damaged.
    #[error(
        "the journal \"{FILE}\" cannot be read ({0}): submissions that wait in it would be lost. Restore the file, or \
         move it away and tell their authors"
    )]
    Damaged(ReplayError),
    /// The disk failed, or the journal is damaged in the middle.
    #[error("the journal \"{FILE}\": {0}")]
    Io(#[from] io::Error),
}

impl BufferError {
    /// 74 for the disk, 78 where a restart cannot help.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io(error) if error.kind() != io::ErrorKind::InvalidData => 74,
            _ => 78,
        }
    }
}

struct File {
    journal: Box<dyn Journal>,
    rewritten_bytes: u64,
}

/// The buffer on its disk.
pub struct BufferJournal {
    buffer: Mutex<Buffer>,
    /// Held over append and change, so that the journal stands in the order of the changes.
    file: tokio::sync::Mutex<File>,
    /// Rises when something waits anew.
    news: Watch<u64>,
}

impl BufferJournal {
    /// Reads the journal; begins one if there is none.
    ///
    /// # Errors
    /// [`BufferError`]; nothing was deleted.
    pub async fn open(disk: Arc<dyn Disk>, chain: ChainId, limits: BufferLimits) -> Result<Self, BufferError> {
        let (mut journal, records) = disk.open_journal(FILE)?;
        let records: Vec<Vec<u8>> = records.into_iter().map(|(_, record)| record).collect();
        let buffer = Buffer::replay(chain, limits, &records).map_err(BufferError::Damaged)?;
        let begin = encode(&BufferRecord::Begin { version: VERSION });
        match records.first() {
            None => drop(journal.append(vec![begin]).await?),
            Some(first) if *first == begin => {}
            // Of an older format, which an older release must not take for its own from now on.
            Some(_) => drop(journal.rewrite(buffer.records().iter().map(encode).collect()).await?),
        }
        let (entries, bytes) = buffer.waiting();
        if entries > 0 {
            tracing::info!(entries, bytes, "submissions wait in the buffer for a quorum");
        }
        Ok(Self {
            buffer: Mutex::new(buffer),
            file: tokio::sync::Mutex::new(File {
                journal,
                // Whatever of it earlier lives could have left out: they may all have been short.
                rewritten_bytes: 0,
            }),
            news: Watch::new(1),
        })
    }

    /// Looks at what waits. Never waits inside.
    pub fn with<T>(&self, look: impl FnOnce(&Buffer) -> T) -> T {
        look(&lock(&self.buffer))
    }

    /// What the drain waits on.
    pub(super) fn news(&self) -> &Watch<u64> {
        &self.news
    }

    /// Keeps an entry, or says where it is if it was kept before. It is durable when this returns.
    ///
    /// # Errors
    /// The outer one is the disk's, and final; the inner one a [`BufferRefusal`].
    pub async fn keep(&self, id: &EntryId, entry: SignedEntry) -> io::Result<Result<BufferedState, BufferRefusal>> {
        let mut file = self.file.lock().await;
        if let Some(state) = self.with(|buffer| buffer.state(id).cloned()) {
            return Ok(Ok(state));
        }
        if let Err(refusal) = self.with(|buffer| buffer.check(&entry)) {
            return Ok(Err(refusal));
        }
        let record = encode(&BufferRecord::Kept(entry.clone()));
        file.journal.append(vec![record]).await?;
        lock(&self.buffer).keep(entry);
        drop(file);
        self.news.set(self.news.get() + 1);
        Ok(Ok(BufferedState::Waiting))
    }

    /// Notes how entering it ended. It is durable when this returns.
    ///
    /// # Errors
    /// Of the disk; final.
    pub async fn end(&self, id: &EntryId, state: BufferedState) -> io::Result<()> {
        let mut file = self.file.lock().await;
        let (id, ended) = (*id, state.clone());
        let record = encode(&BufferRecord::Ended { id, state: ended });
        file.journal.append(vec![record]).await?;
        lock(&self.buffer).end(&id, state);
        if file.journal.bytes() > file.rewritten_bytes.saturating_add(COMPACT_BYTES) {
            let records = self.with(|buffer| buffer.records().iter().map(encode).collect());
            file.journal.rewrite(records).await?;
            file.rewritten_bytes = file.journal.bytes();
        }
        Ok(())
    }
}
