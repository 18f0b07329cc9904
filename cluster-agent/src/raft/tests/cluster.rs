//! Honest members, broken links and restarts.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Duration};

use common::{ids::LogIndex, wire::cluster::Confirmation};
use tokio::time::Instant;

use super::harness::{Cluster, Handle, PATIENCE, Seat, Switchboard, id, member, quick, until};
use crate::raft::{
    ChangeError, Founding, LinkProfile, MEMBERS_MAX, MembersChange, OpenError, ProposeOutcome, ProposeRefusal,
    RaftConfig, RaftRole, ReadRefusal,
    store::{
        LogStore, StoreError,
        identity::Marker,
        member_log::{LogOptions, MemberLog},
        memory::MemoryLog,
        snapshot::{FileSnapshots, MemorySnapshots},
    },
};

#[tokio::test(start_paused = true)]
async fn three_members_elect_a_leader_and_apply_alike() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let mut last = LogIndex(0);
    for number in 0..50u8 {
        last = cluster.commit(leader, &[number]).await.index;
    }
    cluster.all_applied(last).await;
    let first = cluster.seats[0].machine.history();
    assert_eq!(first.commands.len(), 50);
    for seat in &cluster.seats {
        assert_eq!(seat.machine.history(), first);
        assert_eq!(seat.alarms.lock().unwrap().len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn founding_happens_once() {
    let cluster = Cluster::in_memory(3, quick()).await;
    cluster.leader().await;
    let founders = (1..=3).map(|number| (id(number), member(number))).collect();
    assert_eq!(
        cluster.handles[1].initialize_once(founders).await.unwrap(),
        Founding::Already
    );
}

#[tokio::test(start_paused = true)]
async fn proposal_without_quorum_is_refused_within_the_deadline() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"before").await;
    cluster.board.isolate(cluster.seats[leader].id);
    // Inside the lease the command is taken and hangs: our deadline ends the wait.
    let deadline = Duration::from_millis(200);
    let outcome = cluster.handles[leader].propose(&b"hangs"[..], deadline).await;
    assert_eq!(outcome, ProposeOutcome::Unknown);
    // Behind it the leader knows that it reaches nobody.
    tokio::time::sleep(Duration::from_millis(400)).await;
    let asked = Instant::now();
    let outcome = cluster.handles[leader].propose(&b"refused"[..], deadline).await;
    assert_eq!(
        outcome,
        ProposeOutcome::Refused(ProposeRefusal::NoQuorum { retry_after_ms: 300 })
    );
    assert!(asked.elapsed() <= deadline);
    let read = cluster.handles[leader]
        .linearizable_position(Confirmation::AtOnce, deadline)
        .await;
    assert!(
        matches!(read, Err(ReadRefusal::NoQuorum | ReadRefusal::Deadline)),
        "{read:?}"
    );
    // Certainly not in the log: after healing no member has applied it.
    cluster.board.heal();
    let others: Vec<_> = (0..3).filter(|at| *at != leader).collect();
    let new_leader = cluster.leader_among(&others).await;
    let last = cluster.commit(new_leader, b"after").await.index;
    cluster.all_applied(last).await;
    for seat in &cluster.seats {
        assert!(!seat.machine.history().commands.contains(&b"refused".to_vec()));
    }
}

#[tokio::test(start_paused = true)]
async fn follower_names_the_leader() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let last = cluster.commit(leader, b"x").await.index;
    cluster.all_applied(last).await;
    let follower = (leader + 1) % 3;
    let outcome = cluster.handles[follower].propose(&b"y"[..], PATIENCE).await;
    let hint = Some(cluster.seats[leader].id);
    assert_eq!(
        outcome,
        ProposeOutcome::Refused(ProposeRefusal::NotLeader { leader: hint })
    );
    let read = cluster.handles[follower]
        .linearizable_position(Confirmation::AtOnce, PATIENCE)
        .await;
    assert_eq!(read, Err(ReadRefusal::NotLeader { leader: hint }));
}

#[tokio::test(start_paused = true)]
async fn linearizable_read_shows_acknowledged_writes() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let written = cluster.commit(leader, b"x").await;
    let read = cluster.handles[leader]
        .linearizable_position(Confirmation::AtOnce, PATIENCE)
        .await
        .unwrap();
    assert!(read >= written);
    let beyond = cluster.handles[leader]
        .wait_applied(LogIndex(read.index.0 + 100), Duration::from_millis(50))
        .await;
    assert_eq!(beyond, Err(ReadRefusal::Deadline));
}

