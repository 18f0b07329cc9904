//! Processes in an enemy's hands: real ones, with their keys, whose messages are rewritten on the way out.
//!
//! In: a [`Plan`](crate::run::Plan)'s enemies. Out: taps ([`crate::ports::Tap`]) between these processes
//! and their links, and the list of what nobody may hold the fleet to ([`suspects`]). One file per actor.
//!
//! # Rules
//! * The real code stays in the path: an actor only changes, signs anew with its own key, holds back, delays,
//!   repeats and adds messages.
//! * What it signed in secret is hidden from its own process ([`mask`]), which would stop otherwise.
//! * At most f of 3f+1 validators and a minority of a cluster are in an enemy's hands, but for the run that
//!   shows that the checkers notice more.
//! * They never heal. Checkers judge honest processes only.

pub mod amnesiac;
pub mod copyist;
pub mod double_voter;
pub mod equivocator;
pub mod forger;
mod hand;
pub mod lying_leader;
pub mod mask;
pub mod packer;
pub mod poisoner;
mod posts;
pub mod replayer;
pub mod root_forger;
pub mod selective;
pub mod spammer;
pub mod suspects;
pub mod twins;
pub mod withholder;

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use common::{
    ids::NodeIdx,
    wire::frame::{FrameKind, Refusal},
};
use serde::{Deserialize, Serialize};

pub use hand::Hand;
use mask::Mask;
pub use posts::{Enemies, Enemy, Post};

use crate::ports::{Leaves, Sending, Tap};

/// What an enemy does with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// Proposes two blocks in one view, and votes for both.
    Equivocator,
    /// Votes for everything that anybody votes for, and against it.
    DoubleVoter,
    /// Holds back votes, certificates, notices or batches.
    Withholder,
    /// Invents batches, rows and references.
    Forger,
    /// Hands out other copies of certified batches, with the digest of the good one.
    Copyist,
    /// Proposes blocks with roots that nobody computed.
    RootForger,
    /// Sends again what was sent before, by anybody.
    Replayer,
    /// Speaks to some and not to others.
    Selective,
    /// Runs on a backup of its disk, and votes again.
    Amnesiac,
    /// Leads a cluster, and lies about what is committed and what is in a batch.
    LyingLeader,
    /// Answers with damaged blocks, proofs, batches and snapshots.
    Poisoner,
    /// Sends more than anybody asked for.
    Spammer,
    /// Packs bundles that nobody should send.
    Packer,
    /// Runs twice, on two hosts with one key.
    Twins,
}

impl ActorKind {
    /// In the order of the variants.
    pub const ALL: [Self; 14] = [
        Self::Equivocator,
        Self::DoubleVoter,
        Self::Withholder,
        Self::Forger,
        Self::Copyist,
        Self::RootForger,
        Self::Replayer,
        Self::Selective,
        Self::Amnesiac,
        Self::LyingLeader,
        Self::Poisoner,
        Self::Spammer,
        Self::Packer,
        Self::Twins,
    ];

    /// The word in files and reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Equivocator => "equivocator",
            Self::DoubleVoter => "double_voter",
            Self::Withholder => "withholder",
            Self::Forger => "forger",
            Self::Copyist => "copyist",
            Self::RootForger => "root_forger",
            Self::Replayer => "replayer",
            Self::Selective => "selective",
            Self::Amnesiac => "amnesiac",
            Self::LyingLeader => "lying_leader",
            Self::Poisoner => "poisoner",
            Self::Spammer => "spammer",
            Self::Packer => "packer",
            Self::Twins => "twins",
        }
    }

    /// Whether it makes something of a validator.
    #[must_use]
    pub fn is_for_validators(self) -> bool {
        self != Self::LyingLeader
    }

    /// Whether it makes something of a member of a cluster.
    #[must_use]
    pub fn is_for_members(self) -> bool {
        matches!(
            self,
            Self::Withholder
                | Self::Forger
                | Self::Copyist
                | Self::Replayer
                | Self::Selective
                | Self::LyingLeader
                | Self::Poisoner
                | Self::Spammer
        )
    }

    fn make(self) -> Box<dyn Actor> {
        match self {
            Self::Equivocator => Box::<equivocator::Equivocator>::default(),
            Self::DoubleVoter => Box::<double_voter::DoubleVoter>::default(),
            Self::Withholder => Box::<withholder::Withholder>::default(),
            Self::Forger => Box::<forger::Forger>::default(),
            Self::Copyist => Box::<copyist::Copyist>::default(),
            Self::RootForger => Box::<root_forger::RootForger>::default(),
            Self::Replayer => Box::<replayer::Replayer>::default(),
            Self::Selective => Box::<selective::Selective>::default(),
            Self::Amnesiac => Box::<amnesiac::Amnesiac>::default(),
            Self::LyingLeader => Box::<lying_leader::LyingLeader>::default(),
            Self::Poisoner => Box::<poisoner::Poisoner>::default(),
            Self::Spammer => Box::<spammer::Spammer>::default(),
            Self::Packer => Box::<packer::Packer>::default(),
            Self::Twins => Box::<twins::Twin>::default(),
        }
    }
}

