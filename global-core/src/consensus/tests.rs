//! The rules of the module, one by one.

use common::{
    ids::{Digest, Epoch, NodeIdx, View},
    wire::bft::{BftMessage, Certificate},
};

use super::LOOK_AHEAD;
use crate::{
    core::Input,
    effect::{Effect, Evidence, Recipient, Record},
    fuzz::bench::{
        Bench, D_US, finalize, finalized_in, notarize, nullify, propose, proposed_in, sent_in, signed, stored, votes_in,
    },
    verify::{Checked, CheckedMessage},
};

#[test]
fn a_valid_proposal_is_persisted_and_then_notarized() {
    let mut bench = Bench::follower_of(&[1]);
    let block = bench.block(1, bench.genesis(), vec![]);
    let effects = bench.give(bench.proposal(&block));
    let persisted = effects
        .iter()
        .position(|e| matches!(e, Effect::Persist(Record::Proposal(p)) if p.block == block));
    let voted = effects.iter().position(|e| *e == Effect::Vote(notarize(&block)));
    assert!(persisted.unwrap() < voted.unwrap(), "{effects:?}");
}

#[test]
fn notarizes_at_most_one_block_per_view() {
    let mut bench = Bench::follower_of(&[1]);
    let one = bench.block(1, bench.genesis(), vec![]);
    bench.now.clock.0 += 1;
    let other = bench.block(1, bench.genesis(), vec![]);
    assert_ne!(one, other);
    assert_eq!(votes_in(&bench.give(bench.proposal(&one))), [notarize(&one)]);
    let effects = bench.give(bench.proposal(&other));
    assert_eq!(votes_in(&effects), []);
    let evidence = effects
        .iter()
        .filter(|e| matches!(e, Effect::Evidence(e) if matches!(**e, Evidence::Proposals(..))));
    assert_eq!(evidence.count(), 1, "the leader contradicted itself");
    assert_eq!(
        votes_in(&bench.give(bench.proposal(&one))),
        [],
        "nor the same one again"
    );
}

#[test]
fn nothing_is_notarized_after_the_view_was_nullified() {
    let mut bench = Bench::follower_of(&[1]);
    bench.votes(1, nullify(1));
    assert_eq!(votes_in(&bench.wait(2 * D_US)), [nullify(1)], "the leader timer is 2D");
    let block = bench.block(1, bench.genesis(), vec![]);
    assert_eq!(votes_in(&bench.give(bench.proposal(&block))), []);
}

#[test]
fn upon_a_notarization_it_is_sent_on_and_persisted_the_block_is_finalized_and_the_next_view_entered() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let block = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&block));
    assert_eq!(
        votes_in(&bench.votes(1, notarize(&block))),
        [],
        "two of four are no quorum"
    );
    assert_eq!(bench.view(), 1);
    let voter = bench.set.leader(View(1)).0;
    let other = (0..4).rev().find(|d| NodeIdx(*d) != bench.me && *d != voter).unwrap();
    let effects = bench.vote(other, notarize(&block));
    let is_certificate =
        |c: &Certificate| matches!(c, Certificate::Notarization(n) if n.ballot == block.header.ballot());
    let sent = |e: &Effect| matches!(e, Effect::Send { to: Recipient::All, message: BftMessage::Certificate(c) } if is_certificate(c));
    let kept = |e: &Effect| matches!(e, Effect::Persist(Record::Certificate(c)) if is_certificate(c));
    assert_eq!(effects.iter().filter(|e| sent(e)).count(), 1, "sent on once");
    let persisted = effects.iter().position(kept).unwrap();
    let voted = effects
        .iter()
        .position(|e| *e == Effect::Vote(finalize(&block)))
        .unwrap();
    assert!(
        persisted < voted,
        "the certificate that my vote answers is durable before it"
    );
    assert_eq!(bench.view(), 2);
    assert_eq!(sent_in(&bench.certify(notarize(&block))), [], "once");
}

