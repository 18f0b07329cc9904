//! validity: what is finalized was signed by its author and attested by a quorum of its cluster's roster.
//!
//! Computed here once more, with the genesis file alone: neither the quorum nor a verdict of the shells is used, and
//! no signature is good because somebody found it so before.

use std::sync::Arc;

use common::{
    batch::{BatchHeader, BatchItem, CertifiedBatch},
    crypto::{
        AdmittedKey,
        preimage::{Tag, preimage},
        sha256,
    },
    entry::SignedEntry,
    genesis::{FaultModel, Genesis},
    registry::Registry,
    roster::Roster,
};

use super::{Checker, Observation};

/// Knows the keys of the fleet.
pub struct Validity {
    genesis: Arc<Genesis>,
    registry: Registry,
}

impl Validity {
    /// For the devices of `genesis`.
    #[must_use]
    pub fn new(genesis: Arc<Genesis>) -> Self {
        let registry = Registry::from_genesis(&genesis);
        Self { genesis, registry }
    }

    fn check(&self, batch: &CertifiedBatch) -> Result<(), String> {
        let header = &batch.header;
        let roster = self.genesis.founding_roster(header.cluster);
        // A change of roster is not made in these runs: the founding roster attests everything.
        let roster = roster
            .filter(|roster| roster.digest() == header.roster)
            .ok_or("it names a roster that was never in force")?;
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

    /// Members of the roster whose signatures verify.
    fn attested_by(&self, batch: &CertifiedBatch, header: &BatchHeader, roster: &Roster) -> usize {
        let message = preimage(Tag::Batch, self.registry.chain(), header);
        let positions = batch.attestations.positions(roster.members.len()).unwrap_or_default();
        let pairs = positions.into_iter().zip(&batch.attestations.signatures);
        let is_good = |position: usize, signature| {
            let member = &roster.members[position];
            let device = self.registry.by_idx(member.raft.idx());
            let key = device.and_then(|device| device.keys.get(member.key_version.0 as usize));
            key.is_some_and(|key: &AdmittedKey| key.verifies_afresh(&message, signature))
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
            && key.is_some_and(|key| key.verifies_afresh(&header.preimage(self.registry.chain()), &entry.signature))
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
        self.check(batch)
            .map_err(|why| format!("block {height} has batch {seq} of {cluster}: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use common::{
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
