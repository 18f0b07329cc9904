//! Who may speak: checks signatures and form before a message reaches the core.
//! In: messages as decoded. Out: [`Checked`] messages, which nothing else can make.
//!
//! # Rules
//! * Upon a vote: its voter is in the set and signed it.
//! * Upon a certificate: more than two thirds of the weight signed it.
//! * Upon a proposal: the leader of its view signed the block, the proof is for the parent that the
//!   block names, and the nullifications are for views between, ascending. All of them verify.
//!
//! # Invariants
//! * A refused message changes nothing. The leader signs the block only, so a false certificate
//!   beside it is the fault of whoever sent it on, and no reason to nullify the view.

use std::collections::{BTreeSet, VecDeque};

use common::{
    block::{FinalityError, FinalizedBlock, ParentProof, Proposal, genesis_digest},
    certificate::{CertificateError, SignedVote},
    codec::{Wire, encode},
    crypto::sha256,
    ids::{ChainId, Digest, Epoch, Height, NodeIdx, View},
    validator_set::ValidatorSet,
    wire::bft::{BftMessage, Certificate},
};

/// Certificates whose verification is remembered.
const REMEMBERED_MAX: usize = 4_096;

/// A value whose signatures and form were checked. Made by [`Verifier`] only.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Checked<T>(T);

impl<T> Checked<T> {
    /// Takes the value out.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }

    /// For tests, in which the network knows what everybody signed.
    #[cfg(test)]
    pub(crate) fn assumed(value: T) -> Self {
        Self(value)
    }
}

impl Checked<Certificate> {
    /// The finalization inside a checked proof of finality.
    pub(crate) fn of_proof(finalized: &Checked<FinalizedBlock>) -> Self {
        Self(Certificate::Finalization(finalized.proof.finalization.clone()))
    }
}

impl<T> core::ops::Deref for Checked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// What the core takes from other validators.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CheckedMessage {
    /// By the leader of a view.
    Proposal(Checked<Box<Proposal>>),
    /// By one validator.
    Vote(Checked<SignedVote>),
    /// By a quorum.
    Certificate(Checked<Certificate>),
}

