//! Who gets a connection, and what the others learn.

use std::sync::Arc;

use bytes::Bytes;
use common::{
    ids::{ChainId, ClusterId, DeviceId, Founding},
    wire::frame::{FrameKind, Protocol},
};
use quinn::ConnectionError;
use rustls::sign::CertifiedKey;
use std::time::Duration;

use super::{
    super::{QuicTransport, Role, StartError, code::CloseCode},
    fleet::{
        Answering, Attacker, Echo, Fleet, eager_config, issuer, key, leaf_params, rcgen_key, say_hello, shown,
        start_config, true_issuer, within,
    },
};
use crate::{
    certificate::{ca_common_name, device_uri},
    identity::{Identity, KeyFile},
    ports::{CallError, Transport},
};

const SOON: Duration = Duration::from_secs(10);

fn certified(label: &str, uris: &[String], fleet: &Fleet) -> Arc<CertifiedKey> {
    let pair = rcgen_key(&key(label));
    let certificate = leaf_params(uris).signed_by(&pair, &true_issuer(fleet)).unwrap();
    shown(&certificate, &pair)
}

/// The alert and text that a refused peer sees: the same for every reason.
fn assert_generic(what: &str, end: &ConnectionError) {
    let ConnectionError::ConnectionClosed(close) = end else {
        panic!("{what}: ended otherwise: {end:?}");
    };
    let text = String::from_utf8_lossy(&close.reason);
    assert_eq!(
        text, "invalid peer certificate: ApplicationVerificationFailure",
        "{what}: the peer learns more than that it was refused"
    );
}

