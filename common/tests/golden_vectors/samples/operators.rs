//! What operators and on-board software ask, and are answered.

use common::{
    ids::{
        BatchSeq, BlockTime, DeviceId, Digest, EntryId, EntryNumber, Epoch, Founding, Height, KeyVersion, LogIndex,
        RaftNodeId, Term, View,
    },
    task::{Scope, TaskState},
    testing::Fleet,
    verdict::{Answer, Verdict},
    wire::{
        frame::Protocol,
        op::{
            AgentStatus, Alarm, BufferedState, Consistency, EventView, Finality, HolderView, Mode, OpAnswer, OpRequest,
            ReadContext, Sent, TaskView, Telemetry, Times, ValidatorStatus,
        },
    },
};

use super::{
    C1, C2, FENCE, Samples, TASK,
    blocks::two_blocks,
    label,
    messages::write_outcomes,
    tasks::{full_task, submit},
};

pub fn operators_requests(all: &mut impl Samples, fleet: &Fleet) {
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

pub fn event(author: DeviceId) -> EventView {
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

pub fn operators_answers(all: &mut impl Samples, fleet: &Fleet) {
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
            Alarm::OtherBatch { seq: BatchSeq(13) },
            Alarm::OtherState { height: Height(38) },
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
