//! Builders for tests: a fleet with fixed keys, and signed entries, certified batches, blocks and
//! finalizations of it. Behind the cargo feature `testing`; no binary is built with it.
//!
//! # Rules
//! * Every key is a function of its owner's label, so bytes made here never change: the golden
//!   vectors are made of them.
//! * Whatever is built is genuine: it passes the same `verify` as everything else. Tests that need
//!   a forgery take a genuine value and break it.
//!
//! Misuse (an unknown label, a cluster that does not exist) panics with the name: it is a mistake in a test.

mod chain;
mod ledger;

pub use chain::{BlockChain, ClusterLog};
pub use ledger::Ledger;

use crate::{
    batch::{Attestation, BatchEntry, BatchHeader, CertifiedBatch},
    block::{Block, FinalizedBlock, ParentProof, ProofOfFinality, Proposal},
    certificate::{Ballot, Finalization, Notarization, Nullification, NullifyBallot, SignedVote, Signers, Vote},
    codec::{BoundedVec, Label},
    crypto::{ConsensusKey, DeviceKey, Signature, sha256},
    entry::{Action, EntryDraft, SignedEntry},
    genesis::{
        FaultModel, GENESIS_VERSION, Genesis, GenesisCluster, GenesisDevice, GenesisValidator, Kind, RoleSet,
        SIG_RULE_STRICT, Thresholds, Timing,
    },
    ids::{BlockTime, ChainId, ClusterId, DeviceId, EntryNumber, Epoch, Height, KeyVersion, NodeIdx, View},
    lease_terms::{ClockBounds, LeaseTerms},
    quorum::{attestation_quorum, bft_quorum},
    registry::Registry,
    roster::Roster,
    task::{Place, Scope, Task, TaskKind, Zone},
    validator_set::ValidatorSet,
};

/// Time of height 0 in every test fleet, microseconds.
pub const GENESIS_TIME: BlockTime = BlockTime(1_700_000_000_000_000);

/// Side of the square in which a test cluster picks up, millimetres. Cluster `i` begins at `i` sides east.
pub const ZONE_SIDE_MM: i32 = 10_000_000;

/// The `dev` profile of the link: C 12 s, L 6 s, G 10.2 s, t_stop 0.5 s, b 0.5 s, e 0.1 s, idle 1 s.
#[must_use]
pub fn dev_timing() -> Timing {
    Timing {
        clocks: ClockBounds {
            block_time_bound_ms: 500,
            clock_error_ms: 100,
            drift_ppm: 500,
        },
        idle_block_interval_ms: 1_000,
        delay_ms_min: 5,
        delay_ms_max: 200,
        lease: LeaseTerms {
            custody_ms: 12_000,
            lease_ms: 6_000,
            global_lease_ms: 10_200,
            stop_ms: 500,
        },
        regions_min: 0,
    }
}

/// A survey task under `key` with every other field at its default.
#[must_use]
pub fn task(key: &str) -> Task {
    Task::new(
        key.as_bytes().to_vec().try_into().expect("a test key is short"),
        TaskKind::Survey,
    )
}

/// A place in the zone of test cluster `cluster` (from 0).
#[must_use]
pub fn place_in(cluster: u32) -> Place {
    Place::Local {
        east_mm: cluster as i32 * ZONE_SIDE_MM + 1_000,
        north_mm: 1_000,
        up_mm: 0,
    }
}

/// A fleet with fixed keys: clusters `c1..`, agents `c1-1..`, validators `v1..`, operator `op1`.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Its genesis file.
    pub genesis: Genesis,
    /// Its identity.
    pub chain: ChainId,
    /// Its registry at height 0.
    pub registry: Registry,
    /// Its validators of epoch 0.
    pub set: ValidatorSet,
}

impl Fleet {
    /// `clusters` clusters of `agents` agents each (1, or at least 3), `validators` validators of
    /// weight 1 (1, or at least 4) and the operator `op1`.
    #[must_use]
    pub fn new(clusters: u32, agents: u32, validators: u32) -> Self {
        Self::with_timing(clusters, agents, validators, dev_timing())
    }

