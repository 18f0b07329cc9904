//! Connections over time: both ways, at once, broken and made again.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::wire::frame::{FrameKind, Protocol};
use futures::future::join_all;
use tokio::time::Instant;

use super::fleet::{Answering, Attacker, Fleet, echo_of, start_config, within};
use crate::{
    ports::{BoxFuture, CallError, Transport},
    watch::Watch,
};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn call_works_both_ways_on_one_connection() {
    let fleet = Fleet::new();
    let (left, right) = (fleet.start("c1-1"), fleet.start("c1-2"));
    left.add_address(fleet.id("c1-2"), right.local_addr());
    let body = Bytes::from(vec![7; 1024]);
    let answer = left
        .call(fleet.id("c1-2"), FrameKind::RaftVote, body.clone(), SOON)
        .await;
    assert_eq!(answer.unwrap(), echo_of(0, FrameKind::RaftVote, &body));
    // The right side knows no address: its calls go back on the connection that the left one made.
    let answer = right
        .call(fleet.id("c1-1"), FrameKind::RaftVote, body.clone(), SOON)
        .await;
    assert_eq!(answer.unwrap(), echo_of(1, FrameKind::RaftVote, &body));
    assert!(left.is_connected(&fleet.id("c1-2"), Protocol::Raft));
    assert!(right.is_connected(&fleet.id("c1-1"), Protocol::Raft));
    assert!(!left.is_connected(&fleet.id("c1-2"), Protocol::Cluster));
    assert!(left.rtt(&fleet.id("c1-2")).unwrap() < Duration::from_secs(1));
    assert_eq!(left.rtt(&fleet.id("c1-3")), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn largest_frames_pass_in_both_directions() {
    let fleet = Fleet::new();
    let long = |_, kind: FrameKind, body: Bytes| -> BoxFuture<_> {
        Box::pin(async move {
            assert_eq!(body.len(), kind.request_bytes_max());
            Ok(Bytes::from(vec![9; kind.answer_bytes_max()]))
        })
    };
    for (from, to, kinds) in [
        ("c1-1", "c1-2", &[FrameKind::RaftAppend, FrameKind::RaftSnapshot][..]),
        (
            "v1",
            "v2",
            &[FrameKind::Proposal, FrameKind::FetchBlock, FrameKind::Sync],
        ),
        ("c1-1", "v1", &[FrameKind::SubmitBatch, FrameKind::Follow]),
        ("op1", "v1", &[FrameKind::Operate]),
    ] {
        let (client, server) = (fleet.start(from), fleet.start_serving(to, Arc::new(Answering(long))));
        client.add_address(fleet.id(to), server.local_addr());
        for kind in kinds {
            let body = Bytes::from(vec![1; kind.request_bytes_max()]);
            let answer = client.call(fleet.id(to), *kind, body, SOON).await.unwrap();
            assert_eq!(answer.len(), kind.answer_bytes_max(), "{kind:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn simultaneous_dials_both_serve() {
    let fleet = Fleet::new();
    let (left, right) = fleet.pair("c1-1", "c1-2");
    for _ in 0..20 {
        let there = left.call(fleet.id("c1-2"), FrameKind::Linearize, Bytes::new(), SOON);
        let back = right.call(fleet.id("c1-1"), FrameKind::Linearize, Bytes::new(), SOON);
        let (there, back) = futures::future::join(there, back).await;
        assert!(there.is_ok() && back.is_ok(), "{there:?} {back:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_calls_at_once_are_bounded_and_all_answered() {
    let fleet = Fleet::new();
    let (in_hand, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (arrived, is_open) = (Watch::new(0usize), Watch::new(false));
    let service = {
        let (in_hand, most, arrived, is_open) = (in_hand.clone(), most.clone(), arrived.clone(), is_open.clone());
        Answering(move |_, _, body: Bytes| -> BoxFuture<_> {
            let now = in_hand.fetch_add(1, Ordering::SeqCst) + 1;
            most.fetch_max(now, Ordering::SeqCst);
            arrived.set(now);
            let (in_hand, is_open) = (in_hand.clone(), is_open.clone());
            Box::pin(async move {
                is_open.wait_until(|is_open| *is_open).await;
                in_hand.fetch_sub(1, Ordering::SeqCst);
                Ok(body)
            })
        })
    };
    let (client, server) = (fleet.start("c1-1"), fleet.start_serving("c1-2", Arc::new(service)));
    client.add_address(fleet.id("c1-2"), server.local_addr());
    let calls = (0..1_000u32).map(|i| {
        let body = Bytes::copy_from_slice(&i.to_le_bytes());
        client.call(fleet.id("c1-2"), FrameKind::Forward, body, Duration::from_secs(60))
    });
    let opener = async {
        // The library hands out new streams in steps of an eighth, so not all 16 may be in use.
        arrived.wait_until(|count| *count >= 14).await;
        is_open.set(true);
    };
    let (answers, ()) = futures::future::join(join_all(calls), opener).await;
    for (i, answer) in (0u32..).zip(answers) {
        assert_eq!(answer.unwrap()[..], i.to_le_bytes());
    }
    let most = most.load(Ordering::SeqCst);
    assert!(
        (14..=16).contains(&most),
        "the limit of streams bounds the work in hand: {most}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unanswered_dial_ends_with_the_callers_deadline() {
    let fleet = Fleet::new();
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let client = fleet.start("c1-1");
    client.add_address(fleet.id("c1-2"), silent.local_addr().unwrap());
    let begin = Instant::now();
    let call = client.call(
        fleet.id("c1-2"),
        FrameKind::RaftVote,
        Bytes::new(),
        Duration::from_millis(300),
    );
    assert_eq!(call.await, Err(CallError::Unreachable(fleet.id("c1-2"))));
    assert!(begin.elapsed() < Duration::from_secs(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_share_one_dial() {
    let fleet = Fleet::new();
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let client = fleet.start("c1-1");
    client.add_address(fleet.id("c1-2"), silent.local_addr().unwrap());
    let calls = (0..50).map(|_| {
        client.call(
            fleet.id("c1-2"),
            FrameKind::RaftVote,
            Bytes::new(),
            Duration::from_millis(200),
        )
    });
    join_all(calls).await;
    let mut connection_ids = std::collections::BTreeSet::new();
    let mut packet = [0; 2048];
    while let Ok(len) = silent.try_recv(&mut packet) {
        // A long header: destination connection id after flags and version (RFC 9000 §17.2).
        assert!(len > 6 && packet[0] & 0x80 != 0);
        connection_ids.insert(packet[6..6 + packet[5] as usize].to_vec());
    }
    assert_eq!(connection_ids.len(), 1, "one connection attempt");
}

/// A server in a runtime of its own that can be killed without any goodbye.
struct Killable {
    transport: Arc<crate::quic::QuicTransport>,
    runtime: tokio::runtime::Runtime,
}

impl Killable {
    fn start(fleet: &Fleet, label: &str, listen: SocketAddr) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let mut config = fleet.config(label);
        config.listen = listen;
        let transport = {
            let _entered = runtime.enter();
            start_config(config, Arc::new(super::fleet::Echo)).unwrap()
        };
        Self { transport, runtime }
    }

    fn address(&self) -> SocketAddr {
        self.transport.local_addr()
    }

    /// All tasks end where they are, then the socket is closed: nothing more is sent.
    fn kill(self) {
        let runtime = self.runtime;
        tokio::task::block_in_place(|| runtime.shutdown_timeout(Duration::from_secs(5)));
        drop(self.transport);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_on_soon_after_the_server_was_killed_and_started_again() {
    let fleet = Fleet::new();
    let client = fleet.start("c1-1");
    let mut server = Killable::start(&fleet, "c1-2", super::fleet::LOOPBACK);
    client.add_address(fleet.id("c1-2"), server.address());
    let call = |ms| {
        client.call(
            fleet.id("c1-2"),
            FrameKind::RaftVote,
            Bytes::new(),
            Duration::from_millis(ms),
        )
    };
    for round in 0..2 {
        call(10_000).await.unwrap();
        let address = server.address();
        server.kill();
        let outcome = call(200).await;
        assert!(outcome.is_err(), "round {round}: answered by a dead server");
        server = Killable::start(&fleet, "c1-2", address);
        let restarted = Instant::now();
        within(async { while call(1_000).await.is_err() {} }).await;
        let took = restarted.elapsed();
        assert!(
            took < Duration::from_secs(6),
            "round {round}: {took:?}, though the idle timeout of 10 s should not have been needed"
        );
    }
    server.kill();
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_transport_tells_its_peers_and_calls_no_more() {
    let fleet = Fleet::new();
    let (left, right) = fleet.pair("c1-1", "c1-2");
    let vote = |from: &crate::quic::QuicTransport, to| from.call(to, FrameKind::RaftVote, Bytes::new(), SOON);
    vote(&left, fleet.id("c1-2")).await.unwrap();
    right.close().await;
    assert!(!right.is_connected(&fleet.id("c1-1"), Protocol::Raft));
    assert_eq!(
        vote(&right, fleet.id("c1-1")).await,
        Err(CallError::Unreachable(fleet.id("c1-1")))
    );
    within(async {
        while left.is_connected(&fleet.id("c1-2"), Protocol::Raft) {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_connection_of_a_device_takes_the_older_ones_place() {
    let fleet = Fleet::new();
    let (server, attacker) = (fleet.start("c1-1"), Attacker::new());
    let older = attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
    let newer = attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
    within(older.closed()).await;
    assert!(newer.close_reason().is_none());
    assert!(server.is_connected(&fleet.id("c1-2"), Protocol::Raft));
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_cannot_take_all_connections() {
    let fleet = Fleet::new();
    let (server, attacker) = (fleet.start("c1-1"), Attacker::new());
    let mut held = Vec::new();
    for _ in 0..8 {
        held.push(attacker.join(&fleet, "op1", server.local_addr(), Protocol::Op).await);
    }
    let certificate = fleet.identity("op1").certified();
    let end = attacker
        .end_of(
            server.local_addr(),
            Some(certificate),
            Protocol::Op.alpn(),
            &fleet.hello("op1"),
        )
        .await;
    let quinn::ConnectionError::ApplicationClosed(close) = end else {
        panic!("ended otherwise: {end:?}");
    };
    assert_eq!(u64::from(close.error_code), super::super::code::CloseCode::Busy as u64);
    assert!(held.iter().all(|connection| connection.close_reason().is_none()));
    attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
}
