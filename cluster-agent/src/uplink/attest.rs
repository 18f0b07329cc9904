//! This member signs each batch of its own applied and durable log, once.
//!
//! # Rules
//! * Upon a closed batch whose cut is durable here: the guard's record is durable before the signature
//!   leaves the process.
//! * Upon a batch with another digest than the one that was signed: stop attesting, stop as voter, say so.
//! * An attestation goes to the leader at once.
//! * Of the first batches of the outbox, which are submitted now, it goes to every member while they are not final after
//!   twice the usual time, with growing pauses: to those that have not answered, and to each of the others when its
//!   answer is old, whoever else is silent, since a restart makes a member forget what it heard.
//! * Of those and as many again it goes to a leader that has not answered: one that is new, or did not hear it. The others
//!   follow as these become final, a step ahead of who submits them. An outbox may be long, after hours without
//!   validators, and nobody could do anything with the rest.
//! * Upon the final cursor: what is final is forgotten, and the usual time learns from it.
//! * A guard that is missing beside used data, or damaged: the agent does not start (exit 78).
//!
//! # Invariants
//! * attest-once: see [`cluster_core::attestation`].

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use cluster_core::{
    Shared,
    attestation::{AttestError, AttestGuard, Decision, GuardRecord, RecordError},
    batcher::OutboxBatch,
};
use common::{
    batch::Attestation,
    codec::{DecodeError, decode, encode},
    ids::{BatchSeq, LogIndex, RaftNodeId, Term},
    wire::frame::{FrameKind, Refusal, RefusalCode},
};
use futures::FutureExt;
use transport::watch::Watch;

use super::submit::IN_FLIGHT_MAX;
use crate::{
    ports::{Disk, Journal},
    shell::{Shell, body, lock},
};

/// Name of the guard's journal.
const GUARD: &str = "attest-guard";
/// The journal is rewritten when it has grown by this much.
const COMPACT_BYTES: u64 = 256 * 1024;
/// One attestation must be answered within this time.
const SEND_DEADLINE: Duration = Duration::from_secs(3);
/// Longest pause between two times an attestation is sent to those that have not answered, where finality does not usually
/// take longer.
const RESEND_PAUSE_US_MAX: u64 = 10_000_000;
/// An answer that is older says nothing: who gave it may have restarted.
const FORGET_US: u64 = 40_000_000;
/// The first batches of the outbox that a leader must be able to submit: those in flight, and those after them.
const LEADER_NEEDS: usize = 2 * IN_FLIGHT_MAX;

/// Why the guard cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The directory was used before, and the guard is gone.
    #[error(
        "the guard \"{GUARD}\" is missing beside used data: this member might sign twice. Move the directory away and \
         start on an empty one with the next `incarnation` in the configuration file"
    )]
    Missing,
    /// A record does not decode.
    #[error(
        "the guard \"{GUARD}\" is damaged ({0}): move the directory away and start on an empty one with the next \
         `incarnation` in the configuration file"
    )]
    Damaged(DecodeError),
    /// Two records contradict each other.
    #[error("{0}")]
    Contradiction(#[from] RecordError),
    /// The disk failed, or the journal is damaged in the middle.
    #[error("the guard \"{GUARD}\": {0}")]
    Io(#[from] io::Error),
}

impl GuardError {
    /// 74 for the disk, 78 where a restart cannot help.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io(error) if error.kind() != io::ErrorKind::InvalidData => 74,
            _ => 78,
        }
    }
}

/// The guard with its journal.
pub struct Attester {
    guard: AttestGuard,
    journal: Box<dyn Journal>,
    rewritten_bytes: u64,
    sent: BTreeMap<BatchSeq, Sent>,
    /// Who led last, and in which term: one that restarted leads in another.
    last_leader: Option<(RaftNodeId, Term)>,
}

struct Sent {
    attestation: Attestation,
    /// Since when it is signed and its batch is among those that are submitted.
    first_us: Option<u64>,
    /// Not before then it is sent again.
    again_at_us: u64,
    pause_us: u64,
    heard: Heard,
}

