//! The ground of the tests: four addresses, one honest history. It judges batches as validators do, and
//! answers each with the next block.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use common::{
    batch::{BatchItem, CertifiedBatch},
    block::FinalizedBlock,
    codec::{BoundedVec, Wire, decode, encode},
    entry::VerifyEach,
    global_queue::{GlobalQueue, OrderedBatch},
    ids::{BatchSeq, Digest, EntryId, Height, NodeIdx},
    testing::{BlockChain, Fleet, GENESIS_TIME},
    wire::{
        feed::{BatchReceipt, FetchByDigest, Follow, Followed},
        frame::{FrameKind, Refusal, RefusalCode},
    },
};
use futures::FutureExt;
use tokio::sync::Notify;
use transport::ports::{BoxFuture, Clock, Peer, Service};

use super::{C1, TokioClock};

struct State {
    fleet: Fleet,
    chain: BlockChain,
    queue: GlobalQueue,
    blocks: Vec<FinalizedBlock>,
    batches: BTreeMap<Digest, CertifiedBatch>,
    executed: Vec<CertifiedBatch>,
    parked: BTreeMap<BatchSeq, CertifiedBatch>,
    /// When each block was made.
    made_at: Vec<tokio::time::Instant>,
    /// How long it takes until a block may be followed.
    takes: Duration,
    submissions: Vec<(NodeIdx, BatchSeq)>,
    asked_for_blocks: usize,
    /// Blocks go down this fast, if there is a bound.
    bytes_per_ms: Option<u64>,
    /// Its submissions are refused.
    deaf_to: Option<NodeIdx>,
}

/// Clones are the same ground.
#[derive(Clone)]
pub struct Ground {
    state: Arc<Mutex<State>>,
    grown: Arc<Notify>,
    clock: Arc<TokioClock>,
}

impl Ground {
    pub fn new(fleet: &Fleet, clock: Arc<TokioClock>) -> Self {
        let queue = GlobalQueue::genesis(&fleet.genesis);
        let state = State {
            chain: BlockChain::new(fleet, queue.state_root()),
            queue,
            fleet: fleet.clone(),
            blocks: Vec::new(),
            batches: BTreeMap::new(),
            executed: Vec::new(),
            parked: BTreeMap::new(),
            made_at: Vec::new(),
            takes: Duration::ZERO,
            submissions: Vec::new(),
            asked_for_blocks: 0,
            bytes_per_ms: None,
            deaf_to: None,
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            grown: Arc::default(),
            clock,
        }
    }

    /// Batches executed, in order.
    pub fn executed(&self) -> Vec<CertifiedBatch> {
        self.state.lock().unwrap().executed.clone()
    }

    /// Author-signed entries executed, in order.
    pub fn entries(&self) -> Vec<EntryId> {
        let state = self.state.lock().unwrap();
        let rows = state.executed.iter().flat_map(|batch| batch.entries.iter());
        rows.filter_map(|row| match &row.item {
            BatchItem::Author(entry) => Some(entry.id(&state.fleet.chain)),
            BatchItem::Roster(_) => None,
        })
        .collect()
    }

    /// From now on blocks are seen this long after they were made.
    pub fn set_slow(&self, takes: Duration) {
        self.state.lock().unwrap().takes = takes;
    }

    /// From now on blocks go down this fast.
    pub fn set_bytes_per_ms(&self, bytes_per_ms: u64) {
        self.state.lock().unwrap().bytes_per_ms = Some(bytes_per_ms);
    }

    /// From now on `device` submits in vain.
    pub fn set_deaf_to(&self, device: NodeIdx) {
        self.state.lock().unwrap().deaf_to = Some(device);
    }

    /// Who submitted which batch, in order.
    pub fn submissions(&self) -> Vec<(NodeIdx, BatchSeq)> {
        self.state.lock().unwrap().submissions.clone()
    }

