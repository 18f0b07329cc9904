//! Validators that keep from others what these need: with copies that are worth nothing, with references to what
//! is nowhere, and with silence.

use std::{
    future::pending,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    block::{BatchRef, Proposal, refs_root},
    certificate::Signers,
    codec::{decode, encode},
    ids::{BatchSeq, ClusterId, DeviceId, Digest},
    limits::REFS_PER_BLOCK_MAX,
    task::Scope,
    testing::{ClusterLog, Fleet, task},
    wire::{
        bft::{Bundle, Bundled, BundledKind},
        feed::FetchByDigest,
        frame::{FrameKind, Protocol, Refusal, RefusalCode},
    },
};
use futures::future::{join, join_all};
use global_validator::{Door, executed::ExecutedWatch, peers::wants::SLOTS_PER_PEER_MAX};
use transport::{
    memory::MemoryTransport,
    ports::{BoxFuture, CallError, Lane, Peer, Service, Transport},
    quic::hello_of,
};

use super::support::{Net, V};

const C1: ClusterId = ClusterId(0);

/// A batch of the cluster with one entry, and all that its members have signed.
fn batch(fleet: &Fleet, log: &mut ClusterLog, number: u64) -> CertifiedBatch {
    let entry = fleet.submit("op1", C1, number, Scope::Fleet, &task(&format!("k{number}")));
    log.granted(fleet, vec![entry])
}

/// Answers every question for a batch with a copy that lacks one attestation, and no other question.
struct BadCopies {
    copy: CertifiedBatch,
    asked: Arc<Mutex<u64>>,
}

impl BadCopies {
    fn of(batch: &CertifiedBatch, members: usize) -> Self {
        let mut copy = batch.clone();
        let positions = batch.attestations.positions(members).unwrap();
        let signed = positions.into_iter().zip(batch.attestations.signatures.iter().copied());
        copy.attestations = Signers::gather(members, &signed.skip(1).collect::<Vec<_>>());
        Self {
            copy,
            asked: Arc::default(),
        }
    }
}

impl Service for BadCopies {
    fn handle(&self, _peer: Peer, kind: FrameKind, _body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        let answer = if kind == FrameKind::FetchBatch {
            *self.asked.lock().unwrap() += 1;
            Ok(encode(&self.copy).into())
        } else {
            Err(Refusal::new(RefusalCode::NotNow, "nothing to say"))
        };
        Box::pin(async { answer })
    }
}

#[tokio::test(start_paused = true)]
async fn batch_comes_from_another_if_the_first_one_asked_leaves_an_attestation_out() {
    let mut net = Net::started(Fleet::new(1, 3, 4)).await;
    let first = V.into_iter().min_by_key(|label| net.fleet.idx(label)).unwrap();
    let [.., honest, behind] = V;
    assert!(first != honest && first != behind);
    net.grow(1).await;
    net.crash(behind);
    let batch = batch(&net.fleet, &mut ClusterLog::new(&net.fleet, C1), 1);
    net.submit("c1-1", honest, &batch).await.unwrap();
    // Final before it comes to the one that was away: nobody is more likely to hold it than anybody else.
    net.executed(honest, C1, 1).await;
    net.grow(3).await;
    net.crash(first);
    let bad_copies = BadCopies::of(&batch, 3);
    let asked = bad_copies.asked.clone();
    let hello = hello_of(net.fleet.chain, net.fleet.id(first));
    net.network.join(net.fleet.idx(first), hello, Arc::new(bad_copies));
    net.start(behind).await;
    net.executed(behind, C1, 1).await;
    assert_eq!(*asked.lock().unwrap(), 1, "asked first, and not again");
    net.grow(2).await;
    net.assert_no_fork();
}

/// Says nothing when it is asked for a batch, and overlooks what is said in its own name: its driver would stop.
struct NoBatches {
    door: Door,
    fleet: Fleet,
    label: &'static str,
}

impl NoBatches {
    fn is_mine(&self, body: &[u8]) -> bool {
        let proposal: Proposal = decode(body).unwrap();
        self.fleet.set.leader(proposal.block.header.view) == self.fleet.idx(self.label)
    }
}

impl Service for NoBatches {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        match kind {
            FrameKind::FetchBatch => Box::pin(pending()),
            FrameKind::Proposal if self.is_mine(&body) => Box::pin(async { Ok(Bytes::new()) }),
            FrameKind::Bundle => {
                let bundle: Bundle = decode(&body).unwrap();
                let is_mine = |one: &Bundled| one.kind == BundledKind::Proposal && self.is_mine(&one.body);
                let messages = bundle.messages.into_inner().into_iter().filter(|one| !is_mine(one));
                let messages = messages.collect::<Vec<_>>().try_into().unwrap();
                self.door.handle(peer, kind, encode(&Bundle { messages }).into())
            }
            _ => self.door.handle(peer, kind, body),
        }
    }
}

/// As many references as a block holds in every proposal of its own, to batches that nobody has.
struct RefersToNothing {
    transport: Arc<MemoryTransport>,
    fleet: Fleet,
    label: &'static str,
    executed: Arc<Mutex<Option<ExecutedWatch>>>,
    proposed: Arc<Mutex<u64>>,
}

