//! `agent.toml` as it stands on the disk. Unknown keys are errors; nothing here is checked further.

use std::path::PathBuf;

use serde::Deserialize;

use super::units::WithUnit;
use crate::raft::{LinkProfile, store::member_log::LogKind};

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfigFile {
    pub genesis: PathBuf,
    pub label: String,
    pub cluster: Option<String>,
    pub key: PathBuf,
    pub certificate: PathBuf,
    pub data_dir: PathBuf,
    pub incarnation: Option<u32>,
    pub listen: String,
    #[serde(default, rename = "peer")]
    pub peers: Vec<PeerRow>,
    #[serde(default)]
    pub link: LinkTable,
    #[serde(default)]
    pub disk: DiskTable,
    #[serde(default)]
    pub limits: LimitsTable,
    #[serde(default)]
    pub log: LogTable,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PeerRow {
    pub label: String,
    pub address: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinkTable {
    #[serde(default)]
    pub profile: LinkProfile,
    pub heartbeat: Option<WithUnit>,
    pub election_timeout_min: Option<WithUnit>,
    pub election_timeout_max: Option<WithUnit>,
    pub quorum_probe: Option<WithUnit>,
    pub rtt_p999: Option<WithUnit>,
    pub write_deadline: Option<WithUnit>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DiskTable {
    pub fsync_p99: Option<WithUnit>,
    #[serde(default)]
    pub log: LogKind,
    pub log_bytes: Option<WithUnit>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LimitsTable {
    pub outbox_bytes: Option<WithUnit>,
    pub buffer_entries: Option<u32>,
    pub buffer_bytes: Option<WithUnit>,
    pub proposals_max: Option<u32>,
    pub proposal_bytes: Option<WithUnit>,
    pub snapshot_entries: Option<u64>,
    pub snapshot_entries_kept: Option<u64>,
    pub snapshot_bytes: Option<WithUnit>,
    pub snapshot_bytes_kept: Option<WithUnit>,
    pub open_tasks: Option<u64>,
    pub state_bytes: Option<WithUnit>,
}

/// How logs are written to stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines, one object per line.
    Json,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogTable {
    #[serde(default)]
    pub format: LogFormat,
    pub filter: Option<String>,
}
