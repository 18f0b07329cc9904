//! Ways to running agents, for clients and for faults.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use cluster_agent::agent::AgentHandle;

use crate::runtime::Process;

/// Set by a fault; the one who sees entries applied takes it.
#[derive(Clone, Debug, Default)]
pub struct CrashSwitch(Arc<AtomicBool>);

impl CrashSwitch {
    pub(super) fn set(&self, is_set: bool) {
        self.0.store(is_set, Ordering::Relaxed);
    }

    pub(super) fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether the process is to die now; once.
    #[must_use]
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// What is behind the door of an agent now.
#[derive(Clone)]
pub struct OpenDoor {
    pub(super) process: Process,
    pub(super) agent: AgentHandle,
}

impl OpenDoor {
    /// Asks the agent. `None` if it was killed meanwhile; a paused agent answers when it goes on.
    pub async fn ask<T, F>(&self, question: impl FnOnce(AgentHandle) -> F) -> Option<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        self.process.spawn(question(self.agent.clone())).await.ok()
    }
}

/// Doors that outlive the agents behind them.
#[derive(Clone, Default)]
pub struct Doors(Arc<Mutex<BTreeMap<String, OpenDoor>>>);

impl Doors {
    /// The newest life of the agent `name`, if it runs.
    #[must_use]
    pub fn open(&self, name: &str) -> Option<OpenDoor> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    pub(super) fn close_all(&self) {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let closed = std::mem::take(&mut *doors);
        drop(doors);
        drop(closed);
    }

    pub(super) fn set(&self, name: &str, door: Option<OpenDoor>) {
        let mut doors = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match door {
            Some(door) => doors.insert(name.to_owned(), door),
            None => doors.remove(name),
        };
    }
}
