//! Starts and ends the processes of a dev fleet, and knows which are its own.
//!
//! # Rules
//! * A process is ours only if pid and start time are those we recorded and its command line names
//!   our directory: a reused pid is never signalled.
//! * Siblings come from the directory of this binary and have its version.

use std::{
    ffi::OsString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::layout::{Layout, RELAY, is_validator};
use crate::{
    exit::{Exit, Failure, Outcome},
    files,
};

/// A process that was started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Started {
    /// Its name.
    pub name: String,
    /// Its pid.
    pub pid: i32,
    /// Clock ticks from boot to its start, which tell it from a later process of the same pid.
    pub start_ticks: u64,
}

/// Programs of a fleet.
#[derive(Clone, Debug)]
pub struct Siblings {
    agent: PathBuf,
    validator: PathBuf,
    fleet: PathBuf,
}

impl Siblings {
    /// The programs beside this one.
    ///
    /// # Errors
    /// [`Exit::RefusedForSafety`]: missing, or of another version.
    pub fn find() -> Outcome<Self> {
        let own = std::env::current_exe().map_err(Failure::io("cannot find this program"))?;
        let dir = own.parent().unwrap_or(Path::new("."));
        let siblings = Self {
            agent: dir.join("cluster-agent"),
            validator: dir.join("global-validator"),
            fleet: own.clone(),
        };
        for program in [&siblings.agent, &siblings.validator] {
            check_version(program, env!("CARGO_PKG_VERSION"))?;
        }
        Ok(siblings)
    }

    /// The command that runs `name`, without its configuration.
    fn command(&self, name: &str) -> Command {
        if name == RELAY {
            let mut command = Command::new(&self.fleet);
            command.args(["dev", "relay"]);
            return command;
        }
        Command::new(if is_validator(name) {
            &self.validator
        } else {
            &self.agent
        })
    }
}

fn check_version(program: &Path, want: &str) -> Outcome {
    let refused = |what: String| {
        Failure::new(Exit::RefusedForSafety, what)
            .means("a fleet of mixed versions is not what this build was tested with; nothing was started")
            .todo("build all programs together: cargo build --release")
    };
    let output = Command::new(program)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .map_err(|e| refused(format!("cannot run {}: {e}", program.display())))?;
    let text = String::from_utf8_lossy(&output.stdout);
    let got = text.split_whitespace().nth(1).unwrap_or("of unknown version");
    if !output.status.success() || got != want {
        return Err(refused(format!("{} is {got}, this is {want}", program.display())));
    }
    Ok(())
}

/// Starts `name` detached, its output appended to its log.
///
/// # Errors
/// Of the system.
pub fn start(siblings: &Siblings, layout: &Layout, name: &str) -> Outcome<(Started, Child)> {
    let log = fs::OpenOptions::new()
        .append(true)
        .create(true)
        .open(layout.log(name))
        .map_err(Failure::io(format!("cannot open the log of {name}")))?;
    let errors = log
        .try_clone()
        .map_err(Failure::io(format!("cannot open the log of {name}")))?;
    let child = siblings
        .command(name)
        .arg("--config")
        .arg(layout.config(name))
        .current_dir(layout.process(name))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        // A group of its own: Ctrl-C on the terminal ends this command, and this command decides what else.
        .process_group(0)
        .spawn()
        .map_err(Failure::io(format!("cannot start {name}")))?;
    let pid = child.id() as i32;
    let start_ticks = stat(pid).map_or(0, |stat| stat.start_ticks);
    let started = Started {
        name: name.to_owned(),
        pid,
        start_ticks,
    };
    Ok((started, child))
}

struct Stat {
    state: char,
    start_ticks: u64,
}

/// Fields 3 and 22 of `/proc/<pid>/stat` (proc(5)); the name in between may hold anything.
fn stat(pid: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
    Some(Stat {
        state: fields.first()?.chars().next()?,
        start_ticks: fields.get(19)?.parse().ok()?,
    })
}

/// Whether the process runs and is the one that was started.
#[must_use]
pub fn is_alive(layout: &Layout, started: &Started) -> bool {
    let Some(stat) = stat(started.pid) else {
        return false;
    };
    if matches!(stat.state, 'Z' | 'X') || stat.start_ticks != started.start_ticks {
        return false;
    }
    let Ok(command_line) = fs::read(format!("/proc/{}/cmdline", started.pid)) else {
        return false;
    };
    let config: OsString = layout.config(&started.name).into_os_string();
    let config = config.as_encoded_bytes();
    // Empty while the new program is being loaded: the pid and its start time are ours already.
    command_line.is_empty() || command_line.split(|byte| *byte == 0).any(|argument| argument == config)
}

