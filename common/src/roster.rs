//! The roster of a cluster: the devices whose attestations count. It is not Raft's voter set.

use serde::{Deserialize, Serialize};

use crate::{
    codec::{BoundedVec, to_bytes},
    crypto::sha256,
    genesis::padded,
    ids::{Digest, KeyVersion, NodeIdx, RaftNodeId},
    limits,
};

/// One device in a roster, with the data directory and key it attests with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RosterMember {
    /// Device and data directory.
    pub raft: RaftNodeId,
    /// Key that signs.
    pub key_version: KeyVersion,
}

/// Members in ascending order; positions are the bits of a batch certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Roster {
    /// Ascending by device; a device appears once.
    pub members: BoundedVec<RosterMember, { limits::ROSTER_MAX }>,
}

impl Roster {
    /// What a batch header names a roster by.
    #[must_use]
    pub fn digest(&self) -> Digest {
        sha256(&[&padded(b"muster/v1/roster"), &to_bytes(self)])
    }

    /// Position of a Raft member, or `None` if it does not attest.
    #[must_use]
    pub fn position(&self, raft: RaftNodeId) -> Option<usize> {
        self.members.iter().position(|member| member.raft == raft)
    }

    /// Whether the members are ascending and each device appears once.
    #[must_use]
    pub fn is_ordered(&self) -> bool {
        !self.members.is_empty() && self.members.is_sorted_by(|a, b| a.raft.idx() < b.raft.idx())
    }

    /// The devices, ascending.
    pub fn devices(&self) -> impl Iterator<Item = NodeIdx> + '_ {
        self.members.iter().map(|member| member.raft.idx())
    }
}
