//! `fleet validator`: the validators of the global tier.

use common::wire::op::ValidatorStatus;
use serde_json::{Value, json};
use transport::local::fixed::format_fixed;

use crate::{
    client::{AskError, Client, Peer},
    clock::format_time,
    exit::Outcome,
    printer::{Printer, column, wide},
    view,
};

/// `fleet validator`
#[derive(Debug, clap::Subcommand)]
pub enum ValidatorCommand {
    /// The set of the genesis file: weight, region.
    List,
    /// One line per validator: height, view, clock.
    Status,
}

/// Runs `fleet validator`.
///
/// # Errors
/// With the exit code of the fate.
pub async fn run(client: &Client, command: ValidatorCommand, printer: &Printer) -> Outcome {
    match command {
        ValidatorCommand::List => {
            printer.rows(
                &[
                    column("VALIDATOR", "validator"),
                    column("WEIGHT", "weight"),
                    column("REGION", "region"),
                    wide("CONSENSUS KEY", "consensus_key"),
                ],
                &list(client),
            );
            Ok(())
        }
        ValidatorCommand::Status => {
            let peers = client.context.validators();
            let statuses = client.validator_status(&peers).await;
            let rows: Vec<Value> = peers
                .iter()
                .zip(statuses)
                .map(|(peer, status)| row(client, peer, status))
                .collect();
            let columns = [
                column("VALIDATOR", "validator"),
                column("STATE", "state"),
                column("HEIGHT", "height"),
                column("VIEW", "view"),
                column("EXECUTED", "executed"),
                column("PEERS", "up"),
                column("PENDING", "pending_batches"),
                column("OFFSET", "offset"),
                wide("BLOCK TIME", "block_time"),
                wide("STATE DIGEST", "state_digest"),
                wide("PROBLEM", "problem"),
            ];
            printer.rows(&columns, &rows);
            Ok(())
        }
    }
}

fn list(client: &Client) -> Vec<Value> {
    let genesis = &client.context.genesis;
    genesis
        .validators
        .iter()
        .map(|validator| {
            let device = genesis.devices.get(validator.device.0 as usize);
            json!({
                "validator": device.map(|device| device.label.as_str()),
                "weight": validator.weight,
                "region": validator.region.as_str(),
                "consensus_key": common::ids::to_hex(&validator.consensus_key),
            })
        })
        .collect()
}

fn row(client: &Client, peer: &Peer, status: Result<ValidatorStatus, AskError>) -> Value {
    match status {
        Ok(status) => json!({
            "validator": peer.label,
            "state": if status.is_listening { "listening" } else { "up" },
            "height": status.height.0,
            "view": status.view.0,
            "epoch": status.epoch.0,
            "executed": status.executed.0,
            "block": status.block.to_hex(),
            "block_time": format_time(status.block_time),
            "state_digest": status.state_digest.to_hex(),
            "pending_batches": status.pending_batches,
            "up": format!("{}/{}", status.validators_up, status.validators),
            "clock_offset_us": status.clock_offset_us,
            "offset": format!("{} s", format_fixed(status.clock_offset_us / 1_000, 3)),
            "tasks": view::counts(&status.tasks),
            "uptime_s": status.uptime_us / 1_000_000,
        }),
        Err(error) => json!({"validator": peer.label, "state": "down", "problem": client.failure_of(peer, error).what}),
    }
}