async fn assert_refused(fleet: &Fleet, what: &str, certificate: Arc<CertifiedKey>) {
    let server = fleet.start("c1-1");
    let alpn = Protocol::Raft.alpn();
    let end = Attacker::new()
        .end_of(server.local_addr(), Some(certificate), alpn, &fleet.hello("c1-2"))
        .await;
    assert_generic(what, &end);
    assert!(!server.is_connected(&fleet.id("c1-2"), Protocol::Raft));
    // The server goes on for others.
    let honest = fleet.start("c1-3");
    honest.add_address(fleet.id("c1-1"), server.local_addr());
    let answer = honest
        .call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON)
        .await;
    assert!(answer.is_ok(), "{what}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_a_stranger_is_refused_without_a_reason() {
    let fleet = Fleet::new();
    let uri = [device_uri(fleet.name(), &fleet.id("c1-2"))];
    let (pair, mallory) = (rcgen_key(&key("c1-2")), key("mallory"));
    // The registered key and the right name, signed by another CA of the same name.
    let evil = issuer(&ca_common_name(fleet.name()), &mallory);
    let certificate = leaf_params(&uri).signed_by(&pair, &evil).unwrap();
    assert_refused(&fleet, "evil CA", shown(&certificate, &pair)).await;
    let certificate = leaf_params(&uri).self_signed(&pair).unwrap();
    assert_refused(&fleet, "self-signed", shown(&certificate, &pair)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unregistered_key_is_refused_without_a_reason() {
    let fleet = Fleet::new();
    let stranger = fleet.identity("nobody");
    assert_refused(&fleet, "unregistered", stranger.certified()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_that_names_anything_but_its_device_is_refused_without_a_reason() {
    let fleet = Fleet::new();
    let right = device_uri(fleet.name(), &fleet.id("c1-2"));
    for (what, uris) in [
        ("no name", vec![]),
        ("two names", vec![right.clone(), right.clone()]),
        ("another device", vec![device_uri(fleet.name(), &fleet.id("c1-3"))]),
        ("upper case", vec![right.to_uppercase()]),
        ("another fleet", vec![device_uri("elsewhere", &fleet.id("c1-2"))]),
    ] {
        assert_refused(&fleet, what, certified("c1-2", &uris, &fleet)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_without_its_private_key_is_refused() {
    let fleet = Fleet::new();
    // c1-2's true certificate, shown by somebody who signs with another key.
    let victim = fleet.identity("c1-2").certified();
    let thief = fleet.identity("c1-3").certified();
    let stolen = Arc::new(CertifiedKey::new(victim.cert.clone(), thief.key.clone()));
    let server = fleet.start("c1-1");
    let alpn = Protocol::Raft.alpn();
    let end = Attacker::new()
        .end_of(server.local_addr(), Some(stolen), alpn, &fleet.hello("c1-2"))
        .await;
    assert!(
        matches!(end, ConnectionError::ConnectionClosed(_)),
        "ended otherwise: {end:?}"
    );
    assert!(!server.is_connected(&fleet.id("c1-2"), Protocol::Raft));
    assert_eq!(server.score(&fleet.id("c1-2")), 0, "the victim is not blamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn client_without_certificate_and_unknown_protocol_are_refused() {
    let fleet = Fleet::new();
    let (server, attacker) = (fleet.start("c1-1"), Attacker::new());
    let hello = fleet.hello("c1-2");
    let end = attacker
        .end_of(server.local_addr(), None, Protocol::Raft.alpn(), &hello)
        .await;
    let ConnectionError::ConnectionClosed(close) = end else {
        panic!("ended otherwise: {end:?}");
    };
    // TLS alert 116, certificate_required.
    assert_eq!(u64::from(close.error_code), 0x100 + 116);
    for alpn in [&b"muster-raft/2"[..], b"h3", Protocol::Bft.alpn()] {
        let certificate = fleet.identity("c1-2").certified();
        let end = attacker
            .end_of(server.local_addr(), Some(certificate), alpn, &hello)
            .await;
        let ConnectionError::ConnectionClosed(close) = end else {
            panic!("ended otherwise: {end:?}");
        };
        // TLS alert 120, no_application_protocol.
        assert_eq!(u64::from(close.error_code), 0x100 + 120);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_role_for_the_protocol_is_parted_with_a_code() {
    let fleet = Fleet::new();
    let (drone, validator) = (fleet.start("c1-1"), fleet.start("v1"));
    for (who, to, protocol) in [
        ("op1", &drone, Protocol::Raft),
        ("op1", &drone, Protocol::Feed),
        ("c2-1", &drone, Protocol::Raft),
        ("c2-1", &drone, Protocol::Cluster),
        ("v2", &drone, Protocol::Raft),
        ("op2", &drone, Protocol::Op),
        ("c1-2", &validator, Protocol::Bft),
        ("op1", &validator, Protocol::Bft),
        ("c1-2", &validator, Protocol::Op),
        ("v2", &validator, Protocol::Feed),
    ] {
        let certificate = fleet.identity(who).certified();
        let end = Attacker::new()
            .end_of(to.local_addr(), Some(certificate), protocol.alpn(), &fleet.hello(who))
            .await;
        let ConnectionError::ApplicationClosed(close) = &end else {
            panic!("{who} {protocol:?}: ended otherwise: {end:?}");
        };
        assert_eq!(
            u64::from(close.error_code),
            CloseCode::Role as u64,
            "{who} {protocol:?}"
        );
        assert_eq!(&close.reason[..], b"refused");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hello_that_does_not_fit_is_parted_with_a_code() {
    let fleet = Fleet::new();
    let server = fleet.start("c1-1");
    let right = fleet.hello("c1-2");
    for (hello, code) in [
        (
            common::wire::frame::Hello {
                chain: ChainId([9; 32]),
                ..right.clone()
            },
            CloseCode::OtherFleet,
        ),
        (
            common::wire::frame::Hello {
                version: 2,
                ..right.clone()
            },
            CloseCode::Version,
        ),
        (
            common::wire::frame::Hello {
                device: DeviceId([9; 32]),
                ..right.clone()
            },
            CloseCode::Hello,
        ),
        (
            common::wire::frame::Hello {
                cluster: Some((ClusterId(1), Founding(0))),
                ..right.clone()
            },
            CloseCode::Hello,
        ),
    ] {
        let certificate = fleet.identity("c1-2").certified();
        let end = Attacker::new()
            .end_of(server.local_addr(), Some(certificate), Protocol::Raft.alpn(), &hello)
            .await;
        let ConnectionError::ApplicationClosed(close) = &end else {
            panic!("{code:?}: ended otherwise: {end:?}");
        };
        assert_eq!(u64::from(close.error_code), code as u64);
        assert_eq!(&close.reason[..], b"refused", "no detail goes out");
        assert!(!server.is_connected(&fleet.id("c1-2"), Protocol::Raft));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dialler_parts_from_a_server_whose_hello_names_another_fleet() {
    let fleet = Fleet::new();
    let mut config = fleet.config("c1-1");
    config.hello.chain = ChainId([9; 32]);
    let server = start_config(config, Arc::new(Echo)).unwrap();
    let client = fleet.start("c1-2");
    client.add_address(fleet.id("c1-1"), server.local_addr());
    let outcome = client
        .call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON)
        .await;
    assert_eq!(outcome, Err(CallError::Unreachable(fleet.id("c1-1"))));
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_with_different_genesis_files_part_and_the_dialler_says_so() {
    let (ours, theirs) = (Fleet::new(), Fleet::varied(|genesis| genesis.timing.lease.stop_ms += 1));
    assert_ne!(ours.chain, theirs.chain);
    let (server, client) = (theirs.start("c1-1"), ours.start("c1-2"));
    client.add_address(ours.id("c1-1"), server.local_addr());
    let outcome = client
        .call(ours.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON)
        .await;
    assert_eq!(outcome, Err(CallError::Unreachable(ours.id("c1-1"))));
    let error = client.last_dial_error(&ours.id("c1-1")).unwrap();
    assert!(error.contains("different genesis files"), "{error}");
    assert!(error.contains(&ours.chain.to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn answer_of_another_member_than_the_dialled_is_a_dial_error() {
    let fleet = Fleet::new();
    let (client, other) = (fleet.start("c1-1"), fleet.start("c1-3"));
    client.add_address(fleet.id("c1-2"), other.local_addr());
    let outcome = client
        .call(fleet.id("c1-2"), FrameKind::RaftVote, Bytes::new(), SOON)
        .await;
    assert_eq!(outcome, Err(CallError::Unreachable(fleet.id("c1-2"))));
    let error = client.last_dial_error(&fleet.id("c1-2")).unwrap();
    let want = format!("dialled {}, answered by {}", fleet.id("c1-2"), fleet.id("c1-3"));
    assert!(error.contains(&want), "{error}");
    assert_eq!(client.score(&fleet.id("c1-3")), 0, "the other member is not blamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn call_to_a_device_without_role_or_address_is_unreachable_and_says_why() {
    let fleet = Fleet::new();
    let (client, other) = fleet.pair("c1-1", "c2-1");
    let outcome = client
        .call(fleet.id("c2-1"), FrameKind::RaftVote, Bytes::new(), SOON)
        .await;
    assert!(outcome.unwrap_err().had_no_effect());
    let error = client.last_dial_error(&fleet.id("c2-1")).unwrap();
    assert!(error.contains("do not allow Raft"), "{error}");
    drop(other);
    let outcome = client
        .call(fleet.id("c1-2"), FrameKind::RaftVote, Bytes::new(), SOON)
        .await;
    assert!(outcome.unwrap_err().had_no_effect());
    let error = client.last_dial_error(&fleet.id("c1-2")).unwrap();
    assert!(error.contains("no address is known"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn device_that_left_the_registry_is_cut_off_at_its_next_request() {
    let fleet = Fleet::new();
    let (client, server) = fleet.pair("c1-2", "c1-1");
    let call = || client.call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON);
    call().await.unwrap();
    let without = Fleet::varied(|genesis| {
        let mut devices = genesis.devices.clone().into_inner();
        devices[1].key = key("c1-2's successor").public();
        genesis.devices = devices.try_into().unwrap();
    });
    fleet.registry.replace(without.registry.load());
    let outcome = call().await;
    assert!(matches!(outcome, Err(CallError::Broken(_))), "{outcome:?}");
    let again = call().await;
    assert_eq!(again, Err(CallError::Unreachable(fleet.id("c1-1"))));
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_a_device_closes_its_connections_only() {
    let fleet = Fleet::new();
    let server = fleet.start("c1-1");
    let clients = [fleet.start("c1-2"), fleet.start("c1-3")];
    for client in &clients {
        client.add_address(fleet.id("c1-1"), server.local_addr());
        let call = client.call(fleet.id("c1-1"), FrameKind::RaftVote, Bytes::new(), SOON);
        call.await.unwrap();
    }
    assert_eq!(server.close_all(fleet.id("c1-2"), CloseCode::Revoked), 1);
    assert!(!server.is_connected(&fleet.id("c1-2"), Protocol::Raft));
    assert!(server.is_connected(&fleet.id("c1-3"), Protocol::Raft));
}

#[tokio::test(flavor = "multi_thread")]
async fn revoked_device_learns_the_code_while_its_stream_is_open() {
    let fleet = Fleet::new();
    let server = fleet.start("c1-1");
    let connection = Attacker::new()
        .join(&fleet, "c1-2", server.local_addr(), Protocol::Raft)
        .await;
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    send.write_all(&[1, 0, 0]).await.unwrap();
    assert_eq!(server.close_all(fleet.id("c1-2"), CloseCode::Revoked), 1);
    let ConnectionError::ApplicationClosed(close) = within(connection.closed()).await else {
        panic!("ended otherwise");
    };
    assert_eq!(u64::from(close.error_code), CloseCode::Revoked as u64);
    assert_eq!(&close.reason[..], b"refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_resumption_nor_early_data_is_offered() {
    let fleet = Fleet::new();
    let server = fleet.start("c1-1");
    let config = eager_config(fleet.identity("c1-2").certified(), Protocol::Raft.alpn());
    let endpoint = quinn::Endpoint::client(super::fleet::LOOPBACK).unwrap();
    for _ in 0..3 {
        let connecting = endpoint
            .connect_with(config.clone(), server.local_addr(), crate::quic::tls::SERVER_NAME)
            .unwrap();
        // A client that had kept a ticket could send data at once.
        let connection = within(connecting.into_0rtt().err().expect("early data is possible"))
            .await
            .unwrap();
        say_hello(&connection, &fleet.hello("c1-2")).await.unwrap();
        // A ticket would have come with the server's first answers.
        connection.close(0u32.into(), b"");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn port_in_use_is_said_clearly() {
    let fleet = Fleet::new();
    let first = fleet.start("c1-1");
    let mut config = fleet.config("c1-2");
    config.listen = first.local_addr();
    let error = start_config(config, Arc::new(Echo)).unwrap_err();
    assert!(matches!(error, StartError::PortInUse(address) if address == first.local_addr()));
    let text = error.to_string();
    assert!(text.contains("is in use") && text.contains("`listen`"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_with_a_certificate_that_peers_refuse_is_refused_with_the_reason() {
    let fleet = Fleet::new();
    let start = |vary: &dyn Fn(&mut super::super::QuicConfig)| {
        let mut config = fleet.config("c1-1");
        vary(&mut config);
        start_config(config, Arc::new(Echo)).unwrap_err()
    };
    let error = start(&|config| config.identity = fleet.identity("nobody"));
    assert!(error.to_string().contains("is not in the registry"), "{error}");
    let error = start(&|config| {
        let evil = crate::certificate::CertificateAuthority::new(fleet.name(), &key("mallory")).unwrap();
        let own: KeyFile = key("c1-1");
        let leaf = evil.issue(&fleet.id("c1-1"), &own.public(), &fleet.terms()).unwrap();
        config.identity = Identity::from_parts(&own, &leaf.pem).unwrap();
    });
    assert!(error.to_string().contains("no CA of this fleet"), "{error}");
    let error = start(&|config| config.role = Role::Validator);
    assert!(matches!(error, StartError::WrongKind { .. }), "{error}");
    let error = start(&|config| config.hello = fleet.hello("c1-2"));
    assert!(matches!(error, StartError::WrongHello { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_handshakes_are_bounded_and_freed_by_their_deadline() {
    let fleet = Fleet::new();
    let server: Arc<QuicTransport> = fleet.start_within("c1-1", |limits| {
        limits.half_open_max = 2;
        limits.handshake_deadline = Duration::from_secs(4);
    });
    let (attacker, alpn) = (Attacker::new(), Protocol::Raft.alpn());
    let connect = |label: &str| {
        let certificate = fleet.identity(label).certified();
        attacker.connect(server.local_addr(), Some(certificate), alpn)
    };
    // They finish the handshake and say nothing.
    let silent = [connect("c1-2").await.unwrap(), connect("c1-2").await.unwrap()];
    let refused = connect("c1-3").await;
    let Err(ConnectionError::ConnectionClosed(close)) = &refused else {
        panic!("taken above the bound: {refused:?}");
    };
    // CONNECTION_REFUSED of RFC 9000 §20.1.
    assert_eq!(u64::from(close.error_code), 2);
    for connection in &silent {
        within(connection.closed()).await;
    }
    let honest = connect("c1-3").await.unwrap();
    say_hello(&honest, &fleet.hello("c1-3")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn operator_calls_drones_and_validators_but_answers_nobody() {
    let fleet = Fleet::new();
    let operator = fleet.start_serving(
        "op1",
        Arc::new(Answering(|_, _, _| panic!("a client was asked something"))),
    );
    for label in ["c1-1", "v1"] {
        let server = fleet.start(label);
        operator.add_address(fleet.id(label), server.local_addr());
        let call = operator.call(fleet.id(label), FrameKind::Operate, Bytes::from_static(b"?"), SOON);
        assert!(call.await.unwrap().ends_with(b"Operate ?"));
        // The server has no way back on that connection, and no address to dial.
        let back = server.call(
            fleet.id("op1"),
            FrameKind::Operate,
            Bytes::new(),
            Duration::from_millis(500),
        );
        assert_eq!(back.await, Err(CallError::Unreachable(fleet.id("op1"))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_that_does_not_take_our_hello_leaves_nothing_behind() {
    let fleet = Fleet::new();
    let server = fleet.start_within("c1-1", |limits| limits.handshake_deadline = Duration::from_secs(2));
    // It lets us send nothing on the stream of the hellos.
    let mut config = eager_config(fleet.identity("c1-2").certified(), Protocol::Raft.alpn());
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window(0u32.into());
    config.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client(super::fleet::LOOPBACK).unwrap();
    let connecting = endpoint.connect_with(config, server.local_addr(), crate::quic::tls::SERVER_NAME);
    let connection = connecting.unwrap().await.unwrap();
    let hello = fleet.hello("c1-2");
    let greeting = say_hello(&connection, &hello);
    let (id, is_up) = (fleet.id("c1-2"), |server: &crate::quic::QuicTransport, id| {
        server.is_connected(id, Protocol::Raft)
    });
    let watching = async {
        while !is_up(&server, &id) {
            tokio::task::yield_now().await;
        }
        within(connection.closed()).await;
    };
    let (greeted, ()) = within(futures::future::join(greeting, watching)).await;
    assert!(greeted.is_err(), "it got no hello");
    assert!(!is_up(&server, &id));
    // Its place is free.
    let attacker = Attacker::new();
    // Held: dropped, it would be closed at once.
    let _joined = attacker.join(&fleet, "c1-2", server.local_addr(), Protocol::Raft).await;
    // The newcomer hears the hello a moment before its entry stands.
    let standing = async {
        while !is_up(&server, &id) {
            tokio::task::yield_now().await;
        }
    };
    within(standing).await;
}
