//! Lanes over real QUIC: order, bounds, and what a peer that misbehaves on one costs.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::wire::frame::{
    ANSWER_KIND, FrameKind, HELLO_KIND, Protocol, REFUSAL_KIND, Refusal, RefusalCode, frame_header,
};
use quinn::{Connection, ReadError, ReadToEndError};
use tokio::time::Instant;

use super::{
    super::code::StreamCode,
    fleet::{Attacker, Echo, Fleet, echo_of, key, within},
};
use crate::{
    ports::{BoxFuture, CallError, Lane, Peer, Service, Transport},
    quic::{QuicTransport, lane::LANES_MAX},
};

const SOON: Duration = Duration::from_secs(10);
const KIND: FrameKind = FrameKind::RaftLane;

/// Answers requests of a lane with their own bytes, after it has received `batch` of them. `end` ends the
/// lane with a refusal, `panic` as a bug would.
struct LaneEcho {
    batch: usize,
}

impl LaneEcho {
    fn new(batch: usize) -> Arc<Self> {
        Arc::new(Self { batch })
    }
}

impl Service for LaneEcho {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        Echo.handle(peer, kind, body)
    }

    fn lane(&self, _peer: Peer, kind: FrameKind, mut lane: Lane) -> BoxFuture<()> {
        assert_eq!(kind, KIND);
        let batch = self.batch;
        Box::pin(async move {
            let mut held = Vec::new();
            loop {
                let body = match lane.receiver.recv().await {
                    Ok(Some(body)) => body,
                    Ok(None) => return lane.sender.end(None).await,
                    Err(_) => return,
                };
                assert!(&body[..] != b"panic", "as asked");
                if &body[..] == b"end" {
                    return lane
                        .sender
                        .end(Some(Refusal::new(RefusalCode::NotNow, "as asked")))
                        .await;
                }
                held.push(body.slice(..body.len().min(100)));
                if held.len() >= batch {
                    for answer in held.drain(..) {
                        if lane.sender.send(answer).await.is_err() {
                            return;
                        }
                    }
                }
            }
        })
    }
}

fn pair(fleet: &Fleet, service: Arc<dyn Service>) -> (Arc<QuicTransport>, Arc<QuicTransport>) {
    let (client, server) = (fleet.start("c1-2"), fleet.start_serving("c1-1", service));
    client.add_address(fleet.id("c1-1"), server.local_addr());
    (client, server)
}

async fn open(fleet: &Fleet, client: &QuicTransport) -> Lane {
    within(client.open_lane(fleet.id("c1-1"), KIND, SOON))
        .await
        .ok()
        .unwrap()
}

