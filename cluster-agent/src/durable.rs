//! How much of the log survives a loss of power here: what a member may attest.
//!
//! Raft applies an entry once a majority holds it, which may be before this member's own disk does.
//! An attestation says "I hold this durably", so it waits for this position and not for apply.

use std::sync::{Arc, Mutex, PoisonError};

use common::ids::LogIndex;
use transport::watch::Watch;

use crate::{
    fitness::Recent,
    ports::Clock,
    raft::store::{Done, LogOp, LogRecord, LogStore, Recovered, StoreError},
    shell::lock,
};

/// A log store that tells up to where it is durable, and when it failed.
pub struct DurableLog {
    inner: Arc<dyn LogStore>,
    mark: Arc<Mark>,
    failed: Watch<Option<StoreError>>,
    clock: Arc<dyn Clock>,
    appends: Arc<Mutex<Recent>>,
}

/// The durable position. An append that was queued before a truncation must not raise it afterwards.
struct Mark {
    truncations: Mutex<u64>,
    durable: Watch<LogIndex>,
}

impl Mark {
    /// Raises the position to `reached`, unless the log was truncated since `truncations` were counted.
    fn raise(&self, reached: LogIndex, since: Option<u64>) {
        let truncations = self.truncations.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none_or(|since| since == *truncations) {
            self.durable.set_if_changed(self.durable.get().max(reached));
        }
    }

    /// Lowers it to `below` at once: what follows is not durable any more.
    fn truncate(&self, below: LogIndex) {
        let mut truncations = self.truncations.lock().unwrap_or_else(PoisonError::into_inner);
        *truncations += 1;
        self.durable.set_if_changed(self.durable.get().min(below));
    }

    fn truncations(&self) -> u64 {
        *self.truncations.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the end of an operation says about the durable position.
enum Reached {
    /// An append, submitted when this many truncations had been.
    Appended(LogIndex, u64),
    /// A purge stands for a snapshot, which was made durable before.
    Purged(LogIndex),
    Nothing,
}

impl DurableLog {
    /// Watches `inner`; `clock` measures how long appends take.
    ///
    /// # Errors
    /// [`StoreError`] of reading what is durable now.
    pub fn new(inner: Arc<dyn LogStore>, clock: Arc<dyn Clock>) -> Result<Self, StoreError> {
        let recovered = inner.recovered()?;
        let purged = recovered.purged.map(|(upto, _)| upto);
        let last = recovered.records.map(|(_, last)| last);
        let durable = Watch::new(last.max(purged).unwrap_or_default());
        let mark = Arc::new(Mark {
            truncations: Mutex::new(0),
            durable,
        });
        Ok(Self {
            inner,
            mark,
            failed: Watch::new(None),
            clock,
            appends: Arc::default(),
        })
    }

    /// The last index that is durable.
    #[must_use]
    pub fn durable(&self) -> Watch<LogIndex> {
        self.mark.durable.clone()
    }

    /// How long appends took until they were durable.
    #[must_use]
    pub(crate) fn appends(&self) -> Arc<Mutex<Recent>> {
        self.appends.clone()
    }

    /// The first failure of the store, whichever operation met it. The process must end.
    #[must_use]
    pub fn failed(&self) -> Watch<Option<StoreError>> {
        self.failed.clone()
    }
}

impl LogStore for DurableLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        self.inner.recovered()
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        self.inner.read(from, to, bytes_max)
    }

    fn submit(&self, op: LogOp, done: Done) {
        let reached = match &op {
            LogOp::Append(records) => records.last().map_or(Reached::Nothing, |last| {
                Reached::Appended(last.index, self.mark.truncations())
            }),
            LogOp::Truncate { from } => {
                self.mark.truncate(from.previous().unwrap_or_default());
                Reached::Nothing
            }
            LogOp::Purge { upto, .. } => Reached::Purged(*upto),
            LogOp::Vote(_) | LogOp::Committed(_) => Reached::Nothing,
        };
        let (mark, failed) = (self.mark.clone(), self.failed.clone());
        let (clock, appends, submitted) = (self.clock.clone(), self.appends.clone(), self.clock.now());
        let watched: Done = Box::new(move |outcome: Result<(), StoreError>| {
            match (&outcome, reached) {
                (Ok(()), Reached::Appended(index, since)) => {
                    mark.raise(index, Some(since));
                    let now = clock.now();
                    lock(&appends).note(now.us, now.us_since(submitted));
                }
                (Ok(()), Reached::Purged(upto)) => mark.raise(upto, None),
                (Ok(()), Reached::Nothing) | (Err(StoreError::Closed), _) => {}
                (Err(error), _) if failed.get().is_none() => failed.set(Some(error.clone())),
                (Err(_), _) => {}
            }
            done(outcome);
        });
        self.inner.submit(op, watched);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ports::Instant, raft::store::memory::MemoryLog};

    /// A clock that moves by hand.
    #[derive(Default)]
    struct Hand(std::sync::atomic::AtomicU64);

