//! Power cuts under the Raft log: what was acknowledged is there, what was truncated is not.
//!
//! A worker writes as Raft does, several operations in flight. The test knows the same script and looks at
//! what the disk kept: it must be the log after some number of operations, not fewer than were acknowledged.

#![allow(clippy::disallowed_methods)]

use std::{collections::BTreeMap, path::Path, sync::mpsc};

use bytes::Bytes;
use cluster_agent::raft::store::{
    LogOp, LogRecord, LogStore, RECORD_BYTES_MAX, Recovered,
    durable_sled::SledOptions,
    identity::{MemberIdentity, MemberStores, open_member},
    member_log::{LogKind, LogOptions},
    segment_log::SegmentOptions,
    snapshot::{DraftName, SnapshotStore},
};
use common::{
    crypto::sha256,
    ids::{ChainId, ClusterId, DeviceId, LogIndex, LogPosition, RaftNodeId, Term},
};
use powercut::{Cut, Machine, Report, Rng};

/// Machines, and lives of each one after the other.
const MACHINES: u64 = 5;
const LIVES: u64 = 4;
/// Operations that wait for their acknowledgement.
const IN_FLIGHT_MAX: usize = 6;
/// Operations after which a worker is killed, at most.
const OPS_PER_LIFE_MAX: u64 = 250;

fn open(data: &Path, kind: LogKind, when: impl std::fmt::Display) -> MemberStores {
    let whose = MemberIdentity {
        chain: ChainId([1; 32]),
        cluster: ClusterId(0),
        device: DeviceId([2; 32]),
        member: RaftNodeId(3),
    };
    let sled = SledOptions {
        cache_bytes: 8 * 1024 * 1024,
        // So short that the log moves into a fresh file now and then.
        file_bytes_max: 5 * 1024 * 1024,
    };
    // Segments so short that each life fills some.
    let segments = SegmentOptions {
        segment_bytes: 256 * 1024,
    };
    let options = LogOptions { kind, segments, sled };
    let stores = open_member(data, whose, [4; 16], options).unwrap_or_else(|error| panic!("{when}: {error}"));
    assert_eq!(stores.log.kind(), kind, "a log keeps its kind");
    stores
}

/// What a log holds, after any number of operations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Log {
    vote: Option<Bytes>,
    purged: Option<(LogIndex, Bytes)>,
    /// A sum of each record's bytes.
    records: BTreeMap<u64, u64>,
}

impl Log {
    /// Stands for the whole log in one line.
    fn sum(&self) -> u64 {
        sum(format!("{self:?}").as_bytes())
    }

    fn last(&self) -> u64 {
        let purged = self.purged.as_ref().map_or(0, |(upto, _)| upto.0);
        self.records.last_key_value().map_or(purged, |(index, _)| *index)
    }

    fn first(&self) -> u64 {
        self.purged.as_ref().map_or(0, |(upto, _)| upto.0) + 1
    }
}

fn sum(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(sha256(&[bytes]).0[..8].try_into().expect("8 of 32 bytes"))
}

/// One step of a script, before it has its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Vote(u64),
    Append {
        from: u64,
        seeds: Vec<u64>,
    },
    Truncate(u64),
    /// A snapshot, then the purge that it stands for.
    Purge(u64),
}

/// The same steps in the test and in its worker.
struct Script {
    rng: Rng,
    log: Log,
}

fn bytes_of(seed: u64) -> Bytes {
    let mut rng = Rng::new(seed);
    let len = match rng.below(40) {
        0 => RECORD_BYTES_MAX as u64 - rng.below(100),
        1..=4 => 4_000 + rng.below(20_000),
        _ => rng.below(600),
    };
    rng.bytes(len as usize).into()
}

fn number(seed: u64) -> Bytes {
    Bytes::copy_from_slice(&seed.to_be_bytes())
}

/// A snapshot says what it covers.
fn snapshot_of(upto: u64) -> Bytes {
    [number(upto), bytes_of(upto)].concat().into()
}

/// Up to where a snapshot reaches; `None` if it is damaged.
fn covered_by(snapshot: &[u8]) -> Option<u64> {
    let (upto, _) = snapshot.split_first_chunk()?;
    let upto = u64::from_be_bytes(*upto);
    (snapshot_of(upto) == snapshot).then_some(upto)
}

