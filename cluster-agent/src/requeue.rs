//! The leader takes claims back whose lease has certainly ended.
//!
//! # Rules
//! * Only while leading, and only when the time that the lease rule demands has passed on this member's
//!   clock since *it* applied the newest renewal, or the first entry of its own term if that is later.
//! * The leader's device signs; `apply` judges from the log who led, and whether a renewal came later.

use std::{sync::Arc, time::Duration};

use common::{entry::Payload, wire::cluster::WriteOutcome};

use crate::{keeper::Wish, shell::Shell};

/// How often the leader looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

impl Shell {
    /// Runs as long as the agent.
    pub(crate) async fn requeue_ended(self: Arc<Self>) {
        while !self.is_ending() {
            self.pause(LOOK_INTERVAL).await;
            if !self.is_leader() {
                continue;
            }
            let (term, now_us) = (self.raft.status().term, self.now_us());
            let due = self.machine.with(|state| {
                let Some(term_applied_us) = state.term_applied_us(term) else {
                    return Vec::new();
                };
                state.lease_watch.requeue_due(&state.queue, term_applied_us, now_us)
            });
            for proposal in due {
                let wish = Wish::Plain(proposal.action());
                let Some(entry) = self.sign(proposal.scope, wish, Payload::new()).await else {
                    return;
                };
                match self.enter(entry).await {
                    WriteOutcome::Committed(answer) => {
                        tracing::info!(task = %proposal.task, verdict = ?answer.verdict, "a claim whose lease ended was taken back");
                    }
                    outcome @ (WriteOutcome::Refused(_) | WriteOutcome::Unknown) => {
                        tracing::debug!(task = %proposal.task, ?outcome, "a claim was not taken back; it is tried again");
                    }
                }
            }
        }
    }
}
