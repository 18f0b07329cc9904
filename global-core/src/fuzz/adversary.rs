//! Everything that Byzantine validators can do together: they hear all, sign anything as themselves,
//! and put together every certificate that anybody could.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    block::{BatchRef, Block, ParentProof, Proposal, genesis_digest},
    certificate::{Ballot, Finalization, Notarization, Nullification, NullifyBallot, SignedVote, Signers, Vote},
    crypto::Signature,
    ids::{BlockTime, Digest, Epoch, Height, NodeIdx, View},
    quorum::is_bft_quorum,
    validator_set::ValidatorSet,
    wire::bft::{BftMessage, Certificate},
};

use super::{
    fixture::{CHAIN, Chained, GENESIS_TIME},
    plan::Plan,
    rng::Rng,
};
use crate::{
    block_builder::{Site, build},
    ledger::{Execution, Roots},
    mutant::Fault,
};

struct Known {
    block: Option<Block>,
    height: Height,
    view: View,
    time: BlockTime,
    parent: Digest,
    state: Option<Chained>,
}

/// All faulty validators as one.
pub struct Adversary {
    byzantine: BTreeSet<usize>,
    fault: Option<Fault>,
    set: ValidatorSet,
    /// Who cast which vote, by view.
    votes: BTreeMap<View, BTreeMap<Vote, BTreeSet<usize>>>,
    blocks: BTreeMap<Digest, Known>,
    by_view: BTreeMap<View, Vec<Ballot>>,
}

impl Adversary {
    pub fn new(plan: &Plan, set: ValidatorSet) -> Self {
        let genesis = Known {
            block: None,
            height: Height(0),
            view: View(0),
            time: GENESIS_TIME,
            parent: Digest::default(),
            state: Some(Chained::genesis()),
        };
        Self {
            byzantine: plan.byzantine.iter().copied().collect(),
            fault: plan.mutant.0,
            set,
            votes: BTreeMap::new(),
            blocks: [(genesis_digest(&CHAIN), genesis)].into(),
            by_view: BTreeMap::new(),
        }
    }

    pub fn overhear_vote(&mut self, voter: usize, vote: Vote) {
        let votes = self.votes.entry(vote.view()).or_default();
        votes.entry(vote).or_default().insert(voter);
    }

    pub fn overhear_block(&mut self, block: &Block) {
        let digest = block.digest();
        if self.blocks.contains_key(&digest) {
            return;
        }
        let state = self.blocks.get(&block.header.parent).and_then(|parent| {
            let mut state = parent.state.clone()?;
            state.apply(block, &());
            Some(state)
        });
        let known = Known {
            height: block.header.height,
            view: block.header.view,
            time: block.header.time,
            parent: block.header.parent,
            state,
            block: Some(block.clone()),
        };
        self.blocks.insert(digest, known);
        self.by_view
            .entry(block.header.view)
            .or_default()
            .push(block.header.ballot());
    }

    pub fn block(&self, digest: &Digest) -> Option<Block> {
        self.blocks.get(digest)?.block.clone()
    }

    /// What `verify` checks of a proposal: that the proof is for its parent.
    pub fn is_proposal_fit(&self, proposal: &Proposal) -> bool {
        let header = &proposal.block.header;
        match &proposal.parent_proof {
            ParentProof::Genesis => {
                header.parent == genesis_digest(&CHAIN) || self.fault == Some(Fault::ParentUnchecked)
            }
            ParentProof::Notarization(Notarization { ballot, .. })
            | ParentProof::Finalization(Finalization { ballot, .. }) => {
                ballot.digest == header.parent && ballot.view == header.parent_view
            }
        }
    }

    /// Whether all who cast this vote and all faulty ones are a quorum.
    pub fn could_certify(&self, vote: &Vote) -> bool {
        let (weight, total) = (self.weight(&self.signers(vote)), self.set.total_weight());
        is_bft_quorum(weight, total) || (self.fault == Some(Fault::QuorumOfHalf) && 2 * weight >= total)
    }

