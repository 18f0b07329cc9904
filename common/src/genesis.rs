//! The genesis file: everything a fleet agrees on before its first block. Public keys only.
//!
//! `chain_id = SHA-256("muster/v1/chain-id" padded || genesis bytes)`, so two fleets that differ in
//! one bit of it refuse each other.

use serde::{Deserialize, Serialize};

use crate::{
    codec::{BoundedVec, Label, Wire, encode},
    crypto::{AdmittedKey, sha256},
    ids::{BlockTime, ChainId, ClusterId, DeviceId, NodeIdx, RaftNodeId},
    lease_terms::{ClockBounds, LeaseTerms},
    limits,
    roster::{Roster, RosterMember},
    task::Zone,
};

/// Version of the genesis format that this build reads and writes.
pub const GENESIS_VERSION: u16 = 1;
/// Signature rule 1: Ed25519, strict, one by one.
pub const SIG_RULE_STRICT: u8 = 1;

/// What a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// Runs `cluster-agent`.
    Drone,
    /// Runs `global-validator`.
    Validator,
    /// A person or program with an operator's key.
    Operator,
    /// A bridge to another system.
    Gateway,
}

/// What a device may do. Stands in the registry only, never in a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RoleSet(pub u32);

impl RoleSet {
    /// May submit tasks (`task.submit`).
    pub const TASK_SUBMIT: Self = Self(1);
    /// May claim tasks (`task.claim`).
    pub const TASK_CLAIM: Self = Self(1 << 1);
    /// May vote in its cluster and attest its batches (`cluster.vote`).
    pub const CLUSTER_VOTE: Self = Self(1 << 2);
    /// May vote in the BFT tier (`bft.vote`).
    pub const BFT_VOTE: Self = Self(1 << 3);
    /// May read everything (`op.read`).
    pub const OP_READ: Self = Self(1 << 4);
    /// May cancel, requeue and force-requeue any task (`op.task`).
    pub const OP_TASK: Self = Self(1 << 5);
    /// May enrol, suspend and revoke drones (`op.drone_admin`).
    pub const OP_DRONE_ADMIN: Self = Self(1 << 6);
    /// May change roles, validators and CA keys, together with others (`op.admin`).
    pub const OP_ADMIN: Self = Self(1 << 7);

    const ALL: u32 = (1 << 8) - 1;

    /// Both sets.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether every role of `other` is here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// A device known from the start. Its [`NodeIdx`] is its position in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisDevice {
    /// Name for people.
    pub label: Label,
    /// What it is.
    pub kind: Kind,
    /// What it may do.
    pub roles: RoleSet,
    /// The cluster of a drone.
    pub cluster: Option<ClusterId>,
    /// Key for TLS, entries and attestations.
    pub key: [u8; 32],
    /// Whether the vehicle stops by itself at a deadline; otherwise its tasks are never reassigned by time alone.
    pub stops_by_itself: bool,
}

/// How many faulty devices a cluster's roster withstands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FaultModel {
    /// Less than a third may lie.
    Byzantine,
    /// All tell the truth or are silent.
    Crash,
}

/// A regional cluster. Its [`ClusterId`] is its position in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisCluster {
    /// Name for people.
    pub label: Label,
    /// Where its tasks are picked up.
    pub zones: BoundedVec<Zone, { limits::ZONES_PER_CLUSTER_MAX }>,
    /// What its attestation quorum must withstand.
    pub fault_model: FaultModel,
    /// Founding voters and roster, ascending.
    pub roster: BoundedVec<NodeIdx, { limits::ROSTER_MAX }>,
}

/// A validator of epoch 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenesisValidator {
    /// The device, of kind [`Kind::Validator`].
    pub device: NodeIdx,
    /// Key for proposals and votes, apart from the device key.
    pub consensus_key: [u8; 32],
    /// Voting weight.
    pub weight: u64,
    /// Region, for the region rule.
    pub region: Label,
}