    /// The same with other constants of time.
    #[must_use]
    pub fn with_timing(clusters: u32, agents: u32, validators: u32, timing: Timing) -> Self {
        Self::from_genesis(genesis(clusters, agents, validators, timing))
    }

    /// Three clusters of three agents and four validators: the fleet of the demo.
    #[must_use]
    pub fn dev() -> Self {
        Self::new(3, 3, 4)
    }

    /// The fleet of a genesis file whose keys are those of the labels.
    #[must_use]
    pub fn from_genesis(genesis: Genesis) -> Self {
        crate::codec::Wire::validate(&genesis).expect("a test fleet is valid");
        Self {
            chain: genesis.chain_id(),
            registry: Registry::from_genesis(&genesis),
            set: ValidatorSet::from_genesis(&genesis),
            genesis,
        }
    }

    /// The device key of a label.
    #[must_use]
    pub fn key(&self, label: &str) -> DeviceKey {
        device_key(label)
    }

    /// The consensus key of a validator's label.
    #[must_use]
    pub fn consensus_key(&self, label: &str) -> ConsensusKey {
        consensus_key(label)
    }

    /// The identity of a label's device.
    #[must_use]
    pub fn id(&self, label: &str) -> DeviceId {
        self.member(label).id
    }

    /// The number of a label's device.
    #[must_use]
    pub fn idx(&self, label: &str) -> NodeIdx {
        self.member(label).idx
    }

    fn member(&self, label: &str) -> &crate::registry::Member {
        self.registry
            .by_label(label)
            .unwrap_or_else(|| panic!("no device is called {label}"))
    }

    /// The label of a device.
    #[must_use]
    pub fn label(&self, idx: NodeIdx) -> &str {
        self.registry
            .by_idx(idx)
            .expect("the device is registered")
            .label
            .as_str()
    }

    /// The founding roster of a cluster.
    #[must_use]
    pub fn roster(&self, cluster: ClusterId) -> Roster {
        self.genesis.founding_roster(cluster).expect("the cluster exists")
    }

    /// What `author` fills in for an entry through `cluster`; never expires.
    #[must_use]
    pub fn draft(&self, author: &str, cluster: ClusterId, number: u64, scope: Scope, action: Action) -> EntryDraft {
        EntryDraft {
            author: self.id(author),
            key_version: KeyVersion(0),
            cluster,
            number: EntryNumber(number),
            not_after_height: Height(u64::MAX),
            scope,
            action,
        }
    }

    /// A signed submission of `task`.
    #[must_use]
    pub fn submit(&self, author: &str, cluster: ClusterId, number: u64, scope: Scope, task: &Task) -> SignedEntry {
        let draft = self.draft(author, cluster, number, scope, Action::Submit);
        SignedEntry::submit(&self.key(author), &self.chain, draft, task)
    }

    /// A signed entry without payload.
    #[must_use]
    pub fn entry(&self, author: &str, cluster: ClusterId, number: u64, scope: Scope, action: Action) -> SignedEntry {
        self.entry_with(author, cluster, number, scope, action, b"")
    }

    /// A signed entry with a note for people.
    #[must_use]
    pub fn entry_with(
        &self,
        author: &str,
        cluster: ClusterId,
        number: u64,
        scope: Scope,
        action: Action,
        note: &[u8],
    ) -> SignedEntry {
        let draft = self.draft(author, cluster, number, scope, action);
        let payload = note.to_vec().try_into().expect("a test note is short");
        SignedEntry::sign(&self.key(author), &self.chain, draft, payload)
    }

    /// The attestation of a batch header by a member of `roster` at `position`.
    #[must_use]
    pub fn attest(&self, header: &BatchHeader, roster: &Roster, position: usize) -> Attestation {
        let by = roster.members[position].raft;
        Attestation {
            cluster: header.cluster,
            founding: header.founding,
            seq: header.seq,
            digest: header.digest(&self.chain),
            by,
            signature: device_key(self.label(by.idx())).sign_attestation(&self.chain, header),
        }
    }

