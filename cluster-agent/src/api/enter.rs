//! A signed entry on its way into the cluster's log.
//!
//! In: an entry, from a client here or from the member a client asked. Out: [`WriteOutcome`].
//!
//! # Rules
//! * Upon an entry, when this member leads: admission, then the log. Otherwise: to the leader, over one
//!   hop; a leader never sends it on.
//! * Static faults are refused where they arrive. Everything that depends on state is decided by the
//!   leader, whose state is the newest, and once more in `apply`.
//! * The leader refuses by a rule only from a state that includes everything acknowledged before: it has
//!   itself confirmed by a majority and applies up to there. A leader that was elected a moment ago, or was
//!   replaced without knowing, would else refuse for good what the cluster has long allowed. If it does not get
//!   there in time, it has a backlog, not an outage: `CatchingUp`.
//! * Every write ends within its deadline: committed with its decision, refused and certainly not in
//!   the log, or unknown. Whoever hears "unknown" sends the same bytes again and gets the one answer.
//! * When the leader is lost before anything was sent, the entry waits for the next leader, at most
//!   two elections; then it is refused with `NoQuorum`. To a leader that has been silent for the longest
//!   election timeout nothing is sent.
//! * Upon a member that is cut off: refused with `NoQuorum` without waiting; what is in flight ends as
//!   unknown then, and not only at its deadline.

use std::{sync::Arc, time::Duration};

use cluster_core::admission::{AdmitError, Admitted, Full};
use common::{
    codec::{Label, decode},
    entry::{LogEntry, SignedEntry},
    ids::{LogIndex, RaftNodeId},
    verdict::{Reason, Verdict},
    wire::{
        cluster::{Forward, WriteOutcome},
        frame::{FrameKind, Refusal},
        op::{Mode, WriteRefusal},
    },
};

use crate::{
    machine::MachineAnswer,
    ports::CallError,
    raft::{ProposeOutcome, ProposeRefusal, ReadRefusal},
    shell::{Shell, body, lock},
};

/// How an attempt at one leader ended.
enum Attempt {
    /// For good.
    Ended(WriteOutcome),
    /// It took nothing: another leader may.
    Elsewhere,
    /// It may have taken it; ask again with the same bytes.
    Unclear,
    /// It may have taken it, and this member is cut off: nobody can tell now.
    CutOff,
}

pub(crate) fn rejected(verdict: Verdict, detail: &str) -> WriteOutcome {
    // The same cleaning and cut as for a refusal's text.
    let detail: Label = Refusal::new(common::wire::frame::RefusalCode::Invalid, detail).text;
    WriteOutcome::Refused(WriteRefusal::Rejected { verdict, detail })
}

pub(crate) fn overloaded(what: &str, retry_after_ms: u64) -> WriteOutcome {
    let what = Label::new(what).expect("words of this crate are short and printable");
    WriteOutcome::Refused(WriteRefusal::Overloaded { what, retry_after_ms })
}

impl Shell {
    /// Enters `entry`, here or through the leader, within the write deadline.
    pub async fn enter(self: &Arc<Self>, entry: SignedEntry) -> WriteOutcome {
        if let Err(fault) = self.check_static(&entry) {
            return fault;
        }
        if !self.is_leader() {
            let status = self.raft.status();
            let (mode, behind) = self
                .machine
                .with(|state| (self.mode_of(state, &status).mode, state.freshness.behind()));
            if mode == Mode::CatchingUp {
                return WriteOutcome::Refused(WriteRefusal::CatchingUp { behind });
            }
        }
        let started = tokio::time::Instant::now();
        let until = started + self.limits.write_deadline;
        let patience = started + Duration::from_millis(2 * self.raft_config.election_timeout_ms_max);
        let mut may_be_in_log = false;
        let refusal = loop {
            let now = tokio::time::Instant::now();
            let changes = self.raft.leader_changes();
            let seen = changes.version();
            if self.is_cut_off().await {
                break self.no_quorum();
            }
            match self.attempt(&entry, until.saturating_duration_since(now)).await {
                Attempt::Ended(WriteOutcome::Refused(_)) if may_be_in_log => break WriteOutcome::Unknown,
                Attempt::Ended(outcome) => return outcome,
                Attempt::CutOff => return WriteOutcome::Unknown,
                Attempt::Elsewhere => {}
                Attempt::Unclear => may_be_in_log = true,
            }
            let now = tokio::time::Instant::now();
            let limit = if may_be_in_log { until } else { patience.min(until) };
            if now >= limit || self.is_ending() {
                break self.no_quorum();
            }
            // Until something changes about the leader, but not in a tight loop.
            let pause = self.jittered(Duration::from_millis(self.raft_config.heartbeat_ms.div_ceil(4)));
            self.pause(pause.min(limit - now)).await;
            let patience = Duration::from_millis(self.raft_config.heartbeat_ms);
            let _ = self.within(patience.min(limit - now), changes.changed(seen)).await;
        };
        if may_be_in_log { WriteOutcome::Unknown } else { refusal }
    }

