use std::time::Duration;

use tokio::{net::UdpSocket, time::timeout};

use super::*;
use crate::machine::{OnPanic, TokioSpawner};

/// How long a datagram may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Three ends on loopback, a, b and c, and a relay between them.
struct Net {
    relay: RelayHandle,
    sockets: Vec<UdpSocket>,
}

const NAMES: [&str; 3] = ["a", "b", "c"];

impl Net {
    async fn new() -> Self {
        let mut sockets = Vec::new();
        let mut ends = Vec::new();
        for name in NAMES {
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            ends.push(End {
                name: name.into(),
                listen: socket.local_addr().unwrap(),
                relay: "127.0.0.1:0".parse().unwrap(),
            });
            sockets.push(socket);
        }
        let spawner = TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log);
        let relay = start(7, ends, &spawner).unwrap();
        Self { relay, sockets }
    }

    fn socket(&self, name: &str) -> &UdpSocket {
        &self.sockets[NAMES.iter().position(|known| *known == name).unwrap()]
    }

    async fn send(&self, from: &str, to: &str, text: &str) {
        let address = self.relay.address_of(to).unwrap();
        self.socket(from).send_to(text.as_bytes(), address).await.unwrap();
    }

    /// The next datagram at `name`: its text and whom it seems to come from.
    async fn next(&self, name: &str) -> (String, &'static str) {
        let mut buffer = [0; 2_000];
        let received = timeout(PATIENCE, self.socket(name).recv_from(&mut buffer));
        let (len, source) = received.await.expect("a datagram comes").unwrap();
        let from = NAMES
            .into_iter()
            .find(|from| self.relay.address_of(from) == Some(source));
        let text = String::from_utf8(buffer[..len].to_vec()).unwrap();
        (text, from.expect("it comes from a relay address"))
    }

    /// Waits until the relay's counters say so.
    async fn until(&self, holds: impl Fn(Counters) -> bool) {
        let waiting = async {
            while !holds(self.relay.counters()) {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, waiting).await.expect("the relay counts it");
    }
}

#[tokio::test]
async fn datagram_comes_from_its_senders_relay_address() {
    let net = Net::new().await;
    net.send("a", "b", "one").await;
    assert_eq!(net.next("b").await, ("one".into(), "a"));
    net.send("b", "a", "two").await;
    assert_eq!(net.next("a").await, ("two".into(), "b"));
    net.send("c", "a", "").await;
    assert_eq!(net.next("a").await, (String::new(), "c"));
}

#[tokio::test]
async fn one_way_cut_leaves_the_other_way_open() {
    let net = Net::new().await;
    net.relay.set([("a", "b")], Rule::CUT).unwrap();
    net.send("a", "b", "lost").await;
    net.until(|counters| counters.cut == 1).await;
    net.send("b", "a", "back").await;
    assert_eq!(net.next("a").await, ("back".into(), "b"));
    net.send("a", "c", "aside").await;
    assert_eq!(net.next("c").await, ("aside".into(), "a"));
    net.relay.heal();
    net.send("a", "b", "again").await;
    assert_eq!(net.next("b").await, ("again".into(), "a"), "the lost one did not come");
}

#[tokio::test]
async fn isolated_end_neither_hears_nor_is_heard_until_it_is_healed() {
    let net = Net::new().await;
    net.relay.isolate("b").unwrap();
    assert_eq!(net.relay.rules().len(), 4);
    for (from, to) in [("a", "b"), ("b", "a"), ("b", "c"), ("c", "b")] {
        net.send(from, to, "lost").await;
    }
    net.until(|counters| counters.cut == 4).await;
    net.send("a", "c", "aside").await;
    assert_eq!(net.next("c").await, ("aside".into(), "a"));
    net.relay.heal_ends(["b"]).unwrap();
    assert_eq!(net.relay.rules(), []);
    net.send("c", "b", "again").await;
    assert_eq!(net.next("b").await, ("again".into(), "c"));
}

