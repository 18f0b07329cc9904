//! The production log store: sled, made durable.
//!
//! # Rules
//! * Durable means: sled's flush, then `fdatasync` on a descriptor of our own for sled's file. sled's
//!   flush alone does not reach the device (measured: acknowledged writes lost at a power cut).
//! * What sled writes between two flushes fits in one of its segments: at most
//!   `KEYS_PER_FLUSH_MAX` keys change, removals included, and sled
//!   has no thread that moves pages. More could survive a power cut in parts that sled recovers to an empty log.
//! * A crash before a group's last flush leaves a prefix of the group, in whole records.
//! * A failed flush is final wherever it happens.
//! * Values are so small that sled never writes a leaf into a file of its own, which it would not
//!   flush (`sled_entries`). Should one appear, the store is poisoned.
//! * At most 64 removals per batch: sled keeps each touched leaf until a batch ends.
//! * Purging removes later, in small batches; the marker is durable first, and records under it that
//!   a crash left behind are removed at the next start.
//! * A log that does not reach as far as it once did is refused (`sled_head`): sled cuts a damaged log and goes on.
//! * When sled's file has outgrown its quota, what is live moves into a fresh directory, between two groups
//!   of operations (`sled_generations`). How the files are made and opened: `sled_files`.
//!
//! The writer thread, its groups and its poison are those of every store (`group_commit`).

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, RecvTimeoutError, TryRecvError},
    },
    time::Duration,
};

use common::ids::LogIndex;
use sled::{Batch, Db, Tree};

use super::{
    Done, LogOp, LogRecord, LogStore, Recovered, StoreError,
    group_commit::{Fsync, GroupCommit, Poison, Queued, acknowledge, take_group},
    identity::Marker,
    sled_entries::{
        self as entries, COMMITTED_KEY, PURGED_KEY, VOTE_KEY, parse_purged, purged_value, seal, sled_error, unseal,
    },
    sled_files::{self as files, HEAD_TREE, RAFT_TREE, fsync_error, io_error},
    sled_generations::{self as generations, GivenUp, MoveStep},
    sled_head::{HEAD_KEY, Head, ReachedMark, check_reached},
};

/// How long the log must be quiet before `REACHED` is flushed.
const QUIET: Duration = Duration::from_secs(1);

/// Size of sled's file above which the log moves, unless told otherwise.
pub const FILE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
/// A file this many times as long as what is live is worth leaving.
const FILE_TO_LIVE: u64 = 4;

/// Settings of sled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SledOptions {
    /// Memory for pages.
    pub cache_bytes: u64,
    /// Above this size of sled's file, and above four times what is live, the log moves into a fresh file.
    pub file_bytes_max: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 16 * 1024 * 1024,
            file_bytes_max: FILE_BYTES_DEFAULT,
        }
    }
}

/// A [`LogStore`] on sled. Dropping it finishes what is queued and closes the files.
pub struct DurableSled {
    recovered: Recovered,
    commit: GroupCommit,
    /// What is read; the writer replaces it when the log moves. `None` once closed.
    tree: Arc<RwLock<Option<Tree>>>,
}

impl DurableSled {
    /// Opens or creates the log in `dir`. `marker` is made durable before the first acknowledgement.
    ///
    /// # Errors
    /// [`StoreError::Io`], or [`StoreError::Corrupt`] with nothing deleted: keep the directory and
    /// join again with an empty one under a new Raft id.
    pub fn open(dir: &Path, options: SledOptions, marker: Marker) -> Result<Self, StoreError> {
        Self::open_with(dir, options, marker, Box::new(File::sync_data), Box::new(|_| ()))
    }

