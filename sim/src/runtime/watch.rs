//! openraft's watch channel over one first-in-first-out `Notify`: the order of waking is the order of waiting.

use std::{
    ops::Deref,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
    },
};

use openraft_rt::{
    OptionalSend, OptionalSync,
    watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender},
};
use tokio::sync::Notify;

struct Shared<T> {
    value: RwLock<T>,
    version: AtomicU64,
    changed: Notify,
    senders: AtomicUsize,
    receivers: AtomicUsize,
}

impl<T> Shared<T> {
    fn read(&self) -> RwLockReadGuard<'_, T> {
        self.value.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self) {
        self.version.fetch_add(1, SeqCst);
        self.changed.notify_waiters();
    }
}

/// The channel's type.
#[derive(Debug)]
pub struct FifoWatch;

/// Sending end.
pub struct Sender<T>(Arc<Shared<T>>);

/// Receiving end, with the version it has seen.
pub struct Receiver<T>(Arc<Shared<T>>, u64);

/// A look at the value.
pub struct Ref<'a, T>(RwLockReadGuard<'a, T>);

impl<T> Deref for Ref<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, SeqCst);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.0.receivers.fetch_add(1, SeqCst);
        Self(self.0.clone(), self.1)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.0.receivers.fetch_sub(1, SeqCst);
    }
}

impl Watch for FifoWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let shared = Arc::new(Shared {
            value: RwLock::new(init),
            version: AtomicU64::new(0),
            changed: Notify::new(),
            senders: AtomicUsize::new(1),
            receivers: AtomicUsize::new(1),
        });
        (Sender(shared.clone()), Receiver(shared, 0))
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<FifoWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        if self.0.receivers.load(SeqCst) == 0 {
            return Err(SendError(value));
        }
        *self.0.value.write().unwrap_or_else(PoisonError::into_inner) = value;
        self.0.announce();
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let is_modified = modify(&mut self.0.value.write().unwrap_or_else(PoisonError::into_inner));
        if is_modified {
            self.0.announce();
        }
        is_modified
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    fn subscribe(&self) -> Receiver<T> {
        self.0.receivers.fetch_add(1, SeqCst);
        Receiver(self.0.clone(), self.0.version.load(SeqCst))
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<FifoWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            let shared = self.0.clone();
            // Registered before the version is read: a change in between is not missed.
            let changed = shared.changed.notified();
            let version = shared.version.load(SeqCst);
            if version != self.1 {
                self.1 = version;
                return Ok(());
            }
            if shared.senders.load(SeqCst) == 0 {
                return Err(RecvError(()));
            }
            changed.await;
        }
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        Ref(self.0.read())
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        let guard = self.0.read();
        self.1 = self.0.version.load(SeqCst);
        Ref(guard)
    }
}
