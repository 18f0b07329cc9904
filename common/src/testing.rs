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

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    batch::{Attestation, BATCH_VERSION, BatchEntry, BatchHeader, BatchItem, CertifiedBatch, RosterChange},
    block::BatchRef,
    block::{
        BLOCK_VERSION, Block, BlockHeader, FinalizedBlock, Link, ParentProof, ProofOfFinality, Proposal,
        genesis_digest, refs_root,
    },
    certificate::{Ballot, Finalization, Notarization, Nullification, NullifyBallot, SignedVote, Signers, Vote},
    codec::{BoundedVec, Label},
    crypto::{ConsensusKey, DeviceKey, Signature, sha256},
    entry::{Action, EntryDraft, SignedEntry, VerifyEach},
    genesis::{
        FaultModel, GENESIS_VERSION, Genesis, GenesisCluster, GenesisDevice, GenesisValidator, Kind, RoleSet,
        SIG_RULE_STRICT, Thresholds, Timing,
    },
    global_queue::{BlockOutcome, GlobalQueue, OrderedBatch, Outcome},
    ids::{
        BatchSeq, BlockTime, ChainId, ClusterId, DeviceId, Digest, EntryNumber, Epoch, Founding, Height, KeyVersion,
        LogIndex, LogPosition, NodeIdx, Term, View,
    },
    lease_terms::{ClockBounds, LeaseTerms},
    merkle,
    proof::ProofSource,
    quorum::{attestation_quorum, bft_quorum},
    registry::Registry,
    roster::Roster,
    task::{Place, Scope, Task, TaskKind, Zone},
    validator_set::ValidatorSet,
    verdict::Verdict,
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

/// One cluster's log as the global tier sees it: makes consecutive certified batches.
///
/// Every row takes the next log index; a row's verdict is what the test says the cluster decided.
#[derive(Clone, Debug)]
pub struct ClusterLog {
    /// Whose.
    pub cluster: ClusterId,
    /// Of which founding.
    pub founding: Founding,
    /// Sequence number of the next batch.
    pub next_seq: BatchSeq,
    /// Digest of the last header.
    pub prev_digest: Digest,
    /// Index that the next row takes.
    pub next_index: LogIndex,
    /// Global height that the next batch names.
    pub global_height: Height,
    /// Roster in force.
    pub roster: Roster,
}

impl ClusterLog {
    /// The empty log of a cluster with its founding roster.
    #[must_use]
    pub fn new(fleet: &Fleet, cluster: ClusterId) -> Self {
        Self {
            cluster,
            founding: Founding(0),
            next_seq: BatchSeq(1),
            prev_digest: Digest::default(),
            next_index: LogIndex(1),
            global_height: Height(0),
            roster: fleet.roster(cluster),
        }
    }

    /// The next batch, of author-signed entries with the cluster's verdicts.
    pub fn batch(&mut self, fleet: &Fleet, rows: Vec<(Verdict, SignedEntry)>) -> CertifiedBatch {
        let items = rows
            .into_iter()
            .map(|(verdict, entry)| (verdict, BatchItem::Author(entry)))
            .collect();
        self.batch_of(fleet, items)
    }

    /// The next batch, every entry granted.
    pub fn granted(&mut self, fleet: &Fleet, entries: Vec<SignedEntry>) -> CertifiedBatch {
        self.batch(
            fleet,
            entries.into_iter().map(|entry| (Verdict::Granted, entry)).collect(),
        )
    }

    /// The next batch, empty: a sign of life.
    pub fn beat(&mut self, fleet: &Fleet) -> CertifiedBatch {
        self.batch_of(fleet, Vec::new())
    }