/// Why a message is refused. The sender's fault: count it against the peer, change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Of another fleet.
    #[error("of another fleet")]
    WrongChain,
    /// Of another epoch.
    #[error("of epoch {got}, the set is of epoch {want}")]
    WrongEpoch {
        /// In the message.
        got: Epoch,
        /// Of the set.
        want: Epoch,
    },
    /// A vote by somebody outside of the set, or with a wrong signature.
    #[error("the vote said to be of {0} is not signed by a validator of that number")]
    Vote(NodeIdx),
    /// The leader of the view did not sign the block.
    #[error("the proposal is not signed by {leader}, who leads view {view}")]
    NotByLeader {
        /// The view.
        view: View,
        /// Its leader.
        leader: NodeIdx,
    },
    /// The block breaks a rule that needs no history.
    #[error("block: {0}")]
    Block(&'static str),
    /// The proof beside the block is for another parent.
    #[error("the proof is not for the parent {parent} of view {view}")]
    OtherParent {
        /// Named by the block.
        parent: Digest,
        /// Named by the block.
        view: View,
    },
    /// A nullification outside of the views between, twice, or out of order.
    #[error("a nullification of view {0} has no place in this proposal")]
    StrayNullification(View),
    /// A certificate is worth nothing.
    #[error("certificate: {0}")]
    Certificate(#[from] CertificateError),
    /// A block is not shown to be final.
    #[error("proof of finality: {0}")]
    Finality(#[from] FinalityError),
    /// A batch notice, which is not checked here.
    #[error("not a message of the core")]
    NotForTheCore,
}

/// Checks messages under one validator set, and remembers which certificates it has checked.
#[derive(Clone, Debug)]
pub struct Verifier {
    chain: ChainId,
    set: ValidatorSet,
    known: BTreeSet<Digest>,
    order: VecDeque<Digest>,
}

impl Verifier {
    /// For the validators of `set`.
    #[must_use]
    pub fn new(chain: ChainId, set: ValidatorSet) -> Self {
        Self {
            chain,
            set,
            known: BTreeSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Checks any message that is meant for the core.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn message(&mut self, message: BftMessage) -> Result<CheckedMessage, VerifyError> {
        match message {
            BftMessage::Proposal(proposal) => Ok(CheckedMessage::Proposal(self.proposal(proposal)?)),
            BftMessage::Vote(vote) => Ok(CheckedMessage::Vote(self.vote(vote)?)),
            BftMessage::Certificate(certificate) => Ok(CheckedMessage::Certificate(self.certificate(certificate)?)),
            BftMessage::BatchNotice(_) => Err(VerifyError::NotForTheCore),
        }
    }

    /// Checks one vote.
    ///
    /// # Errors
    /// [`VerifyError::WrongEpoch`], [`VerifyError::Vote`].
    pub fn vote(&self, vote: SignedVote) -> Result<Checked<SignedVote>, VerifyError> {
        self.check_epoch(vote.vote.epoch())?;
        if !vote.is_signed(&self.chain, &self.set) {
            return Err(VerifyError::Vote(vote.voter));
        }
        Ok(Checked(vote))
    }

    /// Checks one certificate.
    ///
    /// # Errors
    /// [`VerifyError::Certificate`].
    pub fn certificate(&mut self, certificate: Certificate) -> Result<Checked<Certificate>, VerifyError> {
        self.check_certificate(&certificate)?;
        Ok(Checked(certificate))
    }

    /// Checks one certificate that came as `encoded`, of which it was decoded: it is known by these bytes without being
    /// encoded again.
    ///
    /// # Errors
    /// [`VerifyError::Certificate`].
    pub fn certificate_of(
        &mut self,
        certificate: Certificate,
        encoded: &[u8],
    ) -> Result<Checked<Certificate>, VerifyError> {
        self.check_named(&certificate, sha256(&[encoded]))?;
        Ok(Checked(certificate))
    }

    /// Checks a proposal with all certificates in it.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn proposal(&mut self, proposal: Box<Proposal>) -> Result<Checked<Box<Proposal>>, VerifyError> {
        let header = &proposal.block.header;
        if header.chain != self.chain {
            return Err(VerifyError::WrongChain);
        }
        self.check_epoch(header.epoch)?;
        proposal.validate().map_err(VerifyError::Block)?;
        let leader = self.set.leader(header.view);
        let position = self.set.position(leader).expect("a leader is a member of its set");
        if !proposal.is_signed(&self.chain, &self.set.members()[position].key) {
            return Err(VerifyError::NotByLeader {
                view: header.view,
                leader,
            });
        }
        check_parent_proof(&proposal, &self.chain)?;
        let mut below = header.parent_view;
        for nullification in &proposal.nullifications {
            let view = nullification.ballot.view;
            if view <= below || view >= header.view {
                return Err(VerifyError::StrayNullification(view));
            }
            below = view;
        }
        match &proposal.parent_proof {
            ParentProof::Genesis => {}
            ParentProof::Notarization(n) => self.check_certificate(&Certificate::Notarization(n.clone()))?,
            ParentProof::Finalization(f) => self.check_certificate(&Certificate::Finalization(f.clone()))?,
        }
        for nullification in &proposal.nullifications {
            self.check_certificate(&Certificate::Nullification(nullification.clone()))?;
        }
        Ok(Checked(proposal))
    }

    /// Checks that a block is final by its proof alone, and its references against its header.
    ///
    /// # Errors
    /// [`VerifyError::Finality`], [`VerifyError::Block`].
    pub fn finalized(&self, finalized: FinalizedBlock) -> Result<Checked<FinalizedBlock>, VerifyError> {
        finalized.validate().map_err(VerifyError::Block)?;
        finalized
            .proof
            .verify(&finalized.block.header, &self.chain, &self.set)?;
        Ok(Checked(finalized))
    }

    fn check_epoch(&self, got: Epoch) -> Result<(), VerifyError> {
        let want = self.set.epoch();
        if got == want {
            Ok(())
        } else {
            Err(VerifyError::WrongEpoch { got, want })
        }
    }

    fn check_certificate(&mut self, certificate: &Certificate) -> Result<(), VerifyError> {
        self.check_named(certificate, sha256(&[&encode(certificate)]))
    }

    /// `name`: of its encoding.
    fn check_named(&mut self, certificate: &Certificate, name: Digest) -> Result<(), VerifyError> {
        if self.known.contains(&name) {
            return Ok(());
        }
        match certificate {
            Certificate::Notarization(c) => c.verify(&self.chain, &self.set)?,
            Certificate::Nullification(c) => c.verify(&self.chain, &self.set)?,
            Certificate::Finalization(c) => c.verify(&self.chain, &self.set)?,
        }
        if self.order.len() == REMEMBERED_MAX {
            let oldest = self.order.pop_front().expect("REMEMBERED_MAX is above 0");
            self.known.remove(&oldest);
        }
        self.known.insert(name);
        self.order.push_back(name);
        Ok(())
    }
}

/// Whether the proof beside a block is for the parent that the block names.
fn check_parent_proof(proposal: &Proposal, chain: &ChainId) -> Result<(), VerifyError> {
    let header = &proposal.block.header;
    let is_for_parent = match &proposal.parent_proof {
        ParentProof::Genesis => {
            header.parent == genesis_digest(chain) && header.parent_view == View(0) && header.height == Height(1)
        }
        ParentProof::Notarization(common::certificate::Notarization { ballot, .. })
        | ParentProof::Finalization(common::certificate::Finalization { ballot, .. }) => {
            ballot.digest == header.parent
                && ballot.view == header.parent_view
                && header.height.previous() == Some(ballot.height)
        }
    };
    if is_for_parent && header.parent_view < header.view {
        Ok(())
    } else {
        Err(VerifyError::OtherParent {
            parent: header.parent,
            view: header.parent_view,
        })
    }
}

#[cfg(test)]
mod tests;
