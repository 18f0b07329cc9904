//! A running agent: opens what is on the disk, starts Raft and the rooms around it, and says how it ends.
//!
//! # Rules
//! * What must exist beside used data is looked for before anything is written: a missing guard or
//!   counter file refuses the start.
//! * The founding members found the cluster with the roster of the genesis file: the lowest at once,
//!   the others if nobody has after a while. All give the same members, so it does not matter who does.
//! * A data directory that came later than the first founds nothing: it asks to be a member (`members`).
//! * Requests of peers are let in as soon as Raft can answer them.
//! * Raft's fatal errors, a failed disk under a guard or a counter: the agent ends with a code.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cluster_core::{
    admission::{Admission, AdmissionLimits},
    attestation::Collector,
};
use common::{
    batch::Attestation,
    bug::{self, Bug},
    codec::decode,
    crypto::DeviceKey,
    entry::SignedEntry,
    genesis::Genesis,
    ids::{ClusterId, Founding, LogIndex, NodeIdx, RaftNodeId},
    registry::Registry,
    validator_set::ValidatorSet,
    wire::{
        cluster::{Forward, Join, Linearize, WriteOutcome},
        frame::{FrameKind, Refusal, RefusalCode},
        op::{AgentStatus, OpAnswer, OpRequest},
    },
};
use futures::FutureExt;
use transport::{
    local::{Answer, Request},
    log_limit::LogLimits,
    watch::Watch,
};

use crate::{
    api::{local::LocalDoor, read_round::ReadRounds},
    buffer::{BufferError, BufferJournal},
    config::Limits,
    contact::Contact,
    counters::{Counters, CountersError},
    durable::DurableLog,
    evidence,
    machine::Machine,
    members::{Begin, Newcomers},
    mode::ModeNow,
    peers::{Door, Membership, PeerLink, Requests},
    ports::{AgentPorts, AsyncRuntime, BoxFuture, Lane, Peer},
    raft::{
        AlarmSink, Member, OpenError, RaftConfig, RaftHandle, RaftPorts, RaftRpc, RpcRefusal,
        store::{Recovered, StoreError},
    },
    replica::Replica,
    shell::{Ending, Me, Shell, body},
    signatures::Signatures,
    uplink::{
        attest::{Attester, GuardError},
        submit::Validators,
    },
};

/// What an agent is started with, beside its ports.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The fleet.
    pub genesis: Arc<Genesis>,
    /// This device, a drone of the genesis file.
    pub device: NodeIdx,
    /// Which data directory of the device, from 1.
    pub incarnation: u32,
    /// The device's private key.
    pub key: DeviceKey,
    /// Elections, heartbeats, snapshots.
    pub raft: RaftConfig,
    /// Bounds.
    pub limits: Limits,
}

/// Why an agent does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device is no drone of the genesis file, or the key is not its key.
    #[error("{0}")]
    Identity(String),
    /// The log cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The attestation guard cannot be used.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// The counters cannot be used.
    #[error(transparent)]
    Counters(#[from] CountersError),
    /// The buffer cannot be used.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// Raft does not start.
    #[error(transparent)]
    Raft(#[from] OpenError),
}

impl StartError {
    /// 6 for the configuration, 74 for the disk, 78 where a restart cannot help, 70 for a bug.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Identity(_) | Self::Raft(OpenError::Config(_)) => crate::config::EXIT_INVALID,
            Self::Store(StoreError::Corrupt(_)) | Self::Raft(OpenError::Store(StoreError::Corrupt(_))) => 78,
            Self::Store(_) | Self::Raft(OpenError::Store(_)) | Self::Counters(CountersError::Io(_)) => 74,
            Self::Counters(CountersError::Missing | CountersError::Damaged(_)) => 78,
            Self::Guard(error) => error.exit_code(),
            Self::Buffer(error) => error.exit_code(),
            Self::Raft(OpenError::Raft(_)) => 70,
        }
    }
}

/// Starts agents.
pub struct Agent;

