//! Gathers the evidence on which mode and ages rest: at least once a second a linearizable position.
//!
//! # Rules
//! * Note t0, ask for a linearizable position, note the answer; when it is applied here, the state is
//!   fresh as of t0. The leader asks like everybody else, and confirms itself in passing: a round of its own for each
//!   of n members that ask would cost the cluster n messages a second for each member.
//! * A heartbeat is no evidence, nor is the arrival of a block.
//! * Upon another leader or term, or a first sign after silence: ask at once.
//! * Upon a leader that says it has no quorum: the quorum is lost, however lively the leader is.

use std::{sync::Arc, time::Duration};

use cluster_core::freshness::FreshnessLimits;
use common::{genesis::Timing, wire::cluster::Confirmation};

use crate::{api::read::NoPosition, raft::RaftConfig, shell::Shell};

/// Between two questions.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// Ages above which evidence no longer supports a mode.
#[must_use]
pub fn limits(raft: &RaftConfig, timing: &Timing) -> FreshnessLimits {
    let ask_us = u64::try_from(ASK_INTERVAL.as_micros()).expect("a second has few microseconds");
    FreshnessLimits {
        // Two questions may fail, each within its deadline.
        quorum_age_us_max: 2 * ask_us + 4 * raft.election_timeout_ms_max * 1_000,
        // A beat comes each quarter of the custody time, and needs some blocks to become final: two of them
        // in a row have not. Five twelfths of custody are left then, so that the mode comes as a warning.
        global_age_us_max: u64::from(timing.lease.custody_ms) * 1_000 / 12 * 7,
    }
}

impl Shell {
    /// Runs as long as the agent.
    pub(crate) async fn gather_evidence(self: Arc<Self>) {
        let mut confirmation = Confirmation::AtOnce;
        while !self.is_ending() {
            let (begun, t0_us) = (tokio::time::Instant::now(), self.now_us());
            let asked = self.linearizable_position(confirmation, self.read_deadline()).await;
            match asked {
                Ok(position) => {
                    self.machine
                        .with(|state| state.freshness.answered(t0_us, position.index));
                    self.tell_evidence();
                    if self.raft.wait_applied(position.index, ASK_INTERVAL).await.is_ok() {
                        self.tell_evidence();
                    }
                }
                Err(NoPosition::Denied) => {
                    let now_us = self.now_us();
                    self.machine.with(|state| state.freshness.quorum_lost(now_us));
                    self.tell_evidence();
                }
                Err(NoPosition::NoAnswer) => {}
            }
            // Sooner after a failure: a leader may just have been elected.
            let pause = if asked.is_ok() {
                ASK_INTERVAL.saturating_sub(begun.elapsed())
            } else {
                ASK_INTERVAL / 4
            };
            let is_led_anew = self.pause_unless_led_anew(self.jittered(pause)).await;
            confirmation = if asked.is_ok() && !is_led_anew {
                Confirmation::InPassing
            } else {
                Confirmation::AtOnce
            };
        }
    }

    fn tell_evidence(&self) {
        self.evidence.set(self.evidence.get() + 1);
    }

    /// Waits `time`, or until leader or term change or the silence ends. Returns whether one of these ended it.
    async fn pause_unless_led_anew(&self, time: Duration) -> bool {
        let look = || {
            let status = self.raft.status();
            (status.leader, status.term, self.contact.is_cut_off().get())
        };
        let (begun, before) = (tokio::time::Instant::now(), look());
        let step = Duration::from_millis(self.raft_config.heartbeat_ms);
        while !self.is_ending() && look() == before {
            let left = time.saturating_sub(begun.elapsed());
            if left.is_zero() {
                return false;
            }
            self.pause(step.min(left)).await;
        }
        true
    }
}
