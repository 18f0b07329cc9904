//! `fleet bench finality`: from a submit to its place in the global order, and what the validators' part of that is.
//!
//! # Rules
//! * The load is open: submits begin at their times, whether earlier ones have ended or not.
//! * Submit to final: some submits are followed; every agent is asked for each until it says final. It ends with the last agent.
//! * Proposal to final and batch to final are what validators measured of themselves, each on its own clock; the worst
//!   validator's figure is given.

use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};

use common::{
    ids::TaskId,
    task::Scope,
    wire::op::{Consistency, Finality, OpAnswer, OpRequest, Telemetry},
};
use serde_json::{Value, json};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    Report, Target,
    entries::{Signer, TASK_BYTES},
    host::{self, Host, RAISED, READY_DEADLINE},
    load::{Fault, WARM_UP, ms, percentile},
    proc,
};
use crate::{
    client::{Client, Peer},
    dev::{Interrupt, plan::Plan},
    draft::Profile,
    exit::Outcome,
    printer::{Printer, column},
};

/// Submits that are followed, per second.
const FOLLOWED_PER_S: u64 = 10;
/// How often an agent is asked about a followed submit.
const POLL: Duration = Duration::from_millis(2);
/// How long a followed submit may take.
const FINAL_DEADLINE: Duration = Duration::from_secs(30);

/// `fleet bench finality`
#[derive(Debug, clap::Args)]
pub struct FinalityArgs {
    /// Submits per second.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=50_000))]
    rate: u64,
    /// Seconds that are measured, after one second that is not.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=600))]
    secs: u64,
    /// Clusters of three agents; beside four validators.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=3))]
    clusters: u32,
    /// Constants of time.
    #[arg(long, value_enum, default_value_t = Profile::Lan)]
    profile: Profile,
}

/// Runs `fleet bench finality`.
///
/// # Errors
/// A fleet that does not start, or a fault of this machine.
pub async fn run(args: &FinalityArgs, dir: Option<&Path>, interrupt: &mut Interrupt, printer: &Printer) -> Outcome {
    let columns = [
        column("SUBMITS/S", "ops_per_s"),
        column("COMMIT P50 MS", "submit_to_committed_p50_ms"),
        column("PROPOSAL P50", "proposal_to_final_p50_ms"),
        column("P99", "proposal_to_final_p99_ms"),
        column("BATCH P50", "batch_to_final_p50_ms"),
        column("P99", "batch_to_final_p99_ms"),
        column("EVERY AGENT P50", "submit_to_final_p50_ms"),
        column("P99", "submit_to_final_p99_ms"),
        column("ERRORS", "errors"),
    ];
    let mut report = Report::new(printer, &columns);
    let row = interrupt.or(measure(args, dir)).await?;
    report.add(row);
    report.end();
    printer.text(
        "milliseconds; proposal and batch: on the slowest validator; every agent: until the last of them says final",
    );
    Ok(())
}

/// What the clients saw.
#[derive(Default)]
struct Seen {
    committed_us: Vec<u32>,
    final_us: Vec<u32>,
    errors: BTreeMap<Fault, u64>,
}

/// What one submit shares with all others.
struct Load {
    signer: Signer,
    connections: Vec<Arc<Client>>,
    leaders: Vec<Peer>,
}

async fn measure(args: &FinalityArgs, dir: Option<&Path>) -> Outcome<Value> {
    let plan = Plan {
        agent_toml: RAISED.to_owned(),
        ..Plan::for_bench(args.clusters, 3, 4, args.profile)?
    };
    let host = Host::start(plan, dir, READY_DEADLINE).await?;
    let connections = host.connections(8)?;
    let leaders = host::targets(&connections[0], Target::Leader).await?;
    host::warm(&connections, &leaders).await?;
    let agents: Vec<Peer> = connections[0].context.agents(None).into_iter().cloned().collect();
    host::warm(&connections[..1], &agents).await?;
    let load = Arc::new(Load {
        signer: Signer::open(&connections[0], &host.fleet.layout.operator(), Scope::Fleet)?,
        connections,
        leaders,
    });
    let seen = offer(args, &load).await;
    let telemetry = ask_validators(&load.connections[0]).await?;
    let row = row(args, seen, &telemetry);
    host::close(&load.connections).await;
    host.end().await?;
    Ok(row)
}