    /// `header` and `entries` with the attestations of a quorum of `roster`, lowest positions first.
    #[must_use]
    pub fn certify(&self, header: BatchHeader, entries: Vec<BatchEntry>, roster: &Roster) -> CertifiedBatch {
        let model = self.genesis.clusters[header.cluster.0 as usize].fault_model;
        let signed: Vec<(usize, Signature)> = (0..attestation_quorum(roster.members.len(), model))
            .map(|position| (position, self.attest(&header, roster, position).signature))
            .collect();
        CertifiedBatch {
            attestations: Signers::gather(roster.members.len(), &signed),
            header,
            entries: entries.try_into().expect("a test batch is bounded"),
        }
    }

    /// A vote of a validator.
    #[must_use]
    pub fn vote(&self, label: &str, vote: Vote) -> SignedVote {
        let key = self.consensus_key(label);
        SignedVote {
            vote,
            voter: self.idx(label),
            signature: match &vote {
                Vote::Notarize(ballot) => key.sign_notarize(&self.chain, ballot),
                Vote::Finalize(ballot) => key.sign_finalize(&self.chain, ballot),
                Vote::Nullify(ballot) => key.sign_nullify(&self.chain, ballot),
            },
        }
    }

    fn quorum_of(&self, vote: Vote) -> Signers {
        let needed = bft_quorum(self.set.total_weight());
        let mut weight = 0;
        let mut signed = Vec::new();
        for (position, member) in self.set.members().iter().enumerate() {
            if weight >= needed {
                break;
            }
            weight += member.weight;
            signed.push((position, self.vote(self.label(member.device), vote).signature));
        }
        Signers::gather(self.set.members().len(), &signed)
    }

    /// A quorum's notarization.
    #[must_use]
    pub fn notarization(&self, ballot: Ballot) -> Notarization {
        Notarization {
            ballot,
            signers: self.quorum_of(Vote::Notarize(ballot)),
        }
    }

    /// A quorum's finalization.
    #[must_use]
    pub fn finalization(&self, ballot: Ballot) -> Finalization {
        Finalization {
            ballot,
            signers: self.quorum_of(Vote::Finalize(ballot)),
        }
    }

    /// A quorum's nullification of `view`.
    #[must_use]
    pub fn nullification(&self, view: View) -> Nullification {
        let ballot = NullifyBallot { epoch: Epoch(0), view };
        Nullification {
            ballot,
            signers: self.quorum_of(Vote::Nullify(ballot)),
        }
    }

    /// `block` with a finalization of its own.
    #[must_use]
    pub fn finalize(&self, block: Block) -> FinalizedBlock {
        FinalizedBlock {
            proof: ProofOfFinality {
                above: BoundedVec::new(),
                finalization: self.finalization(block.header.ballot()),
            },
            block,
        }
    }

    /// The signed proposal of `block` by the leader of its view, on a notarized `parent` (or genesis).
    #[must_use]
    pub fn propose(&self, block: Block, parent: Option<Ballot>) -> Proposal {
        let leader = self.label(self.set.leader(block.header.view)).to_owned();
        let nullifications: Vec<Nullification> = (block.header.parent_view.0 + 1..block.header.view.0)
            .map(|view| self.nullification(View(view)))
            .collect();
        Proposal {
            signature: self
                .consensus_key(&leader)
                .sign_proposal(&self.chain, &block.header.ballot()),
            parent_proof: parent.map_or(ParentProof::Genesis, |ballot| {
                ParentProof::Notarization(self.notarization(ballot))
            }),
            nullifications: nullifications.try_into().expect("a test skips few views"),
            block,
        }
    }
}

/// The device key of a label in every test fleet.
#[must_use]
pub fn device_key(label: &str) -> DeviceKey {
    DeviceKey::from_seed(&sha256(&[b"testing/device/", label.as_bytes()]).0)
}

/// The consensus key of a label in every test fleet.
#[must_use]
pub fn consensus_key(label: &str) -> ConsensusKey {
    ConsensusKey::from_seed(&sha256(&[b"testing/consensus/", label.as_bytes()]).0)
}

fn label(text: String) -> Label {
    Label::new(text).expect("a test label is short")
}

