//! The facade: opens a member, founds a cluster, answers peers, changes members, ends.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use common::ids::{Digest, LogPosition, RaftNodeId};
use openraft::{
    ChangeMembers, ServerState,
    async_runtime::WatchReceiver,
    errors::{ChangeMembershipError, ClientWriteError, Fatal, ForwardReason, InitializeError, RaftError},
    metrics::RaftMetrics,
    raft::Precondition,
    type_config::alias::WatchReceiverOf,
};
use openraft_rt::{AsyncRuntime, Instant};
use tokio::sync::Semaphore;
use transport::log_limit::LogLimits;

use super::{
    alarm::AlarmSink,
    codec::MEMBERS_MAX,
    config::{ConfigError, RaftConfig},
    confirm::Confirmations,
    log::RaftLog,
    machine::{MachineAdapter, ReplicatedMachine},
    network::{Network, RaftLink, RaftRpc},
    on_the_way::OnTheWay,
    propose::InFlight,
    server::{APPENDS_MAX, AppendCheck, Raft, RpcRefusal, Server},
    signal::Signal,
    snapshot_receiver::{Installer, SnapshotReceiver},
    status::{FatalReason, RaftRole, RaftStatus, believed_leader, fatal_reason, from_metrics},
    store::{LogStore, StoreError, snapshot::SnapshotStore},
    types::{Member, TypeConfig, position},
};
use crate::ports::Lane;

/// What a member runs on.
pub struct RaftPorts {
    /// Disk of the log.
    pub log: Arc<dyn LogStore>,
    /// Disk of the snapshots.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Way to the other members.
    pub link: Arc<dyn RaftLink>,
    /// What commands are applied to.
    pub machine: Arc<dyn ReplicatedMachine>,
    /// What a command must pass before it enters any log.
    pub check: Arc<dyn AppendCheck>,
    /// Who hears of broken peers.
    pub alarms: AlarmSink,
}

/// Why a member does not start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Relations between settings do not hold.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The disk failed or what is on it contradicts itself. Nothing was deleted.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// openraft refused to start.
    #[error("raft: {0}")]
    Raft(String),
}

/// How a founding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Founding {
    /// This call founded the cluster.
    Founded,
    /// It was founded before, here or by a leader that reached us.
    Already,
}

/// A change of members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MembersChange {
    /// This one is added without a vote.
    Add(RaftNodeId, Member),
    /// These, all of them members already, are the voters. Former voters become learners.
    Vote(BTreeSet<RaftNodeId>),
    /// These learners leave. They are not told.
    Leave(BTreeSet<RaftNodeId>),
}

/// Why a membership change was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// Another member leads, or none is known.
    #[error("not the leader; leader: {leader:?}")]
    NotLeader {
        /// A hint; it may be dead.
        leader: Option<RaftNodeId>,
    },
    /// This member leads, but reaches no majority.
    #[error("no quorum")]
    NoQuorum,
    /// The change contradicts the membership, or another one is not finished.
    #[error("{0}")]
    Refused(String),
    /// Possibly made. Look at [`RaftStatus::is_joint`] and ask again until it is finished.
    #[error("the outcome is unknown")]
    Unknown,
}

/// A running member. Clones share it.
pub struct RaftHandle<R: AsyncRuntime> {
    pub(super) inner: Arc<Inner<R>>,
}

impl<R: AsyncRuntime> Clone for RaftHandle<R> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
        }
    }
}

pub(super) struct Inner<R: AsyncRuntime> {
    pub raft: Raft<R>,
    pub machine: MachineAdapter<R>,
    pub server: Arc<Server<R>>,
    pub config: RaftConfig,
    pub in_flight: Arc<InFlight>,
    /// Who follows this leader since when.
    pub confirmations: Arc<Confirmations>,
    pub changes: Signal,
    /// Rises when another member leads, the term is another one or this member's role in it.
    pub leader_changes: Signal,
    /// Rises when openraft has ended.
    ends: Signal,
    /// openraft's core has gone without a word.
    is_gone: AtomicBool,
    metrics: WatchReceiverOf<TypeConfig<R>, RaftMetrics<TypeConfig<R>>>,
}

