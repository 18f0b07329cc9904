//! Real agent processes on loopback, an operator who asks them, and a relay whose links can be cut.

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use common::{
    codec::{decode, encode},
    crypto::sha256,
    ids::TaskId,
    testing::Fleet,
    wire::{
        frame::FrameKind,
        op::{AgentStatus, Consistency, OpAnswer, OpRequest, TaskView},
    },
};
use powercut::Faults;
use transport::{
    certificate::{CertificateAuthority, Terms},
    identity::{Identity, KeyFile},
    machine::{MachineClock, MachineEntropy, OnPanic, TokioSpawner},
    ports::{CallError, Clock, Service, Transport},
    quic::{QuicConfig, QuicTransport, RefuseAll, Role, hello_of},
    relay::{self, End, RelayHandle},
    verifier::SharedRegistry,
};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

pub const AGENTS: [&str; 3] = ["c1-1", "c1-2", "c1-3"];
pub const VALIDATORS: [&str; 4] = ["v1", "v2", "v3", "v4"];

/// How large a test cluster is, and what stands between its processes.
pub struct Shape {
    pub agents: u32,
    /// Seed of the relay; without it agents know each other directly.
    pub relay: Option<u64>,
    /// Whether agents know validators.
    pub has_ground: bool,
    /// End of every agent's configuration file.
    pub config: &'static str,
}

/// Directory, keys and configuration of a test cluster.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub fleet: Fleet,
    /// The agents.
    pub labels: Vec<String>,
    /// Where agents, and validators if there are any, listen.
    pub ports: BTreeMap<String, u16>,
    pub ca: CertificateAuthority,
    pub now_unix_s: u64,
    relay: Option<RelayHandle>,
    config: &'static str,
}

fn seed(of: &str, label: &str) -> [u8; 32] {
    sha256(&[format!("testing/{of}/").as_bytes(), label.as_bytes()]).0
}

pub fn device_key(label: &str) -> KeyFile {
    KeyFile::from_seed(&seed("device", label))
}

fn loopback(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn start_relay(seed: u64, names: &[String], listen: &[u16], relayed: &[u16]) -> RelayHandle {
    let ends = names
        .iter()
        .zip(listen.iter().zip(relayed))
        .map(|(name, (listen, relay))| End {
            name: name.clone(),
            listen: loopback(*listen),
            relay: loopback(*relay),
        });
    let spawner = TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log);
    relay::start(seed, ends.collect(), &spawner).unwrap()
}

/// Ports that were free a moment ago; held together so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let sockets: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    sockets
        .iter()
        .map(|socket| socket.local_addr().unwrap().port())
        .collect()
}

impl Place {
    /// Files of three agents; nobody runs yet.
    pub fn new() -> Self {
        Self::of(&Shape {
            agents: 3,
            relay: None,
            has_ground: false,
            config: "\n[link]\nprofile = \"dev\"\n",
        })
    }

    /// Files of a cluster, and its relay, which needs a tokio runtime; no agent runs yet.
    pub fn of(shape: &Shape) -> Self {
        let fleet = Fleet::new(1, shape.agents, 4);
        let labels: Vec<String> = (1..=shape.agents).map(|n| format!("c1-{n}")).collect();
        let validators = VALIDATORS.iter().filter(|_| shape.has_ground).map(ToString::to_string);
        let ends: Vec<String> = labels.iter().cloned().chain(validators).collect();
        let free = free_ports(2 * ends.len());
        let (listen, relayed) = free.split_at(ends.len());
        let place = Self {
            ca: CertificateAuthority::new(fleet.genesis.fleet.as_str(), &device_key("ca")).unwrap(),
            relay: shape.relay.map(|seed| start_relay(seed, &ends, listen, relayed)),
            ports: ends.into_iter().zip(listen.iter().copied()).collect(),
            labels,
            fleet,
            dir: tempfile::tempdir().unwrap(),
            now_unix_s: MachineClock::new().wall().0 / 1_000_000,
            config: shape.config,
        };
        fs::write(place.path("genesis.bin"), encode(&place.fleet.genesis)).unwrap();
        for label in &place.labels {
            let own = place.path(label);
            fs::create_dir(&own).unwrap();
            device_key(label).write_new(&own.join("device.key")).unwrap();
            fs::write(own.join("device.pem"), place.certificate(label)).unwrap();
            fs::write(own.join("agent.toml"), place.config(label)).unwrap();
        }
        place
    }

