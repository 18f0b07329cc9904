//! Which blocks and batches are wanted from other validators, and who is asked for each. Data: no task, no clock.
//! In: what the core wants, how questions ended. Out: who is asked what. Called by: [`super::fetch`].
//!
//! # Rules
//! * Upon something wanted: ask one validator at a time. First those that failed it least often, among them who likely
//!   holds it, then all others by their numbers; of them the first one with a free slot.
//! * Upon a question that brought nothing: ask the next one that was not asked in this round. With nobody left, it
//!   rests until the core wants it again; then a new round begins.
//! * Upon a slot that becomes free: what this validator is the best candidate for, and has waited longest.
//! * Upon something that the core no longer wants: forgotten; a question under way may end first.
//!
//! # Invariants
//! * At most [`SLOTS_PER_PEER`] questions to one validator are under way.
//! * What waits has no candidate left with a free slot.
//!
//! # Why
//! A validator that does not answer holds a slot until the deadline. With slots of its own it keeps only those waiting
//! who need what nobody else has, and references that a leader invented cost others a refusal each. What is wanted is
//! bounded by the core; here it must not live longer than there.

use std::collections::{BTreeMap, VecDeque};

use common::{
    block::BatchRef,
    ids::{Digest, NodeIdx},
};

/// Questions under way to one validator. Its connection takes 32 requests at once, of which messages need half.
pub const SLOTS_PER_PEER: usize = 8;

/// Something that other validators may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// A block, by its digest.
    Block(Digest),
    /// A certified batch.
    Batch(BatchRef),
}

impl Wanted {
    /// What is asked for.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self {
            Self::Block(digest) => *digest,
            Self::Batch(batch) => batch.digest,
        }
    }
}

/// How a question ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It brought what was wanted.
    Found,
    /// The one asked does not have it.
    NotThere,
    /// No answer in time, or one that is worth nothing.
    Failed,
    /// What came is what was wanted, and cannot be taken now: nobody has another.
    NotNow,
}

#[derive(Debug)]
struct Want {
    /// Greater: wanted later.
    turn: u64,
    /// Not asked in this round, best first.
    left: Vec<NodeIdx>,
    /// Who is asked now.
    asked: Option<NodeIdx>,
    /// How often somebody failed.
    failures: BTreeMap<NodeIdx, u32>,
    /// Whether the core still wants it.
    is_wanted: bool,
}

#[derive(Debug, Default)]
struct Slots {
    taken: usize,
    /// Given a slot, and not yet asked.
    to_ask: VecDeque<Wanted>,
}

impl Slots {
    fn is_free(&self) -> bool {
        self.taken < SLOTS_PER_PEER
    }
}

/// All that is wanted.
#[derive(Debug)]
pub struct Wants {
    wants: BTreeMap<Wanted, Want>,
    peers: BTreeMap<NodeIdx, Slots>,
    turns: u64,
}

impl Wants {
    /// Nothing yet; `peers` may be asked.
    #[must_use]
    pub fn new(peers: impl IntoIterator<Item = NodeIdx>) -> Self {
        Self {
            wants: BTreeMap::new(),
            peers: peers.into_iter().map(|idx| (idx, Slots::default())).collect(),
            turns: 0,
        }
    }

    /// The core wants something, or wants it still; `likely` hold it, best first. Returns who has something new to be
    /// asked.
    pub fn want(&mut self, wanted: Wanted, likely: &[NodeIdx]) -> Option<NodeIdx> {
        let turn = self.turns;
        let want = self.wants.entry(wanted).or_insert_with(|| {
            self.turns += 1;
            Want {
                turn,
                left: Vec::new(),
                asked: None,
                failures: BTreeMap::new(),
                is_wanted: true,
            }
        });
        want.is_wanted = true;
        want.left.clear();
        for idx in likely.iter().chain(self.peers.keys()) {
            if self.peers.contains_key(idx) && want.asked != Some(*idx) && !want.left.contains(idx) {
                want.left.push(*idx);
            }
        }
        let failures = &want.failures;
        want.left
            .sort_by_key(|idx| failures.get(idx).copied().unwrap_or_default());
        self.ask_somebody(wanted)
    }