impl<R: AsyncRuntime> Inner<R> {
    /// A copy: a reference that is held would stop openraft's core.
    fn metrics(&self) -> RaftMetrics<TypeConfig<R>> {
        self.metrics.borrow_watched().clone()
    }

    /// A look at the metrics without the copy, which costs more than the rest of a write's way through here.
    pub fn look<T>(&self, look: impl FnOnce(&RaftMetrics<TypeConfig<R>>) -> T) -> T {
        look(&self.metrics.borrow_watched())
    }

    pub fn is_ended(&self) -> bool {
        self.look(|metrics| metrics.running_state.is_err())
    }

    /// Whether this member stopped as voter. openraft does not know: a leader stays one for it.
    pub fn is_quarantined(&self) -> bool {
        self.server.is_quarantined.load(Ordering::Acquire)
    }
}

impl<R: AsyncRuntime> RaftHandle<R> {
    /// Reads the disk back, restores the machine and starts. Requests of peers may come as soon as
    /// this returns.
    ///
    /// # Errors
    /// [`OpenError`]; the process must exit, nothing was deleted.
    pub async fn open(id: RaftNodeId, config: RaftConfig, ports: RaftPorts) -> Result<Self, OpenError> {
        config.validate()?;
        let openraft = config
            .to_openraft()
            .validate()
            .map_err(|error| OpenError::Raft(error.to_string()))?;
        let changes = Signal::default();
        let log = RaftLog::<R>::open_with(ports.log, ports.alarms.clone(), config.log_cache_bytes)?;
        let snapshots = ports.snapshots.clone();
        let bounds = config.snapshot_bounds();
        let machine =
            MachineAdapter::open(ports.machine, ports.snapshots, log.clone(), bounds, changes.clone()).await?;
        check_purged_part(&log, &machine)?;
        let confirmations = Arc::<Confirmations>::default();
        let network = Network {
            me: id,
            link: ports.link,
            log: log.clone(),
            frame_timeout: config.snapshot_frame_timeout(),
            lane_timeout: config.lane_timeout(),
            news_patience: config.news_patience(),
            confirmations: confirmations.clone(),
            encodings: Arc::default(),
        };
        let raft = Raft::<R>::new(id.0, Arc::new(openraft), network, log.clone(), machine.clone()).await;
        let raft = raft.map_err(|error| OpenError::Raft(error.to_string()))?;
        let metrics = raft.metrics();
        let on_the_way = Arc::<OnTheWay>::default();
        let server = Arc::new(Server {
            raft: raft.clone(),
            log: log.clone(),
            machine: machine.clone(),
            appends: Arc::new(Semaphore::new(APPENDS_MAX)),
            lanes: Mutex::default(),
            check: ports.check,
            alarms: ports.alarms.clone(),
            is_quarantined: AtomicBool::new(false),
            snapshots: SnapshotReceiver::new(
                Installer {
                    raft: raft.clone(),
                    log,
                    machine: machine.clone(),
                    alarms: ports.alarms,
                    on_the_way: on_the_way.clone(),
                },
                snapshots,
                config.snapshot_idle(),
            ),
            on_the_way,
            complaints: LogLimits::default(),
            last_leader: Mutex::new(None),
        });
        let in_flight = Arc::default();
        let inner = Inner {
            raft,
            machine,
            server,
            config,
            in_flight,
            confirmations,
            changes,
            leader_changes: Signal::default(),
            ends: Signal::default(),
            is_gone: AtomicBool::new(false),
            metrics: metrics.clone(),
        };
        let inner = Arc::new(inner);
        // Ends with openraft's core, whose sender it watches.
        drop(R::spawn(forward_changes::<R>(metrics, Arc::downgrade(&inner))));
        Ok(Self { inner })
    }