    fn no_quorum(&self) -> WriteOutcome {
        WriteOutcome::Refused(WriteRefusal::NoQuorum {
            leader: self.raft.leader(),
            retry_after_ms: self.raft_config.retry_after_ms(),
        })
    }

    /// What no state can repair.
    fn check_static(&self, entry: &SignedEntry) -> Result<(), WriteOutcome> {
        let malformed = Verdict::Rejected(Reason::Malformed);
        entry
            .check_shape()
            .map_err(|fault| rejected(malformed, &fault.to_string()))?;
        if entry.header.cluster != self.me.cluster {
            return Err(rejected(
                Verdict::Rejected(Reason::WrongCluster),
                "it names another cluster",
            ));
        }
        let Some(key) = self.registry.key(&entry.header.author, entry.header.key_version) else {
            return Err(rejected(
                Verdict::Rejected(Reason::UnknownKey),
                "author or key version not registered",
            ));
        };
        if !self.signatures.is_good(entry, &self.chain, key) {
            return Err(rejected(malformed, "the signature does not verify"));
        }
        Ok(())
    }

    async fn attempt(self: &Arc<Self>, entry: &SignedEntry, left: Duration) -> Attempt {
        match self.raft.leader() {
            Some(leader) if leader == self.me.raft => self.enter_as_leader(entry, left).await,
            Some(leader) if !self.is_leader_silent().await => self.forward(leader, entry, left).await,
            Some(_) | None => Attempt::Elsewhere,
        }
    }

    async fn forward(&self, leader: RaftNodeId, entry: &SignedEntry, left: Duration) -> Attempt {
        let Some(device) = self.device_of(leader) else {
            return Attempt::Elsewhere;
        };
        let forward = Forward {
            cluster: self.me.cluster,
            founding: self.me.founding,
            entry: entry.clone(),
        };
        let call = self
            .ports
            .transport
            .call(device, FrameKind::Forward, body(&forward), left);
        let answer = self.unless_cut_off(self.unless_led_by_another(leader, call)).await;
        let Some(answer) = answer else { return Attempt::CutOff };
        match answer {
            Some(Ok(answer)) => decode(&answer).map_or(Attempt::Unclear, |outcome| match outcome {
                WriteOutcome::Unknown => Attempt::Unclear,
                outcome => Attempt::Ended(outcome),
            }),
            Some(Err(CallError::Unreachable(_) | CallError::Refused(_))) => Attempt::Elsewhere,
            // A leader that died says nothing: the next one is asked with the same bytes.
            Some(Err(CallError::Timeout(_) | CallError::Broken(_))) | None => Attempt::Unclear,
        }
    }

    /// An entry that a member sent on to this one. `None`: this member does not lead.
    pub(crate) async fn enter_forwarded(self: &Arc<Self>, entry: &SignedEntry) -> Option<WriteOutcome> {
        if let Err(fault) = self.check_static(entry) {
            return Some(fault);
        }
        // The member that asks waits a little longer than this one works.
        match self.enter_as_leader(entry, self.limits.write_deadline * 3 / 4).await {
            Attempt::Ended(outcome) => Some(outcome),
            Attempt::Elsewhere => None,
            Attempt::Unclear | Attempt::CutOff => Some(WriteOutcome::Unknown),
        }
    }

    async fn enter_as_leader(self: &Arc<Self>, entry: &SignedEntry, left: Duration) -> Attempt {
        if !self.is_leader() {
            return Attempt::Elsewhere;
        }
        if self.is_cut_off().await {
            return Attempt::Ended(self.no_quorum());
        }
        let started = tokio::time::Instant::now();
        match self.admit_for_good(entry, left).await {
            Ok(Admitted::Enter) => {}
            Ok(Admitted::Known(answer)) => return Attempt::Ended(WriteOutcome::Committed(answer)),
            Err(attempt) => return attempt,
        }
        let left = left.saturating_sub(started.elapsed());
        let log_entry = LogEntry::Author(entry.clone());
        let Some(outcome) = self.unless_cut_off(self.propose(&log_entry, left)).await else {
            return Attempt::CutOff;
        };
        match outcome {
            ProposeOutcome::Committed { answer, .. } => match decode::<MachineAnswer>(&answer) {
                Ok(MachineAnswer(Some(answer))) => Attempt::Ended(WriteOutcome::Committed(answer)),
                // The machine answers every author-signed entry.
                Ok(MachineAnswer(None)) | Err(_) => Attempt::Ended(WriteOutcome::Unknown),
            },
            ProposeOutcome::Refused(ProposeRefusal::NotLeader { .. }) => Attempt::Elsewhere,
            ProposeOutcome::Refused(ProposeRefusal::NoQuorum { retry_after_ms }) => {
                let leader = self.raft.leader();
                Attempt::Ended(WriteOutcome::Refused(WriteRefusal::NoQuorum { leader, retry_after_ms }))
            }
            ProposeOutcome::Refused(ProposeRefusal::Overloaded { .. }) => {
                Attempt::Ended(overloaded("proposals", self.raft_config.heartbeat_ms))
            }
            ProposeOutcome::Refused(refusal @ (ProposeRefusal::TooBig(_) | ProposeRefusal::BadCommand(_))) => {
                Attempt::Ended(rejected(Verdict::Rejected(Reason::Malformed), &refusal.to_string()))
            }
            ProposeOutcome::Refused(ProposeRefusal::Stopped) => Attempt::Elsewhere,
            ProposeOutcome::Unknown => Attempt::Unclear,
        }
    }

