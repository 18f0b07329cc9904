//! The ports in memory keep the promises of the real ones.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    ids::{ChainId, DeviceId, NodeIdx},
    wire::frame::{FrameKind, Protocol, Refusal, RefusalCode},
};
use futures::FutureExt as _;
use tokio::runtime::Handle;

use super::*;
use crate::{
    machine::{OnPanic, TokioSpawner},
    ports::{CallError, Disk as _, Lane, Peer, Service, Transport as _},
    quic::{
        hello_of,
        tests::fleet::{Answering, Echo, echo_of},
    },
};

const SOON: Duration = Duration::from_secs(10);
const A: DeviceId = DeviceId([1; 32]);
const B: DeviceId = DeviceId([2; 32]);

#[tokio::test]
async fn crash_keeps_what_was_done_and_loses_the_rest() {
    let disk = MemoryDisk::new();
    let (mut journal, records) = disk.open_journal("j").unwrap();
    assert!(records.is_empty());
    let offsets = journal.append(vec![b"a".to_vec(), b"b".to_vec()]).await.unwrap();
    disk.replace("meta", b"1".to_vec()).await.unwrap();
    let mut unfinished = journal.append(vec![b"lost".to_vec()]);
    let mut unfinished_meta = disk.replace("meta", b"2".to_vec());
    assert!((&mut unfinished).now_or_never().is_none());
    assert!((&mut unfinished_meta).now_or_never().is_none());
    disk.crash();
    assert!(unfinished.await.is_err() && unfinished_meta.await.is_err());
    assert!(journal.append(vec![b"late".to_vec()]).await.is_err(), "a dead handle");
    let (journal, records) = disk.open_journal("j").unwrap();
    assert_eq!(records, [(offsets[0], b"a".to_vec()), (offsets[1], b"b".to_vec())]);
    assert_eq!(journal.read(offsets[1]).unwrap(), b"b");
    assert!(journal.read(offsets[1] + 1).is_err());
    assert_eq!(disk.read("meta").unwrap().unwrap(), b"1");
}

#[tokio::test]
async fn rewrite_and_list_and_remove_are_as_on_a_machine() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = disk.open_journal("seg-1").unwrap();
    journal.append(vec![b"a".to_vec()]).await.unwrap();
    let offsets = journal.rewrite(vec![b"x".to_vec(), b"y".to_vec()]).await.unwrap();
    assert_eq!(journal.read(offsets[1]).unwrap(), b"y");
    let end = journal.bytes();
    let more = journal.append(vec![b"z".to_vec()]).await.unwrap();
    assert_eq!(more, [end]);
    disk.replace("meta", Vec::new()).await.unwrap();
    assert_eq!(disk.list("").unwrap(), ["meta", "seg-1"]);
    assert_eq!(disk.list("seg-").unwrap(), ["seg-1"]);
    disk.remove("seg-1").await.unwrap();
    assert!(disk.open_journal("seg-1").unwrap().1.is_empty());
}

#[tokio::test]
async fn failing_disk_reports_and_keeps_what_was_done() {
    let disk = MemoryDisk::new();
    let (mut journal, _) = disk.open_journal("j").unwrap();
    journal.append(vec![b"a".to_vec()]).await.unwrap();
    disk.fail();
    assert!(journal.append(vec![b"b".to_vec()]).await.is_err());
    assert!(disk.replace("meta", Vec::new()).await.is_err());
    disk.crash();
    let (mut journal, records) = disk.open_journal("j").unwrap();
    assert_eq!(records.len(), 1);
    journal.append(vec![b"b".to_vec()]).await.unwrap();
}

fn network() -> MemoryNetwork {
    MemoryNetwork::new(Arc::new(TokioSpawner::new(Handle::current(), OnPanic::Log)))
}

#[tokio::test]
async fn call_reaches_the_service_of_its_device_with_the_caller_named() {
    let network = network();
    let a = network.join(NodeIdx(1), hello_of(ChainId([0; 32]), A), Arc::new(Echo));
    let b = network.join(NodeIdx(2), hello_of(ChainId([0; 32]), B), Arc::new(Echo));
    let body = Bytes::from_static(b"?");
    let answer = a.call(B, FrameKind::RaftVote, body.clone(), SOON).await;
    assert_eq!(answer.unwrap(), echo_of(1, FrameKind::RaftVote, b"?"));
    let answer = b.call(A, FrameKind::Vote, body, SOON).await;
    assert_eq!(answer.unwrap(), echo_of(2, FrameKind::Vote, b"?"));
}

