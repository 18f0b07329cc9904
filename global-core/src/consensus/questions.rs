//! What the other rooms ask: whether there is something to judge, to propose or to fetch, and when to
//! look again. Nothing here changes anything.

use std::collections::BTreeSet;

use common::{
    block::{BlockHeader, ParentProof},
    certificate::{Ballot, Finalization, Signers},
    ids::{Digest, NodeIdx, View},
    wire::bft::Certificate,
};

use super::{Core, Held, Slot, Turn};
use crate::{clock::Instant, config::Config, ledger::Tip, mutant::has_fault, verify::CheckedMessage};

impl Core {
    /// The current view.
    #[must_use]
    pub fn view(&self) -> View {
        self.view
    }

    /// How many views something is held of, above the last final one.
    #[must_use]
    pub fn views_held(&self) -> usize {
        self.slots.len()
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The last final block.
    #[must_use]
    pub fn tip(&self) -> Tip {
        self.tip
    }

    /// Whether a vote or certificate may change anything here: its view is above the last final one, and it was not
    /// counted. A proposal is news always.
    #[must_use]
    pub fn is_news(&self, message: &CheckedMessage) -> bool {
        let slot = |view: View| self.slots.get(&view);
        let has = |view: View, has: fn(&Slot) -> bool| slot(view).is_some_and(has);
        let (view, is_held) = match message {
            CheckedMessage::Proposal(_) => return true,
            CheckedMessage::Vote(signed) => {
                let view = signed.vote.view();
                let position = self.config.set.position(signed.voter);
                let counts = |position: usize| slot(view).is_some_and(|slot| slot.has_counted(position, &signed.vote));
                (view, position.is_some_and(counts))
            }
            CheckedMessage::Certificate(certificate) => match &**certificate {
                Certificate::Notarization(n) => (n.ballot.view, has(n.ballot.view, |s| s.notarization.is_some())),
                Certificate::Nullification(n) => (n.ballot.view, has(n.ballot.view, |s| s.nullification.is_some())),
                Certificate::Finalization(f) => (f.ballot.view, has(f.ballot.view, |s| s.finalization.is_some())),
            },
        };
        view > self.tip.view && !is_held
    }

    /// The proposal of this view if I may still notarize it and it is justified: its parent is notarized
    /// and every view between is nullified.
    #[must_use]
    pub fn open_proposal(&self) -> Option<&Held> {
        self.config.me.filter(|_| self.view > self.floor)?;
        let own = self.own.get(&self.view).copied().unwrap_or_default();
        let held = self.slots.get(&self.view)?.proposal.as_ref()?;
        let may_notarize = match own.notarize {
            None => true,
            Some(before) => has_fault!(self.config.mutant, DoubleNotarize) && before.digest != held.digest,
        };
        (may_notarize && own.nullify.is_none() && self.is_justified(&held.proposal.block.header)).then_some(held)
    }

    fn is_justified(&self, header: &BlockHeader) -> bool {
        let is_nullified = |view: u64| self.slots.get(&View(view)).is_some_and(|s| s.nullification.is_some());
        let parent = self.is_notarized(header.parent_view, &header.parent);
        if !parent && !has_fault!(self.config.mutant, ParentUnchecked) {
            return false;
        }
        let between = (header.parent_view.0 + 1..header.view.0).all(is_nullified);
        between || has_fault!(self.config.mutant, NullificationsUnchecked)
    }

    fn is_notarized(&self, view: View, digest: &Digest) -> bool {
        (view == self.tip.view && *digest == self.tip.digest)
            || self.slots.get(&view).is_some_and(|slot| slot.is_agreed(digest))
    }

    /// My turn to propose, if it is and I have not; with the highest notarized block such that every view
    /// between is nullified, as far as I know.
    #[must_use]
    pub fn open_turn(&self) -> Option<Turn> {
        let own = self.own.get(&self.view).copied().unwrap_or_default();
        let is_mine = self.config.me == Some(self.config.set.leader(self.view)) && self.view > self.floor;
        if !is_mine || own.proposal.is_some() || own.notarize.is_some() || own.nullify.is_some() {
            return None;
        }
        let mut nullifications = Vec::new();
        let mut below = self.view.previous()?;
        let (parent, proof) = loop {
            if below == self.tip.view {
                break (self.tip.digest, self.tip_proof.clone()?);
            }
            let slot = self.slots.get(&below)?;
            if let Some(finalization) = &slot.finalization {
                break (
                    finalization.ballot.digest,
                    ParentProof::Finalization(finalization.clone()),
                );
            }
            if let Some(notarization) = &slot.notarization {
                break (
                    notarization.ballot.digest,
                    ParentProof::Notarization(notarization.clone()),
                );
            }
            nullifications.push(slot.nullification.clone()?);
            below = below.previous()?;
        };
        nullifications.reverse();
        Some(Turn {
            view: self.view,
            parent,
            proof,
            nullifications,
        })
    }

    /// Whether the block is the proposal held for `view`, or a quorum agreed on it there.
    #[must_use]
    pub fn knows(&self, view: View, digest: &Digest) -> bool {
        self.slots.get(&view).is_some_and(|slot| {
            slot.proposal.as_ref().is_some_and(|held| held.digest == *digest) || slot.is_agreed(digest)
        })
    }

    /// The block of the highest view that a quorum agreed on.
    #[must_use]
    pub fn highest_agreed(&self) -> Digest {
        self.agreed().last().map_or(self.tip.digest, |ballot| ballot.digest)
    }

    /// All blocks above the last final one that a quorum agreed on, ascending by view.
    pub fn agreed(&self) -> impl DoubleEndedIterator<Item = Ballot> + '_ {
        self.slots.values().filter_map(|slot| {
            let finalized = slot.finalization.as_ref().map(|f| f.ballot);
            finalized.or_else(|| slot.notarization.as_ref().map(|n| n.ballot))
        })
    }