    /// Admission, on the leader. Refuses by a rule only what the newest state refuses.
    async fn admit_for_good(self: &Arc<Self>, entry: &SignedEntry, left: Duration) -> Result<Admitted, Attempt> {
        match self.admit(entry) {
            Ok(admitted) => return Ok(admitted),
            Err(error @ AdmitError::Overloaded(_)) => return Err(Attempt::Ended(refusal_of(&error))),
            Err(AdmitError::Rejected(_) | AdmitError::Static(_)) => {}
        }
        let confirmed = async {
            let until = tokio::time::Instant::now() + left.min(self.read_deadline());
            let left = || until.saturating_duration_since(tokio::time::Instant::now());
            let position = self.confirmed_position(left()).await.map_err(|_| Attempt::Elsewhere)?;
            let reached = self.raft.wait_applied(position.index, left()).await;
            let applied = || self.machine.with(|state| state.queue.applied().0.index);
            reached.map_err(|refusal| not_reached(&refusal, position.index, applied()))
        };
        match self.unless_cut_off(confirmed).await {
            None => Err(Attempt::Ended(self.no_quorum())),
            Some(Err(attempt)) => Err(attempt),
            Some(Ok(_)) => self.admit(entry).map_err(|error| Attempt::Ended(refusal_of(&error))),
        }
    }

    pub(crate) fn admit(&self, entry: &SignedEntry) -> Result<Admitted, AdmitError> {
        let now_us = self.now_us();
        let mut oracle = self.signatures.clone();
        let mut admission = lock(&self.admission);
        self.machine
            .with(|state| admission.admit(&state.queue, self.me.raft, entry, &mut oracle, now_us))
    }
}

/// A majority confirmed `position`, and this leader has applied up to `applied`.
fn not_reached(refusal: &ReadRefusal, position: LogIndex, applied: LogIndex) -> Attempt {
    match refusal {
        ReadRefusal::Deadline => {
            let behind = position.0.saturating_sub(applied.0);
            Attempt::Ended(WriteOutcome::Refused(WriteRefusal::CatchingUp { behind }))
        }
        ReadRefusal::NoQuorum | ReadRefusal::NotLeader { .. } | ReadRefusal::Stopped => Attempt::Elsewhere,
    }
}

pub(crate) fn refusal_of(error: &AdmitError) -> WriteOutcome {
    match error {
        AdmitError::Overloaded(full @ (Full::Outbox { .. } | Full::State { .. })) => overloaded(full.word(), 1_000),
        AdmitError::Overloaded(full @ Full::Author { retry_after_ms }) => overloaded(full.word(), *retry_after_ms),
        AdmitError::Rejected(_) | AdmitError::Static(_) => {
            let verdict = error.verdict().unwrap_or(Verdict::Rejected(Reason::Malformed));
            rejected(verdict, &error.to_string())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leader_with_a_backlog_says_how_far_it_is_behind_and_not_that_there_is_no_quorum() {
        let late = not_reached(&ReadRefusal::Deadline, LogIndex(1_200), LogIndex(200));
        let Attempt::Ended(outcome) = late else {
            panic!("it would be asked again until it is called an outage");
        };
        let refusal = WriteRefusal::CatchingUp { behind: 1_000 };
        assert_eq!(outcome, WriteOutcome::Refused(refusal));
        for gone in [ReadRefusal::Stopped, ReadRefusal::NotLeader { leader: None }] {
            let attempt = not_reached(&gone, LogIndex(1_200), LogIndex(200));
            assert!(matches!(attempt, Attempt::Elsewhere), "another leader may take it");
        }
    }
}
