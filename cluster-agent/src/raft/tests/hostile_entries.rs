//! Entries that no honest leader appends, against the check that a running agent uses.
//!
//! The members are numbers here, as in the other tests of hostile requests, so the members of the founding
//! are not asked of the registry; every command is.

use std::sync::Arc;

use common::{
    codec::encode,
    entry::{LogEntry, SignedEntry},
    ids::{BlockTime, ChainId, ClusterId, DeviceId, Digest, LogIndex, LogPosition, RaftNodeId, Term},
    task::Scope,
    testing::{Fleet, dev_timing, task},
};

use super::{
    harness::{NoBadCommands, PATIENCE, Seat, id, quick},
    target::{Target, append, command, leads, log_id},
};
use crate::{
    evidence,
    machine::{Machine, StaticAppendCheck},
    ports::{Clock, Instant},
    raft::{AppendCheck, RaftAlarm, ReplicatedMachine, RpcRefusal, codec::AppendReply},
    signatures::Signatures,
};

const C1: ClusterId = ClusterId(0);

struct Noon;

impl Clock for Noon {
    fn now(&self) -> Instant {
        Instant { us: 1_000_000 }
    }

    fn wall(&self) -> BlockTime {
        BlockTime(1_000_000)
    }
}

fn machine(fleet: &Fleet) -> Machine {
    Machine::new(
        Arc::new(fleet.genesis.clone()),
        C1,
        fleet.id("c1-1"),
        evidence::limits(&quick(), &dev_timing()),
        Arc::new(Noon),
        Signatures::default(),
    )
}

fn real_check(fleet: &Fleet) -> StaticAppendCheck {
    machine(fleet).append_check(Arc::new(fleet.registry.clone()), C1)
}

/// The agent's check of commands; members are those of the other tests.
struct OfCommands(StaticAppendCheck);

impl AppendCheck for OfCommands {
    fn check(&self, command: &[u8]) -> Result<(), String> {
        self.0.check(command)
    }

    fn check_members(&self, members: &[(RaftNodeId, DeviceId)]) -> Result<(), String> {
        NoBadCommands.check_members(members)
    }
}

fn signed(fleet: &Fleet, number: u64) -> SignedEntry {
    fleet.submit("op1", C1, number, Scope::Cluster, &task("t"))
}

fn bytes(entry: SignedEntry) -> Vec<u8> {
    encode(&LogEntry::Author(entry))
}

/// Signed by the right author for another fleet.
fn foreign(fleet: &Fleet) -> SignedEntry {
    let draft = fleet.draft("op1", C1, 2, Scope::Cluster, common::entry::Action::Submit);
    SignedEntry::submit(&fleet.key("op1"), &ChainId([8; 32]), draft, &task("t"))
}

/// Carries the signature of another entry.
fn badly_signed(fleet: &Fleet) -> SignedEntry {
    SignedEntry {
        signature: signed(fleet, 3).signature,
        ..signed(fleet, 2)
    }
}

/// Of an author who is in another fleet's registry only.
fn of_an_unknown_author(fleet: &Fleet) -> SignedEntry {
    let mut draft = fleet.draft("op1", C1, 1, Scope::Cluster, common::entry::Action::Submit);
    draft.author = DeviceId([9; 32]);
    SignedEntry::submit(&fleet.key("op1"), &fleet.chain, draft, &task("t"))
}

async fn target(fleet: &Fleet) -> Target {
    let seat = Seat {
        check: Arc::new(OfCommands(real_check(fleet))),
        ..Seat::in_memory(1)
    };
    Target::on(seat, quick()).await
}

#[tokio::test(start_paused = true)]
async fn append_with_an_entry_of_a_foreign_chain_or_a_bad_signature_is_refused_whole() {
    let fleet = Fleet::dev();
    for bad in [foreign(&fleet), badly_signed(&fleet)] {
        let first = bytes(signed(&fleet, 1));
        let (target, log) = target(&fleet).await.fill(&[&first]).await;
        let (before, history) = (target.handle.status(), target.seat.machine.history());
        let good = command(log_id(1, 2, 3), &bytes(signed(&fleet, 4)));
        let new = [good.clone(), command(log_id(1, 2, 4), &bytes(bad))];
        let refused = target.append(append(leads(1, 2), &log, &new, None)).await;
        assert_eq!(refused, Err(RpcRefusal::BadCommand));
        let after = target.handle.status();
        assert_eq!(after.last_index, before.last_index, "not even the good one");
        assert_eq!((after.term, after.committed), (before.term, before.committed));
        assert_eq!(target.seat.machine.history().commands, history.commands);
        let alarms = target.alarms();
        assert!(
            matches!(
                &alarms[..],
                [RaftAlarm::BadCommand { from, index: LogIndex(4), .. }] if *from == id(2)
            ),
            "{alarms:?}"
        );
        let served = target.append(append(leads(1, 2), &log, &[good], None)).await;
        assert_eq!(served, Ok(AppendReply::Success));
    }
}

#[tokio::test(start_paused = true)]
async fn entry_of_an_unknown_author_is_appended_and_rejected_in_apply() {
    let fleet = Fleet::dev();
    let unknown = bytes(of_an_unknown_author(&fleet));
    let (target, log) = target(&fleet).await.fill(&[&unknown]).await;
    let committed = log.last().map(|entry| entry.id);
    let served = target.append(append(leads(1, 2), &log, &[], committed)).await;
    assert_eq!(served, Ok(AppendReply::Success));
    target.handle.wait_applied(LogIndex(2), PATIENCE).await.unwrap();
    assert_eq!(target.seat.machine.history().commands, std::slice::from_ref(&unknown));
    assert_eq!(target.alarms(), []);

    let machine = machine(&fleet);
    let at = |index| LogPosition {
        term: Term(1),
        index: LogIndex(index),
    };
    let leader = RaftNodeId::new(fleet.idx("c1-2"), 1);
    let answer = machine.apply(at(1), leader, Digest::default(), &unknown);
    let answer: crate::machine::MachineAnswer = common::codec::decode(&answer).unwrap();
    let verdict = answer.0.expect("an author's entry is answered").verdict;
    assert_eq!(
        verdict,
        common::verdict::Verdict::Rejected(common::verdict::Reason::UnknownKey)
    );
    assert_eq!(machine.pulse().get().open_len, 0, "nothing of it is attested");
}

#[test]
fn membership_that_names_a_device_the_registry_does_not_back_is_refused() {
    let fleet = Fleet::dev();
    let check = real_check(&fleet);
    let row = |label: &str| (RaftNodeId::new(fleet.idx(label), 1), fleet.id(label));
    let mine = [row("c1-1"), row("c1-2"), row("c1-3")];
    assert_eq!(check.check_members(&mine), Ok(()));
    let unregistered = RaftNodeId::new(common::ids::NodeIdx(999), 1);
    for (why, bad) in [
        ("of another cluster", row("c2-1")),
        ("a validator", row("v1")),
        ("an operator", row("op1")),
        ("not registered", (unregistered, DeviceId([9; 32]))),
        ("another's number", (row("c1-2").0, fleet.id("c1-3"))),
        ("an unknown device", (row("c1-2").0, DeviceId([9; 32]))),
    ] {
        let refused = check.check_members(&[mine[0], mine[1], bad]).expect_err(why);
        assert!(refused.contains(&bad.1.to_string()), "{why}: {refused}");
    }
    assert_eq!(check.check_members(&mine), Ok(()), "it is asked anew each time");
}
