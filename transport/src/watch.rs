//! A value that tasks wait on. Waiters wake in the order in which they began to wait.
//!
//! # Why not tokio's watch
//! It picks the waiters' order with a random generator of the runtime, which the simulator could
//! seed only by an unstable switch of tokio's.

use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

struct Shared<T> {
    value: Mutex<(u64, T)>,
    changed: Notify,
}

/// A shared value with a version; clones see the same value.
pub struct Watch<T>(Arc<Shared<T>>);

impl<T> Clone for Watch<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T: Clone> Watch<T> {
    /// Starts with `value`.
    pub fn new(value: T) -> Self {
        Self(Arc::new(Shared {
            value: Mutex::new((0, value)),
            changed: Notify::new(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, (u64, T)> {
        // A panic while the lock was held left the value whole: it is replaced in one assignment.
        self.0.value.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> T {
        self.lock().1.clone()
    }

    /// Replaces the value and wakes all waiters.
    pub fn set(&self, value: T) {
        let mut guard = self.lock();
        *guard = (guard.0 + 1, value);
        drop(guard);
        self.0.changed.notify_waiters();
    }

    /// Replaces the value and wakes all waiters if it differs.
    pub fn set_if_changed(&self, value: T) -> bool
    where
        T: PartialEq,
    {
        let mut guard = self.lock();
        if guard.1 == value {
            return false;
        }
        *guard = (guard.0 + 1, value);
        drop(guard);
        self.0.changed.notify_waiters();
        true
    }

    /// Waits until `is_met` holds for the value, and returns it. Put a deadline around it.
    pub async fn wait_until(&self, mut is_met: impl FnMut(&T) -> bool) -> T {
        loop {
            // Registered before the value is read: a change in between is not missed.
            let changed = self.0.changed.notified();
            {
                let guard = self.lock();
                if is_met(&guard.1) {
                    return guard.1.clone();
                }
            }
            changed.await;
        }
    }

    /// Waits for a value other than the one that `seen` (a version, 0 at first) stands for, and moves `seen` on.
    pub async fn next(&self, seen: &mut u64) -> T {
        loop {
            let changed = self.0.changed.notified();
            {
                let guard = self.lock();
                if guard.0 != *seen {
                    *seen = guard.0;
                    return guard.1.clone();
                }
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiter_sees_a_change_made_before_and_after_it_waits() {
        let watch = Watch::new(1);
        watch.set(2);
        assert_eq!(watch.wait_until(|v| *v == 2).await, 2);
        let (writer, mut seen) = (watch.clone(), 1);
        // Polled in this order: the waiter waits already when the value is set.
        let set = async { writer.set(3) };
        let (got, ()) = futures::future::join(watch.next(&mut seen), set).await;
        assert_eq!(got, 3);
    }

    #[test]
    fn equal_value_wakes_nobody() {
        let watch = Watch::new(1);
        assert!(!watch.set_if_changed(1));
        assert!(watch.set_if_changed(2));
    }
}
