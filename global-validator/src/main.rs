//! `global-validator`: a validator of the global tier.

#![forbid(unsafe_code)]

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Parser;
use common::crypto::known_answers;
use global_validator::{
    Door, Ports, Setup, Stop, Validator,
    config::{Config, LogFormat, ValidConfig},
    exit::EXIT_OK,
    identity::Loaded,
};
use tokio::signal::unix::{SignalKind, signal};
use transport::{
    machine::{MachineClock, MachineDisk, MachineEntropy, OnPanic, TokioSpawner},
    ports::{Clock, Entropy, Spawner},
    quic::{QuicConfig, QuicTransport, Role, hello_of},
    verifier::SharedRegistry,
};

/// Orders the batches of all clusters into one history, together with the other validators.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The configuration file, validator.toml.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::from(EXIT_OK),
        Err(stop) => {
            eprintln!("global-validator: {stop}");
            ExitCode::from(stop.exit_code())
        }
    }
}

fn run(arguments: &Arguments) -> Result<(), Arc<Stop>> {
    known_answers::check().map_err(Stop::from)?;
    let config = Config::load(&arguments.config).map_err(Stop::from)?;
    start_log(config.log_format);
    let loaded = Loaded::load(&config).map_err(Stop::from)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Stop::storage("starting the runtime"))?;
    let outcome = runtime.block_on(serve(config, loaded));
    // Tasks that still wait for peers have nothing durable to finish.
    runtime.shutdown_background();
    outcome
}

fn start_log(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MUSTER_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

async fn serve(config: ValidConfig, loaded: Loaded) -> Result<(), Arc<Stop>> {
    let mut terminate = signal(SignalKind::terminate()).map_err(Stop::storage("waiting for signals"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Stop::storage("waiting for signals"))?;
    let clock: Arc<dyn Clock> = Arc::new(MachineClock::new());
    let entropy: Arc<dyn Entropy> = Arc::new(MachineEntropy::new());
    let spawner: Arc<dyn Spawner> = Arc::new(TokioSpawner::new(
        tokio::runtime::Handle::current(),
        OnPanic::StopProcess,
    ));
    let disk = MachineDisk::open(&config.data_dir).map_err(|source| Stop::DataDir {
        path: config.data_dir.clone(),
        source,
    })?;
    let genesis = Arc::new(loaded.genesis);
    let addresses: BTreeMap<_, _> = config
        .peers
        .iter()
        .filter_map(|(label, address)| Some((loaded.registry.by_label(label.as_str())?.id, *address)))
        .collect();
    let device = loaded.identity.device_id(loaded.registry.chain());
    let quic = QuicConfig {
        listen: config.listen,
        role: Role::Validator,
        identity: loaded.identity,
        genesis: genesis.clone(),
        registry: SharedRegistry::new(loaded.registry.clone()),
        addresses,
        hello: hello_of(*loaded.registry.chain(), device),
    };
    let door = Door::new();
    let transport = QuicTransport::start(
        quic,
        Arc::new(door.clone()),
        spawner.clone(),
        clock.clone(),
        entropy.clone(),
    )
    .map_err(Stop::from)?;
    let ports = Ports {
        transport: transport.clone(),
        clock,
        spawner,
        entropy,
        disk: Arc::new(disk),
    };
    let setup = Setup {
        genesis,
        label: config.label,
        consensus_key: loaded.consensus_key,
        clone_watch: config.clone_watch,
    };
    let validator = Validator::start(setup, ports, &door).await?;
    tracing::info!(listen = %transport.local_addr(), "validator started");
    let asked = async {
        futures::future::select(std::pin::pin!(terminate.recv()), std::pin::pin!(interrupt.recv())).await;
    };
    let outcome = match futures::future::select(std::pin::pin!(asked), std::pin::pin!(validator.stopped())).await {
        futures::future::Either::Left(((), _)) => {
            tracing::info!("asked to end");
            Ok(())
        }
        futures::future::Either::Right((stop, _)) => Err(stop),
    };
    validator.shut_down();
    transport.close().await;
    outcome
}
