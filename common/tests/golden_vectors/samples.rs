//! One value of everything that crosses a process or a disk, made with fixed keys.

use common::{
    batch::{BatchItem, CertifiedBatch, RosterChange},
    block::{Advance, AdvanceBatch, AdvancePart, Block, FinalizedBlock, Link, ParentProof, filler_digest},
    certificate::{NullifyBallot, Vote},
    codec::{Label, Wire, encode},
    entry::{Action, Cause, Fence, LogEntry, Progress, SignedEntry},
    genesis::Genesis,
    global_queue::{MachineEvent, Outcome, StaleReason},
    ids::{
        Assignment, BatchSeq, BlockTime, ClusterId, DeviceId, Digest, EntryId, EntryNumber, Epoch, Founding, Height,
        HolderCounter, KeyVersion, LogIndex, RaftNodeId, TaskId, Term, View,
    },
    proof::build_proof,
    task::{AfterCustody, Constraints, OnLeaseLoss, Place, Scope, Task, TaskKind, TaskState},
    testing::{BlockChain, ClusterLog, Fleet, Ledger, place_in, task},
    verdict::{Answer, Reason, Verdict},
    wire::{
        bft::{BatchNotice, Bundle, Bundled, BundledKind, Certificate, SyncAnswer, SyncRequest},
        cluster::{Confirmation, Forward, Join, Joined, Linearize, Linearized, WriteOutcome},
        feed::{BatchReceipt, FetchByDigest, Follow, Followed},
        frame::{Hello, Protocol, Refusal, RefusalCode, WIRE_VERSION},
        op::{
            AgentStatus, Alarm, BufferedState, Consistency, EventView, Finality, HolderView, Mode, OpAnswer, OpRequest,
            ReadContext, Sent, TaskView, Telemetry, Times, ValidatorStatus, WriteRefusal,
        },
    },
};

/// Takes the samples.
pub trait Samples {
    /// One value under the name of its file.
    fn add<T: Wire + PartialEq + Clone + 'static>(&mut self, name: &str, value: T);
}

const C1: ClusterId = ClusterId(0);
const C2: ClusterId = ClusterId(1);
const TASK: TaskId = TaskId([0xa5; 32]);
const FENCE: Fence = Fence {
    assignment: Assignment(3),
    founding: Founding(1),
    index: LogIndex(300),
};

/// Every sample, in the order of the journey.
pub fn collect(all: &mut impl Samples) {
    let fleet = Fleet::dev();
    tasks_and_entries(all, &fleet);
    batches(all, &fleet);
    blocks(all, &fleet);
    certificates(all, &fleet);
    outcomes_and_proof(all);
    bft_and_feed(all, &fleet);
    frames_and_cluster(all, &fleet);
    operators_requests(all, &fleet);
    operators_answers(all, &fleet);
}

fn label(text: &str) -> Label {
    Label::new(text).expect("a short label")
}

/// A task with every field set.
fn full_task() -> Task {
    Task {
        key: b"order-4711".to_vec().try_into().unwrap(),
        kind: TaskKind::Delivery,
        revision: 2,
        priority: 200,
        earliest_start: Some(BlockTime(1_700_000_001_000_000)),
        deadline: Some(BlockTime(1_700_000_009_000_000)),
        places: vec![
            Place::Geo {
                lat_e7: 521_234_567,
                lon_e7: -131_234_567,
                alt_m: 120,
            },
            place_in(1),
        ]
        .try_into()
        .unwrap(),
        payload_g: 1_500,
        requester: label("hospital übersee"),
        labels: vec![(label("a"), label("1")), (label("b"), label("2"))]
            .try_into()
            .unwrap(),
        constraints: Constraints {
            cluster: Some(C2),
            capabilities: vec![label("cold-chain"), label("winch")].try_into().unwrap(),
        },
        after: vec![TaskId([1; 32]), TaskId([2; 32])].try_into().unwrap(),
        on_lease_loss: OnLeaseLoss::Continue,
        after_custody: AfterCustody::Hold,
        attempts_max: 5,
        payload: vec![0, 1, 2, 0xff].try_into().unwrap(),
    }
}

