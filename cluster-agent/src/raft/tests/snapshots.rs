//! Snapshots between members: interrupted, resumed, damaged, too old, too large, and without space.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use common::ids::{Digest, LogIndex, LogPosition};
use futures::future::BoxFuture;
use sha2::{Digest as _, Sha256};

use super::{
    harness::{Cluster, PATIENCE, Seat, id, quick, until},
    target::{Target, append, command, leads, log_id, membership},
};
use crate::raft::{
    RaftAlarm, RaftConfig, RaftRpc, RpcRefusal, SnapshotSink,
    codec::{self, AppendReply, AppendRequest, SnapshotFrame, SnapshotHead, SnapshotReply},
    snapshot_file::SnapshotWriter,
    store::{
        StoreError,
        memory::MemoryLog,
        snapshot::{DraftName, MemorySnapshots, SnapshotBytes, SnapshotDraft, SnapshotStore},
    },
};

const FRAME: usize = codec::SNAPSHOT_FRAME_BYTES_MAX;

/// Bytes that do not pack.
fn noise(number: u64, len: usize) -> Vec<u8> {
    let blocks = (0u64..).map(|block| Sha256::digest([number.to_be_bytes(), block.to_be_bytes()].concat()));
    blocks.flatten().take(len).collect()
}

fn bytes_of(bytes: &dyn SnapshotBytes) -> Vec<u8> {
    let mut all = vec![0; bytes.bytes_len() as usize];
    bytes.read_at(0, &mut all).unwrap();
    all
}

/// A snapshot that ends at index 50 with these commands, and its digest.
fn snapshot_of(commands: &[Vec<u8>]) -> (Vec<u8>, Digest) {
    let mut draft = MemorySnapshots::default().draft(DraftName::Own).unwrap();
    let head = SnapshotHead {
        last: Some(log_id(1, 2, 50)),
        chain: Digest([5; 32]),
        membership_at: Some(log_id(1, 2, 1)),
        membership: membership(),
    };
    let mut writer = SnapshotWriter::begin(&mut *draft, head).unwrap();
    for command in commands {
        writer.put(1, command).unwrap();
    }
    let digest = writer.finish().unwrap();
    (bytes_of(&*draft), digest)
}

fn snapshot(commands: u64) -> (Vec<u8>, Digest) {
    let commands: Vec<_> = (0..commands).map(|number| noise(number, 10_000)).collect();
    snapshot_of(&commands)
}

/// Cuts a snapshot into its magic and its frames.
fn frames_of(whole: &[u8]) -> Vec<Vec<u8>> {
    let (magic, mut rest) = whole[..whole.len() - 32].split_at(8);
    let mut parts = vec![magic.to_vec()];
    while !rest.is_empty() {
        let len = 13 + u32::from_be_bytes(rest[5..9].try_into().unwrap()) as usize;
        parts.push(rest[..len].to_vec());
        rest = &rest[len..];
    }
    parts
}

/// A file of these parts that has its digest.
fn sealed(parts: &[Vec<u8>]) -> (Vec<u8>, Digest) {
    let mut whole = parts.concat();
    let digest = Digest(Sha256::digest(&whole).into());
    whole.extend_from_slice(&digest.0);
    (whole, digest)
}

impl Target {
    async fn frame(&self, digest: Digest, whole: &[u8], offset: usize) -> Result<SnapshotReply, RpcRefusal> {
        let end = whole.len().min(offset + FRAME);
        let frame = SnapshotFrame {
            vote: leads(1, 2),
            digest,
            bytes_total: whole.len() as u64,
            offset: offset as u64,
            bytes: whole[offset..end].to_vec().try_into().unwrap(),
        };
        let reply = self
            .handle
            .handle(id(2), RaftRpc::Snapshot, &codec::encode(frame))
            .await?;
        Ok(codec::decode(&reply).unwrap())
    }

    /// Sends a whole snapshot as an honest sender does.
    async fn send(&self, digest: Digest, whole: &[u8]) -> Result<SnapshotReply, RpcRefusal> {
        let mut offset = 0;
        loop {
            match self.frame(digest, whole, offset).await? {
                SnapshotReply::Continue { offset: next } => offset = next as usize,
                done @ SnapshotReply::Done { .. } => return Ok(done),
            }
        }
    }
}

