//! Entries in, and out again when the quorum is back.

use std::{sync::Arc, time::Duration};

use cluster_core::admission::{AdmitError, Admitted};
use common::{
    entry::SignedEntry,
    ids::EntryId,
    verdict::{Reason, Verdict},
    wire::{
        cluster::WriteOutcome,
        op::{BufferedState, WriteRefusal},
    },
};

use super::BufferRefusal;
use crate::{
    api::enter::{overloaded, refusal_of, rejected},
    shell::Shell,
};

/// How a write ended that may wait for a quorum.
pub(crate) enum Buffered {
    /// There was a quorum, or it cannot be kept.
    Ended(WriteOutcome),
    /// It was kept, now or before.
    Kept(BufferedState),
}

impl Shell {
    /// Enters `entry`; without a quorum, keeps it on the disk.
    pub(crate) async fn enter_or_buffer(self: &Arc<Self>, id: EntryId, entry: SignedEntry) -> Buffered {
        if let Some(state) = self.buffer.with(|buffer| buffer.state(&id).cloned()) {
            return Buffered::Kept(state);
        }
        let outcome = self.enter(entry.clone()).await;
        let is_without_quorum = matches!(
            outcome,
            WriteOutcome::Unknown | WriteOutcome::Refused(WriteRefusal::NoQuorum { .. })
        );
        if !is_without_quorum {
            return Buffered::Ended(outcome);
        }
        if let Some(outcome) = self.foreseen(&entry) {
            return Buffered::Ended(outcome);
        }
        match self.buffer.keep(&id, entry).await {
            Ok(Ok(state)) => {
                tracing::info!(entry = %id.to_hex(), "buffered for lack of a quorum");
                Buffered::Kept(state)
            }
            // It may be in the log: that it cannot be kept changes nothing about it.
            Ok(Err(_)) if outcome == WriteOutcome::Unknown => Buffered::Ended(outcome),
            Ok(Err(BufferRefusal::Full { .. })) => {
                Buffered::Ended(overloaded("buffer", self.raft_config.retry_after_ms()))
            }
            Ok(Err(refusal @ BufferRefusal::Conflict)) => {
                Buffered::Ended(rejected(Verdict::Rejected(Reason::Conflict), &refusal.to_string()))
            }
            Ok(Err(refusal @ BufferRefusal::NotSubmit)) => {
                Buffered::Ended(rejected(Verdict::Rejected(Reason::Malformed), &refusal.to_string()))
            }
            Err(error) => {
                self.fatal(74, format!("buffer: {error}"));
                Buffered::Ended(outcome)
            }
        }
    }

    /// How entering would end for certain, by what an old state knows: the answer to an entry that is in
    /// the log, or a reason that time does not take away.
    fn foreseen(&self, entry: &SignedEntry) -> Option<WriteOutcome> {
        match self.admit(entry) {
            Ok(Admitted::Known(answer)) => Some(WriteOutcome::Committed(answer)),
            Ok(Admitted::Enter) | Err(AdmitError::Overloaded(_)) => None,
            Err(error @ AdmitError::Static(_)) => Some(refusal_of(&error)),
            Err(error @ AdmitError::Rejected(reason)) => {
                let is_for_good = matches!(
                    reason,
                    Reason::Malformed
                        | Reason::WrongCluster
                        | Reason::UnknownKey
                        | Reason::StaleKey
                        | Reason::Denied
                        | Reason::Expired
                        | Reason::Conflict
                        | Reason::NumberWindow
                        | Reason::DuplicateOf(_)
                        | Reason::Constrained
                        | Reason::KeyConflict(_)
                        | Reason::LinkEnded(_)
                );
                is_for_good.then(|| refusal_of(&error))
            }
        }
    }

    /// Enters what waits, one after the other, while there is a quorum. Runs as long as the agent.
    pub(crate) async fn drain_buffer(self: Arc<Self>) {
        let mut seen = 0;
        while !self.is_ending() {
            let Some((id, entry)) = self.buffer.with(super::Buffer::first) else {
                self.buffer.news().next(&mut seen).await;
                continue;
            };
            let state = match self.enter(entry).await {
                WriteOutcome::Committed(answer) => BufferedState::Committed(answer),
                WriteOutcome::Refused(WriteRefusal::Rejected { verdict, detail }) => {
                    BufferedState::Refused { verdict, detail }
                }
                // The next one would not fare better, and must not overtake it.
                WriteOutcome::Unknown | WriteOutcome::Refused(_) => {
                    let pause = Duration::from_millis(self.raft_config.heartbeat_ms);
                    self.pause(self.jittered(pause)).await;
                    continue;
                }
            };
            // Who reads here finds the task in the queue when it is no longer found in the buffer.
            if let BufferedState::Committed(answer) = &state {
                let _ = self.raft.wait_applied(answer.index, self.read_deadline()).await;
            }
            tracing::info!(entry = %id.to_hex(), ?state, "a buffered entry left the buffer");
            if let Err(error) = self.buffer.end(&id, state).await {
                self.fatal(74, format!("buffer: {error}"));
                return;
            }
        }
    }
}