#[test]
fn finalize_after_nullify_never() {
    let mut bench = Bench::follower_of(&[1]);
    bench.votes(1, nullify(1));
    assert_eq!(votes_in(&bench.wait(2 * D_US)), [nullify(1)]);
    let block = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&block));
    let effects = bench.certify(notarize(&block));
    assert_eq!(votes_in(&effects), []);
    assert_eq!(bench.view(), 2, "the view is entered all the same");
}

#[test]
fn nullify_after_finalize_never() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let block = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&block));
    assert_eq!(votes_in(&bench.certify(notarize(&block))), [finalize(&block)]);
    bench.votes(2, nullify(2));
    let voted = votes_in(&bench.wait(1_000 * D_US));
    assert!(voted.contains(&nullify(2)) && !voted.contains(&nullify(1)), "{voted:?}");
}

#[test]
fn upon_timeout_the_view_is_nullified_once_and_everything_is_sent_again() {
    let mut bench = Bench::follower_of(&[1]);
    let block = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&block));
    assert_eq!(votes_in(&bench.wait(3 * D_US - 1)), []);
    let effects = bench.wait(1);
    assert_eq!(votes_in(&effects), [nullify(1)]);
    let again = bench.wait(20 * D_US);
    assert_eq!(votes_in(&again), [], "signed once");
    let own = signed(bench.me.0, notarize(&block));
    let sent = sent_in(&again);
    assert!(sent.contains(&BftMessage::Vote(own)), "byte for byte");
    assert!(sent.contains(&BftMessage::Vote(signed(bench.me.0, nullify(1)))));
    assert!(
        sent.iter()
            .any(|m| matches!(m, BftMessage::Proposal(p) if p.block == block))
    );
}

#[test]
fn upon_a_nullification_it_is_sent_on_and_the_next_view_entered() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let effects = bench.votes(3, nullify(1));
    let sent = sent_in(&effects);
    assert!(
        matches!(sent[..], [BftMessage::Certificate(Certificate::Nullification(_))]),
        "{sent:?}"
    );
    assert_eq!(bench.view(), 2);
}

#[test]
fn upon_a_finalization_the_block_and_its_ancestors_are_final() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&one));
    bench.certify(notarize(&one));
    let two = bench.block(2, one.digest(), vec![]);
    bench.give(bench.proposal(&two));
    let effects = bench.certify(finalize(&two));
    assert_eq!(finalized_in(&effects), [1, 2]);
    assert_eq!((bench.core.tip().digest, bench.view()), (two.digest(), 3));
    let Some(Effect::Finalized(blocks)) = effects.iter().find(|e| matches!(e, Effect::Finalized(_))) else {
        unreachable!()
    };
    assert_eq!((blocks[0].proof.above.len(), blocks[1].proof.above.len()), (1, 0));
    assert_eq!(finalized_in(&bench.certify(finalize(&two))), [] as [u64; 0]);
}

#[test]
fn a_finalization_whose_blocks_are_missing_takes_effect_when_they_come() {
    let mut bench = Bench::follower_of(&[1, 2, 3]);
    let one = bench.block(1, bench.genesis(), vec![]);
    let two = bench.block(2, one.digest(), vec![]);
    let effects = bench.certify(finalize(&two));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::FetchBlock { digest, .. } if *digest == two.digest()))
    );
    assert_eq!(bench.view(), 3, "a certificate is taken from any view");
    let effects = bench.give(Input::BlockFetched(Box::new(two.clone())));
    assert!(
        effects
            .iter()
            .any(|e| matches!(e, Effect::FetchBlock { digest, .. } if *digest == one.digest()))
    );
    let stranger = bench.block(2, bench.genesis(), vec![]);
    bench.give(Input::BlockFetched(Box::new(stranger)));
    assert_eq!(finalized_in(&bench.give(Input::BlockFetched(Box::new(one)))), [1, 2]);
}