/// A member and its snapshots.
async fn target() -> (Target, MemorySnapshots) {
    let snapshots = MemorySnapshots::default();
    let seat = Seat::on(1, Arc::new(MemoryLog::new()), Arc::new(snapshots.clone()));
    (Target::on(seat, quick()).await, snapshots)
}

fn go_on(offset: usize) -> Result<SnapshotReply, RpcRefusal> {
    Ok(SnapshotReply::Continue { offset: offset as u64 })
}

#[tokio::test(start_paused = true)]
async fn interrupted_snapshot_resumes_where_it_stood() {
    let (target, _) = target().await;
    let (whole, digest) = snapshot(60);
    assert!(whole.len() > 2 * FRAME);
    assert_eq!(target.frame(digest, &whole, 0).await, go_on(FRAME));
    // The sender lost the answer and starts again.
    assert_eq!(target.frame(digest, &whole, 0).await, go_on(FRAME));
    assert_eq!(target.frame(digest, &whole, FRAME).await, go_on(2 * FRAME));
    let done = target.frame(digest, &whole, 2 * FRAME).await;
    assert_eq!(done, Ok(SnapshotReply::Done { vote: leads(1, 2) }));
    target.handle.wait_applied(LogIndex(50), PATIENCE).await.unwrap();
    assert_eq!(target.seat.machine.history().commands.len(), 60);
    assert_eq!(target.handle.applied().1, Digest([5; 32]));
    // The log goes on above it, and its chain is compared.
    let forked = AppendRequest {
        vote: leads(1, 2),
        previous: Some(log_id(1, 2, 50)),
        previous_chain: Some(Digest([6; 32])),
        entries: vec![command(log_id(1, 2, 51), b"x")].try_into().unwrap(),
        committed: None,
    };
    assert_eq!(target.append(forked.clone()).await, Err(RpcRefusal::ForkedLog));
    let honest = AppendRequest {
        previous_chain: Some(Digest([5; 32])),
        ..forked
    };
    assert_eq!(target.append(honest).await, Ok(AppendReply::Success));
}

#[tokio::test(start_paused = true)]
async fn snapshot_goes_on_after_a_restart_of_its_receiver() {
    let (target, snapshots) = target().await;
    let (whole, digest) = snapshot(60);
    target.frame(digest, &whole, 0).await.unwrap();
    target.frame(digest, &whole, FRAME).await.unwrap();
    target.handle.shutdown().await;
    assert_eq!(snapshots.incoming_bytes(), Some(2 * FRAME as u64));
    let again = Target::on(target.seat.clone(), quick()).await;
    assert_eq!(again.frame(digest, &whole, 0).await, go_on(2 * FRAME));
    let done = again.frame(digest, &whole, 2 * FRAME).await;
    assert_eq!(done, Ok(SnapshotReply::Done { vote: leads(1, 2) }));
    again.handle.wait_applied(LogIndex(50), PATIENCE).await.unwrap();
    assert_eq!(snapshots.incoming_bytes(), None);
}

/// Sends a bad snapshot to a member that holds something, and checks that nothing changed.
async fn refused(what: &str, whole: &[u8], digest: Digest) {
    let (target, snapshots) = target().await;
    let (good, good_digest) = snapshot_of(&[b"good".to_vec()]);
    target.send(good_digest, &good).await.unwrap();
    target.handle.wait_applied(LogIndex(50), PATIENCE).await.unwrap();
    let (before, kept) = (
        target.seat.machine.history(),
        bytes_of(&*snapshots.newest().unwrap().unwrap()),
    );
    let answer = target.send(digest, whole).await;
    assert_eq!(answer, Err(RpcRefusal::BadSnapshot), "{what}");
    let alarms = target.alarms();
    assert!(
        matches!(alarms[..], [RaftAlarm::BadSnapshot { .. }]),
        "{what}: {alarms:?}"
    );
    assert_eq!(target.seat.machine.history(), before, "{what}");
    assert_eq!(bytes_of(&*snapshots.newest().unwrap().unwrap()), kept, "{what}");
    assert_eq!(snapshots.incoming_bytes(), None, "{what}: the draft is removed");
    // It is alive, and the next good entry is taken.
    let next = AppendRequest {
        vote: leads(1, 2),
        previous: Some(log_id(1, 2, 50)),
        previous_chain: Some(Digest([5; 32])),
        entries: vec![command(log_id(1, 2, 51), b"x")].try_into().unwrap(),
        committed: None,
    };
    assert_eq!(target.append(next).await, Ok(AppendReply::Success), "{what}");
}

