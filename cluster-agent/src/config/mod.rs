//! From `agent.toml` to what an agent runs on: every value has a unit, every relation is checked.
//!
//! # Rules
//! * Unknown keys are errors, and so is a number without its unit.
//! * All problems are listed at once, each with its key and value; the process exits with code 6.
//! * Identity, keys and peers have no default. A relative path is relative to the file's directory.

mod file;
pub mod units;

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use common::{
    codec::decode,
    genesis::{Genesis, Kind},
    ids::{ClusterId, DeviceId, NodeIdx, RaftNodeId},
    registry::{Member, Registry},
};
use transport::quic::limits::SERVICE_DEADLINE;

pub use file::LogFormat;
use file::{ConfigFile, LinkTable};
use units::{UnitError, WithUnit};

use crate::{
    buffer::BufferLimits,
    raft::{
        RaftConfig,
        store::{durable_sled::FILE_BYTES_DEFAULT, member_log::LogKind},
    },
};

/// Exit code for a configuration that cannot be used.
pub const EXIT_INVALID: u8 = 6;

/// Bytes of signed entries that may wait in the outbox, unless the file says otherwise.
pub const OUTBOX_BYTES_DEFAULT: u64 = 16 * 1024 * 1024;

/// Submissions that may wait for a quorum, unless the file says otherwise, and their bytes.
pub const BUFFER_ENTRIES_DEFAULT: usize = 256;
/// See [`BUFFER_ENTRIES_DEFAULT`].
pub const BUFFER_BYTES_DEFAULT: u64 = 1024 * 1024;
/// More would make a start slow: they are read back into memory.
const BUFFER_ENTRIES_MAX: usize = 65_536;
/// Two of sled's segments: below it the log would move all the time.
const LOG_BYTES_MIN: u64 = 1024 * 1024;

/// Open tasks of a cluster, unless the file says otherwise.
pub const OPEN_TASKS_DEFAULT: u64 = 2_000_000;

/// Bytes of a cluster's own state, unless the file says otherwise.
pub const STATE_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

/// A snapshot carries a cluster's own state and the global view beside it within its bound.
const STATE_BYTES_MAX: u64 = STATE_BYTES_DEFAULT;

/// A write ends before the transport gives its answer up.
const WRITE_DEADLINE_MAX: Duration = Duration::from_secs(25);
const _: () = assert!(WRITE_DEADLINE_MAX.as_secs() < SERVICE_DEADLINE.as_secs());

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub problems: Vec<String>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.path.display())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for ConfigErrors {}

/// Bounds that belong to one agent and do not change what the cluster decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of signed entries that may wait in the outbox; beyond it writes are refused.
    pub outbox_bytes_max: u64,
    /// Submissions that may wait on this agent's disk for a quorum.
    pub buffer: BufferLimits,
    /// Entries that one author may enter through this cluster per second in the long run, as far as
    /// this agent leads it.
    pub author_entries_per_second: u32,
    /// The same at once.
    pub author_entries_burst: u32,
    /// Open tasks of the cluster; beyond it no `Submit` enters here.
    pub open_tasks_max: u64,
    /// Bytes of rows and of entries not final; beyond it no `Submit` enters here.
    pub state_bytes_max: u64,
    /// A write ends within this time, whatever happens.
    pub write_deadline: Duration,
    /// A leader waits this long with something open before it proposes a `Cut`, and this long
    /// between two groups of blocks.
    pub batch_interval: Duration,
}

/// An agent's configuration, checked.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// The fleet.
    pub genesis: Arc<Genesis>,
    /// This device.
    pub device: NodeIdx,
    /// Its cluster.
    pub cluster: ClusterId,
    /// File of its private key.
    pub key: PathBuf,
    /// File of its certificate.
    pub certificate: PathBuf,
    /// Directory of its data.
    pub data_dir: PathBuf,
    /// Which data directory of this device it is, from 1: one more each time one was lost.
    pub incarnation: u32,
    /// Where it listens.
    pub listen: SocketAddr,
    /// Where its cluster's members and the validators listen.
    pub peers: Vec<(DeviceId, SocketAddr)>,
    /// Elections, heartbeats, snapshots.
    pub raft: RaftConfig,
    /// Bounds.
    pub limits: Limits,
    /// Kind of a log that is made; one that is there keeps its kind.
    pub log_kind: LogKind,
    /// Size of the log's file above which what is live moves into a fresh one, in sled.
    pub log_bytes_max: u64,
    /// How logs look.
    pub log_format: LogFormat,
    /// Which logs are written; the default is `info`, and errors only of openraft.
    pub log_filter: Option<String>,
}