/// Signals the process if it is ours and runs. Returns whether it did.
pub fn signal(layout: &Layout, started: &Started, signal: Signal) -> bool {
    let Some(pid) = Pid::from_raw(started.pid) else {
        return false;
    };
    is_alive(layout, started) && kill_process(pid, signal).is_ok()
}

/// Ends processes: asks, waits up to `grace`, then kills. Returns the names of those that ran.
pub async fn end(layout: &Layout, processes: &[Started], grace: Duration) -> Vec<String> {
    let ran: Vec<&Started> = processes.iter().filter(|p| is_alive(layout, p)).collect();
    for process in &ran {
        signal(layout, process, Signal::TERM);
    }
    wait_gone(layout, &ran, grace).await;
    for process in &ran {
        signal(layout, process, Signal::KILL);
    }
    wait_gone(layout, &ran, Duration::from_secs(5)).await;
    ran.into_iter().map(|p| p.name.clone()).collect()
}

/// Kills processes at once. Returns the names of those that ran.
pub async fn kill(layout: &Layout, processes: &[Started]) -> Vec<String> {
    end(layout, processes, Duration::ZERO).await
}

async fn wait_gone(layout: &Layout, processes: &[&Started], limit: Duration) {
    let end = tokio::time::Instant::now() + limit;
    while tokio::time::Instant::now() < end && processes.iter().any(|p| is_alive(layout, p)) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The last lines of a process's log.
#[must_use]
pub fn log_tail(layout: &Layout, name: &str, lines: usize) -> String {
    let bytes = fs::read(layout.log(name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(8 * 1024)..]).into_owned();
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// The recorded processes of a fleet.
///
/// # Errors
/// A damaged file.
pub fn load_state(layout: &Layout) -> Outcome<Vec<Started>> {
    let path = layout.state();
    if !path.exists() {
        return Ok(Vec::new());
    }
    let bytes = files::read_bounded(&path, 1024 * 1024)?;
    serde_json::from_slice(&bytes).map_err(|e| {
        Failure::new(Exit::RefusedForSafety, format!("{}: {e}", path.display()))
            .means("it is not known which processes run; nothing was changed")
            .todo("end the fleet's processes by hand, then remove the file")
    })
}

/// Records the processes of a fleet.
///
/// # Errors
/// Of the file system.
pub fn save_state(layout: &Layout, processes: &[Started]) -> Outcome {
    let text = serde_json::to_vec_pretty(processes).map_err(|e| Failure::new(Exit::Failed, e))?;
    files::replace(&layout.state(), &text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(layout: &Layout, name: &str) -> (Started, Child) {
        // `sleep` with the configuration's path as an argument it never reaches: sh keeps it in its command line.
        let child = Command::new("sh")
            .args(["-c", "sleep 60 & wait", "sh"])
            .arg(layout.config(name))
            .process_group(0)
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        // exec has happened when the command line is there.
        while fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().is_empty() {
            std::thread::yield_now();
        }
        let start_ticks = stat(pid).unwrap().start_ticks;
        let name = name.to_owned();
        (Started { name, pid, start_ticks }, child)
    }

    #[tokio::test]
    async fn only_a_process_that_was_started_here_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let (started, mut child) = sleeper(&layout, "v1");
        let other_start = Started {
            start_ticks: started.start_ticks + 1,
            ..started.clone()
        };
        let elsewhere = Layout::new(&dir.path().join("other"));
        assert!(is_alive(&layout, &started));
        assert!(!is_alive(&layout, &other_start) && !signal(&layout, &other_start, Signal::KILL));
        assert!(!is_alive(&elsewhere, &started) && !signal(&elsewhere, &started, Signal::KILL));
        assert!(
            child.try_wait().unwrap().is_none(),
            "a process that is not ours was killed"
        );

        assert_eq!(kill(&layout, std::slice::from_ref(&started)).await, ["v1"]);
        assert!(!is_alive(&layout, &started));
        child.wait().unwrap();
        assert!(kill(&layout, &[started]).await.is_empty());
    }

    #[test]
    fn program_of_another_version_is_refused() {
        let failure = check_version(Path::new("/nonexistent/cluster-agent"), "0.1.0").unwrap_err();
        assert_eq!(failure.exit, Exit::RefusedForSafety);
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("cluster-agent");
        fs::write(&program, "#!/bin/sh\necho cluster-agent 9.9.9\n").unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let failure = check_version(&program, "0.1.0").unwrap_err();
        assert!(failure.what.contains("9.9.9"), "{failure}");
        assert_eq!(check_version(&program, "9.9.9"), Ok(()));
    }
}