/// Constants of the global tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// b, e and rho.
    pub clocks: ClockBounds,
    /// A block at least this often, so that custody and age move on.
    pub idle_block_interval_ms: u32,
    /// Shortest D, the assumed one-way delay between validators.
    pub delay_ms_min: u32,
    /// Longest D.
    pub delay_ms_max: u32,
    /// Defaults for tasks; each task's row keeps its own.
    pub lease: LeaseTerms,
    /// Regions a finalization must come from; 0 or 1 switches the rule off.
    pub regions_min: u8,
}

/// How many operators an operation needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// For changes of validators, admins, CA keys and thresholds.
    pub admin: u8,
    /// For enrolling, suspending and revoking drones.
    pub drone_admin: u8,
}

/// The file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Genesis {
    /// [`GENESIS_VERSION`].
    pub version: u16,
    /// Name of the fleet; the trust domain of its certificates.
    pub fleet: Label,
    /// Time of height 0.
    pub genesis_time: BlockTime,
    /// Rule by which signatures are judged, [`SIG_RULE_STRICT`].
    pub sig_rule: u8,
    /// Ed25519 keys of the fleet's certificate authorities.
    pub ca_keys: BoundedVec<[u8; 32], 4>,
    /// All devices, in order of their numbers.
    pub devices: BoundedVec<GenesisDevice, { limits::DEVICES_MAX }>,
    /// All clusters, in order of their ids.
    pub clusters: BoundedVec<GenesisCluster, { limits::CLUSTERS_MAX }>,
    /// Validators of epoch 0, ascending by device.
    pub validators: BoundedVec<GenesisValidator, { limits::VALIDATORS_MAX }>,
    /// Operators needed.
    pub thresholds: Thresholds,
    /// Constants of time.
    pub timing: Timing,
}

impl Genesis {
    /// The identity of the fleet.
    #[must_use]
    pub fn chain_id(&self) -> ChainId {
        ChainId(sha256(&[&padded(b"muster/v1/chain-id"), &encode(self)]).0)
    }

    /// The id of a device of this fleet whose first key is `key`.
    #[must_use]
    pub fn device_id(chain: &ChainId, key: &[u8; 32]) -> DeviceId {
        DeviceId(sha256(&[&padded(b"muster/v1/device-id"), &chain.0, key]).0)
    }

    /// The cluster's founding roster: each device with its first data directory and first key.
    #[must_use]
    pub fn founding_roster(&self, cluster: ClusterId) -> Option<Roster> {
        let cluster = self.clusters.get(cluster.0 as usize)?;
        let members: Vec<RosterMember> = cluster
            .roster
            .iter()
            .map(|idx| RosterMember {
                raft: RaftNodeId::new(*idx, 1),
                key_version: Default::default(),
            })
            .collect();
        Some(Roster {
            members: members.try_into().ok()?,
        })
    }
}

/// `name` padded with zeros to 32 bytes, as in every signed byte string.
pub(crate) fn padded(name: &[u8]) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..name.len()].copy_from_slice(name);
    bytes
}

impl Wire for Genesis {
    const BYTES_MAX: usize = limits::GENESIS_BYTES_MAX;

    fn validate(&self) -> Result<(), &'static str> {
        let check = |holds: bool, what| if holds { Ok(()) } else { Err(what) };
        check(self.version == GENESIS_VERSION, "genesis format version is not 1")?;
        check(self.sig_rule == SIG_RULE_STRICT, "signature rule is not 1 (strict)")?;
        check(!self.ca_keys.is_empty(), "no CA key")?;
        check(!self.fleet.as_str().is_empty(), "the fleet has no name")?;
        self.check_devices()?;
        self.check_clusters()?;
        self.check_validators()?;
        self.check_timing()
    }
}

