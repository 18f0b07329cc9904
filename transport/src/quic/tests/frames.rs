//! What a peer may send, and what malformed bytes cost it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    codec::decode,
    wire::frame::{ANSWER_KIND, FrameKind, HELLO_KIND, Protocol, REFUSAL_KIND, Refusal, RefusalCode, frame_header},
};
use quinn::{Connection, ReadError, ReadToEndError};

use super::{
    super::code::StreamCode,
    fleet::{Answering, Attacker, Echo, Fleet, echo_of, within},
};
use crate::ports::{CallError, Transport};

const SOON: Duration = Duration::from_secs(10);

/// Sends raw bytes as one request and returns the raw answer.
async fn send_raw(connection: &Connection, bytes: &[u8]) -> Result<Vec<u8>, ReadToEndError> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    // The server may stop reading before all is sent.
    let _ = send.write_all(bytes).await;
    let _ = send.finish();
    within(recv.read_to_end(1 << 20)).await
}

fn framed(kind: u8, len: usize, body: &[u8]) -> Vec<u8> {
    [&frame_header(kind, len)[..], body].concat()
}

fn refusal_in(answer: &[u8]) -> Refusal {
    assert_eq!(answer[4], REFUSAL_KIND);
    decode::<Refusal>(&answer[5..]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_frames_are_refused_and_counted_and_the_connection_goes_on() {
    let fleet = Fleet::new();
    let server = fleet.start("c1-1");
    let attacker = Attacker::new();
    let connection = attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
    let vote = FrameKind::RaftVote.byte();
    let mut score = 0;
    for (what, bytes, points) in [
        ("one byte above the cap", framed(vote, 1025, &[0; 1025]), 50),
        ("the longest length", framed(vote, u32::MAX as usize, b""), 50),
        ("end inside of the body", framed(vote, 10, b"short"), 10),
        ("end inside of the header", vec![1, 0, 0], 10),
        ("nothing at all", vec![], 10),
        ("a byte after the frame", framed(vote, 2, b"abc"), 50),
        ("unknown kind", framed(0x7f, 1, b"a"), 10),
        ("kind of another protocol", framed(FrameKind::Vote.byte(), 1, b"a"), 10),
        ("an answer as a request", framed(ANSWER_KIND, 1, b"a"), 10),
        ("a second hello", framed(HELLO_KIND, 1, b"a"), 10),
        ("a megabyte of ones", vec![1; 1 << 20], 50),
    ] {
        let answer = send_raw(&connection, &bytes).await.unwrap();
        let refusal = refusal_in(&answer);
        assert_eq!(refusal.code, RefusalCode::Invalid, "{what}");
        assert_eq!(refusal.text.as_str(), "malformed frame", "{what}: no detail goes out");
        score += points;
        assert_eq!(server.score(&fleet.id("c1-2")), score, "{what}");
    }
    let answer = send_raw(&connection, &framed(vote, 2, b"ok")).await.unwrap();
    assert_eq!(answer[5..], echo_of(1, FrameKind::RaftVote, b"ok"));
}

/// Counts events, whatever they say.
#[derive(Clone, Default)]
struct Lines(Arc<AtomicUsize>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

// On one thread, whose log lines are counted.
#[tokio::test]
async fn flood_of_malformed_frames_is_counted_and_writes_a_few_lines() {
    let lines = Lines::default();
    let _guard = tracing::subscriber::set_default(lines.clone());
    let fleet = Fleet::new();
    let server = fleet.start("c1-1");
    let attacker = Attacker::new();
    let connection = attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
    for _ in 0..300 {
        let answer = send_raw(&connection, &framed(0x7f, 1, b"a")).await.unwrap();
        assert_eq!(refusal_in(&answer).code, RefusalCode::Invalid);
    }
    assert_eq!(server.score(&fleet.id("c1-2")), 300 * 10);
    let lines = lines.0.load(Ordering::Relaxed);
    // Ten in ten seconds; a slow machine may see more than one such time.
    assert!((1..=50).contains(&lines), "{lines} lines");
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_request_hits_its_deadline_while_others_are_answered() {
    let fleet = Fleet::new();
    let server = fleet.start_within("c1-1", |limits| limits.stream_deadline = Duration::from_millis(1_500));
    let attacker = Attacker::new();
    let connection = attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let request = framed(FrameKind::RaftVote.byte(), 100, &[0; 50]);
    send.write_all(&request).await.unwrap();
    let other = send_raw(&connection, &framed(FrameKind::RaftVote.byte(), 0, b"")).await;
    assert!(other.is_ok());
    let end = within(recv.read_to_end(100)).await.unwrap_err();
    assert_eq!(
        end,
        ReadToEndError::Read(ReadError::Reset(StreamCode::Deadline.wire())),
        "the stream is broken off, not answered"
    );
    assert_eq!(server.score(&fleet.id("c1-2")), 10);
    assert!(connection.close_reason().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_open_streams_hold_at_the_limit_and_disturb_nobody() {
    let fleet = Fleet::new();
    let server = fleet.start("c1-1");
    let attacker = Attacker::new();
    let connection = attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
    let mut held = Vec::new();
    // Streams that begin a request and never go on.
    while let Ok(stream) = tokio::time::timeout(Duration::from_millis(500), connection.open_bi()).await {
        let (mut send, recv) = stream.unwrap();
        send.write_all(&[1]).await.unwrap();
        held.push((send, recv));
        assert!(held.len() <= 16);
    }
    // The library hands out new streams in steps of an eighth.
    assert!(held.len() >= 14, "{} streams", held.len());
    let honest = fleet.start("c1-3");
    honest.add_address(fleet.id("c1-1"), server.local_addr());
    let call = honest.call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON);
    call.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn refusal_of_the_service_arrives_as_it_was_given() {
    let fleet = Fleet::new();
    let refuse = |_, _, _| -> crate::ports::BoxFuture<Result<Bytes, Refusal>> {
        Box::pin(async { Err(Refusal::new(RefusalCode::NotNow, "not the leader")) })
    };
    let server = fleet.start_serving("c1-1", Arc::new(Answering(refuse)));
    let client = fleet.start("c1-2");
    client.add_address(fleet.id("c1-1"), server.local_addr());
    let outcome = client
        .call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON)
        .await;
    let want = Refusal::new(RefusalCode::NotNow, "not the leader");
    assert_eq!(outcome, Err(CallError::Refused(want)));
}

#[tokio::test(flavor = "multi_thread")]
async fn panic_and_oversized_answer_of_a_service_end_their_request_only() {
    let fleet = Fleet::new();
    let faulty = |_, _, body: Bytes| -> crate::ports::BoxFuture<Result<Bytes, Refusal>> {
        Box::pin(async move {
            assert!(&body[..] != b"panic", "as asked");
            Ok(Bytes::from(vec![0; if &body[..] == b"long" { 1025 } else { 1024 }]))
        })
    };
    let server = fleet.start_serving("c1-1", Arc::new(Answering(faulty)));
    let client = fleet.start("c1-2");
    client.add_address(fleet.id("c1-1"), server.local_addr());
    let call = |body: &'static [u8]| client.call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::from_static(body), SOON);
    for body in [&b"panic"[..], b"long"] {
        let outcome = call(body).await;
        assert!(
            matches!(&outcome, Err(error @ CallError::Broken(_)) if !error.had_no_effect()),
            "it may have been carried out: {outcome:?}"
        );
    }
    assert_eq!(call(b"good").await.unwrap().len(), 1024);
}

#[tokio::test(flavor = "multi_thread")]
async fn service_that_does_not_answer_is_given_up() {
    let fleet = Fleet::new();
    let stuck = |_, _, _| -> crate::ports::BoxFuture<Result<Bytes, Refusal>> { Box::pin(std::future::pending()) };
    let server = fleet.start_all("c1-1", Arc::new(Answering(stuck)), |limits| {
        limits.service_deadline = Duration::from_secs(1);
    });
    let client = fleet.start("c1-2");
    client.add_address(fleet.id("c1-1"), server.local_addr());
    let call = |deadline| client.call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), deadline);
    let outcome = call(SOON).await;
    assert!(
        matches!(&outcome, Err(error @ CallError::Broken(_)) if !error.had_no_effect()),
        "it may have been carried out: {outcome:?}"
    );
    // The caller's own deadline comes first where it is shorter.
    let short = Duration::from_millis(50);
    assert_eq!(call(short).await, Err(CallError::Timeout(short)));
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_answer_breaks_the_call_and_is_counted() {
    let fleet = Fleet::new();
    // A true member that answers badly: it dials us, so that the connection carries our calls to it.
    let caller = fleet.start_serving("c1-1", Arc::new(Echo));
    let attacker = Attacker::new();
    let connection = attacker.join(&fleet, "c1-2", caller.local_addr(), Protocol::Raft).await;
    let mut score = 0;
    for (what, bytes, points) in [
        ("above the cap", framed(ANSWER_KIND, 1025, &[0; 1025]), 50),
        ("truncated", framed(ANSWER_KIND, 10, b"short"), 10),
        ("trailing", framed(ANSWER_KIND, 1, b"ab"), 50),
        ("unknown kind", framed(0x7f, 0, b""), 10),
        ("malformed refusal", framed(REFUSAL_KIND, 3, b"\xff\xff\xff"), 50),
    ] {
        let call = caller.call(fleet.id("c1-2"), FrameKind::RaftVote, Bytes::new(), SOON);
        let answer = async {
            let (mut send, _recv) = connection.accept_bi().await.unwrap();
            send.write_all(&bytes).await.unwrap();
            send.finish().unwrap();
            // Held until it arrived.
            let _ = send.stopped().await;
        };
        let (outcome, ()) = within(futures::future::join(call, answer)).await;
        assert!(matches!(outcome, Err(CallError::Broken(_))), "{what}: {outcome:?}");
        score += points;
        assert_eq!(caller.score(&fleet.id("c1-2")), score, "{what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "at most 1024 allowed")]
async fn caller_that_builds_an_oversized_body_is_stopped() {
    let fleet = Fleet::new();
    let client = fleet.start("c1-1");
    let body = Bytes::from(vec![0; 1025]);
    let _ = client.call(fleet.id("c1-2"), FrameKind::RaftVote, body, SOON).await;
}
