//! Gathers the evidence on which mode and ages rest: once a second a linearizable position.
//!
//! # Rules
//! * Note t0, ask for a linearizable position, note the answer; when it is applied here, the state is
//!   fresh as of t0. The leader asks like everybody else.
//! * A heartbeat is no evidence, nor is the arrival of a block.
//! * The mode is watched and logged when it changes.

use std::{sync::Arc, time::Duration};

use cluster_core::freshness::FreshnessLimits;
use common::{genesis::Timing, wire::op::Mode};

use crate::{raft::RaftConfig, shell::Shell};

/// Between two questions.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Ages above which evidence no longer supports a mode.
#[must_use]
pub fn limits(raft: &RaftConfig, timing: &Timing) -> FreshnessLimits {
    let ask_us = u64::try_from(ASK_INTERVAL.as_micros()).expect("a second has few microseconds");
    FreshnessLimits {
        // Two questions may fail, each within its deadline.
        quorum_age_us_max: 2 * ask_us + 4 * raft.election_timeout_ms_max * 1_000,
        // A beat comes each quarter of the custody time, and needs some blocks to become final.
        global_age_us_max: u64::from(timing.lease.custody_ms) * 1_000 / 3 * 2,
    }
}

impl Shell {
    /// Runs as long as the agent.
    pub(crate) async fn gather_evidence(self: Arc<Self>) {
        let mut shown: Option<Mode> = None;
        while !self.is_ending() {
            let t0_us = self.now_us();
            let asked = self.linearizable_position(self.read_deadline()).await;
            if let Ok(position) = asked {
                self.machine
                    .with(|state| state.freshness.answered(t0_us, position.index));
            }
            let mode = self.machine.with(|state| state.freshness.mode(self.now_us()));
            if shown != Some(mode) {
                tracing::info!(mode = mode.word(), "mode");
                shown = Some(mode);
            }
            // Sooner after a failure: a leader may just have been elected.
            let pause = if asked.is_ok() { ASK_INTERVAL } else { ASK_INTERVAL / 4 };
            self.pause(self.jittered(pause)).await;
        }
    }
}