impl AgentConfig {
    /// Reads and checks the file at `path` and the genesis file it names.
    ///
    /// # Errors
    /// [`ConfigErrors`] with everything that is wrong; exit with [`EXIT_INVALID`].
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let fail = |problem: String| ConfigErrors {
            path: path.to_path_buf(),
            problems: vec![problem],
        };
        let text = std::fs::read_to_string(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
        let file: ConfigFile = toml::from_str(&text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        let base = path.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let genesis = read_genesis(&base.join(&file.genesis)).map_err(fail)?;
        let mut checker = Checker { problems: Vec::new() };
        let config = checker.check(file, &base, genesis);
        match (config, checker.problems.is_empty()) {
            (Some(config), true) => Ok(config),
            (_, _) => Err(ConfigErrors {
                path: path.to_path_buf(),
                problems: checker.problems,
            }),
        }
    }
}

fn read_genesis(path: &Path) -> Result<Genesis, String> {
    let bytes =
        std::fs::read(path).map_err(|error| format!("genesis \"{}\" cannot be read: {error}", path.display()))?;
    decode(&bytes).map_err(|error| format!("genesis \"{}\" is not a genesis file: {error}", path.display()))
}

/// Collects problems; what depends on a broken value is left out.
struct Checker {
    problems: Vec<String>,
}

impl Checker {
    fn problem(&mut self, text: String) {
        self.problems.push(text);
    }

    fn unit<T>(
        &mut self,
        key: &str,
        value: Option<&WithUnit>,
        parse: impl Fn(&str) -> Result<T, UnitError>,
    ) -> Option<T> {
        match parse(&value?.0) {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(format!("{key}: {error}"));
                None
            }
        }
    }

    fn address(&mut self, key: &str, text: &str) -> Option<SocketAddr> {
        let parsed = text.parse().ok();
        if parsed.is_none() {
            self.problem(format!(
                "{key}: \"{text}\" is not an address such as \"127.0.0.1:41001\""
            ));
        }
        parsed
    }

    fn check(&mut self, file: ConfigFile, base: &Path, genesis: Genesis) -> Option<AgentConfig> {
        let registry = Registry::from_genesis(&genesis);
        let me = self.device(&file, &genesis, &registry);
        let listen = self.address("listen", &file.listen);
        let peers = self.peers(&file, &registry, me.as_ref());
        let raft = self.raft(&file);
        let limits = self.limits(&file, &raft);
        let log_bytes = self.unit("disk.log_bytes", file.disk.log_bytes.as_ref(), units::size);
        let log_bytes_max = log_bytes.unwrap_or(FILE_BYTES_DEFAULT);
        if log_bytes_max < LOG_BYTES_MIN {
            self.problem(format!(
                "disk.log_bytes {log_bytes_max} B must be at least {LOG_BYTES_MIN} B"
            ));
        }
        let incarnation = file.incarnation.unwrap_or(1);
        if !(1..=RaftNodeId::INCARNATION_MAX).contains(&incarnation) {
            self.problem(format!(
                "incarnation {incarnation} must be from 1, for the first data directory, to {}",
                RaftNodeId::INCARNATION_MAX
            ));
        }
        let me = me?;
        Some(AgentConfig {
            cluster: me.cluster?,
            device: me.idx,
            genesis: Arc::new(genesis),
            key: base.join(&file.key),
            certificate: base.join(&file.certificate),
            data_dir: base.join(&file.data_dir),
            incarnation,
            listen: listen?,
            peers,
            raft,
            limits,
            log_kind: file.disk.log,
            log_bytes_max,
            log_format: file.log.format,
            log_filter: file.log.filter,
        })
    }