    /// Founds the cluster with `members` as voters. Exactly the founding members call it, all with
    /// the same members; a member that joins later never does.
    ///
    /// # Errors
    /// [`OpenError::Raft`] if this member is not among `members` or there are too many.
    pub async fn initialize_once(&self, members: BTreeMap<RaftNodeId, Member>) -> Result<Founding, OpenError> {
        if members.len() > MEMBERS_MAX {
            return Err(OpenError::Raft(format!(
                "{} members, at most {MEMBERS_MAX} allowed",
                members.len()
            )));
        }
        let members: BTreeMap<u64, Member> = members.into_iter().map(|(id, member)| (id.0, member)).collect();
        match self.inner.raft.initialize(members).await {
            Ok(()) => Ok(Founding::Founded),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(Founding::Already),
            Err(error) => Err(OpenError::Raft(error.to_string())),
        }
    }

    /// Carries out a request of the member `from`. The caller has proved that the connection is
    /// `from`'s, and bounds `body` by [`RaftRpc::request_bytes_max`].
    ///
    /// # Errors
    /// [`RpcRefusal`]; nothing was changed.
    pub async fn handle(&self, from: RaftNodeId, kind: RaftRpc, body: &[u8]) -> Result<Vec<u8>, RpcRefusal> {
        self.inner.server.handle(from, kind, body).await
    }

    /// Serves a lane of append requests of the member `from` until either side ends it. The caller has
    /// proved that the connection is `from`'s, and bounds each request as [`RaftRpc::Append`].
    pub async fn lane(&self, from: RaftNodeId, lane: Lane) {
        self.inner.server.clone().lane(from, lane).await;
    }

    /// State at this instant.
    #[must_use]
    pub fn status(&self) -> RaftStatus {
        let mut status = from_metrics::<R>(&self.inner.metrics(), self.inner.is_quarantined());
        // The machine is ahead of the metrics for a moment; callers compare with what they read there.
        status.applied = self.inner.machine.applied().0.max(status.applied);
        status
    }

    /// The leader that this member believes in, as in [`status`](Self::status).
    #[must_use]
    pub fn leader(&self) -> Option<RaftNodeId> {
        let is_quarantined = self.inner.is_quarantined();
        self.inner.look(|metrics| believed_leader::<R>(metrics, is_quarantined))
    }

    /// Whether this member leads, as in [`status`](Self::status).
    #[must_use]
    pub fn is_leader(&self) -> bool {
        let is_leading =
            |metrics: &RaftMetrics<_>| metrics.running_state.is_ok() && metrics.state == ServerState::Leader;
        !self.inner.is_quarantined() && self.inner.look(is_leading)
    }

    /// Rises whenever [`status`](Self::status) or the applied position may have changed.
    #[must_use]
    pub fn changes(&self) -> Signal {
        self.inner.changes.clone()
    }

    /// Rises whenever another member leads, the term is another one, or this member's role in it: a small
    /// part of [`changes`](Self::changes), which come with every entry.
    #[must_use]
    pub fn leader_changes(&self) -> Signal {
        self.inner.leader_changes.clone()
    }

    /// Position and chain of the last applied entry.
    #[must_use]
    pub fn applied(&self) -> (LogPosition, Digest) {
        self.inner.machine.applied()
    }

    /// Resolves when Raft ended by itself: the process must exit with the reason's code.
    pub async fn fatal(&self) -> FatalReason {
        loop {
            let seen = self.inner.ends.version();
            let is_gone = self.inner.is_gone.load(Ordering::Acquire);
            let reason = self.inner.look(|metrics| match &metrics.running_state {
                Err(fatal) => fatal_reason::<R>(fatal),
                Ok(()) if is_gone => fatal_reason::<R>(&Fatal::Panicked),
                Ok(()) => None,
            });
            match reason {
                Some(reason) => return reason,
                None if is_gone => return futures::future::pending().await,
                None => {
                    self.inner.ends.changed(seen).await;
                }
            }
        }
    }