    pub(super) fn open_with(
        dir: &Path,
        options: SledOptions,
        marker: Marker,
        mut fsync: Fsync,
        on_move: OnMove,
    ) -> Result<Self, StoreError> {
        let root = dir;
        let (generation, place) = generations::active(root)?;
        let dir = place.as_path();
        if !dir.join("db").exists() {
            files::create(dir, options)?;
        }
        generations::remove_others(root, &generation)?;
        let (mark, known) = ReachedMark::open(root)?;
        let db = files::open(dir, options, &mut fsync)?;
        let files = Files::of(dir, db, &mut fsync)?;
        let recovered = recover(&files.tree)?;
        let found = files.head.get(HEAD_KEY).map_err(sled_error)?;
        let head = found.map(|sealed| Head::decode(&sealed)).transpose()?;
        check_reached(head.as_ref(), known)?;
        head.map_or(Ok(()), |head| head.check(&recovered))?;
        let poison = Arc::new(Poison::default());
        let shared = Arc::new(RwLock::new(Some(files.tree.clone())));
        let is_old = files::segment_bytes(dir) < entries::SEGMENT_BYTES;
        let writer = Writer {
            files,
            keys_unsynced: 0,
            head: head.unwrap_or_else(|| Head::of(&recovered)),
            mark,
            root: root.to_path_buf(),
            generation,
            options,
            shared: shared.clone(),
            is_old,
            move_above: if is_old { 0 } else { options.file_bytes_max },
            on_move,
            fsync,
            marker: Some(marker),
            purge_upto: recovered.purged.as_ref().map(|(upto, _)| *upto),
            poison: poison.clone(),
        };
        let started = GroupCommit::start(poison, move |waiting| writer.run(waiting));
        Ok(Self {
            recovered,
            commit: started.map_err(|error| io_error(dir, &error))?,
            tree: shared,
        })
    }

    /// Finishes what is queued and gives the files free, though others still hold this store: every
    /// later operation fails. Waits for the disk.
    pub fn close(&self) {
        self.commit.close();
        // After the writer, which may have replaced it.
        *self.tree.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The first failure, if there was one. The process must stop.
    #[must_use]
    pub fn failure(&self) -> Option<StoreError> {
        self.commit.failure()
    }

    /// Resolves at the first failure. The process must stop.
    pub async fn failed(&self) -> StoreError {
        self.commit.failed().await
    }
}

impl Drop for DurableSled {
    fn drop(&mut self) {
        self.close();
    }
}

impl LogStore for DurableSled {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        self.failure().map_or_else(|| Ok(self.recovered.clone()), Err)
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        let tree = self.tree.read().unwrap_or_else(PoisonError::into_inner);
        entries::read(tree.as_ref().ok_or(StoreError::Closed)?, from, to, bytes_max)
    }

    fn submit(&self, op: LogOp, done: Done) {
        self.commit.submit(op, done);
    }
}

/// The generation in force.
struct Files {
    tree: Tree,
    head: Tree,
    db: Db,
    file: File,
    /// That file, for messages.
    path: PathBuf,
    /// Where sled puts what is too large for its log.
    blobs: PathBuf,
}

impl Files {
    /// Of the database in `dir`, all of it durable.
    fn of(dir: &Path, db: Db, fsync: &mut Fsync) -> Result<Self, StoreError> {
        let tree = db.open_tree(RAFT_TREE).map_err(sled_error)?;
        let head = db.open_tree(HEAD_TREE).map_err(sled_error)?;
        let file = files::sync_everything(dir, &db, fsync)?;
        Ok(Self {
            tree,
            head,
            db,
            file,
            path: dir.join("db"),
            blobs: dir.join("blobs"),
        })
    }
}

/// Called at each step of a move. Replaced in tests by one that looks at the disk.
pub(super) type OnMove = Box<dyn FnMut(MoveStep) + Send>;

struct Writer {
    files: Files,
    /// Keys put or removed since the last flush.
    keys_unsynced: usize,
    head: Head,
    mark: ReachedMark,
    /// Directory of all generations, and the name of the one in force.
    root: PathBuf,
    generation: String,
    options: SledOptions,
    shared: Arc<RwLock<Option<Tree>>>,
    /// It has the short segments of an older version.
    is_old: bool,
    /// The file is looked at when it is longer than this.
    move_above: u64,
    on_move: OnMove,
    fsync: Fsync,
    marker: Option<Marker>,
    /// Records at or below are still to be removed.
    purge_upto: Option<LogIndex>,
    poison: Arc<Poison>,
}

/// What the writer does next.
enum Next {
    Write(Queued),
    Purge,
    SyncMark,
    Stop,
}

impl Writer {
    fn next(&self, waiting: &Receiver<Queued>) -> Next {
        if self.purge_upto.is_some() {
            match waiting.try_recv() {
                Ok(first) => Next::Write(first),
                Err(TryRecvError::Empty) => Next::Purge,
                Err(TryRecvError::Disconnected) => Next::Stop,
            }
        } else if self.mark.is_unsynced() && self.poison.cause().is_none() {
            match waiting.recv_timeout(QUIET) {
                Ok(first) => Next::Write(first),
                Err(RecvTimeoutError::Timeout) => Next::SyncMark,
                Err(RecvTimeoutError::Disconnected) => Next::Stop,
            }
        } else {
            waiting.recv().map_or(Next::Stop, Next::Write)
        }
    }