#[test]
fn a_proposal_is_not_notarized_before_its_parent_is_and_every_view_between_is_nullified() {
    let mut bench = Bench::follower_of(&[1, 3]);
    let one = bench.block(1, bench.genesis(), vec![]);
    let three = bench.block(3, one.digest(), vec![]);
    bench.give(bench.proposal(&one));
    let proof = common::block::ParentProof::Notarization(bench.notarization(&one.header.ballot()));
    // The nullification of view 2 is missing: not yet.
    assert_eq!(votes_in(&bench.give(propose(&three, proof, vec![]))), [finalize(&one)]);
    assert_eq!(bench.view(), 2);
    assert_eq!(votes_in(&bench.certify(nullify(2))), [notarize(&three)]);
}

#[test]
fn a_leader_proposes_once_on_the_highest_notarized_block() {
    let mut bench = Bench::leader_of(3);
    let one = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&one));
    bench.certify(notarize(&one));
    bench.give(stored(1));
    let effects = bench.certify(nullify(2));
    let proposed = proposed_in(&effects);
    assert_eq!(proposed.len(), 1);
    let header = &proposed[0].header;
    assert_eq!(
        (header.parent, header.parent_view, header.view),
        (one.digest(), View(1), View(3))
    );
    assert_eq!(votes_in(&effects), [notarize(&proposed[0])]);
    let Some(Effect::Propose(draft)) = effects.iter().find(|e| matches!(e, Effect::Propose(_))) else {
        unreachable!()
    };
    assert_eq!(draft.nullifications.len(), 1, "it can be checked alone");
    assert_eq!(proposed_in(&bench.give(stored(2))), [], "once");
}

#[test]
fn a_leader_that_lacks_a_nullification_proposes_nothing() {
    let mut bench = Bench::leader_of(3);
    bench.give(stored(1));
    assert_eq!(proposed_in(&bench.certify(nullify(2))), []);
    assert_eq!(bench.view(), 3);
    assert_eq!(proposed_in(&bench.certify(nullify(1))).len(), 1);
}

#[test]
fn single_votes_count_up_to_the_look_ahead_and_certificates_from_any_view() {
    let mut bench = Bench::follower_of(&[1]);
    let far = 1 + LOOK_AHEAD + 1;
    bench.votes(3, nullify(far));
    assert_eq!(bench.view(), 1);
    bench.votes(3, nullify(far - 1));
    assert_eq!(bench.view(), far, "within the look-ahead they do");
    bench.certify(nullify(1_000_000));
    assert_eq!(bench.view(), 1_000_001);
}

#[test]
fn a_silent_leader_is_given_up_after_two_delays_and_at_once_after_some_turns() {
    let mut bench = Bench::follower_of(&[1]);
    let silent = bench.set.leader(View(1));
    let (mut turns, mut entering) = (0, Vec::new());
    for view in 1..=20 {
        let leads = bench.set.leader(View(view));
        if leads == silent {
            turns += 1;
            entering.extend(bench.votes(1, nullify(view)));
            let (at_once, later) = (votes_in(&entering), votes_in(&bench.wait(100 * D_US)));
            let expected = if turns <= 3 { (0, 1) } else { (1, 0) };
            assert_eq!(
                (at_once.len(), later.len()),
                expected,
                "view {view}: {at_once:?}, {later:?}"
            );
        } else if leads != bench.me {
            let block = bench.block(view, bench.genesis(), vec![]);
            bench.give(bench.proposal(&block));
        }
        entering = bench.certify(nullify(view));
    }
    assert!(turns > 3);
}