    fn signers(&self, vote: &Vote) -> BTreeSet<usize> {
        let honest = self.votes.get(&vote.view()).and_then(|votes| votes.get(vote));
        honest.into_iter().flatten().chain(&self.byzantine).copied().collect()
    }

    fn weight(&self, signers: &BTreeSet<usize>) -> u64 {
        signers
            .iter()
            .map(|position| self.set.members()[*position].weight)
            .sum()
    }

    fn certificate(&self, vote: Vote) -> Option<Certificate> {
        if !self.could_certify(&vote) {
            return None;
        }
        let signed: Vec<_> = self
            .signers(&vote)
            .into_iter()
            .map(|p| (p, Signature::default()))
            .collect();
        let signers = Signers::gather(self.set.members().len(), &signed);
        Some(match vote {
            Vote::Notarize(ballot) => Certificate::Notarization(Notarization { ballot, signers }),
            Vote::Nullify(ballot) => Certificate::Nullification(Nullification { ballot, signers }),
            Vote::Finalize(ballot) => Certificate::Finalization(Finalization { ballot, signers }),
        })
    }

    /// Some messages to some validators.
    pub fn act(&mut self, rng: &mut Rng, now_us: u64) -> Vec<(usize, BftMessage)> {
        let mut sends = Vec::new();
        let newest = self.votes.keys().next_back().copied().unwrap_or(View(1));
        for _ in 0..1 + rng.below(4) {
            let view = View((newest.0 + 2).saturating_sub(rng.below(6)).max(1));
            match rng.below(3) {
                0 => self.vote(rng, view, &mut sends),
                1 => self.certify(rng, view, &mut sends),
                _ => self.propose(rng, view, now_us, &mut sends),
            }
        }
        sends
    }

    fn some(&self, rng: &mut Rng, message: &BftMessage, sends: &mut Vec<(usize, BftMessage)>) {
        let n = self.set.members().len();
        let mask = rng.below(1 << n);
        let to = (0..n).filter(|to| (mask >> to) & 1 == 1);
        sends.extend(to.map(|to| (to, message.clone())));
    }

    fn any_vote(&self, rng: &mut Rng, view: View) -> Vote {
        let nullify = Vote::Nullify(NullifyBallot { epoch: Epoch(0), view });
        let ballots = self.by_view.get(&view).map_or(&[][..], Vec::as_slice);
        match (rng.pick(ballots).copied(), rng.below(3)) {
            (Some(ballot), 0) => Vote::Notarize(ballot),
            (Some(ballot), 1) => Vote::Finalize(ballot),
            _ => nullify,
        }
    }

    /// Any vote for any block, as any of the faulty, to anybody.
    fn vote(&self, rng: &mut Rng, view: View, sends: &mut Vec<(usize, BftMessage)>) {
        for position in &self.byzantine {
            let vote = self.any_vote(rng, view);
            let signed = SignedVote {
                vote,
                voter: NodeIdx(*position as u32),
                signature: Signature::default(),
            };
            self.some(rng, &BftMessage::Vote(signed), sends);
        }
    }

    /// Any certificate that could be, to anybody.
    fn certify(&self, rng: &mut Rng, view: View, sends: &mut Vec<(usize, BftMessage)>) {
        let vote = self.any_vote(rng, view);
        if let Some(certificate) = self.certificate(vote) {
            self.some(rng, &BftMessage::Certificate(certificate), sends);
        }
    }

    /// One or two blocks for a view that a faulty validator leads.
    fn propose(&mut self, rng: &mut Rng, view: View, now_us: u64, sends: &mut Vec<(usize, BftMessage)>) {
        let leader = self.set.position(self.set.leader(view)).expect("a member");
        if !self.byzantine.contains(&leader) || self.by_view.get(&view).is_some_and(|b| b.len() > 3) {
            return;
        }
        for _ in 0..1 + rng.below(2) {
            if let Some(proposal) = self.forge(rng, view, now_us) {
                self.overhear_block(&proposal.block);
                self.some(rng, &BftMessage::Proposal(Box::new(proposal)), sends);
            }
        }
    }