    fn device(&mut self, file: &ConfigFile, genesis: &Genesis, registry: &Registry) -> Option<Member> {
        let Some(me) = registry.by_label(&file.label).cloned() else {
            self.problem(format!(
                "label: \"{}\" is no device of the genesis file of fleet {}",
                file.label,
                genesis.chain_id()
            ));
            return None;
        };
        let Some(cluster) = me.cluster.filter(|_| me.kind == Kind::Drone) else {
            self.problem(format!(
                "label: \"{}\" is no drone but a {:?} in the genesis file",
                file.label, me.kind
            ));
            return None;
        };
        let name = genesis.clusters[cluster.0 as usize].label.as_str();
        if file.cluster.as_deref().is_some_and(|named| named != name) {
            let named = file.cluster.as_deref().unwrap_or_default();
            self.problem(format!(
                "cluster: \"{named}\", but the genesis file puts \"{}\" into cluster \"{name}\"",
                file.label
            ));
        }
        Some(me)
    }

    fn peers(&mut self, file: &ConfigFile, registry: &Registry, me: Option<&Member>) -> Vec<(DeviceId, SocketAddr)> {
        let mut seen = BTreeSet::new();
        let mut peers = Vec::new();
        for row in &file.peers {
            let address = self.address(&format!("peer \"{}\" address", row.label), &row.address);
            if !seen.insert(row.label.as_str()) {
                self.problem(format!("peer: \"{}\" appears twice", row.label));
            }
            let Some(peer) = registry.by_label(&row.label) else {
                self.problem(format!("peer: \"{}\" is no device of the genesis file", row.label));
                continue;
            };
            let is_of_my_cluster = me.is_some_and(|me| me.cluster == peer.cluster);
            if peer.kind != Kind::Validator && !is_of_my_cluster && me.is_some() {
                self.problem(format!(
                    "peer: \"{}\" is neither a validator nor a member of this cluster",
                    row.label
                ));
            }
            peers.extend(address.map(|address| (peer.id, address)));
        }
        peers
    }

    fn raft(&mut self, file: &ConfigFile) -> RaftConfig {
        let link = &file.link;
        let mut raft = RaftConfig {
            cluster_name: file.label.clone(),
            ..RaftConfig::for_profile(link.profile)
        };
        let rows: [(&str, Option<&WithUnit>, &mut u64); 6] = [
            ("link.heartbeat", link.heartbeat.as_ref(), &mut raft.heartbeat_ms),
            (
                "link.election_timeout_min",
                link.election_timeout_min.as_ref(),
                &mut raft.election_timeout_ms_min,
            ),
            (
                "link.election_timeout_max",
                link.election_timeout_max.as_ref(),
                &mut raft.election_timeout_ms_max,
            ),
            (
                "link.quorum_probe",
                link.quorum_probe.as_ref(),
                &mut raft.quorum_probe_ms,
            ),
            ("link.rtt_p999", link.rtt_p999.as_ref(), &mut raft.rtt_ms_p999),
            ("disk.fsync_p99", file.disk.fsync_p99.as_ref(), &mut raft.fsync_ms_p99),
        ];
        for (key, text, value) in rows {
            if let Some(given) = self.unit(key, text, units::duration) {
                *value = u64::try_from(given.as_millis()).unwrap_or(u64::MAX);
            }
        }
        let limits = &file.limits;
        raft.proposals_max = limits.proposals_max.map_or(raft.proposals_max, |given| given as usize);
        raft.snapshot_entries = limits.snapshot_entries.unwrap_or(raft.snapshot_entries);
        raft.snapshot_entries_kept = limits.snapshot_entries_kept.unwrap_or(raft.snapshot_entries_kept);
        for (key, text, value) in [
            (
                "limits.snapshot_bytes",
                limits.snapshot_bytes.as_ref(),
                &mut raft.snapshot_bytes,
            ),
            (
                "limits.snapshot_bytes_kept",
                limits.snapshot_bytes_kept.as_ref(),
                &mut raft.snapshot_bytes_kept,
            ),
        ] {
            *value = self.unit(key, text, units::size).unwrap_or(*value);
        }
        if let Some(bytes) = self.unit("limits.proposal_bytes", limits.proposal_bytes.as_ref(), units::size) {
            raft.proposal_bytes_max = usize::try_from(bytes).unwrap_or(usize::MAX);
        }
        if let Err(error) = raft.validate() {
            self.problems.extend(error.problems.iter().map(ToString::to_string));
        }
        raft
    }

