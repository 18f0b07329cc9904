//! What other validators, clusters and operators may send and what comes of it: refused at the door or
//! given up by the core, and the chain goes on.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use common::{
    block::{Block, BlockHeader, ParentProof, Proposal, genesis_digest},
    certificate::{Ballot, CertificateError, Notarization, SignedVote, Signers, Vote},
    codec::{BoundedVec, Wire, decode, encode},
    ids::{ClusterId, Digest, Epoch, Height, View},
    task::Scope,
    testing::{BlockChain, ClusterLog, Fleet, task},
    wire::{
        bft::{BatchNotice, Bundle, Bundled, BundledKind, Certificate, SyncAnswer, SyncRequest},
        feed::FetchByDigest,
        frame::{FrameKind, Refusal, RefusalCode},
        op::{Consistency, OpAnswer, OpRequest},
    },
};
use futures::future::{join, join_all};
use global_validator::exit::{EXIT_DISK, EXIT_REFUSED_FOR_SAFETY};
use transport::ports::{BoxFuture, CallError, Peer, Service};

use super::support::{Net, V};

const C1: ClusterId = ClusterId(0);

/// The leader of view 1 is the adversary: it does not run, and the tests speak with its keys.
fn adversary(fleet: &Fleet) -> &str {
    fleet.label(fleet.set.leader(View(1)))
}

async fn without_adversary() -> (Net, String) {
    let fleet = Fleet::new(1, 3, 4);
    let adversary = adversary(&fleet).to_owned();
    let mut net = Net::new(fleet);
    for label in V.into_iter().filter(|label| *label != adversary) {
        net.start(label).await;
    }
    (net, adversary)
}

fn genesis_root(fleet: &Fleet) -> Digest {
    common::global_queue::GlobalQueue::genesis(&fleet.genesis).state_root()
}

/// The right first block.
fn first_block(fleet: &Fleet) -> Block {
    BlockChain::new(fleet, genesis_root(fleet)).block(fleet, &[], 300)
}

fn ballot(view: u64, height: u64, content: u8) -> Ballot {
    Ballot {
        epoch: Epoch(0),
        view: View(view),
        height: Height(height),
        digest: Digest([content; 32]),
    }
}

async fn push<T: Wire>(net: &Net, from: &str, to: &str, kind: FrameKind, value: &T) -> Result<(), RefusalCode> {
    match net.call(from, to, kind, encode(value)).await {
        Ok(_) => Ok(()),
        Err(CallError::Refused(refusal)) => Err(refusal.code),
        Err(other) => panic!("{other}"),
    }
}