    /// The relay of a place that has one.
    pub fn relay(&self) -> &RelayHandle {
        self.relay.as_ref().expect("this place was made with a relay")
    }

    /// Where other processes of the cluster reach `label`.
    fn address_for_peers(&self, label: &str) -> SocketAddr {
        let relayed = self.relay.as_ref().and_then(|relay| relay.address_of(label));
        relayed.unwrap_or_else(|| loopback(self.ports[label]))
    }

    /// `service` listens as the four validators.
    pub fn start_ground(&self, service: &Arc<dyn Service>) -> Vec<Arc<QuicTransport>> {
        let validators = VALIDATORS.iter();
        let started =
            validators.map(|label| self.transport(label, Role::Validator, self.ports[*label], service.clone()));
        started.collect()
    }

    /// A transport of this process, as the device of `label`.
    fn transport(&self, label: &str, role: Role, port: u16, service: Arc<dyn Service>) -> Arc<QuicTransport> {
        let fleet = &self.fleet;
        let addresses = self
            .ports
            .iter()
            .map(|(label, port)| (fleet.id(label), loopback(*port)));
        let config = QuicConfig {
            listen: loopback(port),
            role,
            identity: Identity::from_parts(&device_key(label), &self.certificate(label)).unwrap(),
            genesis: Arc::new(fleet.genesis.clone()),
            registry: SharedRegistry::new(Arc::new(fleet.registry.clone())),
            addresses: addresses.collect(),
            hello: hello_of(fleet.chain, fleet.id(label)),
        };
        let spawner = TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log);
        let (clock, entropy) = (Arc::new(MachineClock::new()), Arc::new(MachineEntropy::new()));
        QuicTransport::start(config, service, Arc::new(spawner), clock, entropy).unwrap()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config_path(&self, label: &str) -> PathBuf {
        self.path(label).join("agent.toml")
    }

    /// A certificate for the device of `label`.
    pub fn certificate(&self, label: &str) -> String {
        let terms = Terms {
            now_unix_s: self.now_unix_s,
            days: 30,
            serial: seed("serial", label)[..16].try_into().unwrap(),
        };
        let key = device_key(label).public();
        self.ca.issue(&self.fleet.id(label), &key, &terms).unwrap().pem
    }

    pub fn config(&self, label: &str) -> String {
        let mut text = format!(
            "genesis = \"../genesis.bin\"\nlabel = \"{label}\"\nkey = \"device.key\"\ncertificate = \"device.pem\"\n\
             data_dir = \"data\"\nlisten = \"127.0.0.1:{}\"\n",
            self.ports[label]
        );
        for peer in self.ports.keys().filter(|peer| *peer != label) {
            let address = self.address_for_peers(peer);
            text += &format!("\n[[peer]]\nlabel = \"{peer}\"\naddress = \"{address}\"\n");
        }
        text + self.config
    }

    /// Starts the process of `label`; its log goes to `LABEL/log.txt`.
    pub fn spawn(&self, label: &str) -> Process {
        self.spawn_as(label, command(&self.config_path(label)))
    }

    /// Starts the process of `label` on a disk with faults.
    pub fn spawn_on(&self, label: &str, faults: &Faults) -> Process {
        let mut command = command(&self.config_path(label));
        faults.prepare(&mut command);
        self.spawn_as(label, command)
    }

