//! `cluster-agent`: the process on each drone. Reads its configuration, checks who it is, and runs.
#![forbid(unsafe_code)]

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Parser;
use cluster_agent::{
    agent::{Agent, AgentHandle, Settings},
    config::{AgentConfig, EXIT_INVALID, LogFormat},
    peers::Door,
    ports::{AgentPorts, Clock, Entropy, Spawner, TokioRuntime},
    raft::store::{
        durable_sled::SledOptions,
        identity::{MemberIdentity, open_member},
        member_log::LogOptions,
    },
    shell::Ending,
};
use common::{
    crypto::known_answers,
    ids::{Founding, RaftNodeId},
    registry::Registry,
    wire::frame::Hello,
};
use futures::{
    FutureExt,
    future::{Either, select},
};
use tokio::signal::unix::{SignalKind, signal};
use transport::{
    identity::Identity,
    local::{SOCKET_NAME, server},
    machine::{MachineClock, MachineDisk, MachineEntropy, OnPanic, TokioSpawner},
    quic::{QuicConfig, QuicTransport, Role, hello_of},
    verifier::SharedRegistry,
};

/// Exit code for a bug of ours.
const EXIT_INTERNAL: u8 = 70;
/// Exit code for a disk that fails.
const EXIT_DISK: u8 = 74;

/// Runs a drone's member of its regional cluster.
#[derive(Parser)]
#[command(name = "cluster-agent", version)]
struct Arguments {
    /// The configuration file, agent.toml.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

/// Why the process ends before or instead of its work.
struct Exit {
    code: u8,
    text: String,
}

impl Exit {
    fn new(code: u8, text: impl std::fmt::Display) -> Self {
        Self {
            code,
            text: text.to_string(),
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(exit) => {
            eprintln!("cluster-agent: {}", exit.text);
            ExitCode::from(exit.code)
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Exit> {
    // Before anything is signed or verified: a lenient build must not run.
    known_answers::check().map_err(|error| Exit::new(EXIT_INTERNAL, error))?;
    let config = AgentConfig::load(&arguments.config).map_err(|error| Exit::new(EXIT_INVALID, error))?;
    start_log(&config)?;
    let identity = Identity::load(&config.key, &config.certificate);
    let identity = identity.map_err(|error| Exit::new(EXIT_INVALID, error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| Exit::new(EXIT_INTERNAL, format!("the runtime does not start: {error}")))?;
    let outcome = runtime.block_on(serve(config, identity));
    // Tasks that still wait for peers have nothing durable to finish.
    runtime.shutdown_background();
    outcome
}

fn start_log(config: &AgentConfig) -> Result<(), Exit> {
    let filter = config.log_filter.as_deref().unwrap_or("info,openraft=error");
    let filter = tracing_subscriber::EnvFilter::try_new(filter)
        .map_err(|error| Exit::new(EXIT_INVALID, format!("log.filter \"{filter}\": {error}")))?;
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
    Ok(())
}

async fn serve(config: AgentConfig, identity: Identity) -> Result<(), Exit> {
    let signals = |error| Exit::new(EXIT_INTERNAL, format!("signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(signals)?;
    let key = identity.device_key().clone();
    let (ports, transport, door) = open_ports(&config, identity)?;
    let settings = Settings {
        genesis: config.genesis.clone(),
        device: config.device,
        incarnation: config.incarnation,
        key,
        raft: config.raft.clone(),
        limits: config.limits,
    };
    let started = Agent::start::<TokioRuntime>(settings, ports.clone(), &door).await;
    let agent = started.map_err(|error| Exit::new(error.exit_code(), error))?;
    open_local_socket(&config, &agent, &ports).await?;
    tracing::info!(listen = %transport.local_addr(), data_dir = %config.data_dir.display(), "ready");
    let told = async {
        select(std::pin::pin!(terminate.recv()), std::pin::pin!(interrupt.recv())).await;
    };
    let ending = match select(std::pin::pin!(told), std::pin::pin!(agent.ended())).await {
        Either::Left(((), _)) => Ending::Stopped,
        Either::Right((ending, _)) => ending,
    };
    agent.stop().await;
    transport.close().await;
    match ending {
        Ending::Stopped => Ok(()),
        Ending::Fatal { exit_code, reason } => Err(Exit::new(exit_code, reason)),
    }
}

fn open_ports(config: &AgentConfig, identity: Identity) -> Result<(AgentPorts, Arc<QuicTransport>, Door), Exit> {
    let registry = Arc::new(Registry::from_genesis(&config.genesis));
    let chain = *registry.chain();
    let me = registry
        .by_idx(config.device)
        .expect("the configuration was checked against this registry");
    if !me.keys.iter().any(|key| key.to_bytes() == identity.public()) {
        let text = format!(
            "key \"{}\" is not the key of \"{}\" in the genesis file; correct `key` or `label` in the configuration file",
            config.key.display(),
            me.label
        );
        return Err(Exit::new(EXIT_INVALID, text));
    }
    let (device, raft) = (me.id, RaftNodeId::new(me.idx, config.incarnation));
    let clock: Arc<dyn Clock> = Arc::new(MachineClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(MachineEntropy::new());
    let handle = tokio::runtime::Handle::current();
    let spawner: Arc<dyn Spawner> = Arc::new(TokioSpawner::new(handle, OnPanic::StopProcess));
    let disk = MachineDisk::open(&config.data_dir).map_err(|error| {
        Exit::new(
            EXIT_DISK,
            format!("data_dir \"{}\": {error}", config.data_dir.display()),
        )
    })?;
    let directory = (u128::from(entropy.next_u64()) << 64 | u128::from(entropy.next_u64())).to_be_bytes();
    let whose = MemberIdentity {
        chain,
        cluster: config.cluster,
        device,
        member: raft,
    };
    let options = LogOptions {
        kind: config.log_kind,
        sled: SledOptions {
            file_bytes_max: config.log_bytes_max,
            ..SledOptions::default()
        },
        ..LogOptions::default()
    };
    let stores = open_member(&config.data_dir, whose, directory, options)
        .map_err(|error| Exit::new(error.exit_code(), error))?;
    let door = Door::default();
    let quic = QuicConfig {
        listen: config.listen,
        role: Role::Drone,
        identity,
        genesis: config.genesis.clone(),
        registry: SharedRegistry::new(registry.clone()),
        addresses: config.peers.iter().copied().collect::<BTreeMap<_, _>>(),
        hello: Hello {
            cluster: Some((config.cluster, Founding(0))),
            raft: raft.0,
            ..hello_of(chain, device)
        },
    };
    let transport = QuicTransport::start(
        quic,
        Arc::new(door.clone()),
        spawner.clone(),
        clock.clone(),
        entropy.clone(),
    )
    .map_err(|error| Exit::new(EXIT_INVALID, error))?;
    let ports = AgentPorts {
        transport: transport.clone(),
        clock,
        spawner,
        entropy,
        disk: Arc::new(disk),
        log: Arc::new(stores.log),
        snapshots: Arc::new(stores.snapshots),
    };
    Ok((ports, transport, door))
}

async fn open_local_socket(config: &AgentConfig, agent: &AgentHandle, ports: &AgentPorts) -> Result<(), Exit> {
    let path = config.data_dir.join(SOCKET_NAME);
    let listener = server::bind(&path)
        .await
        .map_err(|error| Exit::new(EXIT_DISK, format!("local socket \"{}\": {error}", path.display())))?;
    let serving = server::serve(listener, agent.local_door(), ports.spawner.clone());
    ports.spawner.spawn("local-socket", serving.boxed());
    Ok(())
}
