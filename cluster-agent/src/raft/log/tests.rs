//! The log over a store in memory, with a cache so small that most reads go to the store.

use openraft::EntryPayload;
use openraft_rt_tokio::TokioRuntime;

use super::*;
use crate::raft::{
    store::memory::MemoryLog,
    types::{Command, LeaderId},
};

type Log = RaftLog<TokioRuntime>;

const SMALL_CACHE_BYTES: usize = 4_096;

fn open(store: &Arc<MemoryLog>) -> Log {
    Log::open_with(store.clone(), Arc::new(|_| ()), SMALL_CACHE_BYTES).unwrap()
}

/// openraft's log id of our index.
fn log_id(term: u64, index: u64) -> LogId {
    LogId {
        leader_id: LeaderId { term, node_id: 1 },
        index: index - 1,
    }
}

fn entry(term: u64, index: u64) -> Entry {
    let command = Bytes::from(format!("term {term} index {index} {}", "x".repeat(100)));
    Entry {
        id: log_id(term, index),
        payload: EntryPayload::Normal(Command(command)),
        chain: None,
        computed_above: None,
    }
}

async fn append(log: &mut Log, term: u64, range: std::ops::Range<u64>) {
    for index in range {
        log.append([entry(term, index)], IOFlushed::noop()).await.unwrap();
    }
}

fn ids(entries: &[Entry]) -> Vec<LogId> {
    entries.iter().map(|entry| entry.id).collect()
}

async fn all(log: &mut Log) -> Vec<Entry> {
    log.try_get_log_entries(..).await.unwrap()
}

fn is_cached(log: &Log, index: u64) -> bool {
    log.view().cache.contains_key(&LogIndex(index))
}

#[tokio::test]
async fn evicted_entries_are_read_from_the_store() {
    let mut log = open(&Arc::default());
    append(&mut log, 1, 1..101).await;
    assert!(!is_cached(&log, 1) && is_cached(&log, 100));
    let want: Vec<_> = (1..101).map(|index| log_id(1, index)).collect();
    assert_eq!(ids(&all(&mut log).await), want);
    // Every range, whether it begins in the store or in the cache, ends in either.
    for from in [1, 50, 95, 100] {
        for to in [51, 96, 101, 500] {
            let found = log.try_get_log_entries(from - 1..to - 1).await.unwrap();
            let want: Vec<_> = (from..to.min(101)).map(|index| log_id(1, index)).collect();
            assert_eq!(ids(&found), want, "{from}..{to}");
        }
    }
    assert_eq!(log.held(LogIndex(1)).unwrap(), log.held(LogIndex(1)).unwrap());
    assert!(matches!(log.held(LogIndex(1)).unwrap(), Held::At(id, Some(_)) if id == log_id_to_wire(&log_id(1, 1))));
    assert_eq!(log.held(LogIndex(101)).unwrap(), Held::Beyond);
}

#[tokio::test]
async fn one_read_for_a_peer_is_bounded_in_bytes_and_never_empty() {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    let large = |index| Entry {
        payload: EntryPayload::Normal(Command(vec![0; 200_000].into())),
        ..entry(1, index)
    };
    for index in 1..=10 {
        log.append([large(index)], IOFlushed::noop()).await.unwrap();
    }
    for from in 0..10 {
        let found = log.limited_get_log_entries(from, 10).await.unwrap();
        assert_eq!(found[0].id.index, from);
        assert!(found.len() <= 3, "{} entries of 200 kB", found.len());
    }
    assert_eq!(log.limited_get_log_entries(3, 3).await.unwrap().len(), 0);
}

#[tokio::test]
async fn chain_continues_over_restart_truncation_and_purge() {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    append(&mut log, 1, 1..101).await;
    // The tail is replaced from a point that is no longer in the cache.
    assert!(!is_cached(&log, 40));
    log.truncate_after(Some(log_id(1, 40))).await.unwrap();
    append(&mut log, 2, 41..61).await;
    log.purge(log_id(1, 30)).await.unwrap();
    let before = all(&mut log).await;
    assert_eq!(before.len(), 30);

    let mut log = open(&store);
    let after = all(&mut log).await;
    let chains = |entries: &[Entry]| entries.iter().map(|entry| entry.chain.unwrap()).collect::<Vec<_>>();
    assert_eq!((ids(&after), chains(&after)), (ids(&before), chains(&before)));
    // The same history without truncation, purge and restart has the same chain.
    let mut straight = open(&Arc::default());
    append(&mut straight, 1, 1..41).await;
    append(&mut straight, 2, 41..61).await;
    assert_eq!(chains(&all(&mut straight).await)[30..], chains(&after));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(
        (state.last_purged_log_id, state.last_log_id),
        (Some(log_id(1, 30)), Some(log_id(2, 60)))
    );
    assert_eq!(log.held(LogIndex(29)).unwrap(), Held::Below);
    assert_eq!(
        log.chain_at(log_id_to_wire(&log_id(1, 30))),
        straight.chain_at(log_id_to_wire(&log_id(1, 30)))
    );
}