    /// How often somebody asked for blocks.
    pub fn asked_for_blocks(&self) -> usize {
        self.state.lock().unwrap().asked_for_blocks
    }

    pub fn height(&self) -> Height {
        self.state.lock().unwrap().chain.height
    }

    pub fn state_root(&self) -> Digest {
        self.state.lock().unwrap().queue.state_root()
    }

    /// Takes a batch as if a member had submitted it.
    pub fn take(&self, batch: &CertifiedBatch) -> Result<BatchReceipt, String> {
        self.submit(batch.clone())
    }

    /// From the next block but one on, headers carry another state at this height than the agents compute.
    pub fn certify_another_state(&self) -> Height {
        let mut state = self.state.lock().unwrap();
        let height = state.chain.height;
        let roots = state
            .chain
            .roots
            .get_mut(&height)
            .expect("its newest block was executed");
        roots.0 = Digest([9; 32]);
        height
    }

    /// The block with the greatest height.
    pub fn newest_block(&self) -> FinalizedBlock {
        let state = self.state.lock().unwrap();
        state.blocks.last().expect("there is one").clone()
    }

    /// Makes blocks without batches.
    pub fn grow(&self, blocks: u32) {
        for _ in 0..blocks {
            self.add_empty_block();
        }
    }

    /// Makes a block of `batches` of other clusters.
    pub fn add_block(&self, batches: Vec<CertifiedBatch>) {
        let mut state = self.state.lock().unwrap();
        let added = state.execute(batches, &self.clock);
        added.expect("the block is valid");
        drop(state);
        self.grown.notify_waiters();
    }

    fn add_empty_block(&self) {
        self.add_block(Vec::new());
    }

    /// A batch of one of the blocks.
    pub fn batch(&self, digest: &Digest) -> CertifiedBatch {
        self.state.lock().unwrap().batches[digest].clone()
    }

    fn submit(&self, batch: CertifiedBatch) -> Result<BatchReceipt, String> {
        let mut state = self.state.lock().unwrap();
        let next = state.queue.next_batch(C1).expect("cluster c1 exists").1;
        if batch.header.seq < next {
            return Ok(BatchReceipt::Final);
        }
        if batch.header.seq > next {
            state.parked.insert(batch.header.seq, batch);
            return Ok(BatchReceipt::Parked { next });
        }
        state.execute(vec![batch], &self.clock)?;
        loop {
            let next = state.queue.next_batch(C1).expect("cluster c1 exists").1;
            let Some(batch) = state.parked.remove(&next) else { break };
            state.execute(vec![batch], &self.clock)?;
        }
        drop(state);
        self.grown.notify_waiters();
        Ok(BatchReceipt::Stored)
    }

    pub async fn follow(&self, question: Follow) -> Followed {
        self.state.lock().unwrap().asked_for_blocks += 1;
        let until = tokio::time::Instant::now() + Duration::from_millis(u64::from(question.wait_ms).min(1_000));
        loop {
            let grown = self.grown.notified();
            let next_is_seen_at = {
                let state = self.state.lock().unwrap();
                let seen = state.seen();
                if seen >= question.from {
                    return state.followed(question.from, seen);
                }
                state.made_at.get(seen.0 as usize).map(|made_at| *made_at + state.takes)
            };
            let is_over = tokio::time::timeout_at(next_is_seen_at.unwrap_or(until), grown)
                .await
                .is_err();
            if is_over && next_is_seen_at.is_none() {
                // Nothing waits: an empty block, so that custody and age move on.
                self.add_empty_block();
            }
        }
    }
}