#[tokio::test(start_paused = true)]
async fn replaced_leader_gives_no_position_below_what_the_others_committed() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let old = cluster.leader().await;
    cluster.commit(old, b"before").await;
    let read = cluster.handles[old]
        .linearizable_position(Confirmation::AtOnce, PATIENCE)
        .await;
    assert!(read.is_ok(), "its majority answered a moment ago");
    cluster.board.isolate(cluster.seats[old].id);
    let others: Vec<_> = (0..3).filter(|at| *at != old).collect();
    let new = cluster.leader_among(&others).await;
    let written = cluster.commit(new, b"by the others").await;
    assert_eq!(cluster.handles[old].status().role, RaftRole::Leader, "it does not know");
    for _ in 0..10 {
        let read = cluster.handles[old]
            .linearizable_position(Confirmation::AtOnce, Duration::from_millis(500))
            .await;
        assert!(read.is_err(), "{read:?}, while {written:?} is committed");
    }
}

#[tokio::test(start_paused = true)]
async fn acknowledgement_from_before_a_read_confirms_no_leader() {
    let mut cluster = Cluster::in_memory(3, quick()).await;
    let old = cluster.leader().await;
    let before = cluster.commit(old, b"before").await;
    // Whoever campaigns has it.
    cluster.all_applied(before.index).await;
    cluster.board.isolate(cluster.seats[old].id);
    let begun = tokio::time::Instant::now();
    // Voters that restart have forgotten whom they promised to wait for, so the others elect while the old leader still
    // counts on the acknowledgements that it has.
    let others: Vec<_> = (0..3).filter(|at| *at != old).collect();
    for at in &others {
        cluster.handles[*at].shutdown().await;
        let seat = &mut cluster.seats[*at];
        seat.machine = Arc::default();
        cluster.handles[*at] = seat.open(quick(), &cluster.board).await;
    }
    // A vote may be refused while the other one opens.
    let new = loop {
        cluster.handles[others[0]].campaign().await;
        let elected = tokio::time::timeout(Duration::from_millis(30), cluster.leader_among(&others)).await;
        if let Ok(new) = elected {
            break new;
        }
    };
    let written = cluster.commit(new, b"by the others").await;
    let lease = Duration::from_millis(quick().election_timeout_ms_max);
    assert!(
        begun.elapsed() < lease,
        "{:?}, too late to tell anything",
        begun.elapsed()
    );
    let read = cluster.handles[old]
        .linearizable_position(Confirmation::AtOnce, Duration::from_millis(500))
        .await;
    assert!(read.is_err(), "{read:?}, while {written:?} is committed");
}

#[tokio::test(start_paused = true)]
async fn isolated_follower_does_not_disturb_the_term() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    let (follower, term) = ((leader + 1) % 3, cluster.handles[leader].status().term);
    cluster.board.isolate(cluster.seats[follower].id);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(
        cluster.handles[follower].status().term,
        term,
        "it raised its term alone"
    );
    cluster.board.heal();
    let last = cluster.commit(leader, b"y").await.index;
    cluster.all_applied(last).await;
    assert_eq!(cluster.handles[leader].status().term, term);
    assert_eq!(cluster.handles[leader].status().role, RaftRole::Leader);
}

#[tokio::test(start_paused = true)]
async fn flapping_link_of_a_follower_flaps_no_leader() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    let (flapping, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let term = cluster.handles[leader].status().term;
    for round in 0..20u64 {
        cluster.board.isolate(cluster.seats[flapping].id);
        // Shorter and longer than an election timeout.
        tokio::time::sleep(Duration::from_millis(40 + 97 * (round % 11))).await;
        cluster.commit(leader, &[round as u8]).await;
        cluster.board.heal();
        tokio::time::sleep(Duration::from_millis(30 + 61 * (round % 7))).await;
    }
    let last = cluster.commit(leader, b"y").await.index;
    cluster.all_applied(last).await;
    for at in [leader, flapping, other] {
        assert_eq!(cluster.handles[at].status().term, term);
    }
    assert_eq!(cluster.handles[leader].status().role, RaftRole::Leader);
}

