//! Runs the `fleet` binary, and fleets of real processes, for tests.
#![allow(dead_code)]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Once,
    time::SystemTime,
};

use serde_json::Value;

/// The `fleet` binary under test.
pub const FLEET: &str = env!("CARGO_BIN_EXE_fleet");

/// Builds the programs beside `fleet` unless they are newer than every source: cargo builds another
/// package's programs only when asked, and a build of two packages alone chooses other features.
pub fn build_siblings() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let directory = Path::new(FLEET).parent().expect("a binary lies in a directory");
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let sources = [
            "common",
            "transport",
            "cluster-core",
            "cluster-agent",
            "global-core",
            "global-validator",
        ];
        let newest = sources.iter().map(|package| newest_under(&root.join(package))).max();
        let is_fresh = |name: &str| newest.is_some_and(|newest| modified(&directory.join(name)) >= newest);
        if is_fresh("cluster-agent") && is_fresh("global-validator") {
            return;
        }
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args([
            "build",
            "--quiet",
            "--bins",
            "-p",
            "cluster-agent",
            "-p",
            "global-validator",
        ]);
        // A profile's directory has its name, but for that of `dev`.
        let profile = directory.file_name().and_then(|name| name.to_str());
        let profile = profile.expect("a profile has a name");
        cargo.args(["--profile", if profile == "debug" { "dev" } else { profile }]);
        let target = directory.parent().expect("a profile lies in a target directory");
        let status = cargo
            .env("CARGO_TARGET_DIR", target)
            .current_dir(root)
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the programs beside fleet do not build");
    });
}

fn modified(path: &Path) -> SystemTime {
    std::fs::metadata(path)
        .and_then(|found| found.modified())
        .unwrap_or(SystemTime::UNIX_EPOCH)
}

/// When the newest file of a package's `src`, or its manifest, was changed.
fn newest_under(package: &Path) -> SystemTime {
    let mut newest = modified(&package.join("Cargo.toml"));
    let mut directories = vec![package.join("src")];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("a source directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                newest = newest.max(modified(&path));
            }
        }
    }
    newest
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    /// Exit code.
    pub code: i32,
    /// Its stdout.
    pub out: String,
    /// Its stderr.
    pub err: String,
}

impl Done {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// This, which must have ended with `code`.
    #[track_caller]
    pub fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Its stdout as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}{}", self.out, self.err))
    }
}

/// Runs `fleet` in the directory `home`.
pub fn fleet(home: &Path, arguments: &[&str]) -> Done {
    let output = Command::new(FLEET)
        .args(arguments)
        .current_dir(home)
        .stdin(Stdio::null())
        .output()
        .expect("fleet runs");
    Done::from(output)
}

/// A dev fleet of a test; its processes end with it.
pub struct DevFleet {
    /// Holds `.muster/dev`.
    pub home: tempfile::TempDir,
}

impl DevFleet {
    /// Makes and starts a fleet.
    #[track_caller]
    pub fn up(arguments: &[&str]) -> Self {
        build_siblings();
        let home = tempfile::Builder::new()
            .prefix("ft")
            .tempdir()
            .expect("a directory for the fleet");
        let fleet = Self { home };
        let up = ["dev", "up", "--deadline", "180s"];
        fleet.run(&[&up[..], arguments].concat()).ended_with(0);
        fleet
    }

    /// Runs `fleet` on this fleet.
    pub fn run(&self, arguments: &[&str]) -> Done {
        fleet(self.home.path(), arguments)
    }

    /// Runs `fleet -o json`, which must succeed.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.run(&[arguments, &["-o", "json"]].concat()).ended_with(0).json()
    }

    /// A path under the fleet's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(".muster/dev").join(name)
    }

    /// Processes of this fleet that run now.
    pub fn running(&self) -> Vec<String> {
        running_under(self.home.path())
    }
}

impl Drop for DevFleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for line in self.run(&["dev", "status"]).out.lines() {
                eprintln!("{line}");
            }
        }
        self.run(&["dev", "kill", "all"]);
    }
}

/// Command lines of agents and validators whose configuration lies under `home`.
pub fn running_under(home: &Path) -> Vec<String> {
    let home = home.to_str().expect("a test's path is UTF-8");
    let entries = std::fs::read_dir("/proc").expect("Linux").flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    lines
        .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
        .filter(|line| line.contains("--config") && line.contains(home))
        .collect()
}