    /// Faults of the disk of `label`.
    pub fn faults(&self, label: &str) -> Faults {
        Faults::new(&self.path(label).join("data"))
    }

    fn spawn_as(&self, label: &str, mut command: Command) -> Process {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(label).join("log.txt"))
            .unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Process(child)
    }

    /// Runs the process of `label` until it ends by itself: exit code and what it said.
    pub fn run_to_end(&self, label: &str) -> (i32, String) {
        let said = self.path(label).join("said.txt");
        let stderr = fs::File::create(&said).unwrap();
        let mut command = command(&self.config_path(label));
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .unwrap();
        let mut process = Process(child);
        let clock = MachineClock::new();
        let begun = clock.now();
        loop {
            let text = fs::read_to_string(&said).unwrap();
            if let Some(status) = process.0.try_wait().unwrap() {
                return (status.code().unwrap_or(-1), fs::read_to_string(&said).unwrap());
            }
            assert!(
                clock.now().ms_since(begun) < PATIENCE.as_millis() as u64,
                "{label} does not end: {text}"
            );
            std::thread::sleep(LOOK);
        }
    }

    pub fn log(&self, label: &str) -> String {
        fs::read_to_string(self.path(label).join("log.txt")).unwrap_or_default()
    }
}

pub fn command(config: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cluster-agent"));
    command.arg("--config").arg(config);
    command
}

/// A child that does not outlive its test.
pub struct Process(Child);

impl Process {
    /// SIGKILL, and waits for the end.
    pub fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Waits until it has ended by itself, and says with which code.
    pub async fn end(mut self) -> Option<i32> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(tokio::time::Instant::now() < deadline, "does not end");
            tokio::time::sleep(LOOK).await;
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// SIGTERM, and waits for the end.
    pub async fn terminate(mut self) -> ExitStatus {
        let pid = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "does not end");
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The operator `op1`, connected to the agents.
pub struct Operator {
    transport: Arc<QuicTransport>,
    fleet: Fleet,
    labels: Vec<String>,
}

impl Operator {
    pub fn connect(place: &Place) -> Self {
        Self {
            transport: place.transport("op1", Role::Client, 0, Arc::new(RefuseAll)),
            fleet: place.fleet.clone(),
            labels: place.labels.clone(),
        }
    }

    pub async fn ask(&self, label: &str, request: &OpRequest) -> Result<OpAnswer, CallError> {
        let body = encode(request).into();
        let deadline = Duration::from_secs(10);
        let answer = self
            .transport
            .call(self.fleet.id(label), FrameKind::Operate, body, deadline)
            .await?;
        Ok(decode(&answer).expect("an agent's answer decodes"))
    }

    /// The task `id` as `label` shows it, asked until the question is answered.
    pub async fn task(&self, label: &str, id: TaskId, consistency: Consistency) -> Option<TaskView> {
        let request = OpRequest::Task {
            task: id,
            consistency,
            staleness_ms_max: None,
        };
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = self.ask(label, &request).await;
            if let Ok(OpAnswer::Task { task, .. }) = answer {
                return task;
            }
            assert!(tokio::time::Instant::now() < deadline, "{label}: {answer:?}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// The status of `label`, asked until it answers.
    pub async fn answered_status(&self, label: &str) -> AgentStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.status(label).await {
                return status;
            }
            assert!(tokio::time::Instant::now() < deadline, "{label} does not answer");
            tokio::time::sleep(LOOK).await;
        }
    }

    pub async fn status(&self, label: &str) -> Option<AgentStatus> {
        match self.ask(label, &OpRequest::Status).await {
            Ok(OpAnswer::Agent(status)) => Some(status),
            _ => None,
        }
    }

    /// Waits until somebody leads, and says who.
    pub async fn leader(&self) -> String {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            for label in &self.labels {
                if self.status(label).await.is_some_and(|status| status.is_leader) {
                    return label.clone();
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(LOOK).await;
        }
    }
}