/// The genesis file of a test fleet; see [`Fleet::new`].
#[must_use]
pub fn genesis(clusters: u32, agents: u32, validators: u32, timing: Timing) -> Genesis {
    let device = |name: String, kind, roles, cluster| GenesisDevice {
        key: device_key(&name).public(),
        label: label(name),
        kind,
        roles,
        cluster,
        stops_by_itself: true,
    };
    let drone = RoleSet::TASK_SUBMIT
        .with(RoleSet::TASK_CLAIM)
        .with(RoleSet::CLUSTER_VOTE);
    let operator = RoleSet::TASK_SUBMIT.with(RoleSet::OP_READ).with(RoleSet::OP_TASK);
    let mut devices = Vec::new();
    for cluster in 0..clusters {
        for agent in 1..=agents {
            let name = format!("c{}-{agent}", cluster + 1);
            devices.push(device(name, Kind::Drone, drone, Some(ClusterId(cluster))));
        }
    }
    let first_validator = clusters * agents;
    for validator in 1..=validators {
        devices.push(device(
            format!("v{validator}"),
            Kind::Validator,
            RoleSet::BFT_VOTE,
            None,
        ));
    }
    devices.push(device("op1".into(), Kind::Operator, operator, None));
    Genesis {
        version: GENESIS_VERSION,
        fleet: label("test".into()),
        genesis_time: GENESIS_TIME,
        sig_rule: SIG_RULE_STRICT,
        ca_keys: vec![device_key("ca").public()].try_into().expect("one key"),
        devices: devices.try_into().expect("a test fleet is small"),
        clusters: (0..clusters)
            .map(|id| genesis_cluster(id, agents))
            .collect::<Vec<_>>()
            .try_into()
            .expect("a test fleet is small"),
        validators: (0..validators)
            .map(|i| GenesisValidator {
                device: NodeIdx(first_validator + i),
                consensus_key: consensus_key(&format!("v{}", i + 1)).public(),
                weight: 1,
                region: label(format!("r{}", i + 1)),
            })
            .collect::<Vec<_>>()
            .try_into()
            .expect("a test fleet is small"),
        thresholds: Thresholds {
            admin: 1,
            drone_admin: 1,
        },
        timing,
    }
}

fn genesis_cluster(id: u32, agents: u32) -> GenesisCluster {
    let west = id as i32 * ZONE_SIDE_MM;
    let roster: Vec<NodeIdx> = (id * agents..(id + 1) * agents).map(NodeIdx).collect();
    GenesisCluster {
        label: label(format!("c{}", id + 1)),
        zones: vec![Zone::Local {
            min_mm: [west, 0],
            max_mm: [west + ZONE_SIDE_MM - 1, ZONE_SIDE_MM - 1],
        }]
        .try_into()
        .expect("one zone"),
        fault_model: FaultModel::Byzantine,
        roster: roster.try_into().expect("a test cluster is small"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Digest;

    #[test]
    fn whatever_is_built_passes_its_own_verification() {
        let fleet = Fleet::dev();
        let cluster = ClusterId(1);
        let entry = fleet.submit("op1", cluster, 1, Scope::Fleet, &task("k"));
        assert!(matches!(
            entry.clone().check(&fleet.registry),
            crate::entry::StaticVerdict::Good(_)
        ));
        let mut log = ClusterLog::new(&fleet, cluster);
        let roster = log.roster.clone();
        let batch = log.granted(&fleet, vec![entry]);
        let beat = log.beat(&fleet);
        assert_eq!(beat.header.prev_digest, batch.digest(&fleet.chain));
        for batch in [batch.clone(), beat] {
            assert!(batch.verify(&fleet.registry, &roster, FaultModel::Byzantine).is_ok());
        }
        let mut chain = BlockChain::new(&fleet, Digest::default());
        let first = chain.block(&fleet, &[batch], 20);
        let second = chain.block(&fleet, &[], 20);
        assert!(fleet.finalize(first.clone()).verify(&fleet.chain, &fleet.set).is_ok());
        let proposal = fleet.propose(second, Some(first.header.ballot()));
        let leader = fleet.set.leader(View(2));
        let position = fleet.set.position(leader).unwrap();
        assert!(proposal.is_signed(&fleet.chain, &fleet.set.members()[position].key));
    }
}
