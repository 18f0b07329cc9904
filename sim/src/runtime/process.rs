//! A simulated process: the tasks it started, and its own stream of random numbers.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
};

use transport::ports::{BoxFuture, Entropy, Spawner};

use crate::random::Stream;

/// Number of a process in a run; the same over its restarts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProcessId(pub u32);

tokio::task_local! {
    static CURRENT: Process;
}

/// Finished tasks are forgotten when this many were started since the last time.
const PRUNE_EVERY: usize = 64;

struct Tasks {
    handles: Vec<tokio::task::AbortHandle>,
    prune_at: usize,
    is_killed: bool,
}

struct Inner {
    id: ProcessId,
    random: Mutex<Stream>,
    tasks: Mutex<Tasks>,
}

/// One life of a process. Clones are the same life.
#[derive(Clone)]
pub struct Process(Arc<Inner>);

impl Process {
    /// A life of the process `id`. `seed` differs from life to life.
    #[must_use]
    pub fn new(id: ProcessId, seed: u64) -> Self {
        let tasks = Tasks {
            handles: Vec::new(),
            prune_at: PRUNE_EVERY,
            is_killed: false,
        };
        let random = Mutex::new(Stream::split(seed, u64::from(id.0)));
        Self(Arc::new(Inner {
            id,
            random,
            tasks: Mutex::new(tasks),
        }))
    }

    /// The process whose task runs now.
    ///
    /// # Panics
    /// Outside of any: something was spawned past the ports.
    #[must_use]
    pub fn current() -> Self {
        CURRENT
            .try_with(Clone::clone)
            .expect("a task was started past the simulator's ports")
    }

    /// Number of the process.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.0.id
    }

    /// Runs `future` as part of this process.
    pub async fn run<F: Future>(&self, future: F) -> F::Output {
        CURRENT.scope(self.clone(), future).await
    }

    /// Starts a task that ends with this life at the latest.
    #[allow(clippy::disallowed_methods, reason = "the simulator's own spawner")]
    pub fn spawn<F>(&self, future: F) -> tokio::task::JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let handle = tokio::spawn(CURRENT.scope(self.clone(), future));
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.is_killed {
            handle.abort();
            return handle;
        }
        tasks.handles.push(handle.abort_handle());
        if tasks.handles.len() >= tasks.prune_at {
            tasks.handles.retain(|handle| !handle.is_finished());
            tasks.prune_at = tasks.handles.len() * 2 + PRUNE_EVERY;
        }
        handle
    }

    /// Ends every task of this life at its next await, as kill -9 would.
    pub fn kill(&self) {
        let mut tasks = self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.is_killed = true;
        for handle in tasks.handles.drain(..) {
            handle.abort();
        }
    }
}

impl Spawner for Process {
    fn spawn(&self, _name: &'static str, task: BoxFuture<()>) {
        Process::spawn(self, task);
    }
}

impl Entropy for Process {
    fn next_u64(&self) -> u64 {
        self.0.random.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {}", self.0.id.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn killed_process_takes_no_further_step_and_starts_no_task() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let process = Process::new(ProcessId(1), 1);
            let steps = Arc::new(Mutex::new(0));
            let counter = steps.clone();
            process.spawn(async move {
                loop {
                    tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                    *counter.lock().unwrap() += 1;
                }
            });
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            process.kill();
            let before = *steps.lock().unwrap();
            assert!(before > 0);
            let late = process.spawn(async {});
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            assert_eq!(*steps.lock().unwrap(), before);
            assert!(late.await.unwrap_err().is_cancelled());
        });
    }
}
