//! All rooms of a validator's core together: what its shell drives.
//! In: [`Input`]s, one at a time. Out: [`Effect`]s, to be performed in order.
//!
//! # How
//! Each step gives its input to the rooms it concerns, then *settles*: as long as anything moves, it
//! finalizes what has a finalization and all its ancestors here, judges the leader's proposal,
//! proposes if it is my turn, and asks for what is missing. Every question is asked anew in every
//! step, so nothing hangs on having seen an event at the right moment.
//!
//! # Rules
//! * Upon a batch, an owed root, an unfinalized block with references, or `idle_block_interval`
//!   without a block: the leader proposes. At most [`ROOT_LAG`](common::limits::ROOT_LAG) empty blocks in a row
//!   are owed.
//! * A block refers to batches only up to [`UNFINALIZED_BLOCKS_MAX`] above the last final one. Above it a
//!   leader proposes a block without references, after half its leader timer, never nothing: only a
//!   new finalized view finalizes those below.
//! * Time t of a block is right if parent < t and clock - b <= t <= clock + b; parent + 1 us is right as
//!   well if the parent is above the clock. Too early: held, the timer runs. Too old: nullify.
//! * Upon a notarized block whose roots differ from those computed here, and upon a final block that
//!   does not descend from mine: halt.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    block::{BatchRef, Block, FinalizedBlock, Link, ProofOfFinality, Proposal},
    certificate::{Finalization, SignedVote},
    ids::{Digest, Height, NodeIdx, View},
    limits::{HEADERS_PER_FINALITY_PROOF_MAX, ROOT_LAG},
    wire::bft::Certificate,
};