/// Every action that an author can ask for, by its name.
fn actions() -> Vec<(&'static str, Action)> {
    let counter = HolderCounter(9);
    let progress = |progress| Action::Progress {
        task: TASK,
        fence: FENCE,
        progress,
    };
    let requeue = |cause| Action::Requeue { task: TASK, cause };
    vec![
        ("cancel", Action::Cancel { task: TASK }),
        (
            "claim",
            Action::Claim {
                task: TASK,
                assignment: Assignment(3),
                counter,
            },
        ),
        ("renew", Action::Renew { counter }),
        ("progress_started", progress(Progress::Started)),
        ("progress_paused", progress(Progress::Paused)),
        ("progress_resumed", progress(Progress::Resumed)),
        ("progress_percent", progress(Progress::Percent(40))),
        (
            "complete",
            Action::Complete {
                task: TASK,
                fence: FENCE,
            },
        ),
        (
            "fail",
            Action::Fail {
                task: TASK,
                fence: FENCE,
                counter,
                retriable: true,
            },
        ),
        (
            "release",
            Action::Release {
                task: TASK,
                fence: FENCE,
                counter,
            },
        ),
        (
            "requeue_lease_ended",
            requeue(Cause::LeaseEnded {
                fence: FENCE,
                renewed_at: LogIndex(310),
            }),
        ),
        ("requeue_operator", requeue(Cause::Operator)),
        ("force_requeue", Action::ForceRequeue { task: TASK }),
    ]
}

fn submit(fleet: &Fleet) -> SignedEntry {
    fleet.submit("op1", C1, 1, Scope::Fleet, &full_task())
}

fn tasks_and_entries(all: &mut impl Samples, fleet: &Fleet) {
    all.add("genesis", fleet.genesis.clone());
    all.add("genesis_smallest", Genesis::clone(&Fleet::new(1, 1, 1).genesis));
    all.add("task_full", full_task());
    all.add("event", event(fleet.id("op1")));
    let kinds = [
        TaskKind::Pickup,
        TaskKind::Dropoff,
        TaskKind::Survey,
        TaskKind::Patrol,
        TaskKind::Custom,
    ];
    for kind in kinds {
        let name = format!("task_{kind:?}").to_lowercase();
        let on_lease_loss = if kind == TaskKind::Patrol {
            OnLeaseLoss::Return
        } else {
            OnLeaseLoss::Stop
        };
        let key = b"k".to_vec().try_into().unwrap();
        all.add(
            &name,
            Task {
                on_lease_loss,
                ..Task::new(key, kind)
            },
        );
    }
    all.add("entry_submit", submit(fleet));
    for (name, action) in actions() {
        let entry = fleet.entry_with("c1-1", C1, 7, Scope::Cluster, action, "ein Grund".as_bytes());
        all.add(&format!("entry_{name}"), entry);
    }
    all.add("log_author", LogEntry::Author(submit(fleet)));
    all.add("log_cut", LogEntry::Cut { seq: BatchSeq(300) });
    all.add("log_beat", LogEntry::Beat { seq: BatchSeq(301) });
    let roster = fleet.roster(C1);
    all.add("log_roster", LogEntry::Roster(RosterChange { roster }));
    let part = AdvancePart::split(Height(5), Digest([3; 32]), b"an encoded advance").remove(0);
    all.add("log_global_advance", LogEntry::GlobalAdvance(part));
    let notice = b"news".to_vec().try_into().unwrap();
    all.add("log_registry_notice", LogEntry::RegistryNotice(notice));
}

