//! Which device may speak which protocol with which. Judged by the registry, right after the handshake.
//!
//! | protocol | who dials | whom |
//! |---|---|---|
//! | raft, cluster | drone with `cluster.vote` | drone of the same cluster with `cluster.vote` |
//! | bft | validator with `bft.vote` | validator with `bft.vote` |
//! | feed | drone of a cluster, or validator | the other of the two |
//! | op | operator with `op.read` or `task.submit` | drone or validator |

use common::{
    genesis::{Kind, RoleSet},
    registry::{Member, Status},
    wire::frame::{FrameKind, Protocol},
};

use super::Role;

/// Whether `dialler` may speak `protocol` with `acceptor`.
#[must_use]
pub fn may_speak(protocol: Protocol, dialler: &Member, acceptor: &Member) -> bool {
    if dialler.status != Status::Active || acceptor.status != Status::Active || dialler.id == acceptor.id {
        return false;
    }
    let votes_in_cluster = |m: &Member| m.kind == Kind::Drone && m.may(RoleSet::CLUSTER_VOTE);
    let votes_globally = |m: &Member| m.kind == Kind::Validator && m.may(RoleSet::BFT_VOTE);
    let is_in_a_cluster = |m: &Member| m.kind == Kind::Drone && m.cluster.is_some();
    match protocol {
        Protocol::Raft | Protocol::Cluster => {
            votes_in_cluster(dialler)
                && votes_in_cluster(acceptor)
                && dialler.cluster.is_some()
                && dialler.cluster == acceptor.cluster
        }
        Protocol::Bft => votes_globally(dialler) && votes_globally(acceptor),
        Protocol::Feed => {
            is_in_a_cluster(dialler) && acceptor.kind == Kind::Validator
                || dialler.kind == Kind::Validator && is_in_a_cluster(acceptor)
        }
        Protocol::Op => {
            dialler.kind == Kind::Operator
                && (dialler.may(RoleSet::OP_READ) || dialler.may(RoleSet::TASK_SUBMIT))
                && matches!(acceptor.kind, Kind::Drone | Kind::Validator)
        }
    }
}

/// Whether both sides of a connection may call: one connection then serves both ways.
#[must_use]
pub fn is_symmetric(protocol: Protocol) -> bool {
    match protocol {
        Protocol::Raft | Protocol::Cluster | Protocol::Bft => true,
        Protocol::Feed | Protocol::Op => false,
    }
}

/// The protocols a process accepts.
#[must_use]
pub(crate) fn accepted_protocols(role: Role) -> &'static [Protocol] {
    match role {
        Role::Drone => &[Protocol::Raft, Protocol::Cluster, Protocol::Feed, Protocol::Op],
        Role::Validator => &[Protocol::Bft, Protocol::Feed, Protocol::Op],
        Role::Client => &[],
    }
}

/// The device kinds that may run a process of this role.
#[must_use]
pub(crate) fn is_kind_of(role: Role, kind: Kind) -> bool {
    match role {
        Role::Drone => kind == Kind::Drone,
        Role::Validator => kind == Kind::Validator,
        Role::Client => true,
    }
}

/// Order of sending on one connection: what keeps a quorum alive goes first, bulk last.
#[must_use]
pub(crate) fn priority(kind: FrameKind, body_len: usize) -> i32 {
    match kind {
        FrameKind::RaftVote | FrameKind::RaftTransfer | FrameKind::Linearize => 20,
        // An append without entries is a heartbeat.
        FrameKind::RaftAppend if body_len <= 1024 => 20,
        FrameKind::Vote | FrameKind::Certificate | FrameKind::Bundle => 20,
        FrameKind::Proposal | FrameKind::Attest => 10,
        FrameKind::RaftAppend
        | FrameKind::RaftLane
        | FrameKind::Forward
        | FrameKind::Join
        | FrameKind::BatchNotice
        | FrameKind::SubmitBatch => 0,
        FrameKind::Operate => 0,
        FrameKind::FetchBlock | FrameKind::FetchBatch | FrameKind::FeedBatch => -10,
        FrameKind::RaftSnapshot | FrameKind::Sync | FrameKind::Follow => -20,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quic::tests::fleet::Fleet;

    #[test]
    fn matrix_is_the_table_and_nothing_more() {
        let fleet = Fleet::new();
        let registry = fleet.registry.load();
        let m = |label: &str| registry.by_label(label).unwrap();
        for (protocol, dialler, acceptor, want) in [
            (Protocol::Raft, "c1-1", "c1-2", true),
            (Protocol::Cluster, "c1-2", "c1-1", true),
            (Protocol::Raft, "c1-1", "c1-1", false),
            (Protocol::Raft, "c1-1", "c2-1", false),
            (Protocol::Cluster, "c2-1", "c1-1", false),
            (Protocol::Raft, "op1", "c1-1", false),
            (Protocol::Raft, "v1", "c1-1", false),
            (Protocol::Bft, "v1", "v2", true),
            (Protocol::Bft, "c1-1", "v1", false),
            (Protocol::Bft, "op1", "v1", false),
            (Protocol::Feed, "c1-1", "v1", true),
            (Protocol::Feed, "v1", "c1-1", true),
            (Protocol::Feed, "v1", "v2", false),
            (Protocol::Feed, "c1-1", "c1-2", false),
            (Protocol::Feed, "op1", "v1", false),
            (Protocol::Op, "op1", "c1-1", true),
            (Protocol::Op, "op1", "v1", true),
            (Protocol::Op, "c1-1", "v1", false),
            (Protocol::Op, "v1", "c1-1", false),
            (Protocol::Op, "op2", "c1-1", false),
        ] {
            assert_eq!(
                may_speak(protocol, m(dialler), m(acceptor)),
                want,
                "{protocol:?} {dialler} -> {acceptor}"
            );
        }
    }

    #[test]
    fn heartbeat_overtakes_a_full_append() {
        assert!(priority(FrameKind::RaftAppend, 100) > priority(FrameKind::RaftAppend, 100_000));
        assert!(priority(FrameKind::RaftAppend, 100) > priority(FrameKind::RaftLane, 100));
        assert!(priority(FrameKind::RaftLane, 100) > priority(FrameKind::RaftSnapshot, 100));
    }
}
