//! What a step does after its input went in: everything that can be done now, and requests for what is
//! missing. Every question is asked anew, in an order that does not matter.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    block::{BatchRef, Block, FinalizedBlock, Link, ProofOfFinality},
    bug::{self, Bug},
    certificate::Finalization,
    ids::{Digest, Height, NodeIdx},
    limits::{HEADERS_PER_FINALITY_PROOF_MAX, ROOT_LAG},
};

use super::{FETCHES_MAX, GlobalCore};
use crate::{
    batch_pool::WantedBatch,
    block_builder,
    clock::{Instant, Now},
    consensus::{self, UNFINALIZED_BLOCKS_MAX},
    effect::{Effect, HaltReason},
    ledger::{Execution, Flaw, Judgement, NoPath},
    mutant::has_fault,
    sync::Sync,
};

impl<E: Execution> GlobalCore<E> {
    /// Does all that can be done now, and asks for what is missing.
    pub(super) fn settle(&mut self, now: Now, effects: &mut Vec<Effect>) {
        self.pool.forget_heard(now.at);
        // States that the last step reported as executed have been looked at by now.
        self.ledger.prune();
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
        self.settle_work(now, &mut look_again, effects);
        self.settle_fetches(now, wanted, effects);
        self.settle_timer(now, look_again, effects);
    }

    /// Finalizes what has a finalization and all its ancestors here. Returns whether it did.
    fn settle_finality(&mut self, now: Now, wanted: &mut Wanted, effects: &mut Vec<Effect>) -> bool {
        // Lowest first: a proof of finality stays short, also when this validator catches up with a chain
        // that went on meanwhile.
        let mut finalizations: Vec<Finalization> = self.consensus.finalizations().cloned().collect();
        finalizations.reverse();
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
                // No proof can bridge it: what is in between comes by sync, with proofs of its own.
                Ok(path) if path.len() > HEADERS_PER_FINALITY_PROOF_MAX => {}
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
                    .expect("longer paths were left to sync"),
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
            Judgement::Invalid(Flaw::Roots { .. }) if has_fault!(mutant, RootsUnchecked) => Judgement::Valid,
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
                    sooner(look_again, at);
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
            Vec::new()
        } else {
            block_builder::pick_refs(&self.pool, &cursors, height)
        };
        if refs.is_empty() {
            let Some(at) = self.empty_block_due_at(now, &turn.parent, is_capped) else {
                return false;
            };
            if now.at < at {
                sooner(look_again, at);
                return false;
            }
            if is_capped && has_fault!(self.consensus.config().mutant, SilentAtDepthCap) {
                return false;
            }
        }
        let block = block_builder::build(&site, refs, now.clock);
        self.tell(now, consensus::Input::Built(block), effects);
        true
    }

    /// When a block without references on `parent` is due, if one is. Each waits a little: a batch that comes
    /// meanwhile is proposed at once, and a finalization on its way makes it needless.
    fn empty_block_due_at(&self, now: Now, parent: &Digest, is_capped: bool) -> Option<Instant> {
        if is_capped {
            return Some(self.consensus.empty_block_at());
        }
        if self.consensus.is_idle_over(now.at) {
            return Some(now.at);
        }
        if self.ledger.has_unfinalized_refs() {
            return Some(self.consensus.empty_block_at());
        }
        let empty = self.ledger.empty_blocks_in_a_row(parent)?;
        (empty < ROOT_LAG).then(|| self.consensus.owed_root_at())
    }

    /// Asks for the execution of agreed blocks whose batches are all here, and for the batches of others.
    fn settle_execution(&mut self, wanted: &mut Wanted, effects: &mut Vec<Effect>) {
        while let Some((height, digest)) = self.ledger.advance_executed() {
            effects.push(Effect::Executed { height, digest });
            self.pool.prune(self.ledger.executed_state().cursors());
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

    /// Timers that rest start when the leader can have what waits: a batch, when it has fetched it; a block to be
    /// finalized, when it is to propose one on top. For a leader that is silent nobody waits.
    fn settle_work(&mut self, now: Now, look_again: &mut Option<Instant>, effects: &mut Vec<Effect>) {
        let best = self.consensus.highest_agreed();
        let cursors = self.ledger.cursors_on(&best);
        let cursors = cursors.unwrap_or_else(|| self.ledger.executed_state().cursors().clone());
        // Another batch waits behind another block: its leader may not have it yet.
        let since = self.batch_since.filter(|(behind, _)| *behind == best);
        self.batch_since = self.pool.has_next(&cursors).then(|| since.unwrap_or((best, now.at)));
        let batch_at = self
            .batch_since
            .map(|(_, since)| since.plus_us(self.consensus.notice_timer_us()));
        let has_unfinalized = self.ledger.has_unfinalized_refs();
        let block_at = has_unfinalized.then(|| self.consensus.empty_block_at());
        let is_leader_silent = self.consensus.is_leader_silent();
        let mut is_due = |at: Option<Instant>| match at {
            Some(at) if now.at < at && !is_leader_silent => {
                sooner(look_again, at);
                false
            }
            at => at.is_some(),
        };
        if is_due(batch_at) {
            self.tell(now, consensus::Input::WorkWaits, effects);
        } else if is_due(block_at) {
            self.tell(now, consensus::Input::FinalityWaits, effects);
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
        for batch in self.pool.missing(self.ledger.executed_state().cursors()) {
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

    pub(super) fn fetch_batch(&mut self, now: Now, wanted: WantedBatch, effects: &mut Vec<Effect>) {
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
        // Only what a quorum signed keeps blocks from being fetched; a peer's word does not.
        if self
            .consensus
            .finalizations()
            .any(|f| Sync::is_far(f.ballot.height, tip))
        {
            wanted.blocks.clear();
        }
        if !self.sync.has_somebody_to_ask(tip) {
            self.sync_until = None;
            return;
        }
        if self.sync_until.is_some_and(|until| until <= now.at) {
            self.sync.retry();
            self.sync_until = None;
        }
        let asked = self.sync.poll(tip, executed);
        if let Some(to) = asked.filter(|_| !bug::active(Bug::SyncNotAsked)) {
            effects.push(Effect::RequestSync { to, from: tip.next() });
        }
        if asked.is_some() || self.sync_until.is_none() {
            // By then an answer is lost; or everybody was dropped, and everybody gets another chance.
            self.sync_until = Some(now.at.plus_us(4 * self.consensus.fetch_timer_us()));
        }
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
}

fn sooner(look_again: &mut Option<Instant>, at: Instant) {
    *look_again = Some(look_again.map_or(at, |before| before.min(at)));
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
