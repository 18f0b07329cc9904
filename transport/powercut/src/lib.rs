//! A disk for tests: it loses what was not synced, it is full, or its fsync fails, when the test says so.
//!
//! In: a test that runs itself again as a worker, or one of our programs. Out: the data directory as it
//! would be after a power cut. Called by: tests only.
//!
//! ```text
//!   test                                       worker (same test, or a program) under the shim
//!   Machine::run  --- starts, seed ------------> writes, syncs, says "done n" after the acknowledgement
//!   Life::kill    --- at a random moment ------X
//!   Machine::cut  --- builds the directory from what the shim saw synced
//!   opens the store on it and compares with everything that was said
//! ```
//!
//! # Rules
//! * [`Cut::Drop`]: exactly what was synced is there. [`Cut::Mix`]: of what was not synced, pages, sizes and names
//!   survive at random, from a seed.
//! * Names are what an fsync of their directory made them, bytes what an fsync of their file did.
//! * A worker that was killed without a power cut goes on where it was: the page cache is still there,
//!   and still not durable.
//!
//! # Why a shim
//! The stores run unchanged, with the library calls that they make in production. It is in C because it stands
//! between them and the C library; `cc` builds it when a test begins. What it does is in `shim.c`.

#![forbid(unsafe_code)]
// Tests run in real time.
#![allow(clippy::disallowed_methods)]

mod rng;
mod survive;
mod worker;

use std::{
    fs,
    hash::{Hash as _, Hasher as _},
    io,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

pub use rng::Rng;
pub use survive::Cut;
pub use worker::{Life, Report, worker};

/// Names the test that a worker runs, and carries what it needs to know.
const LIFE: &str = "POWERCUT_LIFE";

/// A machine whose disk can be cut off, with one data directory.
pub struct Machine {
    dir: tempfile::TempDir,
    faults: Faults,
}

/// A fault of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every write and every growth fails: no space is left. The first one is done in half.
    Full,
    /// The next sync fails, and what it covered never becomes durable; later ones succeed.
    SyncOnce,
    /// Nothing can be opened for writing, made, renamed or removed.
    ReadOnly,
}

/// Makes the disk of a process fail when the test wants it, in one directory and below.
pub struct Faults {
    /// Holds the file that the shim reads.
    dir: tempfile::TempDir,
    data: PathBuf,
}

impl Faults {
    /// For a process whose data directory is `data`. It need not exist yet.
    ///
    /// # Panics
    /// Without a place for temporary files.
    #[must_use]
    pub fn new(data: &Path) -> Self {
        let faults = Self {
            dir: tempfile::tempdir().expect("a directory for the faults"),
            data: data.to_path_buf(),
        };
        faults.mend();
        faults
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("fault")
    }

    /// Makes `command` run on this disk.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env("LD_PRELOAD", shim())
            .env("POWERCUT_DATA", &self.data)
            .env("POWERCUT_FAULT", self.path());
    }

    fn write(&self, line: &str) {
        let beside = self.dir.path().join("next");
        fs::write(&beside, line).expect("the fault");
        fs::rename(&beside, self.path()).expect("the fault");
    }

    /// From now on the disk fails like this where the path has `part` in it.
    ///
    /// # Panics
    /// If the file system fails.
    pub fn fail(&self, fault: Fault, part: &str) {
        const EIO: i32 = 5;
        const ENOSPC: i32 = 28;
        const EROFS: i32 = 30;
        self.write(&match fault {
            Fault::Full => format!("write {ENOSPC} ever {part}\n"),
            Fault::SyncOnce => format!("sync {EIO} once {part}\n"),
            Fault::ReadOnly => format!("open {EROFS} ever {part}\n"),
        });
    }

    /// From now on nothing fails.
    ///
    /// # Panics
    /// If the file system fails.
    pub fn mend(&self) {
        self.write("");
    }

    /// Whether a [`Fault::SyncOnce`] has struck.
    ///
    /// # Panics
    /// If the file system fails.
    #[must_use]
    pub fn has_struck(&self) -> bool {
        fs::read(self.path()).expect("the fault").is_empty()
    }
}

/// The first seed of a test: 1, or what `POWERCUT_SEED` says, to look further or to repeat a failure.
///
/// # Panics
/// If that is no number.
#[must_use]
pub fn first_seed() -> u64 {
    std::env::var("POWERCUT_SEED").map_or(1, |seed| seed.parse().expect("POWERCUT_SEED is a number"))
}

/// Builds the shim beside the test's own program, unless it is there already.
fn shim() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build_shim().unwrap_or_else(|error| panic!("the power-cut shim cannot be built: {error}")))
}

fn build_shim() -> io::Result<PathBuf> {
    if cfg!(not(target_os = "linux")) {
        return Err(io::Error::other(
            "it stands on LD_PRELOAD and /proc; these tests need Linux",
        ));
    }
    let source = include_str!("shim.c");
    let mut hasher = std::hash::DefaultHasher::new();
    source.hash(&mut hasher);
    let program = std::env::current_exe()?;
    let built = program.with_file_name(format!("powercut-{:016x}.so", hasher.finish()));
    if built.exists() {
        return Ok(built);
    }
    // Others may build it at the same time: each in a place of its own, then the last one stays.
    let dir = tempfile::tempdir_in(built.parent().unwrap_or(Path::new(".")))?;
    let (file, library) = (dir.path().join("shim.c"), dir.path().join("shim.so"));
    fs::write(&file, source)?;
    let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
    let outcome = Command::new(&compiler)
        .args([
            "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread", "-o",
        ])
        .args([&library, &file])
        .output()?;
    if !outcome.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&outcome.stderr)));
    }
    fs::rename(&library, &built)?;
    Ok(built)
}

impl Machine {
    /// A machine with an empty data directory.
    ///
    /// # Panics
    /// Without a place for it.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory for the machine");
        let machine = Self {
            faults: Faults::new(&dir.path().join("data")),
            dir,
        };
        fs::create_dir(machine.data()).expect("the data directory");
        machine.adopt();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The data directory.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// Starts the test `test` of this program again, as a worker: there [`worker`] is `Some`.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn run(&self, test: &str, life: &str) -> Life {
        let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
        let mut command = Command::new(std::env::current_exe().expect("the test's own program"));
        self.faults.prepare(&mut command);
        command.env("POWERCUT_SHADOW", self.path("shadow"));
        let said = fs::File::create(self.path("worker.log")).expect("a file for what the worker says");
        let child = command
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(LIFE, life)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(said.try_clone().expect("the same file"))
            .stderr(said)
            .spawn()
            .expect("the worker starts");
        drop(command);
        Life::new(child, ours, self.path("worker.log"))
    }

    /// Cuts the power: the data directory becomes what survived. Nothing may run on it.
    ///
    /// # Panics
    /// If the file system fails.
    pub fn cut(&self, cut: Cut) {
        let survived = self.path("survived");
        survive::build(&self.path("shadow"), &self.data(), &survived, cut).expect("what survived");
        fs::remove_dir_all(self.data()).expect("the data directory goes");
        fs::rename(&survived, self.data()).expect("what survived takes its place");
        self.adopt();
    }

    /// Takes everything in the data directory as durable: after a cut, and after the test itself wrote there.
    ///
    /// # Panics
    /// If the file system fails.
    pub fn adopt(&self) {
        let adopt = || -> io::Result<()> {
            let shadow = self.path("shadow");
            if shadow.exists() {
                fs::remove_dir_all(&shadow)?;
            }
            survive::adopt(&shadow, &self.data())
        };
        adopt().expect("the shadow of the data directory");
    }

    /// The faults of this machine's disk.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}
