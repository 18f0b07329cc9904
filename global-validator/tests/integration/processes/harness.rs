//! Four real validator processes on loopback, and an operator who asks them.

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
    block::FinalizedBlock,
    codec::{decode, encode},
    crypto::sha256,
    ids::{Digest, Height},
    testing::Fleet,
    wire::{
        feed::BatchReceipt,
        frame::FrameKind,
        op::{OpAnswer, OpRequest, ValidatorStatus},
    },
};
use powercut::Faults;
use transport::{
    certificate::{CertificateAuthority, Terms},
    identity::{Identity, KeyFile},
    machine::{MachineClock, MachineEntropy, OnPanic, TokioSpawner},
    ports::{Clock, Transport},
    quic::{QuicConfig, QuicTransport, RefuseAll, Role, hello_of},
    verifier::SharedRegistry,
};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(240);
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_millis(50);

pub const V: [&str; 4] = ["v1", "v2", "v3", "v4"];

/// Directory, keys and configuration of a test fleet's validators.
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

pub fn consensus_key(label: &str) -> KeyFile {
    KeyFile::from_seed(&seed("consensus", label))
}

/// Ports that were free a moment ago; held together so that they differ.
fn free_ports(count: usize) -> Vec<u16> {
    let sockets: Vec<UdpSocket> = (0..count).map(|_| UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|s| s.local_addr().unwrap().port()).collect()
}