/// What an actor did, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnemyReport {
    /// Which process.
    pub who: String,
    /// What was done with it.
    pub actor: ActorKind,
    /// What it did, and how often.
    pub deeds: BTreeMap<&'static str, u64>,
}

impl fmt::Display for EnemyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deeds: Vec<String> = self
            .deeds
            .iter()
            .map(|(deed, times)| format!("{times} x {deed}"))
            .collect();
        write!(f, "{} is a {}: {}", self.who, self.actor.word(), deeds.join(", "))
    }
}

/// What an enemy does with the messages of its process. The default is nothing.
pub trait Actor: Send {
    /// The process sends a request.
    fn sends(&mut self, _hand: &mut Hand, _to: NodeIdx, _kind: FrameKind, body: &Bytes) -> Leaves {
        Leaves::As(body.clone())
    }

    /// A request reached the process.
    fn hears(&mut self, _hand: &mut Hand, _from: NodeIdx, _kind: FrameKind, _body: &[u8]) {}

    /// The process answers a request of `to`.
    fn answers(
        &mut self,
        _hand: &mut Hand,
        _to: NodeIdx,
        _kind: FrameKind,
        _request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        answer
    }

    /// Its disk was set back to an earlier time; `forgotten` are its votes since.
    fn forgot(&mut self, _hand: &mut Hand, _forgotten: &[common::certificate::Vote]) {}
}

/// A process in an enemy's hands: the tap on its links.
pub struct Hacked {
    hand: Hand,
    mask: Mask,
    actor: Box<dyn Actor>,
    backup: Option<Mask>,
}

impl Hacked {
    /// `hand` under an actor of this kind.
    #[must_use]
    pub fn new(hand: Hand, actor: ActorKind) -> Self {
        Self {
            mask: Mask::new(hand.me, hand.set.clone()),
            hand,
            actor: actor.make(),
            backup: None,
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn deeds(&self) -> BTreeMap<&'static str, u64> {
        self.hand.deeds()
    }

    /// Its disk is copied now.
    pub fn back_up(&mut self) {
        self.backup = Some(self.mask.clone());
    }

    /// Its disk is as it was at the last copy. False if there is none.
    pub fn restore(&mut self) -> bool {
        let Some(before) = self.backup.clone() else {
            return false;
        };
        let forgotten = self.mask.votes_beyond(&before);
        self.mask = before;
        self.hand.did("lives on a backup");
        self.actor.forgot(&mut self.hand, &forgotten);
        true
    }
}

impl Tap for Hacked {
    fn sends(&mut self, now_us: u64, to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        self.hand.now_us = now_us;
        self.mask.note(kind, body);
        self.actor.sends(&mut self.hand, to, kind, body)
    }

    fn hears(&mut self, now_us: u64, from: NodeIdx, kind: FrameKind, body: &[u8]) -> bool {
        self.hand.now_us = now_us;
        self.actor.hears(&mut self.hand, from, kind, body);
        !self.mask.hides(kind, body)
    }

    fn answers(
        &mut self,
        now_us: u64,
        to: NodeIdx,
        kind: FrameKind,
        request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        self.hand.now_us = now_us;
        self.actor.answers(&mut self.hand, to, kind, request, answer)
    }

    fn is_told(&mut self, _now_us: u64, _from: NodeIdx, kind: FrameKind, answer: Bytes) -> Bytes {
        self.mask.clean(kind, answer)
    }

    fn besides(&mut self) -> Vec<Sending> {
        self.hand.take_besides()
    }
}