/// Every verdict there is.
fn verdicts() -> Vec<Verdict> {
    let reasons = [
        Reason::UnknownKey,
        Reason::Malformed,
        Reason::Denied,
        Reason::StaleKey,
        Reason::WrongCluster,
        Reason::Conflict,
        Reason::NumberWindow,
        Reason::Expired,
        Reason::UnknownTask,
        Reason::Fenced,
        Reason::NotHolder,
        Reason::NotInCustody,
        Reason::OldCounter,
        Reason::Blocked,
        Reason::LeaseRenewed,
        Reason::Constrained,
        Reason::DuplicateOf(TASK),
        Reason::KeyConflict(TASK),
        Reason::TooManyClaims,
        Reason::LinkEnded(TASK),
    ];
    let states = TaskState::ALL.map(Reason::WrongState);
    [Verdict::Granted, Verdict::Late]
        .into_iter()
        .chain(reasons.into_iter().chain(states).map(Verdict::Rejected))
        .collect()
}

/// A batch with a row of every verdict and a change of roster, and a beat after it.
fn two_batches(fleet: &Fleet) -> [CertifiedBatch; 2] {
    let mut log = ClusterLog::new(fleet, C1);
    let mut items: Vec<(Verdict, BatchItem)> = verdicts()
        .into_iter()
        .zip(1..)
        .map(|(verdict, number)| {
            let entry = fleet.entry("c1-2", C1, number, Scope::Fleet, Action::Cancel { task: TASK });
            (verdict, BatchItem::Author(entry))
        })
        .collect();
    let roster = fleet.roster(C1);
    items.push((Verdict::Granted, BatchItem::Roster(RosterChange { roster })));
    [log.batch_of(fleet, items), log.beat(fleet)]
}

fn batches(all: &mut impl Samples, fleet: &Fleet) {
    let [batch, beat] = two_batches(fleet);
    all.add("batch_header", batch.header.clone());
    all.add("attestation", fleet.attest(&batch.header, &fleet.roster(C1), 2));
    all.add(
        "batch_notice",
        BatchNotice {
            header: batch.header.clone(),
            attestations: batch.attestations.clone(),
        },
    );
    all.add("certified_batch", batch);
    all.add("certified_beat", beat);
}

/// Two blocks: with two references, and empty.
fn two_blocks(fleet: &Fleet) -> [Block; 2] {
    let batches = two_batches(fleet);
    let mut chain = BlockChain::new(fleet, Digest([0x11; 32]));
    [chain.block(fleet, &batches, 20), chain.block(fleet, &[], 1_000)]
}

/// A block whose finality is shown by a header and a filler above it.
fn finalized_from_above(fleet: &Fleet) -> FinalizedBlock {
    let [first, second] = two_blocks(fleet);
    let below = second.digest();
    let mut finalized = fleet.finalize(second.clone());
    let mut ballot = second.header.ballot();
    ballot.view = View(9);
    ballot.digest = filler_digest(Epoch(0), View(9), &below);
    finalized.block = first;
    finalized.proof.finalization = fleet.finalization(ballot);
    let filler = Link::Filler {
        epoch: Epoch(0),
        view: View(9),
        parent: below,
    };
    finalized.proof.above = vec![Link::Header(second.header), filler].try_into().unwrap();
    let verified = finalized.clone().verify(&fleet.chain, &fleet.set);
    assert!(verified.is_ok(), "the sample is genuine");
    finalized
}

fn blocks(all: &mut impl Samples, fleet: &Fleet) {
    let [first, second] = two_blocks(fleet);
    let mut last_of_epoch = second.clone();
    last_of_epoch.header.next_set = Some(Digest([7; 32]));
    all.add("block", first.clone());
    all.add("block_empty_last_of_epoch", last_of_epoch);
    all.add("proposal_on_genesis", fleet.propose(first.clone(), None));
    let mut skipping = second.clone();
    skipping.header.view = View(4);
    all.add(
        "proposal_on_notarization",
        fleet.propose(skipping, Some(first.header.ballot())),
    );
    let mut on_final = fleet.propose(second.clone(), None);
    on_final.parent_proof = ParentProof::Finalization(fleet.finalization(first.header.ballot()));
    all.add("proposal_on_finalization", on_final);
    all.add("finalized_block", fleet.finalize(first.clone()));
    all.add("finalized_block_from_above", finalized_from_above(fleet));
    let [batch, beat] = two_batches(fleet);
    all.add(
        "advance",
        Advance {
            batches: vec![AdvanceBatch::Full(batch), AdvanceBatch::Own(beat.digest(&fleet.chain))]
                .try_into()
                .unwrap(),
            finalized: fleet.finalize(first),
        },
    );
}