/// Members that answered to an attestation, and when: a restart loses what they heard.
type Heard = Arc<Mutex<BTreeMap<RaftNodeId, u64>>>;

impl Sent {
    /// Those of `members` that have not answered at `since_us` or later.
    fn unheard(&self, members: &[RaftNodeId], since_us: u64) -> Vec<RaftNodeId> {
        let heard = lock(&self.heard);
        let is_heard = |member: &RaftNodeId| heard.get(member).is_some_and(|at_us| *at_us >= since_us);
        members.iter().filter(|member| !is_heard(member)).copied().collect()
    }
}

impl Attester {
    /// Opens the journal; makes it if `is_new`, that is, if nothing was ever written beside it.
    ///
    /// # Errors
    /// [`GuardError`].
    pub fn open(disk: &dyn Disk, is_new: bool) -> Result<Self, GuardError> {
        if !is_new && !disk.list(GUARD)?.iter().any(|name| name == GUARD) {
            return Err(GuardError::Missing);
        }
        let (journal, records) = disk.open_journal(GUARD)?;
        let records: Result<Vec<GuardRecord>, _> = records.iter().map(|(_, bytes)| decode(bytes)).collect();
        let guard = AttestGuard::replay(records.map_err(GuardError::Damaged)?)?;
        Ok(Self {
            guard,
            journal,
            // Whatever of it earlier lives could have left out: lives may all be shorter than what makes one rewrite it.
            rewritten_bytes: 0,
            sent: BTreeMap::new(),
            last_leader: None,
        })
    }

    /// Whether the journal has grown by enough to be rewritten.
    fn is_grown(&self) -> bool {
        self.journal.bytes() >= self.rewritten_bytes + COMPACT_BYTES
    }
}

enum Step {
    Signed(Vec<Signed>),
    Forked(String),
    DiskFailed(io::Error),
}

struct Signed {
    attestation: Attestation,
    /// Not given before a restart.
    is_new: bool,
}

impl Shell {
    /// Runs as long as the agent.
    pub(crate) async fn attest(self: Arc<Self>, mut attester: Attester, durable: Watch<LogIndex>) {
        while !self.is_ending() {
            let leaders = self.raft.leader_changes();
            let led = leaders.version();
            let pulse = self.machine.pulse().get();
            if pulse.is_conflict {
                self.quarantine_for_conflict();
                return;
            }
            if let Err(error) = self.forget_final(&mut attester, pulse.last_final).await {
                self.fatal(74, format!("the guard \"{GUARD}\": {error}"));
                return;
            }
            let synced = durable.get();
            // A snapshot stands for what it covers, and was made durable before it was installed.
            let covered = self.raft.status().snapshot.index;
            match self
                .sign_closed(&mut attester, synced.max(covered).min(pulse.applied.index))
                .await
            {
                Step::Signed(attestations) => self.begin_sending(&mut attester, attestations),
                Step::Forked(why) => {
                    self.raft.quarantine(&why);
                    return;
                }
                Step::DiskFailed(error) => {
                    self.fatal(74, format!("the guard \"{GUARD}\": {error}"));
                    return;
                }
            }
            self.resend(&mut attester);
            let waits_for_disk = self.has_closed_above(&attester, synced);
            let closed = self.machine.turn().wait_until(|now| {
                (now.closed, now.last_final, now.is_conflict) != (pulse.closed, pulse.last_final, pulse.is_conflict)
            });
            let flushed = durable.wait_until(|now| waits_for_disk && *now != synced);
            let news = futures::future::select(Box::pin(closed), Box::pin(flushed));
            // A new leader has none of what was sent to the old one.
            let news = futures::future::select(news, Box::pin(leaders.changed(led)));
            let _ = self
                .within(Duration::from_micros(self.usual_final_us().min(500_000)), news)
                .await;
        }
    }