impl Script {
    fn next(&mut self) -> Step {
        let (first, last) = (self.log.first(), self.log.last());
        let step = match self.rng.below(20) {
            0..=4 => Step::Vote(self.rng.next_u64()),
            5 | 6 if last >= first => Step::Truncate(last - self.rng.below((last - first + 1).min(12))),
            7 if last >= first + 20 => Step::Purge(first + self.rng.below(last - first)),
            _ => {
                let count = 1 + self.rng.below(8);
                let seeds = (0..count).map(|_| self.rng.next_u64()).collect();
                Step::Append { from: last + 1, seeds }
            }
        };
        step.apply(&mut self.log);
        step
    }
}

impl Step {
    fn apply(&self, log: &mut Log) {
        match self {
            Self::Vote(seed) => log.vote = Some(number(*seed)),
            Self::Append { from, seeds } => {
                let sums = seeds.iter().map(|seed| sum(&bytes_of(*seed)));
                log.records.extend((*from..).zip(sums));
            }
            Self::Truncate(from) => drop(log.records.split_off(from)),
            Self::Purge(upto) => {
                log.records = log.records.split_off(&(upto + 1));
                log.purged = Some((LogIndex(*upto), number(*upto)));
            }
        }
    }

    fn op(&self) -> LogOp {
        match self {
            Self::Vote(seed) => LogOp::Vote(number(*seed)),
            Self::Append { from, seeds } => {
                let record = |(index, seed): (u64, &u64)| LogRecord {
                    index: LogIndex(index),
                    bytes: bytes_of(*seed),
                };
                LogOp::Append((*from..).zip(seeds).map(record).collect())
            }
            Self::Truncate(from) => LogOp::Truncate { from: LogIndex(*from) },
            Self::Purge(upto) => LogOp::Purge {
                upto: LogIndex(*upto),
                marker: number(*upto),
            },
        }
    }
}

/// Runs the script of `seed` for ever. Says "open SUM" of what it found, and "did N" at each acknowledgement.
fn work(data: &Path, kind: LogKind, seed: u64, report: &Report) {
    let stores = open(data, kind, "worker");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut script = Script {
        rng: Rng::new(seed),
        log: read(&stores.log),
    };
    report.say(format!("open {}", script.log.sum()));
    let (done, acknowledged) = mpsc::channel();
    for number in 1u64.. {
        let step = script.next();
        if let Step::Purge(upto) = &step {
            let at = LogPosition {
                term: Term(1),
                index: LogIndex(*upto),
            };
            let mut draft = stores.snapshots.draft(DraftName::Own).unwrap();
            draft.append(&snapshot_of(*upto)).unwrap();
            draft.sync().unwrap();
            // Begun inside of the runtime, which it needs for its thread.
            let published = runtime.block_on(async { stores.snapshots.publish(draft, at).await });
            published.map(drop).unwrap();
        }
        let (report, done) = (report.clone(), done.clone());
        let say = move |outcome: Result<(), _>| {
            outcome.expect("this disk does not fail");
            report.say(format!("did {number}"));
            let _ = done.send(());
        };
        stores.log.submit(step.op(), Box::new(say));
        if number as usize > IN_FLIGHT_MAX {
            acknowledged.recv().expect("each operation is answered");
        }
    }
}

/// What the store holds.
fn read(store: &impl LogStore) -> Log {
    let Recovered {
        vote, purged, records, ..
    } = store.recovered().unwrap();
    let mut log = Log {
        vote,
        purged,
        records: BTreeMap::new(),
    };
    let Some((first, last)) = records else { return log };
    let found = store.read(first, last.next(), usize::MAX).unwrap();
    assert_eq!(
        found.last().map(|record| record.index),
        Some(last),
        "the log has no gap"
    );
    log.records = found
        .iter()
        .map(|record| (record.index.0, sum(&record.bytes)))
        .collect();
    log
}

