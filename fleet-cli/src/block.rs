//! `fleet block`: the finalized chain.

use common::{
    block::FinalizedBlock,
    ids::Height,
    wire::op::{OpAnswer, OpRequest},
};
use serde_json::{Value, json};

use crate::{
    client::Client,
    clock::format_time,
    exit::{Exit, Failure, Outcome},
    printer::{Printer, column, wide},
};

/// Blocks that one request may ask for.
const BLOCKS_PER_REQUEST_MAX: u16 = 64;

/// `fleet block`
#[derive(Debug, clap::Subcommand)]
pub enum BlockCommand {
    /// Lists finalized blocks.
    List {
        /// First height; by default so that the newest are shown.
        #[arg(long)]
        from: Option<u64>,
        /// At most this many, 1 to 64.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=64))]
        limit: u16,
    },
    /// Shows one finalized block.
    Get {
        /// Its height.
        height: u64,
    },
}

/// Runs `fleet block`.
///
/// # Errors
/// With the exit code of the fate.
pub async fn run(client: &Client, command: BlockCommand, printer: &Printer) -> Outcome {
    match command {
        BlockCommand::List { from, limit } => {
            let from = match from {
                Some(from) => from,
                None => (newest(client).await? + 1).saturating_sub(limit.into()).max(1),
            };
            let blocks = fetch(client, from, limit).await?;
            let rows: Vec<Value> = blocks.iter().map(|block| row(client, block)).collect();
            let columns = [
                column("HEIGHT", "height"),
                column("VIEW", "view"),
                column("TIME", "time"),
                column("BATCHES", "batches"),
                column("SIGNERS", "signers"),
                column("DIGEST", "short"),
                wide("STATE ROOT", "state_root"),
                wide("PARENT", "parent"),
            ];
            printer.rows(&columns, &rows);
            Ok(())
        }
        BlockCommand::Get { height } => {
            let blocks = fetch(client, height, 1).await?;
            let block = blocks
                .first()
                .filter(|found| found.block.header.height == Height(height))
                .ok_or_else(|| {
                    Failure::new(
                        Exit::Invalid,
                        format!("no validator that answers has a finalized block at height {height}"),
                    )
                })?;
            let mut object = row(client, block);
            let refs = block.block.refs.iter().map(|r| {
                json!({
                    "cluster": client.context.cluster_label(r.cluster), "founding": r.founding.0, "seq": r.seq.0,
                    "digest": r.digest.to_hex(),
                })
            });
            object["refs"] = refs.collect();
            printer.object(&object);
            Ok(())
        }
    }
}

async fn newest(client: &Client) -> Outcome<u64> {
    let statuses = client.validator_status(&client.context.validators()).await;
    let heights = statuses.iter().flatten().map(|status| status.height.0);
    heights
        .max()
        .ok_or_else(|| Failure::new(Exit::NoConnection, "no validator answers"))
}

async fn fetch(client: &Client, from: u64, limit: u16) -> Outcome<Vec<FinalizedBlock>> {
    let request = OpRequest::Blocks {
        from: Height(from),
        limit: limit.min(BLOCKS_PER_REQUEST_MAX),
    };
    client
        .ask_until(&client.context.validators(), &request, |_, answer, _| match answer {
            OpAnswer::Blocks(blocks) => Some(blocks.into_inner()),
            _ => None,
        })
        .await
}

fn row(client: &Client, finalized: &FinalizedBlock) -> Value {
    let header = &finalized.block.header;
    let batches: Vec<String> = finalized
        .block
        .refs
        .iter()
        .map(|r| format!("{}#{}", client.context.cluster_label(r.cluster), r.seq))
        .collect();
    json!({
        "height": header.height.0,
        "view": header.view.0,
        "epoch": header.epoch.0,
        "time": format_time(header.time),
        "batches": batches,
        "digest": header.digest().to_hex(),
        "short": &header.digest().to_hex()[..12],
        "parent": header.parent.to_hex(),
        "refs_root": header.refs_root.to_hex(),
        "state_root": header.state_root.to_hex(),
        "outcome_root": header.outcome_root.to_hex(),
        "signers": finalized.proof.finalization.signers.signatures.len(),
        "headers_above": finalized.proof.above.len(),
    })
}
