//! Asks other validators for blocks, batches and finalized blocks, one peer after the other.
//!
//! # Rules
//! * Upon a wanted digest: those who likely hold it first, then all others, each with a deadline,
//!   until one delivers what the digest names. A digest that is being fetched is not fetched twice.
//! * What arrives is checked before anybody sees it: digest, signatures, certificates.
//! * Upon failure: nothing. The core asks again.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    batch::CertifiedBatch,
    block::{Block, FinalizedBlock},
    codec::{Wire, decode, encode},
    ids::{ChainId, Digest, Height, NodeIdx},
    validator_set::ValidatorSet,
    wire::{
        bft::{SyncAnswer, SyncRequest},
        feed::FetchByDigest,
        frame::FrameKind,
    },
};
use global_core::{Checked, Verifier};
use tokio::sync::Semaphore;
use transport::ports::Transport;

use super::Peers;
use crate::intake::{Intake, Origin};

/// How long one peer has to deliver.
const FETCH_DEADLINE: Duration = Duration::from_secs(2);
/// Fetches under way.
const FETCHES_MAX: usize = 16;

/// The client side of block and batch exchange; clones share it.
#[derive(Clone)]
pub struct Fetcher {
    peers: Peers,
    transport: Arc<dyn Transport>,
    chain: ChainId,
    verifier: Arc<Verifier>,
    under_way: Arc<Mutex<BTreeSet<Digest>>>,
    slots: Arc<Semaphore>,
}

/// A digest that is being fetched; forgotten when dropped.
struct UnderWay {
    fetcher: Fetcher,
    digest: Digest,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut under_way = self.fetcher.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.remove(&self.digest);
    }
}

impl Fetcher {
    /// Fetches from `peers`.
    #[must_use]
    pub fn new(peers: Peers, transport: Arc<dyn Transport>, chain: ChainId, set: ValidatorSet) -> Self {
        Self {
            peers,
            transport,
            chain,
            verifier: Arc::new(Verifier::new(chain, set)),
            under_way: Arc::default(),
            slots: Arc::new(Semaphore::new(FETCHES_MAX)),
        }
    }

    fn begin(&self, digest: Digest) -> Option<UnderWay> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        under_way.insert(digest).then(|| UnderWay {
            fetcher: self.clone(),
            digest,
        })
    }

    /// The likely ones first, then the others in order of their numbers.
    fn candidates(&self, likely: &[NodeIdx]) -> Vec<NodeIdx> {
        let mut candidates = likely.to_vec();
        candidates.extend(self.peers.iter().map(|link| link.idx));
        let mut seen = BTreeSet::new();
        candidates.retain(|idx| seen.insert(*idx));
        candidates
    }

    async fn ask(&self, idx: NodeIdx, kind: FrameKind, body: Bytes) -> Option<Bytes> {
        let link = self.peers.get(idx)?;
        match self.transport.call(link.device, kind, body, FETCH_DEADLINE).await {
            Ok(answer) => Some(answer),
            Err(error) => {
                tracing::debug!(peer = %idx, ?kind, "{error}");
                None
            }
        }
    }

    /// Asks for what `digest` names until `check` accepts an answer.
    async fn fetch<T: Wire>(
        &self,
        digest: Digest,
        likely: &[NodeIdx],
        kind: FrameKind,
        check: impl Fn(&T) -> bool,
    ) -> Option<T> {
        let _permit = self.slots.acquire().await.ok()?;
        let body: Bytes = encode(&FetchByDigest { digest }).into();
        for idx in self.candidates(likely) {
            let Some(answer) = self.ask(idx, kind, body.clone()).await else {
                continue;
            };
            match decode::<T>(&answer) {
                Ok(found) if check(&found) => return Some(found),
                Ok(_) => tracing::warn!(peer = %idx, %digest, "answered with something else than was asked for"),
                Err(error) => tracing::warn!(peer = %idx, %digest, "answer: {error}"),
            }
        }
        None
    }

    /// Gets a block by its digest. Who signed it does not matter: a quorum named the digest.
    pub async fn block(&self, digest: Digest, likely: &[NodeIdx]) -> Option<Block> {
        let _under_way = self.begin(digest)?;
        self.fetch(digest, likely, FrameKind::FetchBlock, |block: &Block| {
            block.digest() == digest
        })
        .await
    }

    /// Gets a batch by the digest of its header and hands it to `intake`, which checks and stores it.
    pub async fn batch(&self, digest: Digest, likely: &[NodeIdx], intake: &Intake) {
        let Some(_under_way) = self.begin(digest) else { return };
        let is_named =
            |batch: &CertifiedBatch| batch.digest(&self.chain) == digest && batch.check_content(&self.chain).is_ok();
        let Some(batch) = self.fetch(digest, likely, FrameKind::FetchBatch, is_named).await else {
            return;
        };
        if let Err(error) = intake.take(batch, Origin::Validator).await {
            tracing::warn!(%digest, "fetched batch: {error}");
        }
    }

    /// Gets finalized blocks from `from` on, verified, ascending without a gap; empty if the peer did
    /// not deliver.
    pub async fn finalized(&self, peer: NodeIdx, from: Height) -> Vec<Checked<FinalizedBlock>> {
        let body: Bytes = encode(&SyncRequest { from }).into();
        let Some(answer) = self.ask(peer, FrameKind::Sync, body).await else {
            return Vec::new();
        };
        let Ok(answer) = decode::<SyncAnswer>(&answer) else {
            tracing::warn!(%peer, "malformed finalized blocks");
            return Vec::new();
        };
        let mut blocks = Vec::new();
        let mut want = from;
        for block in answer.blocks.into_inner() {
            if block.block.header.height != want {
                tracing::warn!(%peer, got = %block.block.header.height, %want, "a height was left out");
                break;
            }
            match self.verifier.finalized(block) {
                Ok(block) => blocks.push(block),
                Err(error) => {
                    tracing::warn!(%peer, height = %want, "not final: {error}");
                    break;
                }
            }
            want = want.next();
        }
        blocks
    }
}
