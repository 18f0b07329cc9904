//! Asks other validators for blocks, batches and finalized blocks.
//! In: what the core wants. Out: blocks and finalized blocks to the driver, batches to the intake. Called by: the driver.
//!
//! # Rules
//! * Upon a wanted block or batch: one validator after the other, each with a deadline, until one delivers what can be
//!   taken. Who is asked when, and how many at once: [`super::wants`].
//! * What arrives is checked before anybody sees it: digest, signatures, certificates. A copy of a batch whose certificate
//!   is not good is no answer: the digest names the header alone, and another may hold a good one.
//! * Upon failure: nothing. The core asks again.

use std::{
    collections::BTreeMap,
    fmt::Display,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    batch::{BatchError, CertifiedBatch},
    block::{Block, FinalizedBlock},
    codec::{decode, encode},
    ids::{ChainId, Digest, Height, NodeIdx},
    validator_set::ValidatorSet,
    wire::{
        bft::{SyncAnswer, SyncRequest},
        feed::FetchByDigest,
        frame::FrameKind,
    },
};
use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use global_core::{Checked, Verifier};
use tokio::sync::Notify;
use transport::{
    log_limit::LogLimits,
    ports::{CallError, Transport},
};

use super::{
    PeerLink, Peers,
    wants::{Ending, Sought, Wanted, Wants},
};
use crate::{
    driver::{Event, EventSender},
    intake::{Intake, IntakeError, Origin},
};

/// How long one peer has to deliver, while few questions are under way.
const FETCH_DEADLINE: Duration = Duration::from_secs(2);
/// So many answers fit a slow link within it: sixteen batches of full length are 1.5 MiB, on 10 Mbit/s 1.3 s. More share the
/// link, and have as much longer.
const ANSWERS_PER_DEADLINE: usize = 16;

/// The client side of block and batch exchange; clones share it.
#[derive(Clone)]
pub struct Fetcher(Arc<Shared>);

struct Shared {
    peers: Peers,
    transport: Arc<dyn Transport>,
    chain: ChainId,
    verifier: Verifier,
    intake: Intake,
    events: EventSender,
    wants: Mutex<Wants>,
    /// Of each peer, when there is something to ask it.
    news: BTreeMap<NodeIdx, Notify>,
    complaints: LogLimits<NodeIdx>,
}

impl Fetcher {
    /// Fetches from `peers` once [`Fetcher::run`] runs for each: batches for `intake`, blocks for `events`.
    #[must_use]
    pub fn new(
        peers: Peers,
        transport: Arc<dyn Transport>,
        chain: ChainId,
        set: ValidatorSet,
        intake: Intake,
        events: EventSender,
    ) -> Self {
        Self(Arc::new(Shared {
            wants: Mutex::new(Wants::new(peers.iter().map(|link| link.idx))),
            news: peers.iter().map(|link| (link.idx, Notify::new())).collect(),
            peers,
            transport,
            chain,
            verifier: Verifier::new(chain, set),
            intake,
            events,
            complaints: LogLimits::default(),
        }))
    }