/// Sends `proposal` to all that run; the honest go on and never finalize it.
async fn is_given_up(net: &Net, adversary: &str, proposal: &Proposal) {
    for to in net.running.keys() {
        let sent = push(net, adversary, to, FrameKind::Proposal, proposal).await;
        assert_eq!(sent, Ok(()), "the leader signed it: the core judges");
    }
    net.grow(4).await;
    net.assert_no_fork();
    for label in net.running.keys() {
        assert!(!net.digests(label).contains(&proposal.block.digest()));
        assert!(net.validator(label).stop_reason().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn good_proposal_of_the_same_leader_is_taken() {
    // The control of the tests below: what they break is otherwise in order.
    let (net, adversary) = without_adversary().await;
    let block = first_block(&net.fleet);
    let proposal = net.fleet.propose(block.clone(), None);
    for to in net.running.keys() {
        assert_eq!(push(&net, &adversary, to, FrameKind::Proposal, &proposal).await, Ok(()));
    }
    net.grow(2).await;
    for label in net.running.keys() {
        assert_eq!(net.digests(label)[0], block.digest());
    }
}

#[tokio::test(start_paused = true)]
async fn wrong_root_in_a_proposal_is_nullified() {
    let (net, adversary) = without_adversary().await;
    let block = BlockChain::new(&net.fleet, Digest([7; 32])).block(&net.fleet, &[], 300);
    is_given_up(&net, &adversary, &net.fleet.propose(block, None)).await;
}

#[tokio::test(start_paused = true)]
async fn block_from_the_far_future_is_not_voted_for() {
    let (net, adversary) = without_adversary().await;
    let block = BlockChain::new(&net.fleet, genesis_root(&net.fleet)).block(&net.fleet, &[], 3_600_000);
    is_given_up(&net, &adversary, &net.fleet.propose(block, None)).await;
}

#[tokio::test(start_paused = true)]
async fn reference_to_a_batch_that_is_not_next_is_nullified() {
    let (net, adversary) = without_adversary().await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    log.beat(&net.fleet);
    let second = log.beat(&net.fleet);
    let block = BlockChain::new(&net.fleet, genesis_root(&net.fleet)).block(&net.fleet, &[second], 300);
    is_given_up(&net, &adversary, &net.fleet.propose(block, None)).await;
}

#[tokio::test(start_paused = true)]
async fn reference_to_a_batch_that_nobody_has_stops_nothing() {
    let (net, adversary) = without_adversary().await;
    let withheld = ClusterLog::new(&net.fleet, C1).beat(&net.fleet);
    let block = BlockChain::new(&net.fleet, genesis_root(&net.fleet)).block(&net.fleet, &[withheld], 300);
    is_given_up(&net, &adversary, &net.fleet.propose(block, None)).await;
}

#[tokio::test(start_paused = true)]
async fn proposals_that_a_voter_cannot_check_alone_are_refused_at_the_door() {
    let (net, adversary) = without_adversary().await;
    let fleet = &net.fleet;
    let to = net.running.keys().next().unwrap().clone();
    let mut chain = BlockChain::new(fleet, genesis_root(fleet));
    let first = chain.block(fleet, &[], 300);
    let second = chain.block(fleet, &[], 300);
    let sign = |header: BlockHeader, parent_proof, nullifications: Vec<_>| {
        let leader = fleet.label(fleet.set.leader(header.view));
        Proposal {
            signature: fleet
                .consensus_key(leader)
                .sign_proposal(&fleet.chain, &header.ballot()),
            block: Block {
                header,
                refs: BoundedVec::new(),
            },
            parent_proof,
            nullifications: nullifications.try_into().unwrap(),
        }
    };
    let notarized = |block: &Block| ParentProof::Notarization(fleet.notarization(block.header.ballot()));
    let mut skipped = second.header.clone();
    skipped.height = Height(3);
    let mut other_parent = second.header.clone();
    other_parent.parent = Digest([3; 32]);
    let thin = |block: &Block| {
        let ballot = block.header.ballot();
        let one = fleet.vote("v1", Vote::Notarize(ballot)).signature;
        ParentProof::Notarization(Notarization {
            ballot,
            signers: Signers::gather(4, &[(0, one)]),
        })
    };
    let mut foreign_leader = fleet.propose(first.clone(), None);
    let not_leader = V.into_iter().find(|label| *label != adversary).unwrap();
    foreign_leader.signature = fleet
        .consensus_key(not_leader)
        .sign_proposal(&fleet.chain, &first.header.ballot());
    let mut other_fleet = fleet.propose(first.clone(), None);
    other_fleet.block.header.chain = Default::default();
    let cases = [
        (
            "without the parent's certificate",
            sign(second.header.clone(), ParentProof::Genesis, vec![]),
        ),
        (
            "with a certificate of too few",
            sign(second.header.clone(), thin(&first), vec![]),
        ),
        ("that skips a height", sign(skipped, notarized(&first), vec![])),
        (
            "with a certificate for another parent",
            sign(other_parent, notarized(&first), vec![]),
        ),
        (
            "with a nullification that has no place",
            sign(
                second.header.clone(),
                notarized(&first),
                vec![fleet.nullification(View(7))],
            ),
        ),
        ("not signed by its leader", foreign_leader),
        ("of another fleet", other_fleet),
    ];
    for (what, proposal) in cases {
        let sent = push(&net, &adversary, &to, FrameKind::Proposal, &proposal).await;
        assert_eq!(sent, Err(RefusalCode::Invalid), "a proposal {what} was taken");
    }
    // References that do not match their root do not even decode.
    let mut wrong_refs = fleet.propose(first.clone(), None);
    wrong_refs.block.header.refs_root = Digest::default();
    let bytes = encode_unchecked(&wrong_refs);
    let sent = net.call(&adversary, &to, FrameKind::Proposal, bytes).await;
    assert!(matches!(sent, Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Invalid));
    assert_eq!(first.header.parent, genesis_digest(&fleet.chain));
    net.grow(2).await;
    net.assert_no_fork();
}

/// `encode` does not validate; only decoding does.
fn encode_unchecked(proposal: &Proposal) -> Vec<u8> {
    encode(proposal)
}

#[tokio::test(start_paused = true)]
async fn votes_and_certificates_that_do_not_verify_are_refused_at_the_door() {
    let net = Net::started(Fleet::new(1, 3, 4)).await;
    net.grow(1).await;
    let fleet = &net.fleet;
    let vote = Vote::Notarize(ballot(90, 90, 1));
    let good = fleet.vote("v2", vote);
    let forged = SignedVote {
        voter: fleet.idx("v3"),
        ..good
    };
    let stranger = SignedVote {
        voter: fleet.idx("c1-1"),
        ..good
    };
    for wrong in [forged, stranger] {
        let sent = push(&net, "v2", "v1", FrameKind::Vote, &wrong).await;
        assert_eq!(sent, Err(RefusalCode::Invalid), "{wrong:?}");
    }
    let twice = Notarization {
        ballot: ballot(90, 90, 1),
        signers: Signers::gather(4, &[(0, good.signature), (1, good.signature), (2, good.signature)]),
    };
    let error = twice.verify(&fleet.chain, &fleet.set).unwrap_err();
    assert_eq!(error, CertificateError::BadSignature(0));
    let few = Notarization {
        ballot: ballot(90, 90, 1),
        signers: Signers::gather(4, &[(1, good.signature)]),
    };
    let mut other_epoch = fleet.notarization(ballot(90, 90, 1));
    other_epoch.ballot.epoch = Epoch(1);
    for wrong in [twice, few, other_epoch] {
        let certificate = Certificate::Notarization(wrong);
        let sent = push(&net, "v2", "v1", FrameKind::Certificate, &certificate).await;
        assert_eq!(sent, Err(RefusalCode::Invalid), "{certificate:?}");
    }
    let batch = ClusterLog::new(fleet, C1).beat(fleet);
    let notice = BatchNotice {
        header: batch.header,
        attestations: Signers::gather(3, &[]),
    };
    let sent = push(&net, "v2", "v1", FrameKind::BatchNotice, &notice).await;
    assert_eq!(sent, Err(RefusalCode::Invalid));
    net.grow(2).await;
    net.assert_no_fork();
}

#[tokio::test(start_paused = true)]
async fn vote_of_my_key_that_i_did_not_cast_stops_me_while_listening_and_later() {
    for is_listening in [true, false] {
        let mut net = Net::new(Fleet::new(1, 3, 4));
        net.clone_watch = std::time::Duration::from_secs(5);
        for label in V {
            net.start(label).await;
        }
        if !is_listening {
            net.grow(1).await;
        }
        let vote = net.fleet.vote("v1", Vote::Notarize(ballot(90, 90, 1)));
        assert_eq!(push(&net, "v2", "v1", FrameKind::Vote, &vote).await, Ok(()));
        let stop = net.validator("v1").stopped().await;
        assert_eq!(stop.exit_code(), EXIT_REFUSED_FOR_SAFETY, "{stop}");
        net.crash("v1");
        net.grow(2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn refused_message_of_a_bundle_is_the_answer_and_leaves_those_behind_it_taken() {
    let net = Net::started(Fleet::new(1, 3, 4)).await;
    net.grow(1).await;
    let bundled = |kind, body: Vec<u8>| Bundled {
        kind,
        body: body.try_into().expect("short"),
    };
    let bundle = |messages: Vec<Bundled>| Bundle {
        messages: messages.try_into().expect("few"),
    };
    let vote = |label| {
        bundled(
            BundledKind::Vote,
            encode(&net.fleet.vote(label, Vote::Notarize(ballot(90, 90, 1)))),
        )
    };
    let good = bundle(vec![vote("v2"), vote("v3")]);
    assert_eq!(push(&net, "v2", "v1", FrameKind::Bundle, &good).await, Ok(()));
    assert!(net.validator("v1").stop_reason().is_none());
    // What stops v1 stands behind rubbish, and behind a vote under the name of another kind.
    let rubbish = bundled(BundledKind::Proposal, vec![7; 100]);
    let misnamed = Bundled {
        kind: BundledKind::Certificate,
        ..vote("v3")
    };
    let mixed = bundle(vec![vote("v4"), rubbish, misnamed, vote("v1")]);
    assert_eq!(
        push(&net, "v2", "v1", FrameKind::Bundle, &mixed).await,
        Err(RefusalCode::Invalid)
    );
    let stopped = tokio::time::timeout(std::time::Duration::from_secs(5), net.validator("v1").stopped()).await;
    let stop = stopped.expect("the last message was taken");
    assert_eq!(stop.exit_code(), EXIT_REFUSED_FOR_SAFETY, "{stop}");
}

#[tokio::test(start_paused = true)]
async fn clone_is_found_in_a_certificate_too() {
    let net = Net::started(Fleet::new(1, 3, 4)).await;
    net.grow(1).await;
    // Signed by v1 to v3.
    let certificate = Certificate::Nullification(net.fleet.nullification(View(90)));
    assert_eq!(
        push(&net, "v4", "v1", FrameKind::Certificate, &certificate).await,
        Ok(())
    );
    let stop = net.validator("v1").stopped().await;
    assert_eq!(stop.exit_code(), EXIT_REFUSED_FOR_SAFETY, "{stop}");
}

#[tokio::test(start_paused = true)]
async fn failing_disk_stops_its_validator_and_no_other() {
    let mut net = Net::started(Fleet::new(1, 3, 4)).await;
    net.grow(1).await;
    net.disks["v2"].fail();
    let stop = net.validator("v2").stopped().await;
    assert_eq!(stop.exit_code(), EXIT_DISK, "{stop}");
    net.crash("v2");
    net.grow(3).await;
    net.start("v2").await;
    net.grow(1).await;
    net.assert_no_fork();
}

#[tokio::test(start_paused = true)]
async fn reads_say_how_old_they_are_and_need_the_role() {
    let mut net = Net::started(Fleet::new(1, 3, 4)).await;
    let mut log = ClusterLog::new(&net.fleet, C1);
    let entry = net.fleet.submit("op1", C1, 1, Scope::Fleet, &task("k"));
    let id = entry.id(&net.fleet.chain).into();
    let batch = log.granted(&net.fleet, vec![entry]);
    net.submit("c1-1", "v1", &batch).await.unwrap();
    net.executed("v1", C1, 1).await;
    let read = |consistency, staleness_ms_max| OpRequest::Task {
        task: id,
        consistency,
        staleness_ms_max,
    };
    let OpAnswer::Task { context, .. } = net.ask("v1", &read(Consistency::Final, None)).await else {
        panic!("no task")
    };
    let fresh = context.staleness_ms.unwrap();
    // Three of four gone: nothing is finalized any more, and the age says so.
    for label in ["v2", "v3", "v4"] {
        net.crash(label);
    }
    tokio::time::sleep(std::time::Duration::from_secs(30)).await;
    let OpAnswer::Task { context, .. } = net.ask("v1", &read(Consistency::Local, None)).await else {
        panic!("no task")
    };
    assert!(context.staleness_ms.unwrap() >= fresh + 28_000, "{context:?}");
    let answer = net.ask("v1", &read(Consistency::Final, Some(5_000))).await;
    assert!(matches!(answer, OpAnswer::TooStale { staleness_ms: Some(ms), .. } if ms > 5_000));
    let answer = net.ask("v1", &read(Consistency::Linearizable, None)).await;
    assert!(matches!(answer, OpAnswer::Unsupported(_)));
    let denied = push(&net, "c1-1", "v1", FrameKind::Operate, &OpRequest::Status).await;
    assert_eq!(denied, Err(RefusalCode::Denied));
}

/// Answers every question of a validator with something else than was asked for.
struct Liar {
    fleet: Fleet,
    asked: Arc<Mutex<BTreeSet<FrameKind>>>,
}

impl Service for Liar {
    fn handle(&self, _peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        self.asked.lock().unwrap().insert(kind);
        let fleet = &self.fleet;
        let block = BlockChain::new(fleet, Digest([9; 32])).block(fleet, &[], 1);
        let answer: Bytes = match kind {
            FrameKind::Sync => {
                let request: SyncRequest = decode(&body).unwrap();
                let mut finalized = fleet.finalize(block);
                // Right height, signed by too few.
                finalized.block.header.height = request.from;
                let blocks = vec![finalized].try_into().unwrap();
                encode(&SyncAnswer { blocks }).into()
            }
            FrameKind::FetchBlock => encode(&block).into(),
            FrameKind::FetchBatch => encode(&ClusterLog::new(fleet, C1).beat(fleet)).into(),
            _ => Bytes::new(),
        };
        Box::pin(async { Ok(answer) })
    }
}

#[tokio::test(start_paused = true)]
async fn validator_catches_up_although_one_it_asks_lies() {
    let mut net = Net::started(Fleet::new(1, 3, 4)).await;
    net.grow(1).await;
    net.crash("v2");
    let mut log = ClusterLog::new(&net.fleet, C1);
    for number in 1..=8 {
        let entry = net
            .fleet
            .submit("op1", C1, number, Scope::Fleet, &task(&format!("k{number}")));
        let batch = log.granted(&net.fleet, vec![entry]);
        net.submit("c1-1", "v1", &batch).await.unwrap();
        net.executed("v1", C1, number).await;
    }
    net.grow(10).await;
    net.crash("v4");
    let asked = Arc::<Mutex<BTreeSet<FrameKind>>>::default();
    let liar = Liar {
        fleet: net.fleet.clone(),
        asked: asked.clone(),
    };
    let hello = transport::quic::hello_of(net.fleet.chain, net.fleet.id("v4"));
    net.network.join(net.fleet.idx("v4"), hello, Arc::new(liar));
    net.start("v2").await;
    net.executed("v2", C1, 8).await;
    net.grow(2).await;
    net.assert_no_fork();
    assert!(asked.lock().unwrap().contains(&FrameKind::Sync), "the liar was asked");
}

#[tokio::test(start_paused = true)]
async fn validator_that_floods_another_is_refused_alone() {
    let net = Net::started(Fleet::new(1, 3, 4)).await;
    net.grow(1).await;
    let wanted = encode(&FetchByDigest {
        digest: Digest([9; 32]),
    });
    let questions = (0..3_000).map(|_| net.call("v2", "v1", FrameKind::FetchBlock, wanted.clone()));
    let vote = net.fleet.vote("v3", Vote::Notarize(ballot(90, 90, 1)));
    let (flood, heard) = join(join_all(questions), push(&net, "v3", "v1", FrameKind::Vote, &vote)).await;
    let refused = |code| {
        let is_it = |answer: &&Result<_, _>| matches!(answer, Err(CallError::Refused(refusal)) if refusal.code == code);
        flood.iter().filter(is_it).count()
    };
    assert!(refused(RefusalCode::Busy) > 0, "more than an inbox holds");
    assert!(refused(RefusalCode::NotFound) > 1_000, "an inbox full is answered");
    assert_eq!(heard, Ok(()), "the other's vote is taken meanwhile");
    net.grow(2).await;
}
