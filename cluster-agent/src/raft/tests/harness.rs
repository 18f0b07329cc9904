//! A switchboard between members, a machine that remembers everything, and waiting without sleeping.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::ids::{DeviceId, Digest, LogIndex, LogPosition, RaftNodeId};
use futures::{FutureExt, future::BoxFuture};

use transport::memory::{Fate, lane_pair};

use crate::{
    ports::Lane,
    raft::{
        AppendCheck, AsyncRuntime, LinkError, LinkProfile, Member, OpenError, Origin, ProposeOutcome, REPLY_BYTES_MAX,
        RaftAlarm, RaftConfig, RaftHandle, RaftLink, RaftPorts, RaftRole, RaftRpc, RaftStatus, ReplicatedMachine,
        RestoreError, RestoreJob, SnapshotJob, SnapshotSource, TokioRuntime,
        store::{
            Done, LogOp, LogRecord, LogStore, Recovered, StoreError, memory::MemoryLog, snapshot::MemorySnapshots,
            snapshot::SnapshotStore,
        },
    },
};

pub type Handle = RaftHandle<TokioRuntime>;

/// What every test waits at most.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn id(number: u64) -> RaftNodeId {
    RaftNodeId(number)
}

pub fn member(number: u64) -> Member {
    Member {
        device: DeviceId([number as u8; 32]),
    }
}

/// Remembers what it applied, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct History {
    pub position: LogPosition,
    pub chain: Digest,
    pub commands: Vec<Vec<u8>>,
    pub restores: usize,
}

#[derive(Default)]
pub struct Recorder(Mutex<History>);

impl Recorder {
    pub fn history(&self) -> History {
        self.0.lock().unwrap().clone()
    }
}

impl ReplicatedMachine for Recorder {
    fn apply(&self, position: LogPosition, _: RaftNodeId, chain: Digest, command: &[u8]) -> Vec<u8> {
        self.advance(position, chain);
        self.0.lock().unwrap().commands.push(command.to_vec());
        [b"answer to ", command].concat()
    }

    fn advance(&self, position: LogPosition, chain: Digest) {
        let mut history = self.0.lock().unwrap();
        assert_eq!(position.index, history.position.index.next(), "applied out of order");
        assert!(position.term >= history.position.term, "terms fall");
        (history.position, history.chain) = (position, chain);
    }

    fn snapshot(&self) -> SnapshotJob {
        let commands = self.history().commands;
        Box::new(move |sink| {
            let put = |command: &Vec<u8>| sink.put(1, command);
            commands.iter().try_for_each(put)
        })
    }

    fn prepare(
        self: Arc<Self>,
        position: LogPosition,
        chain: Digest,
        _: Origin,
        source: &mut dyn SnapshotSource,
    ) -> Result<RestoreJob, RestoreError> {
        let mut commands = Vec::new();
        while let Some((section, command)) = source.next().map_err(|error| RestoreError(error.to_string()))? {
            if section != 1 || command.starts_with(b"bad") {
                return Err(RestoreError(format!("a piece of section {section}, or a bad command")));
            }
            commands.push(command);
        }
        Ok(Box::new(move || {
            let mut history = self.0.lock().unwrap();
            let restores = history.restores + 1;
            *history = History {
                position,
                chain,
                commands,
                restores,
            };
        }))
    }
}

/// Refuses commands that begin with `bad`.
pub struct NoBadCommands;

impl AppendCheck for NoBadCommands {
    fn check(&self, command: &[u8]) -> Result<(), String> {
        if command.starts_with(b"bad") {
            Err("a bad command".into())
        } else {
            Ok(())
        }
    }

    fn check_members(&self, members: &[(RaftNodeId, DeviceId)]) -> Result<(), String> {
        let is_known = |(number, device): &(RaftNodeId, DeviceId)| member(number.0).device == *device;
        if members.iter().all(is_known) {
            Ok(())
        } else {
            Err("an unknown device".into())
        }
    }
}