    fn run(mut self, waiting: &Receiver<Queued>) {
        loop {
            match self.next(waiting) {
                Next::Write(first) => self.write_group(first, waiting),
                Next::Purge => self.purge_step(),
                Next::SyncMark => drop(self.guarded(|writer| writer.mark.sync())),
                Next::Stop => break,
            }
        }
        let _ = self.guarded(|writer| writer.mark.sync());
    }

    fn write_group(&mut self, first: Queued, waiting: &Receiver<Queued>) {
        let (ops, acks) = take_group(first, waiting);
        let records_put: usize = ops.iter().map(LogOp::records_put).sum();
        let outcome = self.guarded(|writer| writer.write(&ops));
        acknowledge(&self.poison, acks, &outcome);
        if self.purge_upto.is_some() {
            // Twice what came in: however busy the log is, what is to be purged becomes less.
            for _ in 0..=2 * records_put / entries::REMOVALS_PER_STEP {
                self.purge_step();
            }
        } else {
            // As with a removal, its failure shows in the poison.
            let _ = self.guarded(Self::move_if_outgrown);
        }
    }

    /// Nobody waits for a removal: its failure shows in the poison and in the next operation.
    fn purge_step(&mut self) {
        let _ = self.guarded(Self::purge_some);
    }

    /// Runs one step; an error or panic in it poisons the store for good.
    fn guarded(&mut self, step: impl FnOnce(&mut Self) -> Result<(), StoreError>) -> Result<(), StoreError> {
        let (poison, path) = (self.poison.clone(), self.files.path.clone());
        let outcome = poison.guard(&path, || step(self));
        if outcome.is_err() {
            self.purge_upto = None;
        }
        outcome
    }

    /// Moves the log into a fresh directory if its file has outgrown quota and contents.
    fn move_if_outgrown(&mut self) -> Result<(), StoreError> {
        let found = self.files.file.metadata();
        let bytes_len = found.map_err(|error| io_error(&self.files.path, &error))?.len();
        if bytes_len <= self.move_above {
            return Ok(());
        }
        let live = generations::live_bytes(&self.files.tree)?;
        // Whatever comes of it, the next look is due when it would be worth it again.
        self.move_above = self
            .options
            .file_bytes_max
            .max(FILE_TO_LIVE * live)
            .max(bytes_len / 4 * 5);
        if bytes_len <= FILE_TO_LIVE * live && !self.is_old {
            return Ok(());
        }
        let (name, dir) = generations::next(&self.root, &self.generation);
        match self.copy_and_name(&name, &dir) {
            Ok(files) => self.move_to(name, files, live),
            Err(GivenUp::Moving(error)) => {
                tracing::warn!(%error, "the log stays in a file that has outgrown its quota");
                generations::remove_others(&self.root, &self.generation)
            }
            Err(GivenUp::Everything(error)) => Err(error),
        }
    }

    /// A whole and durable copy of the log in `dir`, in force from now on.
    fn copy_and_name(&mut self, name: &str, dir: &Path) -> Result<Files, GivenUp> {
        generations::make_empty(dir)?;
        let db = files::open_sled(dir, self.options).map_err(GivenUp::Moving)?;
        let tree = db.open_tree(RAFT_TREE).map_err(GivenUp::of_sled)?;
        let head = db.open_tree(HEAD_TREE).map_err(GivenUp::of_sled)?;
        (self.on_move)(MoveStep::Begun);
        let on_move = &mut self.on_move;
        generations::export(&self.files.tree, &tree, || on_move(MoveStep::Exporting))?;
        generations::export(&self.files.head, &head, || ())?;
        db.flush().map_err(GivenUp::of_sled)?;
        files::check_no_blobs(&dir.join("blobs")).map_err(GivenUp::Moving)?;
        let files = Files::of(dir, db, &mut self.fsync).map_err(GivenUp::Everything)?;
        (self.on_move)(MoveStep::Exported);
        generations::put_in_force(&self.root, name)?;
        (self.on_move)(MoveStep::Named);
        Ok(files)
    }

    fn move_to(&mut self, name: String, files: Files, live: u64) -> Result<(), StoreError> {
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = Some(files.tree.clone());
        drop(std::mem::replace(&mut self.files, files));
        self.keys_unsynced = 0;
        self.is_old = false;
        self.move_above = self.options.file_bytes_max.max(FILE_TO_LIVE * live);
        tracing::info!(generation = name, live_bytes = live, "the log moved into a fresh file");
        self.generation = name;
        generations::remove_others(&self.root, &self.generation)?;
        (self.on_move)(MoveStep::Removed);
        Ok(())
    }

