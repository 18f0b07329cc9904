//! A member can say much that is refused. The log says so, and does not grow with it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

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
    let mut net = Net::started().await;
    net.crash("c1-2").await;
    let hello = Hello {
        cluster: Some((C1, Founding(0))),
        raft: net.raft_id("c1-2").0,
        ..hello_of(net.fleet.chain, net.fleet.id("c1-2"))
    };
    let member = net.network.join(net.fleet.idx("c1-2"), hello, Arc::new(RefuseAll));
    // A batch that is closed and not final.
    net.set_ground(false);
    net.submit("c1-1", Scope::Cluster).await;
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
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
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines = text
        .lines()
        .filter(|line| line.contains("an attestation does not count"));
    let lines: Vec<&str> = lines.collect();
    assert!(
        (1..=LINES_MAX).contains(&lines.len()),
        "{} lines of {refused}",
        lines.len()
    );
}
