//! `fleet dev`: a fleet of real processes on this machine, for development and the demo.
//!
//! # Rules
//! * `up` on an existing directory starts what is down, with the same identities and data.
//! * Whatever ends `up` before the fleet is ready, Ctrl-C too, ends what it started.

pub mod create;
pub mod fleet;
pub mod layout;
pub mod process;

use std::{path::Path, pin::pin, time::Duration};

use common::wire::op::OpAnswer;
use futures::future::Either;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{create::Plan, fleet::DevFleet, layout::Layout, process::Started};
use crate::{
    client::{Client, connect},
    clock::parse_duration,
    draft::Profile,
    exit::{Exit, Failure, Outcome},
    printer::{Printer, column, wide},
};

/// `fleet dev`
#[derive(Debug, clap::Subcommand)]
pub enum DevCommand {
    /// Makes a fleet if there is none, starts what is down, waits until it is ready.
    Up {
        /// Clusters, c1, c2 and so on.
        #[arg(long, default_value_t = 3)]
        clusters: u32,
        /// Agents in each, c1-1, c1-2 and so on.
        #[arg(long, default_value_t = 3)]
        agents: u32,
        /// Validators, v1, v2 and so on.
        #[arg(long, default_value_t = 4)]
        validators: u32,
        /// Constants of time.
        #[arg(long, value_enum, default_value_t = Profile::Dev)]
        profile: Profile,
        /// Longest wait until it is ready.
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        deadline: Duration,
    },
    /// Ends all processes; keys and data stay.
    Down,
    /// Shows the processes.
    Status,
    /// Kills processes at once (SIGKILL), as a power cut would.
    Kill {
        /// Agents, validators, clusters or `all`.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Ends processes, starts them again and waits until they are ready.
    Restart {
        /// Agents, validators, clusters or `all`.
        #[arg(required = true)]
        names: Vec<String>,
        /// Longest wait until they are ready.
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        deadline: Duration,
        /// Do not wait.
        #[arg(long)]
        no_wait: bool,
    },
}

/// Runs `fleet dev` on the fleet in `dir`.
///
/// # Errors
/// With the exit code of the fate.
pub async fn run(command: DevCommand, dir: &Path, printer: &Printer) -> Outcome {
    let layout = Layout::new(dir);
    match command {
        DevCommand::Up {
            clusters,
            agents,
            validators,
            profile,
            deadline,
        } => {
            let plan = Plan::new(clusters, agents, validators, profile)?;
            up(layout, plan, deadline, printer).await
        }
        DevCommand::Down => {
            let mut fleet = DevFleet::open(layout, None)?;
            let ended = fleet.end(&fleet.plan.names()).await?;
            printer.object(&json!({"ended": ended}));
            Ok(())
        }
        DevCommand::Status => status(layout, printer).await,
        DevCommand::Kill { names } => {
            let mut fleet = DevFleet::open(layout, None)?;
            let killed = fleet.kill(&meant(&fleet.plan, &names)?).await?;
            printer.object(&json!({"killed": killed}));
            Ok(())
        }
        DevCommand::Restart {
            names,
            deadline,
            no_wait,
        } => {
            let mut fleet = DevFleet::open(layout, None)?;
            let names = meant(&fleet.plan, &names)?;
            fleet.end(&names).await?;
            let started = fleet.start(&names)?;
            if !no_wait {
                let context = fleet.layout.context();
                connect::with(&context, async |client| {
                    fleet.wait_ready(client, &names, deadline).await
                })
                .await?;
            }
            printer.object(&json!({"restarted": started}));
            Ok(())
        }
    }
}

fn meant(plan: &Plan, words: &[String]) -> Outcome<Vec<String>> {
    let mut names = Vec::new();
    for word in words {
        names.extend(plan.meant_by(word)?);
    }
    names.sort();
    names.dedup();
    Ok(names)
}

async fn up(layout: Layout, plan: Plan, deadline: Duration, printer: &Printer) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    let mut fleet = DevFleet::open(layout, Some(plan.clone()))?;
    let differs = (
        fleet.plan.clusters,
        fleet.plan.agents,
        fleet.plan.validators,
        fleet.plan.profile,
    ) != (plan.clusters, plan.agents, plan.validators, plan.profile);
    if differs {
        printer.note(&format!(
            "the fleet in {} keeps its size and profile",
            fleet.layout.dir.display()
        ));
    }
    let names = fleet.plan.names();
    let down: Vec<String> = names.iter().filter(|name| !fleet.is_alive(name)).cloned().collect();
    let ready = interrupt
        .or(async {
            fleet.start(&down)?;
            let context = fleet.layout.context();
            connect::with(&context, async |client| {
                fleet.wait_ready(client, &names, deadline).await
            })
            .await
        })
        .await;
    if let Err(failure) = ready {
        fleet.kill(&down).await?;
        return Err(failure);
    }
    printer.object(&json!({
        "dir": fleet.layout.dir, "started": down.len(), "running": names.len(),
        "clusters": fleet.plan.clusters, "agents": fleet.plan.clusters * fleet.plan.agents,
        "validators": fleet.plan.validators, "genesis": fleet.layout.genesis(),
    }));
    Ok(())
}

