//! validity: what is finalized was signed by its author and attested by a quorum of its cluster's roster.
//!
//! Computed here once more, with the genesis file alone: neither the quorum nor a verdict of the shells is used. A
//! signature is good because its signer made it (but for one of sixteen), or else because it verifies here.

use std::{collections::BTreeMap, sync::Arc};

use common::{
    batch::{BatchHeader, BatchItem, CertifiedBatch},
    crypto::{
        AdmittedKey,
        preimage::{Tag, preimage},
        sha256,
    },
    entry::SignedEntry,
    genesis::{FaultModel, Genesis},
    ids::{BatchSeq, ClusterId},
    registry::Registry,
    roster::Roster,
    verdict::Verdict,
};

use super::{Checker, Observation};

/// Knows the keys of the fleet, and who signed for each cluster from which batch on.
pub struct Validity {
    genesis: Arc<Genesis>,
    registry: Registry,
    rosters: BTreeMap<ClusterId, BTreeMap<BatchSeq, Roster>>,
}

impl Validity {
    /// For the devices of `genesis`.
    #[must_use]
    pub fn new(genesis: Arc<Genesis>) -> Self {
        let registry = Registry::from_genesis(&genesis);
        let clusters = (0..).map(ClusterId).take(genesis.clusters.len());
        let founding = |cluster| Some((cluster, [(BatchSeq(0), genesis.founding_roster(cluster)?)].into()));
        let rosters = clusters.filter_map(founding).collect();
        Self {
            genesis,
            registry,
            rosters,
        }
    }

    fn check(&self, batch: &CertifiedBatch) -> Result<(), String> {
        let header = &batch.header;
        let rosters = self.rosters.get(&header.cluster);
        let in_force = rosters.and_then(|rosters| rosters.range(..=header.seq).next_back());
        let roster = in_force
            .map(|(_, roster)| roster.clone())
            .filter(|roster| roster.digest() == header.roster)
            .ok_or("it names another roster than the one in force")?;
        let (signed, needed) = (self.attested_by(batch, header, &roster), self.quorum(header, &roster));
        if signed < needed {
            return Err(format!("{signed} members of its roster attested it, {needed} must"));
        }
        let foreign = batch.entries.iter().find_map(|row| match &row.item {
            BatchItem::Author(entry) if !self.is_authors(entry) => Some(row.index),
            _ => None,
        });
        match foreign {
            Some(index) => Err(format!("its author did not sign the entry of index {index}")),
            None => Ok(()),
        }
    }

    /// The roster that signs the batches behind this one, if its rows change it.
    fn changed_roster(&self, batch: &CertifiedBatch) -> Result<Option<Roster>, String> {
        let header = &batch.header;
        let mut changes = batch.entries.iter().filter_map(|row| match &row.item {
            BatchItem::Roster(change) if row.verdict == Verdict::Granted => Some(&change.roster),
            _ => None,
        });
        let Some(next) = changes.next_back() else {
            return Ok(None);
        };
        let rosters = self.rosters.get(&header.cluster);
        let in_force = rosters.and_then(|rosters| rosters.range(..=header.seq).next_back());
        let (_, before) = in_force.ok_or("its cluster has no roster")?;
        // Devices neither join nor leave, and an id that was replaced never signs again.
        let mut pairs = before.members.iter().zip(&next.members);
        let is_newer = before.members.len() == next.members.len()
            && pairs.all(|(old, new)| old.raft.idx() == new.raft.idx() && old.raft <= new.raft);
        if !is_newer || next.digest() != header.next_roster {
            return Err("its rows lead to a roster that cannot be the next".into());
        }
        Ok(Some(next.clone()))
    }

    /// Members of the roster whose signatures verify.
    fn attested_by(&self, batch: &CertifiedBatch, header: &BatchHeader, roster: &Roster) -> usize {
        let message = preimage(Tag::Batch, self.registry.chain(), header);
        let positions = batch.attestations.positions(roster.members.len()).unwrap_or_default();
        let pairs = positions.into_iter().zip(&batch.attestations.signatures);
        let is_good = |position: usize, signature| {
            let member = &roster.members[position];
            let device = self.registry.by_idx(member.raft.idx());
            let key = device.and_then(|device| device.keys.get(member.key_version.0 as usize));
            key.is_some_and(|key: &AdmittedKey| key.has_signed(&message, signature))
        };
        pairs
            .filter(|(position, signature)| is_good(*position, signature))
            .count()
    }