    /// What `peer` is to be asked next.
    pub fn next_for(&mut self, peer: NodeIdx) -> Option<Wanted> {
        self.peers.get_mut(&peer)?.to_ask.pop_front()
    }

    /// A question that [`Wants::next_for`] gave out has ended. Returns who has something new to be asked.
    pub fn ended(&mut self, peer: NodeIdx, wanted: Wanted, ending: Ending) -> [Option<NodeIdx>; 2] {
        if let Some(slots) = self.peers.get_mut(&peer) {
            slots.taken -= 1;
        }
        let next = self.wants.get_mut(&wanted).and_then(|want| {
            want.asked = None;
            match ending {
                Ending::Found | Ending::NotThere => {}
                Ending::Failed => *want.failures.entry(peer).or_default() += 1,
                Ending::NotNow => want.left.clear(),
            }
            (want.is_wanted && ending != Ending::Found).then_some(wanted)
        });
        let asked = match next {
            Some(wanted) => self.ask_somebody(wanted),
            None => {
                self.wants.remove(&wanted);
                None
            }
        };
        [asked, self.fill(peer)]
    }

    /// Forgets what the core no longer wants.
    pub fn keep_only(&mut self, is_wanted: impl Fn(&Wanted) -> bool) {
        self.wants.retain(|wanted, want| {
            want.is_wanted = is_wanted(wanted);
            want.is_wanted || want.asked.is_some()
        });
    }