impl Agent {
    /// Starts an agent on `ports` and opens `door` to its peers; with an empty log it takes no part in Raft before it
    /// has asked them about itself.
    ///
    /// `R`: the runtime that Raft runs on; its time is that of tokio's clock.
    ///
    /// # Errors
    /// [`StartError`]; nothing on the disk was deleted.
    pub async fn start<R: AsyncRuntime>(
        settings: Settings,
        ports: AgentPorts,
        door: &Door,
    ) -> Result<AgentHandle, StartError> {
        let registry = Arc::new(Registry::from_genesis(&settings.genesis));
        let me = identify(&settings, &registry)?;
        let is_new = ports.log.recovered()? == Recovered::default();
        let counters = Counters::open(ports.disk.clone(), is_new, settings.incarnation).await?;
        let buffer_limits = settings.limits.buffer;
        let buffer = BufferJournal::open(ports.disk.clone(), *registry.chain(), buffer_limits).await?;
        let attester = Attester::open(&*ports.disk, is_new)?;
        let log = DurableLog::new(ports.log.clone(), ports.clock.clone())?;
        let (durable, failed, appends) = (log.durable(), log.failed(), log.appends());
        let signatures = Signatures::default();
        let machine = Arc::new(Machine::new(
            settings.genesis.clone(),
            me.cluster,
            me.device,
            evidence::limits(&settings.raft, &settings.genesis.timing),
            ports.clock.clone(),
            signatures.clone(),
        ));
        let raft = RaftHandle::<R>::open(
            me.raft,
            settings.raft.clone(),
            RaftPorts {
                log: Arc::new(log),
                snapshots: ports.snapshots.clone(),
                link: Arc::new(PeerLink::new(registry.clone(), ports.transport.clone())),
                machine: machine.clone(),
                check: Arc::new(machine.append_check(registry.clone(), me.cluster)),
                alarms: log_alarms(),
            },
        )
        .await?;
        let limits = AdmissionLimits {
            outbox_bytes_max: settings.limits.outbox_bytes_max,
            entries_per_second: settings.limits.author_entries_per_second,
            entries_burst: settings.limits.author_entries_burst,
            open_tasks_max: settings.limits.open_tasks_max,
            state_bytes_max: settings.limits.state_bytes_max,
        };
        let rtt = Duration::from_millis(settings.raft.rtt_ms_p999);
        let validators = Validators::new(rtt, settings.limits.batch_interval);
        let shell = Arc::new(Shell {
            chain: *registry.chain(),
            set: ValidatorSet::from_genesis(&settings.genesis),
            started: ports.clock.now(),
            registry: registry.clone(),
            genesis: settings.genesis,
            key: settings.key,
            limits: settings.limits,
            raft_config: settings.raft,
            raft: Arc::new(raft),
            machine,
            signatures,
            admission: Mutex::new(Admission::new(limits)),
            read_rounds: ReadRounds::default(),
            collector: Mutex::new(Collector::default()),
            certified: Watch::new(0),
            contact: Contact::new(ports.clock.now().us),
            mode: Watch::new(ModeNow::at_start(ports.clock.now().us)),
            evidence: Watch::new(0),
            validators,
            newcomers: Newcomers::default(),
            counters: tokio::sync::Mutex::new(counters),
            buffer,
            unreleased: Mutex::default(),
            alarms: Mutex::default(),
            complaints: LogLimits::default(),
            ending: Watch::new(None),
            ports,
            me,
        });
        let has_begun = Arc::new(AtomicBool::new(!is_new));
        let membership = Membership {
            registry,
            cluster: shell.me.cluster,
            founding: shell.me.founding,
            me: shell.me.raft,
            has_begun: has_begun.clone(),
        };
        door.open(membership, Arc::new(Inside(shell.clone())));
        start_rooms(&shell, attester, durable);
        shell.spawn("begin", shell.clone().begin(has_begun).boxed());
        shell.spawn("watch-log", shell.clone().watch_log(failed).boxed());
        shell.spawn("watch-fitness", shell.clone().watch_fitness(appends).boxed());
        tracing::info!(label = %shell.me.label, raft = %shell.me.raft, is_new, "agent started");
        Ok(AgentHandle { shell })
    }
}

/// Writes alarms down, of each device as many as anybody reads.
fn log_alarms() -> AlarmSink {
    let complaints = LogLimits::default();
    Arc::new(move |alarm| {
        if let Some(not_logged) = complaints.admit(alarm.about().map(RaftNodeId::idx)) {
            tracing::error!(?alarm, not_logged, "a member breaks the protocol");
        }
    })
}

