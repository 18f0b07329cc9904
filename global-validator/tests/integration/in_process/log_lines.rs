//! Who proved who it is can say much that is refused. The log says so, and does not grow with it.

use std::sync::{Arc, Mutex};

use common::{
    certificate::{NullifyBallot, SignedVote, Signers, Vote},
    codec::encode,
    ids::{ClusterId, Epoch, View},
    testing::{ClusterLog, Fleet},
    wire::{
        bft::{Bundle, Bundled, BundledKind},
        frame::FrameKind,
    },
};
use transport::ports::CallError;

use super::support::Net;

const FLOOD: usize = 1_000;
/// Of one peer in ten seconds.
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
    fn begin(&self) -> tracing::subscriber::DefaultGuard {
        let log = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || log.clone());
        tracing::subscriber::set_default(subscriber.finish())
    }

    fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .filter(|line| line.contains(with))
            .map(str::to_owned)
            .collect()
    }
}

async fn is_refused(net: &Net, from: &str, kind: FrameKind, body: Vec<u8>) {
    let answer = net.call(from, "v1", kind, body).await;
    assert!(matches!(answer, Err(CallError::Refused(_))), "{answer:?}");
}

/// As many votes as a bundle holds: one that is badly signed, and those of somebody who is no validator.
fn bad_votes(fleet: &Fleet) -> Bundle {
    let vote = Vote::Nullify(NullifyBallot {
        epoch: Epoch(0),
        view: View(90),
    });
    let forged = SignedVote {
        voter: fleet.idx("v3"),
        ..fleet.vote("v2", vote)
    };
    let stranger = SignedVote {
        voter: fleet.idx("c1-1"),
        ..forged
    };
    let votes = std::iter::once(forged).chain(std::iter::repeat(stranger));
    let messages = votes.take(Bundle::MESSAGES_MAX).map(|vote| Bundled {
        kind: BundledKind::Vote,
        body: encode(&vote).try_into().unwrap(),
    });
    Bundle {
        messages: messages.collect::<Vec<_>>().try_into().unwrap(),
    }
}

#[tokio::test(start_paused = true)]
async fn flood_of_bad_votes_and_batches_writes_a_few_lines_and_says_how_many_were_left_out() {
    let net = Net::started(Fleet::new(1, 3, 4)).await;
    net.grow(1).await;
    let log = Log::default();
    let _guard = log.begin();
    let bundle = encode(&bad_votes(&net.fleet));
    let mut batch = ClusterLog::new(&net.fleet, ClusterId(0)).beat(&net.fleet);
    batch.attestations = Signers::gather(3, &[]);
    let batch = encode(&batch);
    for _ in 0..FLOOD {
        is_refused(&net, "v2", FrameKind::Bundle, bundle.clone()).await;
        is_refused(&net, "c1-1", FrameKind::SubmitBatch, batch.clone()).await;
    }
    let refused = ["messages refused", "batch refused"];
    for what in refused {
        let lines = log.lines(what);
        assert!(
            (1..=LINES_MAX).contains(&lines.len()),
            "{} lines: {:?}",
            lines.len(),
            lines.first()
        );
    }
    assert!(
        log.lines(refused[0])[0].contains("count=64 of=64"),
        "one line for all of a bundle"
    );
    // Another is heard of at once, and what was left out is said with the next line.
    is_refused(&net, "v3", FrameKind::Bundle, bundle.clone()).await;
    tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    is_refused(&net, "v2", FrameKind::Bundle, bundle).await;
    let lines = log.lines(refused[0]);
    assert_eq!(lines.len(), LINES_MAX + 2);
    let left_out = format!("not_logged={}", FLOOD - LINES_MAX);
    assert!(lines[LINES_MAX + 1].contains(&left_out), "{}", lines[LINES_MAX + 1]);
    net.grow(1).await;
}
