//! All rooms of a validator's core together: what its shell drives.
//! In: [`Input`]s, one at a time. Out: [`Effect`]s, to be performed in order.
//!
//! # How
//! Each step gives its input to the rooms it concerns, then *settles*: as long as anything moves, it
//! finalizes what has a finalization and all its ancestors here, judges the leader's proposal,
//! proposes if it is my turn, and asks for what is missing. Every question is asked anew in every
//! step, so nothing hangs on having seen an event at the right moment. Only a vote or certificate that says
//! what is known already asks nothing: it changes no answer, and what time changes has its timer.
//!
//! # Rules
//! * Upon a batch, or `idle_block_interval` without a block: the leader proposes at once. Upon an unfinalized block with
//!   references, or an owed root: it proposes an empty block after a while (see the consensus core's `pacemaker`). At most
//!   [`ROOT_LAG`](common::limits::ROOT_LAG) empty blocks in a row are owed.
//! * A block refers to batches only up to [`UNFINALIZED_BLOCKS_MAX`](consensus::UNFINALIZED_BLOCKS_MAX) above the last final one. Above it a
//!   leader proposes a block without references, after half its leader timer, never nothing: only a
//!   new finalized view finalizes those below.
//! * Time t of a block is right if parent < t and clock - b <= t <= clock + b; parent + 1 us is right as
//!   well if the parent is above the clock. Too early: held, the timer runs. Too old: nullify.
//! * Upon a notarized block whose roots differ from those computed here, and upon a final block that
//!   does not descend from mine: halt.

mod holdings;
mod settle;

pub use holdings::Holdings;

use std::collections::{BTreeMap, BTreeSet};

use common::{
    block::{BatchRef, Block, FinalizedBlock, Proposal},
    certificate::{Finalization, SignedVote},
    ids::{Digest, Height, NodeIdx, View},
    wire::bft::Certificate,
};

use crate::{
    batch_pool::{Admission, BatchPool, StoredBatch},
    clock::{Instant, Now},
    config::Config,
    consensus::{self, Core},
    effect::{Effect, HaltReason},
    guard::Guard,
    ledger::{Execution, Ledger, Tip},
    sync::Sync,
    verify::{Checked, CheckedMessage},
};

/// A notice without its bytes counts as "something waits" for so many times D_max.
const HEARD_DELAYS: u64 = 8;
/// Requests for blocks, and for batches, under way at once.
const FETCHES_MAX: usize = 256;

/// What came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// From another validator, verified.
    Message(CheckedMessage),
    /// Done with [`Effect::Vote`].
    OwnVote(SignedVote),
    /// Done with [`Effect::Propose`].
    OwnProposal(Box<Proposal>),
    /// The timer set last has run out. Early or needless ticks do no harm.
    Tick,
    /// A certified batch is on my disk.
    BatchStored(StoredBatch),
    /// Somebody holds a certified batch.
    BatchHeard {
        /// Which.
        batch: BatchRef,
        /// Who.
        from: NodeIdx,
    },
    /// An answer to [`Effect::FetchBlock`]. Known by its digest; needs no signature.
    BlockFetched(Box<Block>),
    /// An answer to [`Effect::RequestSync`], ascending.
    SyncAnswered {
        /// Who answered.
        from: NodeIdx,
        /// Verified one by one; cut before the first that does not verify.
        blocks: Vec<Checked<FinalizedBlock>>,
    },
    /// No answer to [`Effect::RequestSync`], or a refusal.
    SyncFailed {
        /// Who was asked.
        from: NodeIdx,
    },
    /// A peer says, or showed, that it holds all final blocks up to a height.
    PeerHeight {
        /// Who.
        peer: NodeIdx,
        /// Up to where.
        height: Height,
    },
    /// A connection to a peer stands anew.
    PeerConnected(NodeIdx),
    /// A round trip, smoothed (mean + 4 deviations), in microseconds.
    RoundTrip {
        /// To whom.
        peer: NodeIdx,
        /// There and back.
        us: u64,
    },
}

/// What was durable when this validator stopped, apart from the finalized blocks that the
/// [`Ledger`] was built from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// The guard as read from its journal.
    pub guard: Guard,
    /// Every persisted certificate above the last final view, and the finalization of the last final
    /// block's proof. Others do no harm.
    pub certificates: Vec<Certificate>,
    /// Every persisted proposal above the last final view, mine too. Others do no harm.
    pub proposals: Vec<Proposal>,
    /// Batches on disk that are not executed. Others do no harm.
    pub batches: Vec<StoredBatch>,
}