    fn wants(&self) -> MutexGuard<'_, Wants> {
        // Guarded sections only look up, insert and remove.
        self.0.wants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, peers: impl IntoIterator<Item = NodeIdx>) {
        for news in peers.into_iter().filter_map(|idx| self.0.news.get(&idx)) {
            news.notify_one();
        }
    }

    /// The core wants something, or wants it still; `likely` hold it, best first.
    pub fn want(&self, wanted: Wanted, likely: &[NodeIdx]) {
        let asked = self.wants().want(wanted, likely);
        self.wake(asked);
    }

    /// Gives up what the core no longer wants, apart from questions under way.
    pub fn keep_only(&self, is_wanted: impl Fn(&Wanted) -> bool) {
        self.wants().keep_only(is_wanted);
    }

    /// How much is wanted, questions under way included.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.wants().count()
    }

    /// Asks `peer` what it is to be asked, for ever. One task for each.
    pub async fn run(self, peer: PeerLink) {
        let Some(news) = self.0.news.get(&peer.idx) else { return };
        let next = || self.wants().next_for(peer.idx);
        let mut under_way = FuturesUnordered::new();
        loop {
            while let Some(sought) = next() {
                under_way.push(self.question(&peer, sought));
            }
            futures::select_biased! {
                () = under_way.select_next_some() => {}
                () = news.notified().fuse() => {}
            }
        }
    }

    async fn question(&self, peer: &PeerLink, sought: Sought) {
        let ending = self.ask(peer, sought).await;
        let asked = self.wants().ended(peer.idx, sought, ending);
        self.wake(asked.into_iter().flatten());
    }

    async fn ask(&self, peer: &PeerLink, sought: Sought) -> Ending {
        let kind = match sought {
            Sought::Block(_) => FrameKind::FetchBlock,
            Sought::Batch(_) => FrameKind::FetchBatch,
        };
        let digest = sought.digest();
        if matches!(sought, Sought::Batch(_)) && self.0.intake.tell_if_held(&digest).await {
            // Wanted under a name that is not its own, or before the core heard of it.
            return Ending::Found;
        }
        let body: Bytes = encode(&FetchByDigest { digest }).into();
        let answer = match self.call(peer, kind, body).await {
            Ok(answer) => answer,
            Err(CallError::Refused(_)) => return Ending::NotThere,
            Err(_) => return Ending::Failed,
        };
        let taken = match sought {
            Sought::Block(digest) => self.take_block(digest, &answer).await,
            Sought::Batch(digest) => self.take_batch(digest, &answer).await,
        };
        taken.unwrap_or_else(|why| {
            self.complain(peer.idx, &format_args!("{digest}: {why}"));
            Ending::Failed
        })
    }

    async fn call(&self, peer: &PeerLink, kind: FrameKind, body: Bytes) -> Result<Bytes, CallError> {
        let shares = self.wants().under_way().div_ceil(ANSWERS_PER_DEADLINE).max(1);
        let deadline = FETCH_DEADLINE * u32::try_from(shares).unwrap_or(u32::MAX);
        let answer = self.0.transport.call(peer.device, kind, body, deadline).await;
        answer.inspect_err(|error| tracing::debug!(peer = %peer.idx, ?kind, "{error}"))
    }

    fn complain(&self, peer: NodeIdx, why: &dyn Display) {
        if let Some(not_logged) = self.0.complaints.admit(peer) {
            tracing::warn!(%peer, not_logged, "an answer is worth nothing: {why}");
        }
    }

    /// Hands the block in `answer` to the driver. Who signed it does not matter: a quorum named the digest.
    async fn take_block(&self, digest: Digest, answer: &[u8]) -> Result<Ending, String> {
        let block: Block = decode(answer).map_err(|error| error.to_string())?;
        if block.digest() != digest {
            return Err("another block".into());
        }
        // The driver may have ended.
        let _ = self.0.events.send(Event::BlockFetched(Box::new(block))).await;
        Ok(Ending::Found)
    }

    /// Hands the batch in `answer` to the intake, which checks and stores it.
    async fn take_batch(&self, digest: Digest, answer: &[u8]) -> Result<Ending, String> {
        let batch: CertifiedBatch = decode(answer).map_err(|error| error.to_string())?;
        if batch.digest(&self.0.chain) != digest {
            return Err("another batch".into());
        }
        match self.0.intake.take(batch, Origin::Validator).await {
            Ok(_) => Ok(Ending::Found),
            // Read from the header, which is the same in every copy: it is for the state here to move on.
            Err(
                error @ (IntakeError::Batch(BatchError::WrongRoster { .. })
                | IntakeError::WrongFounding { .. }
                | IntakeError::OtherWasFinalized(_)
                | IntakeError::ForeignCluster(_)
                | IntakeError::TooManyWait { .. }
                | IntakeError::Stopped(_)),
            ) => {
                tracing::debug!(%digest, "a fetched batch is not taken now: {error}");
                Ok(Ending::NotNow)
            }
            Err(IntakeError::Batch(error)) => Err(error.to_string()),
        }
    }

    /// Gets finalized blocks from `from` on, verified, ascending without a gap; empty if the peer did
    /// not deliver.
    pub async fn finalized(&self, peer: NodeIdx, from: Height) -> Vec<Checked<FinalizedBlock>> {
        let Some(link) = self.0.peers.get(peer) else {
            return Vec::new();
        };
        let body: Bytes = encode(&SyncRequest { from }).into();
        let Ok(answer) = self.call(link, FrameKind::Sync, body).await else {
            return Vec::new();
        };
        let answer: SyncAnswer = match decode(&answer) {
            Ok(answer) => answer,
            Err(error) => {
                self.complain(peer, &error);
                return Vec::new();
            }
        };
        let mut blocks = Vec::new();
        let mut want = from;
        for block in answer.blocks.into_inner() {
            if block.block.header.height != want {
                self.complain(
                    peer,
                    &format_args!("a height before {} was left out", block.block.header.height),
                );
                break;
            }
            match self.0.verifier.finalized(block) {
                Ok(block) => blocks.push(block),
                Err(error) => {
                    self.complain(peer, &format_args!("height {want} is not final: {error}"));
                    break;
                }
            }
            want = want.next();
        }
        blocks
    }
}
