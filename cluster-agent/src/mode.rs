//! The mode of this agent, since when, and who hears of a change.
//!
//! In: the evidence in [`Freshness`](cluster_core::freshness::Freshness). Out: [`ModeNow`] in a watch, one
//! log line per change. Called by: every answer, and a timer.
//!
//! # Rules
//! * Upon every answer the mode is judged anew at that instant, so that no answer shows an older one.
//! * Upon evidence, a block, or the instant at which the mode changes by age alone: the same.
//! * Upon a change: one structured log line (`event = "mode_changed"`), a warning unless the new mode is
//!   `normal`; the watch wakes the local socket's `watch`.

use std::{sync::Arc, time::Duration};

use common::wire::op::Mode;
use futures::future::select;

use crate::{machine::State, raft::RaftStatus, shell::Shell};

/// The mode and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ModeNow {
    /// What this agent may do now.
    pub mode: Mode,
    /// When that began, microseconds of the boot-time clock.
    pub since_us: u64,
    /// The mode before it; `None` since the start.
    pub before: Option<Mode>,
    /// How often it has changed since the start.
    pub changes: u64,
}

impl ModeNow {
    /// At the start of the process: nothing is known.
    #[must_use]
    pub fn at_start(now_us: u64) -> Self {
        Self {
            mode: Mode::ReadOnly,
            since_us: now_us,
            before: None,
            changes: 0,
        }
    }

    /// The same, or the change to `mode` at `now_us`.
    fn then(self, mode: Mode, now_us: u64) -> Self {
        if self.mode == mode {
            return self;
        }
        Self {
            mode,
            since_us: now_us,
            before: Some(self.mode),
            changes: self.changes + 1,
        }
    }
}

impl Shell {
    /// The mode at this instant. Called under the machine's lock, so that judgements stand in one order.
    pub(crate) fn mode_of(&self, state: &State, status: &RaftStatus) -> ModeNow {
        let now_us = self.now_us();
        let last = self.mode.get();
        let next = last.then(state.freshness.mode(now_us), now_us);
        if self.mode.set_if_changed(next) {
            self.tell_change(state, status, next);
        }
        next
    }

    fn tell_change(&self, state: &State, status: &RaftStatus, now: ModeNow) {
        let from = now.before.map_or("start", Mode::word);
        let to = now.mode.word();
        let staleness_ms = state.freshness.staleness_us(now.since_us).map(|us| us.div_ceil(1_000));
        let leader = status.leader.and_then(|leader| self.registry.by_idx(leader.idx()));
        let leader = leader.map_or("unknown", |member| member.label.as_str());
        if now.mode == Mode::Normal {
            tracing::info!(event = "mode_changed", from, to, staleness_ms, leader, "mode changed");
        } else {
            tracing::warn!(event = "mode_changed", from, to, staleness_ms, leader, "mode changed");
        }
    }

    /// Judges the mode at this instant and returns it with the next instant at which it changes by age.
    pub(crate) fn look_at_mode(&self) -> (ModeNow, Option<u64>) {
        let status = self.raft.status();
        self.machine.with(|state| {
            let now = self.mode_of(state, &status);
            (now, state.freshness.next_mode_change_us(self.now_us()))
        })
    }

    /// Judges the mode when evidence came, a block was applied, or age alone changes it. Runs as long as
    /// the agent.
    pub(crate) async fn watch_mode(self: Arc<Self>) {
        let (mut seen_evidence, mut seen_height) = (0, self.machine.pulse().get().height);
        while !self.is_ending() {
            let (_, next_us) = self.look_at_mode();
            let pause_us = next_us.map_or(u64::MAX, |at| at.saturating_sub(self.now_us()) + 1);
            let lapse = self.pause(Duration::from_micros(pause_us).min(LOOK_INTERVAL_MAX));
            let evidence = self.evidence.next(&mut seen_evidence);
            let height = self.machine.turn().wait_until(|turn| turn.height > seen_height);
            let news = select(Box::pin(evidence), Box::pin(height));
            let _ = select(Box::pin(lapse), news).await;
            seen_height = self.machine.pulse().get().height;
        }
    }
}

/// Nothing foretold: look all the same, once in a while.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_is_counted_once_and_keeps_when_it_began() {
        let start = ModeNow::at_start(5);
        assert_eq!(start.then(Mode::ReadOnly, 9), start);
        let normal = start.then(Mode::Normal, 9);
        assert_eq!(
            (normal.since_us, normal.before, normal.changes),
            (9, Some(Mode::ReadOnly), 1)
        );
        assert_eq!(normal.then(Mode::Normal, 12), normal);
    }
}
