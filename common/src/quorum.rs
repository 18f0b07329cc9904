//! The three quorum rules, in one place.
//!
//! | rule | who counts | needed |
//! |---|---|---|
//! | [`raft_quorum`] | voting members of a cluster | more than half |
//! | [`attestation_quorum`] | devices of a cluster's roster | `ceil((m + f + 1) / 2)` |
//! | [`bft_quorum`] | weight of validators | more than two thirds |
//!
//! # Why
//! Two attestation quorums share at least `f + 1` members, so two conflicting certified batches
//! would need an honest device that signed twice, which its guard refuses. Two BFT quorums share
//! more than a third of the weight, hence an honest validator.

use crate::{
    bug::{self, Bug},
    genesis::FaultModel,
};

/// Votes a Raft leader needs among `voters`.
#[must_use]
pub const fn raft_quorum(voters: usize) -> usize {
    voters / 2 + 1
}

/// Byzantine devices a roster of `members` withstands under `model`.
#[must_use]
pub const fn roster_faulty_max(members: usize, model: FaultModel) -> usize {
    match model {
        FaultModel::Crash => 0,
        FaultModel::Byzantine => members.saturating_sub(1) / 3,
    }
}

/// Attestations that certify a batch of a roster of `members` devices.
#[must_use]
pub fn attestation_quorum(members: usize, model: FaultModel) -> usize {
    (members + roster_faulty_max(members, model) + 1).div_ceil(2)
        - usize::from(bug::active(Bug::AttestationQuorumShort))
}

/// Whether `weight` out of `total` is a quorum of validators: more than two thirds.
#[must_use]
pub fn is_bft_quorum(weight: u64, total: u64) -> bool {
    weight >= bft_quorum(total)
}

/// Least weight that is a quorum of validators out of `total`.
#[must_use]
pub fn bft_quorum(total: u64) -> u64 {
    (2 * u128::from(total) / 3) as u64 + u64::from(!bug::active(Bug::QuorumOfHalf))
}

/// Whether `weight` out of `total` must hold an honest validator: at least one third.
#[must_use]
pub const fn holds_honest_validator(weight: u64, total: u64) -> bool {
    3 * weight as u128 >= total as u128 && weight > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestation_quorums_are_those_of_the_table() {
        let rows = [(3, 2), (4, 3), (5, 4), (6, 4), (7, 5), (9, 6)];
        for (members, quorum) in rows {
            assert_eq!(
                attestation_quorum(members, FaultModel::Byzantine),
                quorum,
                "m = {members}"
            );
        }
        assert_eq!(attestation_quorum(5, FaultModel::Crash), 3);
    }

    #[test]
    fn two_attestation_quorums_share_an_honest_device_and_the_faulty_cannot_block() {
        for model in [FaultModel::Byzantine, FaultModel::Crash] {
            for members in 1..=64 {
                let (q, f) = (attestation_quorum(members, model), roster_faulty_max(members, model));
                assert!(2 * q > members + f, "m = {members}: intersection too small");
                assert!(q <= members - f, "m = {members}: the faulty can block");
            }
        }
    }

    #[test]
    fn two_bft_quorums_share_more_than_a_third() {
        for total in 1..500u64 {
            let q = bft_quorum(total);
            assert!(is_bft_quorum(q, total) && !is_bft_quorum(q - 1, total), "total {total}");
            assert!(holds_honest_validator(2 * q - total, total), "total {total}");
        }
        assert!(is_bft_quorum(u64::MAX, u64::MAX));
    }

    #[test]
    fn raft_quorum_is_more_than_half() {
        assert_eq!([1, 2, 3, 4, 5, 7].map(raft_quorum), [1, 2, 2, 3, 3, 4]);
    }
}