    /// How much is wanted, questions under way included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.wants.len()
    }

    /// Gives `wanted` to the best candidate with a free slot, if it is asked of nobody.
    fn ask_somebody(&mut self, wanted: Wanted) -> Option<NodeIdx> {
        let want = self.wants.get(&wanted).filter(|want| want.asked.is_none())?;
        let is_free = |idx: &NodeIdx| self.peers.get(idx).is_some_and(Slots::is_free);
        let idx = want.left.iter().copied().find(is_free)?;
        self.ask(idx, wanted)
    }

    /// Gives a slot of `peer`, if one is free, to what needs it most.
    fn fill(&mut self, peer: NodeIdx) -> Option<NodeIdx> {
        self.peers.get(&peer).filter(|slots| slots.is_free())?;
        let waiting = self.wants.iter().filter(|(_, want)| want.asked.is_none());
        let ranked = waiting.filter_map(|(wanted, want)| {
            let rank = want.left.iter().position(|idx| *idx == peer)?;
            Some((rank, want.turn, *wanted))
        });
        let (_, _, wanted) = ranked.min()?;
        self.ask(peer, wanted)
    }

    fn ask(&mut self, peer: NodeIdx, wanted: Wanted) -> Option<NodeIdx> {
        let (want, slots) = (self.wants.get_mut(&wanted)?, self.peers.get_mut(&peer)?);
        want.left.retain(|idx| *idx != peer);
        want.asked = Some(peer);
        slots.taken += 1;
        slots.to_ask.push_back(wanted);
        Some(peer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeIdx = NodeIdx(1);
    const B: NodeIdx = NodeIdx(2);
    const C: NodeIdx = NodeIdx(3);

    fn wants() -> Wants {
        Wants::new([A, B, C])
    }

    fn wanted(number: u64) -> Wanted {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        Wanted::Block(Digest(digest))
    }

    /// Ends a question that `peer` must have been asked.
    fn end(wants: &mut Wants, peer: NodeIdx, wanted: Wanted, ending: Ending) {
        assert_eq!(wants.next_for(peer), Some(wanted));
        wants.ended(peer, wanted, ending);
    }

    /// Everything that somebody is to be asked now.
    fn questions(wants: &mut Wants) -> Vec<(NodeIdx, Wanted)> {
        let mut questions = Vec::new();
        for peer in [A, B, C] {
            while let Some(wanted) = wants.next_for(peer) {
                questions.push((peer, wanted));
            }
        }
        questions
    }

    #[test]
    fn who_likely_holds_it_is_asked_first_and_then_all_others_one_at_a_time() {
        let mut wants = wants();
        assert_eq!(wants.want(wanted(1), &[C]), Some(C));
        for peer in [C, A, B] {
            end(&mut wants, peer, wanted(1), Ending::NotThere);
        }
        assert_eq!(questions(&mut wants), [], "it rests");
        assert_eq!(wants.want(wanted(1), &[NodeIdx(99), B]), Some(B), "a new round");
        end(&mut wants, B, wanted(1), Ending::Found);
        assert!(wants.wants.is_empty());
        assert!(wants.peers.values().all(|slots| slots.taken == 0));
    }

    #[test]
    fn new_round_begins_with_those_that_did_not_fail() {
        let mut wants = wants();
        wants.want(wanted(1), &[]);
        end(&mut wants, A, wanted(1), Ending::Failed);
        end(&mut wants, B, wanted(1), Ending::NotThere);
        end(&mut wants, C, wanted(1), Ending::Failed);
        wants.want(wanted(1), &[A]);
        for peer in [B, A, C] {
            end(&mut wants, peer, wanted(1), Ending::Failed);
        }
    }

    #[test]
    fn what_cannot_be_taken_now_is_asked_of_nobody_else_until_it_is_wanted_again() {
        let mut wants = wants();
        wants.want(wanted(1), &[]);
        end(&mut wants, A, wanted(1), Ending::NotNow);
        assert_eq!(questions(&mut wants), []);
        assert_eq!(wants.want(wanted(1), &[]), Some(A), "nobody failed");
    }

    #[test]
    fn wanted_twice_is_asked_once() {
        let mut wants = wants();
        assert_eq!(wants.want(wanted(1), &[B]), Some(B));
        assert_eq!(wants.want(wanted(1), &[A]), None);
        assert_eq!(questions(&mut wants), [(B, wanted(1))]);
        wants.ended(B, wanted(1), Ending::NotThere);
        assert_eq!(questions(&mut wants), [(A, wanted(1))], "who is likely by now");
    }

    #[test]
    fn silent_one_uses_up_its_own_slots_and_only_what_is_nowhere_else_waits_for_it() {
        let (mut wants, of_a) = (wants(), 4 * SLOTS_PER_PEER);
        for number in 0..of_a as u64 {
            wants.want(wanted(number), &[A]);
        }
        let (mut silent, mut refused) = (0, 0);
        loop {
            let asked = questions(&mut wants);
            if asked.is_empty() {
                break;
            }
            for (peer, asked) in asked {
                if peer == A {
                    silent += 1;
                } else {
                    refused += 1;
                    wants.ended(peer, asked, Ending::NotThere);
                }
            }
        }
        assert_eq!(silent, SLOTS_PER_PEER);
        assert_eq!(
            refused,
            2 * (of_a - SLOTS_PER_PEER),
            "both others are asked at once for what waits"
        );
        assert_eq!(wants.want(wanted(900), &[B]), Some(B), "and have slots left");
    }

    #[test]
    fn freed_slot_goes_to_what_its_validator_is_best_for_before_what_waited_longer() {
        let mut wants = Wants::new([A, B]);
        for number in 0..3 * SLOTS_PER_PEER as u64 {
            wants.want(wanted(number), &[A]);
        }
        wants.want(wanted(900), &[B]);
        let asked = questions(&mut wants);
        assert!(asked.iter().all(|(_, asked)| *asked != wanted(900)));
        let (_, ends) = *asked.iter().find(|(peer, _)| *peer == B).unwrap();
        let woken = wants.ended(B, ends, Ending::NotThere);
        assert_eq!(woken, [None, Some(B)]);
        assert_eq!(questions(&mut wants), [(B, wanted(900))]);
    }

    #[test]
    fn what_is_no_longer_wanted_is_forgotten_and_a_question_under_way_ends_first() {
        let mut wants = wants();
        for number in 0..10_000 {
            wants.want(wanted(number), &[]);
        }
        wants.keep_only(|_| false);
        let asked = questions(&mut wants);
        assert_eq!(asked.len(), 3 * SLOTS_PER_PEER);
        assert_eq!(wants.wants.len(), asked.len());
        for (peer, asked) in asked {
            assert_eq!(wants.ended(peer, asked, Ending::Failed), [None, None]);
        }
        assert!(wants.wants.is_empty());
        assert!(wants.peers.values().all(|slots| slots.taken == 0));
    }
}
