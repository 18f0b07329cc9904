//! What a member pledges by an answer: what its disk must hold when the answer leaves.
//!
//! A snapshot that was taken over is no part of this: its frames do not say where it stands in the log.
//!
//! For whoever checks members from outside. A member's own answers wait for its disk in openraft and in
//! [`log`](super::log).

use common::ids::{LogIndex, RaftNodeId, Term};

use super::{
    codec::{AppendReply, AppendRequest, BallotReply, BallotRequest, Body, WireLogId, WireVote, decode},
    network::RaftRpc,
};

/// What must outlive a loss of power once the answer was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pledge {
    /// The vote: the term, who is to lead in it, and whether that one was elected. A greater one will do.
    pub vote: (Term, RaftNodeId, bool),
    /// The log up to this entry, named by its term, leader and index, as long as the vote is no greater: a later leader may have
    /// it replaced.
    pub entry: Option<(Term, RaftNodeId, LogIndex)>,
}

impl Pledge {
    fn new(vote: WireVote, entry: Option<WireLogId>) -> Self {
        Self {
            vote: (vote.term, vote.candidate, vote.is_committed),
            entry: entry.map(|id| (id.term, id.leader, id.index)),
        }
    }
}

/// What a member pledged that was asked `request` and said `answer`, as they crossed the wire without the frame around them and
/// without the name of the member. `None` if it pledged nothing, and for bytes that are neither.
#[must_use]
pub fn pledge_of(kind: RaftRpc, request: &[u8], answer: &[u8]) -> Option<Pledge> {
    let (0, reply) = answer.split_first()? else {
        return None;
    };
    match kind {
        RaftRpc::Append => {
            let reply = read(reply)?;
            if !matches!(reply, AppendReply::Success | AppendReply::PartialSuccess(_)) {
                return None;
            }
            let request: AppendRequest = read(request)?;
            let last = request.entries.last().map(|entry| entry.id);
            let entry = match reply {
                AppendReply::PartialSuccess(id) => id,
                _ => last.or(request.previous),
            };
            Some(Pledge::new(request.vote, entry))
        }
        RaftRpc::Vote => {
            let reply: BallotReply = read(reply)?;
            let request: BallotRequest = read(request)?;
            reply.is_granted.then(|| Pledge::new(request.vote, None))
        }
        RaftRpc::PreVote | RaftRpc::Snapshot | RaftRpc::TransferLeader => None,
    }
}

fn read<T: Body>(bytes: &[u8]) -> Option<T> {
    decode(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            codec::{WireEntry, WirePayload, encode},
            network::encode_answer,
            server::RpcRefusal,
        },
        *,
    };

    const LEADER: RaftNodeId = RaftNodeId(3);

    fn vote(is_committed: bool) -> WireVote {
        WireVote {
            term: Term(5),
            candidate: LEADER,
            is_committed,
        }
    }

    fn id(index: u64) -> WireLogId {
        WireLogId {
            term: Term(4),
            leader: LEADER,
            index: LogIndex(index),
        }
    }

    /// What is pledged by answering `reply` to an append of so many entries above index 7.
    fn of_append(entries: u64, reply: AppendReply) -> Option<Pledge> {
        let entry = |index| WireEntry {
            id: id(index),
            payload: WirePayload::Blank,
        };
        let entries: Vec<_> = (8..8 + entries).map(entry).collect();
        let request = AppendRequest {
            vote: vote(true),
            previous: Some(id(7)),
            previous_chain: None,
            entries: entries.try_into().unwrap(),
            committed: None,
        };
        let answer = encode_answer(Ok(encode(reply)));
        pledge_of(RaftRpc::Append, &encode(request), &answer)
    }

    #[test]
    fn who_takes_an_append_pledges_its_leader_and_its_last_entry() {
        let up_to = |index| Some((Term(4), LEADER, LogIndex(index)));
        let pledged = of_append(2, AppendReply::Success).unwrap();
        assert_eq!(pledged.vote, (Term(5), LEADER, true));
        assert_eq!(pledged.entry, up_to(9));
        assert_eq!(
            of_append(0, AppendReply::Success).unwrap().entry,
            up_to(7),
            "a heartbeat"
        );
        let partly = AppendReply::PartialSuccess(Some(id(8)));
        assert_eq!(of_append(2, partly).unwrap().entry, up_to(8));
        assert_eq!(of_append(2, AppendReply::Conflict), None);
        assert_eq!(of_append(2, AppendReply::HigherVote(vote(false))), None);
    }

    #[test]
    fn who_grants_a_vote_pledges_it_and_who_refuses_pledges_nothing() {
        let told = |kind, is_granted| {
            let request = BallotRequest {
                vote: vote(false),
                last: None,
                is_transfer: false,
            };
            let reply = BallotReply {
                vote: vote(false),
                is_granted,
                last: None,
            };
            pledge_of(kind, &encode(request), &encode_answer(Ok(encode(reply))))
        };
        let granted = told(RaftRpc::Vote, true).unwrap();
        assert_eq!((granted.vote, granted.entry), ((Term(5), LEADER, false), None));
        assert_eq!(told(RaftRpc::Vote, false), None);
        assert_eq!(told(RaftRpc::PreVote, true), None, "nothing is written for it");
        let refusal = encode_answer(Err(RpcRefusal::Quarantined));
        assert_eq!(pledge_of(RaftRpc::Vote, &[], &refusal), None);
        assert_eq!(pledge_of(RaftRpc::Append, b"no request", b"no answer"), None);
    }
}
