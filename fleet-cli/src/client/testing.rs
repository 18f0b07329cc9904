//! For tests of this crate: a client of agents that give prepared answers.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{
    codec::{Label, decode, encode},
    ids::{BatchSeq, ClusterId, DeviceId, Digest, Founding, Height, LogIndex, RaftNodeId, Term},
    registry::Registry,
    testing::Fleet,
    wire::{
        frame::{FrameKind, Protocol},
        op::{AgentStatus, Alarm, Consistency, Mode, OpAnswer, OpRequest, ReadContext},
    },
};
use futures::FutureExt;
use transport::ports::{BoxFuture, CallError, Lane, Transport};

use super::{Client, Context, Peer};

/// Agents that give prepared answers, each after a while.
#[derive(Default)]
struct Slow(Mutex<VecDeque<(Duration, OpAnswer)>>);

impl Transport for Slow {
    fn call(&self, _: DeviceId, _: FrameKind, body: Bytes, _: Duration) -> BoxFuture<Result<Bytes, CallError>> {
        decode::<OpRequest>(&body).expect("the client sends what agents read");
        let next = self.0.lock().unwrap().pop_front();
        async move {
            let (while_, answer) = next.expect("no more questions than answers");
            tokio::time::sleep(while_).await;
            Ok(encode(&answer).into())
        }
        .boxed()
    }

    fn open_lane(&self, _: DeviceId, _: FrameKind, _: Duration) -> BoxFuture<Result<Lane, CallError>> {
        unreachable!("operators open no lanes")
    }

    fn is_connected(&self, _: &DeviceId, _: Protocol) -> bool {
        true
    }

    fn rtt(&self, _: &DeviceId) -> Option<Duration> {
        None
    }
}

/// How a value was read that is so old.
pub(crate) fn read(staleness_ms: Option<u64>) -> ReadContext {
    ReadContext {
        consistency: Consistency::Local,
        applied: LogIndex(9),
        term: Term(1),
        leader: None,
        mode: Mode::Normal,
        staleness_ms,
        global_height: Height(3),
        global_age_ms: staleness_ms,
    }
}

/// A client of a fleet with two clusters, of one agent each.
pub(crate) fn client(fleet: &Fleet, answers: Vec<(Duration, OpAnswer)>) -> Client {
    let peer = |label: &str, cluster| Peer {
        label: label.into(),
        id: fleet.id(label),
        idx: fleet.idx(label),
        cluster: Some(ClusterId(cluster)),
        address: "127.0.0.1:1".parse().unwrap(),
        socket: None,
    };
    let context = Context {
        genesis: fleet.genesis.clone(),
        chain: fleet.chain,
        registry: Registry::from_genesis(&fleet.genesis),
        operator: fleet.id("op1"),
        key: Default::default(),
        certificate: Default::default(),
        data_dir: Default::default(),
        peers: vec![peer("c1-1", 0), peer("c2-1", 1)],
        pinned: None,
    };
    Client::new(context, Arc::new(Slow(Mutex::new(answers.into()))))
}

/// The status of an agent that leads and warns of `alarms`.
pub(crate) fn agent_status(fleet: &Fleet, label: &str, alarms: Vec<Alarm>) -> AgentStatus {
    let raft = RaftNodeId::new(fleet.idx(label), 1);
    AgentStatus {
        device: fleet.id(label),
        label: Label::new(label).unwrap(),
        cluster: ClusterId(0),
        founding: Founding(0),
        raft,
        is_leader: true,
        context: read(Some(0)),
        mode_age_ms: 0,
        last_index: LogIndex(9),
        voters: vec![raft].try_into().unwrap(),
        outbox_batches: 0,
        outbox_bytes: 0,
        buffer_entries: 0,
        buffer_bytes: 0,
        final_seq: BatchSeq(0),
        queue_digest: Digest::default(),
        global_digest: Digest::default(),
        tasks: [0; 10],
        alarms: alarms.try_into().unwrap(),
        uptime_us: 0,
    }
}
