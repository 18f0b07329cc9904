//! What the core asks its shell to do. Performed in order.

use common::{
    block::{Block, FinalizedBlock, ParentProof, Proposal},
    certificate::{Nullification, SignedVote, Vote},
    ids::{Digest, Height, NodeIdx},
    wire::bft::{BftMessage, Certificate},
};

use crate::{batch_pool::WantedBatch, clock::Instant, ledger::Roots};

/// Who receives a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Recipient {
    /// Every other validator.
    All,
    /// One.
    One(NodeIdx),
}

/// Must be on disk before anything that is sent after it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Record {
    /// A block that I am about to notarize, as its leader sent it. Its batches were stored before.
    Proposal(Box<Proposal>),
    /// A certificate that I act on.
    Certificate(Certificate),
}

/// A proposal without its signature.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Draft {
    /// The block.
    pub block: Block,
    /// For the parent.
    pub parent_proof: ParentProof,
    /// For every view between, ascending; older ones that do not fit were sent before.
    pub nullifications: Vec<Nullification>,
}

impl Draft {
    /// The proposal, with the leader's `signature` over the block's ballot.
    ///
    /// # Panics
    /// If there are more nullifications than a proposal holds: the core makes no such draft.
    #[must_use]
    pub fn sign(self, signature: common::crypto::Signature) -> Proposal {
        Proposal {
            block: self.block,
            signature,
            parent_proof: self.parent_proof,
            nullifications: self
                .nullifications
                .try_into()
                .expect("drafts are made within the bound of a proposal"),
        }
    }
}

/// Two signed statements of one validator that no honest validator makes both of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant)]
pub enum Evidence {
    /// Two votes of one kind and view with different content, or a nullify and a finalize of one view.
    Votes(SignedVote, SignedVote),
    /// Two blocks for one view.
    Proposals(Box<Proposal>, Box<Proposal>),
}

/// Why this validator must not go on.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum HaltReason {
    /// A quorum agreed on other roots than this machine computed: its disk, memory or program is wrong.
    #[error("block {block} at height {height} was notarized with roots {got}, computed here: {want}")]
    OtherRoots {
        /// The notarized block.
        block: Digest,
        /// Its height.
        height: Height,
        /// In its header.
        got: Roots,
        /// Computed here.
        want: Roots,
    },
    /// Two final blocks that do not descend from each other: a third of the weight or more is faulty.
    #[error("final block {block} at height {height} does not descend from my final block {tip}")]
    Fork {
        /// The other final block.
        block: Digest,
        /// Its height.
        height: Height,
        /// Mine.
        tip: Digest,
    },
}

/// Something to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Write; durable before any later `Vote`, `Propose` or `Send`.
    Persist(Record),
    /// Ask the guard; record in it, durably; sign; send to all others; give the signed vote back as
    /// [`Input::OwnVote`](crate::core::Input::OwnVote).
    Vote(Vote),
    /// Ask the guard; sign; write the proposal and record it in the guard, durably; send to all
    /// others; give it back as [`Input::OwnProposal`](crate::core::Input::OwnProposal).
    Propose(Box<Draft>),
    /// Send. Loss is allowed.
    Send {
        /// To whom.
        to: Recipient,
        /// What.
        message: BftMessage,
    },
    /// Give [`Input::Tick`](crate::core::Input::Tick) at this instant. Replaces the timer set before; `None` stops it.
    SetTimer(Option<Instant>),
    /// Get a block by digest, from one of these or else from anybody. It is asked for again if it does not come.
    FetchBlock {
        /// Which.
        digest: Digest,
        /// Likely to hold it, best first.
        from: Vec<NodeIdx>,
    },
    /// Get a batch by digest, store it, and report it as stored. Asked for again if it does not come.
    FetchBatch(WantedBatch),
    /// Get finalized blocks from a height on.
    RequestSync {
        /// From whom.
        to: NodeIdx,
        /// First height wanted.
        from: Height,
    },
    /// Load the batches of this block, all stored, and call
    /// [`GlobalCore::execute`](crate::core::GlobalCore::execute). May be done later than other effects.
    Execute(Box<Block>),
    /// These are final, ascending and without a gap since the last ones. Write them; afterwards the
    /// guard may be compacted to the view of the last.
    Finalized(Vec<FinalizedBlock>),
    /// The final block at this height was executed here; one effect per height, ascending.
    Executed {
        /// Height.
        height: Height,
        /// The block.
        digest: Digest,
    },
    /// A validator contradicted itself. At most once per validator.
    Evidence(Box<Evidence>),
    /// Stop the process, loudly. Nothing follows.
    Halt(HaltReason),
}