fn certificates(all: &mut impl Samples, fleet: &Fleet) {
    let ballot = two_blocks(fleet)[0].header.ballot();
    let nullify = NullifyBallot {
        epoch: Epoch(0),
        view: View(300),
    };
    all.add("vote_notarize", fleet.vote("v1", Vote::Notarize(ballot)));
    all.add("vote_finalize", fleet.vote("v2", Vote::Finalize(ballot)));
    all.add("vote_nullify", fleet.vote("v4", Vote::Nullify(nullify)));
    let (notarization, finalization) = (fleet.notarization(ballot), fleet.finalization(ballot));
    let nullification = fleet.nullification(View(300));
    all.add("notarization", notarization.clone());
    all.add("finalization", finalization.clone());
    all.add("nullification", nullification.clone());
    all.add("certificate_notarization", Certificate::Notarization(notarization));
    all.add("certificate_nullification", Certificate::Nullification(nullification));
    all.add("certificate_finalization", Certificate::Finalization(finalization));
}

/// A short history with a task that was claimed and completed; the last decision is pending.
pub fn ledger() -> Ledger {
    let mut ledger = Ledger::new(Fleet::new(2, 3, 4));
    ledger.without_finalization.insert(Height(3));
    let beat = ledger.beat(C1);
    ledger.block(vec![beat], 100);
    let sample = Task {
        places: vec![place_in(0)].try_into().unwrap(),
        ..task("sample")
    };
    let entries = vec![
        ledger.submit("op1", C1, Scope::Fleet, &sample),
        ledger.submit("c1-1", C1, Scope::Cluster, &task("own")),
    ];
    let id = TaskId::from(entries[0].id(&ledger.fleet.chain));
    let batch = ledger.granted(C1, entries);
    ledger.block(vec![batch], 100);
    let claim = Action::Claim {
        task: id,
        assignment: Assignment(1),
        counter: HolderCounter(1),
    };
    let claim = ledger.entry("c1-2", C1, Scope::Fleet, claim);
    let batch = ledger.granted(C1, vec![claim]);
    ledger.block(vec![batch], 100);
    let fence = ledger.queue.task(&id).unwrap().standing.life.holder.unwrap().fence;
    let done = ledger.entry("c1-2", C1, Scope::Fleet, Action::Complete { task: id, fence });
    let (batch, beat) = (ledger.granted(C1, vec![done]), ledger.beat(C2));
    ledger.block(vec![beat, batch], 4_000);
    ledger.block(vec![], 100);
    ledger
}

/// The task of [`ledger`].
fn ledgers_task(ledger: &Ledger) -> TaskId {
    let completed = |row: &&common::global_queue::Row| row.state() == TaskState::Completed;
    ledger.queue.tasks(None, 10).find(completed).unwrap().id
}