    /// Whether a batch that is not signed yet closes above `durable`.
    fn has_closed_above(&self, attester: &Attester, durable: LogIndex) -> bool {
        self.machine.with(|state| {
            let newest_first = state.queue.batcher().outbox().rev();
            newest_first
                .take_while(|batch| !attester.sent.contains_key(&batch.header.seq))
                .any(|batch| batch.header.cut.index > durable)
        })
    }

    fn quarantine_for_conflict(&self) {
        let conflict = self.machine.with(|state| state.queue.conflict().copied());
        if let Some(conflict) = conflict {
            tracing::error!(
                event = "conflict",
                %conflict,
                "it follows no more blocks; what to do: docs/operating/real-fleet.md, \"An agent contradicts the validators\""
            );
            self.raft.quarantine(&conflict.to_string());
        }
    }

    /// Signs everything that may be signed now, and gives again what was signed before a restart; what is
    /// new is durable when this returns.
    async fn sign_closed(&self, attester: &mut Attester, durable: LogIndex) -> Step {
        let unsent = self.machine.with(|state| {
            let outbox = state.queue.batcher().outbox();
            // Seqs are signed in order: below one that was sent all were, or are none of ours.
            let is_unsent = |batch: &&Shared<OutboxBatch>| !attester.sent.contains_key(&batch.header.seq);
            let is_due = |batch: &&Shared<OutboxBatch>| {
                batch.roster.position(self.me.raft).is_some() && batch.header.cut.index <= durable
            };
            let newest_first = outbox.rev().take_while(is_unsent).filter(is_due);
            let mut unsent: Vec<_> = newest_first.cloned().collect();
            unsent.reverse();
            unsent
        });
        let (mut records, mut attestations) = (Vec::new(), Vec::new());
        for batch in unsent {
            match attester.guard.sign(&self.key, &self.chain, self.me.raft, &batch) {
                Ok(signed) => {
                    attestations.push(Signed {
                        attestation: signed.attestation,
                        is_new: signed.record.is_some(),
                    });
                    records.extend(signed.record.map(|record| encode(&record)));
                }
                Err(Decision::Quarantine { held, want }) => {
                    let seq = batch.header.seq;
                    return Step::Forked(format!("batch {seq} was signed as {held}, this log now builds {want}"));
                }
                Err(Decision::Past | Decision::Sign | Decision::Repeat(_)) => {}
            }
        }
        if !records.is_empty()
            && let Err(error) = attester.journal.append(records).await
        {
            return Step::DiskFailed(error);
        }
        Step::Signed(attestations)
    }

    /// Counts own attestations, and sends to the leader what it cannot have.
    fn begin_sending(self: &Arc<Self>, attester: &mut Attester, signed: Vec<Signed>) {
        let (now_us, pause_us) = (self.now_us(), self.patience_us());
        let status = self.raft.status();
        let leader = status.leader;
        let led = leader.map(|leader| (leader, status.term));
        if led.is_some() && led != attester.last_leader {
            attester.last_leader = led;
            self.begin_again_with(leader, attester);
        }
        for Signed { attestation, is_new } in signed {
            if let Err(refusal) = self.take_attestation(self.me.raft, attestation.clone()) {
                tracing::error!(?refusal, "an own attestation does not count");
            }
            let heard = Heard::default();
            // What was signed before a restart was sent before it, and is sent again when it is its turn.
            if is_new {
                self.send_attestation(leader, &attestation, &heard);
            }
            let sent = Sent {
                heard,
                first_us: None,
                again_at_us: if is_new {
                    now_us.saturating_add(pause_us)
                } else {
                    now_us
                },
                pause_us,
                attestation,
            };
            attester.sent.insert(sent.attestation.seq, sent);
        }
    }

    /// A new leader has none of those that are on their way, and one that restarted has forgotten those it had.
    fn begin_again_with(self: &Arc<Self>, leader: Option<RaftNodeId>, attester: &mut Attester) {
        for (at, sent) in attester.sent.values_mut().enumerate() {
            leader.inspect(|leader| {
                lock(&sent.heard).remove(leader);
            });
            if at < LEADER_NEEDS {
                self.send_attestation(leader, &sent.attestation, &sent.heard);
            }
            if (IN_FLIGHT_MAX..LEADER_NEEDS).contains(&at) {
                sent.again_at_us = self.after(sent.pause_us);
            }
        }
    }