    fn buffer(&mut self, file: &ConfigFile) -> BufferLimits {
        let bytes = self.unit("limits.buffer_bytes", file.limits.buffer_bytes.as_ref(), units::size);
        let entries = file.limits.buffer_entries;
        let limits = BufferLimits {
            entries_max: entries.map_or(BUFFER_ENTRIES_DEFAULT, |entries| entries as usize),
            bytes_max: bytes.unwrap_or(BUFFER_BYTES_DEFAULT),
        };
        if limits.entries_max > BUFFER_ENTRIES_MAX {
            let got = limits.entries_max;
            self.problem(format!(
                "limits.buffer_entries {got} must be at most {BUFFER_ENTRIES_MAX}"
            ));
        }
        let least = common::limits::ENTRY_BYTES_MAX as u64;
        if limits.entries_max > 0 && limits.bytes_max < least {
            self.problem(format!(
                "limits.buffer_bytes {} B must be at least {least} B (one entry), or limits.buffer_entries 0",
                limits.bytes_max
            ));
        }
        limits
    }

    fn limits(&mut self, file: &ConfigFile, raft: &RaftConfig) -> Limits {
        let LinkTable { write_deadline, .. } = &file.link;
        let outbox = self.unit("limits.outbox_bytes", file.limits.outbox_bytes.as_ref(), units::size);
        let state = self.unit("limits.state_bytes", file.limits.state_bytes.as_ref(), units::size);
        let limits = Limits {
            outbox_bytes_max: outbox.unwrap_or(OUTBOX_BYTES_DEFAULT),
            buffer: self.buffer(file),
            open_tasks_max: file.limits.open_tasks.unwrap_or(OPEN_TASKS_DEFAULT),
            state_bytes_max: state.unwrap_or(STATE_BYTES_DEFAULT),
            ..Limits::for_raft(raft)
        };
        if limits.state_bytes_max > STATE_BYTES_MAX {
            self.problem(format!(
                "limits.state_bytes {} B must be at most {STATE_BYTES_MAX} B: a snapshot must carry it",
                limits.state_bytes_max
            ));
        }
        let deadline = self.unit("link.write_deadline", write_deadline.as_ref(), units::duration);
        let limits = Limits {
            write_deadline: deadline.unwrap_or(limits.write_deadline),
            ..limits
        };
        let election_ms = u128::from(raft.election_timeout_ms_max);
        if limits.write_deadline.as_millis() <= election_ms {
            self.problem(format!(
                "link.write_deadline {} ms must be more than link.election_timeout_max {election_ms} ms",
                limits.write_deadline.as_millis()
            ));
        }
        if limits.write_deadline > WRITE_DEADLINE_MAX {
            self.problem(format!(
                "link.write_deadline {} ms must be at most {} ms, after which no answer is waited for",
                limits.write_deadline.as_millis(),
                WRITE_DEADLINE_MAX.as_millis()
            ));
        }
        let least = 4 * common::limits::BATCH_BYTES_MAX as u64;
        if limits.outbox_bytes_max < least {
            self.problem(format!(
                "limits.outbox_bytes {} B must be at least {least} B (four batches)",
                limits.outbox_bytes_max
            ));
        }
        limits
    }
}

/// Shortest time that a batch stays open for more to join it.
const BATCH_INTERVAL_MS_MIN: u64 = 20;

impl Limits {
    /// The defaults that fit the timing of `raft`.
    #[must_use]
    pub fn for_raft(raft: &RaftConfig) -> Self {
        Self {
            outbox_bytes_max: OUTBOX_BYTES_DEFAULT,
            buffer: BufferLimits {
                entries_max: BUFFER_ENTRIES_DEFAULT,
                bytes_max: BUFFER_BYTES_DEFAULT,
            },
            author_entries_per_second: 2_000,
            author_entries_burst: 4_000,
            open_tasks_max: OPEN_TASKS_DEFAULT,
            state_bytes_max: STATE_BYTES_DEFAULT,
            // A leader may die once under a write, and its successor needs an election and a half.
            write_deadline: Duration::from_millis((5 * raft.election_timeout_ms_max).max(2_000))
                .min(WRITE_DEADLINE_MAX),
            // Each batch carries a certificate to every member of the fleet, and each group of blocks is a message to every
            // member of the cluster: a slow link gets fewer of them, a `Cut` and a group per four slow round trips.
            batch_interval: Duration::from_millis((4 * raft.rtt_ms_p999).max(BATCH_INTERVAL_MS_MIN)),
        }
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