fn outcomes_and_proof(all: &mut impl Samples) {
    let stale = [
        None,
        Some(StaleReason::UnknownCluster),
        Some(StaleReason::OtherFounding),
        Some(StaleReason::NotNext),
        Some(StaleReason::OtherPredecessor),
        Some(StaleReason::OtherRoster),
        Some(StaleReason::OtherNextRoster),
        Some(StaleReason::ImpossibleHeight),
        Some(StaleReason::Misnamed),
    ];
    for (i, stale) in (0u32..).zip(stale) {
        all.add(&format!("outcome_batch_{i}"), Outcome::Batch { reference: i, stale });
    }
    all.add(
        "outcome_entry",
        Outcome::Entry {
            reference: 1,
            row: 255,
            id: EntryId([4; 32]),
            task: Some(TASK),
            verdict: Verdict::Late,
            state: Some(TaskState::Unknown),
        },
    );
    let machine = [
        MachineEvent::Assigned {
            cluster: C2,
            assignment: Assignment(300),
        },
        MachineEvent::Expired,
        MachineEvent::LinkedTaskEnded,
    ];
    for (what, state) in machine
        .into_iter()
        .zip([TaskState::Assigned, TaskState::Expired, TaskState::Failed])
    {
        let name = format!("outcome_{}", what.word().replace('-', "_"));
        all.add(
            &name,
            Outcome::Machine {
                task: TASK,
                what,
                state,
            },
        );
    }
    let ledger = ledger();
    let proof = build_proof(&ledgers_task(&ledger), &ledger.queue, &ledger).expect("everything is stored");
    assert!(common::proof::verify_proof(&proof, &ledger.fleet.genesis).is_ok());
    all.add("task_proof", proof);
}