fn identify(settings: &Settings, registry: &Registry) -> Result<Me, StartError> {
    let fail = |text: String| StartError::Identity(text);
    let member = registry.by_idx(settings.device);
    let member = member.ok_or_else(|| fail(format!("device {} is not in the genesis file", settings.device)))?;
    let cluster = member
        .cluster
        .ok_or_else(|| fail(format!("\"{}\" is no drone", member.label)))?;
    let key = settings.key.public();
    if !member.keys.iter().any(|known| known.to_bytes() == key) {
        return Err(fail(format!(
            "the private key is not the key of \"{}\" in the genesis file",
            member.label
        )));
    }
    Ok(Me {
        device: member.id,
        idx: member.idx,
        label: member.label.clone(),
        raft: RaftNodeId::new(member.idx, settings.incarnation),
        cluster,
        founding: Founding(0),
    })
}

fn start_rooms(shell: &Arc<Shell>, attester: Attester, durable: Watch<LogIndex>) {
    let each = || shell.clone();
    shell.spawn("tend-members", each().tend_members().boxed());
    shell.spawn("watch-raft", each().watch_raft().boxed());
    shell.spawn("attest", each().attest(attester, durable).boxed());
    shell.spawn("close-batches", each().close_batches().boxed());
    shell.spawn("submit-batches", each().submit_batches().boxed());
    shell.spawn("follow-blocks", each().follow_blocks().boxed());
    shell.spawn("requeue-ended", each().requeue_ended().boxed());
    shell.spawn("watch-contact", each().watch_contact().boxed());
    shell.spawn("watch-mode", each().watch_mode().boxed());
    shell.spawn("gather-evidence", each().gather_evidence().boxed());
    shell.spawn("keep-leases", each().keep_leases().boxed());
    shell.spawn("drain-buffer", each().drain_buffer().boxed());
    shell.spawn("enter-ends-again", each().enter_ends_again().boxed());
}

impl Shell {
    async fn watch_raft(self: Arc<Self>) {
        let fatal = self.raft.fatal().await;
        self.fatal(fatal.exit_code, fatal.reason);
    }

    /// Ends the process at the first failure of the log's disk, even if nothing waits for the operation.
    async fn watch_log(self: Arc<Self>, failed: Watch<Option<StoreError>>) {
        if let Some(error) = failed.wait_until(Option::is_some).await {
            self.fatal(74, error.to_string());
        }
    }

    /// Lets Raft's requests in, for an empty log when others were asked about it; founds, or asks to be a member.
    async fn begin(self: Arc<Self>, has_begun: Arc<AtomicBool>) {
        let is_new = !has_begun.load(Ordering::Acquire);
        let begin = if is_new { self.may_begin().await } else { Begin::Founded };
        if begin == Begin::Ends {
            return;
        }
        has_begun.store(true, Ordering::Release);
        self.spawn("join", self.clone().join().boxed());
        if begin == Begin::First {
            self.found().await;
        }
    }

    /// Founds the cluster, if nobody has as far as is known.
    async fn found(&self) {
        let roster = self
            .genesis
            .founding_roster(self.me.cluster)
            .expect("the cluster is in the genesis file");
        let Some(position) = roster.position(self.me.raft) else {
            return;
        };
        if position > 0 {
            let patience = Duration::from_millis(10 * self.raft_config.election_timeout_ms_max);
            self.pause(self.jittered(patience)).await;
        }
        let status = self.raft.status();
        if status.last_index > LogIndex(0) || status.leader.is_some() || self.is_ending() {
            return;
        }
        let founders: BTreeMap<RaftNodeId, Member> = roster
            .members
            .iter()
            .filter_map(|member| {
                Some((
                    member.raft,
                    Member {
                        device: self.device_of(member.raft)?,
                    },
                ))
            })
            .collect();
        match self.raft.initialize_once(founders).await {
            Ok(outcome) => tracing::info!(?outcome, "founding"),
            Err(error) => tracing::error!(%error, "the cluster was not founded"),
        }
    }
}

/// What the door leads to.
struct Inside(Arc<Shell>);

impl Inside {
    fn of_my_founding(&self, cluster: ClusterId, founding: Founding) -> Result<(), Refusal> {
        if (cluster, founding) == (self.0.me.cluster, self.0.me.founding) {
            return Ok(());
        }
        Err(Refusal::new(RefusalCode::Invalid, "of another cluster or founding"))
    }
}

fn malformed<E>(_: E) -> Refusal {
    Refusal::new(RefusalCode::Invalid, "malformed request")
}

