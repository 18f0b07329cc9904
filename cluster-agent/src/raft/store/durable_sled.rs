//! The production log store: sled, made durable.
//!
//! # Rules
//! * Durable means: sled's flush, then `fdatasync` on a descriptor of our own for sled's file. sled's
//!   flush alone does not reach the device (measured: acknowledged writes lost at a power cut).
//! * A crash before a group's flush leaves a prefix of the group, in whole records.
//! * Values are so small that sled never writes a leaf into a file of its own, which it would not
//!   flush (`sled_entries`). Should one appear, the store is poisoned.
//! * At most 64 removals per batch: sled keeps each touched leaf until a batch ends.
//! * Purging removes later, in small batches; the marker is durable first, and records under it that
//!   a crash left behind are removed at the next start.
//! * When sled's file has outgrown its quota, what is live moves into a fresh directory, between two groups
//!   of operations (`sled_generations`).
//! * A log is made beside its place and moved there once it is whole: sled does not sync its settings, and
//!   does not open what a power cut in the middle of its first start leaves.
//! * Before opening, `snap.*.generating` is deleted: a crash while sled opened leaves it, and sled
//!   takes it for its newest index and fails for ever. If sled reports corruption its index files are
//!   set aside and the log is replayed from the start, once.
//!
//! The writer thread, its groups and its poison are those of every store (`group_commit`).

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{
        Arc, PoisonError, RwLock,
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use common::ids::LogIndex;
use sled::{Batch, Db, Tree};
use transport::machine::disk_error;

use super::{
    Done, LogOp, LogRecord, LogStore, Recovered, StoreError,
    group_commit::{Fsync, GroupCommit, Poison, Queued, take_group},
    identity::Marker,
    sled_entries::{
        self as entries, COMMITTED_KEY, PURGED_KEY, VOTE_KEY, parse_purged, purged_value, seal, sled_error, unseal,
    },
    sled_generations::{self as generations, MoveStep},
    snapshot::sync_dir,
};

/// How often and how long apart a locked database is tried: two seconds in all.
const LOCK_TRIES: u32 = 2_000;
const LOCK_PAUSE: Duration = Duration::from_millis(1);

/// Size of sled's file above which the log moves, unless told otherwise.
pub const FILE_BYTES_DEFAULT: u64 = 256 * 1024 * 1024;
/// A file this many times as long as what is live is worth leaving.
const FILE_TO_LIVE: u64 = 4;

/// Settings of sled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SledOptions {
    /// Memory for pages.
    pub cache_bytes: u64,
    /// How often sled's own thread flushes and collects garbage; `None` only in tests.
    pub flush_every_ms: Option<u64>,
    /// Above this size of sled's file, and above four times what is live, the log moves into a fresh file.
    pub file_bytes_max: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self {
            cache_bytes: 16 * 1024 * 1024,
            flush_every_ms: Some(500),
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
            create(dir, options)?;
        }
        generations::remove_others(root, &generation)?;
        remove_unfinished_indexes(dir)?;
        let db = match open_unlocked(dir, options) {
            Err(StoreError::Corrupt(why)) => {
                tracing::warn!(
                    why,
                    "sled reports corruption: its index is set aside and the log replayed"
                );
                set_indexes_aside(dir)?;
                open_unlocked(dir, options)?
            }
            other => other?,
        };
        let file = sync_everything(dir, &db, &mut fsync)?;
        let tree = db.open_tree("raft").map_err(sled_error)?;
        let recovered = recover(&tree)?;
        let poison = Arc::new(Poison::default());
        let shared = Arc::new(RwLock::new(Some(tree.clone())));
        let writer = Writer {
            files: Files {
                db,
                tree,
                file,
                path: dir.join("db"),
                blobs: dir.join("blobs"),
            },
            root: root.to_path_buf(),
            generation,
            options,
            shared: shared.clone(),
            move_above: options.file_bytes_max,
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
    db: Db,
    file: File,
    /// That file, for messages.
    path: PathBuf,
    /// Where sled puts what is too large for its log.
    blobs: PathBuf,
}

/// Called at each step of a move. Replaced in tests by one that looks at the disk.
pub(super) type OnMove = Box<dyn FnMut(MoveStep) + Send>;

struct Writer {
    files: Files,
    /// Directory of all generations, and the name of the one in force.
    root: PathBuf,
    generation: String,
    options: SledOptions,
    shared: Arc<RwLock<Option<Tree>>>,
    /// The file is looked at when it is longer than this.
    move_above: u64,
    on_move: OnMove,
    fsync: Fsync,
    marker: Option<Marker>,
    /// Records at or below are still to be removed.
    purge_upto: Option<LogIndex>,
    poison: Arc<Poison>,
}

impl Writer {
    fn run(mut self, waiting: &Receiver<Queued>) {
        loop {
            let first = match self.purge_upto {
                None => waiting.recv().ok(),
                Some(_) => match waiting.try_recv() {
                    Ok(first) => Some(first),
                    Err(TryRecvError::Disconnected) => None,
                    Err(TryRecvError::Empty) => {
                        self.purge_step();
                        continue;
                    }
                },
            };
            let Some(first) = first else { return };
            let (ops, acks) = take_group(first, waiting);
            let records_put: usize = ops.iter().map(LogOp::records_put).sum();
            let outcome = self.guarded(|writer| writer.write(ops));
            acks.into_iter().for_each(|ack| ack(outcome.clone()));
            if self.purge_upto.is_some() {
                // Twice what came in: however busy the log is, what is to be purged becomes less.
                for _ in 0..=2 * records_put / entries::REMOVALS_PER_BATCH_MAX {
                    self.purge_step();
                }
            } else {
                // As with a removal, its failure shows in the poison.
                let _ = self.guarded(Self::move_if_outgrown);
            }
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
        if bytes_len <= FILE_TO_LIVE * live {
            return Ok(());
        }
        let (name, dir) = generations::next(&self.root, &self.generation);
        match self.copy_into(&dir) {
            Ok(files) => self.move_to(name, files, live),
            Err(error) => {
                tracing::warn!(%error, "the log stays in a file that has outgrown its quota");
                fs::remove_dir_all(&dir).map_err(|error| io_error(&dir, &error))
            }
        }
    }

    /// A whole and durable copy of the log in `dir`.
    fn copy_into(&mut self, dir: &Path) -> Result<Files, StoreError> {
        if dir.exists() {
            fs::remove_dir_all(dir).map_err(|error| io_error(dir, &error))?;
        }
        fs::create_dir_all(dir).map_err(|error| io_error(dir, &error))?;
        let db = open_sled(dir, self.options)?;
        let tree = db.open_tree("raft").map_err(sled_error)?;
        (self.on_move)(MoveStep::Begun);
        let on_move = &mut self.on_move;
        generations::export(&self.files.tree, &tree, || on_move(MoveStep::Exporting))?;
        let file = sync_everything(dir, &db, &mut self.fsync)?;
        let blobs = dir.join("blobs");
        check_no_blobs(&blobs)?;
        (self.on_move)(MoveStep::Exported);
        Ok(Files {
            tree,
            db,
            file,
            path: dir.join("db"),
            blobs,
        })
    }

    fn move_to(&mut self, name: String, files: Files, live: u64) -> Result<(), StoreError> {
        generations::put_in_force(&self.root, &name)?;
        (self.on_move)(MoveStep::Named);
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = Some(files.tree.clone());
        drop(std::mem::replace(&mut self.files, files));
        self.move_above = self.options.file_bytes_max.max(FILE_TO_LIVE * live);
        tracing::info!(generation = name, live_bytes = live, "the log moved into a fresh file");
        self.generation = name;
        generations::remove_others(&self.root, &self.generation)?;
        (self.on_move)(MoveStep::Removed);
        Ok(())
    }

    fn write(&mut self, ops: Vec<LogOp>) -> Result<(), StoreError> {
        let mut must_flush = false;
        let mut hint = None;
        for op in ops {
            must_flush |= !matches!(op, LogOp::Committed(_));
            match op {
                LogOp::Vote(bytes) => self.put(VOTE_KEY, seal(&bytes))?,
                // A newer one in the same group says all that an older one does.
                LogOp::Committed(bytes) => hint = Some(bytes),
                LogOp::Append(records) => {
                    records
                        .iter()
                        .try_for_each(|record| entries::put(&self.files.tree, record))?;
                }
                LogOp::Truncate { from } => self.truncate(from)?,
                LogOp::Purge { upto, marker } => {
                    self.put(PURGED_KEY, purged_value(upto, &marker))?;
                    self.purge_upto = Some(upto);
                }
            }
        }
        if let Some(bytes) = hint {
            self.put(COMMITTED_KEY, seal(&bytes))?;
        }
        if must_flush { self.flush() } else { Ok(()) }
    }

    fn put(&self, key: &[u8], value: Vec<u8>) -> Result<(), StoreError> {
        self.files.tree.insert(key, value).map(drop).map_err(sled_error)
    }

    fn apply(&self, batch: Batch) -> Result<(), StoreError> {
        self.files.tree.apply_batch(batch).map_err(sled_error)
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        self.files.db.flush().map_err(sled_error)?;
        (self.fsync)(&self.files.file)
            .map_err(|error| StoreError::Io(disk_error("fsync", &self.files.path, &error).to_string()))?;
        check_no_blobs(&self.files.blobs)?;
        if let Some(marker) = self.marker.take() {
            marker.set()?;
        }
        Ok(())
    }

    /// From the end backwards: a crash in between leaves a shorter truncation, never a gap.
    fn truncate(&self, from: LogIndex) -> Result<(), StoreError> {
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

    fn remove(&self, keys: Vec<sled::IVec>) -> Result<(), StoreError> {
        assert!(
            keys.len() <= entries::REMOVALS_PER_BATCH_MAX,
            "{} removals in one batch",
            keys.len()
        );
        let mut batch = Batch::default();
        keys.into_iter().for_each(|key| batch.remove(key));
        self.apply(batch)
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

/// Makes an empty log: complete and durable before it has its name. sled itself syncs neither its settings
/// nor its directory, and does not open a directory whose settings a power cut has damaged.
fn create(dir: &Path, options: SledOptions) -> Result<(), StoreError> {
    let has_content = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    if has_content {
        // Something else lies there: sled adds its files to it, or says why not.
        return Ok(());
    }
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let beside = dir.with_file_name(name);
    if beside.exists() {
        fs::remove_dir_all(&beside).map_err(|error| io_error(&beside, &error))?;
    }
    fs::create_dir_all(&beside).map_err(|error| io_error(&beside, &error))?;
    let db = open_sled(&beside, options)?;
    db.open_tree("raft").map_err(sled_error)?;
    sync_everything(&beside, &db, &mut (Box::new(File::sync_data) as Fsync))?;
    drop(db);
    fs::rename(&beside, dir).map_err(|error| io_error(dir, &error))?;
    dir.parent().map_or(Ok(()), sync_dir)
}

/// sled's threads keep its lock for a moment after it was closed, as does a process that is ending.
fn open_unlocked(dir: &Path, options: SledOptions) -> Result<Db, StoreError> {
    let mut tries_left = LOCK_TRIES;
    loop {
        match open_sled(dir, options) {
            Err(StoreError::Io(why)) if tries_left > 0 && why.contains("could not acquire lock") => {
                tries_left -= 1;
                std::thread::sleep(LOCK_PAUSE);
            }
            other => return other,
        }
    }
}

/// sled 0.34 panics on some damage, so a panic is an answer here.
fn open_sled(dir: &Path, options: SledOptions) -> Result<Db, StoreError> {
    let config = sled::Config::new()
        .path(dir)
        .cache_capacity(options.cache_bytes)
        .flush_every_ms(options.flush_every_ms)
        .segment_size(entries::SEGMENT_BYTES)
        .use_compression(false)
        .print_profile_on_drop(false);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(opened) => opened.map_err(sled_error),
        Err(_) => Err(StoreError::Corrupt("sled panicked while it opened the log".into())),
    }
}

/// Makes what opening wrote durable, and returns our own descriptor of sled's file.
fn sync_everything(dir: &Path, db: &Db, fsync: &mut Fsync) -> Result<File, StoreError> {
    let path = dir.join("db");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .map_err(|error| io_error(&path, &error))?;
    db.flush().map_err(sled_error)?;
    fsync(&file).map_err(|error| StoreError::Io(disk_error("fsync", &path, &error).to_string()))?;
    for path in [dir.join("conf")].into_iter().chain(index_files(dir)?) {
        // sled may remove an index at any time.
        match File::open(&path).and_then(|file| file.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(&path, &error)),
            _ => {}
        }
    }
    sync_dir(&dir.join("blobs"))?;
    sync_dir(dir)?;
    dir.parent().map_or(Ok(()), sync_dir)?;
    Ok(file)
}

/// An acknowledgement would promise more than such a file keeps.
fn check_no_blobs(blobs: &Path) -> Result<(), StoreError> {
    let first = fs::read_dir(blobs).map_err(|error| io_error(blobs, &error))?.next();
    match first {
        None => Ok(()),
        Some(found) => {
            let path = found.map_err(|error| io_error(blobs, &error))?.path();
            Err(StoreError::Io(format!(
                "{}: sled moved a leaf into a file that it does not flush",
                path.display()
            )))
        }
    }
}

fn index_files(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(|error| io_error(dir, &error))? {
        let path = entry.map_err(|error| io_error(dir, &error))?.path();
        if path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("snap."))
        {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn remove_unfinished_indexes(dir: &Path) -> Result<(), StoreError> {
    for path in index_files(dir)? {
        if path.extension().is_some_and(|extension| extension == "generating") {
            tracing::warn!(path = %path.display(), "removing an index that sled did not finish");
            fs::remove_file(&path).map_err(|error| io_error(&path, &error))?;
        }
    }
    sync_dir(dir)
}

fn set_indexes_aside(dir: &Path) -> Result<(), StoreError> {
    let aside = dir.join("aside");
    fs::create_dir_all(&aside).map_err(|error| io_error(&aside, &error))?;
    for path in index_files(dir)? {
        let name = path.file_name().expect("index files have names");
        fs::rename(&path, aside.join(name)).map_err(|error| io_error(&path, &error))?;
    }
    sync_dir(&aside)?;
    sync_dir(dir)
}

fn io_error(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(disk_error("use", path, error).to_string())
}

#[cfg(test)]
#[path = "durable_sled_tests.rs"]
mod tests;