    /// Stops as voter, until the process restarts: peers are refused, no campaign is begun, and who led leads no more. It
    /// sends no heartbeats, for reads neither, so that the others elect another one.
    pub fn quarantine(&self, reason: &str) {
        tracing::error!(reason, "this member stops as voter");
        self.inner.server.is_quarantined.store(true, Ordering::Release);
        self.inner.raft.runtime_config().elect(false);
        self.inner.raft.runtime_config().heartbeat(false);
        self.inner.changes.notify();
        self.inner.leader_changes.notify();
    }

    /// Lets this member campaign or not, for a choice of leader by link quality.
    pub fn set_may_campaign(&self, may_campaign: bool) {
        self.inner.raft.runtime_config().elect(may_campaign);
    }

    /// Asks the others whether they would elect this member, and campaigns if so. Harmless while a
    /// leader is alive.
    pub async fn campaign(&self) {
        // An error means that Raft has ended, which `fatal` reports.
        let _ = self.inner.raft.trigger().elect(true).await;
    }

    /// On the leader: hands over to `to`, a voter that holds the whole log.
    pub async fn transfer_leader(&self, to: RaftNodeId) {
        let _ = self.inner.raft.trigger().transfer_leader(to.0).await;
    }

    /// Time since this member last had a sign of a majority: on a leader since a quorum acknowledged
    /// it, on the others since their leader last wrote. `None`: no leader is known, or it has had no
    /// sign yet, or Raft did not say within the longest election timeout (it waits for its disk). What a
    /// leader without a quorum writes counts here as well: this tells silence, and is no evidence of
    /// freshness.
    pub async fn contact_age(&self) -> Option<Duration> {
        let status = self.status();
        if status.role == RaftRole::Leader {
            let is_alone = status.voters == [status.id];
            let acked_age_ms = if is_alone { Some(0) } else { status.quorum_acked_age_ms };
            return acked_age_ms.map(Duration::from_millis);
        }
        let heard = self.inner.raft.with_raft_state(|state| {
            let is_of_leader = state.vote_ref().is_committed();
            state.vote_last_modified().filter(|_| is_of_leader)
        });
        let patience = Duration::from_millis(self.inner.config.election_timeout_ms_max);
        let heard = R::timeout(patience, heard).await.ok()?;
        heard.ok().flatten().map(|at| at.elapsed())
    }

    /// The link to `peer` came up: try it now, not after the pause that follows failures.
    pub async fn reset_backoff(&self, peer: RaftNodeId) {
        let _ = self.inner.raft.trigger().reset_backoff([peer.0]).await;
    }

    /// Makes a snapshot now. Returns when it is asked for, not when it is made.
    pub async fn make_snapshot(&self) {
        let _ = self.inner.raft.trigger().snapshot().await;
    }