/// The core of one validator, or of a machine that follows without voting.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct GlobalCore<E> {
    consensus: Core,
    ledger: Ledger<E>,
    pool: BatchPool,
    sync: Sync,
    /// When a request under way is made again.
    block_fetches: BTreeMap<Digest, Instant>,
    batch_fetches: BTreeMap<BatchRef, Instant>,
    sync_until: Option<Instant>,
    /// Blocks whose execution was asked for.
    executing: BTreeSet<Digest>,
    timer: Option<Instant>,
    /// Behind which block a batch waits for one, and since when.
    batch_since: Option<(Digest, Instant)>,
    is_halted: bool,
}

impl<E: Execution> GlobalCore<E> {
    /// A core on top of `ledger`, which the shell built from its finalized blocks.
    #[must_use]
    pub fn new(config: Config, ledger: Ledger<E>, recovered: Recovered, now: Now, effects: &mut Vec<Effect>) -> Self {
        let blocks: Vec<Block> = recovered.proposals.iter().map(|p| p.block.clone()).collect();
        let consensus = Core::new(
            config,
            ledger.tip(),
            &recovered.guard,
            recovered.certificates,
            recovered.proposals,
            now,
            effects,
        );
        let mut core = Self {
            consensus,
            ledger,
            pool: BatchPool::default(),
            sync: Sync::default(),
            block_fetches: BTreeMap::new(),
            batch_fetches: BTreeMap::new(),
            sync_until: None,
            executing: BTreeSet::new(),
            timer: None,
            batch_since: None,
            is_halted: false,
        };
        for block in blocks {
            core.ledger.insert(block);
        }
        for batch in recovered.batches {
            core.pool.insert(batch);
        }
        core.pool.prune(core.ledger.executed_state().cursors());
        core.settle(now, effects);
        core
    }

