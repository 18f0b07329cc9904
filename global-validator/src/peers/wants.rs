//! Which blocks and batches are wanted from other validators, and who is asked for each. Data: no task, no clock.
//! In: what the core wants, how questions ended. Out: who is asked what. Called by: [`super::fetch`].
//!
//! # Rules
//! * Upon something wanted: ask one validator at a time. First those that failed it least often, among them who likely
//!   holds it, then all others by their numbers; of them the first one with a free slot.
//! * Upon a question that brought nothing: ask the next one that was not asked in this round, however often the core
//!   says meanwhile that it wants it still. Only who became likely to hold it since it was asked is asked once more. With
//!   nobody left, it rests until the core wants it again; then a new round begins.
//! * Upon one digest under several names: one question. Whoever has it has what the digest names.
//! * Upon a slot that becomes free: what this validator is the best candidate for, and has waited longest.
//! * Upon something that the core no longer wants: forgotten; a question under way may end first.
//!
//! # Invariants
//! * At most [`slots_per_peer`] questions to one validator are under way.
//! * What waits has no candidate left with a free slot.
//! * A round asks everybody: f validators that refuse do not keep an honest one from being asked.
//!
//! # Why
//! A validator that does not answer holds a slot until the deadline. With slots of its own it keeps only those waiting
//! who need what nobody else has, and references that a leader invented cost others a refusal each. What is wanted is
//! bounded by the core; here it must not live longer than there.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::{
    block::BatchRef,
    ids::{Digest, NodeIdx},
};

/// Most questions under way to one validator. Its connection takes 32 requests at once, of which messages need half.
pub const SLOTS_PER_PEER_MAX: usize = 8;
/// Fewer would leave the round trip unused.
const SLOTS_PER_PEER_MIN: usize = 2;
/// Questions under way to all of them, about: their answers share one link.
const SLOTS: usize = 64;

/// Questions under way to one validator of `peers`.
#[must_use]
pub fn slots_per_peer(peers: usize) -> usize {
    (SLOTS / peers.max(1)).clamp(SLOTS_PER_PEER_MIN, SLOTS_PER_PEER_MAX)
}

/// Something that the core lacks, by the name that it has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    /// A block, by its digest.
    Block(Digest),
    /// A certified batch.
    Batch(BatchRef),
}

impl Wanted {
    /// What others are asked for.
    #[must_use]
    pub fn sought(&self) -> Sought {
        match self {
            Self::Block(digest) => Sought::Block(*digest),
            Self::Batch(batch) => Sought::Batch(batch.digest),
        }
    }
}

/// What others are asked for: a leader can write many names before one digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sought {
    /// A block.
    Block(Digest),
    /// A certified batch.
    Batch(Digest),
}

impl Sought {
    /// Digest of it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        match self {
            Self::Block(digest) | Self::Batch(digest) => *digest,
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
    /// The names under which the core wants it; none: not any more.
    names: BTreeSet<Wanted>,
    /// Likely to hold it, when it was wanted last.
    likely: Vec<NodeIdx>,
    /// To be asked in this round, best first.
    left: Vec<NodeIdx>,
    /// Asked in this round, and whether it was likely to hold it then.
    round: BTreeMap<NodeIdx, bool>,
    /// Who is asked now.
    asked: Option<NodeIdx>,
    /// How often somebody failed.
    failures: BTreeMap<NodeIdx, u32>,
}

impl Want {
    fn new(turn: u64) -> Self {
        Self {
            turn,
            names: BTreeSet::new(),
            likely: Vec::new(),
            left: Vec::new(),
            round: BTreeMap::new(),
            asked: None,
            failures: BTreeMap::new(),
        }
    }

    /// Orders who is left of `peers`, in a new round if this one is over.
    fn line_up(&mut self, peers: &BTreeMap<NodeIdx, Slots>, likely: &[NodeIdx]) {
        if self.left.is_empty() && self.asked.is_none() {
            self.round.clear();
        }
        self.likely = likely.iter().copied().filter(|idx| peers.contains_key(idx)).collect();
        let is_likely_now = |idx: &NodeIdx| self.likely.contains(idx);
        let is_due = |idx: &NodeIdx| match self.round.get(idx) {
            None => true,
            Some(was_likely) => !was_likely && is_likely_now(idx) && self.asked != Some(*idx),
        };
        let mut left: Vec<NodeIdx> = Vec::new();
        for idx in self.likely.iter().chain(peers.keys()).filter(|idx| is_due(idx)) {
            if !left.contains(idx) {
                left.push(*idx);
            }
        }
        left.sort_by_key(|idx| self.failures.get(idx).copied().unwrap_or_default());
        self.left = left;
    }
}

#[derive(Debug, Default)]
struct Slots {
    taken: usize,
    /// Given a slot, and not yet asked.
    to_ask: VecDeque<Sought>,
}

/// All that is wanted.
#[derive(Debug)]
pub struct Wants {
    wants: BTreeMap<Sought, Want>,
    peers: BTreeMap<NodeIdx, Slots>,
    slots_per_peer: usize,
    turns: u64,
}