impl RefersToNothing {
    fn rewrite(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut proposal: Proposal = decode(body).ok()?;
        let header = &mut proposal.block.header;
        let is_mine = self.fleet.set.leader(header.view) == self.fleet.idx(self.label);
        let executed = self.executed.lock().unwrap().as_ref().filter(|_| is_mine)?.get();
        let cursor = executed.queue.cursor(C1)?;
        *self.proposed.lock().unwrap() += 1;
        let nothing = |at: usize| {
            let mut digest = [at as u8; 32];
            digest[..8].copy_from_slice(&header.view.0.to_le_bytes());
            BatchRef {
                cluster: C1,
                founding: cursor.founding,
                seq: BatchSeq(cursor.next_seq.0 + at as u64),
                digest: Digest(digest),
            }
        };
        let refs: Vec<_> = (0..REFS_PER_BLOCK_MAX).map(nothing).collect();
        header.refs_root = refs_root(&refs);
        let key = self.fleet.consensus_key(self.label);
        proposal.signature = key.sign_proposal(&self.fleet.chain, &header.ballot());
        proposal.block.refs = refs.try_into().unwrap();
        Some(encode(&proposal))
    }
}

impl Transport for RefersToNothing {
    fn call(
        &self,
        to: DeviceId,
        kind: FrameKind,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<Result<Bytes, CallError>> {
        match kind {
            FrameKind::Proposal => {
                let rewritten = self.rewrite(&body).map_or(body, Bytes::from);
                self.transport.call(to, kind, rewritten, deadline)
            }
            FrameKind::Bundle => {
                // Too long for a bundle when it is rewritten: it travels alone.
                let bundle: Bundle = decode(&body).unwrap();
                let (proposals, others): (Vec<_>, Vec<_>) = bundle
                    .messages
                    .into_inner()
                    .into_iter()
                    .partition(|one| one.kind == BundledKind::Proposal);
                let messages = others.try_into().unwrap();
                let others = self
                    .transport
                    .call(to, kind, encode(&Bundle { messages }).into(), deadline);
                let alone = proposals.into_iter().map(|one| {
                    let body = Bytes::from(one.body.into_inner());
                    self.call(to, FrameKind::Proposal, body, deadline)
                });
                let alone = join_all(alone.collect::<Vec<_>>());
                Box::pin(async move { join(alone, others).await.1 })
            }
            _ => self.transport.call(to, kind, body, deadline),
        }
    }

    fn open_lane(&self, to: DeviceId, kind: FrameKind, deadline: Duration) -> BoxFuture<Result<Lane, CallError>> {
        self.transport.open_lane(to, kind, deadline)
    }

    fn is_connected(&self, to: &DeviceId, protocol: Protocol) -> bool {
        self.transport.is_connected(to, protocol)
    }

    fn rtt(&self, to: &DeviceId) -> Option<Duration> {
        self.transport.rtt(to)
    }
}

#[tokio::test(start_paused = true)]
async fn leader_that_refers_to_nothing_and_is_silent_when_asked_costs_others_neither_room_nor_time() {
    const HACKED: &str = "v4";
    let mut net = Net::new(Fleet::new(1, 3, 4));
    for label in V.into_iter().filter(|label| *label != HACKED) {
        net.start(label).await;
    }
    let (executed, proposed) = (
        Arc::<Mutex<Option<ExecutedWatch>>>::default(),
        Arc::<Mutex<u64>>::default(),
    );
    let fleet = net.fleet.clone();
    let sends = |transport| -> Arc<dyn Transport> {
        Arc::new(RefersToNothing {
            transport,
            fleet: fleet.clone(),
            label: HACKED,
            executed: Arc::clone(&executed),
            proposed: Arc::clone(&proposed),
        })
    };
    let answers = |door| -> Arc<dyn Service> {
        Arc::new(NoBatches {
            door,
            fleet: fleet.clone(),
            label: HACKED,
        })
    };
    net.try_start_as(HACKED, answers, sends).await.unwrap();
    net.grow(1).await;
    let living = |net: &Net| net.running["v1"].process.living();
    let before = living(&net);
    *executed.lock().unwrap() = Some(net.validator(HACKED).executed().clone());
    let (mut most, mut most_wanted) = (0, 0);
    for _ in 0..300 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        most = most.max(living(&net));
        most_wanted = most_wanted.max(net.validator("v1").wanted());
    }
    let per_peer = *proposed.lock().unwrap() / 3;
    assert!(per_peer >= 5, "it led {per_peer} views");
    // Known to one that is honest, and fetched from it by the others.
    let mut log = ClusterLog::new(&fleet, C1);
    for number in 1..=3 {
        let batch = batch(&fleet, &mut log, number);
        let begun = tokio::time::Instant::now();
        net.submit("c1-1", "v1", &batch).await.unwrap();
        for label in ["v1", "v2", "v3"] {
            net.executed(label, C1, number).await;
        }
        let took = begun.elapsed();
        assert!(
            took < Duration::from_secs(10),
            "batch {number} was final after {took:?}"
        );
    }
    assert!(most <= before + 8, "{before} tasks have become {most}");
    let under_way = 3 * SLOTS_PER_PEER_MAX;
    assert!(
        most_wanted <= REFS_PER_BLOCK_MAX + under_way,
        "{most_wanted} are wanted"
    );
    net.assert_no_fork();
    let unknown = encode(&FetchByDigest {
        digest: Digest([7; 32]),
    });
    let asked = net.call("v1", HACKED, FrameKind::FetchBatch, unknown).await;
    assert!(matches!(asked, Err(CallError::Timeout(_))), "it is silent when asked");
}
