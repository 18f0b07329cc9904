//! Claims about group commit that hold for every log on a disk.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
};

use common::ids::LogIndex;

use super::{LogOp, LogRecord, LogStore, StoreError, group_commit::Fsync};

/// A sort of log, and how it is opened in an empty directory.
pub(super) struct Sort<L> {
    pub open: Box<dyn Fn(Fsync) -> L>,
    /// Flushes of an opening.
    pub flushes: usize,
    /// Why it failed, if it has.
    pub failure: fn(&L) -> Option<StoreError>,
}

pub(super) fn submit(log: &impl LogStore, op: LogOp) -> mpsc::Receiver<Result<(), StoreError>> {
    let (sender, receiver) = mpsc::channel();
    log.submit(op, Box::new(move |outcome| drop(sender.send(outcome))));
    receiver
}

/// Submits and waits for the acknowledgement.
pub(super) fn write(log: &impl LogStore, op: LogOp) -> Result<(), StoreError> {
    submit(log, op).recv().expect("every operation is answered")
}

impl<L: LogStore> Sort<L> {
    pub fn panic_in_the_writer_poisons_the_store(&self) {
        let (calls, fine) = (AtomicUsize::new(0), self.flushes);
        let log = (self.open)(Box::new(move |_| {
            assert!(calls.fetch_add(1, Ordering::SeqCst) < fine, "a bug");
            Ok(())
        }));
        assert!(matches!(write(&log, LogOp::Vote("a".into())), Err(StoreError::Io(_))));
        assert!(matches!(
            write(&log, LogOp::Vote("b".into())),
            Err(StoreError::Poisoned(_))
        ));
    }

    pub fn panic_of_who_is_acknowledged_poisons_the_store_and_the_others_are_told(&self) {
        let (gate_sender, gate) = mpsc::channel::<()>();
        let (mut flushes, held) = (0, self.flushes + 1);
        let log = (self.open)(Box::new(move |file| {
            flushes += 1;
            if flushes == held {
                gate.recv().map_err(io::Error::other)?;
            }
            file.sync_data()
        }));
        let first = submit(&log, LogOp::Vote("a".into()));
        // These two are one group: they wait while the first is being flushed.
        log.submit(LogOp::Vote("b".into()), Box::new(|_| panic!("a bug of who waits")));
        let third = submit(&log, LogOp::Vote("c".into()));
        gate_sender.send(()).unwrap();
        assert_eq!(first.recv().unwrap(), Ok(()));
        let _ = third.recv().expect("every operation is answered");
        assert!(matches!(
            write(&log, LogOp::Vote("d".into())),
            Err(StoreError::Poisoned(_))
        ));
        let failed = (self.failure)(&log).expect("the failure is known");
        assert!(failed.to_string().contains("acknowledgement"), "{failed}");
    }

    pub fn waiting_operations_share_one_flush_and_are_acknowledged_in_order(&self) {
        let (gate_sender, gate) = mpsc::channel::<()>();
        let flushes = Arc::new(AtomicUsize::new(0));
        let (counter, of_opening) = (flushes.clone(), self.flushes);
        let log = (self.open)(Box::new(move |file| {
            if counter.fetch_add(1, Ordering::SeqCst) >= of_opening {
                gate.recv().map_err(io::Error::other)?;
            }
            file.sync_data()
        }));
        let (order_sender, order) = mpsc::channel();
        let send = |number: u64, op| {
            let sender = order_sender.clone();
            log.submit(op, Box::new(move |outcome| drop(sender.send((number, outcome)))));
        };
        send(0, LogOp::Vote("first".into()));
        // The writer is inside its first flush now, or will be; what follows waits for it.
        while flushes.load(Ordering::SeqCst) <= of_opening {
            std::thread::yield_now();
        }
        for number in 1..=60 {
            let record = LogRecord {
                index: LogIndex(number),
                bytes: vec![7; 100].into(),
            };
            send(number, LogOp::Append(vec![record]));
        }
        gate_sender.send(()).unwrap();
        gate_sender.send(()).unwrap();
        let acknowledged: Vec<_> = (0..=60).map(|_| order.recv().unwrap()).collect();
        assert_eq!(
            acknowledged,
            (0..=60).map(|number| (number, Ok(()))).collect::<Vec<_>>()
        );
        assert_eq!(
            flushes.load(Ordering::SeqCst),
            of_opening + 2,
            "the first operation, the other sixty"
        );
    }
}
