//! Another leader on request: to a voter that follows well, and only from the leader itself.
//!
//! # Rules
//! * Upon a leader without a quorum, or another member: refused; nothing was sent.
//! * Upon no name: the voter that acknowledged lately and holds most of the log.
//! * Upon a name: refused unless it is a voter that acknowledged lately.
//! * Writes in flight go on: the next leader is asked with the same bytes.

use common::{
    ids::RaftNodeId,
    wire::{
        frame::{Refusal, RefusalCode},
        op::OpAnswer,
    },
};

use crate::{
    raft::{PeerStatus, RaftStatus},
    shell::Shell,
};

/// Whom to hand over to.
fn choose(status: &RaftStatus, to: Option<RaftNodeId>, acked_age_ms_max: u64) -> Result<RaftNodeId, Refusal> {
    let is_lively = |peer: &&PeerStatus| {
        status.voters.contains(&peer.id) && peer.acked_age_ms.is_some_and(|age| age <= acked_age_ms_max)
    };
    let mut lively = status.peers.iter().filter(is_lively);
    match to {
        Some(to) if !status.voters.contains(&to) => {
            Err(Refusal::new(RefusalCode::Invalid, "it is no voter of this cluster"))
        }
        Some(to) => lively
            .find(|peer| peer.id == to)
            .map(|peer| peer.id)
            .ok_or_else(|| Refusal::new(RefusalCode::NotNow, "it does not answer the leader now")),
        None => lively
            .max_by_key(|peer| (peer.matched, std::cmp::Reverse(peer.acked_age_ms), peer.id))
            .map(|peer| peer.id)
            .ok_or_else(|| Refusal::new(RefusalCode::NotNow, "no other voter answers the leader now")),
    }
}

impl Shell {
    /// Hands the leadership over and says who leads within two election timeouts.
    ///
    /// # Errors
    /// [`Refusal`]: this member does not lead, or nobody fit follows. Nothing was changed.
    pub(crate) async fn transfer_leader(&self, to: Option<RaftNodeId>) -> Result<OpAnswer, Refusal> {
        let status = self.raft.status();
        if status.leader != Some(self.me.raft) {
            return Err(Refusal::new(
                RefusalCode::NotNow,
                "this agent does not lead its cluster",
            ));
        }
        if self.is_cut_off().await {
            return Err(Refusal::new(RefusalCode::NotNow, "this agent leads without a quorum"));
        }
        if to != Some(self.me.raft) {
            let to = choose(&status, to, self.raft_config.election_timeout_ms_max)?;
            self.raft.transfer_leader(to).await;
            let changes = self.raft.leader_changes();
            let another = async {
                loop {
                    let seen = changes.version();
                    if self.raft.status().leader.is_some_and(|leader| leader != self.me.raft) {
                        return;
                    }
                    changes.changed(seen).await;
                }
            };
            // If it did not come to that, the answer shows who leads still.
            let _ = self.within(self.read_deadline(), another).await;
        }
        let status = self.raft.status();
        Ok(OpAnswer::Leader {
            leader: status.leader,
            term: status.term,
        })
    }
}

#[cfg(test)]
mod tests {
    use common::ids::LogIndex;

    use super::*;

    fn peer(id: u64, matched: u64, acked_age_ms: Option<u64>) -> PeerStatus {
        PeerStatus {
            id: RaftNodeId(id),
            matched: LogIndex(matched),
            acked_age_ms,
        }
    }

    fn status() -> RaftStatus {
        RaftStatus {
            voters: vec![RaftNodeId(1), RaftNodeId(2), RaftNodeId(3), RaftNodeId(4)],
            peers: vec![
                peer(2, 10, Some(40)),
                peer(3, 12, Some(90)),
                peer(4, 99, Some(5_000)),
                peer(5, 99, Some(1)),
            ],
            ..RaftStatus::of(RaftNodeId(1))
        }
    }

    #[test]
    fn voter_that_answers_and_holds_most_is_chosen() {
        assert_eq!(
            choose(&status(), None, 600),
            Ok(RaftNodeId(3)),
            "4 is silent, 5 has no vote"
        );
        let mut lonely = status();
        lonely.peers.clear();
        assert_eq!(choose(&lonely, None, 600).unwrap_err().code, RefusalCode::NotNow);
    }

    #[test]
    fn named_member_must_be_a_voter_that_answers() {
        assert_eq!(choose(&status(), Some(RaftNodeId(2)), 600), Ok(RaftNodeId(2)));
        let code = |id| choose(&status(), Some(RaftNodeId(id)), 600).unwrap_err().code;
        assert_eq!((code(4), code(5)), (RefusalCode::NotNow, RefusalCode::Invalid));
    }
}
