//! Three real agent processes on loopback, and an operator who asks them.

#![allow(dead_code)]

use std::{
    collections::BTreeMap,
    fs,
    net::UdpSocket,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    time::Duration,
};

use common::{
    codec::{decode, encode},
    crypto::sha256,
    testing::Fleet,
    wire::{
        frame::FrameKind,
        op::{AgentStatus, OpAnswer, OpRequest},
    },
};
use transport::{
    certificate::{CertificateAuthority, Terms},
    identity::{Identity, KeyFile},
    machine::{MachineClock, MachineEntropy, OnPanic, TokioSpawner},
    ports::{CallError, Clock, Transport},
    quic::{QuicConfig, QuicTransport, RefuseAll, Role, hello_of},
    verifier::SharedRegistry,
};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

pub const AGENTS: [&str; 3] = ["c1-1", "c1-2", "c1-3"];

/// Directory, keys and configuration of a test cluster.
pub struct Place {
    pub dir: tempfile::TempDir,
    pub fleet: Fleet,
    pub ports: BTreeMap<String, u16>,
    pub ca: CertificateAuthority,
    pub now_unix_s: u64,
}

fn seed(of: &str, label: &str) -> [u8; 32] {
    sha256(&[format!("testing/{of}/").as_bytes(), label.as_bytes()]).0
}

pub fn device_key(label: &str) -> KeyFile {
    KeyFile::from_seed(&seed("device", label))
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
        let fleet = Fleet::new(1, 3, 4);
        let place = Self {
            ca: CertificateAuthority::new(fleet.genesis.fleet.as_str(), &device_key("ca")).unwrap(),
            ports: AGENTS
                .iter()
                .map(|label| label.to_string())
                .zip(free_ports(3))
                .collect(),
            fleet,
            dir: tempfile::tempdir().unwrap(),
            now_unix_s: MachineClock::new().wall().0 / 1_000_000,
        };
        fs::write(place.path("genesis.bin"), encode(&place.fleet.genesis)).unwrap();
        for label in AGENTS {
            let own = place.path(label);
            fs::create_dir(&own).unwrap();
            device_key(label).write_new(&own.join("device.key")).unwrap();
            fs::write(own.join("device.pem"), place.certificate(label)).unwrap();
            fs::write(own.join("agent.toml"), place.config(label)).unwrap();
        }
        place
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
        for (peer, port) in self.ports.iter().filter(|(peer, _)| *peer != label) {
            text += &format!("\n[[peer]]\nlabel = \"{peer}\"\naddress = \"127.0.0.1:{port}\"\n");
        }
        text + "\n[link]\nprofile = \"dev\"\n"
    }

    /// Starts the process of `label`; its log goes to `LABEL/log.txt`.
    pub fn spawn(&self, label: &str) -> Process {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.path(label).join("log.txt"))
            .unwrap();
        let mut command = command(&self.config_path(label));
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
}

impl Operator {
    pub fn connect(place: &Place) -> Self {
        let fleet = place.fleet.clone();
        let identity = Identity::from_parts(&device_key("op1"), &place.certificate("op1")).unwrap();
        let address = |port: &u16| format!("127.0.0.1:{port}").parse().unwrap();
        let config = QuicConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            role: Role::Client,
            identity,
            genesis: Arc::new(fleet.genesis.clone()),
            registry: SharedRegistry::new(Arc::new(fleet.registry.clone())),
            addresses: place
                .ports
                .iter()
                .map(|(label, port)| (fleet.id(label), address(port)))
                .collect(),
            hello: hello_of(fleet.chain, fleet.id("op1")),
        };
        let spawner = TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log);
        let transport = QuicTransport::start(
            config,
            Arc::new(RefuseAll),
            Arc::new(spawner),
            Arc::new(MachineClock::new()),
            Arc::new(MachineEntropy::new()),
        );
        Self {
            transport: transport.unwrap(),
            fleet,
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
            for label in AGENTS {
                if self.status(label).await.is_some_and(|status| status.is_leader) {
                    return label.into();
                }
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(LOOK).await;
        }
    }
}