    impl Clock for Hand {
        fn now(&self) -> Instant {
            Instant {
                us: self.0.load(std::sync::atomic::Ordering::Relaxed),
            }
        }

        fn wall(&self) -> common::ids::BlockTime {
            unreachable!("no agent reads it")
        }
    }

    fn record(index: u64) -> LogRecord {
        LogRecord {
            index: LogIndex(index),
            bytes: vec![1].into(),
        }
    }

    #[test]
    fn durable_position_follows_appends_that_are_done_and_falls_with_a_truncation() {
        let memory = Arc::new(MemoryLog::new());
        let log = DurableLog::new(memory.clone(), Arc::new(Hand::default())).unwrap();
        let durable = log.durable();
        assert_eq!(durable.get(), LogIndex(0));
        log.submit(
            LogOp::Append(vec![record(1), record(2)]),
            Box::new(|done| done.unwrap()),
        );
        assert_eq!(durable.get(), LogIndex(2));
        log.submit(LogOp::Truncate { from: LogIndex(2) }, Box::new(|done| done.unwrap()));
        assert_eq!(durable.get(), LogIndex(1));
        memory.fail("the disk is gone");
        assert_eq!(log.failed().get(), None);
        log.submit(LogOp::Append(vec![record(2)]), Box::new(|done| assert!(done.is_err())));
        assert_eq!(durable.get(), LogIndex(1));
        assert!(log.failed().get().is_some());
    }

    /// A disk that is slow: operations end when the test says so, in order.
    #[derive(Default)]
    struct SlowLog(Mutex<std::collections::VecDeque<Done>>);

    impl SlowLog {
        fn finish_one(&self) {
            let done = self.0.lock().unwrap().pop_front();
            done.expect("an operation is in flight")(Ok(()));
        }
    }

    impl LogStore for SlowLog {
        fn recovered(&self) -> Result<Recovered, StoreError> {
            Ok(Recovered::default())
        }

        fn read(&self, _: LogIndex, _: LogIndex, _: usize) -> Result<Vec<LogRecord>, StoreError> {
            Ok(Vec::new())
        }

        fn submit(&self, _: LogOp, done: Done) {
            self.0.lock().unwrap().push_back(done);
        }
    }

    #[test]
    fn append_that_ends_after_a_truncation_was_asked_for_does_not_count() {
        let slow = Arc::new(SlowLog::default());
        let log = DurableLog::new(slow.clone(), Arc::new(Hand::default())).unwrap();
        let ignore = || Box::new(|_| ()) as Done;
        log.submit(LogOp::Append(vec![record(1), record(2), record(3)]), ignore());
        log.submit(LogOp::Truncate { from: LogIndex(2) }, ignore());
        slow.finish_one();
        assert_eq!(log.durable().get(), LogIndex(0), "2 and 3 are about to go");
        slow.finish_one();
        log.submit(LogOp::Append(vec![record(2)]), ignore());
        slow.finish_one();
        assert_eq!(log.durable().get(), LogIndex(2));
    }

    #[test]
    fn purge_that_ends_after_an_append_does_not_lower_the_position() {
        let slow = Arc::new(SlowLog::default());
        let log = DurableLog::new(slow.clone(), Arc::new(Hand::default())).unwrap();
        let ignore = || Box::new(|_| ()) as Done;
        log.submit(LogOp::Append(vec![record(1), record(2)]), ignore());
        let marker = vec![0].into();
        log.submit(
            LogOp::Purge {
                upto: LogIndex(1),
                marker,
            },
            ignore(),
        );
        slow.finish_one();
        slow.finish_one();
        assert_eq!(log.durable().get(), LogIndex(2));
    }

    #[test]
    fn what_was_durable_before_a_restart_counts() {
        let memory = Arc::new(MemoryLog::new());
        memory.submit(
            LogOp::Append(vec![record(1), record(2)]),
            Box::new(|done| done.unwrap()),
        );
        assert_eq!(
            DurableLog::new(memory, Arc::new(Hand::default()))
                .unwrap()
                .durable()
                .get(),
            LogIndex(2)
        );
    }

    #[test]
    fn append_takes_from_its_submission_until_it_is_durable() {
        let (slow, clock) = (Arc::new(SlowLog::default()), Arc::new(Hand::default()));
        let log = DurableLog::new(slow.clone(), clock.clone()).unwrap();
        let ignore = || Box::new(|_| ()) as Done;
        log.submit(LogOp::Append(vec![record(1)]), ignore());
        log.submit(LogOp::Truncate { from: LogIndex(2) }, ignore());
        clock.0.store(70_000, std::sync::atomic::Ordering::Relaxed);
        slow.finish_one();
        clock.0.store(900_000, std::sync::atomic::Ordering::Relaxed);
        slow.finish_one();
        let measured = lock(&log.appends()).highest(900_000);
        assert_eq!(measured, Some(70_000), "of appends alone");
    }
}