    /// On the leader: makes a change that was thought out from the members of the entry at `as_of`
    /// ([`RaftStatus::members_at`]), unless they are others by now. Also finishes a change that was interrupted.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn change_members(
        &self,
        change: MembersChange,
        as_of: LogPosition,
        deadline: Duration,
    ) -> Result<LogPosition, ChangeError> {
        let in_force = self.inner.look(|metrics| *metrics.membership_config.log_id());
        let at = in_force.as_ref().map_or(LogPosition::default(), position);
        if at != as_of {
            let (at, as_of) = (at.index, as_of.index);
            return Err(ChangeError::Refused(format!(
                "the members of entry {at} are in force, no longer those of {as_of}"
            )));
        }
        let ids = |ids: BTreeSet<RaftNodeId>| ids.into_iter().map(|id| id.0).collect();
        let change = match change {
            MembersChange::Add(id, _) if self.members_beside(id) >= MEMBERS_MAX => {
                return Err(ChangeError::Refused(format!(
                    "at most {MEMBERS_MAX} members are allowed"
                )));
            }
            MembersChange::Add(id, member) => ChangeMembers::AddNodes(BTreeMap::from([(id.0, member)])),
            MembersChange::Vote(voters) => ChangeMembers::ReplaceAllVoters(ids(voters)),
            MembersChange::Leave(learners) => ChangeMembers::RemoveNodes(ids(learners)),
        };
        let as_of = Precondition::LastMembershipLogId {
            last_membership_log_id: in_force,
        };
        self.change(change, as_of, deadline).await
    }

    /// How many members there are, voters and learners, `id` not counted.
    fn members_beside(&self, id: RaftNodeId) -> usize {
        let count = |metrics: &RaftMetrics<TypeConfig<R>>| {
            let members = metrics.membership_config.membership().nodes();
            members.filter(|(other, _)| **other != id.0).count()
        };
        self.inner.look(count)
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, Member>,
        as_of: Precondition<TypeConfig<R>>,
        deadline: Duration,
    ) -> Result<LogPosition, ChangeError> {
        // Former voters stay as learners.
        let changing = self.inner.raft.change_membership_if(change, true, [as_of]);
        let changed = R::timeout(deadline, changing).await;
        match changed.map_err(|_| ChangeError::Unknown)? {
            Ok(response) => Ok(position(&response.log_id)),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward))) => {
                if forward.reason == ForwardReason::LeaseExpired {
                    return Err(ChangeError::NoQuorum);
                }
                Err(ChangeError::NotLeader {
                    leader: forward.leader_id.map(RaftNodeId),
                })
            }
            // An earlier one may yet be made.
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(ChangeMembershipError::InProgress(_)))) => {
                Err(ChangeError::Unknown)
            }
            Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => {
                Err(ChangeError::Refused(error.to_string()))
            }
            Err(RaftError::APIError(ClientWriteError::PreconditionFailed(error))) => {
                Err(ChangeError::Refused(error.to_string()))
            }
            Err(RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) | RaftError::Fatal(_)) => {
                Err(ChangeError::Unknown)
            }
        }
    }

    /// Ends this member's tasks. What was acknowledged is durable; the log store is closed by its
    /// owner afterwards.
    pub async fn shutdown(&self) {
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "raft ended with an error");
        }
        self.inner.changes.notify();
    }
}

/// The purged part of the log must be in the snapshot, or the machine could never be rebuilt.
fn check_purged_part<R: AsyncRuntime>(log: &RaftLog<R>, machine: &MachineAdapter<R>) -> Result<(), StoreError> {
    let Some(purged) = log.purged() else { return Ok(()) };
    let kept = machine.snapshot_position();
    if kept.index < purged.index {
        let (kept, purged) = (kept.index, purged.index);
        return Err(StoreError::Corrupt(format!(
            "the log is purged up to {purged}, the snapshot ends at {kept}"
        )));
    }
    Ok(())
}

/// Tells who waits what has changed. Most changes are entries that came or were applied, and most waiters
/// wait for something rarer: each has a signal of its own.
async fn forward_changes<R: AsyncRuntime>(
    mut metrics: WatchReceiverOf<TypeConfig<R>, RaftMetrics<TypeConfig<R>>>,
    inner: Weak<Inner<R>>,
) {
    let mut led = None;
    loop {
        // The sender is gone when openraft's core is: a core that panics says nothing else.
        let is_gone = metrics.changed().await.is_err();
        let Some(inner) = inner.upgrade() else { return };
        let now = inner.look(|metrics| (metrics.current_leader, metrics.current_term, metrics.state));
        if led.replace(now) != Some(now) {
            inner.leader_changes.notify();
        }
        inner.changes.notify();
        if is_gone {
            inner.is_gone.store(true, Ordering::Release);
        }
        if is_gone || inner.is_ended() {
            inner.ends.notify();
        }
        if is_gone {
            return;
        }
        bound_log(&inner).await;
    }
}

/// Asks for a snapshot when one is due, and for a purge when the log below it holds too many bytes.
/// Errors mean that Raft has ended, which [`RaftHandle::fatal`] reports.
async fn bound_log<R: AsyncRuntime>(inner: &Inner<R>) {
    if inner.machine.is_snapshot_due() {
        let _ = inner.raft.trigger().snapshot().await;
    }
    if let Some(upto) = inner.machine.purge_to(inner.server.log.purged().unwrap_or_default()) {
        let _ = inner.raft.trigger().purge_log(upto).await;
    }
}