impl Wants {
    /// Nothing yet; `peers` may be asked.
    #[must_use]
    pub fn new(peers: impl IntoIterator<Item = NodeIdx>) -> Self {
        let peers: BTreeMap<_, _> = peers.into_iter().map(|idx| (idx, Slots::default())).collect();
        Self {
            wants: BTreeMap::new(),
            slots_per_peer: slots_per_peer(peers.len()),
            peers,
            turns: 0,
        }
    }

    /// The core wants something, or wants it still; `likely` hold it, best first. Returns who has something new to be
    /// asked.
    pub fn want(&mut self, wanted: Wanted, likely: &[NodeIdx]) -> Option<NodeIdx> {
        let (sought, turn) = (wanted.sought(), self.turns);
        let want = self.wants.entry(sought).or_insert_with(|| {
            self.turns += 1;
            Want::new(turn)
        });
        want.names.insert(wanted);
        want.line_up(&self.peers, likely);
        self.ask_somebody(sought)
    }

    /// What `peer` is to be asked next.
    pub fn next_for(&mut self, peer: NodeIdx) -> Option<Sought> {
        self.peers.get_mut(&peer)?.to_ask.pop_front()
    }

    /// A question that [`Wants::next_for`] gave out has ended. Returns who has something new to be asked.
    pub fn ended(&mut self, peer: NodeIdx, sought: Sought, ending: Ending) -> [Option<NodeIdx>; 2] {
        if let Some(slots) = self.peers.get_mut(&peer) {
            slots.taken -= 1;
        }
        let is_wanted = self.wants.get_mut(&sought).is_some_and(|want| {
            want.asked = None;
            match ending {
                Ending::Found | Ending::NotThere => {}
                Ending::Failed => *want.failures.entry(peer).or_default() += 1,
                Ending::NotNow => want.left.clear(),
            }
            !want.names.is_empty() && ending != Ending::Found
        });
        let asked = if is_wanted {
            self.ask_somebody(sought)
        } else {
            self.wants.remove(&sought);
            None
        };
        [asked, self.fill(peer)]
    }

    /// Forgets what the core no longer wants.
    pub fn keep_only(&mut self, is_wanted: impl Fn(&Wanted) -> bool) {
        self.wants.retain(|_, want| {
            want.names.retain(|name| is_wanted(name));
            !want.names.is_empty() || want.asked.is_some()
        });
    }

    /// How much is wanted, questions under way included.
    #[must_use]
    pub fn count(&self) -> usize {
        self.wants.len()
    }

    /// Questions under way.
    #[must_use]
    pub fn under_way(&self) -> usize {
        self.peers.values().map(|slots| slots.taken).sum()
    }

    fn is_free(&self, peer: NodeIdx) -> bool {
        self.peers
            .get(&peer)
            .is_some_and(|slots| slots.taken < self.slots_per_peer)
    }

    /// Gives `sought` to the best candidate with a free slot, if it is asked of nobody.
    fn ask_somebody(&mut self, sought: Sought) -> Option<NodeIdx> {
        let want = self.wants.get(&sought).filter(|want| want.asked.is_none())?;
        let idx = want.left.iter().copied().find(|idx| self.is_free(*idx))?;
        self.ask(idx, sought)
    }

    /// Gives a slot of `peer`, if one is free, to what needs it most.
    fn fill(&mut self, peer: NodeIdx) -> Option<NodeIdx> {
        if !self.is_free(peer) {
            return None;
        }
        let waiting = self.wants.iter().filter(|(_, want)| want.asked.is_none());
        let ranked = waiting.filter_map(|(sought, want)| {
            let rank = want.left.iter().position(|idx| *idx == peer)?;
            Some((rank, want.turn, *sought))
        });
        let (_, _, sought) = ranked.min()?;
        self.ask(peer, sought)
    }

    fn ask(&mut self, peer: NodeIdx, sought: Sought) -> Option<NodeIdx> {
        let (want, slots) = (self.wants.get_mut(&sought)?, self.peers.get_mut(&peer)?);
        want.left.retain(|idx| *idx != peer);
        want.round.insert(peer, want.likely.contains(&peer));
        want.asked = Some(peer);
        slots.taken += 1;
        slots.to_ask.push_back(sought);
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

    fn digest(number: u64) -> Digest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        Digest(digest)
    }

    fn wanted(number: u64) -> Wanted {
        Wanted::Block(digest(number))
    }

    fn sought(number: u64) -> Sought {
        wanted(number).sought()
    }

    /// Ends a question that `peer` must have been asked.
    fn end(wants: &mut Wants, peer: NodeIdx, wanted: Wanted, ending: Ending) {
        assert_eq!(wants.next_for(peer), Some(wanted.sought()));
        wants.ended(peer, wanted.sought(), ending);
    }

