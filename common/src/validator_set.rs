//! The validators of one epoch, their weights, and who leads which view.

use serde::Serialize;

use crate::{
    codec::to_bytes,
    crypto::{AdmittedKey, sha256},
    genesis::{Genesis, padded},
    ids::{Digest, Epoch, NodeIdx, View},
};

/// Slots in which weights are expressed for taking turns.
const SCHEDULE_SLOTS_MAX: u64 = 1_024;

/// A validator in a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Validator {
    /// Its device.
    pub device: NodeIdx,
    /// Its consensus key.
    pub key: AdmittedKey,
    /// Its voting weight, above 0.
    pub weight: u64,
    /// Its region.
    pub region: crate::codec::Label,
}

/// All validators of an epoch, ascending by device. Bits of certificates are positions here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ValidatorSet {
    epoch: Epoch,
    members: Vec<Validator>,
    total_weight: u64,
    schedule: Vec<u8>,
}

impl ValidatorSet {
    /// The set of epoch 0.
    ///
    /// # Panics
    /// If `genesis` was not validated: decoding it does.
    #[must_use]
    pub fn from_genesis(genesis: &Genesis) -> Self {
        let members = genesis
            .validators
            .iter()
            .map(|v| Validator {
                device: v.device,
                key: AdmittedKey::admit(&v.consensus_key).expect("a decoded genesis file holds admitted keys"),
                weight: v.weight,
                region: v.region.clone(),
            })
            .collect();
        Self::new(Epoch(0), members)
    }

    /// A set of `members`, ascending by device, each of weight above 0 and below 2^32.
    ///
    /// # Panics
    /// If the members are not so.
    #[must_use]
    pub fn new(epoch: Epoch, members: Vec<Validator>) -> Self {
        assert!(!members.is_empty() && members.len() <= crate::limits::VALIDATORS_MAX);
        assert!(members.is_sorted_by(|a, b| a.device < b.device));
        assert!(members.iter().all(|v| (1..=u64::from(u32::MAX)).contains(&v.weight)));
        let total_weight = members.iter().map(|v| v.weight).sum();
        let schedule = schedule(&members, total_weight);
        Self {
            epoch,
            members,
            total_weight,
            schedule,
        }
    }

    /// The epoch.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Ascending by device.
    #[must_use]
    pub fn members(&self) -> &[Validator] {
        &self.members
    }

    /// Sum of all weights.
    #[must_use]
    pub fn total_weight(&self) -> u64 {
        self.total_weight
    }

    /// Position of a device, its bit in certificates.
    #[must_use]
    pub fn position(&self, device: NodeIdx) -> Option<usize> {
        self.members.binary_search_by_key(&device, |v| v.device).ok()
    }

    /// Consensus keys by position.
    #[must_use]
    pub fn keys(&self) -> Vec<Option<&AdmittedKey>> {
        self.members.iter().map(|v| Some(&v.key)).collect()
    }

    /// Who leads `view`: weighted round robin, a function of (epoch, view) only.
    #[must_use]
    pub fn leader(&self, view: View) -> NodeIdx {
        let turn = (view.0 + self.epoch.0) % self.schedule.len() as u64;
        self.members[usize::from(self.schedule[turn as usize])].device
    }

    /// Identity of the set: keys, weights, regions.
    #[must_use]
    pub fn digest(&self) -> Digest {
        #[derive(Serialize)]
        struct Row<'a>(NodeIdx, [u8; 32], u64, &'a str);
        let rows: Vec<Row<'_>> = self
            .members
            .iter()
            .map(|v| Row(v.device, v.key.to_bytes(), v.weight, v.region.as_str()))
            .collect();
        sha256(&[&padded(b"muster/v1/validator-set"), &to_bytes(&(self.epoch, rows))])
    }
}

/// Smooth weighted round robin over at most [`SCHEDULE_SLOTS_MAX`] turns; everybody has a turn.
///
/// In each turn every member gains its share, the one with the most leads and pays the whole: turns
/// of a heavy member are spread, not bunched.
fn schedule(members: &[Validator], total: u64) -> Vec<u8> {
    let slots = if total <= SCHEDULE_SLOTS_MAX {
        total
    } else {
        SCHEDULE_SLOTS_MAX
    };
    let share = |v: &Validator| (v.weight * slots / total).max(1) as i64;
    let common = members.iter().map(share).fold(0, gcd);
    let shares: Vec<i64> = members.iter().map(|v| share(v) / common).collect();
    let whole: i64 = shares.iter().sum();
    let mut credit = vec![0i64; members.len()];
    (0..whole)
        .map(|_| {
            for (credit, share) in credit.iter_mut().zip(&shares) {
                *credit += share;
            }
            // The first of those with the most: ties go to the lowest position.
            let leader = (0..credit.len())
                .rev()
                .max_by_key(|i| credit[*i])
                .expect("a set is not empty");
            credit[leader] -= whole;
            leader as u8
        })
        .collect()
}

fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::ConsensusKey;

    fn set(weights: &[u64]) -> ValidatorSet {
        let members = (0u8..)
            .zip(weights)
            .map(|(i, weight)| Validator {
                device: NodeIdx(u32::from(i)),
                key: AdmittedKey::admit(&ConsensusKey::from_seed(&[i + 1; 32]).public()).unwrap(),
                weight: *weight,
                region: Default::default(),
            })
            .collect();
        ValidatorSet::new(Epoch(0), members)
    }

    fn turns(set: &ValidatorSet, views: u64) -> Vec<u64> {
        let mut turns = vec![0; set.members().len()];
        for view in 1..=views {
            turns[set.position(set.leader(View(view))).unwrap()] += 1;
        }
        turns
    }

    #[test]
    fn equal_weights_take_turns() {
        let set = set(&[7, 7, 7, 7]);
        assert_eq!(turns(&set, 400), [100; 4]);
        let leaders: Vec<_> = (1..=4).map(|v| set.leader(View(v))).collect();
        assert_eq!(leaders.iter().collect::<std::collections::BTreeSet<_>>().len(), 4);
    }

    #[test]
    fn heavy_members_lead_more_often_and_nobody_is_left_out() {
        let heavy = set(&[1, 1, 1, 3, 3]);
        assert_eq!(turns(&heavy, 900), [100, 100, 100, 300, 300]);
        let extreme = set(&[1, u64::from(u32::MAX), u64::from(u32::MAX), u64::from(u32::MAX)]);
        assert!(turns(&extreme, 2_048).iter().all(|turns| *turns > 0));
    }

    #[test]
    fn digest_depends_on_weight() {
        assert_ne!(set(&[1, 1, 1, 1]).digest(), set(&[1, 1, 1, 2]).digest());
    }
}
