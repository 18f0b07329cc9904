//! `fleet dev`: a fleet of real processes on this machine, for development and the demo.
//!
//! # Rules
//! * `up` on an existing directory starts what is down, with the same identities and data.
//! * Processes know each other through a relay unless the fleet was made without one; `cut` and `heal` change its links.
//! * Whatever ends `up` before the fleet is ready, Ctrl-C too, ends what it started.

pub mod create;
pub mod cut;
pub mod fleet;
pub mod layout;
pub mod plan;
pub mod process;
pub mod relay;

use std::{
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use common::wire::op::OpAnswer;
use futures::future::Either;
use serde_json::{Value, json};
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::{
    cut::{Impairment, OneWay, Target},
    fleet::DevFleet,
    layout::{Layout, RELAY},
    plan::Plan,
    process::Started,
    relay::{Request, Shown},
};
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
        /// Seed of the relay, which decides which datagrams of an impaired link fare how; 0 for a new fleet. A
        /// fleet keeps the one it was made with.
        #[arg(long)]
        relay_seed: Option<u64>,
        /// No relay between the processes: for measurements. No link can be cut then.
        #[arg(long, conflicts_with = "relay_seed")]
        no_relay: bool,
        /// Longest wait until it is ready.
        #[arg(long, default_value = "60s", value_parser = parse_duration)]
        deadline: Duration,
    },
    /// Ends all processes; keys and data stay.
    Down,
    /// Shows the processes and how their links fare.
    Status,
    /// Cuts links between processes, or impairs them. The operator still reaches everybody.
    Cut {
        /// What.
        #[command(subcommand)]
        target: Target,
        /// Only one direction, seen from what is named first.
        #[arg(long, global = true, value_enum)]
        one_way: Option<OneWay>,
        /// How.
        #[command(flatten)]
        impairment: Impairment,
    },
    /// Heals links.
    Heal {
        /// Only the links of these agents, validators, clusters; all without names.
        names: Vec<String>,
    },
    /// Runs the relay; `up` starts it.
    #[command(hide = true)]
    Relay {
        /// The plan of its fleet.
        #[arg(long)]
        config: PathBuf,
    },
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
            relay_seed,
            no_relay,
            deadline,
        } => {
            let mut plan = Plan::new(clusters, agents, validators, profile)?;
            if no_relay {
                plan = plan.without_relay();
            } else if let Some(relay) = &mut plan.relay {
                relay.seed = relay_seed.unwrap_or_default();
            }
            up(layout, plan, relay_seed, deadline, printer).await
        }
        DevCommand::Down => {
            let mut fleet = DevFleet::open(layout, None)?;
            let ended = fleet.end(&fleet.plan.processes()).await?;
            printer.object(&json!({"ended": ended}));
            Ok(())
        }
        DevCommand::Status => status(layout, printer).await,
        DevCommand::Cut {
            target,
            one_way,
            impairment,
        } => {
            let plan = plan_of(&layout)?;
            let shown = cut::cut(&layout, &plan, &target, one_way, impairment.rule()).await?;
            show_links(&plan, &shown, printer);
            Ok(())
        }
        DevCommand::Heal { names } => {
            let plan = plan_of(&layout)?;
            let shown = cut::heal(&layout, &plan, &names).await?;
            show_links(&plan, &shown, printer);
            Ok(())
        }
        DevCommand::Relay { config } => relay::run(&config).await,
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

/// Whether the relay of a fleet has the seed that was asked for.
fn check_relay_seed(plan: &Plan, wanted: Option<u64>) -> Outcome {
    let Some(wanted) = wanted else { return Ok(()) };
    let problem = match plan.relay.as_ref().map(|relay| relay.seed) {
        Some(seed) if seed == wanted => return Ok(()),
        Some(seed) => format!("the relay of this fleet has seed {seed}, not {wanted}"),
        None => format!("this fleet was made without a relay, so none has seed {wanted}"),
    };
    Err(Failure::new(Exit::Invalid, problem)
        .means("nothing was started or changed")
        .todo("leave --relay-seed out, or make another fleet in another --dir"))
}