    fn resend(self: &Arc<Self>, attester: &mut Attester) {
        let leader = self.raft.leader().filter(|leader| *leader != self.me.raft);
        let (others, now_us) = (self.others(), self.now_us());
        for (at, sent) in attester.sent.values_mut().take(LEADER_NEEDS).enumerate() {
            // A leader that restarted leads in another term, or not at all.
            let leader = sent.unheard(leader.as_slice(), 0);
            if at >= IN_FLIGHT_MAX {
                self.send_again(sent, leader);
            } else if sent.first_us.is_none() {
                self.send_again(sent, leader);
                sent.first_us = Some(now_us);
                sent.pause_us = self.patience_us();
                sent.again_at_us = now_us.saturating_add(sent.pause_us);
            } else {
                let unheard = sent.unheard(&others, now_us.saturating_sub(FORGET_US));
                self.send_again(sent, unheard);
            }
        }
    }

    /// Sends to `unheard`, if there are some and it is time.
    fn send_again(self: &Arc<Self>, sent: &mut Sent, unheard: Vec<RaftNodeId>) {
        if unheard.is_empty() || sent.again_at_us > self.now_us() {
            return;
        }
        for member in unheard {
            self.send_attestation(Some(member), &sent.attestation, &sent.heard);
        }
        sent.again_at_us = self.after(sent.pause_us);
        sent.pause_us = (2 * sent.pause_us).min(RESEND_PAUSE_US_MAX.max(sent.pause_us));
    }

    /// `pause_us` from now, and up to a quarter more.
    fn after(&self, pause_us: u64) -> u64 {
        let jitter_us = self.ports.entropy.below(pause_us / 4 + 1);
        self.now_us().saturating_add(pause_us + jitter_us)
    }

    fn send_attestation(self: &Arc<Self>, to: Option<RaftNodeId>, attestation: &Attestation, heard: &Heard) {
        let Some(to) = to.filter(|to| *to != self.me.raft) else {
            return;
        };
        let Some(device) = self.device_of(to) else { return };
        let (heard, shell) = (heard.clone(), self.clone());
        let call = self
            .ports
            .transport
            .call(device, FrameKind::Attest, body(attestation), SEND_DEADLINE);
        let note = move |answer: Result<_, _>| {
            if answer.is_ok() {
                lock(&heard).insert(to, shell.now_us());
            }
        };
        self.spawn("send-attestation", call.map(note).boxed());
    }

    /// Forgets what is final. The journal is rewritten only when it has grown: a record too many is safe.
    async fn forget_final(&self, attester: &mut Attester, last_final: BatchSeq) -> io::Result<()> {
        let open = attester.sent.split_off(&last_final.next());
        let closed = core::mem::replace(&mut attester.sent, open);
        if let Some(first_us) = closed.values().rev().find_map(|sent| sent.first_us) {
            self.learn_usual_final(self.now_us().saturating_sub(first_us));
        }
        if !attester.is_grown() {
            return Ok(());
        }
        let _ = attester.guard.finalized(self.me.founding, last_final);
        let records = attester.guard.compacted().iter().map(encode).collect();
        attester.journal.rewrite(records).await?;
        attester.rewritten_bytes = attester.journal.bytes();
        Ok(())
    }