    /// Everything that somebody is to be asked now.
    fn questions(wants: &mut Wants) -> Vec<(NodeIdx, Sought)> {
        let mut questions = Vec::new();
        for peer in [A, B, C] {
            while let Some(sought) = wants.next_for(peer) {
                questions.push((peer, sought));
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
        assert_eq!(questions(&mut wants), [(B, sought(1))]);
        wants.ended(B, sought(1), Ending::NotThere);
        assert_eq!(questions(&mut wants), [(A, sought(1))], "who is likely by now");
    }

    #[test]
    fn round_asks_everybody_however_often_it_is_wanted_meanwhile() {
        let peers: Vec<NodeIdx> = (1..=6).map(NodeIdx).collect();
        for ending in [Ending::NotThere, Ending::Failed] {
            let mut wants = Wants::new(peers.clone());
            wants.want(wanted(1), &[]);
            for peer in &peers {
                // The core wants it again, and again, while each is asked.
                wants.want(wanted(1), &[]);
                wants.want(wanted(1), &[]);
                end(&mut wants, *peer, wanted(1), ending);
            }
            assert!(peers.iter().all(|peer| wants.next_for(*peer).is_none()), "it rests");
            assert_eq!(wants.want(wanted(1), &[]), Some(peers[0]), "a new round");
        }
    }

    #[test]
    fn who_becomes_likely_to_hold_it_is_asked_once_more_in_a_round() {
        let mut wants = wants();
        wants.want(wanted(1), &[]);
        end(&mut wants, A, wanted(1), Ending::NotThere);
        for _ in 0..2 {
            wants.want(wanted(1), &[A]);
        }
        end(&mut wants, B, wanted(1), Ending::NotThere);
        end(&mut wants, A, wanted(1), Ending::NotThere);
        wants.want(wanted(1), &[A]);
        end(&mut wants, C, wanted(1), Ending::NotThere);
        assert_eq!(questions(&mut wants), []);
    }

    #[test]
    fn digest_under_many_names_is_asked_for_once_and_wanted_as_long_as_one_of_them_is() {
        let mut wants = wants();
        let named = |seq| {
            Wanted::Batch(BatchRef {
                cluster: common::ids::ClusterId(0),
                digest: digest(1),
                founding: common::ids::Founding(0),
                seq: common::ids::BatchSeq(seq),
            })
        };
        for seq in 0..256 {
            wants.want(named(seq), &[]);
        }
        assert_eq!(questions(&mut wants), [(A, Sought::Batch(digest(1)))]);
        wants.keep_only(|name| *name == named(7));
        wants.ended(A, Sought::Batch(digest(1)), Ending::NotThere);
        assert_eq!(questions(&mut wants), [(B, Sought::Batch(digest(1)))]);
        wants.keep_only(|_| false);
        wants.ended(B, Sought::Batch(digest(1)), Ending::NotThere);
        assert!(wants.wants.is_empty());
    }

    #[test]
    fn answers_of_many_share_a_link_so_that_each_has_fewer_slots() {
        let slots: Vec<usize> = [1, 3, 6, 9, 30, 99].map(slots_per_peer).to_vec();
        assert_eq!(slots, [8, 8, 8, 7, 2, 2]);
    }

    #[test]
    fn silent_one_uses_up_its_own_slots_and_only_what_is_nowhere_else_waits_for_it() {
        let (mut wants, of_a) = (wants(), 4 * SLOTS_PER_PEER_MAX);
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
        assert_eq!(silent, SLOTS_PER_PEER_MAX);
        assert_eq!(
            refused,
            2 * (of_a - SLOTS_PER_PEER_MAX),
            "both others are asked at once for what waits"
        );
        assert_eq!(wants.want(wanted(900), &[B]), Some(B), "and have slots left");
    }

    #[test]
    fn freed_slot_goes_to_what_its_validator_is_best_for_before_what_waited_longer() {
        let mut wants = Wants::new([A, B]);
        for number in 0..3 * SLOTS_PER_PEER_MAX as u64 {
            wants.want(wanted(number), &[A]);
        }
        wants.want(wanted(900), &[B]);
        let asked = questions(&mut wants);
        assert!(asked.iter().all(|(_, asked)| *asked != sought(900)));
        let (_, ends) = *asked.iter().find(|(peer, _)| *peer == B).unwrap();
        let woken = wants.ended(B, ends, Ending::NotThere);
        assert_eq!(woken, [None, Some(B)]);
        assert_eq!(questions(&mut wants), [(B, sought(900))]);
    }

    #[test]
    fn what_is_no_longer_wanted_is_forgotten_and_a_question_under_way_ends_first() {
        let mut wants = wants();
        for number in 0..10_000 {
            wants.want(wanted(number), &[]);
        }
        wants.keep_only(|_| false);
        let asked = questions(&mut wants);
        assert_eq!(asked.len(), 3 * SLOTS_PER_PEER_MAX);
        assert_eq!(wants.wants.len(), asked.len());
        for (peer, asked) in asked {
            assert_eq!(wants.ended(peer, asked, Ending::Failed), [None, None]);
        }
        assert!(wants.wants.is_empty());
        assert!(wants.peers.values().all(|slots| slots.taken == 0));
    }
}
