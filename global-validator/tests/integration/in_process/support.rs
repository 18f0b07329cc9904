//! Four validators in one process, in virtual time, with disks that survive their crashes.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    codec::{Label, decode, encode},
    ids::{BlockTime, ClusterId, Digest, Height},
    testing::{Fleet, GENESIS_TIME},
    wire::{
        feed::BatchReceipt,
        frame::FrameKind,
        op::{OpAnswer, OpRequest, ValidatorStatus},
    },
};
use global_validator::{Door, Ports, Setup, Stop, Validator};
use tokio::task::AbortHandle;
use transport::{
    machine::MachineEntropy,
    memory::{MemoryDisk, MemoryNetwork, MemoryTransport},
    ports::{BoxFuture, CallError, Clock, Instant, Service, Spawner, Transport},
    quic::{RefuseAll, hello_of},
};

/// How long anything may take in virtual time.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The clock of tokio, which tests pause.
pub struct TokioClock(tokio::time::Instant);

impl Clock for TokioClock {
    fn now(&self) -> Instant {
        Instant {
            us: self.0.elapsed().as_micros() as u64,
        }
    }

    fn wall(&self) -> BlockTime {
        BlockTime(GENESIS_TIME.0 + self.now().us)
    }
}

/// Tasks of one process, which can be counted and killed together.
#[derive(Clone, Default)]
pub struct Process(Arc<Mutex<Vec<AbortHandle>>>);

impl Spawner for Process {
    #[allow(clippy::disallowed_methods, reason = "this is the spawner port of the tests")]
    fn spawn(&self, _name: &'static str, task: BoxFuture<()>) {
        self.0.lock().unwrap().push(tokio::spawn(task).abort_handle());
    }
}

impl Process {
    /// Tasks that have not ended.
    pub fn living(&self) -> usize {
        self.0.lock().unwrap().iter().filter(|task| !task.is_finished()).count()
    }

    fn kill(&self) {
        for task in self.0.lock().unwrap().drain(..) {
            task.abort();
        }
    }
}

/// A validator's process.
pub struct Running {
    pub process: Process,
    transport: Arc<MemoryTransport>,
    pub validator: Validator,
}

/// A fleet's validators on one network.
pub struct Net {
    pub fleet: Fleet,
    pub network: MemoryNetwork,
    pub clock: Arc<TokioClock>,
    pub disks: BTreeMap<String, MemoryDisk>,
    pub running: BTreeMap<String, Running>,
    pub clone_watch: Duration,
}

pub const V: [&str; 4] = ["v1", "v2", "v3", "v4"];

impl Net {
    /// Nobody runs yet.
    pub fn new(fleet: Fleet) -> Self {
        Self {
            network: MemoryNetwork::new(Arc::new(Process::default())),
            clock: Arc::new(TokioClock(tokio::time::Instant::now())),
            disks: V.iter().map(|label| (label.to_string(), MemoryDisk::new())).collect(),
            running: BTreeMap::new(),
            clone_watch: Duration::from_millis(200),
            fleet,
        }
    }

    /// All four run.
    pub async fn started(fleet: Fleet) -> Self {
        let mut net = Self::new(fleet);
        for label in V {
            net.start(label).await;
        }
        net
    }

    pub async fn start(&mut self, label: &str) {
        if let Err(stop) = self.try_start(label).await {
            panic!("{label} did not start: {stop}");
        }
    }

    pub async fn try_start(&mut self, label: &str) -> Result<(), Stop> {
        self.try_start_as(label, |door| Arc::new(door), |transport| transport)
            .await
    }

    /// Starts a validator whose answers go through `answers`, and whose questions and messages through `sends`.
    pub async fn try_start_as(
        &mut self,
        label: &str,
        answers: impl FnOnce(Door) -> Arc<dyn Service>,
        sends: impl FnOnce(Arc<MemoryTransport>) -> Arc<dyn Transport>,
    ) -> Result<(), Stop> {
        let process = Process::default();
        let door = Door::new();
        let device = self.fleet.id(label);
        let hello = hello_of(self.fleet.chain, device);
        let transport = self.network.join(self.fleet.idx(label), hello, answers(door.clone()));
        let ports = Ports {
            transport: sends(transport.clone()),
            clock: self.clock.clone(),
            spawner: Arc::new(process.clone()),
            entropy: Arc::new(MachineEntropy::new()),
            disk: Arc::new(self.disks[label].clone()),
        };
        let setup = Setup {
            genesis: Arc::new(self.fleet.genesis.clone()),
            label: Label::new(label).unwrap(),
            consensus_key: self.fleet.consensus_key(label),
            clone_watch: self.clone_watch,
        };
        let validator = Validator::start(setup, ports, &door).await?;
        let running = Running {
            process,
            transport,
            validator,
        };
        self.running.insert(label.into(), running);
        Ok(())
    }