#[tokio::test(start_paused = true)]
async fn new_leader_is_elected_while_the_old_one_reaches_only_a_bridge() {
    let cluster = Cluster::in_memory(5, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    let others: Vec<_> = (0..5).filter(|at| *at != leader).collect();
    let seat = |at: usize| cluster.seats[at].id;
    // One is away; the old leader and two others see the bridge only, the two see each other.
    let (bridge, away) = (others[0], others[3]);
    cluster.board.isolate(seat(away));
    for other in [others[1], others[2]] {
        cluster.board.cut_pair(seat(leader), seat(other));
    }
    let elected = cluster.leader_among(&[bridge, others[1], others[2]]).await;
    cluster.commit(elected, b"y").await;
}

fn small_snapshots() -> RaftConfig {
    RaftConfig {
        snapshot_entries: 20,
        snapshot_entries_kept: 5,
        ..quick()
    }
}

#[tokio::test(start_paused = true)]
async fn lagging_follower_is_restored_exactly_from_a_snapshot() {
    let cluster = Cluster::in_memory(3, small_snapshots()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"first").await;
    let lagging = (leader + 1) % 3;
    cluster.board.isolate(cluster.seats[lagging].id);
    // Several frames: each command is large.
    for number in 0..100u8 {
        cluster.commit(leader, &[number; 10_000]).await;
    }
    until(&cluster.handles[leader], "purged", |status| {
        status.purged.index > LogIndex(50)
    })
    .await;
    cluster.board.heal();
    let last = cluster.commit(leader, b"last").await.index;
    cluster.all_applied(last).await;
    let (restored, applied) = (
        cluster.seats[lagging].machine.history(),
        cluster.seats[leader].machine.history(),
    );
    assert_eq!((restored.restores, applied.restores), (1, 0));
    assert_eq!(restored.commands, applied.commands);
    assert_eq!((restored.position, restored.chain), (applied.position, applied.chain));
    // The chain goes on above the snapshot.
    let last = cluster.commit(leader, b"more").await.index;
    cluster.all_applied(last).await;
    assert_eq!(
        cluster.seats[lagging].machine.history().chain,
        cluster.seats[leader].machine.history().chain
    );
    assert_eq!(cluster.seats[lagging].alarms.lock().unwrap().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn restarted_member_continues_from_snapshot_and_log() {
    let mut cluster = Cluster::in_memory(3, small_snapshots()).await;
    let leader = cluster.leader().await;
    let mut last = LogIndex(0);
    for number in 0..70u8 {
        last = cluster.commit(leader, &[number]).await.index;
    }
    cluster.all_applied(last).await;
    let before = cluster.seats[leader].machine.history();
    for at in 0..3 {
        cluster.handles[at].shutdown().await;
        cluster.board.unplug(cluster.seats[at].id);
    }
    for at in 0..3 {
        let seat = &mut cluster.seats[at];
        seat.machine = Arc::default();
        cluster.handles[at] = seat.open(small_snapshots(), &cluster.board).await;
    }
    let leader = cluster.leader().await;
    let last = cluster.commit(leader, b"after").await.index;
    cluster.all_applied(last).await;
    for seat in &cluster.seats {
        let after = seat.machine.history();
        assert_eq!(after.commands[..70], before.commands[..]);
        assert_eq!(after.commands[70..], [b"after".to_vec()]);
        assert!(after.restores <= 1);
    }
}

/// Three members with production's stores under `dir`.
fn seats_on_disk(dir: &Path) -> (Vec<Seat>, Vec<Arc<MemberLog>>) {
    let open = |number: u64| {
        let home = dir.join(number.to_string());
        std::fs::create_dir_all(&home).unwrap();
        let log = MemberLog::open(&home.join("log"), [1; 16], LogOptions::default(), Marker::in_dir(&home)).unwrap();
        let (log, snapshots) = (Arc::new(log), FileSnapshots::open(home.join("snapshots")).unwrap());
        (Seat::on(number, log.clone(), Arc::new(snapshots)), log)
    };
    (1..=3).map(open).unzip()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restart_from_disk_keeps_everything() {
    let dir = tempfile::tempdir().unwrap();
    // Real time: slower than the lan profile, since a machine that runs tests is busy.
    let slow = RaftConfig::for_profile(LinkProfile::Dev);
    let config = RaftConfig {
        snapshot_entries: 20,
        snapshot_entries_kept: 5,
        ..slow
    };
    let (seats, logs) = seats_on_disk(dir.path());
    let cluster = Cluster::start(seats, config.clone()).await;
    let leader = cluster.leader().await;
    let mut last = LogIndex(0);
    for number in 0..60u8 {
        last = cluster.commit(leader, &[number; 3_000]).await.index;
    }
    cluster.all_applied(last).await;
    let (before, term) = (
        cluster.seats[leader].machine.history(),
        cluster.handles[leader].status().term,
    );
    for (handle, seat) in cluster.handles.iter().zip(&cluster.seats) {
        cluster.board.unplug(seat.id);
        handle.shutdown().await;
    }
    logs.iter().for_each(|log| log.close());
    drop((cluster, logs));

    let (seats, _logs) = seats_on_disk(dir.path());
    let board = Arc::new(Switchboard::default());
    let mut handles = Vec::new();
    for seat in &seats {
        handles.push(seat.open(config.clone(), &board).await);
    }
    let cluster = Cluster { board, seats, handles };
    let leader = cluster.leader().await;
    let last = cluster.commit(leader, b"after").await.index;
    cluster.all_applied(last).await;
    assert!(cluster.handles[leader].status().term > term);
    for seat in &cluster.seats {
        let after = seat.machine.history();
        assert_eq!(after.commands[..60], before.commands[..]);
        assert_eq!(after.commands[60..], [b"after".to_vec()]);
    }
}

#[tokio::test(start_paused = true)]
async fn leadership_is_handed_over() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let last = cluster.commit(leader, b"x").await.index;
    cluster.all_applied(last).await;
    let (target, started) = ((leader + 1) % 3, Instant::now());
    cluster.handles[leader].transfer_leader(cluster.seats[target].id).await;
    assert_eq!(cluster.leader_among(&[target]).await, target);
    // Without the request it would take at least one election timeout.
    assert!(
        started.elapsed() < Duration::from_millis(300),
        "{:?}",
        started.elapsed()
    );
    cluster.commit(target, b"y").await;
}

/// Makes a change of the members as they are.
async fn change(leading: &Handle, change: MembersChange) {
    let as_of = leading.status().members_at;
    leading.change_members(change, as_of, PATIENCE).await.unwrap();
}

/// A fourth member runs, and is none yet.
async fn seat_fourth(cluster: &mut Cluster) {
    let seat = Seat::in_memory(4);
    cluster.handles.push(seat.open(quick(), &cluster.board).await);
    cluster.seats.push(seat);
}

#[tokio::test(start_paused = true)]
async fn learner_is_added_and_made_a_voter() {
    let mut cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    seat_fourth(&mut cluster).await;
    change(&cluster.handles[leader], MembersChange::Add(id(4), member(4))).await;
    let last = cluster.commit(leader, b"y").await.index;
    cluster.all_applied(last).await;
    until(&cluster.handles[3], "learns", |status| status.role == RaftRole::Learner).await;
    // A replacement in one step: the fourth for one of the followers.
    let replaced = cluster.seats[(leader + 1) % 3].id;
    let voters: BTreeSet<_> = (1..=4).map(id).filter(|voter| *voter != replaced).collect();
    change(&cluster.handles[leader], MembersChange::Vote(voters.clone())).await;
    let status = cluster.handles[leader].status();
    assert_eq!(status.voters, voters.into_iter().collect::<Vec<_>>());
    assert_eq!((status.learners, status.is_joint), (vec![replaced], false));
    until(&cluster.handles[3], "votes", |status| status.role == RaftRole::Follower).await;
}

#[tokio::test(start_paused = true)]
async fn change_that_was_thought_out_from_other_members_is_refused() {
    let mut cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    seat_fourth(&mut cluster).await;
    let leading = cluster.handles[leader].clone();
    let founding = leading.status().members_at;
    let add = MembersChange::Add(id(4), member(4));
    leading.change_members(add, founding, PATIENCE).await.unwrap();
    let voters: BTreeSet<_> = [leader as u64 + 1, 4].map(id).into();
    let vote = MembersChange::Vote(voters.clone());
    let late = leading.change_members(vote.clone(), founding, PATIENCE).await;
    assert!(matches!(late, Err(ChangeError::Refused(_))), "{late:?}");
    assert_eq!(leading.status().voters.len(), 3);
    let now = leading.status().members_at;
    assert!(now.index > founding.index);
    leading.change_members(vote, now, PATIENCE).await.unwrap();
    assert_eq!(leading.status().voters, voters.into_iter().collect::<Vec<_>>());
    let left: BTreeSet<_> = leading.status().learners.into_iter().collect();
    change(&leading, MembersChange::Leave(left)).await;
    assert_eq!(leading.status().learners, []);
}

#[tokio::test(start_paused = true)]
async fn member_beyond_the_most_is_refused() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    let leading = &cluster.handles[leader];
    for number in 4..=MEMBERS_MAX as u64 {
        change(leading, MembersChange::Add(id(number), member(number))).await;
    }
    let beyond = MEMBERS_MAX as u64 + 1;
    let one_more = MembersChange::Add(id(beyond), member(beyond));
    let refused = leading
        .change_members(one_more, leading.status().members_at, PATIENCE)
        .await;
    assert!(
        matches!(&refused, Err(ChangeError::Refused(why)) if why.contains("at most")),
        "{refused:?}"
    );
    // One that is there already may be named again.
    change(leading, MembersChange::Add(id(4), member(4))).await;
}

#[tokio::test(start_paused = true)]
async fn member_that_was_away_follows_a_leader_that_it_never_heard_of() {
    let mut cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    let away = (0..3).find(|at| *at != leader).unwrap();
    let other = (0..3).find(|at| ![leader, away].contains(at)).unwrap();
    cluster.commit(leader, b"before").await;
    cluster.board.isolate(id(away as u64 + 1));
    let seat = Seat::in_memory(4);
    let handle = seat.open(quick(), &cluster.board).await;
    cluster.board.cut_pair(id(4), id(away as u64 + 1));
    cluster.seats.push(seat);
    cluster.handles.push(handle);
    change(&cluster.handles[leader], MembersChange::Add(id(4), member(4))).await;
    // The newcomer takes the place of a voter, which leaves; then it leads.
    let (old, stays) = (id(other as u64 + 1), id(leader as u64 + 1));
    let voters: BTreeSet<_> = [stays, id(4), id(away as u64 + 1)].into();
    change(&cluster.handles[leader], MembersChange::Vote(voters)).await;
    change(&cluster.handles[leader], MembersChange::Leave([old].into())).await;
    cluster.commit(leader, b"by the old leader").await;
    cluster.handles[leader].transfer_leader(id(4)).await;
    assert_eq!(cluster.leader_among(&[3]).await, 3);
    let last = cluster.commit(3, b"by the newcomer").await;
    cluster.board.heal();
    for at in [away, leader, 3] {
        cluster.handles[at].wait_applied(last.index, PATIENCE).await.unwrap();
        assert_eq!(cluster.seats[at].alarms.lock().unwrap().len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn failed_disk_ends_the_member_with_a_code() {
    let log = Arc::new(MemoryLog::new());
    let seat = Seat::on(1, log.clone(), Arc::new(MemorySnapshots::default()));
    let cluster = Cluster::start(vec![seat], quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    log.fail("no space left");
    let outcome = cluster.handles[0].propose(&b"y"[..], Duration::from_secs(5)).await;
    assert_eq!(outcome, ProposeOutcome::Unknown);
    let fatal = tokio::time::timeout(PATIENCE, cluster.handles[0].fatal())
        .await
        .unwrap();
    assert_eq!(fatal.exit_code, 74);
    assert!(fatal.reason.contains("no space left"), "{}", fatal.reason);
    let outcome = cluster.handles[0].propose(&b"z"[..], PATIENCE).await;
    assert_eq!(outcome, ProposeOutcome::Refused(ProposeRefusal::Stopped));
}

#[tokio::test(start_paused = true)]
async fn core_that_panics_ends_the_member_with_a_code() {
    let seat = Seat::on(1, Arc::new(MemoryLog::new()), Arc::new(MemorySnapshots::default()));
    let cluster = Cluster::start(vec![seat], quick()).await;
    cluster.leader().await;
    let handle = &cluster.handles[0];
    let outcome = handle
        .inner
        .raft
        .with_raft_state(|_| panic!("a bug, for the test"))
        .await;
    assert!(outcome.is_err());
    let fatal = tokio::time::timeout(PATIENCE, handle.fatal()).await.unwrap();
    assert_eq!(fatal.exit_code, 70, "{}", fatal.reason);
}

#[tokio::test(start_paused = true)]
async fn overload_is_refused_at_once() {
    let config = RaftConfig {
        proposals_max: 2,
        ..quick()
    };
    let cluster = Cluster::in_memory(3, config).await;
    let leader = cluster.leader().await;
    cluster.board.isolate(cluster.seats[leader].id);
    let handle = &cluster.handles[leader];
    let short = Duration::from_millis(100);
    let (a, b, c) = futures::join!(
        handle.propose(&b"a"[..], short),
        handle.propose(&b"b"[..], short),
        handle.propose(&b"c"[..], short)
    );
    assert_eq!((a, b), (ProposeOutcome::Unknown, ProposeOutcome::Unknown));
    assert_eq!(
        c,
        ProposeOutcome::Refused(ProposeRefusal::Overloaded { in_flight: 3, max: 2 })
    );
    // The shares were given back.
    let later = handle.propose(&b"d"[..], short).await;
    assert!(
        !matches!(later, ProposeOutcome::Refused(ProposeRefusal::Overloaded { .. })),
        "{later:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn command_that_no_member_would_append_is_refused() {
    let cluster = Cluster::in_memory(1, quick()).await;
    let leader = cluster.leader().await;
    let before = cluster.handles[leader].status().last_index;
    let outcome = cluster.handles[leader].propose(&b"bad one"[..], PATIENCE).await;
    assert_eq!(
        outcome,
        ProposeOutcome::Refused(ProposeRefusal::BadCommand("a bad command".into()))
    );
    let huge = cluster.handles[leader]
        .propose(vec![0; crate::raft::COMMAND_BYTES_MAX + 1], PATIENCE)
        .await;
    assert!(
        matches!(huge, ProposeOutcome::Refused(ProposeRefusal::TooBig(_))),
        "{huge:?}"
    );
    assert_eq!(cluster.handles[leader].status().last_index, before);
    cluster.commit(leader, &vec![7; crate::raft::COMMAND_BYTES_MAX]).await;
}

#[tokio::test(start_paused = true)]
async fn quarantined_member_neither_votes_nor_leads() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    cluster.handles[leader].quarantine("its log conflicts with a final batch");
    let others: Vec<_> = (0..3).filter(|at| *at != leader).collect();
    let elected = cluster.leader_among(&others).await;
    cluster.commit(elected, b"y").await;
    assert!(cluster.handles[leader].status().is_quarantined);
    let outcome = cluster.handles[leader].propose(&b"z"[..], PATIENCE).await;
    assert_eq!(
        outcome,
        ProposeOutcome::Refused(ProposeRefusal::NotLeader { leader: None })
    );
}

#[tokio::test(start_paused = true)]
async fn reads_asked_of_a_quarantined_leader_do_not_keep_it_in_office() {
    let cluster = Cluster::in_memory(3, quick()).await;
    let leader = cluster.leader().await;
    cluster.commit(leader, b"x").await;
    let handle = &cluster.handles[leader];
    handle.quarantine("its log conflicts with a final batch");
    let status = handle.status();
    assert!(!handle.is_leader() && handle.leader().is_none());
    assert_eq!((status.role, status.leader), (RaftRole::Follower, None));
    let others: Vec<_> = (0..3).filter(|at| *at != leader).collect();
    let pause = Duration::from_millis(quick().heartbeat_ms);
    let reads = async {
        loop {
            let read = handle.linearizable_position(Confirmation::AtOnce, PATIENCE).await;
            assert_eq!(read, Err(ReadRefusal::NotLeader { leader: None }));
            tokio::time::sleep(pause).await;
        }
    };
    let elected = cluster.leader_among(&others);
    let elected = futures::future::select(Box::pin(elected), Box::pin(reads)).await;
    let futures::future::Either::Left((elected, _)) = elected;
    cluster.commit(elected, b"y").await;
}

#[tokio::test(start_paused = true)]
async fn log_purged_beyond_its_snapshot_does_not_start() {
    let cluster = Cluster::in_memory(1, small_snapshots()).await;
    let leader = cluster.leader().await;
    for number in 0..60u8 {
        cluster.commit(leader, &[number]).await;
    }
    until(&cluster.handles[0], "purged", |status| {
        status.purged.index > LogIndex(0)
    })
    .await;
    cluster.handles[0].shutdown().await;
    let log: Arc<dyn LogStore> = cluster.seats[0].log.clone();
    let seat = Seat::on(1, log, Arc::new(MemorySnapshots::default()));
    let error = seat.try_open(small_snapshots(), &cluster.board).await.err().unwrap();
    assert!(matches!(error, OpenError::Store(StoreError::Corrupt(_))), "{error:?}");
}