    /// Takes an attestation of the member `from`.
    pub(crate) fn take_attestation(&self, from: RaftNodeId, attestation: Attestation) -> Result<(), Refusal> {
        if attestation.by != from {
            return Err(Refusal::new(RefusalCode::Invalid, "an attestation of another member"));
        }
        let seq = attestation.seq;
        let taken = self
            .machine
            .with(|state| lock(&self.collector).count(&state.queue, attestation));
        match taken {
            Ok(is_certified) => {
                if is_certified {
                    self.certified.set(self.certified.get() + 1);
                }
                Ok(())
            }
            Err(AttestError::Past(_) | AttestError::TooEarly(_)) => Ok(()),
            Err(error) => {
                if let Some(not_logged) = self.complaints.admit(from.idx()) {
                    tracing::warn!(%from, %seq, %error, not_logged, "an attestation does not count");
                }
                Err(Refusal::new(RefusalCode::Invalid, "the attestation does not count"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use common::{
        crypto::Signature,
        ids::{Digest, Founding},
    };
    use powercut::{Cut, Machine, Report, Rng};
    use transport::{machine::MachineDisk, memory::MemoryDisk};

    use super::*;

    fn open(data: &Path) -> Attester {
        let disk = MachineDisk::open(data).unwrap();
        let is_new = disk.list(GUARD).unwrap().is_empty();
        Attester::open(&disk, is_new).unwrap_or_else(|error| panic!("{error}"))
    }

    fn signed(seq: u64, content: u8) -> GuardRecord {
        GuardRecord::Signed {
            founding: Founding(0),
            seq: BatchSeq(seq),
            digest: Digest([content; 32]),
            signature: Signature::from_bytes(&[content; 64]),
        }
    }

    /// Signs batch after batch from `seq` on, and forgets old ones now and then.
    async fn work(data: &Path, mut seq: u64, report: &Report) {
        let mut attester = open(data);
        loop {
            let count = 1 + seq % 3;
            let records = (seq..seq + count).map(|seq| encode(&signed(seq, seq as u8))).collect();
            attester.journal.append(records).await.unwrap();
            seq += count;
            report.say(seq);
            if seq.is_multiple_of(7) {
                let records = (0..seq).map(|seq| signed(seq, seq as u8));
                attester.guard = AttestGuard::replay(records).unwrap();
                let _ = attester.guard.finalized(Founding(0), BatchSeq(seq.saturating_sub(20)));
                let records = attester.guard.compacted().iter().map(encode).collect();
                attester.journal.rewrite(records).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn journal_that_grew_in_short_lives_is_due_to_be_rewritten() {
        let disk = MemoryDisk::new();
        let mut seq = 0;
        for life in 0.. {
            let mut attester = Attester::open(&disk, life == 0).unwrap();
            if attester.is_grown() {
                assert!(attester.journal.bytes() < 2 * COMPACT_BYTES);
                break;
            }
            let records = (0..300).map(|_| {
                seq += 1;
                encode(&signed(seq, 7))
            });
            attester.journal.append(records.collect()).await.unwrap();
            assert!(life < 100, "{} bytes", attester.journal.bytes());
        }
    }

    #[test]
    fn signed_batch_is_not_signed_otherwise_after_power_cuts() {
        const TEST: &str = "uplink::attest::tests::signed_batch_is_not_signed_otherwise_after_power_cuts";
        if let Some((life, report)) = powercut::worker() {
            let (seq, data) = life.split_once(' ').unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            return runtime.block_on(work(data.as_ref(), seq.parse().unwrap(), &report));
        }
        let (machine, mut rng) = (Machine::new(), Rng::new(powercut::first_seed()));
        let mut next = 1;
        for seed in 0..12 {
            let mut life = machine.run(TEST, &format!("{next} {}", machine.data().display()));
            let wanted = 1 + rng.below(60) as usize;
            let mut lines: Vec<String> = std::iter::from_fn(|| life.next_line()).take(wanted).collect();
            lines.extend(life.kill());
            next = lines.last().map_or(next, |line| line.parse().unwrap());
            machine.cut(if seed % 2 == 0 { Cut::Drop } else { Cut::Mix { seed } });
            let attester = open(&machine.data());
            for seq in 1..next {
                let other = Digest([seq as u8 ^ 1; 32]);
                let decision = attester.guard.decide(Founding(0), BatchSeq(seq), other);
                let is_safe = matches!(decision, Decision::Quarantine { .. } | Decision::Past);
                assert!(is_safe, "cut {seed}: batch {seq} would be signed a second time");
            }
            drop(attester);
            machine.adopt();
        }
    }
}
