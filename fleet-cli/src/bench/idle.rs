//! `fleet bench idle`: what a cluster costs that has nothing to do: processor, memory, datagrams.
//!
//! # Rules
//! * Nothing is asked while it is measured: all is read before and after, from `/proc` and from what each agent counted.
//! * Bytes on the wire are the datagrams' payload and 28 bytes of headers each (IPv4 and UDP). What agents send to their cluster
//!   and to validators stands apart; what they send to this command is left out.

use std::{path::Path, time::Duration};

use common::wire::{frame::Protocol, op::Telemetry};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{
    Report,
    host::{self, Host, READY_DEADLINE},
    load::rounded,
    proc,
};
use crate::{
    client::Client,
    dev::{Interrupt, plan::Plan},
    draft::Profile,
    exit::Outcome,
    printer::{Printer, column},
};

/// Headers of one datagram: 20 B of IPv4 and 8 B of UDP.
const HEADERS_BYTES: u64 = 28;
/// Between a fleet that is ready and the measurement: what a start begets has ended.
const SETTLE: Duration = Duration::from_secs(10);

/// `fleet bench idle`
#[derive(Debug, clap::Args)]
pub struct IdleArgs {
    /// Seconds that are measured, after ten that are not.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    secs: u64,
    /// Agents of the one cluster.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=9))]
    agents: u32,
    /// Validators; 0 for none.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(0..=16))]
    validators: u32,
    /// Constants of time.
    #[arg(long, value_enum, default_value_t = Profile::Mesh)]
    profile: Profile,
}

/// Runs `fleet bench idle`.
///
/// # Errors
/// A fleet that does not start, or a fault of this machine.
pub async fn run(args: &IdleArgs, dir: Option<&Path>, interrupt: &mut Interrupt, printer: &Printer) -> Outcome {
    let columns = [
        column("PROCESS", "process"),
        column("ROLE", "role"),
        column("CPU %", "cpu_percent"),
        column("RSS MIB", "resident_mib"),
        column("CLUSTER B/S", "cluster_bytes_per_s"),
        column("DATAGRAMS/S", "cluster_datagrams_per_s"),
        column("VALIDATOR B/S", "feed_bytes_per_s"),
        column("BFT B/S", "bft_bytes_per_s"),
    ];
    let mut report = Report::new(printer, &columns);
    let rows = interrupt.or(measure(args, dir)).await?;
    rows.into_iter().for_each(|row| report.add(row));
    report.end();
    Ok(())
}

/// One process at one moment.
struct Moment {
    at: Instant,
    cpu_us: u64,
    telemetry: Telemetry,
}

async fn moments(client: &Client, pids: &[(String, i32)]) -> Outcome<Vec<Moment>> {
    let mut moments = Vec::new();
    for (name, pid) in pids {
        let telemetry = host::telemetry(client, client.context.peer(name)?).await?;
        moments.push(Moment {
            at: Instant::now(),
            cpu_us: proc::cpu_us(*pid),
            telemetry,
        });
    }
    Ok(moments)
}

async fn measure(args: &IdleArgs, dir: Option<&Path>) -> Outcome<Vec<Value>> {
    let plan = Plan::for_bench(1, args.agents, args.validators, args.profile)?;
    let host = Host::start(plan, dir, 2 * READY_DEADLINE).await?;
    let connections = host.connections(1)?;
    let client = &connections[0];
    let pids = host.fleet.pids();
    sleep(SETTLE).await;
    let before = moments(client, &pids).await?;
    sleep(Duration::from_secs(args.secs)).await;
    let after = moments(client, &pids).await?;
    let leader = host::leader(client, common::ids::ClusterId(0)).await?;
    let mut rows = Vec::new();
    for (((name, pid), before), after) in pids.iter().zip(&before).zip(&after) {
        let role = match client.context.peer(name)?.cluster {
            None => "validator",
            Some(_) if *name == leader.label => "leader",
            Some(_) => "follower",
        };
        let secs = (after.at - before.at).as_secs_f64();
        let cluster = sent(before, after, &[Protocol::Raft, Protocol::Cluster]);
        let per_s = |(datagrams, bytes): (u64, u64)| rounded((bytes + HEADERS_BYTES * datagrams) as f64 / secs);
        rows.push(json!({
            "op": "idle", "process": name, "role": role, "profile": args.profile.word(), "secs": args.secs,
            "agents": args.agents, "validators": args.validators,
            "cpu_percent": ((after.cpu_us - before.cpu_us) as f64 / secs / 100.0).round() / 100.0,
            "resident_mib": rounded(proc::resident_kib(*pid) as f64 / 1024.0),
            "cluster_bytes_per_s": per_s(cluster), "cluster_datagrams_per_s": rounded(cluster.0 as f64 / secs),
            "feed_bytes_per_s": per_s(sent(before, after, &[Protocol::Feed])),
            "bft_bytes_per_s": per_s(sent(before, after, &[Protocol::Bft])),
            "load_1min": proc::load_1min(),
        }));
    }
    host::close(&connections).await;
    host.end().await?;
    Ok(rows)
}

/// Datagrams and bytes sent between two moments for some protocols.
fn sent(before: &Moment, after: &Moment, protocols: &[Protocol]) -> (u64, u64) {
    let total = |moment: &Moment| {
        let of = moment.telemetry.sent.iter();
        let wanted = of.filter(|(name, _)| {
            protocols
                .iter()
                .any(|protocol| name.as_str().as_bytes() == protocol.alpn())
        });
        wanted.fold((0, 0), |sum, (_, sent)| (sum.0 + sent.datagrams, sum.1 + sent.bytes))
    };
    let (before, after) = (total(before), total(after));
    (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1))
}
