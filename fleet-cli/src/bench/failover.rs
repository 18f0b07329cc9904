//! `fleet bench failover`: the leader is killed, and the next submit that is acknowledged ends the outage.
//!
//! # Rules
//! * Time begins before the kill and ends with the answer: nothing of the outage is left out.
//! * Each survivor is asked by a client of its own, who begins anew after a refusal.
//! * Before the next try the killed one is back and has caught up.

use std::{path::Path, time::Duration};

use common::{ids::ClusterId, task::Scope};
use futures::{StreamExt, stream::FuturesUnordered};
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::{
    Report,
    entries::{Signer, enter},
    host::{self, Host, RAISED, READY_DEADLINE},
    load::{ms, percentile},
    proc,
};
use crate::{
    client::{Client, Peer},
    dev::{Interrupt, plan::Plan},
    draft::Profile,
    exit::{Exit, Failure, Outcome},
    printer::{Printer, column},
};

/// Longest outage that is waited for.
const OUTAGE_MAX: Duration = Duration::from_secs(30);
/// Between a fleet that is whole and the next kill.
const SETTLE: Duration = Duration::from_millis(500);
/// Pause of a client after a refusal.
const AFTER_REFUSAL: Duration = Duration::from_millis(5);

/// `fleet bench failover`
#[derive(Debug, clap::Args)]
pub struct FailoverArgs {
    /// Kills.
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u32).range(1..=100))]
    tries: u32,
    /// Constants of time.
    #[arg(long, value_enum, default_value_t = Profile::Lan)]
    profile: Profile,
}

/// Runs `fleet bench failover`.
///
/// # Errors
/// A fleet that does not start, or that takes nothing any more.
pub async fn run(args: &FailoverArgs, dir: Option<&Path>, interrupt: &mut Interrupt, printer: &Printer) -> Outcome {
    let columns = [
        column("TRIES", "tries"),
        column("MEDIAN MS", "median_ms"),
        column("MIN MS", "min_ms"),
        column("MAX MS", "max_ms"),
        column("EACH", "outages_ms"),
    ];
    let mut report = Report::new(printer, &columns);
    let mut outages_us = interrupt.or(measure(args, dir, printer)).await?;
    let each: Vec<f64> = outages_us.iter().map(|us| ms(*us)).collect();
    outages_us.sort_unstable();
    report.add(json!({
        "op": "failover", "profile": args.profile.word(), "tries": args.tries,
        "median_ms": ms(percentile(&outages_us, 50)), "min_ms": ms(percentile(&outages_us, 0)),
        "max_ms": ms(percentile(&outages_us, 100)), "outages_ms": each, "load_1min": proc::load_1min(),
    }));
    report.end();
    Ok(())
}

async fn measure(args: &FailoverArgs, dir: Option<&Path>, printer: &Printer) -> Outcome<Vec<u32>> {
    let plan = Plan {
        agent_toml: RAISED.to_owned(),
        ..Plan::for_bench(1, 3, 0, args.profile)?
    };
    let mut host = Host::start(plan, dir, READY_DEADLINE).await?;
    let connections = host.connections(1)?;
    let client = &connections[0];
    let signer = Signer::open(client, &host.fleet.layout.operator(), Scope::Cluster)?;
    let names = host.fleet.plan.names();
    let mut outages_us = Vec::new();
    for nth in 1..=args.tries {
        let leader = host::leader(client, ClusterId(0)).await?;
        let agents = client.context.agents(None);
        let survivors: Vec<&Peer> = agents.into_iter().filter(|peer| peer.id != leader.id).collect();
        for peer in &survivors {
            let warm = signer.send(client, peer).await;
            warm.map_err(|fault| Failure::new(Exit::Failed, format!("{}: {fault}", peer.label)))?;
        }
        sleep(SETTLE).await;
        let begin = Instant::now();
        host.fleet.kill_now(&leader.label);
        let outage = first_submit(client, &signer, &survivors).await?;
        outages_us.push(outage.saturating_duration_since(begin).as_micros() as u32);
        printer.note(&format!("{nth}: {} killed, {:?}", leader.label, outage - begin));
        host.fleet.kill(std::slice::from_ref(&leader.label)).await?;
        host.fleet.start(std::slice::from_ref(&leader.label))?;
        host.fleet.wait_ready(client, &names, READY_DEADLINE).await?;
    }
    host::close(&connections).await;
    host.end().await?;
    Ok(outages_us)
}

/// When the first submit through one of `survivors` was acknowledged.
async fn first_submit(client: &Client, signer: &Signer, survivors: &[&Peer]) -> Outcome<Instant> {
    let end = Instant::now() + OUTAGE_MAX;
    let ask = |peer| async move {
        let entry = signer.submit(ClusterId(0));
        while Instant::now() < end {
            // The same bytes again: whatever became of them, they count once.
            if enter(client, peer, entry.clone(), OUTAGE_MAX).await.is_ok() {
                return Some(Instant::now());
            }
            sleep(AFTER_REFUSAL).await;
        }
        None
    };
    let mut asked: FuturesUnordered<_> = survivors.iter().copied().map(ask).collect();
    while let Some(answered) = asked.next().await {
        if let Some(at) = answered {
            return Ok(at);
        }
    }
    Err(Failure::new(
        Exit::NoQuorum,
        format!("no submit was acknowledged {} s after the kill", OUTAGE_MAX.as_secs()),
    ))
}