/// Every log that may be found when the first `did` of `steps` were acknowledged.
///
/// All of what was acknowledged, then any number of the next steps in their order, none of them left out, and of the last one a part.
/// A part is harmless where the step was not acknowledged: of an append the first records, each of them whole, as if
/// it had been shorter; of a truncation the last records, as if it had begun later. Raft relies on neither before it is acknowledged, and
/// the next leader's append meets both. A vote or a purge has no part: the old or the new one is there.
/// Records that a purge has still to remove are not looked at, as nobody reads below the marker; that they do not go before the
/// marker is there is seen by the records of a log whose purge was lost.
fn allowed(begin: &Log, steps: &[Step], did: usize) -> Vec<Log> {
    let (mut log, mut logs) = (begin.clone(), Vec::new());
    for (at, step) in steps.iter().enumerate() {
        if at >= did {
            logs.push(log.clone());
            if let Step::Truncate(from) = step {
                // From the end backwards: a part of it may be done.
                while log.records.last_key_value().is_some_and(|(last, _)| last >= from) {
                    log.records.pop_last();
                    logs.push(log.clone());
                }
            }
            if let Step::Append { from, seeds } = step {
                // From the begin on, in whole records: a shorter append may have been made.
                for count in 1..seeds.len() {
                    let shorter = Step::Append {
                        from: *from,
                        seeds: seeds[..count].to_vec(),
                    };
                    let mut log = log.clone();
                    shorter.apply(&mut log);
                    logs.push(log);
                }
            }
        }
        step.apply(&mut log);
    }
    logs.push(log);
    logs
}

#[derive(Default)]
struct Totals {
    acknowledged: usize,
    /// Cuts after which a later file than the first was in force.
    moved: usize,
    purges: usize,
    truncations: usize,
}

/// A machine, and what may be in its log.
struct Member {
    machine: Machine,
    kind: LogKind,
    test: &'static str,
    /// One of these is there, or will be after a cut.
    possible: Vec<Log>,
    totals: Totals,
}

impl Member {
    fn new(test: &'static str, kind: LogKind) -> Self {
        Self {
            machine: Machine::new(),
            kind,
            test,
            possible: vec![Log::default()],
            totals: Totals::default(),
        }
    }

    /// Runs a worker and kills it, sometimes while it opens.
    fn live(&mut self, seed: u64) {
        let mut rng = Rng::new(!seed);
        let mut life = self
            .machine
            .run(self.test, &format!("{seed} {}", self.machine.data().display()));
        let kill_after = if rng.once_in(5) {
            None
        } else {
            Some(rng.below(OPS_PER_LIFE_MAX))
        };
        let mut lines = Vec::new();
        while kill_after.is_some_and(|did| lines.len() <= did as usize) {
            lines.push(
                life.next_line()
                    .unwrap_or_else(|| panic!("the worker ended: {}", life.log())),
            );
        }
        std::thread::sleep(std::time::Duration::from_micros(rng.below(6_000)));
        lines.extend(life.kill());
        let Some((opened, did)) = lines.split_first() else {
            return;
        };
        let sum: u64 = opened
            .strip_prefix("open ")
            .and_then(|sum| sum.parse().ok())
            .expect("it opens first");
        let mut found = std::mem::take(&mut self.possible)
            .into_iter()
            .filter(|log| log.sum() == sum);
        // What a start has found is durable from then on.
        let begin = found
            .next()
            .unwrap_or_else(|| panic!("seed {seed}: found another log than it left"));
        for (number, line) in (1..).zip(did) {
            assert_eq!(*line, format!("did {number}"), "acknowledged in order");
        }
        let mut script = Script {
            rng: Rng::new(seed),
            log: begin.clone(),
        };
        let steps: Vec<Step> = (0..did.len() + IN_FLIGHT_MAX + 1).map(|_| script.next()).collect();
        self.possible = allowed(&begin, &steps, did.len());
        let count = |is: fn(&Step) -> bool| steps[..did.len()].iter().filter(|step| is(step)).count();
        self.totals.acknowledged += did.len();
        self.totals.purges += count(|step| matches!(step, Step::Purge(_)));
        self.totals.truncations += count(|step| matches!(step, Step::Truncate(_)));
    }