#[test]
fn a_contradiction_is_reported_once_and_another_signature_is_none() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![]);
    let two = bench.block(2, bench.genesis(), vec![]);
    let evidence = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Evidence(_))).count();
    let voter = (0..4).find(|d| NodeIdx(*d) != bench.me).unwrap();
    assert_eq!(evidence(&bench.vote(voter, notarize(&one))), 0);
    let mut again = signed(voter, notarize(&one));
    again.signature.r = [1; 32];
    let message = CheckedMessage::Vote(Checked::assumed(again));
    assert_eq!(evidence(&bench.give(Input::Message(message))), 0);
    let mut ballot = one.header.ballot();
    ballot.digest = Digest([9; 32]);
    assert_eq!(
        evidence(&bench.vote(voter, common::certificate::Vote::Notarize(ballot))),
        1
    );
    bench.vote(voter, nullify(2));
    assert_eq!(evidence(&bench.vote(voter, finalize(&two))), 0, "the first one only");
    let other = (0..4).rev().find(|d| NodeIdx(*d) != bench.me).unwrap();
    bench.vote(other, nullify(2));
    assert_eq!(
        evidence(&bench.vote(other, finalize(&two))),
        1,
        "nullify and finalize of one view"
    );
}

#[test]
fn a_message_given_twice_changes_nothing_the_second_time() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![]);
    let two = bench.block(2, one.digest(), vec![]);
    let voter = (0..4).find(|d| NodeIdx(*d) != bench.me).unwrap();
    let messages = [
        bench.proposal(&one),
        Input::Message(CheckedMessage::Vote(Checked::assumed(signed(voter, notarize(&one))))),
        Input::Message(CheckedMessage::Certificate(Checked::assumed(
            Certificate::Notarization(bench.notarization(&one.header.ballot())),
        ))),
        bench.proposal(&two),
        Input::Message(CheckedMessage::Certificate(Checked::assumed(
            Certificate::Nullification(bench.nullification(2)),
        ))),
        Input::Message(CheckedMessage::Certificate(Checked::assumed(
            Certificate::Finalization(bench.finalization(&two.header.ballot())),
        ))),
    ];
    for (i, message) in messages.iter().enumerate() {
        let before = bench.core.clone();
        bench.give(message.clone());
        assert_ne!(bench.core, before, "message {i} does something");
        // What was executed is kept for one step.
        bench.give(Input::Tick);
        let before = bench.core.clone();
        assert_eq!(bench.give(message.clone()), [], "message {i}");
        assert_eq!(bench.core, before, "message {i}");
    }
}

#[test]
fn quorums_are_of_weight() {
    // 3 of 10, twice, and mine of 2: 8 of 10 are more than two thirds, 6 are not.
    let mut bench = Bench::new(&[2, 3, 3, 2], NodeIdx(0));
    bench.vote(1, nullify(1));
    bench.vote(2, nullify(1));
    assert_eq!(bench.view(), 1, "6 of 10");
    bench.vote(3, nullify(1));
    assert_eq!(bench.view(), 2, "8 of 10");
}

#[test]
fn restart_takes_the_higher_of_own_votes_and_certificates() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&one));
    let effects = bench.restart();
    assert_eq!(bench.view(), 1, "my vote of view 1");
    assert_eq!(votes_in(&effects), [notarize(&one)], "sent again");
    assert_eq!(votes_in(&bench.give(bench.proposal(&one))), [], "not cast twice");

    bench.certify(notarize(&one));
    let effects = bench.restart();
    assert_eq!(bench.view(), 2, "the certificate of view 1 opened view 2");
    assert_eq!(votes_in(&effects), [finalize(&one)]);

    bench.certify(nullify(7));
    bench.restart();
    assert_eq!(bench.view(), 8);
}

#[test]
fn at_or_below_the_floor_of_the_guard_nothing_is_signed() {
    let mut bench = Bench::follower_of(&[1, 2, 3]);
    let mut parent = bench.genesis();
    let blocks = [1, 2, 3, 4].map(|view| {
        let block = bench.block(view, parent, vec![]);
        parent = block.digest();
        block
    });
    // Its blocks were final and durable; the batches of the first one were not all there.
    assert!(bench.guard.compact((Epoch(0), View(3))));
    bench.restart();
    assert_eq!(bench.view(), 4);
    // A peer that is behind, or hostile, shows it the views below once more.
    for block in &blocks[..3] {
        let mut effects = bench.give(bench.proposal(block));
        effects.extend(bench.certify(notarize(block)));
        assert_eq!(votes_in(&effects), [], "view {}", block.header.view);
    }
    assert_eq!(votes_in(&bench.certify(notarize(&blocks[3]))), [finalize(&blocks[3])]);
}