use crate::{
    batch_pool::{Admission, BatchPool, StoredBatch, WantedBatch},
    block_builder,
    clock::{Instant, Now},
    config::Config,
    consensus::{self, Core, UNFINALIZED_BLOCKS_MAX},
    effect::{Effect, HaltReason},
    guard::Guard,
    ledger::{Execution, Judgement, Ledger, NoPath, Tip},
    mutant::has_fault,
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
            is_halted: false,
        };
        for block in blocks {
            core.ledger.insert(block);
        }
        for batch in recovered.batches {
            core.pool.insert(batch);
        }
        core.pool.prune(&core.ledger.executed_state().cursors());
        core.settle(now, effects);
        core
    }

    /// Takes one input. Effects are appended in the order in which they must be performed.
    pub fn step(&mut self, now: Now, input: Input, effects: &mut Vec<Effect>) {
        if self.is_halted {
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
            Input::BatchStored(stored) => self.pool.insert(stored),
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

    /// Asserts what must hold after every step. For tests and simulations.
    ///
    /// # Panics
    /// If it does not: a bug of this crate.
    pub fn check_invariants(&self) {
        assert_eq!(self.consensus.tip(), self.ledger.tip(), "one last final block");
        assert!(self.view() > self.tip().view, "the view is above the last final one");
        assert!(self.ledger.executed_height() <= self.tip().height, "executed is final");
        assert!(self.block_fetches.len() <= FETCHES_MAX && self.batch_fetches.len() <= FETCHES_MAX);
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
                if let Certificate::Finalization(finalization) = &*certificate {
                    self.learn_heights(finalization);
                }
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

    /// Does all that can be done now, and asks for what is missing.
    fn settle(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.pool.forget_heard(now.at);
        let (mut wanted, mut look_again);
        loop {
            (wanted, look_again) = (Wanted::default(), None);
            let agreed: Vec<Digest> = self.consensus.agreed().map(|ballot| ballot.digest).collect();
            for digest in &agreed {
                self.ledger.mark_agreed(digest);
            }
            if self.settle_finality(now, &mut wanted, effects) {
                continue;
            }
            if self.is_halted {
                return;
            }
            if !self.settle_proposal(now, &mut wanted, &mut look_again, effects)
                && !self.settle_turn(now, &mut wanted, &mut look_again, effects)
            {
                break;
            }
        }
        self.settle_execution(&mut wanted, effects);
        self.settle_work(now, effects);
        self.settle_fetches(now, wanted, effects);
        self.settle_timer(now, look_again, effects);
    }

    /// Finalizes what has a finalization and all its ancestors here. Returns whether it did.
    fn settle_finality(&mut self, now: Now, wanted: &mut Wanted, effects: &mut Vec<Effect>) -> bool {
        let finalizations: Vec<Finalization> = self.consensus.finalizations().cloned().collect();
        for finalization in finalizations {
            self.learn_heights(&finalization);
            let (tip, ballot) = (self.ledger.tip(), finalization.ballot);
            if ballot.height <= tip.height {
                // Final in a later view than my last final block, and not above it.
                let (block, height) = (ballot.digest, ballot.height);
                self.halt(
                    HaltReason::Fork {
                        block,
                        height,
                        tip: tip.digest,
                    },
                    effects,
                );
                return false;
            }
            match self.ledger.path_to(&finalization.ballot.digest) {
                Ok(path) if path.is_empty() => {}
                Ok(path) => {
                    self.finalize(now, &path, &finalization, effects);
                    return true;
                }
                Err(NoPath::Missing(digest)) => wanted.block(digest),
                Err(NoPath::Fork { block, height }) => {
                    self.halt(
                        HaltReason::Fork {
                            block,
                            height,
                            tip: tip.digest,
                        },
                        effects,
                    );
                    return false;
                }
            }
        }
        false
    }

    fn finalize(&mut self, now: Now, path: &[Digest], finalization: &Finalization, effects: &mut Vec<Effect>) {
        let blocks: Vec<Block> = path
            .iter()
            .map(|digest| self.ledger.block(digest).expect("a path holds blocks").clone())
            .collect();
        let headers: Vec<Link> = blocks.iter().map(|block| Link::Header(block.header.clone())).collect();
        let finalized = blocks.into_iter().enumerate().map(|(i, block)| FinalizedBlock {
            block,
            proof: ProofOfFinality {
                above: headers[i + 1..]
                    .to_vec()
                    .try_into()
                    .expect("nobody votes above the bound"),
                finalization: finalization.clone(),
            },
        });
        effects.push(Effect::Finalized(finalized.collect()));
        for digest in path {
            self.ledger.finalize(digest);
        }
        self.tell(now, consensus::Input::Finalized(self.ledger.tip()), effects);
    }

    /// Judges the proposal of this view, if I may still notarize it. Returns whether it was decided.
    fn settle_proposal(
        &mut self,
        now: Now,
        wanted: &mut Wanted,
        look_again: &mut Option<Instant>,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(held) = self.consensus.open_proposal() else {
            return false;
        };
        let (block, is_too_old) = (held.digest, held.is_too_old);
        let proposed = held.proposal.block.clone();
        let mutant = self.consensus.config().mutant;
        let judgement = match self.ledger.judge(&proposed, &self.pool) {
            Judgement::MissingBatches(_) if has_fault!(mutant, BatchesUnchecked) => Judgement::Valid,
            Judgement::Invalid(crate::ledger::Flaw::Roots { .. }) if has_fault!(mutant, RootsUnchecked) => {
                Judgement::Valid
            }
            judgement => judgement,
        };
        // Too early, missing or not executed: not yet.
        let is_valid = match judgement {
            Judgement::Invalid(_) => false,
            // Too old: nullify.
            _ if is_too_old => false,
            Judgement::Valid => {
                if !self.is_within_depth(&proposed) {
                    return false;
                }
                if let Some(at) = self.early_until(now, &proposed) {
                    *look_again = Some(look_again.map_or(at, |before| before.min(at)));
                    return false;
                }
                true
            }
            Judgement::MissingBlock(digest) => {
                wanted.block(digest);
                self.tell(now, consensus::Input::Fetching, effects);
                return false;
            }
            Judgement::MissingBatches(batches) => {
                // First from the proposer, then from whoever voted for it.
                let mut from = vec![self.leader()];
                from.extend(self.consensus.likely_holders(&block));
                for batch in batches {
                    let from = from.clone();
                    wanted.batch(WantedBatch { batch, from });
                }
                self.tell(now, consensus::Input::Fetching, effects);
                return false;
            }
            Judgement::NotExecuted => return false,
        };
        self.tell(now, consensus::Input::Judged { block, is_valid }, effects);
        true
    }

    /// Whether a voter takes a block so far above its last final one.
    fn is_within_depth(&self, block: &Block) -> bool {
        let depth = self.depth_of(block.header.height);
        if block.refs.is_empty() {
            depth <= HEADERS_PER_FINALITY_PROOF_MAX as u64
        } else {
            depth <= UNFINALIZED_BLOCKS_MAX
        }
    }

    fn depth_of(&self, height: Height) -> u64 {
        height.0.saturating_sub(self.ledger.tip().height.0)
    }

    /// When the time of a block stops being too far ahead of my clock, if it is.
    fn early_until(&self, now: Now, block: &Block) -> Option<Instant> {
        let header = &block.header;
        let parent = self.ledger.time_of(&header.parent)?;
        let latest = now
            .clock
            .0
            .saturating_add(self.consensus.config().timing.block_time_bound_us);
        let is_least_step = parent > now.clock && header.time.0 == parent.0.saturating_add(1);
        (header.time.0 > latest && !is_least_step).then(|| now.at.plus_us(header.time.0 - latest))
    }

    /// Proposes if it is my turn and something waits. Returns whether it did.
    fn settle_turn(
        &mut self,
        now: Now,
        wanted: &mut Wanted,
        look_again: &mut Option<Instant>,
        effects: &mut Vec<Effect>,
    ) -> bool {
        let Some(turn) = self.consensus.open_turn() else {
            return false;
        };
        if !self.ledger.contains(&turn.parent) {
            wanted.block(turn.parent);
            return false;
        }
        let epoch = self.consensus.config().set.epoch();
        let site = self.ledger.site_on(&turn.parent, epoch, turn.view);
        let (Some(site), Some(cursors)) = (site, self.ledger.cursors_on(&turn.parent)) else {
            // Not executed here yet, or an ancestor is missing.
            if let Err(NoPath::Missing(digest)) = self.ledger.path_to(&turn.parent) {
                wanted.block(digest);
            }
            return false;
        };
        let height = site.parent_height.next();
        let depth = self.depth_of(height);
        let is_capped = depth > UNFINALIZED_BLOCKS_MAX;
        if depth > HEADERS_PER_FINALITY_PROOF_MAX as u64 {
            return false;
        }
        let refs = if is_capped {
            let at = self.consensus.capped_leader_at();
            if now.at < at {
                *look_again = Some(look_again.map_or(at, |before| before.min(at)));
                return false;
            }
            if has_fault!(self.consensus.config().mutant, SilentAtDepthCap) {
                return false;
            }
            Vec::new()
        } else {
            block_builder::pick_refs(&self.pool, &cursors, height)
        };
        let is_root_owed = self
            .ledger
            .empty_blocks_in_a_row(&turn.parent)
            .is_some_and(|empty| empty < ROOT_LAG);
        let is_due = !refs.is_empty()
            || is_capped
            || is_root_owed
            || self.ledger.has_unfinalized_refs()
            || self.consensus.is_idle_over(now.at);
        if !is_due {
            return false;
        }
        let block = block_builder::build(&site, refs, now.clock);
        self.tell(now, consensus::Input::Built(block), effects);
        true
    }

    /// Asks for the execution of agreed blocks whose batches are all here, and for the batches of others.
    fn settle_execution(&mut self, wanted: &mut Wanted, effects: &mut Vec<Effect>) {
        while let Some((height, digest)) = self.ledger.advance_executed() {
            effects.push(Effect::Executed { height, digest });
            self.pool.prune(&self.ledger.executed_state().cursors());
        }
        for (digest, block) in self.ledger.executable() {
            if self.executing.contains(&digest) {
                continue;
            }
            let missing = block.refs.iter().filter(|batch| !self.pool.holds(batch));
            let missing: Vec<BatchRef> = missing.copied().collect();
            if missing.is_empty() {
                self.executing.insert(digest);
                effects.push(Effect::Execute(Box::new(block.clone())));
                continue;
            }
            let from = self.consensus.likely_holders(&digest);
            for batch in missing {
                let from = from.clone();
                wanted.batch(WantedBatch { batch, from });
            }
        }
        self.executing.retain(|digest| self.ledger.contains(digest));
    }

    /// Timers that rest start when something waits.
    fn settle_work(&mut self, now: Now, effects: &mut Vec<Effect>) {
        let best = self.consensus.highest_agreed();
        let cursors = self.ledger.cursors_on(&best);
        let cursors = cursors.unwrap_or_else(|| self.ledger.executed_state().cursors());
        if self.pool.has_next(&cursors) || self.ledger.has_unfinalized_refs() {
            self.tell(now, consensus::Input::WorkWaits, effects);
        }
    }

    fn settle_fetches(&mut self, now: Now, mut wanted: Wanted, effects: &mut Vec<Effect>) {
        // What a quorum agreed on is needed for execution and as a parent.
        let tip = self.ledger.tip();
        for ballot in self.consensus.agreed().filter(|ballot| ballot.height > tip.height) {
            if let Err(NoPath::Missing(digest)) = self.ledger.path_to(&ballot.digest) {
                wanted.block(digest);
            }
        }
        for batch in self.pool.missing(&self.ledger.executed_state().cursors()) {
            wanted.batch(batch);
        }
        self.settle_sync(now, &mut wanted, effects);

        let retry_at = now.at.plus_us(self.consensus.fetch_timer_us());
        let is_off = has_fault!(self.consensus.config().mutant, NoFetch);
        self.block_fetches.retain(|digest, _| wanted.blocks.contains(digest));
        for digest in wanted.blocks {
            let is_under_way = self.block_fetches.get(&digest).is_some_and(|at| *at > now.at);
            let is_room = self.block_fetches.contains_key(&digest) || self.block_fetches.len() < FETCHES_MAX;
            if is_under_way || !is_room || is_off {
                continue;
            }
            self.block_fetches.insert(digest, retry_at);
            let from = self.consensus.likely_holders(&digest);
            effects.push(Effect::FetchBlock { digest, from });
        }
        let pool = &self.pool;
        self.batch_fetches
            .retain(|batch, _| wanted.batches.contains_key(batch) && !pool.holds(batch));
        for (batch, from) in wanted.batches {
            if !self.pool.holds(&batch) {
                self.fetch_batch(now, WantedBatch { batch, from }, effects);
            }
        }
    }

    fn fetch_batch(&mut self, now: Now, wanted: WantedBatch, effects: &mut Vec<Effect>) {
        let batch = wanted.batch;
        let is_under_way = self.batch_fetches.get(&batch).is_some_and(|at| *at > now.at);
        let is_room = self.batch_fetches.contains_key(&batch) || self.batch_fetches.len() < FETCHES_MAX;
        if is_room && !is_under_way && !has_fault!(self.consensus.config().mutant, NoFetch) {
            let retry_at = now.at.plus_us(self.consensus.fetch_timer_us());
            self.batch_fetches.insert(batch, retry_at);
            effects.push(Effect::FetchBatch(wanted));
        }
    }

    /// Far behind, blocks are asked for by height; there is no point in walking there one by one.
    fn settle_sync(&mut self, now: Now, wanted: &mut Wanted, effects: &mut Vec<Effect>) {
        let (tip, executed) = (self.ledger.tip().height, self.ledger.executed_height());
        if !self.sync.is_far_behind(tip) {
            self.sync_until = None;
            return;
        }
        if self.sync_until.is_some_and(|until| until <= now.at) {
            self.sync.retry();
            self.sync_until = None;
        }
        if let Some(to) = self.sync.poll(tip, executed) {
            let patience_us = 4 * self.consensus.fetch_timer_us();
            self.sync_until = Some(now.at.plus_us(patience_us));
            effects.push(Effect::RequestSync { to, from: tip.next() });
        } else if self.sync_until.is_none() {
            // Everybody was dropped: after a while everybody gets another chance.
            let patience_us = 4 * self.consensus.fetch_timer_us();
            self.sync_until = Some(now.at.plus_us(patience_us));
        }
        wanted.blocks.clear();
    }

    fn settle_timer(&mut self, now: Now, look_again: Option<Instant>, effects: &mut Vec<Effect>) {
        let next = [
            Some(self.consensus.next_deadline()),
            look_again,
            self.pool.next_expiry(),
            self.sync_until,
            self.block_fetches.values().min().copied(),
            self.batch_fetches.values().min().copied(),
        ];
        // A deadline in the past would be one that this step should have acted on.
        let next = next.into_iter().flatten().min().map(|at| at.max(now.at.plus_us(1)));
        if next != self.timer {
            self.timer = next;
            effects.push(Effect::SetTimer(next));
        }
    }

    fn halt(&mut self, reason: HaltReason, effects: &mut Vec<Effect>) {
        self.is_halted = true;
        effects.push(Effect::Halt(reason));
    }
}

/// What is missing at the end of a step.
#[derive(Default)]
struct Wanted {
    blocks: BTreeSet<Digest>,
    batches: BTreeMap<BatchRef, Vec<NodeIdx>>,
}

impl Wanted {
    fn block(&mut self, digest: Digest) {
        self.blocks.insert(digest);
    }

    fn batch(&mut self, wanted: WantedBatch) {
        let from = self.batches.entry(wanted.batch).or_default();
        if from.is_empty() {
            *from = wanted.from;
        }
    }
}