#[tokio::test(start_paused = true)]
async fn damaged_snapshot_changes_nothing() {
    let (whole, digest) = snapshot(3);
    refused("another digest was announced", &whole, Digest([1; 32])).await;
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    refused("a bit is flipped", &flipped, digest).await;
    let parts = frames_of(&whole);
    assert_eq!(parts.len(), 6, "magic, head, three commands, end");
    let variant = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut parts = parts.clone();
        change(&mut parts);
        sealed(&parts)
    };
    let bad: [(&str, (Vec<u8>, Digest)); 9] = [
        ("another format", variant(&|parts| parts[0][7] = b'2')),
        ("no head", variant(&|parts| drop(parts.remove(1)))),
        ("two heads", variant(&|parts| parts.insert(1, parts[1].clone()))),
        ("a frame is missing", variant(&|parts| drop(parts.remove(3)))),
        (
            "a frame comes twice",
            variant(&|parts| parts.insert(3, parts[3].clone())),
        ),
        ("the end comes early", variant(&|parts| parts.swap(4, 5))),
        ("no end", variant(&|parts| drop(parts.pop()))),
        ("a frame's checksum is another", variant(&|parts| parts[3][20] ^= 1)),
        ("a frame that claims a gigabyte", variant(&|parts| parts[3][1] = 0x40)),
    ];
    for (what, (whole, digest)) in bad {
        refused(what, &whole, digest).await;
    }
    refused("its digest alone", &[7; 32], Digest([7; 32])).await;
    let (whole, digest) = snapshot_of(&[b"fine".to_vec(), b"bad for the machine".to_vec()]);
    refused("the machine refuses it", &whole, digest).await;
}

#[tokio::test(start_paused = true)]
async fn snapshot_above_the_bound_is_refused_at_its_first_frame() {
    let (target, snapshots) = target().await;
    let frame = SnapshotFrame {
        vote: leads(1, 2),
        digest: Digest([1; 32]),
        bytes_total: codec::SNAPSHOT_BYTES_MAX + 1,
        offset: 0,
        bytes: vec![1; 100].try_into().unwrap(),
    };
    let body = codec::encode(frame);
    assert_eq!(
        target.handle.handle(id(2), RaftRpc::Snapshot, &body).await,
        Err(RpcRefusal::Malformed)
    );
    assert_eq!(snapshots.incoming_bytes(), None);
}

#[tokio::test(start_paused = true)]
async fn snapshot_older_than_what_is_committed_changes_nothing() {
    let snapshots = MemorySnapshots::default();
    let seat = Seat::on(1, Arc::new(MemoryLog::new()), Arc::new(snapshots.clone()));
    let target = Target::on(seat, quick()).await;
    let mut log = vec![crate::raft::codec::WireEntry {
        id: log_id(1, 2, 1),
        payload: crate::raft::codec::WirePayload::Membership(membership()),
    }];
    log.extend((2..=60).map(|index| command(log_id(1, 2, index), b"own")));
    let appended = target
        .append(append(leads(1, 2), &[], &log, Some(log_id(1, 2, 60))))
        .await;
    assert_eq!(appended, Ok(AppendReply::Success));
    target.handle.wait_applied(LogIndex(60), PATIENCE).await.unwrap();
    let before = target.seat.machine.history();
    let (whole, digest) = snapshot(2);
    // Another chain at an entry that we hold: a fork, not merely old.
    assert_eq!(target.send(digest, &whole).await, Err(RpcRefusal::ForkedLog));
    // Nothing to compare with: a no-op.
    let head = SnapshotHead {
        last: Some(log_id(1, 2, 50)),
        chain: log[..50]
            .iter()
            .fold(Digest::default(), |chain, entry| entry.chain(chain)),
        membership_at: Some(log_id(1, 2, 1)),
        membership: membership(),
    };
    let mut draft = MemorySnapshots::default().draft(DraftName::Own).unwrap();
    let digest = SnapshotWriter::begin(&mut *draft, head).unwrap().finish().unwrap();
    let done = target.send(digest, &bytes_of(&*draft)).await;
    assert_eq!(done, Ok(SnapshotReply::Done { vote: leads(1, 2) }));
    assert_eq!(target.seat.machine.history(), before);
    assert!(snapshots.newest().unwrap().is_none());
    assert_eq!(snapshots.incoming_bytes(), None, "the draft is removed");
}