    /// The next batch, of any items. A `Roster` row takes effect after it.
    pub fn batch_of(&mut self, fleet: &Fleet, items: Vec<(Verdict, BatchItem)>) -> CertifiedBatch {
        let mut next_roster = self.roster.clone();
        let mut entries = Vec::new();
        for (verdict, item) in items {
            if let (Verdict::Granted, BatchItem::Roster(RosterChange { roster })) = (verdict, &item) {
                next_roster = roster.clone();
            }
            entries.push(BatchEntry {
                founding: self.founding,
                index: self.next_index,
                verdict,
                item,
            });
            self.next_index = self.next_index.next();
        }
        let leaves: Vec<Digest> = entries.iter().map(|row| row.leaf(&fleet.chain)).collect();
        let cut = self.next_index;
        self.next_index = cut.next();
        let header = BatchHeader {
            version: BATCH_VERSION,
            cluster: self.cluster,
            founding: self.founding,
            seq: self.next_seq,
            prev_digest: self.prev_digest,
            cut: LogPosition {
                term: Term(1),
                index: cut,
            },
            first_index: entries.first().map_or(LogIndex(0), |row| row.index),
            last_index: entries.last().map_or(LogIndex(0), |row| row.index),
            count: entries.len() as u32,
            entries_root: merkle::root(&leaves),
            global_height: self.global_height,
            roster: self.roster.digest(),
            next_roster: next_roster.digest(),
        };
        self.next_seq = self.next_seq.next();
        self.prev_digest = header.digest(&fleet.chain);
        let batch = fleet.certify(header, entries, &self.roster);
        self.roster = next_roster;
        batch
    }
}

/// The chain of blocks: each on the one before, a view and a time step after it.
#[derive(Clone, Debug)]
pub struct BlockChain {
    /// Digest of the last block.
    pub parent: Digest,
    /// Its height.
    pub height: Height,
    /// Its view.
    pub view: View,
    /// Its time.
    pub time: BlockTime,
    /// State and outcome root after each height; heights not set carry those of height 0.
    pub roots: BTreeMap<Height, (Digest, Digest)>,
}

impl BlockChain {
    /// The chain before its first block. `state_root` is the root of the genesis state.
    #[must_use]
    pub fn new(fleet: &Fleet, state_root: Digest) -> Self {
        Self {
            parent: genesis_digest(&fleet.chain),
            height: Height(0),
            view: View(0),
            time: fleet.genesis.genesis_time,
            roots: BTreeMap::from([(Height(0), (state_root, merkle::root(&[])))]),
        }
    }

    /// The next block, `step_ms` after the last, referring to `batches` in their order.
    pub fn block(&mut self, fleet: &Fleet, batches: &[CertifiedBatch], step_ms: u64) -> Block {
        let refs: Vec<BatchRef> = batches.iter().map(|batch| BatchRef::to(batch, &fleet.chain)).collect();
        self.block_of(fleet, refs, step_ms)
    }

    /// The next block with the given references.
    pub fn block_of(&mut self, fleet: &Fleet, refs: Vec<BatchRef>, step_ms: u64) -> Block {
        let height = self.height.next();
        let lagging = Height(height.0.saturating_sub(crate::limits::ROOT_LAG));
        let (state_root, outcome_root) = self.roots.get(&lagging).copied().unwrap_or(self.roots[&Height(0)]);
        let header = BlockHeader {
            version: BLOCK_VERSION,
            chain: fleet.chain,
            epoch: Epoch(0),
            view: self.view.next(),
            height,
            parent: self.parent,
            parent_view: self.view,
            time: self.time.plus_ms(step_ms),
            refs_root: refs_root(&refs),
            state_root,
            outcome_root,
            next_set: None,
        };
        self.parent = header.digest();
        self.height = height;
        self.view = header.view;
        self.time = header.time;
        Block {
            header,
            refs: refs.try_into().expect("a test block is bounded"),
        }
    }
}

/// A whole fleet's history in one value: every cluster's log, the chain, the state after it, and all
/// that a validator would have stored.
#[derive(Clone, Debug)]
pub struct Ledger {
    /// The fleet.
    pub fleet: Fleet,
    /// State after the last block.
    pub queue: GlobalQueue,
    /// The chain.
    pub chain: BlockChain,
    /// Every cluster's log, by cluster.
    pub logs: Vec<ClusterLog>,
    /// Finalized blocks by height, each with a finalization of its own.
    pub blocks: BTreeMap<Height, FinalizedBlock>,
    /// Batches by digest.
    pub batches: BTreeMap<Digest, CertifiedBatch>,
    /// Outcomes by height.
    pub outcomes: BTreeMap<Height, BlockOutcome>,
    /// Heights that have no finalization of their own: their proof leads over the block above.
    pub without_finalization: BTreeSet<Height>,
    numbers: BTreeMap<(String, ClusterId), u64>,
}

