//! "Something changed": a counter that tasks can wait for, woken in the order they came.
//!
//! Used instead of a watch channel, whose waiters are woken in an order drawn from the runtime's own
//! randomness, which a simulation could not repeat.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::sync::Notify;

/// A version number that only rises. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Signal {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    version: AtomicU64,
    notify: Notify,
}

impl Signal {
    /// The current version. Take it before looking at what it stands for.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.inner.version.load(Ordering::Acquire)
    }

    /// Raises the version and wakes every waiter.
    pub fn notify(&self) {
        self.inner.version.fetch_add(1, Ordering::AcqRel);
        self.inner.notify.notify_waiters();
    }

    /// Returns the version as soon as it is above `seen`.
    pub async fn changed(&self, seen: u64) -> u64 {
        loop {
            // Registered before the version is read, so that no notification falls between.
            let notified = self.inner.notify.notified();
            let version = self.version();
            if version > seen {
                return version;
            }
            notified.await;
        }
    }
}