    /// Kills the process at once: what was not durable is gone.
    pub fn crash(&mut self, label: &str) {
        let running = self.running.remove(label).expect("it runs");
        self.network.leave(&self.fleet.id(label));
        running.process.kill();
        self.disks[label].crash();
    }

    pub fn validator(&self, label: &str) -> &Validator {
        &self.running[label].validator
    }

    /// Waits until the validator's last final block is at `height` or above.
    pub async fn reach(&self, label: &str, height: Height) {
        let validator = self.validator(label);
        let reached = validator.height().wait_until(|tip| *tip >= height);
        if tokio::time::timeout(PATIENCE, reached).await.is_err() {
            let status = self.status(label).await;
            panic!(
                "{label} did not reach {height}: {:?} {status:?}",
                validator.stop_reason()
            );
        }
    }

    /// Waits until all that run are `more` heights above where the highest of them is now.
    pub async fn grow(&self, more: u64) {
        let heights = self.running.values().map(|running| running.validator.height().get());
        let target = Height(heights.max().unwrap().0 + more);
        for label in self.running.keys() {
            self.reach(label, target).await;
        }
    }

    /// Waits until the executed state of `label` expects batch `seq` of `cluster` or a later one.
    pub async fn executed(&self, label: &str, cluster: ClusterId, seq: u64) {
        let is_there = |executed: &Arc<global_validator::executed::Executed>| {
            executed.queue.next_batch(cluster).is_some_and(|(_, next)| next.0 > seq)
        };
        let executed = self.validator(label).executed().wait_until(is_there);
        if tokio::time::timeout(PATIENCE, executed).await.is_err() {
            let status = self.status(label).await;
            panic!("{label} did not execute batch {seq} of {cluster}: {status:?}");
        }
    }

    /// The transport of `label`; if it does not run, one that only asks.
    pub fn client(&self, label: &str) -> Arc<MemoryTransport> {
        if let Some(running) = self.running.get(label) {
            return running.transport.clone();
        }
        let hello = hello_of(self.fleet.chain, self.fleet.id(label));
        self.network.join(self.fleet.idx(label), hello, Arc::new(RefuseAll))
    }

    pub async fn call(&self, from: &str, to: &str, kind: FrameKind, body: Vec<u8>) -> Result<Bytes, CallError> {
        let to = self.fleet.id(to);
        self.client(from)
            .call(to, kind, body.into(), Duration::from_secs(15))
            .await
    }

    pub async fn submit(&self, from: &str, to: &str, batch: &CertifiedBatch) -> Result<BatchReceipt, CallError> {
        let answer = self.call(from, to, FrameKind::SubmitBatch, encode(batch)).await?;
        Ok(decode(&answer).unwrap())
    }

    pub async fn ask(&self, to: &str, request: &OpRequest) -> OpAnswer {
        let answer = self.call("op1", to, FrameKind::Operate, encode(request)).await;
        decode(&answer.unwrap()).unwrap()
    }

    pub async fn status(&self, label: &str) -> ValidatorStatus {
        match self.ask(label, &OpRequest::Status).await {
            OpAnswer::Validator(status) => status,
            other => panic!("{other:?}"),
        }
    }

    /// Digests of all final blocks of a validator.
    pub fn digests(&self, label: &str) -> Vec<Digest> {
        let blocks = self.validator(label).blocks();
        let tip = blocks.tip().0;
        (1..=tip.0)
            .map(|height| blocks.at(Height(height)).unwrap().unwrap().block.digest())
            .collect()
    }

    /// Asserts that all that run agree on every height that two of them have.
    pub fn assert_no_fork(&self) {
        let all: Vec<Vec<Digest>> = self.running.keys().map(|label| self.digests(label)).collect();
        let longest = all.iter().max_by_key(|digests| digests.len()).unwrap();
        for digests in &all {
            assert_eq!(digests[..], longest[..digests.len()], "a fork");
        }
    }
}
