//! Signs for this drone: numbers that are durable before use, t0 before the signature, renewals on time.
//!
//! # Rules
//! * Upon a claim or renewal: read the clock, then take numbers, then sign, then note t0 under the
//!   entry's id, and only then let the entry leave.
//! * While this drone holds claims: a renewal when a quarter of the shortest lease has passed. One
//!   renewal covers all claims. After a restart a renewal tries to win the leases back.
//! * Upon an error of the disk under the numbers: the process ends.

use std::{sync::Arc, time::Duration};

use common::{
    entry::{Action, EntryDraft, Payload, SignedEntry},
    ids::{EntryNumber, Height, HolderCounter, KeyVersion},
    task::{Scope, Task},
    wire::cluster::WriteOutcome,
};

use crate::shell::Shell;

/// An entry signed here may be entered until the log's global height has grown by this much.
const HEIGHTS_VALID: u64 = 100_000;

/// How often the keeper looks whether a renewal is due.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// What the drone wants signed; counters are filled in while signing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wish {
    /// Needs no counter.
    Plain(Action),
    /// Needs the next counter of the holder.
    Counted(fn(HolderCounter, Counted) -> Action, Counted),
}

/// What a counted action needs beside its counter.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    pub task: common::ids::TaskId,
    pub assignment: common::ids::Assignment,
    pub fence: common::entry::Fence,
    pub is_retriable: bool,
}

impl Shell {
    fn draft(&self, number: EntryNumber, scope: Scope, action: Action) -> EntryDraft {
        let height = self.machine.pulse().get().height;
        let key_version = self
            .registry
            .by_idx(self.me.idx)
            .map_or(KeyVersion(0), |member| member.key_version());
        EntryDraft {
            author: self.me.device,
            key_version,
            cluster: self.me.cluster,
            number,
            not_after_height: Height(height.0.saturating_add(HEIGHTS_VALID)),
            scope,
            action,
        }
    }

    /// Signs for this drone. `None`: the disk failed under the numbers, and the process ends.
    pub(crate) async fn sign(&self, scope: Scope, wish: Wish, payload: Payload) -> Option<SignedEntry> {
        let mut counters = self.counters.lock().await;
        // Before the signature, and after the queue for the numbers: a lease must not count what was
        // waited for here, nor be counted from before.
        let t0_us = self.now_us();
        let action = match wish {
            Wish::Plain(action) => action,
            Wish::Counted(make, counted) => {
                let counter = self.or_fatal(counters.next_holder_counter().await)?;
                make(counter, counted)
            }
        };
        let number = match action {
            Action::Renew { .. } => EntryNumber(0),
            _ => self.or_fatal(counters.next_number().await)?,
        };
        drop(counters);
        let entry = SignedEntry::sign(&self.key, &self.chain, self.draft(number, scope, action), payload);
        let id = entry.id(&self.chain);
        self.machine.with(|state| {
            if matches!(action, Action::Claim { .. } | Action::Renew { .. }) {
                state.leases.signed(id, t0_us);
            }
            if !matches!(action, Action::Renew { .. }) {
                state.signed(id, t0_us);
            }
        });
        Some(entry)
    }

    /// Signs the submission of a task.
    pub(crate) async fn sign_submit(&self, scope: Scope, task: &Task) -> Option<SignedEntry> {
        let payload = common::codec::encode(task)
            .try_into()
            .expect("a task's bound is the payload's bound");
        self.sign(scope, Wish::Plain(Action::Submit), payload).await
    }

    /// Signs a renewal of all claims.
    pub(crate) async fn sign_renew(&self) -> Option<SignedEntry> {
        let nothing = Counted {
            task: Default::default(),
            assignment: Default::default(),
            fence: Default::default(),
            is_retriable: false,
        };
        let wish = Wish::Counted(|counter, _| Action::Renew { counter }, nothing);
        self.sign(Scope::Cluster, wish, Payload::new()).await
    }

    fn or_fatal<T>(&self, outcome: std::io::Result<T>) -> Option<T> {
        match outcome {
            Ok(value) => Some(value),
            Err(error) => {
                self.fatal(74, format!("counters: {error}"));
                None
            }
        }
    }

    /// Renews while this drone holds claims. Runs as long as the agent.
    pub(crate) async fn keep_leases(self: Arc<Self>) {
        let mut last_try_us = None;
        loop {
            self.pause(LOOK_INTERVAL).await;
            if self.is_ending() {
                return;
            }
            let now_us = self.now_us();
            let (is_due, has_lost, retry_us) = self.machine.with(|state| {
                let held = state.queue.held_by(&self.me.device);
                let shortest_ms = held
                    .map(|held| held.terms.lease_ms.min(held.terms.global_lease_ms))
                    .min();
                let has_lost = shortest_ms.is_some() && !state.leases.lost(&state.queue).is_empty();
                let retry_us = u64::from(shortest_ms.unwrap_or(1_000)) * 1_000 / 8;
                (state.leases.is_renewal_due(now_us), has_lost, retry_us)
            });
            let may_try = last_try_us.is_none_or(|at| now_us.saturating_sub(at) >= retry_us);
            if !(is_due || has_lost) || !may_try {
                continue;
            }
            last_try_us = Some(now_us);
            let Some(entry) = self.sign_renew().await else { return };
            match self.enter(entry).await {
                WriteOutcome::Committed(_) => {}
                outcome @ (WriteOutcome::Refused(_) | WriteOutcome::Unknown) => {
                    tracing::debug!(?outcome, "a renewal did not get through; it is tried again");
                }
            }
        }
    }
}