async fn up(layout: Layout, plan: Plan, relay_seed: Option<u64>, deadline: Duration, printer: &Printer) -> Outcome {
    let mut interrupt = Interrupt::listen()?;
    let mut fleet = DevFleet::open(layout, Some(plan.clone()))?;
    check_relay_seed(&fleet.plan, relay_seed)?;
    let differs = (
        fleet.plan.clusters,
        fleet.plan.agents,
        fleet.plan.validators,
        fleet.plan.profile,
        fleet.plan.relay.is_some(),
    ) != (
        plan.clusters,
        plan.agents,
        plan.validators,
        plan.profile,
        plan.relay.is_some(),
    );
    if differs {
        printer.note(&format!(
            "the fleet in {} keeps its size, profile and relay",
            fleet.layout.dir.display()
        ));
    }
    let names = fleet.plan.processes();
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

fn plan_of(layout: &Layout) -> Outcome<Plan> {
    create::load(layout)?.ok_or_else(|| fleet::no_fleet(layout))
}

async fn status(layout: Layout, printer: &Printer) -> Outcome {
    let plan = plan_of(&layout)?;
    let processes = process::load_state(&layout)?;
    // A relay that does not run changes no links; that it is down is shown.
    let links = relay::ask(&layout, &plan, &Request::Show).await.unwrap_or_default();
    connect::with(&layout.context(), async |client| {
        show(client, &layout, &plan, &processes, &links, printer).await;
        Ok(())
    })
    .await
}

/// Every rule for scripts, the processes concerned for people.
fn show_links(plan: &Plan, shown: &Shown, printer: &Printer) {
    if printer.is_json() {
        return printer.object(&cut::to_json(shown));
    }
    if shown.links.is_empty() {
        return printer.text("all links pass everything");
    }
    let rows = plan.names().into_iter().map(|name| {
        let links = cut::summary(plan, &name, &shown.links);
        json!({"name": name, "links": links})
    });
    let rows: Vec<Value> = rows.filter(|row| row["links"] != "-").collect();
    printer.rows(&[column("NAME", "name"), column("LINKS", "links")], &rows);
}

async fn show(client: &Client, layout: &Layout, plan: &Plan, processes: &[Started], links: &Shown, printer: &Printer) {
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
        .processes()
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
                _ if name == RELAY => ("relay", None),
                _ => ("-", None),
            };
            let mut row = json!({
                "name": name, "state": if pid.is_some() { "up" } else { "down" }, "pid": pid, "port": plan.port(name),
                "role": role, "height": height, "links": cut::summary(plan, name, &links.links), "log": layout.log(name),
            });
            if name == RELAY {
                (row["port"], row["links"]) = (Value::Null, json!("-"));
                row["relay"] = cut::to_json(links);
            }
            row
        })
        .collect();
    let columns = [
        column("NAME", "name"),
        column("STATE", "state"),
        column("PID", "pid"),
        column("PORT", "port"),
        column("ROLE", "role"),
        column("HEIGHT", "height"),
        column("LINKS", "links"),
        wide("LOG", "log"),
    ];
    printer.rows(&columns, &rows);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fleet_keeps_the_seed_of_its_relay_and_another_one_is_refused() {
        let plan = |seed| {
            let mut plan = Plan::new(1, 3, 4, Profile::Dev).unwrap();
            plan.relay.as_mut().unwrap().seed = seed;
            plan
        };
        assert_eq!(check_relay_seed(&plan(7), Some(7)), Ok(()));
        assert_eq!(check_relay_seed(&plan(7), None), Ok(()));
        for (plan, wanted) in [(plan(7), 8), (plan(0).without_relay(), 0)] {
            let refused = check_relay_seed(&plan, Some(wanted)).unwrap_err();
            assert_eq!(refused.exit, Exit::Invalid, "{refused}");
        }
    }
}
