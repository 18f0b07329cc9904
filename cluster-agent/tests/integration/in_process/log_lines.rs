//! A member can say much that is refused. The log says so, and does not grow with it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use cluster_agent::raft::RaftRpc;
use common::{
    batch::Attestation,
    codec::encode,
    crypto::Signature,
    ids::{BatchSeq, Digest, Founding},
    task::Scope,
    wire::frame::{FrameKind, Hello},
};
use transport::{
    memory::MemoryTransport,
    ports::{CallError, Transport},
    quic::{RefuseAll, hello_of},
};

use super::support::{C1, Net};

/// Of one member in ten seconds.
const LINES_MAX: usize = 10;

/// What this thread logs while the guard lives.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Log {
    /// Writes down what this thread logs until the guard goes.
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let writer = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone());
        tracing::subscriber::set_default(subscriber.finish())
    }

    /// Lines that say `what`.
    fn lines_with(&self, what: &str) -> usize {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(what)).count()
    }
}

/// A fleet in which `c1-2` is in somebody else's hands.
async fn with_hacked_member() -> (Net, Arc<MemoryTransport>) {
    let mut net = Net::started().await;
    net.crash("c1-2").await;
    let hello = Hello {
        cluster: Some((C1, Founding(0))),
        raft: net.raft_id("c1-2").0,
        ..hello_of(net.fleet.chain, net.fleet.id("c1-2"))
    };
    let member = net.network.join(net.fleet.idx("c1-2"), hello, Arc::new(RefuseAll));
    (net, member)
}

/// Sends `c1-1` an attestation of something else than batch `seq`. Returns whether it was refused.
async fn is_refused(net: &Net, member: &MemoryTransport, seq: u64) -> bool {
    let attestation = Attestation {
        cluster: C1,
        founding: Founding(0),
        seq: BatchSeq(seq),
        digest: Digest([9; 32]),
        by: net.raft_id("c1-2"),
        signature: Signature::from_bytes(&[9; 64]),
    };
    let call = member.call(
        net.fleet.id("c1-1"),
        FrameKind::Attest,
        encode(&attestation).into(),
        Duration::from_secs(3),
    );
    matches!(call.await, Err(CallError::Refused(_)))
}

#[tokio::test(start_paused = true)]
async fn flood_of_attestations_that_do_not_count_writes_a_few_lines() {
    let (mut net, member) = with_hacked_member().await;
    // A batch that is closed and not final.
    net.set_ground(false);
    net.submit("c1-1", Scope::Cluster).await;
    let log = Log::default();
    let _guard = log.begin();
    let mut refused = 0;
    for _ in 0..500 {
        for seq in 1..=4 {
            refused += usize::from(is_refused(&net, &member, seq).await);
        }
        if refused == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    assert!(refused >= 100, "{refused} were refused");
    let lines = log.lines_with("an attestation does not count");
    assert!((1..=LINES_MAX).contains(&lines), "{lines} lines of {refused}");
}

#[tokio::test(start_paused = true)]
async fn flood_of_malformed_requests_and_of_votes_for_others_writes_a_few_lines() {
    let (net, member) = with_hacked_member().await;
    let to = net.raft_id("c1-1").0.to_be_bytes();
    // Version, vote (term, candidate, whether elected), last entry, whether it is a hand-over.
    let in_the_name_of_another = (1u8, (9u64, net.raft_id("c1-3").0, false), None::<u8>, false);
    let vote = postcard::to_allocvec(&in_the_name_of_another).unwrap();
    let frames = [
        (FrameKind::RaftAppend, [&to[..], b"no request"].concat()),
        (
            FrameKind::RaftVote,
            [&to[..], &[RaftRpc::Vote.code()], &vote[..]].concat(),
        ),
    ];
    let log = Log::default();
    let _guard = log.begin();
    for _ in 0..50 {
        for (kind, body) in &frames {
            let body = Bytes::copy_from_slice(body);
            let call = member.call(net.fleet.id("c1-1"), *kind, body, Duration::from_secs(3));
            assert!(call.await.is_ok(), "it is answered with a refusal of Raft");
        }
    }
    for what in ["malformed raft request", "a member breaks the protocol"] {
        let lines = log.lines_with(what);
        assert!((1..=LINES_MAX).contains(&lines), "{lines} lines: {what}");
    }
}
