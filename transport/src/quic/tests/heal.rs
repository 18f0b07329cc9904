//! What a cut costs after it has healed. Over the relay, in real time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::wire::frame::FrameKind;
use futures::future::join_all;
use tokio::{runtime::Handle, time::Instant};

use super::fleet::Fleet;
use crate::{
    machine::{OnPanic, TokioSpawner},
    ports::Transport as _,
    quic::QuicTransport,
    relay::{self, End, RelayHandle},
};

const ENDS: [&str; 2] = ["c1-1", "c1-2"];
/// A call's, as an agent's calls of consensus have it.
const CALL: Duration = Duration::from_millis(500);

struct Pair {
    fleet: Fleet,
    left: Arc<QuicTransport>,
    _right: Arc<QuicTransport>,
    relay: RelayHandle,
}

impl Pair {
    fn new() -> Self {
        let fleet = Fleet::new();
        let (left, right) = (fleet.start(ENDS[0]), fleet.start(ENDS[1]));
        let end = |name: &str, listen| End {
            name: name.into(),
            listen,
            relay: "127.0.0.1:0".parse().unwrap(),
        };
        let ends = vec![end(ENDS[0], left.local_addr()), end(ENDS[1], right.local_addr())];
        let spawner = TokioSpawner::new(Handle::current(), OnPanic::Log);
        let relay = relay::start(3, ends, &spawner).unwrap();
        left.add_address(fleet.id(ENDS[1]), relay.address_of(ENDS[1]).unwrap());
        right.add_address(fleet.id(ENDS[0]), relay.address_of(ENDS[0]).unwrap());
        Self {
            fleet,
            left,
            _right: right,
            relay,
        }
    }

    async fn call(&self) -> bool {
        // A few of them fill the congestion window, so that nothing but probes is sent while nothing is acknowledged.
        let body = Bytes::from(vec![1; 8 * 1024]);
        let call = self
            .left
            .call(self.fleet.id(ENDS[1]), FrameKind::RaftAppend, body, CALL);
        call.await.is_ok()
    }

    /// Calls through a cut of `cut`, heals, and calls on; how long the first answer took then.
    async fn heal_after(&self, cut: Duration) -> Duration {
        assert!(self.call().await, "before the cut");
        self.relay.cut(ENDS[0], ENDS[1]).unwrap();
        let heals_at = Instant::now() + cut;
        while Instant::now() < heals_at {
            assert!(!self.call().await, "the link is cut");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.relay.heal();
        let healed_at = Instant::now();
        while !self.call().await {
            assert!(healed_at.elapsed() < Duration::from_secs(60), "it never heals");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        healed_at.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn healed_link_serves_before_a_timeout_of_the_connection_has_passed() {
    let cuts = [1, 3, 6, 12, 14, 16].map(Duration::from_secs);
    let pairs: Vec<Pair> = cuts.iter().map(|_| Pair::new()).collect();
    let took = join_all(cuts.iter().zip(&pairs).map(|(cut, pair)| pair.heal_after(*cut))).await;
    println!("answered after {took:?} for cuts of {cuts:?}");
    // A second is meant; with a loaded machine in mind it is less than the back-off of probes and dials would take.
    for (took, cut) in took.iter().zip(cuts) {
        assert!(*took < Duration::from_millis(2_500), "{took:?} after a cut of {cut:?}");
    }
}
