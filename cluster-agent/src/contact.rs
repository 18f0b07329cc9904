//! Whether this member is cut off from its cluster's majority, as far as silence can tell.
//!
//! In: the age of the last sign of a majority, from Raft. Out: `Contact::is_cut_off`, which ends writes
//! in flight and makes the mode `read_only`. Called by: writes, reads, the watch of the mode.
//!
//! # Rules
//! * A sign of a majority: for a leader an acknowledgement by a quorum, for the others a message of their
//!   leader. A follower cannot tell a leader without a quorum from a good one by its heartbeats: such a
//!   leader says so when it is asked for a position.
//! * Upon silence of [`lost_after_ms`]: cut off. That is as long as an election of normal length takes, so a
//!   mere change of leader does not show; one more sign ends it.
//! * Upon silence of the longest election timeout: a follower sends nothing to its leader any more, since
//!   the others may be electing another one.
//! * Silence takes nothing away from what is known, and a sign adds nothing: ages rest on evidence alone.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::{Either, select};
use transport::watch::Watch;

use crate::{raft::RaftConfig, shell::Shell};

/// Silence after which this member counts as cut off: the longest wait before a campaign begins, which
/// is twice the longest election timeout, and two round trips for the votes. Milliseconds.
#[must_use]
pub fn lost_after_ms(raft: &RaftConfig) -> u64 {
    2 * raft.election_timeout_ms_max + 2 * raft.heartbeat_ms
}

/// When a majority was last heard of.
pub(crate) struct Contact {
    /// Boot-time clock, microseconds; the start counts as a sign.
    heard_us: AtomicU64,
    is_cut_off: Watch<bool>,
}

impl Contact {
    /// At the start of the process.
    pub fn new(now_us: u64) -> Self {
        Self {
            heard_us: AtomicU64::new(now_us),
            is_cut_off: Watch::new(false),
        }
    }

    /// What writes in flight and the mode wait on.
    pub fn is_cut_off(&self) -> &Watch<bool> {
        &self.is_cut_off
    }

    fn silent_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.heard_us.load(Ordering::Acquire))
    }
}

impl Shell {
    /// How long no majority has been heard of, in microseconds. Asks Raft if it is longer than
    /// `longer_than_us` as far as remembered.
    pub(crate) async fn silent_us(&self, longer_than_us: u64) -> u64 {
        let remembered = self.contact.silent_us(self.now_us());
        if remembered <= longer_than_us {
            return remembered;
        }
        if let Some(age) = self.raft.contact_age().await {
            let age_us = u64::try_from(age.as_micros()).unwrap_or(u64::MAX);
            let heard_us = self.now_us().saturating_sub(age_us);
            self.contact.heard_us.fetch_max(heard_us, Ordering::AcqRel);
        }
        self.contact.silent_us(self.now_us())
    }

    /// Whether the leader has been silent for so long that the others may be electing another.
    pub(crate) async fn is_leader_silent(&self) -> bool {
        let max_us = self.raft_config.election_timeout_ms_max * 1_000;
        !self.is_leader() && self.silent_us(max_us).await > max_us
    }

    /// Whether this member is cut off now. Wakes who waits for that.
    pub(crate) async fn is_cut_off(&self) -> bool {
        let max_us = lost_after_ms(&self.raft_config) * 1_000;
        let is_cut_off = self.silent_us(max_us).await > max_us;
        self.contact.is_cut_off.set_if_changed(is_cut_off);
        is_cut_off
    }

    /// Waits for `answer`; gives up as soon as this member is cut off.
    pub(crate) async fn unless_cut_off<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        let cut_off = self.contact.is_cut_off.wait_until(|is_cut_off| *is_cut_off);
        match select(Box::pin(answer), Box::pin(cut_off)).await {
            Either::Left((answer, _)) => Some(answer),
            Either::Right(_) => None,
        }
    }

    /// Finds out in time that this member is cut off, and that it is no longer. Runs as long as the agent.
    pub(crate) async fn watch_contact(self: Arc<Self>) {
        let max_us = lost_after_ms(&self.raft_config) * 1_000;
        while !self.is_ending() {
            let is_cut_off = self.is_cut_off().await;
            if is_cut_off {
                let now_us = self.now_us();
                self.machine.with(|state| state.freshness.quorum_lost(now_us));
                self.look_at_mode();
            }
            let silent_us = self.contact.silent_us(self.now_us());
            let pause = if is_cut_off {
                Duration::from_millis(self.raft_config.heartbeat_ms)
            } else {
                Duration::from_micros(max_us.saturating_sub(silent_us) + 1_000)
            };
            self.pause(pause).await;
        }
    }
}