#[tokio::test]
async fn cut_link_and_absent_device_are_unreachable() {
    let network = network();
    let a = network.join(NodeIdx(1), hello_of(ChainId([0; 32]), A), Arc::new(Echo));
    let call = || a.call(B, FrameKind::RaftVote, Bytes::new(), SOON);
    assert_eq!(call().await, Err(CallError::Unreachable(B)));
    network.join(NodeIdx(2), hello_of(ChainId([0; 32]), B), Arc::new(Echo));
    assert!(call().await.is_ok());
    network.set_link(B, A, false);
    assert_eq!(call().await, Err(CallError::Unreachable(B)));
    assert!(!a.is_connected(&B, Protocol::Raft));
    network.set_link(A, B, true);
    assert!(call().await.is_ok());
    network.leave(&B);
    assert_eq!(call().await, Err(CallError::Unreachable(B)));
}

#[tokio::test]
async fn silence_and_refusal_and_oversized_answer_arrive_as_over_the_wire() {
    let network = network();
    let a = network.join(NodeIdx(1), hello_of(ChainId([0; 32]), A), Arc::new(Echo));
    let service = |_, _, body: Bytes| -> crate::ports::BoxFuture<Result<Bytes, Refusal>> {
        Box::pin(async move {
            match &body[..] {
                b"silent" => std::future::pending().await,
                b"long" => Ok(Bytes::from(vec![0; 1025])),
                _ => Err(Refusal::new(RefusalCode::Denied, "no")),
            }
        })
    };
    network.join(NodeIdx(2), hello_of(ChainId([0; 32]), B), Arc::new(Answering(service)));
    let call_within =
        |body: &'static [u8], deadline| a.call(B, FrameKind::RaftVote, Bytes::from_static(body), deadline);
    let call = |body| call_within(body, SOON);
    let short = Duration::from_millis(20);
    assert_eq!(call_within(b"silent", short).await, Err(CallError::Timeout(short)));
    assert!(matches!(call(b"long").await, Err(CallError::Refused(r)) if r.code == RefusalCode::NotNow));
    assert!(matches!(call(b"?").await, Err(CallError::Refused(r)) if r.code == RefusalCode::Denied));
}

#[tokio::test]
#[should_panic(expected = "the caller builds bounded bodies")]
async fn caller_that_builds_an_oversized_body_is_stopped() {
    let a = network().join(NodeIdx(1), hello_of(ChainId([0; 32]), A), Arc::new(Echo));
    let _ = a.call(B, FrameKind::RaftVote, Bytes::from(vec![0; 1025]), SOON).await;
}

/// Answers each request of a lane with itself.
struct LaneEcho;

impl Service for LaneEcho {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> crate::ports::BoxFuture<Result<Bytes, Refusal>> {
        Echo.handle(peer, kind, body)
    }

    fn lane(&self, _peer: Peer, _kind: FrameKind, mut lane: Lane) -> crate::ports::BoxFuture<()> {
        Box::pin(async move {
            while let Ok(Some(body)) = lane.receiver.recv().await {
                if lane.sender.send(body).await.is_err() {
                    return;
                }
            }
            lane.sender.end(None).await;
        })
    }
}

#[tokio::test]
async fn lane_keeps_order_and_breaks_with_its_link_or_its_peers_process() {
    let network = network();
    let a = network.join(NodeIdx(1), hello_of(ChainId([0; 32]), A), Arc::new(Echo));
    network.join(NodeIdx(2), hello_of(ChainId([0; 32]), B), Arc::new(LaneEcho));
    let open = || async { a.open_lane(B, FrameKind::RaftLane, SOON).await.ok().unwrap() };
    let mut lane = open().await;
    for number in 0..10u8 {
        lane.sender.send(Bytes::from(vec![number])).await.unwrap();
    }
    for number in 0..10u8 {
        assert_eq!(lane.receiver.recv().await, Ok(Some(Bytes::from(vec![number]))));
    }
    lane.sender.end(None).await;
    assert_eq!(lane.receiver.recv().await, Ok(None));
    let mut lane = open().await;
    network.set_link(A, B, false);
    assert!(matches!(
        lane.sender.send(Bytes::new()).await,
        Err(CallError::Broken(_))
    ));
    network.set_link(A, B, true);
    let mut lane = open().await;
    network.join(NodeIdx(2), hello_of(ChainId([0; 32]), B), Arc::new(LaneEcho));
    assert!(
        lane.sender.send(Bytes::new()).await.is_err(),
        "the process of before is gone"
    );
    let outcome = a.open_lane(A, FrameKind::RaftLane, SOON).await;
    let mut lane = outcome.ok().unwrap();
    // A service that refuses may be gone already.
    let _ = lane.sender.send(Bytes::new()).await;
    assert!(matches!(lane.receiver.recv().await, Err(CallError::Refused(r)) if r.code == RefusalCode::Denied));
}
