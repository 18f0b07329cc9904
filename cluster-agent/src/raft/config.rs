//! Timing of a cluster's elections and heartbeats, by the kind of link between its members.
//!
//! # Rules
//! * A heartbeat's interval is also the time its answer may take, so it covers the round trip and the
//!   follower's flush twice. Nearer to it a leader is elected whose acknowledgements never count: no
//!   write succeeds and nobody campaigns.
//! * Timeouts cannot change while the member runs. A profile fits the worst link of the mission.
//! * A leader that lost its quorum falls silent for the probe interval, so that members which reach
//!   each other but not the quorum's leader can elect one.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use serde::{Deserialize, Serialize};

use super::{codec::ENTRIES_PER_APPEND_MAX, snapshot_policy::SnapshotBounds};

/// Kind of link between the members of a cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkProfile {
    /// One site, wired.
    Lan,
    /// Development fleets and demonstrations.
    Dev,
    /// Radio mesh.
    #[default]
    Mesh,
    /// Satellite links.
    Satcom,
}

/// Settings of one Raft member. The fields start from a [`LinkProfile`]; operators rarely change
/// more than the two measurements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// Name for logs.
    pub cluster_name: String,
    /// Between two heartbeats, and the time a heartbeat's answer may take.
    pub heartbeat_ms: u64,
    /// Shortest election timeout.
    pub election_timeout_ms_min: u64,
    /// Longest election timeout; also how long a leader accepts writes after its last quorum.
    pub election_timeout_ms_max: u64,
    /// How long a leader without a quorum is silent, and then speaks, in turn.
    pub quorum_probe_ms: u64,
    /// Round trip between members that 99.9 % stay below.
    pub rtt_ms_p999: u64,
    /// Flush of the log that 99 % stay below.
    pub fsync_ms_p99: u64,
    /// A snapshot is made after this many entries.
    pub snapshot_entries: u64,
    /// Durable entries of the log are kept in memory up to this many bytes.
    pub log_cache_bytes: usize,
    /// A snapshot is made after this many bytes of entries, if they come first.
    pub snapshot_bytes: u64,
    /// Bytes of entries kept below a snapshot, at most.
    pub snapshot_bytes_kept: u64,
    /// Entries kept below a snapshot, so that a member that was away for minutes catches up by log.
    pub snapshot_entries_kept: u64,
    /// A whole snapshot must be sent and installed within this time.
    pub snapshot_timeout_ms: u64,
    /// One frame of a snapshot must be answered within this time.
    pub snapshot_frame_timeout_ms: u64,
    /// An unfinished incoming snapshot is forgotten after this time without a frame.
    pub snapshot_idle_ms: u64,
    /// Proposals in flight.
    pub proposals_max: usize,
    /// Bytes of proposals in flight.
    pub proposal_bytes_max: usize,
}

/// One relation that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{low_key} {low} must be {relation} {high_key} {high}")]
pub struct ConfigProblem {
    /// Key or expression that is too large or too small.
    pub low_key: &'static str,
    /// Its value.
    pub low: u64,
    /// How it must relate to the other.
    pub relation: &'static str,
    /// Key or expression it is compared with.
    pub high_key: &'static str,
    /// Its value.
    pub high: u64,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("raft configuration: {}", problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<ConfigProblem>,
}

impl RaftConfig {
    /// The defaults of `profile`.
    #[must_use]
    pub fn for_profile(profile: LinkProfile) -> Self {
        // heartbeat, election min and max, probe, round trip, flush; in milliseconds.
        let (heartbeat_ms, min, max, probe, rtt_ms_p999, fsync_ms_p99) = match profile {
            LinkProfile::Lan => (50, 150, 300, 600, 5, 20),
            LinkProfile::Dev => (100, 300, 600, 1_200, 10, 40),
            LinkProfile::Mesh => (300, 1_500, 3_000, 6_000, 100, 50),
            LinkProfile::Satcom => (1_000, 5_000, 10_000, 20_000, 450, 50),
        };
        Self {
            cluster_name: "cluster".into(),
            heartbeat_ms,
            election_timeout_ms_min: min,
            election_timeout_ms_max: max,
            quorum_probe_ms: probe,
            rtt_ms_p999,
            fsync_ms_p99,
            snapshot_entries: 30_000,
            log_cache_bytes: 32 * 1024 * 1024,
            snapshot_bytes: 24 * 1024 * 1024,
            snapshot_bytes_kept: 32 * 1024 * 1024,
            snapshot_entries_kept: 5_000,
            snapshot_timeout_ms: 600_000,
            snapshot_frame_timeout_ms: 30_000,
            snapshot_idle_ms: 60_000,
            proposals_max: 1_024,
            proposal_bytes_max: 16 * 1024 * 1024,
        }
    }

