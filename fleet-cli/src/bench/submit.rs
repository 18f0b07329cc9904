//! `fleet bench submit`: durable submits per second.

use std::{path::Path, sync::Arc};

use common::task::Scope;
use serde_json::{Value, json};

use super::{
    LoadArgs, Report,
    entries::{Signer, TASK_BYTES},
    host::{self, Host, RAISED, READY_DEADLINE},
    load::{closed_loop, rounded},
};
use crate::{
    dev::{Interrupt, plan::Plan},
    exit::Outcome,
    printer::{Printer, column, wide},
};

/// `fleet bench submit`
#[derive(Debug, clap::Args)]
pub struct SubmitArgs {
    #[command(flatten)]
    load: LoadArgs,
}

/// The fleet that `load` asks for.
///
/// # Errors
/// None for the sizes used here.
pub fn plan_of(load: &LoadArgs) -> Outcome<Plan> {
    let (clusters, validators) = if load.full_fleet { (3, 4) } else { (1, 0) };
    let plan = Plan::for_bench(clusters, 3, validators, load.profile)?;
    Ok(Plan {
        agent_toml: RAISED.to_owned(),
        ..plan
    })
}

/// Runs `fleet bench submit`: a fleet of its own for each number of clients.
///
/// # Errors
/// A fleet that does not start, or a fault of this machine.
pub async fn run(args: &SubmitArgs, dir: Option<&Path>, interrupt: &mut Interrupt, printer: &Printer) -> Outcome {
    let columns = [
        column("CLIENTS", "clients"),
        column("SUBMITS/S", "ops_per_s"),
        column("P50 MS", "p50_ms"),
        column("P99 MS", "p99_ms"),
        column("MAX MS", "max_ms"),
        column("SERVER US", "server_cpu_us_per_op"),
        column("CLIENT US", "client_cpu_us_per_op"),
        column("BOUND/S", "bound_per_s"),
        column("SHARE", "share_of_bound"),
        column("ERRORS", "errors"),
        wide("LOAD", "load_1min"),
    ];
    let mut report = Report::new(printer, &columns);
    for clients in args.load.clients.iter().copied() {
        let row = interrupt.or(measure(&args.load, clients, dir)).await?;
        report.add(row);
    }
    report.end();
    printer.text(&format!(
        "tasks of {TASK_BYTES} B, signed inside of the measured time, verified on every member, flushed before the answer"
    ));
    Ok(())
}

async fn measure(load: &LoadArgs, clients: u32, dir: Option<&Path>) -> Outcome<Value> {
    let host = Host::start(plan_of(load)?, dir, READY_DEADLINE).await?;
    let connections = host.connections(clients)?;
    let targets = host::targets(&connections[0], load.target).await?;
    host::warm(&connections, &targets).await?;
    let signer = Signer::open(&connections[0], &host.fleet.layout.operator(), Scope::Cluster)?;
    let primitives = signer.primitives();
    let shared = Arc::new((signer, connections, targets));
    let of_loop = shared.clone();
    let measured = closed_loop(clients, load.secs, &host.pids(), move |client, _| {
        let shared = of_loop.clone();
        async move {
            let (signer, connections, targets) = &*shared;
            let at = client as usize;
            let sent = signer.send(&connections[at % connections.len()], &targets[at % targets.len()]);
            sent.await.map(drop)
        }
    })
    .await?;
    let bound = primitives.bound_per_s();
    let mut row = measured.to_json("submit", clients);
    let more = json!({
        "target": load.target.word(), "profile": load.profile.word(), "agents": host.fleet.plan.clusters * 3,
        "validators": host.fleet.plan.validators, "task_bytes": TASK_BYTES, "signing": "inside",
        "sign_us": rounded(primitives.sign_us), "verify_us": rounded(primitives.verify_us),
        "bound_per_s": bound.round(), "share_of_bound": (measured.ops_per_s() / bound * 100.0).round() / 100.0,
        "connections": shared.1.len(), "raised": RAISED.lines().skip(1).collect::<Vec<_>>(),
    });
    merge(&mut row, more);
    host::close(&shared.1).await;
    host.end().await?;
    Ok(row)
}

/// Adds the fields of `more` to `row`.
pub fn merge(row: &mut Value, more: Value) {
    if let (Value::Object(row), Value::Object(more)) = (row, more) {
        row.extend(more);
    }
}