    /// Finalizations above the last final block, highest view first.
    pub fn finalizations(&self) -> impl Iterator<Item = &Finalization> + '_ {
        self.slots.values().rev().filter_map(|slot| slot.finalization.as_ref())
    }

    /// Who should hold a block: the proposer of its view, then who voted for it.
    #[must_use]
    pub fn likely_holders(&self, digest: &Digest) -> Vec<NodeIdx> {
        let mut holders = Vec::new();
        for (view, slot) in &self.slots {
            let held = slot
                .proposal
                .as_ref()
                .filter(|held| held.proposal.block.header.parent == *digest);
            let is_here = slot.is_agreed(digest);
            if held.is_some() || is_here {
                holders.push(self.config.set.leader(*view));
            }
            let parent_signers = held.and_then(|held| match &held.proposal.parent_proof {
                ParentProof::Genesis => None,
                ParentProof::Notarization(n) => Some(&n.signers),
                ParentProof::Finalization(f) => Some(&f.signers),
            });
            let notarization = slot.notarization.as_ref().filter(|n| n.ballot.digest == *digest);
            let finalization = slot.finalization.as_ref().filter(|f| f.ballot.digest == *digest);
            let signers = [
                parent_signers,
                notarization.map(|n| &n.signers),
                finalization.map(|f| &f.signers),
            ];
            for signers in signers.into_iter().flatten() {
                holders.extend(self.devices(signers));
            }
        }
        let mut seen = BTreeSet::new();
        holders.retain(|device| Some(*device) != self.config.me && seen.insert(*device));
        holders
    }

    /// The devices that signed.
    pub fn devices(&self, signers: &Signers) -> Vec<NodeIdx> {
        let members = self.config.set.members();
        let positions = signers.positions(members.len()).unwrap_or_default();
        positions.into_iter().map(|position| members[position].device).collect()
    }

    /// Whether the leader of this view, which is another, has been silent in its last turns and is in this one.
    #[must_use]
    pub fn is_leader_silent(&self) -> bool {
        let leader = self.config.set.leader(self.view);
        let is_silent = self.elector.is_silent(self.view, &self.config.set);
        Some(leader) != self.config.me && !self.has_leader_spoken() && is_silent
    }

    /// Whether a block is due although nothing waits.
    #[must_use]
    pub fn is_idle_over(&self, now: Instant) -> bool {
        self.pacemaker.is_idle_over(now)
    }

    /// When a leader proposes a block without references, to finalize those below.
    #[must_use]
    pub fn empty_block_at(&self) -> Instant {
        self.pacemaker.empty_block_at()
    }

    /// When a leader proposes a block that brings nothing but a root.
    #[must_use]
    pub fn owed_root_at(&self) -> Instant {
        self.pacemaker.owed_root_at()
    }

    /// How long a leader takes to fetch a batch that it was told of, in microseconds.
    #[must_use]
    pub fn notice_timer_us(&self) -> u64 {
        self.pacemaker.notice_timer_us()
    }

    /// How long a request may take before it is made again, in microseconds.
    #[must_use]
    pub fn fetch_timer_us(&self) -> u64 {
        self.pacemaker.fetch_timer_us()
    }

    /// When to give [`Input::Tick`](super::Input::Tick) at the latest.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        self.pacemaker.next_deadline()
    }
}
