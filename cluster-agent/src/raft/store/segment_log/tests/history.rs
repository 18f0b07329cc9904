//! Random histories against the log in memory.

use proptest::prelude::*;

use super::*;
use crate::raft::store::memory::MemoryLog;

#[derive(Clone, Debug)]
enum Step {
    Vote(u8),
    Append(Vec<(u8, usize)>),
    Truncate(u64),
    Purge(u64),
    PurgeBeyond(u64),
    Committed(u8),
    Reopen,
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let length = prop_oneof![8 => 0..300usize, 2 => 1_000..6_000usize, 1 => 20_000..40_000usize];
    prop_oneof![
        2 => any::<u8>().prop_map(Step::Vote),
        6 => proptest::collection::vec((any::<u8>(), length), 1..12).prop_map(Step::Append),
        2 => (0..40u64).prop_map(Step::Truncate),
        2 => (0..40u64).prop_map(Step::Purge),
        1 => (0..5u64).prop_map(Step::PurgeBeyond),
        1 => any::<u8>().prop_map(Step::Committed),
        2 => Just(Step::Reopen),
        2 => Just(Step::Kill),
    ]
}

/// What `step` means for a log in this state; `None`: nothing.
fn op_of(step: &Step, model: &Recovered) -> Option<LogOp> {
    let purged = model.purged.as_ref().map_or(0, |(upto, _)| upto.0);
    let (first, last) = model
        .records
        .map_or((purged + 1, purged), |(first, last)| (first.0, last.0));
    match step {
        Step::Vote(number) => Some(LogOp::Vote(vec![*number; 9].into())),
        Step::Append(contents) => {
            let new = (last + 1..).zip(contents);
            let new = new.map(|(index, (byte, len))| record(index, vec![*byte; *len]));
            Some(LogOp::Append(new.collect()))
        }
        Step::Truncate(back) => {
            let from = LogIndex((last + 1).saturating_sub(*back).max(purged + 1));
            Some(LogOp::Truncate { from })
        }
        Step::Purge(ahead) => model.records.map(|_| purge((first + ahead).min(last))),
        Step::PurgeBeyond(ahead) => Some(purge(last + 1 + ahead)),
        Step::Committed(number) => Some(LogOp::Committed(vec![*number; 9].into())),
        Step::Reopen | Step::Kill => None,
    }
}

fn check(log: &SegmentLog, model: &MemoryLog, has_hint: bool) {
    let (mut want, mut got) = (model.recovered().unwrap(), log.recovered().unwrap());
    if !has_hint {
        (want.committed, got.committed) = (None, None);
    }
    assert_eq!(got, want);
    check_records(log, model);
}

fn check_records(log: &SegmentLog, model: &MemoryLog) {
    let first = first_of(model);
    let read = |store: &dyn LogStore| store.read(first, LogIndex(u64::MAX), usize::MAX).unwrap();
    assert!(read(log) == read(model), "the log differs from the model");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_end_as_the_model_does(steps in proptest::collection::vec(step(), 1..30)) {
        let mut dir = fast_dir();
        let (mut log, model) = (open(dir.path()), MemoryLog::new());
        let mut waiting = Vec::new();
        for step in &steps {
            if let Some(op) = op_of(step, &model.recovered().unwrap()) {
                model.submit(op.clone(), Box::new(|done| done.unwrap()));
                waiting.push(submit(&log, op));
                continue;
            }
            for acknowledged in waiting.drain(..) {
                prop_assert_eq!(acknowledged.recv().unwrap(), Ok(()));
            }
            check_records(&log, &model);
            let is_kill = matches!(step, Step::Kill);
            if is_kill {
                let killed = copy(dir.path());
                drop(log);
                dir = killed;
            } else {
                drop(log);
            }
            log = open(dir.path());
            // A hint that waits for the next group is lost with the process.
            check(&log, &model, !is_kill);
            if let Some(hint) = model.recovered().unwrap().committed.filter(|_| is_kill) {
                prop_assert_eq!(submit(&log, LogOp::Committed(hint)).recv().unwrap(), Ok(()));
            }
        }
        drop(log);
        check(&open(dir.path()), &model, true);
    }
}