/// Connects members; any direction can be cut.
#[derive(Default)]
pub struct Switchboard {
    members: Mutex<BTreeMap<RaftNodeId, Handle>>,
    cut: Mutex<BTreeSet<(RaftNodeId, RaftNodeId)>>,
    /// Lanes that lose everything, by sender and receiver; single calls pass.
    clogged: Mutex<BTreeSet<(RaftNodeId, RaftNodeId)>>,
    /// Lanes that were asked for, by who did.
    lanes: Mutex<BTreeMap<RaftNodeId, usize>>,
    /// Frames of snapshots that still get through; `None` is all.
    snapshot_frames_left: Mutex<Option<usize>>,
    snapshot_frames: Mutex<usize>,
}

impl Switchboard {
    pub fn plug(&self, id: RaftNodeId, handle: Handle) {
        self.members.lock().unwrap().insert(id, handle);
    }

    pub fn unplug(&self, id: RaftNodeId) {
        self.members.lock().unwrap().remove(&id);
    }

    pub fn isolate(&self, alone: RaftNodeId) {
        let members: Vec<_> = self.members.lock().unwrap().keys().copied().collect();
        let mut cut = self.cut.lock().unwrap();
        for other in members.into_iter().filter(|other| *other != alone) {
            cut.insert((alone, other));
            cut.insert((other, alone));
        }
    }

    pub fn cut_pair(&self, a: RaftNodeId, b: RaftNodeId) {
        self.cut.lock().unwrap().extend([(a, b), (b, a)]);
    }

    pub fn heal(&self) {
        self.cut.lock().unwrap().clear();
        *self.snapshot_frames_left.lock().unwrap() = None;
    }

    /// The link breaks after so many more frames of snapshots.
    pub fn break_after_frames(&self, frames: usize) {
        *self.snapshot_frames_left.lock().unwrap() = Some(frames);
    }

    /// Frames of snapshots that got through so far.
    pub fn snapshot_frames(&self) -> usize {
        *self.snapshot_frames.lock().unwrap()
    }

    /// Whether the link breaks under this frame.
    fn breaks(&self, kind: RaftRpc) -> bool {
        if kind != RaftRpc::Snapshot {
            return false;
        }
        let mut left = self.snapshot_frames_left.lock().unwrap();
        match &mut *left {
            Some(0) => return true,
            Some(left) => *left -= 1,
            None => {}
        }
        *self.snapshot_frames.lock().unwrap() += 1;
        false
    }

    /// Lanes from one member to another lose everything from now on, or no longer do.
    pub fn set_clogged(&self, from: RaftNodeId, to: RaftNodeId, is_clogged: bool) {
        let mut clogged = self.clogged.lock().unwrap();
        if is_clogged {
            clogged.insert((from, to));
        } else {
            clogged.remove(&(from, to));
        }
    }

    pub fn lanes_opened(&self, by: RaftNodeId) -> usize {
        self.lanes.lock().unwrap().get(&by).copied().unwrap_or(0)
    }

    fn loses_lanes(&self, from: RaftNodeId, to: RaftNodeId) -> bool {
        self.is_cut(from, to) || self.clogged.lock().unwrap().contains(&(from, to))
    }

    fn is_cut(&self, from: RaftNodeId, to: RaftNodeId) -> bool {
        self.cut.lock().unwrap().contains(&(from, to))
    }
}

/// A log that becomes durable only when it is told to.
#[derive(Default)]
pub struct HeldLog {
    durable: MemoryLog,
    /// Operations that wait, in order; `None` while nothing is held.
    held: Mutex<Option<Vec<(LogOp, Done)>>>,
}

impl HeldLog {
    pub fn hold(&self) {
        self.held.lock().unwrap().get_or_insert_default();
    }