async fn ask(lane: &mut Lane, body: &'static [u8]) -> Result<Option<Bytes>, CallError> {
    lane.sender.send(Bytes::from_static(body)).await?;
    within(lane.receiver.recv()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_do_not_wait_for_answers_which_come_in_order() {
    let fleet = Fleet::new();
    // A service that answered each request before it read the next would never answer.
    let (client, _server) = pair(&fleet, LaneEcho::new(50));
    let mut lane = open(&fleet, &client).await;
    for number in 0..50u32 {
        let body = Bytes::copy_from_slice(&number.to_le_bytes());
        within(lane.sender.send(body)).await.unwrap();
    }
    for number in 0..50u32 {
        let answer = within(lane.receiver.recv()).await.unwrap().unwrap();
        assert_eq!(answer[..], number.to_le_bytes());
    }
    lane.sender.end(None).await;
    assert_eq!(
        within(lane.receiver.recv()).await,
        Ok(None),
        "both sides ended in good order"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn largest_requests_pass_and_a_dropped_read_loses_nothing() {
    let fleet = Fleet::new();
    let (client, _server) = pair(&fleet, LaneEcho::new(1));
    let mut lane = open(&fleet, &client).await;
    let Lane { sender, receiver } = &mut lane;
    let mut answers = 0u8;
    for number in 0..8u8 {
        let body = Bytes::from(vec![number; KIND.request_bytes_max()]);
        let mut sending = sender.send(body);
        // The read is dropped again and again while the request goes out.
        loop {
            let received = receiver.recv();
            match within(futures::future::select(sending, received)).await {
                futures::future::Either::Left((sent, _dropped)) => {
                    sent.unwrap();
                    break;
                }
                futures::future::Either::Right((answer, rest)) => {
                    assert_eq!(answer.unwrap().unwrap()[..], [answers; 100]);
                    answers += 1;
                    sending = rest;
                }
            }
        }
    }
    while answers < 8 {
        let answer = within(receiver.recv()).await.unwrap().unwrap();
        assert_eq!(answer[..], [answers; 100]);
        answers += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_is_the_last_answer() {
    let fleet = Fleet::new();
    let (client, _server) = pair(&fleet, LaneEcho::new(1));
    let mut lane = open(&fleet, &client).await;
    assert_eq!(ask(&mut lane, b"a").await, Ok(Some(Bytes::from_static(b"a"))));
    let refusal = Err(CallError::Refused(Refusal::new(RefusalCode::NotNow, "as asked")));
    assert_eq!(ask(&mut lane, b"end").await, refusal);
    assert_eq!(within(lane.receiver.recv()).await, refusal, "and stays so");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_without_lanes_refuses_them_and_a_panic_ends_its_lane_only() {
    let fleet = Fleet::new();
    let (client, _server) = pair(&fleet, Arc::new(Echo));
    let mut lane = open(&fleet, &client).await;
    let outcome = ask(&mut lane, b"a").await;
    assert!(
        matches!(&outcome, Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Denied),
        "{outcome:?}"
    );
    let (client, _server) = pair(&fleet, LaneEcho::new(1));
    let (mut faulty, mut good) = (open(&fleet, &client).await, open(&fleet, &client).await);
    assert!(ask(&mut good, b"a").await.is_ok());
    let outcome = ask(&mut faulty, b"panic").await;
    assert!(matches!(outcome, Err(CallError::Broken(_))), "{outcome:?}");
    assert!(ask(&mut good, b"b").await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn lanes_of_one_connection_are_bounded() {
    let fleet = Fleet::new();
    let (client, _server) = pair(&fleet, LaneEcho::new(1));
    let mut lanes = Vec::new();
    for _ in 0..LANES_MAX {
        let mut lane = open(&fleet, &client).await;
        assert!(ask(&mut lane, b"a").await.is_ok());
        lanes.push(lane);
    }
    let outcome = ask(&mut open(&fleet, &client).await, b"a").await;
    assert!(
        matches!(&outcome, Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Busy),
        "{outcome:?}"
    );
    // Single calls go on beside them, and a lane that was given up makes room.
    let call = client.call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON);
    assert_eq!(call.await, Ok(echo_of(1, FrameKind::RaftVote, b"")));
    lanes.pop();
    within(async { while ask(&mut open(&fleet, &client).await, b"a").await.is_err() {} }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_closes_ends_its_lanes_at_once() {
    let fleet = Fleet::new();
    let (client, server) = pair(&fleet, LaneEcho::new(1));
    let mut lane = open(&fleet, &client).await;
    assert!(ask(&mut lane, b"a").await.is_ok());
    let (received, ()) = within(futures::future::join(lane.receiver.recv(), server.close())).await;
    assert!(matches!(received, Err(CallError::Broken(_))), "{received:?}");
    assert!(lane.sender.send(Bytes::from_static(b"b")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_left_the_registry_is_cut_off_at_the_next_request_of_its_lane() {
    let fleet = Fleet::new();
    let (client, _server) = pair(&fleet, LaneEcho::new(1));
    let mut lane = open(&fleet, &client).await;
    assert!(ask(&mut lane, b"a").await.is_ok());
    let without = Fleet::varied(|genesis| {
        let mut devices = genesis.devices.clone().into_inner();
        devices[1].key = key("c1-2's successor").public();
        genesis.devices = devices.try_into().unwrap();
    });
    fleet.registry.replace(without.registry.load());
    let outcome = ask(&mut lane, b"b").await;
    assert!(matches!(outcome, Err(CallError::Broken(_))), "{outcome:?}");
    assert!(!client.is_connected(&fleet.id("c1-1"), Protocol::Raft));
}

fn framed(kind: u8, len: usize, body: &[u8]) -> Vec<u8> {
    [&frame_header(kind, len)[..], body].concat()
}

/// Sends raw bytes on a stream and returns what comes back until its end.
async fn send_raw(connection: &Connection, bytes: &[u8]) -> Result<Vec<u8>, ReadToEndError> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // The server may stop reading before all is sent.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    within(recv.read_to_end(1 << 20)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_frame_ends_its_lane_and_is_counted_and_the_connection_goes_on() {
    let fleet = Fleet::new();
    let server = fleet.start_serving("c1-1", LaneEcho::new(1));
    let connection = Attacker::new()
        .join(&fleet, "c1-2", server.local_addr(), Protocol::Raft)
        .await;
    let (lane, cap) = (KIND.byte(), KIND.request_bytes_max());
    let good = framed(lane, 2, b"ok");
    let mut score = 0;
    for (what, bad, points) in [
        ("one byte above the cap", framed(lane, cap + 1, &[0; 64]), 50),
        ("the longest length", framed(lane, u32::MAX as usize, b""), 50),
        ("end inside of the body", framed(lane, 10, b"short"), 10),
        ("end inside of the header", vec![1, 0, 0], 10),
        ("unknown kind", framed(0x7f, 1, b"a"), 10),
        (
            "kind of a single request",
            framed(FrameKind::RaftVote.byte(), 1, b"a"),
            10,
        ),
        ("kind of another protocol", framed(FrameKind::Vote.byte(), 1, b"a"), 10),
        ("an answer as a request", framed(ANSWER_KIND, 1, b"a"), 10),
        ("a refusal as a request", framed(REFUSAL_KIND, 1, b"a"), 10),
        ("a hello", framed(HELLO_KIND, 1, b"a"), 10),
    ] {
        let outcome = send_raw(&connection, &[&good[..], &bad].concat()).await;
        assert_eq!(
            outcome,
            Err(ReadToEndError::Read(ReadError::Reset(StreamCode::GivenUp.wire()))),
            "{what}"
        );
        score += points;
        assert_eq!(server.score(&fleet.id("c1-2")), score, "{what}");
    }
    let answer = send_raw(&connection, &framed(FrameKind::RaftVote.byte(), 2, b"ok")).await;
    assert_eq!(answer.unwrap()[5..], echo_of(1, FrameKind::RaftVote, b"ok"));
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_lane_lives_and_a_stalled_frame_ends_it() {
    let fleet = Fleet::new();
    let deadline = Duration::from_millis(600);
    let server = fleet.start_all("c1-1", LaneEcho::new(1), |limits| limits.stream_deadline = deadline);
    let connection = Attacker::new()
        .join(&fleet, "c1-2", server.local_addr(), Protocol::Raft)
        .await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let request = framed(KIND.byte(), 2, b"ok");
    let want = framed(ANSWER_KIND, 2, b"ok");
    for _ in 0..2 {
        send.write_all(&request).await.unwrap();
        let mut answer = vec![0; want.len()];
        within(recv.read_exact(&mut answer)).await.unwrap();
        assert_eq!(answer, want);
        // Longer than a frame may take.
        tokio::time::sleep(2 * deadline).await;
    }
    assert_eq!(server.score(&fleet.id("c1-2")), 0);
    let began = Instant::now();
    send.write_all(&request[..6]).await.unwrap();
    let end = within(recv.read_to_end(100)).await.unwrap_err();
    assert_eq!(end, ReadToEndError::Read(ReadError::Reset(StreamCode::GivenUp.wire())));
    assert!(began.elapsed() >= deadline);
    assert_eq!(server.score(&fleet.id("c1-2")), 10);
    assert!(connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_answer_on_a_lane_breaks_it_and_is_counted() {
    let fleet = Fleet::new();
    let caller = fleet.start("c1-1");
    // A true member that answers badly: it dials us, so that the connection carries our lanes to it.
    let attacker = Attacker::new();
    let connection = attacker.join(&fleet, "c1-2", caller.local_addr(), Protocol::Raft).await;
    let mut score = 0;
    for (what, bytes, points) in [
        ("above the cap", framed(ANSWER_KIND, 1025, &[0; 1025]), 50),
        ("truncated", framed(ANSWER_KIND, 10, b"short"), 10),
        ("unknown kind", framed(0x7f, 0, b""), 10),
        ("malformed refusal", framed(REFUSAL_KIND, 3, b"\xff\xff\xff"), 50),
    ] {
        let mut lane = caller.open_lane(fleet.id("c1-2"), KIND, SOON).await.ok().unwrap();
        lane.sender.send(Bytes::from_static(b"a")).await.unwrap();
        let (mut send, _recv) = within(connection.accept_bi()).await.unwrap();
        send.write_all(&bytes).await.unwrap();
        send.finish().unwrap();
        let outcome = within(lane.receiver.recv()).await;
        assert!(matches!(outcome, Err(CallError::Broken(_))), "{what}: {outcome:?}");
        score += points;
        assert_eq!(caller.score(&fleet.id("c1-2")), score, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn service_that_does_not_read_holds_the_sender_within_bounds() {
    struct Deaf;
    impl Service for Deaf {
        fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
            Echo.handle(peer, kind, body)
        }

        fn lane(&self, _peer: Peer, _kind: FrameKind, lane: Lane) -> BoxFuture<()> {
            Box::pin(async move {
                let _held = lane;
                std::future::pending().await
            })
        }
    }
    let fleet = Fleet::new();
    let server = fleet.start_serving("c1-1", Arc::new(Deaf));
    let client = fleet.start_within("c1-2", |limits| limits.stream_deadline = Duration::from_millis(500));
    client.add_address(fleet.id("c1-1"), server.local_addr());
    let mut lane = open(&fleet, &client).await;
    let sent = within(async {
        let mut bytes = 0;
        loop {
            match lane.sender.send(Bytes::from(vec![0; 64 * 1024])).await {
                Ok(()) => bytes += 64 * 1024,
                Err(error) => return (bytes, error),
            }
        }
    })
    .await;
    assert!(matches!(sent.1, CallError::Timeout(_)), "{sent:?}");
    // The stream's window, and what the sender's own buffer takes.
    assert!(sent.0 <= 4 * 1024 * 1024, "{} bytes", sent.0);
    let call = client.call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON);
    call.await.unwrap();
}