    /// Takes one input. Effects are appended in the order in which they must be performed.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        if self.is_halted {
            return;
        }
        if let Input::Message(CheckedMessage::Certificate(certificate)) = &input
            && let Certificate::Finalization(finalization) = &**certificate
        {
            self.learn_heights(finalization);
        }
        // Others say again what is known, more often than not: it moves nothing, and what time moves has its timer.
        if let Input::Message(message) = &input
            && !self.consensus.is_news(message)
        {
            return;
        }
        match input {
            Input::Message(message) => self.on_message(now, message, effects),
            Input::OwnVote(vote) => self.tell(now, consensus::Input::OwnVote(vote), effects),
            Input::OwnProposal(proposal) => {
                self.ledger.insert(proposal.block.clone());
                self.tell(now, consensus::Input::OwnProposal(proposal), effects);
            }
            Input::Tick => self.tell(now, consensus::Input::Tick, effects),
            // Two ways lead it to the disk, and the second one may end after its block was executed.
            Input::BatchStored(stored) if self.is_past(&stored.batch) => {}
            Input::BatchStored(stored) => self.pool.insert(stored),
            // What would not be stored if its cluster brought it is not fetched either.
            Input::BatchHeard { batch, .. } if self.admission(&batch) != Some(Admission::Store) => {}
            Input::BatchHeard { batch, from } => {
                let until = now
                    .at
                    .plus_us(HEARD_DELAYS * self.consensus.config().timing.delay_us_max);
                if let Some(wanted) = self.pool.hear(batch, from, until) {
                    self.fetch_batch(now, wanted, effects);
                }
            }
            Input::BlockFetched(block) => {
                // The request is forgotten when the block is no longer missed, not before.
                if self.block_fetches.contains_key(&block.digest()) {
                    self.ledger.insert(*block);
                }
            }
            Input::SyncAnswered { from, blocks } => self.on_sync_answer(now, from, &blocks, effects),
            Input::SyncFailed { from } => self.sync.answered(from, false),
            Input::PeerHeight { peer, height } => self.sync.learn(peer, height),
            Input::PeerConnected(peer) => {
                self.sync.connected(peer);
                self.tell(now, consensus::Input::Connected(peer), effects);
            }
            Input::RoundTrip { peer, us } => self.tell(now, consensus::Input::RoundTrip(peer, us), effects),
        }
        self.settle(now, effects);
    }

    /// Executes a block, as [`Effect::Execute`] asked. `batches`: those of its references, in order.
    pub fn execute(&mut self, now: Now, block: &Digest, batches: &E::Batches, effects: &mut Vec<Effect>) {
        if self.is_halted {
            return;
        }
        self.executing.remove(block);
        if let Err(reason) = self.ledger.execute(block, batches) {
            self.halt(reason, effects);
            return;
        }
        self.settle(now, effects);
    }

    /// The current view.
    #[must_use]
    pub fn view(&self) -> View {
        self.consensus.view()
    }

    /// Who leads the current view.
    #[must_use]
    pub fn leader(&self) -> NodeIdx {
        self.consensus.config().set.leader(self.view())
    }

    /// The last final block.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.ledger.tip()
    }

    /// Blocks and states: what is final and executed, and what is on its way.
    #[must_use]
    pub fn ledger(&self) -> &Ledger<E> {
        &self.ledger
    }

    /// Whether this core has halted; it takes nothing any more.
    #[must_use]
    pub fn is_halted(&self) -> bool {
        self.is_halted
    }

    /// Whether a submitted, certified batch should be stored. `None`: no such cluster.
    #[must_use]
    pub fn admission(&self, batch: &BatchRef) -> Option<Admission> {
        let cursors = self.ledger.executed_state().cursors();
        Some(self.pool.admission(batch, cursors.get(&batch.cluster)?))
    }

    /// Whether what the batch says was executed, or never will be.
    fn is_past(&self, batch: &BatchRef) -> bool {
        let cursors = self.ledger.executed_state().cursors();
        cursors.get(&batch.cluster).is_some_and(|cursor| cursor.is_past(batch))
    }

    /// Whether the block that [`Effect::FetchBlock`] asked for is still missed. If not, the request may be given up.
    #[must_use]
    pub fn misses_block(&self, digest: &Digest) -> bool {
        self.block_fetches.contains_key(digest)
    }

    /// Whether the batch that [`Effect::FetchBatch`] asked for is still missed. If not, the request may be given up.
    #[must_use]
    pub fn misses_batch(&self, batch: &BatchRef) -> bool {
        self.batch_fetches.contains_key(batch)
    }

    /// Asserts what must hold after every step. For tests and simulations.
    ///
    /// # Panics
    /// If it does not: a bug of this crate.
    pub fn check_invariants(&self) {
        assert_eq!(self.consensus.tip(), self.ledger.tip(), "one last final block");
        assert!(self.view() > self.tip().view, "the view is above the last final one");
        assert!(self.ledger.executed_height() <= self.tip().height, "executed is final");
        assert!(self.block_fetches.len() <= FETCHES_MAX && self.batch_fetches.len() <= FETCHES_MAX);
        let views_max = self.view().0 - self.tip().view.0 + consensus::LOOK_AHEAD;
        assert!(
            self.consensus.views_held() as u64 <= views_max,
            "too many views are held"
        );
    }

    fn tell(&mut self, now: Now, input: consensus::Input, effects: &mut Vec<Effect>) {
        self.consensus.step(now, input, effects);
    }

    fn on_message(&mut self, now: Now, message: CheckedMessage, effects: &mut Vec<Effect>) {
        match message {
            CheckedMessage::Proposal(proposal) => {
                let block = proposal.block.clone();
                let (view, digest) = (block.header.view, block.digest());
                self.tell(now, consensus::Input::Proposal(proposal), effects);
                // One block per view is held unasked; others only if a quorum agreed on them.
                let is_asked_for = self.block_fetches.contains_key(&digest);
                if is_asked_for || self.consensus.knows(view, &digest) {
                    self.ledger.insert(block);
                }
            }
            CheckedMessage::Vote(vote) => self.tell(now, consensus::Input::Vote(vote), effects),
            CheckedMessage::Certificate(certificate) => {
                self.tell(now, consensus::Input::Certificate(certificate), effects);
            }
        }
    }

    /// Who signed a finalization holds what it finalized, or soon will.
    fn learn_heights(&mut self, finalization: &Finalization) {
        for device in self.consensus.devices(&finalization.signers) {
            if Some(device) != self.consensus.config().me {
                self.sync.learn(device, finalization.ballot.height);
            }
        }
    }

    fn on_sync_answer(
        &mut self,
        now: Now,
        from: NodeIdx,
        blocks: &[Checked<FinalizedBlock>],
        effects: &mut Vec<Effect>,
    ) {
        let mut taken = Vec::new();
        for finalized in blocks {
            let (tip, header) = (self.ledger.tip(), &finalized.block.header);
            if header.height <= tip.height {
                continue;
            }
            if header.height != tip.height.next() {
                break;
            }
            let digest = finalized.block.digest();
            if header.parent != tip.digest {
                let height = header.height;
                let block = digest;
                self.halt(
                    HaltReason::Fork {
                        block,
                        height,
                        tip: tip.digest,
                    },
                    effects,
                );
                return;
            }
            self.ledger.insert(finalized.block.clone());
            self.ledger.finalize(&digest);
            taken.push(finalized);
        }
        self.sync.answered(from, !taken.is_empty());
        self.sync_until = None;
        let Some(last) = taken.last() else {
            return;
        };
        let certificate = Checked::of_proof(last);
        effects.push(Effect::Finalized(
            taken.iter().map(|finalized| (***finalized).clone()).collect(),
        ));
        // The certificate first: if it is for the last block itself, that can be built on.
        self.tell(now, consensus::Input::Certificate(certificate), effects);
        self.tell(now, consensus::Input::Finalized(self.ledger.tip()), effects);
    }

    fn halt(&mut self, reason: HaltReason, effects: &mut Vec<Effect>) {
        self.is_halted = true;
        effects.push(Effect::Halt(reason));
    }
}

#[cfg(test)]
mod tests;