    fn write(&mut self, ops: &[LogOp]) -> Result<(), StoreError> {
        let mut must_flush = false;
        let mut hint = None;
        for op in ops {
            must_flush |= !matches!(op, LogOp::Committed(_));
            if self.head.lower(op) {
                self.put_head()?;
            }
            match op {
                LogOp::Vote(bytes) => self.put(VOTE_KEY, seal(bytes))?,
                // A newer one in the same group says all that an older one does.
                LogOp::Committed(bytes) => hint = Some(bytes),
                LogOp::Append(records) => records.iter().try_for_each(|record| self.append(record))?,
                LogOp::Truncate { from } => self.truncate(*from)?,
                LogOp::Purge { upto, marker } => {
                    self.put(PURGED_KEY, purged_value(*upto, marker))?;
                    self.purge_upto = Some(*upto);
                }
            }
            self.head.raise(op);
        }
        if let Some(bytes) = hint {
            self.put(COMMITTED_KEY, seal(bytes))?;
        }
        if !must_flush {
            return Ok(());
        }
        self.head.group += 1;
        self.put_head()?;
        self.flush()?;
        self.mark.write(self.head.group)?;
        self.marker.take().map_or(Ok(()), |marker| marker.set())
    }

    /// Flushes first if `keys` more would be too many to lose in parts.
    fn make_room(&mut self, keys: usize) -> Result<(), StoreError> {
        assert!(keys <= entries::KEYS_PER_FLUSH_MAX, "{keys} keys in one step");
        if self.keys_unsynced + keys > entries::KEYS_PER_FLUSH_MAX {
            self.flush()?;
        }
        self.keys_unsynced += keys;
        Ok(())
    }

    fn append(&mut self, record: &LogRecord) -> Result<(), StoreError> {
        entries::check_length(record)?;
        self.make_room(entries::pieces(record))?;
        entries::put(&self.files.tree, record)
    }

    fn put_head(&mut self) -> Result<(), StoreError> {
        self.make_room(1)?;
        let put = self.files.head.insert(HEAD_KEY, self.head.encode());
        put.map(drop).map_err(sled_error)
    }

    fn put(&mut self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.make_room(1)?;
        self.files.tree.insert(key, value).map(drop).map_err(sled_error)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.files.db.flush().map_err(sled_error)?;
        (self.fsync)(&self.files.file).map_err(|error| fsync_error(&self.files.path, &error))?;
        self.keys_unsynced = 0;
        files::check_no_blobs(&self.files.blobs)
    }

    /// From the end backwards: a crash in between leaves a shorter truncation, never a gap.
    fn truncate(&mut self, from: LogIndex) -> Result<(), StoreError> {
        loop {
            let keys = entries::newest_keys(&self.files.tree, from)?;
            if keys.is_empty() {
                return Ok(());
            }
            self.remove(keys)?;
        }
    }

    fn purge_some(&mut self) -> Result<(), StoreError> {
        let Some(upto) = self.purge_upto else { return Ok(()) };
        let keys = entries::oldest_keys(&self.files.tree, upto)?;
        if keys.is_empty() {
            self.purge_upto = None;
            return Ok(());
        }
        self.remove(keys)
    }

    fn remove(&mut self, keys: Vec<sled::IVec>) -> Result<(), StoreError> {
        assert!(
            keys.len() <= entries::REMOVALS_PER_BATCH_MAX,
            "{} removals in one batch",
            keys.len()
        );
        self.make_room(keys.len())?;
        let mut batch = Batch::default();
        keys.into_iter().for_each(|key| batch.remove(key));
        self.files.tree.apply_batch(batch).map_err(sled_error)
    }
}

fn recover(tree: &Tree) -> Result<Recovered, StoreError> {
    let get = |key: &[u8]| tree.get(key).map_err(sled_error);
    let vote = get(VOTE_KEY)?.map(|sealed| unseal("vote", &sealed)).transpose()?;
    let committed = get(COMMITTED_KEY)?
        .map(|sealed| unseal("committed hint", &sealed))
        .transpose()?;
    let purged = get(PURGED_KEY)?.map(|sealed| parse_purged(&sealed)).transpose()?;
    let records = entries::verify(tree, purged.as_ref().map(|(upto, _)| *upto))?;
    Ok(Recovered {
        vote,
        committed,
        purged,
        records,
    })
}

#[cfg(test)]
#[path = "durable_sled_tests.rs"]
mod tests;
