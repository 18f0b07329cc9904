//! Durable appends per second of both kinds of log, side by side.
//!
//! ```text
//! cargo run --release -p cluster-agent --example log_bench -- [DIRECTORY [SECONDS]]
//! ```
//!
//! One thread submits appends of one record of 300 bytes, as Raft does, and keeps 1, 16 or 256 of them in flight; every 10,000
//! records all but the last 5,000 are purged. One line of JSON for each run. DIRECTORY is where the logs are made: the disk
//! that is measured.

// It measures real time.
#![allow(clippy::disallowed_methods)]

use std::{
    path::{Path, PathBuf},
    sync::mpsc,
    time::{Duration, Instant},
};

use cluster_agent::raft::store::{
    LogOp, LogRecord, LogStore,
    identity::Marker,
    member_log::{LogKind, LogOptions, MemberLog},
};
use common::ids::LogIndex;

const RECORD_BYTES: usize = 300;
const PURGE_EVERY: u64 = 10_000;
const KEPT: u64 = 5_000;

/// Latencies of the acknowledged appends, in microseconds.
fn run(dir: &Path, kind: LogKind, in_flight: usize, lasts: Duration) -> Vec<u128> {
    let options = LogOptions {
        kind,
        ..LogOptions::default()
    };
    let log = MemberLog::open(dir, [1; 16], options, Marker::none()).expect("a new log");
    let (sender, acknowledged) = mpsc::channel();
    let mut next = 1u64;
    let mut submit = || {
        let (sender, begun) = (sender.clone(), Instant::now());
        let record = LogRecord {
            index: LogIndex(next),
            bytes: vec![next as u8; RECORD_BYTES].into(),
        };
        let done = move |outcome: Result<(), _>| {
            outcome.expect("the disk works");
            // The end of the measurement comes before the last answers.
            let _ = sender.send(begun.elapsed().as_micros());
        };
        log.submit(LogOp::Append(vec![record]), Box::new(done));
        if next.is_multiple_of(PURGE_EVERY) {
            let (upto, marker) = (LogIndex(next - KEPT), "marker".into());
            log.submit(
                LogOp::Purge { upto, marker },
                Box::new(|outcome| outcome.expect("the disk works")),
            );
        }
        next += 1;
    };
    (0..in_flight).for_each(|_| submit());
    let (end, mut latencies) = (Instant::now() + lasts, Vec::new());
    while Instant::now() < end {
        latencies.push(acknowledged.recv().expect("every append is answered"));
        submit();
    }
    log.close();
    latencies
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let place = arguments.next().map_or_else(std::env::temp_dir, PathBuf::from);
    let seconds = arguments.next().map_or(3, |text| text.parse().expect("seconds"));
    for in_flight in [1, 16, 256] {
        for (kind, name) in [(LogKind::Segments, "segments"), (LogKind::Sled, "sled")] {
            let dir = place.join(format!("log-bench-{}-{name}-{in_flight}", std::process::id()));
            std::fs::create_dir_all(&dir).expect("a directory for the log");
            let mut latencies = run(&dir.join("log"), kind, in_flight, Duration::from_secs(seconds));
            std::fs::remove_dir_all(&dir).expect("the directory goes");
            latencies.sort_unstable();
            let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
            println!(
                "{{\"log\":\"{name}\",\"in_flight\":{in_flight},\"appends_per_s\":{},\"p50_us\":{},\"p99_us\":{}}}",
                latencies.len() as u64 / seconds,
                at(50),
                at(99)
            );
        }
    }
}