    pub fn release(&self) {
        let held = self.held.lock().unwrap().take();
        for (op, done) in held.into_iter().flatten() {
            self.durable.submit(op, done);
        }
    }

    pub fn waiting(&self) -> usize {
        self.held.lock().unwrap().as_ref().map_or(0, Vec::len)
    }
}

impl LogStore for HeldLog {
    fn recovered(&self) -> Result<Recovered, StoreError> {
        self.durable.recovered()
    }

    fn read(&self, from: LogIndex, to: LogIndex, bytes_max: usize) -> Result<Vec<LogRecord>, StoreError> {
        self.durable.read(from, to, bytes_max)
    }

    fn submit(&self, op: LogOp, done: Done) {
        if let Some(held) = self.held.lock().unwrap().as_mut() {
            return held.push((op, done));
        }
        self.durable.submit(op, done);
    }
}

/// One member's plug.
pub struct BoardLink {
    pub me: RaftNodeId,
    pub board: Arc<Switchboard>,
}

impl RaftLink for BoardLink {
    fn call(
        &self,
        to: RaftNodeId,
        kind: RaftRpc,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, LinkError>> {
        let (me, board) = (self.me, self.board.clone());
        async move {
            assert!(body.len() <= kind.request_bytes_max());
            let peer = board.members.lock().unwrap().get(&to).cloned();
            let Some(peer) = peer else {
                return Err(LinkError::Unreachable("unplugged".into()));
            };
            if board.is_cut(me, to) {
                tokio::time::sleep(deadline).await;
                return Err(LinkError::Timeout);
            }
            if board.breaks(kind) {
                return Err(LinkError::Network("the link broke".into()));
            }
            // A task of the receiver's: it goes on when the caller gives up.
            let handling = TokioRuntime::spawn(async move { peer.handle(me, kind, &body).await });
            let handled = tokio::time::timeout(deadline, handling)
                .await
                .map_err(|_| LinkError::Timeout)?;
            if board.is_cut(to, me) {
                tokio::time::sleep(deadline).await;
                return Err(LinkError::Timeout);
            }
            handled.unwrap().map(Bytes::from).map_err(LinkError::Refused)
        }
        .boxed()
    }

    fn open_lane(&self, to: RaftNodeId, _deadline: Duration) -> BoxFuture<'static, Result<Lane, LinkError>> {
        let (me, board) = (self.me, self.board.clone());
        async move {
            *board.lanes.lock().unwrap().entry(me).or_default() += 1;
            let peer = board.members.lock().unwrap().get(&to).cloned();
            let peer = peer.ok_or_else(|| LinkError::Unreachable("unplugged".into()))?;
            let weather = {
                let board = board.clone();
                move |is_request| {
                    let (from, to) = if is_request { (me, to) } else { (to, me) };
                    if board.loses_lanes(from, to) {
                        Fate::IsLost
                    } else {
                        Fate::Arrives
                    }
                }
            };
            let (ours, theirs) = lane_pair(RaftRpc::Append.request_bytes_max(), REPLY_BYTES_MAX, Arc::new(weather));
            // A task of the receiver's.
            drop(TokioRuntime::spawn(async move { peer.lane(me, theirs).await }));
            Ok(ours)
        }
        .boxed()
    }
}

/// Everything of one member that outlives a restart, and what a test looks at.
#[derive(Clone)]
pub struct Seat {
    pub id: RaftNodeId,
    pub log: Arc<dyn LogStore>,
    pub snapshots: Arc<dyn SnapshotStore>,
    pub machine: Arc<Recorder>,
    pub alarms: Arc<Mutex<Vec<RaftAlarm>>>,
    pub check: Arc<dyn AppendCheck>,
}

impl Seat {
    pub fn in_memory(number: u64) -> Self {
        Self::on(number, Arc::new(MemoryLog::new()), Arc::new(MemorySnapshots::default()))
    }