impl Requests for Inside {
    fn raft(&self, from: RaftNodeId, kind: RaftRpc, body: Bytes) -> BoxFuture<Result<Vec<u8>, RpcRefusal>> {
        if bug::active(Bug::HeartbeatIsEvidence) && kind == RaftRpc::Append {
            let (now_us, with) = (self.0.now_us(), &self.0.machine);
            with.with(|state| state.freshness.answered(now_us, state.queue.applied().0.index));
        }
        self.0.raft.handle(from, kind, body)
    }

    fn raft_lane(&self, from: RaftNodeId, lane: Lane) -> BoxFuture<()> {
        self.0.raft.lane(from, lane)
    }

    fn cluster(&self, from: RaftNodeId, kind: FrameKind, request: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        let this = Self(self.0.clone());
        async move {
            match kind {
                FrameKind::Forward => {
                    let forward: Forward = decode(&request).map_err(malformed)?;
                    this.of_my_founding(forward.cluster, forward.founding)?;
                    let outcome = this.0.enter_forwarded(&forward.entry).await;
                    let outcome = outcome.ok_or_else(|| Refusal::new(RefusalCode::NotNow, "not the leader"))?;
                    Ok(body(&outcome))
                }
                FrameKind::Linearize => {
                    let question: Linearize = decode(&request).map_err(malformed)?;
                    this.of_my_founding(question.cluster, question.founding)?;
                    let left = this.0.read_deadline() * 3 / 4;
                    Ok(body(&this.0.answer_linearize(question.confirmation, left).await))
                }
                FrameKind::Join => {
                    let question: Join = decode(&request).map_err(malformed)?;
                    this.of_my_founding(question.cluster, question.founding)?;
                    Ok(body(&this.0.answer_join(from)))
                }
                FrameKind::Attest => {
                    let attestation: Attestation = decode(&request).map_err(malformed)?;
                    this.of_my_founding(attestation.cluster, attestation.founding)?;
                    this.0.take_attestation(from, attestation).map(|()| Bytes::new())
                }
                _ => Err(Refusal::new(RefusalCode::Invalid, "not of this protocol")),
            }
        }
        .boxed()
    }

    fn operate(&self, peer: Peer, request: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        self.0.clone().operate(peer, request).boxed()
    }
}

/// A running agent. Clones are the same agent.
#[derive(Clone)]
pub struct AgentHandle {
    shell: Arc<Shell>,
}

impl AgentHandle {
    /// Enters a signed entry, here or through the leader.
    pub async fn enter(&self, entry: SignedEntry) -> WriteOutcome {
        self.shell.enter(entry).await
    }

    /// Answers an operator's request.
    pub async fn answer(&self, request: OpRequest) -> OpAnswer {
        self.shell.answer(request).await
    }

    /// Hands the leadership over; whoever may call this may decide it.
    ///
    /// # Errors
    /// [`Refusal`]: this member does not lead, or nobody fit follows.
    pub async fn transfer_leader(&self, to: Option<RaftNodeId>) -> Result<OpAnswer, Refusal> {
        self.shell.transfer_leader(to).await
    }

    /// Answers a request of the drone's own software.
    pub async fn answer_local(&self, request: Request) -> Answer {
        self.shell.answer_local(request).await
    }

    /// What the local socket is served with.
    #[must_use]
    pub fn local_door(&self) -> Arc<LocalDoor> {
        Arc::new(LocalDoor(self.shell.clone()))
    }

    /// State of this agent.
    #[must_use]
    pub fn status(&self) -> AgentStatus {
        self.shell.status()
    }

    /// The mode and since when; changes with evidence and with its age.
    #[must_use]
    pub fn mode(&self) -> Watch<ModeNow> {
        self.shell.mode.clone()
    }

    /// The replicated machine, for checkers of a simulation.
    #[must_use]
    pub fn machine(&self) -> Arc<Machine> {
        self.shell.machine.clone()
    }

    /// Raft, for checkers of a simulation.
    #[must_use]
    pub fn raft(&self) -> Arc<dyn Replica> {
        self.shell.raft.clone()
    }

    /// Resolves when the agent has ended, with the reason.
    pub async fn ended(&self) -> Ending {
        let ending = self.shell.ending.wait_until(Option::is_some).await;
        ending.unwrap_or(Ending::Stopped)
    }

    /// Ends the agent in order.
    pub async fn stop(&self) {
        if !self.shell.is_ending() {
            self.shell.ending.set(Some(Ending::Stopped));
        }
        self.shell.raft.shutdown().await;
    }
}
