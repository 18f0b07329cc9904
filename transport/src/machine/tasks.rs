//! Tasks on tokio.

use std::panic::AssertUnwindSafe;

use futures::FutureExt as _;
use tokio::runtime::Handle;

use crate::ports::{BoxFuture, Spawner};

/// Exit code of a process that found a bug of its own (`EX_SOFTWARE` of sysexits.h).
pub const EXIT_INTERNAL_ERROR: i32 = 70;

/// What happens when a task panics, which is always a bug of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnPanic {
    /// The process ends with code 70: half a process must not go on voting. For the binaries.
    StopProcess,
    /// The task ends and the rest goes on. For tests.
    Log,
}

/// Spawns on a tokio runtime.
#[derive(Clone, Debug)]
pub struct TokioSpawner {
    runtime: Handle,
    on_panic: OnPanic,
}

impl TokioSpawner {
    /// Spawns on `runtime` (`Handle::current()` inside of one).
    #[must_use]
    pub fn new(runtime: Handle, on_panic: OnPanic) -> Self {
        Self { runtime, on_panic }
    }
}

impl Spawner for TokioSpawner {
    fn spawn(&self, name: &'static str, task: BoxFuture<()>) {
        let on_panic = self.on_panic;
        self.runtime.spawn(async move {
            if AssertUnwindSafe(task).catch_unwind().await.is_ok() {
                return;
            }
            tracing::error!(task = name, "a task panicked: this is a bug");
            if on_panic == OnPanic::StopProcess {
                std::process::exit(EXIT_INTERNAL_ERROR);
            }
        });
    }
}