    fn forge(&self, rng: &mut Rng, view: View, now_us: u64) -> Option<Proposal> {
        let (parent, known) = self.some_parent(rng, view)?;
        let lagging = match &known.block {
            None => known,
            Some(_) => self.blocks.get(&known.parent)?,
        };
        let mut roots = lagging.state.as_ref()?.roots();
        if rng.chance(5) {
            roots = Roots::default();
        }
        let refs = self.some_refs(rng, lagging.state.as_ref()?, known);
        let site = Site {
            chain: CHAIN,
            epoch: Epoch(0),
            view,
            parent,
            parent_view: known.view,
            parent_height: known.height,
            parent_time: known.time,
            roots,
        };
        let mut block = build(&site, refs, BlockTime(GENESIS_TIME.0 + now_us + rng.below(1_000)));
        if rng.chance(3) {
            block.header.height = block.header.height.next();
        }
        let ballot = known.block.as_ref().map(|block| block.header.ballot());
        let parent_proof = match ballot.map(|ballot| self.certificate(Vote::Notarize(ballot))) {
            None => ParentProof::Genesis,
            Some(Some(Certificate::Notarization(n))) => ParentProof::Notarization(n),
            // Without a proof: nobody takes it, unless parents are not checked.
            Some(_) => ParentProof::Genesis,
        };
        let between = (known.view.0 + 1..view.0).map(|view| NullifyBallot {
            epoch: Epoch(0),
            view: View(view),
        });
        let nullifications: Vec<Nullification> = between
            .filter_map(|ballot| match self.certificate(Vote::Nullify(ballot)) {
                Some(Certificate::Nullification(nullification)) => Some(nullification),
                _ => None,
            })
            .collect();
        Some(Proposal {
            block,
            signature: Signature::default(),
            parent_proof,
            nullifications: nullifications.try_into().ok()?,
        })
    }

    /// The lowest parent that can be shown to be one, or any recent block.
    fn some_parent(&self, rng: &mut Rng, view: View) -> Option<(Digest, &Known)> {
        let below = self.blocks.iter().filter(|(_, known)| known.view < view);
        let mut below: Vec<(Digest, &Known)> = below.map(|(digest, known)| (*digest, known)).collect();
        below.sort_unstable_by_key(|(digest, known)| (std::cmp::Reverse(known.view), *digest));
        if rng.chance(50) {
            below.truncate(6);
            return rng.pick(&below).copied();
        }
        let mut nullified = view;
        while let Some(before) = nullified.previous().filter(|view| self.is_nullifiable(*view)) {
            nullified = before;
        }
        let is_parent = |known: &Known| match &known.block {
            None => true,
            Some(block) => self.could_certify(&Vote::Notarize(block.header.ballot())),
        };
        let lowest = below.into_iter().rev();
        lowest
            .into_iter()
            .find(|(_, known)| known.view.next() >= nullified && is_parent(known))
    }

    fn is_nullifiable(&self, view: View) -> bool {
        let ballot = NullifyBallot { epoch: Epoch(0), view };
        self.could_certify(&Vote::Nullify(ballot))
    }

    /// References that are next, or some that nobody has.
    fn some_refs(&self, rng: &mut Rng, lagging: &Chained, parent: &Known) -> Vec<BatchRef> {
        if !rng.chance(15) {
            return Vec::new();
        }
        let mut cursors = lagging.cursors().clone();
        for batch in parent.block.iter().flat_map(|block| &block.refs) {
            if let Some(cursor) = cursors.get_mut(&batch.cluster) {
                *cursor = cursor.after(batch);
            }
        }
        let (cluster, cursor) = cursors.into_iter().next().expect("there are clusters");
        let digest = Digest([rng.below(256) as u8; 32]);
        vec![BatchRef {
            cluster,
            founding: cursor.founding,
            seq: cursor.next,
            digest,
        }]
    }
}
