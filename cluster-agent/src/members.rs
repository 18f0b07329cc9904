//! Who the members of this cluster are: asks about its own id, and changes the members while this one leads.
//!
//! # Rules
//! * Upon an empty log, before it takes part in Raft: ask every drone of the cluster about this id. If it held
//!   entries, they were lost, and so was its vote: the agent ends (78), and the drone comes back with the next
//!   incarnation. If a later one is known: the same. One that is reached is enough, and one that is just starting
//!   itself: drones start together, and a leader may be away.
//! * Upon an empty log that nobody writes to, and upon a long silence: ask again, everybody each time, since an old
//!   leader may still take itself for one.
//! * One word of one member is believed, as far as it fits what is here: what it can do is keep this drone out.
//! * Upon a question: say what is known of the id. When this member leads, and the id is the newest of its device:
//!   remember who asked; the one task that changes members does the rest.
//! * While this member leads: one step at a time ([`cluster_core::membership`]), each from what is in force then and
//!   only if that is still so when it is carried out. The pauses behind steps that fail grow.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster_core::membership::{MemberStep, Members, Standing};
use common::{
    batch::RosterChange,
    codec::decode,
    entry::LogEntry,
    ids::{LogIndex, NodeIdx, RaftNodeId},
    registry,
    roster::Roster,
    wire::{
        cluster::{Join, Joined},
        frame::FrameKind,
        op::Mode,
    },
};
use transport::watch::Watch;

use crate::{
    ports::CallError,
    raft::{Member, MembersChange, ProposeOutcome, RaftStatus},
    shell::{Shell, body, lock},
};

/// Exit code of a data directory that must not be used.
const EXIT_RETIRED: u8 = 78;
/// A learner that lacks at most so many entries holds the log.
const LAG_MAX: u64 = 100;
/// Rounds of questions with the answer that entries were lost: in the first some may have been under way.
const DENIALS: u32 = 2;
/// Election timeouts of silence after which a member that has a log asks about itself.
const SILENCES: u32 = 10;
/// Election timeouts for which a question counts.
const ASKED_LATELY: u32 = 4;
/// Election timeouts between two ids of one device: one that renews itself for ever leaves turns to the others.
const RENEWAL_PAUSE: u32 = 20;
/// The pause behind a step doubles so often at most.
const DOUBLINGS_MAX: u32 = 6;

/// Who asked this leader to be a member.
pub(crate) struct Newcomers {
    /// By device.
    asked: Mutex<BTreeMap<NodeIdx, Newcomer>>,
    /// Rises with each question.
    news: Watch<u64>,
}

#[derive(Clone, Copy)]
struct Newcomer {
    id: RaftNodeId,
    asked_us: u64,
    /// The id that was added last, and when that was tried.
    added: Option<(RaftNodeId, u64)>,
}

impl Default for Newcomers {
    fn default() -> Self {
        Self {
            asked: Mutex::default(),
            news: Watch::new(0),
        }
    }
}

impl Newcomers {
    /// `id`, whose device the connection proved, asks at `now_us`.
    fn note(&self, id: RaftNodeId, now_us: u64) {
        let mut asked = lock(&self.asked);
        let known = asked.entry(id.idx()).or_insert(Newcomer {
            id,
            asked_us: now_us,
            added: None,
        });
        (known.id, known.asked_us) = (id, now_us);
        self.news.set(self.news.get() + 1);
    }

    /// It is tried to add `id`.
    fn note_added(&self, id: RaftNodeId, now_us: u64) {
        if let Some(known) = lock(&self.asked).get_mut(&id.idx()) {
            known.added = Some((id, now_us));
        }
    }

    /// Who may be added at `now_us`; first who waits the longest since it was tried.
    fn candidates(&self, now_us: u64, timeout_us: u64) -> Vec<RaftNodeId> {
        let lately_us = timeout_us * u64::from(ASKED_LATELY);
        let pause_us = timeout_us * u64::from(RENEWAL_PAUSE);
        let may = |known: &&Newcomer| {
            let was_renewed = |(id, at_us)| id != known.id && now_us < at_us + pause_us;
            known.asked_us + lately_us >= now_us && !known.added.is_some_and(was_renewed)
        };
        let asked = lock(&self.asked);
        let mut candidates: Vec<&Newcomer> = asked.values().filter(may).collect();
        candidates.sort_by_key(|known| known.added.map(|(_, at_us)| at_us));
        candidates.into_iter().map(|known| known.id).collect()
    }
}