#[tokio::test(start_paused = true)]
async fn another_members_frames_do_not_replace_a_running_snapshot() {
    let (target, _) = target().await;
    let (whole, digest) = snapshot(60);
    target.frame(digest, &whole, 0).await.unwrap();
    let intruder = SnapshotFrame {
        vote: leads(0, 3),
        digest: Digest([9; 32]),
        bytes_total: 10,
        offset: 0,
        bytes: vec![1; 5].try_into().unwrap(),
    };
    let intruder = codec::encode(intruder);
    let reply = target.handle.handle(id(3), RaftRpc::Snapshot, &intruder).await.unwrap();
    let reply: SnapshotReply = codec::decode(&reply).unwrap();
    assert_eq!(Ok(reply), go_on(0));
    assert_eq!(target.frame(digest, &whole, FRAME).await, go_on(2 * FRAME));
}

/// Memory that is full while told so.
#[derive(Clone, Default)]
struct FullSnapshots {
    memory: MemorySnapshots,
    is_full: Arc<AtomicBool>,
}

struct FullDraft {
    draft: Box<dyn SnapshotDraft>,
    is_full: Arc<AtomicBool>,
}

impl FullDraft {
    fn check(&self) -> Result<(), StoreError> {
        if self.is_full.load(Ordering::SeqCst) {
            Err(StoreError::Io("no space left on device".into()))
        } else {
            Ok(())
        }
    }
}

impl SnapshotBytes for FullDraft {
    fn bytes_len(&self) -> u64 {
        self.draft.bytes_len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StoreError> {
        self.draft.read_at(offset, buffer)
    }
}

impl SnapshotDraft for FullDraft {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.check()?;
        self.draft.append(bytes)
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        self.check()
    }

    fn discard(self: Box<Self>) {
        self.draft.discard();
    }

    fn name(&self) -> &str {
        self.draft.name()
    }
}

