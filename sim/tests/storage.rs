//! The simulator's log is a faithful double of a disk: it passes openraft's own storage suite.

use cluster_agent::raft::conformance::{FreshStores, check_stores};
use sim::{
    ports::{DiskTiming, SimDisk, SimLog, SimSnapshots},
    runtime::{Process, ProcessId, SimRuntime},
    trace::Trace,
};

#[test]
fn simulated_stores_pass_the_storage_suite() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    let process = Process::new(ProcessId(0), 1);
    let fresh = |process: Process| {
        move || {
            let timing = DiskTiming {
                sync_us_min: 500,
                sync_us_max: 5_000,
            };
            let disk = SimDisk::new(0, 1, timing, Trace::begin());
            FreshStores {
                log: std::sync::Arc::new(SimLog::new(disk.clone()).open(process.clone())),
                snapshots: std::sync::Arc::new(SimSnapshots::new(disk)),
                guard: Box::new(()),
            }
        }
    };
    let outcome = runtime.block_on(process.run(check_stores::<SimRuntime>(fresh(process.clone()))));
    assert_eq!(outcome, Ok(()));
}