    /// Cuts the power, and looks at what is there.
    fn cut(&mut self, cut: Cut, seed: u64) {
        self.machine.cut(cut);
        let stores = open(&self.machine.data(), self.kind, format!("seed {seed}, {cut:?}"));
        let found = read(&stores.log);
        let describe = |log: &Log| format!("{} to {}, vote {:?}", log.first(), log.last(), log.vote);
        assert!(
            self.possible.contains(&found),
            "seed {seed}, {cut:?}: found {}; wanted one of {:?}",
            describe(&found),
            self.possible.iter().map(describe).collect::<Vec<_>>()
        );
        if let Some((upto, _)) = &found.purged {
            let snapshot = stores.snapshots.newest().unwrap().map(|bytes| {
                let mut all = vec![0; usize::try_from(bytes.bytes_len()).unwrap()];
                bytes.read_at(0, &mut all).unwrap();
                all
            });
            let covers = snapshot.as_deref().and_then(covered_by);
            assert!(
                covers >= Some(upto.0),
                "seed {seed}: purged to {upto}, snapshot of {covers:?}"
            );
        }
        drop(stores);
        self.totals.moved += usize::from(self.machine.data().join("log/CURRENT").exists());
        self.machine.adopt();
        self.possible = vec![found];
    }
}

/// The lives of all machines; `is_mix`: which cuts.
fn run(test: &'static str, kind: LogKind, is_mix: bool) {
    if let Some((life, report)) = powercut::worker() {
        let (seed, data) = life.split_once(' ').unwrap();
        return work(Path::new(data), kind, seed.parse().unwrap(), &report);
    }
    let first_seed = powercut::first_seed();
    let mut totals = Totals::default();
    for machine in 0..MACHINES {
        let mut member = Member::new(test, kind);
        for life in 0..LIVES {
            let seed = first_seed * 1_000 + machine * 10 + life;
            // Before some cuts the process alone dies and comes back: its page cache is not the disk.
            for restart in 0..life % 3 {
                member.live(seed + 100 * (restart + 1));
            }
            member.live(seed);
            member.cut(if is_mix { Cut::Mix { seed } } else { Cut::Drop }, seed);
        }
        totals.acknowledged += member.totals.acknowledged;
        totals.purges += member.totals.purges;
        totals.truncations += member.totals.truncations;
        totals.moved += member.totals.moved;
    }
    let Totals {
        acknowledged,
        moved,
        purges,
        truncations,
    } = totals;
    eprintln!(
        "{test}: {} cuts from seed {first_seed}, {acknowledged} operations acknowledged, {truncations} truncations, {purges} purges, {moved} after a move",
        MACHINES * LIVES,
    );
    assert!(
        acknowledged > 500 && truncations > 20 && purges > 5,
        "too little was tried"
    );
}

#[test]
fn acknowledged_operations_survive_in_segments_when_only_synced_bytes_do() {
    run(
        "acknowledged_operations_survive_in_segments_when_only_synced_bytes_do",
        LogKind::Segments,
        false,
    );
}

#[test]
fn acknowledged_operations_survive_in_segments_when_random_pages_do() {
    run(
        "acknowledged_operations_survive_in_segments_when_random_pages_do",
        LogKind::Segments,
        true,
    );
}

#[test]
fn acknowledged_operations_survive_in_sled_when_only_synced_bytes_do() {
    run(
        "acknowledged_operations_survive_in_sled_when_only_synced_bytes_do",
        LogKind::Sled,
        false,
    );
}

#[test]
fn acknowledged_operations_survive_in_sled_when_random_pages_do() {
    run(
        "acknowledged_operations_survive_in_sled_when_random_pages_do",
        LogKind::Sled,
        true,
    );
}

/// What the tests above would find if the log trusted sled's own flush.
#[test]
fn flush_of_sled_alone_loses_what_it_acknowledged() {
    if let Some((data, report)) = powercut::worker() {
        let config = sled::Config::new().path(data).flush_every_ms(None);
        let db = config.open().unwrap();
        for number in 0u64.. {
            db.insert(number.to_be_bytes(), &number.to_be_bytes()).unwrap();
            db.flush().unwrap();
            report.say(number);
        }
    }
    let machine = Machine::new();
    let data = machine.data();
    drop(sled::Config::new().path(&data).open().unwrap());
    machine.adopt();
    let mut life = machine.run("flush_of_sled_alone_loses_what_it_acknowledged", data.to_str().unwrap());
    let acknowledged = std::iter::from_fn(|| life.next_line())
        .nth(200)
        .expect("it goes on for ever");
    life.kill();
    machine.cut(Cut::Drop);
    let db = sled::Config::new().path(&data).open().unwrap();
    let last: u64 = acknowledged.parse().unwrap();
    let lost = (0..=last)
        .filter(|number| !db.contains_key(number.to_be_bytes()).unwrap())
        .count();
    assert!(lost > 0, "the model loses nothing: none of these tests could fail");
}
