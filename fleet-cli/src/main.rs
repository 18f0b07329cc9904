//! The operator's command line. One file per noun; [`client`] asks the fleet, [`printer`] writes
//! results, [`exit`] says how it ended.
#![forbid(unsafe_code)]
// The command line is no part of what the simulator runs: it reads the machine's clocks itself.
#![allow(clippy::disallowed_methods)]

mod bench;
mod block;
mod ca;
mod client;
mod clock;
mod cluster;
mod completion;
mod demo;
mod dev;
mod draft;
mod exit;
mod files;
mod printer;
mod selftest;
mod status;
mod task;
mod validator;
mod view;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

use crate::{
    client::connect,
    exit::{Exit, Failure, Outcome},
    printer::{Format, Printer},
};

/// One task queue for a fleet of drones: what is queued, who does it, what is stuck.
#[derive(Debug, clap::Parser)]
#[command(name = "fleet", version, arg_required_else_help = true)]
struct Cli {
    /// Directory of the dev fleet [default: .muster/dev; the demo: one that is removed].
    #[arg(long, global = true)]
    dir: Option<PathBuf>,
    /// Context file; by default fleet.toml of the dev fleet.
    #[arg(long, global = true)]
    context: Option<PathBuf>,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// How logs are written to stderr.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LogFormat {
    /// For people.
    Text,
    /// For machines.
    Json,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// The whole fleet on one screen.
    Status,
    /// Tasks: submit, look, cancel, prove, verify; and a drone's own verbs.
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Regional clusters and their agents.
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// Validators of the global tier.
    #[command(subcommand)]
    Validator(validator::ValidatorCommand),
    /// The finalized chain.
    #[command(subcommand)]
    Block(block::BlockCommand),
    /// The fleet's certificate authority and genesis file.
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// A fleet of real processes on this machine.
    #[command(subcommand)]
    Dev(dev::DevCommand),
    /// A fleet at work while parts of it are killed, judged from its own journal.
    Demo(demo::DemoArgs),
    /// Measures a fleet of its own on this machine.
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// Checks this program, this machine and the context.
    Selftest,
    /// Completions for a shell.
    Completion {
        /// Which.
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    init_logs(cli.log_format);
    let printer = Printer::new(cli.output);
    match run(cli, &printer) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if printer.is_json() {
                eprintln!("{}", failure.to_json());
            } else {
                eprintln!("{failure}");
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

fn init_logs(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLEET_LOG").unwrap_or_else(|_| "error".into());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
}

fn run(cli: Cli, printer: &Printer) -> Outcome {
    common::crypto::known_answers::check().map_err(|e| Failure::new(Exit::RefusedForSafety, e))?;
    let dir = cli.dir.clone().unwrap_or_else(|| PathBuf::from(".muster/dev"));
    let context = cli.context.clone().unwrap_or_else(|| dir.join("fleet.toml"));
    match cli.command {
        Command::Ca(command) => return ca::run(command, printer),
        Command::Selftest => return selftest::run(&context, printer),
        Command::Completion { shell } => {
            completion::run(shell);
            return Ok(());
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::io("cannot start the runtime"))?;
    runtime.block_on(async {
        match cli.command {
            Command::Status => connect::with(&context, async |client| status::run(client, printer).await).await,
            Command::Task(command) => task::run(command, &context, printer).await,
            Command::Cluster(command) => {
                connect::with(&context, async |client| cluster::run(client, command, printer).await).await
            }
            Command::Validator(command) => {
                connect::with(&context, async |client| validator::run(client, command, printer).await).await
            }
            Command::Block(command) => {
                connect::with(&context, async |client| block::run(client, command, printer).await).await
            }
            Command::Dev(command) => dev::run(command, &dir, printer).await,
            Command::Demo(args) => demo::run(args, cli.dir.as_deref(), printer).await,
            Command::Bench(command) => bench::run(command, cli.dir.as_deref(), printer).await,
            Command::Ca(_) | Command::Selftest | Command::Completion { .. } => Ok(()),
        }
    })
}