    /// `ceil((m + f + 1) / 2)`.
    fn quorum(&self, header: &BatchHeader, roster: &Roster) -> usize {
        let members = roster.members.len();
        let faulty = match self.genesis.clusters[header.cluster.0 as usize].fault_model {
            FaultModel::Crash => 0,
            FaultModel::Byzantine => (members - 1) / 3,
        };
        (members + faulty + 2) / 2
    }

    fn is_authors(&self, entry: &SignedEntry) -> bool {
        let header = &entry.header;
        let key = self.registry.key(&header.author, header.key_version);
        header.payload_hash == sha256(&[&entry.payload])
            && key.is_some_and(|key| key.has_signed(&header.preimage(self.registry.chain()), &entry.signature))
    }
}

impl Checker for Validity {
    fn name(&self) -> &'static str {
        "validity"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Ordered { height, batch } = seen else {
            return Ok(());
        };
        let (cluster, seq) = (batch.header.cluster, batch.header.seq);
        let changed = self.check(batch).and_then(|()| self.changed_roster(batch));
        let changed = changed.map_err(|why| format!("block {height} has batch {seq} of {cluster}: {why}"))?;
        if let Some(next) = changed {
            self.rosters.entry(cluster).or_default().insert(seq.next(), next);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::{
        batch::RosterChange,
        ids::RaftNodeId,
        task::Scope,
        testing::{ClusterLog, Fleet, task},
    };

    use super::{super::*, *};

    fn told(spoil: impl FnOnce(&mut CertifiedBatch)) -> Result<(), String> {
        let fleet = Fleet::dev();
        let entry = fleet.submit("op1", ClusterId(0), 1, Scope::Fleet, &task("k"));
        let mut batch = ClusterLog::new(&fleet, ClusterId(0)).granted(&fleet, vec![entry]);
        spoil(&mut batch);
        let seen = Observation::Ordered {
            height: Height(1),
            batch: Arc::new(batch),
        };
        judge(Validity::new(Arc::new(fleet.genesis)), &[(0, seen)])
    }

    /// A batch that puts `c1-2` on its second disk, or `foreign` into the roster, and the next, signed by `by`.
    fn told_of_change(foreign: bool, by_old: bool) -> Result<(), String> {
        let fleet = Fleet::new(2, 3, 4);
        let mut log = ClusterLog::new(&fleet, ClusterId(0));
        let mut members = log.roster.members.to_vec();
        members[1].raft = RaftNodeId::new(members[1].raft.idx(), 2);
        if foreign {
            members[2].raft = RaftNodeId::new(fleet.idx("c2-1"), 1);
        }
        let old = log.roster.clone();
        let roster = Roster {
            members: members.try_into().unwrap(),
        };
        let change = BatchItem::Roster(RosterChange { roster });
        let first = log.batch_of(&fleet, vec![(Verdict::Granted, change)]);
        if by_old {
            log.roster = old;
        }
        let second = log.beat(&fleet);
        let ordered = |height, batch| Observation::Ordered {
            height: Height(height),
            batch: Arc::new(batch),
        };
        let history = [(0, ordered(1, first)), (1, ordered(2, second))];
        judge(Validity::new(Arc::new(fleet.genesis)), &history)
    }

    #[test]
    fn roster_that_a_batch_changes_signs_from_the_next_one_on() {
        assert_eq!(told_of_change(false, false), Ok(()));
        assert!(
            told_of_change(false, true)
                .unwrap_err()
                .contains("another roster than the one in force")
        );
        assert!(told_of_change(true, false).unwrap_err().contains("cannot be the next"));
    }

    #[test]
    fn honest_batch_is_fine() {
        assert_eq!(told(|_| ()), Ok(()));
    }

    #[test]
    fn batch_with_too_few_attestations_is_caught() {
        let wrong = told(|batch| {
            let first = batch.attestations.signatures[0];
            batch.attestations = common::certificate::Signers::gather(3, &[(0, first)]);
        });
        assert!(wrong.unwrap_err().contains("attested"), "one of three is no quorum");
    }

    #[test]
    fn entry_that_its_author_did_not_sign_is_caught() {
        let wrong = told(|batch| {
            let mut rows = batch.entries.to_vec();
            if let BatchItem::Author(entry) = &mut rows[0].item {
                entry.signature = common::crypto::Signature::from_bytes(&[1; 64]);
            }
            batch.entries = rows.try_into().unwrap();
        });
        assert!(wrong.unwrap_err().contains("did not sign"));
    }
}
