//! A validator that misleads those who follow it, and is honest upward.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    codec::{decode, encode},
    wire::{
        feed::{Follow, Followed},
        frame::{FrameKind, Refusal},
    },
};
use futures::FutureExt;
use transport::ports::{BoxFuture, Peer, Service};

use super::ground::Ground;

/// What it does to those who ask it for blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Batches come under their own headers, with a row less.
    RowDropped,
    /// The same, of those who ask for them by digest.
    RowDroppedByDigest,
    /// One block, so late that it just counts as an answer.
    Drips,
    /// None, but what it knows comes a second later.
    IsSlow,
    /// Batches by digest are never answered.
    KeepsBatches,
}

/// See the module. Clones are the same validator.
#[derive(Clone)]
pub struct Liar {
    ground: Ground,
    lie: Lie,
    asked: Arc<AtomicUsize>,
}

impl Liar {
    pub fn new(ground: Ground, lie: Lie) -> Self {
        Self {
            ground,
            lie,
            asked: Arc::default(),
        }
    }

    /// How often it was asked for blocks.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    async fn follow(&self, question: Follow) -> Followed {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let late = Duration::from_millis(u64::from(question.wait_ms) + 1_000);
        let mut followed = self.ground.follow(question).await;
        let mut blocks = std::mem::take(&mut followed.blocks).into_inner();
        match self.lie {
            Lie::RowDropped => {
                let refs = blocks.iter().flat_map(|block| block.block.refs.iter());
                let batches: Vec<_> = refs
                    .filter(|named| named.cluster != question.cluster)
                    .map(|named| with_row_dropped(self.ground.batch(&named.digest)))
                    .collect();
                followed.batches = batches.try_into().unwrap();
            }
            Lie::Drips => {
                tokio::time::sleep(late).await;
                blocks.truncate(1);
            }
            Lie::IsSlow => tokio::time::sleep(Duration::from_secs(1)).await,
            Lie::RowDroppedByDigest | Lie::KeepsBatches => followed.batches = Vec::new().try_into().unwrap(),
        }
        followed.blocks = blocks.try_into().unwrap();
        followed
    }
}

fn with_row_dropped(mut batch: CertifiedBatch) -> CertifiedBatch {
    let mut rows = batch.entries.into_inner();
    rows.pop();
    batch.entries = rows.try_into().unwrap();
    batch
}

impl Service for Liar {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        let this = self.clone();
        async move {
            match (kind, this.lie) {
                (FrameKind::Follow, _) => Ok(encode(&this.follow(decode(&body).unwrap()).await).into()),
                (FrameKind::FeedBatch, Lie::KeepsBatches) => std::future::pending().await,
                (FrameKind::FeedBatch, Lie::RowDroppedByDigest) => {
                    let honest = this.ground.handle(peer, kind, body).await?;
                    Ok(encode(&with_row_dropped(decode(&honest).unwrap())).into())
                }
                _ => this.ground.handle(peer, kind, body).await,
            }
        }
        .boxed()
    }
}
