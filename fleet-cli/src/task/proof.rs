//! Prove and verify.

use std::path::{Path, PathBuf};

use common::{
    genesis::Genesis,
    ids::ClusterId,
    proof::{self, ProofReport, ProvenEvent},
    wire::op::{OpAnswer, OpRequest},
};
use serde_json::{Value, json};

use crate::{
    ca::load_genesis,
    client::Client,
    clock::format_time,
    exit::{Exit, Failure, Outcome},
    files,
    printer::{Printer, column},
    view::{text_or_hex, verdict_words},
};

/// Longest proof file.
const PROOF_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// `fleet task prove`
#[derive(Debug, clap::Args)]
pub struct ProveArgs {
    /// Id of the task, or its beginning.
    id: String,
    /// The file to write.
    #[arg(short, long)]
    file: PathBuf,
}

/// `fleet task verify`
#[derive(Debug, clap::Args)]
pub struct VerifyArgs {
    /// The proof file.
    file: PathBuf,
    /// The fleet's genesis file, from a source that is trusted.
    #[arg(long)]
    genesis: PathBuf,
}

pub(super) async fn prove(client: &Client, args: &ProveArgs, printer: &Printer) -> Outcome {
    let task = client.resolve(&args.id).await?;
    let validators = client.context.validators();
    let bytes = client
        .ask_until(&validators, &OpRequest::Prove { task }, |_, answer, _| match answer {
            OpAnswer::Proof(bytes) => Some(bytes.into_inner()),
            _ => None,
        })
        .await
        .map_err(|e| e.todo("wait until the task is final, and ask again"))?;
    // What a validator says is checked before it is written: it may be the one that lies.
    let report = check(&bytes, &client.context.genesis)?;
    files::replace(&args.file, &bytes)?;
    let mut object = report;
    object["file"] = json!(args.file);
    object["bytes"] = json!(bytes.len());
    print(&object, printer);
    Ok(())
}

fn print(report: &Value, printer: &Printer) {
    if printer.is_json() {
        printer.object(report);
        return;
    }
    let mut head = report.clone();
    let events = head
        .as_object_mut()
        .and_then(|head| head.remove("events"))
        .unwrap_or_default();
    printer.object(&head);
    let columns = [
        column("EVENT", "what"),
        column("HEIGHT", "height"),
        column("TIME", "time"),
        column("BY", "author"),
        column("CLUSTER", "cluster"),
        column("DECISION", "decision"),
        column("STATE", "state"),
    ];
    printer.rows(&columns, events.as_array().map_or(&[], Vec::as_slice));
}

pub(super) fn verify(args: &VerifyArgs, printer: &Printer) -> Outcome {
    let report = verify_file(&args.file, &args.genesis)?;
    print(&report, printer);
    Ok(())
}

/// Checks a proof file against a genesis file.
///
/// # Errors
/// [`Exit::VerificationFailed`] says what does not hold.
fn verify_file(file: &Path, genesis: &Path) -> Outcome<Value> {
    let genesis = load_genesis(genesis)?;
    check(&files::read_bounded(file, PROOF_BYTES_MAX)?, &genesis)
}

fn check(bytes: &[u8], genesis: &Genesis) -> Outcome<Value> {
    let report = proof::verify(bytes, genesis).map_err(|e| {
        Failure::new(Exit::VerificationFailed, format!("the proof does not hold: {e}"))
            .means("it proves nothing about any task of this fleet")
    })?;
    Ok(report_json(&report, genesis))
}

/// What a proof proves, in JSON.
fn report_json(report: &ProofReport, genesis: &Genesis) -> Value {
    let cluster = |id: ClusterId| genesis.clusters.get(id.0 as usize).map(|c| c.label.to_string());
    let event = |event: &ProvenEvent| {
        let entry = event.entry.as_ref();
        json!({
            "what": event.word(),
            "height": event.height.0,
            "time": format_time(event.time),
            "block": event.block.to_hex(),
            "assigned_to": event.assigned_to().and_then(cluster),
            "entry": entry.map(|e| e.id.to_hex()),
            "author": entry.map(|e| e.author_label.to_string()),
            "cluster": entry.and_then(|e| cluster(e.cluster)),
            "index": entry.map(|e| e.index.0),
            "batch": entry.map(|e| e.seq.0),
            "decision": event.outcome.map_or("pending".into(), |(verdict, _)| verdict_words(&verdict)),
            "state": event.outcome.map(|(_, state)| state.word()),
        })
    };
    json!({
        "verified": true,
        "task": report.task_id.to_hex(),
        "key": text_or_hex(&report.task.key),
        "kind": report.task.kind,
        "author": report.author_label.as_str(),
        "scope": report.scope,
        "through": cluster(report.through),
        "state": report.state.map_or("pending", |state| state.word()),
        "chain_id": genesis.chain_id().to_hex(),
        "events": report.events.iter().map(event).collect::<Vec<_>>(),
    })
}
