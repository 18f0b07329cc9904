//! `fleet bench read`: linearizable reads per second.

use std::{path::Path, sync::Arc, time::Duration};

use common::{
    ids::TaskId,
    task::Scope,
    wire::op::{Consistency, OpAnswer, OpRequest},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use super::{
    LoadArgs, Report,
    entries::{Signer, TASK_BYTES, fault_of},
    host::{self, Host, READY_DEADLINE},
    load::{Fault, Measured, closed_loop},
    submit::{merge, plan_of},
};
use crate::{
    client::{Client, Peer},
    dev::Interrupt,
    exit::{Exit, Failure, Outcome},
    printer::{Printer, column, wide},
};

/// Tasks that are there to be read.
const TASKS: usize = 10_000;
/// How long one read may take.
const DEADLINE: Duration = Duration::from_secs(10);

/// `fleet bench read`
#[derive(Debug, clap::Args)]
pub struct ReadArgs {
    #[command(flatten)]
    load: LoadArgs,
}

/// Runs `fleet bench read`: one fleet for all numbers of clients.
///
/// # Errors
/// A fleet that does not start, or a fault of this machine.
pub async fn run(args: &ReadArgs, dir: Option<&Path>, interrupt: &mut Interrupt, printer: &Printer) -> Outcome {
    let columns = [
        column("CLIENTS", "clients"),
        column("READS/S", "ops_per_s"),
        column("P50 MS", "p50_ms"),
        column("P99 MS", "p99_ms"),
        column("MAX MS", "max_ms"),
        column("SERVER US", "server_cpu_us_per_op"),
        column("CLIENT US", "client_cpu_us_per_op"),
        column("ERRORS", "errors"),
        wide("LOAD", "load_1min"),
    ];
    let mut report = Report::new(printer, &columns);
    let measured = interrupt.or(measure(&args.load, dir, &mut report)).await;
    measured?;
    report.end();
    Ok(())
}

async fn measure(load: &LoadArgs, dir: Option<&Path>, report: &mut Report<'_>) -> Outcome {
    let host = Host::start(plan_of(load)?, dir, READY_DEADLINE).await?;
    let most = load.clients.iter().copied().max().unwrap_or(1);
    let connections = host.connections(most)?;
    let targets = host::targets(&connections[0], load.target).await?;
    host::warm(&connections, &targets).await?;
    let signer = Signer::open(&connections[0], &host.fleet.layout.operator(), Scope::Cluster)?;
    let tasks = preload(&signer, &connections[0], &targets).await?;
    let shared = Arc::new((connections, targets, tasks));
    let pids = host.pids();
    for clients in load.clients.iter().copied() {
        let of_loop = shared.clone();
        let measured = closed_loop(clients, load.secs, &pids, move |client, nth| {
            let shared = of_loop.clone();
            async move {
                let (connections, targets, tasks) = &*shared;
                let at = client as usize;
                let target = at % targets.len();
                let tasks = &tasks[target];
                let task = tasks[(at + nth as usize * 7_919) % tasks.len()];
                read(&connections[at % connections.len()], &targets[target], task).await
            }
        });
        report.add(row(load, clients, &measured.await?, shared.0.len()));
    }
    host::close(&shared.0).await;
    host.end().await
}

fn row(load: &LoadArgs, clients: u32, measured: &Measured, connections: usize) -> Value {
    let mut row = measured.to_json("read", clients);
    let more = json!({
        "target": load.target.word(), "profile": load.profile.word(), "consistency": "linearizable",
        "tasks": TASKS, "task_bytes": TASK_BYTES, "connections": connections.min(clients as usize),
    });
    merge(&mut row, more);
    row
}

/// Submits [`TASKS`] tasks; returns those of each target.
async fn preload(signer: &Signer, client: &Client, targets: &[Peer]) -> Outcome<Vec<Vec<TaskId>>> {
    let sent = (0..TASKS).map(|nth| async move {
        let target = nth % targets.len();
        (target, signer.send(client, &targets[target]).await)
    });
    let mut sent = stream::iter(sent).buffer_unordered(16);
    let mut tasks = vec![Vec::new(); targets.len()];
    while let Some((target, outcome)) = sent.next().await {
        let task =
            outcome.map_err(|fault| Failure::new(Exit::Failed, format!("a task to read was not accepted: {fault}")))?;
        tasks[target].push(task);
    }
    Ok(tasks)
}

async fn read(client: &Client, peer: &Peer, task: TaskId) -> Result<(), Fault> {
    let request = OpRequest::Task {
        task,
        consistency: Consistency::Linearizable,
        staleness_ms_max: None,
    };
    match client.ask(peer, &request, DEADLINE).await {
        Ok(OpAnswer::Task { task: Some(view), .. }) if view.id == task => Ok(()),
        Ok(OpAnswer::Task { .. }) => Err("not found".to_owned()),
        Ok(OpAnswer::NoQuorum { .. }) => Err("no quorum".to_owned()),
        Ok(_) => Err("malformed".to_owned()),
        Err(error) => Err(fault_of(&error)),
    }
}