impl SnapshotStore for FullSnapshots {
    fn run(&self, work: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, Result<(), StoreError>> {
        self.memory.run(work)
    }

    fn newest(&self) -> Result<Option<Arc<dyn SnapshotBytes>>, StoreError> {
        self.memory.newest()
    }

    fn draft(&self, name: DraftName) -> Result<Box<dyn SnapshotDraft>, StoreError> {
        Ok(Box::new(FullDraft {
            draft: self.memory.draft(name)?,
            is_full: self.is_full.clone(),
        }))
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
async fn full_disk_refuses_a_snapshot_and_takes_it_when_there_is_space() {
    let snapshots = FullSnapshots::default();
    let seat = Seat::on(1, Arc::new(MemoryLog::new()), Arc::new(snapshots.clone()));
    let target = Target::on(seat, quick()).await;
    let (whole, digest) = snapshot(60);
    target.frame(digest, &whole, 0).await.unwrap();
    snapshots.is_full.store(true, Ordering::SeqCst);
    // In the middle, and again when what was received is to be made durable.
    assert_eq!(target.frame(digest, &whole, FRAME).await, Err(RpcRefusal::NoSpace));
    assert_eq!(snapshots.memory.incoming_bytes(), None, "the draft is removed");
    assert_eq!(target.seat.machine.history().restores, 0);
    let (small, small_digest) = snapshot(1);
    assert_eq!(target.send(small_digest, &small).await, Err(RpcRefusal::NoSpace));
    assert!(target.alarms().is_empty(), "the sender is not to blame");
    snapshots.is_full.store(false, Ordering::SeqCst);
    let done = target.send(digest, &whole).await;
    assert_eq!(done, Ok(SnapshotReply::Done { vote: leads(1, 2) }));
    target.handle.wait_applied(LogIndex(50), PATIENCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn snapshot_that_cannot_be_written_leaves_the_one_before_and_the_member_alive() {
    let snapshots = FullSnapshots::default();
    let seat = Seat::on(1, Arc::new(MemoryLog::new()), Arc::new(snapshots.clone()));
    let cluster = Cluster::start(vec![seat], small_snapshots()).await;
    let leader = cluster.leader().await;
    for number in 0..30u8 {
        cluster.commit(leader, &[number]).await;
    }
    let first = until(&cluster.handles[0], "a snapshot", |status| {
        status.snapshot.index > LogIndex(0)
    })
    .await;
    snapshots.is_full.store(true, Ordering::SeqCst);
    for number in 0..60u8 {
        cluster.commit(leader, &[number]).await;
    }
    assert!(cluster.handles[0].status().snapshot >= first.snapshot);
    snapshots.is_full.store(false, Ordering::SeqCst);
    let before = cluster.handles[0].status().snapshot;
    for number in 0..60u8 {
        cluster.commit(leader, &[number]).await;
    }
    until(&cluster.handles[0], "a newer snapshot", |status| {
        status.snapshot > before
    })
    .await;
}

fn small_snapshots() -> RaftConfig {
    RaftConfig {
        snapshot_entries: 20,
        snapshot_entries_kept: 5,
        ..quick()
    }
}

#[tokio::test(start_paused = true)]
async fn follower_behind_the_purge_is_caught_up_over_a_link_that_breaks_and_a_restart() {
    let mut cluster = Cluster::in_memory(3, small_snapshots()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"first").await;
    let lagging = (leader + 1) % 3;
    cluster.board.isolate(cluster.seats[lagging].id);
    for number in 0..200 {
        cluster.commit(leader, &noise(number, 10_000)).await;
    }
    until(&cluster.handles[leader], "purged", |status| {
        status.purged.index > LogIndex(150)
    })
    .await;
    // The link breaks after three frames of some eight, then again.
    cluster.board.heal();
    cluster.board.break_after_frames(3);
    while cluster.board.snapshot_frames() < 3 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    // The receiver is stopped and starts again over what it has.
    cluster.handles[lagging].shutdown().await;
    cluster.board.unplug(cluster.seats[lagging].id);
    let seat = &mut cluster.seats[lagging];
    seat.machine = Arc::default();
    cluster.board.break_after_frames(2);
    cluster.handles[lagging] = seat.open(small_snapshots(), &cluster.board).await;
    while cluster.board.snapshot_frames() < 5 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    cluster.board.heal();
    let last = cluster.commit(leader, b"last").await.index;
    cluster.all_applied(last).await;
    let (restored, applied) = (
        cluster.seats[lagging].machine.history(),
        cluster.seats[leader].machine.history(),
    );
    assert_eq!(restored.commands, applied.commands);
    assert_eq!((restored.position, restored.chain), (applied.position, applied.chain));
    let frames = applied.commands.len() * 10_000 / FRAME + 1;
    let sent = cluster.board.snapshot_frames();
    assert!(
        sent < 2 * frames,
        "{sent} frames for a snapshot of {frames}: it went on where it stood"
    );
    assert_eq!(cluster.seats[lagging].alarms.lock().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn log_is_bounded_in_bytes_and_snapshots_are_due_by_bytes() {
    let config = RaftConfig {
        snapshot_entries: 1_000_000,
        snapshot_entries_kept: 100_000,
        snapshot_bytes: 1_000_000,
        snapshot_bytes_kept: 500_000,
        ..quick()
    };
    let cluster = Cluster::in_memory(1, config).await;
    let leader = cluster.leader().await;
    let mut last = LogIndex(0);
    for number in 0..60 {
        last = cluster.commit(leader, &noise(number, 100_000)).await.index;
    }
    let status = until(&cluster.handles[0], "purged by bytes", |status| {
        status.purged.index.0 + 20 >= last.0
    })
    .await;
    assert!(status.snapshot.index.0 + 12 >= last.0, "{status:?}");
    assert!(status.purged.index < status.snapshot.index, "{status:?}");
}