    pub fn on(number: u64, log: Arc<dyn LogStore>, snapshots: Arc<dyn SnapshotStore>) -> Self {
        Self {
            id: id(number),
            log,
            snapshots,
            machine: Arc::default(),
            alarms: Arc::default(),
            check: Arc::new(NoBadCommands),
        }
    }

    pub async fn open(&self, config: RaftConfig, board: &Arc<Switchboard>) -> Handle {
        self.try_open(config, board).await.unwrap()
    }

    pub async fn try_open(&self, config: RaftConfig, board: &Arc<Switchboard>) -> Result<Handle, OpenError> {
        let alarms = self.alarms.clone();
        let ports = RaftPorts {
            log: self.log.clone(),
            snapshots: self.snapshots.clone(),
            link: Arc::new(BoardLink {
                me: self.id,
                board: board.clone(),
            }),
            machine: self.machine.clone(),
            check: self.check.clone(),
            alarms: Arc::new(move |alarm| alarms.lock().unwrap().push(alarm)),
        };
        let handle = Handle::open(self.id, config, ports).await?;
        board.plug(self.id, handle.clone());
        Ok(handle)
    }
}

pub struct Cluster {
    pub board: Arc<Switchboard>,
    pub seats: Vec<Seat>,
    pub handles: Vec<Handle>,
}

pub fn quick() -> RaftConfig {
    RaftConfig::for_profile(LinkProfile::Lan)
}

impl Cluster {
    /// Opens every seat and founds the cluster with all of them.
    pub async fn start(seats: Vec<Seat>, config: RaftConfig) -> Self {
        let board = Arc::new(Switchboard::default());
        let mut handles = Vec::new();
        for seat in &seats {
            handles.push(seat.open(config.clone(), &board).await);
        }
        let founders = seats.iter().map(|seat| (seat.id, member(seat.id.0))).collect();
        handles[0].initialize_once(founders).await.unwrap();
        Self { board, seats, handles }
    }

    pub async fn in_memory(members: u64, config: RaftConfig) -> Self {
        Self::start((1..=members).map(Seat::in_memory).collect(), config).await
    }

    /// Position in `handles` of a leader that a quorum has acknowledged.
    pub async fn leader(&self) -> usize {
        self.leader_among(&(0..self.handles.len()).collect::<Vec<_>>()).await
    }

    pub async fn leader_among(&self, candidates: &[usize]) -> usize {
        let is_leading = |at: usize| {
            let status = self.handles[at].status();
            status.role == RaftRole::Leader && status.quorum_acked_age_ms.is_some_and(|age| age < 300)
        };
        let find = async {
            loop {
                if let Some(found) = candidates.iter().copied().find(|at| is_leading(*at)) {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, find).await.expect("no leader")
    }

    pub async fn commit(&self, leader: usize, command: &[u8]) -> LogPosition {
        match self.handles[leader].propose(command.to_vec(), PATIENCE).await {
            ProposeOutcome::Committed { position, answer } => {
                assert_eq!(answer, [b"answer to ", command].concat());
                position
            }
            other => panic!("{other:?}"),
        }
    }

    pub async fn all_applied(&self, index: LogIndex) {
        for handle in &self.handles {
            handle.wait_applied(index, PATIENCE).await.unwrap();
        }
    }
}

/// Waits until `is_met`, in steps of a millisecond.
pub async fn eventually(what: &str, is_met: impl Fn() -> bool) {
    let wait = async {
        while !is_met() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Waits until `reached` of the member's status.
pub async fn until(handle: &Handle, what: &str, reached: impl Fn(&RaftStatus) -> bool) -> RaftStatus {
    let wait = async {
        loop {
            let seen = handle.changes().version();
            let status = handle.status();
            if reached(&status) {
                return status;
            }
            handle.changes().changed(seen).await;
        }
    };
    let waited = tokio::time::timeout(PATIENCE, wait).await;
    waited.unwrap_or_else(|_| panic!("never: {what}; {:?}", handle.status()))
}