/// What a member with an empty log was told about its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Nobody knows of a leader: the cluster may have to be founded.
    First,
    /// The cluster is there.
    Founded,
    /// This agent ends.
    Ends,
}

/// What a drone says when it is asked about an id.
enum Word {
    /// It says nothing yet.
    Starting,
    Told(Joined),
}

impl Shell {
    fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.raft_config.heartbeat_ms)
    }

    fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.raft_config.election_timeout_ms_max)
    }

    /// Asks about an id whose log is empty, before the first request of Raft is let in, until at least one other
    /// drone is reached: alone it could not do anything.
    pub(crate) async fn may_begin(&self) -> Begin {
        let mut begin = Begin::First;
        loop {
            let (words, silent) = self.ask_all().await;
            let is_reached = !words.is_empty() || silent == 0;
            for (mate, word) in words {
                match word {
                    Word::Starting | Word::Told(Joined::NotLeader { leader: None }) => {}
                    Word::Told(Joined::HadEntries { upto }) if self.has_lost(upto) => self.end_lost(&mate, upto),
                    Word::Told(Joined::Retired { incarnation }) if self.is_retired_by(incarnation) => {
                        self.end_retired(&mate, incarnation);
                    }
                    Word::Told(_) => begin = Begin::Founded,
                }
            }
            if self.is_ending() {
                return Begin::Ends;
            }
            if is_reached {
                return begin;
            }
            self.pause(self.jittered(self.heartbeat())).await;
        }
    }

    /// Asks to be a member until the log has come, and about itself when it hears of nobody for long.
    pub(crate) async fn join(self: Arc<Self>) {
        let mut denials = 0;
        while !self.is_ending() {
            let timeouts = if self.has_log() { SILENCES } else { 1 };
            if self.has_log() {
                self.mode.wait_until(|now| now.mode == Mode::ReadOnly).await;
            }
            self.pause(self.jittered(timeouts * self.election_timeout())).await;
            if self.has_log() && self.mode.get().mode != Mode::ReadOnly {
                continue;
            }
            let mut denial = None;
            for (mate, word) in self.ask_all().await.0 {
                match word {
                    Word::Told(Joined::HadEntries { upto }) if self.has_lost(upto) => denial = Some((mate, upto)),
                    Word::Told(Joined::Retired { incarnation }) if self.is_retired_by(incarnation) => {
                        self.end_retired(&mate, incarnation);
                    }
                    _ => {}
                }
            }
            denials = if denial.is_some() { denials + 1 } else { 0 };
            if let Some((mate, upto)) = denial.filter(|_| denials >= DENIALS) {
                self.end_lost(&mate, upto);
            }
        }
    }

    fn has_log(&self) -> bool {
        self.raft.status().last_index > LogIndex(0)
    }

    /// Whether entries up to `upto`, which this id acknowledged, are not here. Only a log with nothing but the founding
    /// is judged: a longer one was kept.
    fn has_lost(&self, upto: LogIndex) -> bool {
        let last = self.raft.status().last_index;
        last <= LogIndex(1) && last < upto
    }

    fn is_retired_by(&self, incarnation: u32) -> bool {
        incarnation > self.me.raft.incarnation() && incarnation <= RaftNodeId::INCARNATION_MAX
    }

    /// What the other drones of the cluster say of this id, and how many were not reached within an election timeout.
    async fn ask_all(&self) -> (Vec<(registry::Member, Word)>, usize) {
        let founders = self.genesis.founding_roster(self.me.cluster);
        let devices = founders.iter().flat_map(Roster::devices);
        let others = devices.filter(|idx| *idx != self.me.idx);
        let mates = others.filter_map(|idx| self.registry.by_idx(idx).cloned());
        let questions = mates.map(|mate| async move { (self.ask(&mate).await, mate) });
        let answers = futures::future::join_all(questions).await;
        let asked = answers.len();
        let heard = answers.into_iter().filter_map(|(word, mate)| Some((mate, word?)));
        let heard: Vec<_> = heard.collect();
        let silent = asked - heard.len();
        (heard, silent)
    }

    async fn ask(&self, mate: &registry::Member) -> Option<Word> {
        let question = Join {
            cluster: self.me.cluster,
            founding: self.me.founding,
        };
        let deadline = self.election_timeout();
        let transport = &self.ports.transport;
        let call = transport.call(mate.id, FrameKind::Join, body(&question), deadline);
        match call.await {
            Ok(answer) => decode(&answer).ok().map(Word::Told),
            Err(CallError::Refused(_)) => Some(Word::Starting),
            Err(_) => None,
        }
    }

    fn end_retired(&self, mate: &registry::Member, incarnation: u32) {
        let reason = format!(
            "\"{}\" knows data directory number {incarnation} of this drone, so number {} must not be used again: for a new \
             directory set `incarnation = {}` in the configuration file",
            mate.label,
            self.me.raft.incarnation(),
            incarnation + 1
        );
        self.fatal(EXIT_RETIRED, reason);
    }

    fn end_lost(&self, mate: &registry::Member, upto: LogIndex) {
        let incarnation = self.me.raft.incarnation();
        let reason = format!(
            "the data directory is empty, but \"{}\" knows that number {incarnation} of this drone held the log up to {upto}: \
             it was lost. Set `incarnation = {}` in the configuration file and start again with an empty directory",
            mate.label,
            incarnation + 1
        );
        self.fatal(EXIT_RETIRED, reason);
    }

    /// Answers what `from` asks about itself.
    pub(crate) fn answer_join(&self, from: RaftNodeId) -> Joined {
        let status = self.raft.status();
        let standing = self.with_members(&status, &BTreeSet::new(), |members| members.standing(from));
        if let Standing::Retired(newer) = standing {
            return Joined::Retired {
                incarnation: newer.incarnation(),
            };
        }
        if status.leader == Some(from) {
            // Who led had at least the founding on its disk.
            return Joined::HadEntries { upto: LogIndex(1) };
        }
        if !self.is_leader() {
            return Joined::NotLeader { leader: status.leader };
        }
        if standing == Standing::Newcomer {
            self.newcomers.note(from, self.now_us());
            return Joined::NotNow;
        }
        // What is committed is never cut off: whoever acknowledged it has it.
        let matched = status
            .peers
            .iter()
            .find(|peer| peer.id == from)
            .map(|peer| peer.matched);
        let held = matched.map(|matched| matched.min(status.committed.index));
        let held = held.filter(|held| *held > LogIndex(0));
        held.map_or(Joined::IsMember, |upto| Joined::HadEntries { upto })
    }

    /// Runs as long as the agent.
    pub(crate) async fn tend_members(self: Arc<Self>) {
        let pause = self.heartbeat();
        let mut failures = 0;
        while !self.is_ending() {
            let (leaders, asked) = (self.raft.leader_changes(), self.newcomers.news.get());
            let led = leaders.version();
            if !self.is_leader() {
                leaders.changed(led).await;
                continue;
            }
            let status = self.raft.status();
            if let Some(step) = self.next_step(&status) {
                match self.take_step(&step, &status).await {
                    Ok(()) => {
                        tracing::info!(?step, "the members were changed");
                        failures = 0;
                    }
                    Err(why) => {
                        if failures == 0 {
                            tracing::warn!(?step, why, "the members cannot be changed now");
                        }
                        failures += 1;
                    }
                }
                self.pause(pause * 2_u32.pow(failures.min(DOUBLINGS_MAX))).await;
            } else if status.learners.is_empty() {
                let questions = self.newcomers.news.wait_until(|now| *now != asked);
                futures::future::select(Box::pin(questions), Box::pin(leaders.changed(led))).await;
            } else {
                // Nothing tells when a learner holds the log.
                self.pause(pause).await;
            }
        }
    }

    fn next_step(&self, status: &RaftStatus) -> Option<MemberStep> {
        let timeout_us = self.raft_config.election_timeout_ms_max * 1_000;
        let candidates = self.newcomers.candidates(self.now_us(), timeout_us);
        let newcomer = self.with_members(status, &BTreeSet::new(), |members| {
            let mut newcomers = candidates.into_iter();
            newcomers.find(|id| members.standing(*id) == Standing::Newcomer)
        });
        let asking = newcomer.into_iter().collect();
        self.with_members(status, &asking, |members| members.next_step())
    }

    fn with_members<T>(
        &self,
        status: &RaftStatus,
        asking: &BTreeSet<RaftNodeId>,
        ask: impl FnOnce(&Members<'_>) -> T,
    ) -> T {
        let heard_ms_max = self.raft_config.election_timeout_ms_max;
        let ready = status.peers.iter().filter(|peer| {
            status.learners.contains(&peer.id)
                && peer.matched > LogIndex(0)
                && peer.matched.0.saturating_add(LAG_MAX) >= status.last_index.0
                && peer.acked_age_ms.is_some_and(|age| age <= heard_ms_max)
        });
        let ready: Vec<_> = ready.map(|peer| peer.id).collect();
        self.machine.with(|state| {
            let roster = state.queue.roster();
            let cursor = state.queue.global().cursor(self.me.cluster);
            ask(&Members {
                voters: &status.voters,
                learners: &status.learners,
                is_joint: status.is_joint,
                ready: &ready,
                asking,
                roster,
                is_roster_final: cursor.is_some_and(|cursor| *cursor.roster == *roster),
            })
        })
    }

    async fn take_step(&self, step: &MemberStep, status: &RaftStatus) -> Result<(), String> {
        let deadline = 2 * self.election_timeout();
        let change = match step {
            MemberStep::Add(id) => {
                self.newcomers.note_added(*id, self.now_us());
                let device = self.device_of(*id).ok_or("its device is not in the registry")?;
                MembersChange::Add(*id, Member { device })
            }
            MemberStep::Vote(voters) => MembersChange::Vote(voters.clone()),
            MemberStep::Leave(ids) => MembersChange::Leave(ids.clone()),
            MemberStep::Enter(roster) => return self.enter_roster(roster.clone(), deadline).await,
        };
        let changed = self.raft.change_members(change, status.members_at, deadline).await;
        changed.map(|_| ()).map_err(|error| error.to_string())
    }

    async fn enter_roster(&self, roster: Roster, deadline: Duration) -> Result<(), String> {
        let change = RosterChange { roster };
        {
            let admission = lock(&self.admission);
            let admitted = self.machine.with(|state| admission.admit_roster(&state.queue, &change));
            admitted.map_err(|error| error.to_string())?;
        }
        match self.propose(&LogEntry::Roster(change), deadline).await {
            ProposeOutcome::Committed { .. } => Ok(()),
            outcome => Err(format!("{outcome:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(device: u32, incarnation: u32) -> RaftNodeId {
        RaftNodeId::new(NodeIdx(device), incarnation)
    }

    #[test]
    fn question_counts_for_a_while_and_a_device_has_one() {
        let newcomers = Newcomers::default();
        newcomers.note(id(1, 2), 10);
        newcomers.note(id(2, 2), 20);
        newcomers.note(id(1, 3), 30);
        assert_eq!(newcomers.candidates(30, 5), [id(1, 3), id(2, 2)]);
        let late_us = 20 + 5 * u64::from(ASKED_LATELY) + 1;
        assert_eq!(newcomers.candidates(late_us, 5), [id(1, 3)]);
        assert_eq!(newcomers.news.get(), 3);
    }

    #[test]
    fn device_that_renews_itself_waits_and_who_was_tried_last_comes_last() {
        let newcomers = Newcomers::default();
        let timeout_us = 100;
        for device in 1..=3 {
            newcomers.note(id(device, 2), 0);
        }
        newcomers.note_added(id(1, 2), 10);
        newcomers.note_added(id(2, 2), 5);
        assert_eq!(newcomers.candidates(11, timeout_us), [id(3, 2), id(2, 2), id(1, 2)]);
        newcomers.note(id(1, 3), 11);
        assert_eq!(newcomers.candidates(12, timeout_us), [id(3, 2), id(2, 2)]);
        let later_us = 10 + timeout_us * u64::from(RENEWAL_PAUSE);
        newcomers.note(id(1, 3), later_us);
        assert_eq!(newcomers.candidates(later_us, timeout_us), [id(1, 3)]);
    }
}