impl Ledger {
    /// Height 0.
    #[must_use]
    pub fn new(fleet: Fleet) -> Self {
        let queue = GlobalQueue::genesis(&fleet.genesis);
        Self {
            chain: BlockChain::new(&fleet, queue.state_root()),
            logs: queue.clusters().map(|id| ClusterLog::new(&fleet, id)).collect(),
            queue,
            fleet,
            blocks: BTreeMap::new(),
            batches: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            without_finalization: BTreeSet::new(),
            numbers: BTreeMap::new(),
        }
    }

    /// The next number of `author` through `cluster`.
    pub fn number(&mut self, author: &str, cluster: ClusterId) -> u64 {
        let number = self.numbers.entry((author.to_owned(), cluster)).or_default();
        *number += 1;
        *number
    }

    /// A submission under the author's next number.
    pub fn submit(&mut self, author: &str, cluster: ClusterId, scope: Scope, task: &Task) -> SignedEntry {
        let number = self.number(author, cluster);
        self.fleet.submit(author, cluster, number, scope, task)
    }

    /// An entry under the author's next number.
    pub fn entry(&mut self, author: &str, cluster: ClusterId, scope: Scope, action: Action) -> SignedEntry {
        let number = self.number(author, cluster);
        self.fleet.entry(author, cluster, number, scope, action)
    }

    /// The next batch of a cluster, every entry granted, at the global height of this state.
    pub fn granted(&mut self, cluster: ClusterId, entries: Vec<SignedEntry>) -> CertifiedBatch {
        let log = &mut self.logs[cluster.0 as usize];
        log.global_height = self.queue.height();
        log.granted(&self.fleet, entries)
    }

    /// The next batch of a cluster with the given verdicts, at the global height of this state.
    pub fn batch(&mut self, cluster: ClusterId, rows: Vec<(Verdict, SignedEntry)>) -> CertifiedBatch {
        let log = &mut self.logs[cluster.0 as usize];
        log.global_height = self.queue.height();
        log.batch(&self.fleet, rows)
    }

    /// A sign of life of a cluster, at the global height of this state.
    pub fn beat(&mut self, cluster: ClusterId) -> CertifiedBatch {
        self.granted(cluster, Vec::new())
    }

    /// Executes and finalizes the next block, `step_ms` after the last.
    pub fn block(&mut self, batches: Vec<CertifiedBatch>, step_ms: u64) -> BlockOutcome {
        let block = self.chain.block(&self.fleet, &batches, step_ms);
        self.batches.extend(
            batches
                .into_iter()
                .map(|batch| (batch.digest(&self.fleet.chain), batch)),
        );
        self.execute(block)
    }

    /// Executes and finalizes a block made by [`BlockChain`].
    pub fn execute(&mut self, block: Block) -> BlockOutcome {
        let finalized = self.fleet.finalize(block);
        let proof = finalized
            .clone()
            .verify(&self.fleet.chain, &self.fleet.set)
            .expect("a quorum signed");
        let bodies: Vec<Option<OrderedBatch<'_>>> = finalized
            .block
            .refs
            .iter()
            .enumerate()
            .map(|(at, named)| {
                let batch = self.batches.get(&named.digest)?;
                OrderedBatch::finalized(&proof, at, &batch.header, &batch.entries)
            })
            .collect();
        let outcome = self
            .queue
            .apply(&finalized.block, &bodies, &mut VerifyEach)
            .expect("the test's block follows the chain");
        self.queue.check_invariants();
        let height = outcome.height;
        self.chain
            .roots
            .insert(height, (outcome.state_root, outcome.outcome_root));
        self.blocks.insert(height, finalized);
        self.outcomes.insert(height, outcome.clone());
        outcome
    }
}

impl ProofSource for Ledger {
    fn finalized(&self, height: Height) -> Option<FinalizedBlock> {
        let mut finalized = self.blocks.get(&height)?.clone();
        if self.without_finalization.contains(&height) {
            let above = self.finalized(height.next())?;
            let mut links = vec![Link::Header(above.block.header)];
            links.extend(above.proof.above.into_inner());
            finalized.proof = ProofOfFinality {
                above: links.try_into().ok()?,
                finalization: above.proof.finalization,
            };
        }
        Some(finalized)
    }

    fn batch(&self, digest: &Digest) -> Option<CertifiedBatch> {
        self.batches.get(digest).cloned()
    }

    fn outcomes(&self, height: Height) -> Option<Vec<Outcome>> {
        self.outcomes.get(&height).map(|outcome| outcome.outcomes.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
