//! The other side of a test: its worker, and the line between them.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
    path::PathBuf,
    process::Child,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use crate::LIFE;

/// How long a worker may say nothing.
const PATIENCE: Duration = Duration::from_secs(60);

/// A worker that runs.
pub struct Life {
    child: Child,
    lines: BufReader<UnixStream>,
    log: PathBuf,
}

impl Life {
    pub(crate) fn new(child: Child, ours: UnixStream, log: PathBuf) -> Self {
        ours.set_read_timeout(Some(PATIENCE)).expect("sockets have timeouts");
        Self {
            child,
            lines: BufReader::new(ours),
            log,
        }
    }

    /// What the worker says next; `None` once it has ended.
    ///
    /// # Panics
    /// If it says nothing for a minute.
    pub fn next_line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            // A last line that is not whole was not said.
            Ok(_) if line.ends_with('\n') => Some(line.trim_end().to_owned()),
            Ok(_) => None,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("the worker says nothing ({error}): {}", self.log()),
        }
    }

    /// Says one line to the worker.
    ///
    /// # Panics
    /// If it is gone.
    pub fn tell(&mut self, line: &str) {
        let stream = self.lines.get_mut();
        stream
            .write_all(format!("{line}\n").as_bytes())
            .expect("the worker listens");
    }

    /// What the worker wrote to its error output.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// SIGKILL; returns what it had said until then.
    ///
    /// # Panics
    /// If it had ended by itself.
    pub fn kill(mut self) -> Vec<String> {
        if let Some(status) = self.child.try_wait().expect("our own child") {
            panic!("the worker ended by itself, {status}: {}", self.log());
        }
        self.child.kill().expect("our own child");
        self.child.wait().expect("our own child");
        std::iter::from_fn(|| self.next_line()).collect()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a worker says to its test. Each line is on its way when [`say`](Self::say) returns, and arrives
/// though the worker is killed right after.
#[derive(Clone)]
pub struct Report(Arc<Mutex<UnixStream>>);

impl Report {
    /// Says one line.
    ///
    /// # Panics
    /// If the test is gone.
    pub fn say(&self, line: impl std::fmt::Display) {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        stream
            .write_all(format!("{line}\n").as_bytes())
            .expect("the test listens");
    }

    /// What the test says next.
    ///
    /// # Panics
    /// If the test is gone.
    #[must_use]
    pub fn hear(&self) -> String {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            stream.read_exact(&mut byte).expect("the test speaks");
            if byte == *b"\n" {
                return String::from_utf8(line).expect("the test says text");
            }
            line.push(byte[0]);
        }
    }
}

/// In a worker: what [`Machine::run`](crate::Machine::run) gave it, and the way to answer. In the test: `None`.
///
/// # Panics
/// In a worker that was started by somebody else.
#[must_use]
pub fn worker() -> Option<(String, Report)> {
    let life = std::env::var(LIFE).ok()?;
    let stdin = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("the test gave us a socket");
    Some((life, Report(Arc::new(Mutex::new(UnixStream::from(stdin))))))
}