fn bft_and_feed(all: &mut impl Samples, fleet: &Fleet) {
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

fn frames_and_cluster(all: &mut impl Samples, fleet: &Fleet) {
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

fn write_outcomes() -> Vec<WriteOutcome> {
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

fn operators_requests(all: &mut impl Samples, fleet: &Fleet) {
    all.add("request_enter", OpRequest::Enter(submit(fleet)));
    all.add(
        "request_task",
        OpRequest::Task {
            task: TASK,
            consistency: Consistency::Linearizable,
            staleness_ms_max: Some(500),
        },
    );
    all.add(
        "request_tasks",
        OpRequest::Tasks {
            states: TaskState::ALL.to_vec().try_into().unwrap(),
            after: Some(TASK),
            limit: 256,
            consistency: Consistency::Local,
            staleness_ms_max: None,
        },
    );
    all.add("request_history", OpRequest::History { task: TASK });
    all.add("request_prove", OpRequest::Prove { task: TASK });
    all.add(
        "request_highest_number",
        OpRequest::HighestNumber {
            author: fleet.id("op1"),
            key_version: KeyVersion(1),
            cluster: C2,
        },
    );
    all.add("request_status", OpRequest::Status);
    all.add("request_buffered", OpRequest::Buffered { id: EntryId([4; 32]) });
    all.add(
        "request_transfer_leader",
        OpRequest::TransferLeader {
            to: Some(RaftNodeId(1 << 32 | 1)),
        },
    );
    all.add(
        "request_blocks",
        OpRequest::Blocks {
            from: Height(1),
            limit: 64,
        },
    );
    all.add("request_telemetry", OpRequest::Telemetry);
}

fn context(consistency: Consistency, mode: Mode) -> ReadContext {
    ReadContext {
        consistency,
        applied: LogIndex(300),
        term: Term(2),
        leader: Some(RaftNodeId(1 << 32 | 1)),
        mode,
        staleness_ms: Some(12),
        global_height: Height(40),
        global_age_ms: None,
    }
}

fn view(author: DeviceId, finality: Finality) -> TaskView {
    TaskView {
        id: TASK,
        author,
        scope: Scope::Fleet,
        through: C1,
        task: full_task(),
        state: TaskState::Paused,
        cluster: Some(C2),
        custody_until: Some(BlockTime(1_700_000_012_000_000)),
        holder: Some(HolderView {
            device: DeviceId([6; 32]),
            fence: FENCE,
        }),
        attempts: 1,
        percent: 40,
        finality,
    }
}

fn event(author: DeviceId) -> EventView {
    EventView {
        entry: Some(EntryId([4; 32])),
        what: label("fail"),
        author: Some(author),
        cluster: Some(C2),
        index: Some(LogIndex(300)),
        height: Some(Height(40)),
        verdict: Verdict::Late,
        state: TaskState::Canceled,
        note: b"winch jammed".to_vec().try_into().unwrap(),
    }
}

fn operators_answers(all: &mut impl Samples, fleet: &Fleet) {
    let author = fleet.id("op1");
    let is_final = Finality::Final {
        height: Height(40),
        verdict: Verdict::Granted,
    };
    let refused = Finality::Refused { verdict: Verdict::Late };
    let views = vec![
        view(author, is_final),
        view(author, Finality::ClusterCommitted),
        view(author, Finality::Buffered),
        view(author, refused),
    ];
    for (i, outcome) in write_outcomes().into_iter().enumerate() {
        let id = EntryId([4; 32]);
        all.add(
            &format!("answer_write_{i}"),
            OpAnswer::Write {
                id,
                outcome,
                mode: Mode::Island,
            },
        );
    }
    all.add(
        "answer_task",
        OpAnswer::Task {
            task: Some(views[0].clone()),
            context: context(Consistency::Linearizable, Mode::Normal),
        },
    );
    all.add(
        "answer_task_unknown",
        OpAnswer::Task {
            task: None,
            context: context(Consistency::Final, Mode::Island),
        },
    );
    all.add(
        "answer_tasks",
        OpAnswer::Tasks {
            tasks: views.try_into().unwrap(),
            more: true,
            context: context(Consistency::Local, Mode::ReadOnly),
        },
    );
    all.add(
        "answer_history",
        OpAnswer::History {
            events: vec![event(author)].try_into().unwrap(),
            context: context(Consistency::Local, Mode::CatchingUp),
        },
    );
    all.add("answer_proof", OpAnswer::Proof(vec![1, 2, 3].try_into().unwrap()));
    all.add("answer_highest_number", OpAnswer::HighestNumber(EntryNumber(300)));
    let answer = Answer {
        index: LogIndex(9),
        verdict: Verdict::Granted,
    };
    let refused = BufferedState::Refused {
        verdict: Verdict::Late,
        detail: label("late"),
    };
    for (i, state) in [BufferedState::Waiting, BufferedState::Committed(answer), refused]
        .into_iter()
        .enumerate()
    {
        let id = EntryId([4; 32]);
        let mode = Mode::ReadOnly;
        all.add(&format!("answer_buffered_{i}"), OpAnswer::Buffered { id, state, mode });
    }
    all.add(
        "answer_leader",
        OpAnswer::Leader {
            leader: Some(RaftNodeId(1 << 32 | 1)),
            term: Term(3),
        },
    );
    all.add("answer_agent", OpAnswer::Agent(agent_status(fleet)));
    all.add("answer_validator", OpAnswer::Validator(validator_status(fleet)));
    let [first, _] = two_blocks(fleet);
    all.add(
        "answer_blocks",
        OpAnswer::Blocks(vec![fleet.finalize(first)].try_into().unwrap()),
    );
    all.add(
        "answer_too_stale",
        OpAnswer::TooStale {
            staleness_ms: Some(900),
            mode: Mode::ReadOnly,
        },
    );
    all.add(
        "answer_no_quorum",
        OpAnswer::NoQuorum {
            leader: None,
            retry_after_ms: 300,
        },
    );
    all.add("answer_not_found", OpAnswer::NotFound);
    all.add(
        "answer_no_longer_kept",
        OpAnswer::NoLongerKept {
            state: TaskState::Failed,
            ended: Height(300),
            height: Height(70_000),
        },
    );
    all.add("answer_unsupported", OpAnswer::Unsupported(label("ask a validator")));
    let sent = Sent {
        datagrams: 3,
        bytes: 1_200,
    };
    let times = Times {
        what: label("batch_to_final"),
        count: 7,
        p50_us: 2_000,
        p99_us: 4_500,
    };
    all.add(
        "answer_telemetry",
        OpAnswer::Telemetry(Telemetry::new(vec![(Protocol::Raft, sent)], vec![times])),
    );
}

fn agent_status(fleet: &Fleet) -> AgentStatus {
    AgentStatus {
        device: fleet.id("c1-1"),
        label: label("c1-1"),
        cluster: C1,
        founding: Founding(0),
        raft: RaftNodeId(1),
        is_leader: true,
        context: context(Consistency::Local, Mode::CatchingUp),
        mode_age_ms: 61_000,
        last_index: LogIndex(301),
        voters: vec![RaftNodeId(1), RaftNodeId(1 << 32 | 1)].try_into().unwrap(),
        outbox_batches: 2,
        outbox_bytes: 70_000,
        buffer_entries: 3,
        buffer_bytes: 1_200,
        final_seq: BatchSeq(12),
        queue_digest: Digest([8; 32]),
        global_digest: Digest([9; 32]),
        tasks: [1, 2, 3, 4, 5, 6, 7, 8, 9, 300],
        alarms: vec![
            Alarm::ProfileDoesNotFit {
                key: label("link.rtt_p999"),
                assumed_ms: 100,
                measured_us: 140_000,
            },
            Alarm::LeaderWithoutQuorum,
        ]
        .try_into()
        .unwrap(),
        uptime_us: 5_000_000,
    }
}

fn validator_status(fleet: &Fleet) -> ValidatorStatus {
    ValidatorStatus {
        device: fleet.id("v1"),
        label: label("v1"),
        epoch: Epoch(0),
        view: View(44),
        height: Height(40),
        block: Digest([8; 32]),
        executed: Height(40),
        state_digest: Digest([9; 32]),
        block_time: BlockTime(1_700_000_012_000_000),
        clock_offset_us: -1_500,
        pending_batches: 3,
        validators_up: 4,
        validators: 4,
        is_listening: false,
        tasks: [1, 2, 3, 4, 5, 6, 7, 8, 9, 300],
        uptime_us: 5_000_000,
    }
}

/// Every identity and every signed byte string, one after the other with its length.
pub fn digests() -> Vec<u8> {
    let fleet = Fleet::dev();
    let ledger = ledger();
    let [batch, _] = two_batches(&fleet);
    let [block, _] = two_blocks(&fleet);
    let mut parts: Vec<Vec<u8>> = vec![
        fleet.chain.0.to_vec(),
        fleet.id("op1").0.to_vec(),
        fleet.roster(C1).digest().0.to_vec(),
        fleet.set.digest().0.to_vec(),
        batch.digest(&fleet.chain).0.to_vec(),
        batch.entries[0].leaf(&fleet.chain).0.to_vec(),
        batch.entries.last().unwrap().id(&fleet.chain).0.to_vec(),
        block.digest().0.to_vec(),
        block.refs[0].leaf().0.to_vec(),
        common::block::genesis_digest(&fleet.chain).0.to_vec(),
        ledger.queue.state_root().0.to_vec(),
        ledger.outcomes[&Height(2)].outcome_root.0.to_vec(),
    ];
    parts.push(submit(&fleet).preimage(&fleet.chain));
    for (_, action) in actions() {
        let entry = fleet.entry("c1-1", C1, 7, Scope::Cluster, action);
        parts.push(entry.preimage(&fleet.chain));
        parts.push(entry.id(&fleet.chain).0.to_vec());
    }
    let ballot = block.header.ballot();
    let nullify = NullifyBallot {
        epoch: Epoch(0),
        view: View(300),
    };
    for vote in [Vote::Notarize(ballot), Vote::Finalize(ballot), Vote::Nullify(nullify)] {
        parts.push(vote.preimage(&fleet.chain));
    }
    // The proposal's preimage shows in its signature, which is a function of it.
    parts.push(encode(&fleet.propose(block, None)));
    parts
        .into_iter()
        .flat_map(|part| (part.len() as u32).to_be_bytes().into_iter().chain(part))
        .collect()
}