impl State {
    fn execute(&mut self, batches: Vec<CertifiedBatch>, clock: &TokioClock) -> Result<(), String> {
        let mut verified = Vec::new();
        for batch in &batches {
            verified.push(
                self.queue
                    .verify_batch(batch.clone())
                    .map_err(|error| error.to_string())?,
            );
        }
        let now_ms = clock.now().us / 1_000;
        let last_ms = (self.chain.time.0 - GENESIS_TIME.0) / 1_000;
        let block = self
            .chain
            .block(&self.fleet, &batches, now_ms.saturating_sub(last_ms).max(1));
        let ordered: Vec<_> = verified
            .iter()
            .map(|batch| Some(OrderedBatch::certified(batch)))
            .collect();
        let outcome = self
            .queue
            .apply(&block, &ordered, &mut VerifyEach)
            .map_err(|error| format!("{error:?}"))?;
        let roots = (outcome.state_root, outcome.outcome_root);
        self.chain.roots.insert(outcome.height, roots);
        for batch in batches {
            self.batches.insert(batch.digest(&self.fleet.chain), batch.clone());
            self.executed.push(batch);
        }
        self.blocks.push(self.fleet.finalize(block));
        self.made_at.push(tokio::time::Instant::now());
        Ok(())
    }

    /// The highest block that may be followed.
    fn seen(&self) -> Height {
        let now = tokio::time::Instant::now();
        Height(self.made_at.partition_point(|made_at| *made_at + self.takes <= now) as u64)
    }

    fn followed(&self, from: Height, seen: Height) -> Followed {
        let seen = &self.blocks[..seen.0 as usize];
        let blocks: Vec<_> = seen.iter().skip(from.0 as usize - 1).take(64).cloned().collect();
        let refs = blocks.iter().flat_map(|block| block.block.refs.iter());
        let others = refs.filter(|named| named.cluster != C1);
        let mut room = Followed::BYTES_MAX * 3 / 4;
        let batches = others.map(|named| self.batches[&named.digest].clone());
        let batches: Vec<_> = batches
            .take_while(|batch| {
                let bytes = encode(batch).len();
                let has_room = bytes <= room;
                room = room.saturating_sub(bytes);
                has_room
            })
            .collect();
        let (founding, next_seq) = self.queue.next_batch(C1).expect("cluster c1 exists");
        Followed {
            blocks: BoundedVec::try_from(blocks).unwrap(),
            batches: batches.try_into().unwrap(),
            tip: self.chain.height,
            next_seq,
            founding,
        }
    }
}

impl Service for Ground {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        let this = self.clone();
        async move {
            let invalid = |why: String| Refusal::new(RefusalCode::Invalid, &why);
            match kind {
                FrameKind::SubmitBatch if this.state.lock().unwrap().deaf_to == Some(peer.idx) => {
                    Err(Refusal::new(RefusalCode::NotNow, "not from this device"))
                }
                FrameKind::SubmitBatch => {
                    let batch: CertifiedBatch = decode(&body).map_err(|error| invalid(error.to_string()))?;
                    let submission = (peer.idx, batch.header.seq);
                    this.state.lock().unwrap().submissions.push(submission);
                    Ok(encode(&this.submit(batch).map_err(invalid)?).into())
                }
                FrameKind::Follow => {
                    let question = decode(&body).map_err(|error| invalid(error.to_string()))?;
                    let answer = encode(&this.follow(question).await);
                    let bytes_per_ms = this.state.lock().unwrap().bytes_per_ms;
                    let took_ms = bytes_per_ms.map_or(0, |rate| answer.len() as u64 / rate);
                    tokio::time::sleep(Duration::from_millis(took_ms)).await;
                    Ok(answer.into())
                }
                FrameKind::FeedBatch => {
                    let question: FetchByDigest = decode(&body).map_err(|error| invalid(error.to_string()))?;
                    let state = this.state.lock().unwrap();
                    let found = state.batches.get(&question.digest);
                    found
                        .map(|batch| Bytes::from(encode(batch)))
                        .ok_or_else(|| Refusal::new(RefusalCode::NotFound, "no such batch"))
                }
                _ => Err(Refusal::new(RefusalCode::Denied, "the ground does not serve this")),
            }
        }
        .boxed()
    }
}