    /// Checks the relations between the fields.
    ///
    /// # Errors
    /// [`ConfigError`] with every relation that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let round_trips = 2 * (self.rtt_ms_p999 + self.fsync_ms_p99);
        let relations: [(&'static str, u64, &'static str, u64, bool); 10] = [
            (
                "heartbeat_ms",
                self.heartbeat_ms,
                "2 * (rtt_ms_p999 + fsync_ms_p99)",
                round_trips,
                true,
            ),
            (
                "election_timeout_ms_min",
                self.election_timeout_ms_min,
                "2 * heartbeat_ms",
                2 * self.heartbeat_ms,
                true,
            ),
            (
                "election_timeout_ms_max",
                self.election_timeout_ms_max,
                "election_timeout_ms_min",
                self.election_timeout_ms_min,
                false,
            ),
            (
                "quorum_probe_ms",
                self.quorum_probe_ms,
                "2 * election_timeout_ms_max",
                2 * self.election_timeout_ms_max,
                true,
            ),
            ("heartbeat_ms", self.heartbeat_ms, "1", 1, true),
            (
                "snapshot_entries",
                self.snapshot_entries,
                "snapshot_entries_kept",
                self.snapshot_entries_kept,
                true,
            ),
            (
                "snapshot_timeout_ms",
                self.snapshot_timeout_ms,
                "snapshot_frame_timeout_ms",
                self.snapshot_frame_timeout_ms,
                false,
            ),
            ("snapshot_bytes", self.snapshot_bytes, "1", 1, true),
            ("snapshot_entries_kept", self.snapshot_entries_kept, "1", 1, true),
            ("proposals_max", self.proposals_max as u64, "1", 1, true),
        ];
        let failed = relations
            .into_iter()
            .filter(|(_, left, _, right, equal_is_fine)| !(left > right || *equal_is_fine && left == right));
        let problems: Vec<_> = failed
            .map(|(low_key, low, high_key, high, equal_is_fine)| {
                let relation = if equal_is_fine { "at least" } else { "more than" };
                ConfigProblem {
                    low_key,
                    low,
                    relation,
                    high_key,
                    high,
                }
            })
            .collect();
        if problems.is_empty() {
            Ok(())
        } else {
            Err(ConfigError { problems })
        }
    }

    /// Time after which a write that was refused for want of a quorum may be tried again.
    #[must_use]
    pub fn retry_after_ms(&self) -> u64 {
        self.election_timeout_ms_max
    }

    pub(super) fn snapshot_idle(&self) -> Duration {
        Duration::from_millis(self.snapshot_idle_ms)
    }

    /// How long news of a commit waits for entries to travel with: a quarter of a slow round trip. On a radio mesh a
    /// message of its own for each commit costs more than a member that applies a little later.
    pub(super) fn news_patience(&self) -> Duration {
        Duration::from_millis((self.rtt_ms_p999 / 4).max(1))
    }

    /// How long a lane may wait for an answer that is due. Longer than a heartbeat's, since to give a lane
    /// up is to send all that is in flight again; a leader's quorum is judged by heartbeats.
    pub(super) fn lane_timeout(&self) -> Duration {
        Duration::from_millis(self.election_timeout_ms_min)
    }

    pub(super) fn snapshot_bounds(&self) -> SnapshotBounds {
        SnapshotBounds {
            entries: self.snapshot_entries,
            bytes: self.snapshot_bytes,
            kept_bytes: self.snapshot_bytes_kept,
        }
    }

    pub(super) fn snapshot_frame_timeout(&self) -> Duration {
        Duration::from_millis(self.snapshot_frame_timeout_ms)
    }

    /// openraft's configuration.
    pub(super) fn to_openraft(&self) -> Config {
        Config {
            cluster_name: self.cluster_name.clone(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_timeout_ms_min,
            election_timeout_max: self.election_timeout_ms_max,
            // Without it {a, bridge, b} never elect while the old leader still reaches the bridge.
            quorum_loss_probe_interval: Some(self.quorum_probe_ms),
            // A member that was cut off asks before it raises the term.
            enable_pre_vote: Some(true),
            // A restarted leader would serve from a machine that is behind what it acknowledged.
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            install_snapshot_timeout: self.snapshot_timeout_ms,
            // We ask for them: openraft does not count bytes.
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: self.snapshot_entries_kept,
            // Above the snapshot's interval, or a snapshot would not cure a lag.
            replication_lag_threshold: 2 * self.snapshot_entries,
            purge_batch_size: 512.min(self.snapshot_entries.max(1)),
            max_payload_entries: 300.min(ENTRIES_PER_APPEND_MAX as u64),
            // Overload must show as refusals, not as memory.
            api_channel_size: Some(2_048),
            notification_channel_size: Some(4_096),
            state_machine_channel_size: Some(256),
            ..Config::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_is_valid_for_us_and_for_openraft() {
        for profile in [
            LinkProfile::Lan,
            LinkProfile::Dev,
            LinkProfile::Mesh,
            LinkProfile::Satcom,
        ] {
            let config = RaftConfig::for_profile(profile);
            assert_eq!(config.validate(), Ok(()), "{profile:?}");
            assert!(config.to_openraft().validate().is_ok(), "{profile:?}");
        }
    }

    #[test]
    fn all_problems_are_listed_with_both_keys_and_values() {
        let mut config = RaftConfig::for_profile(LinkProfile::Lan);
        config.rtt_ms_p999 = 30;
        config.quorum_probe_ms = 599;
        let text = config.validate().unwrap_err().to_string();
        assert!(
            text.contains("heartbeat_ms 50 must be at least 2 * (rtt_ms_p999 + fsync_ms_p99) 100"),
            "{text}"
        );
        assert!(
            text.contains("quorum_probe_ms 599 must be at least 2 * election_timeout_ms_max 600"),
            "{text}"
        );
    }
}