impl Genesis {
    fn check_devices(&self) -> Result<(), &'static str> {
        let mut keys: Vec<&[u8; 32]> = self.devices.iter().map(|d| &d.key).collect();
        keys.extend(self.validators.iter().map(|v| &v.consensus_key));
        keys.extend(self.ca_keys.iter());
        let count = keys.len();
        if keys.iter().any(|key| AdmittedKey::admit(key).is_err()) {
            return Err("a key is not canonical, weak, or has a torsion component");
        }
        keys.sort_unstable();
        keys.dedup();
        if keys.len() != count {
            return Err("a key appears twice");
        }
        let mut labels: Vec<&Label> = self.devices.iter().map(|d| &d.label).collect();
        labels.sort_unstable();
        labels.dedup();
        if labels.len() != self.devices.len() {
            return Err("two devices have one label");
        }
        for device in &self.devices {
            if device.roles.0 & !RoleSet::ALL != 0 {
                return Err("a device has an unknown role");
            }
            if (device.kind == Kind::Drone) != device.cluster.is_some() {
                return Err("a drone has no cluster, or another device has one");
            }
            if device.cluster.is_some_and(|c| c.0 as usize >= self.clusters.len()) {
                return Err("a drone's cluster is not in the file");
            }
        }
        Ok(())
    }

    fn check_clusters(&self) -> Result<(), &'static str> {
        for (id, cluster) in (0u32..).zip(&self.clusters) {
            if !cluster.roster.is_sorted_by(|a, b| a < b) {
                return Err("a roster is not ascending");
            }
            if cluster.roster.is_empty() || cluster.roster.len() == 2 {
                return Err("a cluster needs 1 or at least 3 founding members: 2 tolerate no failure");
            }
            for idx in &cluster.roster {
                let member = self
                    .devices
                    .get(idx.0 as usize)
                    .ok_or("a roster names an unknown device")?;
                if member.cluster != Some(ClusterId(id)) || !member.roles.contains(RoleSet::CLUSTER_VOTE) {
                    return Err("a roster names a device of another cluster or without the role cluster.vote");
                }
            }
            if cluster.zones.iter().any(|zone| !zone.is_ordered()) {
                return Err("a zone's corners are reversed");
            }
        }
        Ok(())
    }

    fn check_validators(&self) -> Result<(), &'static str> {
        let n = self.validators.len();
        if !(n == 1 || n >= 4) {
            return Err("1 or at least 4 validators are needed: 2 or 3 tolerate no faulty one");
        }
        if !self.validators.is_sorted_by(|a, b| a.device < b.device) {
            return Err("validators are not ascending by device");
        }
        let total: u128 = self.validators.iter().map(|v| u128::from(v.weight)).sum();
        for validator in &self.validators {
            let device = self
                .devices
                .get(validator.device.0 as usize)
                .ok_or("a validator's device is unknown")?;
            if device.kind != Kind::Validator || !device.roles.contains(RoleSet::BFT_VOTE) {
                return Err("a validator's device is of another kind or lacks the role bft.vote");
            }
            if validator.weight == 0 || validator.weight > u64::from(u32::MAX) {
                return Err("a validator's weight is 0 or above 2^32 - 1");
            }
            if n > 1 && 3 * u128::from(validator.weight) >= total {
                return Err("one validator has a third of the weight or more");
            }
        }
        Ok(())
    }

    fn check_timing(&self) -> Result<(), &'static str> {
        let t = &self.timing;
        let b_and_e = u64::from(t.clocks.block_time_bound_ms) + u64::from(t.clocks.clock_error_ms);
        if t.idle_block_interval_ms == 0 || t.delay_ms_min == 0 || t.delay_ms_min > t.delay_ms_max {
            return Err("idle_block_interval and delay_min must be above 0 and delay_min at most delay_max");
        }
        if t.lease.check(&t.clocks).is_err() {
            return Err("the lease terms break G (1 + 2 rho) + t_stop <= C - 2 (b + e)");
        }
        let view_timer_ms = 3 * u64::from(t.delay_ms_max);
        if u64::from(t.lease.custody_ms) / 4 < u64::from(t.idle_block_interval_ms) + 2 * b_and_e + view_timer_ms {
            return Err("a quarter of custody is below idle_block_interval + 2 (b + e) + view timer");
        }
        if u64::from(t.clocks.block_time_bound_ms) < 2 * u64::from(t.clocks.clock_error_ms) + u64::from(t.delay_ms_max)
        {
            return Err("block_time_bound is below twice the clock error plus the worst one-way delay");
        }
        Ok(())
    }
}