/// Listens for Ctrl-C, SIGTERM and the end of the terminal from its creation on: make it before anything is started that must
/// not stay behind.
#[derive(Debug)]
pub struct Interrupt {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl Interrupt {
    /// Starts to listen.
    ///
    /// # Errors
    /// Of the system.
    pub fn listen() -> Outcome<Self> {
        let listen = |kind| signal(kind).map_err(Failure::io("cannot listen for signals"));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Runs `work` until it ends or a signal came.
    ///
    /// # Errors
    /// Of `work`, or the interruption.
    pub async fn or<T>(&mut self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let (interrupt, terminate) = (pin!(self.interrupt.recv()), pin!(self.terminate.recv()));
        let hang_up = pin!(self.hang_up.recv());
        let stop = futures::future::select(futures::future::select(interrupt, terminate), hang_up);
        match futures::future::select(pin!(work), stop).await {
            Either::Left((outcome, _)) => outcome,
            Either::Right(_) => Err(Failure::new(Exit::Failed, "interrupted")
                .means("what this command started is ended")
                .todo("start it again when you like")),
        }
    }
}

async fn status(layout: Layout, printer: &Printer) -> Outcome {
    let plan = create::load(&layout)?.ok_or_else(|| {
        Failure::new(Exit::Invalid, format!("there is no fleet in {}", layout.dir.display()))
            .todo("make one with `fleet dev up`")
    })?;
    let processes = process::load_state(&layout)?;
    connect::with(&layout.context(), async |client| {
        show(client, &layout, &plan, &processes, printer).await;
        Ok(())
    })
    .await
}

async fn show(client: &Client, layout: &Layout, plan: &Plan, processes: &[Started], printer: &Printer) {
    let peers: Vec<_> = client.context.peers.iter().collect();
    let running = |name: &str| {
        processes
            .iter()
            .find(|p| p.name == name && process::is_alive(layout, p))
    };
    let asked: Vec<_> = peers
        .iter()
        .copied()
        .filter(|peer| running(&peer.label).is_some())
        .collect();
    let answers = client.ask_all(&asked, &common::wire::op::OpRequest::Status).await;
    let rows: Vec<Value> = plan
        .names()
        .iter()
        .map(|name| {
            let pid = running(name).map(|p| p.pid);
            let answer = asked
                .iter()
                .position(|peer| peer.label == *name)
                .and_then(|at| answers[at].as_ref().ok());
            let (role, height) = match answer {
                Some(OpAnswer::Agent(s)) => (
                    if s.is_leader { "leader" } else { "follower" },
                    Some(s.context.global_height.0),
                ),
                Some(OpAnswer::Validator(s)) => ("validator", Some(s.height.0)),
                _ => ("-", None),
            };
            json!({
                "name": name, "state": if pid.is_some() { "up" } else { "down" }, "pid": pid, "port": plan.port(name),
                "role": role, "height": height, "log": layout.log(name),
            })
        })
        .collect();
    let columns = [
        column("NAME", "name"),
        column("STATE", "state"),
        column("PID", "pid"),
        column("PORT", "port"),
        column("ROLE", "role"),
        column("HEIGHT", "height"),
        wide("LOG", "log"),
    ];
    printer.rows(&columns, &rows);
}
