//! Ends of claims that are not in the log yet: brought in until the queue shows them.
//!
//! In: what the drone said about a claim it ended (`Release`, `Fail`, `Complete`). Out: the same entry again,
//! or a new one that says the same. Called by: the local socket; the keeper's loop.
//!
//! # Rules
//! * Upon an end that did not get through (no quorum, unknown): the same signed bytes again, after a while.
//! * Upon an end that was rejected while the queue still shows the claim, as when a `Renew` with a higher
//!   counter overtook it: the same word, signed anew.
//! * Upon another word of the drone about the same claim: that one counts from then on.
//! * What is remembered lives in memory, as leases do: after a restart the drone says again what it means.
//!
//! # Why
//! A `Renew` covers all claims of a drone. An end that got lost would leave its task held for as long as the
//! drone renews others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use common::{
    entry::{Fence, Payload, SignedEntry},
    ids::TaskId,
    task::Scope,
    verdict::Verdict,
    wire::{cluster::WriteOutcome, op::WriteRefusal},
};

use crate::{
    keeper::Wish,
    shell::{Shell, lock},
};

/// Before an end that did not get through is brought in again. Microseconds.
const RETRY_US: u64 = 1_000_000;

/// How often it is looked for ends to bring in again.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// What the drone said about a claim that it ended.
#[derive(Clone, Debug)]
pub(crate) struct End {
    pub fence: Fence,
    pub scope: Scope,
    pub wish: Wish,
    pub note: Payload,
}

#[derive(Debug)]
struct Pending {
    end: End,
    /// The bytes that may be in the log; `None`: sign anew.
    entry: Option<SignedEntry>,
    next_try_us: u64,
}

/// Ends that the queue may not show yet, by task.
#[derive(Debug, Default)]
pub(crate) struct Unreleased(BTreeMap<TaskId, Pending>);

impl Unreleased {
    /// The drone says how a claim ended; the caller brings `entry` in, which ends before `next_try_us`.
    fn said(&mut self, task: TaskId, end: End, entry: SignedEntry, next_try_us: u64) {
        let entry = Some(entry);
        let pending = Pending {
            end,
            entry,
            next_try_us,
        };
        self.0.insert(task, pending);
    }

    /// An attempt with `entry` ended.
    fn tried(&mut self, task: &TaskId, entry: &SignedEntry, outcome: &WriteOutcome, now_us: u64) {
        let Some(pending) = self.0.get_mut(task) else { return };
        if pending.entry.as_ref() != Some(entry) {
            // The drone has said something else since.
            return;
        }
        pending.next_try_us = now_us.saturating_add(RETRY_US);
        let is_rejected = match outcome {
            WriteOutcome::Committed(answer) => matches!(answer.verdict, Verdict::Rejected(_)),
            WriteOutcome::Refused(refusal) => matches!(refusal, WriteRefusal::Rejected { .. }),
            WriteOutcome::Unknown => false,
        };
        if is_rejected {
            pending.entry = None;
        }
    }

    /// What to bring in now, of the claims that the queue still shows; the rest is forgotten.
    fn due(&mut self, shown: &[(TaskId, Fence)], now_us: u64) -> Vec<TaskId> {
        self.0
            .retain(|task, pending| pending.next_try_us > now_us || shown.contains(&(*task, pending.end.fence)));
        let due = self.0.iter().filter(|(_, pending)| pending.next_try_us <= now_us);
        due.map(|(task, _)| *task).collect()
    }

    /// Puts what was signed anew in the place of `before`, unless the drone has said something else since.
    fn signed(&mut self, task: &TaskId, before: Option<&SignedEntry>, entry: &SignedEntry) -> bool {
        let pending = self.0.get_mut(task).filter(|pending| pending.entry.as_ref() == before);
        pending.map(|pending| pending.entry = Some(entry.clone())).is_some()
    }
}

impl Shell {
    /// Brings in what the drone says about a claim it has ended in memory. `None`: the agent ends.
    pub(crate) async fn enter_end(self: &Arc<Self>, task: TaskId, end: End) -> Option<(SignedEntry, WriteOutcome)> {
        let entry = self.sign(end.scope, end.wish, end.note.clone()).await?;
        let deadline_us = u64::try_from(self.limits.write_deadline.as_micros()).unwrap_or(u64::MAX);
        let next_try_us = self.now_us().saturating_add(deadline_us).saturating_add(RETRY_US);
        lock(&self.unreleased).said(task, end, entry.clone(), next_try_us);
        let outcome = self.enter(entry.clone()).await;
        lock(&self.unreleased).tried(&task, &entry, &outcome, self.now_us());
        Some((entry, outcome))
    }

    /// Brings in again what did not get through. Runs as long as the agent.
    pub(crate) async fn enter_ends_again(self: Arc<Self>) {
        while !self.is_ending() && self.enter_unreleased().await.is_some() {
            self.pause(LOOK_INTERVAL).await;
        }
    }

    async fn enter_unreleased(self: &Arc<Self>) -> Option<()> {
        let shown = self.machine.with(|state| state.leases.unreleased(&state.queue));
        let due = lock(&self.unreleased).due(&shown, self.now_us());
        for task in due {
            let pending = lock(&self.unreleased)
                .0
                .get(&task)
                .map(|p| (p.end.clone(), p.entry.clone()));
            let Some((end, before)) = pending else { continue };
            let entry = match &before {
                Some(entry) => entry.clone(),
                None => self.sign(end.scope, end.wish, end.note).await?,
            };
            if !lock(&self.unreleased).signed(&task, before.as_ref(), &entry) {
                continue;
            }
            let outcome = self.enter(entry.clone()).await;
            tracing::info!(%task, ?outcome, "the end of a claim was brought in again");
            lock(&self.unreleased).tried(&task, &entry, &outcome, self.now_us());
        }
        Some(())
    }
}