impl Place {
    /// Files of four validators; nobody runs yet.
    pub fn new() -> Self {
        let fleet = Fleet::new(1, 3, 4);
        let dir = tempfile::tempdir().unwrap();
        let now_unix_s = MachineClock::new().wall().0 / 1_000_000;
        let place = Self {
            ca: CertificateAuthority::new(fleet.genesis.fleet.as_str(), &device_key("ca")).unwrap(),
            ports: V.iter().map(|label| label.to_string()).zip(free_ports(4)).collect(),
            fleet,
            dir,
            now_unix_s,
        };
        fs::write(place.path("genesis.bin"), encode(&place.fleet.genesis)).unwrap();
        for label in V {
            let own = place.path(label);
            fs::create_dir(&own).unwrap();
            device_key(label).write_new(&own.join("device.key")).unwrap();
            consensus_key(label).write_new(&own.join("consensus.key")).unwrap();
            fs::write(own.join("device.pem"), place.certificate(label)).unwrap();
            fs::write(own.join("validator.toml"), place.config(label)).unwrap();
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn config_path(&self, label: &str) -> PathBuf {
        self.path(label).join("validator.toml")
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
             consensus_key = \"consensus.key\"\ndata_dir = \"data\"\nlisten = \"127.0.0.1:{}\"\nclone_watch = \"200ms\"\n",
            self.ports[label]
        );
        for (peer, port) in self.ports.iter().filter(|(peer, _)| *peer != label) {
            text += &format!("\n[[peer]]\nlabel = \"{peer}\"\naddress = \"127.0.0.1:{port}\"\n");
        }
        text
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
        let child = command(&self.config_path(label))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(&said).unwrap())
            .spawn()
            .unwrap();
        let mut process = Process(child);
        let deadline = Clock::now(&MachineClock::new()).us + PATIENCE.as_micros() as u64;
        loop {
            let text = fs::read_to_string(&said).unwrap();
            if let Some(status) = process.0.try_wait().unwrap() {
                return (status.code().unwrap_or(-1), text);
            }
            assert!(
                Clock::now(&MachineClock::new()).us < deadline,
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
    let mut command = Command::new(env!("CARGO_BIN_EXE_global-validator"));
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
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The operator `op1`, connected to all validators.
pub struct Operator {
    transport: Arc<QuicTransport>,
    ids: BTreeMap<String, common::ids::DeviceId>,
}

impl Operator {
    pub fn new(place: &Place) -> Self {
        Self::as_device(place, "op1")
    }

    /// A client with the key of `label`.
    pub fn as_device(place: &Place, label: &str) -> Self {
        let identity = Identity::from_parts(&device_key(label), &place.certificate(label)).unwrap();
        let fleet = &place.fleet;
        let config = QuicConfig {
            listen: "127.0.0.1:0".parse().unwrap(),
            role: if label.starts_with('c') {
                Role::Drone
            } else {
                Role::Client
            },
            identity,
            genesis: Arc::new(fleet.genesis.clone()),
            registry: SharedRegistry::new(Arc::new(fleet.registry.clone())),
            addresses: place
                .ports
                .iter()
                .map(|(label, port)| (fleet.id(label), ([127, 0, 0, 1], *port).into()))
                .collect(),
            hello: hello_of(fleet.chain, fleet.id(label)),
        };
        let spawner = Arc::new(TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log));
        let transport = QuicTransport::start(
            config,
            Arc::new(RefuseAll),
            spawner,
            Arc::new(MachineClock::new()),
            Arc::new(MachineEntropy::new()),
        )
        .unwrap();
        Self {
            transport,
            ids: V.iter().map(|label| (label.to_string(), fleet.id(label))).collect(),
        }
    }

    /// One request; `None` if it was not answered.
    pub async fn call(&self, label: &str, kind: FrameKind, body: Vec<u8>) -> Option<bytes::Bytes> {
        let answer = self
            .transport
            .call(self.ids[label], kind, body.into(), Duration::from_secs(2));
        answer.await.ok()
    }

    /// One request that may be made twice, until it is answered: a link breaks with the process at its end.
    pub async fn answered(&self, label: &str, kind: FrameKind, body: Vec<u8>) -> bytes::Bytes {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.call(label, kind, body.clone()).await {
                return answer;
            }
            assert!(tokio::time::Instant::now() < deadline, "{label} does not answer");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Hands a batch to `label` until it has it durably.
    pub async fn stores(&self, label: &str, batch: Vec<u8>) {
        let receipt = decode(&self.answered(label, FrameKind::SubmitBatch, batch).await);
        assert!(
            matches!(receipt, Ok(BatchReceipt::Stored | BatchReceipt::Final)),
            "{label}: {receipt:?}"
        );
    }

    pub async fn ask(&self, label: &str, request: &OpRequest) -> Option<OpAnswer> {
        let answer = self.call(label, FrameKind::Operate, encode(request)).await?;
        Some(decode(&answer).expect("validators answer in our language"))
    }

    pub async fn status(&self, label: &str) -> Option<ValidatorStatus> {
        match self.ask(label, &OpRequest::Status).await? {
            OpAnswer::Validator(status) => Some(status),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the status of `label` is as wanted.
    pub async fn wait(
        &self,
        place: &Place,
        label: &str,
        what: &str,
        is_met: impl Fn(&ValidatorStatus) -> bool,
    ) -> ValidatorStatus {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let mut last = None;
        while tokio::time::Instant::now() < deadline {
            if let Some(status) = self.status(label).await {
                if is_met(&status) {
                    return status;
                }
                last = Some(status);
            }
            tokio::time::sleep(LOOK).await;
        }
        panic!("{label}: not {what} in time; last {last:?}\n{}", place.log(label));
    }

    /// Digests of all final blocks of `label`, by height.
    pub async fn digests(&self, label: &str) -> BTreeMap<Height, Digest> {
        let mut digests = BTreeMap::new();
        let mut from = Height(1);
        loop {
            let request = OpRequest::Blocks { from, limit: 64 };
            let answer = self.answered(label, FrameKind::Operate, encode(&request)).await;
            let Ok(OpAnswer::Blocks(blocks)) = decode(&answer) else {
                panic!("{label} answers something else: {answer:?}");
            };
            if blocks.is_empty() {
                return digests;
            }
            for FinalizedBlock { block, .. } in &blocks {
                assert_eq!(block.header.height, from, "{label} left out a height");
                digests.insert(from, block.digest());
                from = from.next();
            }
        }
    }
}

/// Asserts that no two validators have different blocks at one height; returns the highest common one.
pub fn assert_no_fork(chains: &BTreeMap<String, BTreeMap<Height, Digest>>) -> Height {
    let mut all: BTreeMap<Height, Digest> = BTreeMap::new();
    for (label, chain) in chains {
        for (height, digest) in chain {
            let first = all.entry(*height).or_insert(*digest);
            assert_eq!(first, digest, "{label} has another block at height {height}");
        }
    }
    let tips = chains.values().filter_map(|chain| chain.keys().last());
    *tips.min().unwrap()
}
