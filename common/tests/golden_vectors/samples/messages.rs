//! What validators and members say to each other.

use common::{
    ids::{BatchSeq, ClusterId, Digest, Founding, Height, LogIndex, RaftNodeId, Term},
    testing::Fleet,
    verdict::{Answer, Reason, Verdict},
    wire::{
        bft::{Bundle, Bundled, BundledKind, SyncAnswer, SyncRequest},
        cluster::{Confirmation, Forward, Join, Joined, Linearize, Linearized, WriteOutcome},
        feed::{BatchReceipt, FetchByDigest, Follow, Followed},
        frame::{Hello, Refusal, RefusalCode, WIRE_VERSION},
        op::WriteRefusal,
    },
};

use super::{
    C1, C2, Samples, TASK,
    blocks::{finalized_from_above, two_batches, two_blocks},
    label,
    tasks::submit,
};

pub fn bft_and_feed(all: &mut impl Samples, fleet: &Fleet) {
    let [first, _] = two_blocks(fleet);
    let blocks = vec![fleet.finalize(first), finalized_from_above(fleet)];
    let kinds = [
        BundledKind::Proposal,
        BundledKind::Vote,
        BundledKind::Certificate,
        BundledKind::BatchNotice,
    ];
    let bundled = |kind| Bundled {
        kind,
        body: vec![kind as u8; 3].try_into().expect("short"),
    };
    let messages = kinds.map(bundled).to_vec().try_into().expect("few");
    all.add("bundle", Bundle { messages });
    all.add("sync_request", SyncRequest { from: Height(300) });
    all.add(
        "sync_answer",
        SyncAnswer {
            blocks: blocks.clone().try_into().unwrap(),
        },
    );
    all.add("receipt_stored", BatchReceipt::Stored);
    all.add("receipt_final", BatchReceipt::Final);
    all.add("receipt_parked", BatchReceipt::Parked { next: BatchSeq(300) });
    all.add(
        "follow",
        Follow {
            cluster: C2,
            from: Height(300),
            wait_ms: 10_000,
        },
    );
    all.add(
        "followed",
        Followed {
            blocks: blocks.try_into().unwrap(),
            batches: two_batches(fleet).to_vec().try_into().unwrap(),
            tip: Height(301),
            next_seq: BatchSeq(3),
            founding: Founding(0),
        },
    );
    all.add(
        "fetch_by_digest",
        FetchByDigest {
            digest: Digest([0xc3; 32]),
        },
    );
}

pub fn frames_and_cluster(all: &mut impl Samples, fleet: &Fleet) {
    all.add(
        "hello_agent",
        Hello {
            version: WIRE_VERSION,
            chain: fleet.chain,
            device: fleet.id("c2-1"),
            cluster: Some((C2, Founding(0))),
            raft: RaftNodeId::new(fleet.idx("c2-1"), 1).0,
        },
    );
    all.add(
        "hello_validator",
        Hello {
            version: WIRE_VERSION,
            chain: fleet.chain,
            device: fleet.id("v1"),
            cluster: None,
            raft: 0,
        },
    );
    let codes = [
        RefusalCode::Invalid,
        RefusalCode::Denied,
        RefusalCode::Busy,
        RefusalCode::NotFound,
        RefusalCode::NotNow,
    ];
    for code in codes {
        let name = format!("refusal_{code:?}").to_lowercase();
        all.add(&name, Refusal::new(code, "why"));
    }
    all.add(
        "forward",
        Forward {
            cluster: C1,
            founding: Founding(2),
            entry: submit(fleet),
        },
    );
    for (i, outcome) in write_outcomes().into_iter().enumerate() {
        all.add(&format!("write_outcome_{i}"), outcome);
    }
    all.add(
        "linearize",
        Linearize {
            cluster: C1,
            founding: Founding(0),
            confirmation: Confirmation::InPassing,
        },
    );
    all.add(
        "linearized_at",
        Linearized::At {
            term: Term(3),
            index: LogIndex(300),
        },
    );
    all.add(
        "linearized_not_leader",
        Linearized::NotLeader {
            leader: Some(RaftNodeId(1 << 32 | 1)),
        },
    );
    all.add("linearized_no_quorum", Linearized::NoQuorum);
    all.add(
        "join",
        Join {
            cluster: ClusterId(1),
            founding: Founding(2),
        },
    );
    all.add("joined_is_member", Joined::IsMember);
    all.add(
        "joined_not_leader",
        Joined::NotLeader {
            leader: Some(RaftNodeId(0x7_0000_0001)),
        },
    );
    all.add("joined_not_now", Joined::NotNow);
    all.add("joined_retired", Joined::Retired { incarnation: 3 });
    all.add("joined_had_entries", Joined::HadEntries { upto: LogIndex(300) });
}

pub fn write_outcomes() -> Vec<WriteOutcome> {
    let refused = [
        WriteRefusal::NoQuorum {
            leader: Some(RaftNodeId(2 << 32 | 1)),
            retry_after_ms: 300,
        },
        WriteRefusal::CatchingUp { behind: 1_000 },
        WriteRefusal::Overloaded {
            what: label("outbox"),
            retry_after_ms: 1_000,
        },
        WriteRefusal::Rejected {
            verdict: Verdict::Rejected(Reason::Denied),
            detail: label("task.submit"),
        },
    ];
    let committed = Answer {
        index: LogIndex(300),
        verdict: Verdict::Rejected(Reason::KeyConflict(TASK)),
    };
    [WriteOutcome::Committed(committed), WriteOutcome::Unknown]
        .into_iter()
        .chain(refused.map(WriteOutcome::Refused))
        .collect()
}