#[tokio::test]
async fn purge_above_the_log_takes_the_chain_of_the_snapshot() {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    append(&mut log, 1, 1..11).await;
    let snapshot = log_id(2, 50);
    log.note_snapshot(log_id_to_wire(&snapshot), Digest([7; 32]));
    log.purge(snapshot).await.unwrap();
    assert_eq!(all(&mut log).await.len(), 0);
    for log in [&mut log, &mut open(&store)] {
        assert_eq!(log.chain_at(log_id_to_wire(&snapshot)), Some(Digest([7; 32])));
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(snapshot));
    }
    append(&mut log, 2, 51..52).await;
    let wire = entry_to_wire(&entry(2, 51)).unwrap();
    assert_eq!(all(&mut log).await[0].chain, Some(wire.chain(Digest([7; 32]))));
}

#[tokio::test]
async fn claim_of_another_chain_is_refused_before_it_is_stored() {
    let store = Arc::new(MemoryLog::new());
    let alarms = Arc::new(Mutex::new(Vec::new()));
    let sink = alarms.clone();
    let sound: AlarmSink = Arc::new(move |alarm| sink.lock().unwrap().push(alarm));
    let mut log = Log::open_with(store.clone(), sound, SMALL_CACHE_BYTES).unwrap();
    append(&mut log, 1, 1..3).await;
    let forked = Entry {
        chain: Some(Digest([9; 32])),
        ..entry(1, 3)
    };
    assert!(log.append([forked], IOFlushed::noop()).await.is_err());
    assert!(matches!(
        alarms.lock().unwrap()[..],
        [RaftAlarm::ForkedLog { index: LogIndex(3), .. }]
    ));
    assert_eq!(store.recovered().unwrap().records, Some((LogIndex(1), LogIndex(2))));
}

#[tokio::test]
async fn chain_computed_above_another_entry_is_computed_anew() {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    append(&mut log, 1, 1..3).await;
    let below = log.chain_at(log_id_to_wire(&log_id(1, 2))).unwrap();
    let mut right = entry(1, 3);
    let chain = right.chain_above(below);
    // Right for another history, and told as if it had been computed above this one's.
    let mut elsewhere = entry(1, 3);
    elsewhere.set_chain(Digest([7; 32]), entry(1, 3).chain_above(Digest([7; 32])));
    assert_eq!(elsewhere.chain_above(below), chain);
    assert!(log.append([elsewhere], IOFlushed::noop()).await.is_err());
    right.set_chain(below, chain);
    assert!(log.append([right], IOFlushed::noop()).await.is_ok());
    assert_eq!(log.chain_at(log_id_to_wire(&log_id(1, 3))), Some(chain));
}

#[tokio::test]
async fn committed_entries_are_never_truncated() {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    append(&mut log, 1, 1..11).await;
    log.save_committed(Some(log_id(1, 5))).await.unwrap();
    assert!(log.truncate_after(Some(log_id(1, 4))).await.is_err());
    assert_eq!(all(&mut log).await.len(), 10);
    log.truncate_after(Some(log_id(1, 5))).await.unwrap();
    assert_eq!(all(&mut log).await.len(), 5);
}

#[tokio::test]
async fn vote_survives_a_restart_and_the_hint_with_the_operation_after_it() {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    let vote = Vote {
        leader_id: LeaderId { term: 4, node_id: 2 },
        committed: true,
    };
    log.save_vote(&vote).await.unwrap();
    append(&mut log, 4, 1..11).await;
    for index in 1..=10 {
        log.save_committed(Some(log_id(4, index))).await.unwrap();
    }
    append(&mut log, 4, 11..12).await;
    let mut log = open(&store);
    assert_eq!(log.read_vote().await.unwrap(), Some(vote));
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(4, 10)));
    assert_eq!(log.term(), Term(4));
}

#[tokio::test]
async fn changed_bytes_on_the_disk_are_found_at_the_start() {
    let store = Arc::new(MemoryLog::new());
    let mut log = open(&store);
    append(&mut log, 1, 1..11).await;
    let mut records = store.read(LogIndex(1), LogIndex(11), usize::MAX).unwrap();
    // A valid record of another history, under the same index.
    let mut other = open(&Arc::default());
    append(&mut other, 1, 1..5).await;
    append(&mut other, 2, 5..6).await;
    let foreign = all(&mut other).await.pop().unwrap();
    let record = EntryRecord {
        chain: Digest([3; 32]),
        entry: entry_to_wire(&foreign).unwrap(),
    };
    records[4].bytes = codec::encode(record).into();
    let damaged = MemoryLog::new();
    damaged.submit(LogOp::Append(records), Box::new(|outcome| outcome.unwrap()));
    let error = Log::open_with(Arc::new(damaged), Arc::new(|_| ()), SMALL_CACHE_BYTES)
        .err()
        .unwrap();
    assert!(
        matches!(&error, StoreError::Corrupt(why) if why.contains("chain")),
        "{error}"
    );
}