#[tokio::test]
async fn healing_an_end_leaves_cuts_between_others() {
    let net = Net::new().await;
    net.relay.isolate("a").unwrap();
    net.relay.cut("b", "c").unwrap();
    net.relay.heal_ends(["a"]).unwrap();
    let left: Vec<_> = net.relay.rules().into_iter().map(|link| (link.from, link.to)).collect();
    assert_eq!(left, [("b".into(), "c".into()), ("c".into(), "b".into())]);
}

#[tokio::test]
async fn doubled_and_late_datagrams_arrive() {
    let net = Net::new().await;
    let doubling = Rule {
        duplicate_ppm: PPM,
        delay_us: 2_000,
        jitter_us: 1_000,
        ..Rule::default()
    };
    net.relay.set([("a", "b")], doubling).unwrap();
    net.send("a", "b", "twice").await;
    for _ in 0..2 {
        assert_eq!(net.next("b").await, ("twice".into(), "a"));
    }
    assert_eq!(net.relay.counters().doubled, 1);
}

#[tokio::test]
async fn datagram_that_is_held_back_is_overtaken() {
    let net = Net::new().await;
    let held = Rule {
        reorder_ppm: PPM,
        reorder_us: 50_000,
        ..Rule::default()
    };
    net.relay.set([("a", "b")], held).unwrap();
    net.send("a", "b", "first").await;
    // Over another link, so that the relay is known to have taken the first one.
    net.send("c", "b", "second").await;
    assert_eq!(net.next("b").await, ("second".into(), "c"));
    assert_eq!(net.next("b").await, ("first".into(), "a"));
}

#[tokio::test]
async fn datagram_of_a_stranger_is_dropped_and_counted() {
    let net = Net::new().await;
    let stranger = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let b = net.relay.address_of("b").unwrap();
    stranger.send_to(b"hello", b).await.unwrap();
    // Nor does an end reach itself.
    net.send("b", "b", "me").await;
    net.until(|counters| counters.unknown == 2).await;
    assert_eq!(net.relay.counters().forwarded, 0);
}

#[tokio::test]
async fn rule_for_an_unknown_end_changes_nothing() {
    let net = Net::new().await;
    let refused = net.relay.set([("a", "b"), ("a", "x")], Rule::CUT).unwrap_err();
    assert!(
        matches!(&refused, RelayError::UnknownEnd(name) if name == "x"),
        "{refused}"
    );
    assert!(matches!(net.relay.cut("a", "a"), Err(RelayError::ToItself(_))));
    let never = Rule {
        loss_ppm: PPM + 1,
        ..Rule::default()
    };
    assert!(matches!(net.relay.set([("a", "b")], never), Err(RelayError::Rule(_))));
    assert!(net.relay.heal_ends(["x"]).is_err() && net.relay.isolate("x").is_err());
    assert_eq!((net.relay.rules(), net.relay.address_of("x")), (vec![], None));
}

#[tokio::test]
async fn relay_ends_with_its_handle_and_its_ports_are_free_again() {
    let net = Net::new().await;
    let address = net.relay.address_of("a").unwrap();
    assert!(UdpSocket::bind(address).await.is_err());
    drop(net);
    let freed = async {
        while UdpSocket::bind(address).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, freed).await.expect("the port is free again");
}

#[tokio::test]
async fn taken_relay_address_and_an_end_named_twice_are_refused() {
    let taken = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let spawner = TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log);
    let end = |name: &str, port: u16, relay| End {
        name: name.into(),
        listen: ([127, 0, 0, 1], port).into(),
        relay,
    };
    let any = "127.0.0.1:0".parse().unwrap();
    let bound = start(1, vec![end("a", 1, taken.local_addr().unwrap())], &spawner);
    assert!(matches!(bound, Err(RelayError::Bind { .. })));
    for (name, port) in [("a", 2), ("b", 1)] {
        let twice = start(1, vec![end("a", 1, any), end(name, port, any)], &spawner);
        assert!(matches!(twice, Err(RelayError::Twice { .. })));
    }
}