#[test]
fn a_restarted_leader_proposes_nothing_else_in_its_view() {
    let mut bench = Bench::leader_of(1);
    let proposed = proposed_in(&bench.give(stored(1)));
    assert_eq!(proposed.len(), 1);
    bench.now.clock.0 += 5;
    let mut effects = bench.restart();
    effects.extend(bench.give(stored(2)));
    assert_eq!(proposed_in(&effects), []);
    let sent = sent_in(&bench.wait(20 * D_US));
    let same = |m: &BftMessage| matches!(m, BftMessage::Proposal(p) if p.block == proposed[0]);
    assert!(sent.iter().any(same), "the same one is sent again");
}

#[test]
fn a_proposal_that_the_guard_does_not_know_may_be_replaced_after_a_restart() {
    let mut bench = Bench::leader_of(1);
    assert_eq!(proposed_in(&bench.give(stored(1))).len(), 1);
    bench.guard = crate::guard::Guard::default();
    let mut effects = bench.restart();
    effects.extend(bench.give(stored(1)));
    assert_eq!(proposed_in(&effects).len(), 1, "it never left");
}

#[test]
fn finalize_votes_for_all_unfinalized_views_are_sent_again_in_turn() {
    let mut bench = Bench::follower_of(&[1]);
    let mut parent = bench.genesis();
    let mut wanted = Vec::new();
    for view in 1..=100 {
        let block = bench.block(view, parent, vec![]);
        parent = block.digest();
        bench.certify(notarize(&block));
        wanted.push(BftMessage::Vote(signed(bench.me.0, finalize(&block))));
    }
    // Views that were given up stand between them and the newest ones.
    for view in 101..=200 {
        bench.certify(nullify(view));
    }
    bench.votes(1, nullify(201));
    let sent = sent_in(&bench.wait(300 * D_US));
    let missing: Vec<_> = wanted.iter().filter(|vote| !sent.contains(vote)).collect();
    assert!(missing.is_empty(), "{} of 100 are not sent again", missing.len());
}

#[test]
fn on_reconnect_a_peer_gets_what_it_may_lack() {
    let mut bench = Bench::follower_of(&[1, 2]);
    let one = bench.block(1, bench.genesis(), vec![]);
    bench.give(bench.proposal(&one));
    bench.certify(notarize(&one));
    let effects = bench.give(Input::PeerConnected(NodeIdx(3)));
    let to_three = |e: &&Effect| matches!(e, Effect::Send { to, .. } if *to == Recipient::One(NodeIdx(3)));
    assert_eq!(effects.iter().filter(to_three).count(), sent_in(&effects).len());
    let sent = sent_in(&effects);
    assert!(
        sent.iter()
            .any(|m| matches!(m, BftMessage::Certificate(Certificate::Notarization(_))))
    );
    assert!(sent.iter().any(|m| matches!(m, BftMessage::Proposal(_))));
    assert!(sent.contains(&BftMessage::Vote(signed(bench.me.0, finalize(&one)))));
}

#[test]
fn who_is_not_in_the_set_follows_and_says_nothing() {
    let mut bench = Bench::new(&[1, 1, 1, 1], NodeIdx(9));
    let one = bench.block(1, bench.genesis(), vec![]);
    let mut effects = bench.give(bench.proposal(&one));
    effects.extend(bench.certify(notarize(&one)));
    effects.extend(bench.certify(finalize(&one)));
    effects.extend(bench.wait(100 * D_US));
    assert_eq!(finalized_in(&effects), [1]);
    assert!(votes_in(&effects).is_empty() && sent_in(&effects).is_empty() && proposed_in(&effects).is_empty());
}
