//! A simulated process: the tasks it started, and its own stream of random numbers.
//!
//! # Rules
//! * A paused process takes no step, as after SIGSTOP; its timers are late by the length of the pause.
//! * A panic in any of its tasks is remembered: a shell must not lose a task quietly.

use std::{
    fmt,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
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
    /// Tasks that wanted to run during a pause, in their order.
    held_back: Vec<Waker>,
    panic: Option<String>,
}

struct Inner {
    id: ProcessId,
    random: Mutex<Stream>,
    /// Read before every step of every task.
    is_paused: AtomicBool,
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
            held_back: Vec::new(),
            panic: None,
        };
        let random = Mutex::new(Stream::split(seed, u64::from(id.0)));
        Self(Arc::new(Inner {
            id,
            random,
            is_paused: AtomicBool::new(false),
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
        let gated = Gated {
            process: self.clone(),
            inner: Box::pin(CURRENT.scope(self.clone(), future)),
        };
        let handle = tokio::spawn(gated);
        let mut tasks = self.tasks();
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

    fn tasks(&self) -> MutexGuard<'_, Tasks> {
        self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops every task where it stands.
    pub fn pause(&self) {
        self.0.is_paused.store(true, Ordering::Relaxed);
    }

    /// Whether they stand still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.is_paused.load(Ordering::Relaxed)
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.0.is_paused.store(false, Ordering::Relaxed);
        let held_back = std::mem::take(&mut self.tasks().held_back);
        for waker in held_back {
            waker.wake();
        }
    }

    /// What the first task that panicked said.
    #[must_use]
    pub fn panicked(&self) -> Option<String> {
        self.tasks().panic.clone()
    }

    /// Whether this life is over.
    #[must_use]
    pub fn is_killed(&self) -> bool {
        self.tasks().is_killed
    }

    /// Ends every task of this life at its next await, as kill -9 would.
    pub fn kill(&self) {
        let mut tasks = self.tasks();
        tasks.is_killed = true;
        tasks.held_back.clear();
        for handle in tasks.handles.drain(..) {
            handle.abort();
        }
    }
}

/// A task of a process: takes a step only while the process may.
struct Gated<F> {
    process: Process,
    inner: Pin<Box<F>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        if self.process.is_paused() {
            self.process.tasks().held_back.push(context.waker().clone());
            return Poll::Pending;
        }
        let step = catch_unwind(AssertUnwindSafe(|| self.inner.as_mut().poll(context)));
        step.unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            let mut tasks = self.process.tasks();
            tasks
                .panic
                .get_or_insert(text.unwrap_or_else(|| "a panic without words".into()));
            drop(tasks);
            resume_unwind(panic)
        })
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

    fn in_virtual_time(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(test);
    }

    /// Counts a step each millisecond.
    fn counting(process: &Process) -> Arc<Mutex<u32>> {
        let steps = Arc::new(Mutex::new(0));
        let counter = steps.clone();
        drop(process.spawn(async move {
            loop {
                tokio::time::sleep(std::time::Duration::from_millis(1)).await;
                *counter.lock().unwrap() += 1;
            }
        }));
        steps
    }

    #[test]
    fn paused_process_takes_no_step_and_goes_on_where_it_was() {
        in_virtual_time(async {
            let process = Process::new(ProcessId(1), 1);
            let steps = counting(&process);
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            process.pause();
            let before = *steps.lock().unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            assert_eq!(*steps.lock().unwrap(), before);
            process.resume();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            assert!((before + 4..=before + 7).contains(&steps.lock().unwrap()));
        });
    }

    #[test]
    fn panic_of_a_task_is_remembered() {
        in_virtual_time(async {
            let process = Process::new(ProcessId(1), 1);
            assert!(process.spawn(async { panic!("a bug of ours") }).await.is_err());
            assert_eq!(process.panicked().as_deref(), Some("a bug of ours"));
        });
    }

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
