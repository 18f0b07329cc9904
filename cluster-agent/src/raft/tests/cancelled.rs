//! Requests whose sender goes away while they are carried out, and a core that waits for its disk.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::ids::{Digest, LogIndex, LogPosition};
use futures::{FutureExt, future::BoxFuture};
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use transport::memory::{Fate, lane_pair};

use super::{
    harness::{HeldLog, PATIENCE, Seat, eventually, id, quick},
    target::{Target, append, command, leads, log_id},
};
use crate::raft::{
    AsyncRuntime as _, REPLY_BYTES_MAX, RaftRpc, RpcRefusal, TokioRuntime,
    codec::{self, AppendReply, SnapshotFrame, SnapshotReply, WireEntry},
    store::{
        StoreError,
        memory::MemoryLog,
        snapshot::{DraftName, MemorySnapshots, SnapshotBytes, SnapshotDraft, SnapshotStore},
    },
};

/// Long enough for everything that does not wait for a disk.
const A_MOMENT: Duration = Duration::from_millis(20);

/// A member whose core waits for its disk to take a vote, until the log is released.
async fn stuck() -> (Arc<Target>, Arc<HeldLog>, Vec<WireEntry>) {
    let log = Arc::new(HeldLog::default());
    let seat = Seat::on(1, log.clone(), Arc::new(MemorySnapshots::default()));
    let (target, held) = Target::on(seat, quick()).await.fill(&[b"a"]).await;
    let target = Arc::new(target);
    log.hold();
    let (asked, heartbeat) = (target.clone(), append(leads(2, 3), &held, &[], None));
    drop(TokioRuntime::spawn(async move { asked.append(heartbeat).await }));
    eventually("the vote waits for the disk", || log.waiting() > 0).await;
    (target, log, held)
}

/// Whatever became of the first one, another entry under its id does not get past the checks.
async fn is_still_claimed(target: &Target, log: &HeldLog, held: &[WireEntry]) {
    let at = log_id(2, 3, 3);
    let forked = target.append(append(leads(2, 3), held, &[command(at, b"other")], None));
    let answer = tokio::time::timeout(A_MOMENT, forked).await;
    assert_eq!(
        answer,
        Ok(Err(RpcRefusal::ForkedLog)),
        "the first may still get into the log"
    );
    log.release();
    let again = append(leads(2, 3), held, &[command(at, b"first")], None);
    assert_eq!(target.append(again).await, Ok(AppendReply::Success));
    assert_eq!(target.last_index(), LogIndex(3));
}

#[tokio::test(start_paused = true)]
async fn append_whose_sender_went_away_counts_as_on_its_way() {
    let (target, log, held) = stuck().await;
    let first = append(leads(2, 3), &held, &[command(log_id(2, 3, 3), b"first")], None);
    let given_up = tokio::time::timeout(A_MOMENT, target.append(first)).await;
    assert!(given_up.is_err(), "the core is stuck");
    is_still_claimed(&target, &log, &held).await;
}

#[tokio::test(start_paused = true)]
async fn requests_of_a_lane_that_broke_count_as_on_their_way() {
    let (target, log, held) = stuck().await;
    let weather = Arc::new(|_| Fate::Arrives);
    let (mut ours, theirs) = lane_pair(RaftRpc::Append.request_bytes_max(), REPLY_BYTES_MAX, weather);
    let handle = target.handle.clone();
    let serving = TokioRuntime::spawn(async move { handle.lane(id(3), theirs).await });
    let first = append(leads(2, 3), &held, &[command(log_id(2, 3, 3), b"first")], None);
    ours.sender.send(codec::encode(first).into()).await.unwrap();
    tokio::time::sleep(A_MOMENT).await;
    serving.abort();
    tokio::time::sleep(A_MOMENT).await;
    is_still_claimed(&target, &log, &held).await;
}

#[tokio::test(start_paused = true)]
async fn contact_is_not_waited_for_while_the_core_waits_for_its_disk() {
    let (target, log, _) = stuck().await;
    let patience = Duration::from_millis(quick().election_timeout_ms_max);
    let age = tokio::time::timeout(patience + A_MOMENT, target.handle.contact_age()).await;
    assert_eq!(age, Ok(None), "nothing is known, and that at once");
    log.release();
    eventually("the vote is given", || target.handle.status().term.0 == 2).await;
    assert!(target.handle.contact_age().await.is_some());
}

/// Snapshots on a disk that works only when it is let: work goes on when nobody waits for it any more.
#[derive(Clone)]
struct SlowSnapshots {
    memory: MemorySnapshots,
    gate: Arc<Semaphore>,
    at_once: Arc<AtomicUsize>,
    at_once_most: Arc<AtomicUsize>,
}

impl SnapshotStore for SlowSnapshots {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, Result<(), StoreError>> {
        let this = self.clone();
        let working = TokioRuntime::spawn(async move {
            let now = this.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            this.at_once_most.fetch_max(now, Ordering::SeqCst);
            drop(this.gate.acquire().await);
            work();
            this.at_once.fetch_sub(1, Ordering::SeqCst);
        });
        working
            .map(|done| done.map_err(|error| StoreError::Io(error.to_string())))
            .boxed()
    }

    fn newest(&self) -> Result<Option<Arc<dyn SnapshotBytes>>, StoreError> {
        self.memory.newest()
    }

    fn draft(&self, name: DraftName) -> Result<Box<dyn SnapshotDraft>, StoreError> {
        self.memory.draft(name)
    }

    fn publish(
        &self,
        draft: Box<dyn SnapshotDraft>,
        at: LogPosition,
    ) -> BoxFuture<'static, Result<Arc<dyn SnapshotBytes>, StoreError>> {
        self.memory.publish(draft, at)
    }
}

#[tokio::test(start_paused = true)]
async fn frame_whose_sender_went_away_has_no_second_writer_beside_it() {
    let gate = Arc::new(Semaphore::new(8));
    let snapshots = SlowSnapshots {
        memory: MemorySnapshots::default(),
        gate: gate.clone(),
        at_once: Arc::default(),
        at_once_most: Arc::default(),
    };
    let seat = Seat::on(1, Arc::new(MemoryLog::new()), Arc::new(snapshots.clone()));
    let target = Target::on(seat, quick()).await;
    let whole = vec![7; 1_000];
    let frame = |from: usize, to: usize| SnapshotFrame {
        vote: leads(1, 2),
        digest: Digest(Sha256::digest(&whole).into()),
        bytes_total: whole.len() as u64,
        offset: from as u64,
        bytes: whole[from..to].to_vec().try_into().unwrap(),
    };
    let send = async |frame: SnapshotFrame| {
        let body = codec::encode(frame);
        target.handle.handle(id(2), RaftRpc::Snapshot, &body).await
    };
    snapshots.at_once_most.store(0, Ordering::SeqCst);
    let closed = gate.acquire_many(8).await.unwrap();
    for _ in 0..3 {
        let given_up = tokio::time::timeout(A_MOMENT, send(frame(0, 400))).await;
        assert!(given_up.is_err(), "the disk is stuck");
    }
    drop(closed);
    let reply = tokio::time::timeout(PATIENCE, send(frame(400, 800)))
        .await
        .unwrap()
        .unwrap();
    let offset = 800;
    assert_eq!(
        codec::decode(&reply),
        Ok(SnapshotReply::Continue { offset }),
        "the first frame was written"
    );
    assert_eq!(snapshots.memory.incoming_bytes(), Some(offset), "and once");
    assert_eq!(snapshots.at_once_most.load(Ordering::SeqCst), 1);
}
