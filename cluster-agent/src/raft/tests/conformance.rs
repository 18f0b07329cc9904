//! openraft's storage suite on the stores of this folder.

use std::sync::Arc;

use crate::raft::{
    TokioRuntime,
    conformance::{FreshStores, check_stores},
    store::{
        durable_sled::{DurableSled, SledOptions},
        identity::Marker,
        memory::MemoryLog,
        segment_log::{SegmentLog, SegmentOptions},
        snapshot::{FileSnapshots, MemorySnapshots},
    },
};

#[tokio::test(start_paused = true)]
async fn memory_stores_pass_the_storage_suite() {
    let make = || FreshStores {
        log: Arc::new(MemoryLog::new()),
        snapshots: Arc::new(MemorySnapshots::default()),
        guard: Box::new(()),
    };
    check_stores::<TokioRuntime>(make).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durable_sled_and_snapshot_files_pass_the_storage_suite() {
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let options = SledOptions::default();
        let log = DurableSled::open(&dir.path().join("log"), options, Marker::none()).unwrap();
        let snapshots = FileSnapshots::open(dir.path().join("snapshots")).unwrap();
        FreshStores {
            log: Arc::new(log),
            snapshots: Arc::new(snapshots),
            guard: Box::new(dir),
        }
    };
    check_stores::<TokioRuntime>(make).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn segment_log_and_snapshot_files_pass_the_storage_suite() {
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        // So small that the suite needs several.
        let options = SegmentOptions { segment_bytes: 4_096 };
        let log = SegmentLog::open(&dir.path().join("log"), [1; 16], options, Marker::none()).unwrap();
        let snapshots = FileSnapshots::open(dir.path().join("snapshots")).unwrap();
        FreshStores {
            log: Arc::new(log),
            snapshots: Arc::new(snapshots),
            guard: Box::new(dir),
        }
    };
    check_stores::<TokioRuntime>(make).await.unwrap();
}