/// Offers the load, and waits until all that was begun has ended.
async fn offer(args: &FinalityArgs, load: &Arc<Load>) -> Seen {
    let begin = Instant::now();
    let window = begin + WARM_UP;
    let count = args.rate * (args.secs + WARM_UP.as_secs());
    let every = (args.rate / FOLLOWED_PER_S).max(1);
    let mut running = JoinSet::new();
    let mut seen = Seen::default();
    for nth in 0..count {
        let at = begin + Duration::from_micros(nth * 1_000_000 / args.rate);
        sleep_until(at).await;
        running.spawn(submit(load.clone(), nth, at, nth % every == 0));
        while let Some(Ok(ended)) = running.try_join_next() {
            note(&mut seen, ended, window);
        }
    }
    while let Some(Ok(ended)) = running.join_next().await {
        note(&mut seen, ended, window);
    }
    seen
}

/// When one submit was to begin, how long it took to be committed, and to be final on every agent if it was followed.
type Ended = (Instant, Result<(u32, Option<u32>), Fault>);

fn note(seen: &mut Seen, (begun, outcome): Ended, window: Instant) {
    match outcome {
        Ok((committed_us, final_us)) if begun >= window => {
            seen.committed_us.push(committed_us);
            seen.final_us.extend(final_us);
        }
        Ok(_) => {}
        Err(fault) => *seen.errors.entry(fault).or_default() += 1,
    }
}

async fn submit(load: Arc<Load>, nth: u64, begun: Instant, is_followed: bool) -> Ended {
    let client = &load.connections[nth as usize % load.connections.len()];
    let leader = &load.leaders[nth as usize % load.leaders.len()];
    let us = || u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX);
    let task = match load.signer.send(client, leader).await {
        Ok(task) => task,
        Err(fault) => return (begun, Err(fault)),
    };
    let committed_us = us();
    if !is_followed {
        return (begun, Ok((committed_us, None)));
    }
    let client = &load.connections[0];
    let agents = client.context.agents(None);
    let all = futures::future::join_all(agents.into_iter().map(|agent| wait_final(client, agent, task))).await;
    if all.into_iter().all(|is_final| is_final) {
        (begun, Ok((committed_us, Some(us()))))
    } else {
        (begun, Err("not final in time".to_owned()))
    }
}

async fn wait_final(client: &Client, agent: &Peer, task: TaskId) -> bool {
    let end = Instant::now() + FINAL_DEADLINE;
    let request = OpRequest::Task {
        task,
        consistency: Consistency::Final,
        staleness_ms_max: None,
    };
    while Instant::now() < end {
        let answer = client.ask(agent, &request, Duration::from_secs(5)).await;
        if let Ok(OpAnswer::Task { task: Some(view), .. }) = answer
            && matches!(view.finality, Finality::Final { .. })
        {
            return true;
        }
        sleep(POLL).await;
    }
    false
}

async fn ask_validators(client: &Client) -> Outcome<Vec<Telemetry>> {
    let mut found = Vec::new();
    for peer in client.context.validators() {
        found.push(host::telemetry(client, peer).await?);
    }
    Ok(found)
}

fn row(args: &FinalityArgs, mut seen: Seen, telemetry: &[Telemetry]) -> Value {
    seen.committed_us.sort_unstable();
    seen.final_us.sort_unstable();
    let worst = |what: &str, figure: fn(&common::wire::op::Times) -> u32| {
        let times = telemetry
            .iter()
            .flat_map(|t| t.times.iter())
            .filter(|t| t.what.as_str() == what && t.count > 0);
        ms(times.map(figure).max().unwrap_or(0))
    };
    let count = |what: &str| -> u32 {
        let times = telemetry
            .iter()
            .flat_map(|t| t.times.iter())
            .filter(|t| t.what.as_str() == what);
        times.map(|t| t.count).sum()
    };
    json!({
        "op": "finality", "rate": args.rate, "secs": args.secs, "clusters": args.clusters, "agents": args.clusters * 3,
        "validators": 4, "profile": args.profile.word(), "task_bytes": TASK_BYTES,
        "ops": seen.committed_us.len(), "ops_per_s": (seen.committed_us.len() as f64 / args.secs as f64).round(),
        "submit_to_committed_p50_ms": ms(percentile(&seen.committed_us, 50)),
        "submit_to_committed_p99_ms": ms(percentile(&seen.committed_us, 99)),
        "proposal_to_final_p50_ms": worst("proposal_to_final", |t| t.p50_us),
        "proposal_to_final_p99_ms": worst("proposal_to_final", |t| t.p99_us),
        "proposals": count("proposal_to_final"),
        "batch_to_final_p50_ms": worst("batch_to_final", |t| t.p50_us),
        "batch_to_final_p99_ms": worst("batch_to_final", |t| t.p99_us),
        "batches": count("batch_to_final"),
        "submit_to_final_p50_ms": ms(percentile(&seen.final_us, 50)),
        "submit_to_final_p99_ms": ms(percentile(&seen.final_us, 99)),
        "followed": seen.final_us.len(), "errors": seen.errors, "load_1min": proc::load_1min(),
    })
}
