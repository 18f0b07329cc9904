//! What every actor has in its hands: the keys of its process, its peers, chance, and a count of its deeds.

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{
    block::{Block, Proposal},
    certificate::{SignedVote, Vote},
    codec::{Wire, decode, encode},
    crypto::{ConsensusKey, DeviceKey},
    ids::{ChainId, NodeIdx, RaftNodeId},
    testing::Fleet,
    validator_set::ValidatorSet,
    wire::{
        feed::FetchByDigest,
        frame::{FrameKind, Refusal},
    },
};

use crate::{ports::Sending, random::Stream};

/// Requests that may wait to be sent besides; what comes on top is left out.
const BESIDES_MAX: usize = 256;

/// The keys and means of one hacked process.
pub struct Hand {
    /// Its number.
    pub me: NodeIdx,
    /// The fleet.
    pub chain: ChainId,
    /// The validators.
    pub set: ValidatorSet,
    /// All validators but itself.
    pub validators: Vec<NodeIdx>,
    /// The other members of its cluster; empty for a validator.
    pub members: Vec<NodeIdx>,
    /// Signs entries and attestations.
    pub device: DeviceKey,
    /// Signs proposals and votes, if it is a validator.
    pub consensus: Option<ConsensusKey>,
    /// Chance of its own.
    pub random: Stream,
    /// True time.
    pub now_us: u64,
    besides: Vec<Sending>,
    deeds: BTreeMap<&'static str, u64>,
}

impl Hand {
    /// The hand of the process `name`.
    #[must_use]
    pub fn of(fleet: &Fleet, name: &str, random: Stream) -> Self {
        let me = fleet.idx(name);
        let member = fleet.registry.by_idx(me);
        let cluster = member.and_then(|member| member.cluster);
        let is_mate = |other: &&common::registry::Member| cluster.is_some() && other.cluster == cluster;
        let set = fleet.set.clone();
        let all = set.members().iter().map(|validator| validator.device);
        Self {
            me,
            chain: fleet.chain,
            validators: all.filter(|idx| *idx != me).collect(),
            members: (fleet.registry.members().iter().filter(is_mate))
                .map(|member| member.idx)
                .filter(|idx| *idx != me)
                .collect(),
            device: fleet.key(name),
            consensus: set.position(me).map(|_| fleet.consensus_key(name)),
            set,
            random,
            now_us: 0,
            besides: Vec::new(),
            deeds: BTreeMap::new(),
        }
    }

    /// Counts a deed.
    pub fn did(&mut self, what: &'static str) {
        *self.deeds.entry(what).or_default() += 1;
    }

    /// All deeds.
    #[must_use]
    pub fn deeds(&self) -> BTreeMap<&'static str, u64> {
        self.deeds.clone()
    }

    /// True in one case of `count`.
    pub fn one_in(&mut self, count: u64) -> bool {
        self.random.between(1, count) == 1
    }

    /// One of `from`, if there is any.
    pub fn pick<T: Clone>(&mut self, from: &[T]) -> Option<T> {
        let last = from.len().checked_sub(1)?;
        Some(from[self.random.between(0, last as u64) as usize].clone())
    }

    /// Everybody whom its messages concern: validators for a validator, mates and validators for a member.
    #[must_use]
    pub fn everybody(&self) -> Vec<NodeIdx> {
        self.members.iter().chain(&self.validators).copied().collect()
    }

    /// Its member id in Raft; no process of a run begins a second incarnation while it is hacked.
    #[must_use]
    pub fn raft(&self) -> RaftNodeId {
        RaftNodeId::new(self.me, 1)
    }

    /// `vote` under its own signature; `None` if it has no vote.
    #[must_use]
    pub fn sign(&self, vote: Vote) -> Option<SignedVote> {
        let key = self.consensus.as_ref()?;
        let signature = match &vote {
            Vote::Notarize(ballot) => key.sign_notarize(&self.chain, ballot),
            Vote::Finalize(ballot) => key.sign_finalize(&self.chain, ballot),
            Vote::Nullify(ballot) => key.sign_nullify(&self.chain, ballot),
        };
        Some(SignedVote {
            vote,
            voter: self.me,
            signature,
        })
    }

    /// Signs a proposal that was changed; `None` if it has no vote.
    pub fn sign_again(&self, proposal: &mut Proposal) -> Option<()> {
        let ballot = proposal.block.header.ballot();
        proposal.signature = self.consensus.as_ref()?.sign_proposal(&self.chain, &ballot);
        Some(())
    }

    /// What a validator answers that serves `own` blocks beside its real ones: the one that is asked for, else `answer`.
    pub fn answer_with<'a>(
        mut own: impl Iterator<Item = &'a Block>,
        kind: FrameKind,
        request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        let is_asked = kind == FrameKind::FetchBlock;
        let wanted = is_asked.then(|| decode::<FetchByDigest>(request).ok()).flatten();
        let block = wanted.and_then(|wanted| own.find(|block| block.digest() == wanted.digest));
        block.map_or(answer, |block| Ok(encode(block).into()))
    }

    /// Sends a request besides.
    pub fn send(&mut self, to: NodeIdx, kind: FrameKind, body: impl Into<Bytes>) {
        self.send_later(to, kind, body, 0);
    }

    /// The same, `after_us` from now.
    pub fn send_later(&mut self, to: NodeIdx, kind: FrameKind, body: impl Into<Bytes>, after_us: u64) {
        let body = body.into();
        if to != self.me && self.besides.len() < BESIDES_MAX {
            self.besides.push(Sending {
                to,
                kind,
                body,
                after_us,
            });
        }
    }

    /// Sends a value to all other validators.
    pub fn tell_validators<T: Wire>(&mut self, kind: FrameKind, value: &T) {
        let body: Bytes = encode(value).into();
        for to in self.validators.clone() {
            self.send(to, kind, body.clone());
        }
    }

    /// Votes besides, before all other validators.
    pub fn vote(&mut self, vote: Vote) {
        if let Some(signed) = self.sign(vote) {
            self.tell_validators(FrameKind::Vote, &signed);
        }
    }

    /// What waits to be sent.
    pub fn take_besides(&mut self) -> Vec<Sending> {
        std::mem::take(&mut self.besides)
    }
}
