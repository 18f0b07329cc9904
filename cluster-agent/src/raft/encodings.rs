//! Append requests that were encoded a moment ago: followers that stand alike get the same one, encoded and held once.
//!
//! # Rules
//! * Two requests are equal if their heads are: the chain at the last entry covers every entry up to it.
//! * What is kept is bounded in number and in bytes; a single request may be longer.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use bytes::Bytes;
use common::ids::Digest;

use super::codec::{WireLogId, WireVote};

/// Requests kept. Followers that answer sooner are some ahead.
const KEPT_MAX: usize = 4;
/// Their bytes.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

/// Everything that a request with entries depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RequestHead {
    pub vote: WireVote,
    pub previous: Option<WireLogId>,
    pub previous_chain: Option<Digest>,
    pub committed: Option<WireLogId>,
    pub entries: usize,
    /// The last entry, and the chain there.
    pub last: (WireLogId, Digest),
}

/// Shared by the lanes of one member to all others.
#[derive(Default)]
pub(super) struct Encodings(Mutex<VecDeque<(RequestHead, Bytes)>>);

impl Encodings {
    /// The encoding of the request with this head.
    pub fn get_or<E>(&self, head: RequestHead, encode: impl FnOnce() -> Result<Bytes, E>) -> Result<Bytes, E> {
        // Guarded sections leave the queue whole.
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, body)) = kept.iter().find(|(known, _)| *known == head) {
            return Ok(body.clone());
        }
        let body = encode()?;
        kept.push_back((head, body.clone()));
        while kept.len() > 1 && (kept.len() > KEPT_MAX || bytes_of(&kept) > KEPT_BYTES_MAX) {
            kept.pop_front();
        }
        Ok(body)
    }
}

fn bytes_of(kept: &VecDeque<(RequestHead, Bytes)>) -> usize {
    kept.iter().map(|(_, body)| body.len()).sum()
}

#[cfg(test)]
mod tests {
    use common::ids::{LogIndex, RaftNodeId, Term};

    use super::*;

    fn head(index: u64, chain: u8) -> RequestHead {
        let id = |index| WireLogId {
            term: Term(1),
            leader: RaftNodeId(1),
            index: LogIndex(index),
        };
        RequestHead {
            vote: WireVote {
                term: Term(1),
                candidate: RaftNodeId(1),
                is_committed: true,
            },
            previous: Some(id(index)),
            previous_chain: Some(Digest([9; 32])),
            committed: None,
            entries: 1,
            last: (id(index + 1), Digest([chain; 32])),
        }
    }

    /// The body that is sent under `head`, and whether it was encoded for it.
    fn sent(encodings: &Encodings, head: RequestHead, len: usize) -> (Bytes, bool) {
        let mut is_new = false;
        let body = encodings.get_or::<()>(head, || {
            is_new = true;
            Ok(vec![0; len].into())
        });
        (body.unwrap(), is_new)
    }

    #[test]
    fn followers_that_stand_alike_share_one_encoding_and_others_do_not() {
        let encodings = Encodings::default();
        let (first, _) = sent(&encodings, head(1, 1), 10);
        let (second, is_new) = sent(&encodings, head(1, 1), 10);
        assert!(!is_new && first.as_ptr() == second.as_ptr());
        let others = [
            head(2, 1),
            head(1, 2),
            RequestHead {
                entries: 2,
                ..head(1, 1)
            },
            RequestHead {
                committed: head(0, 1).previous,
                ..head(1, 1)
            },
            RequestHead {
                previous_chain: None,
                ..head(1, 1)
            },
        ];
        for other in others {
            assert!(sent(&encodings, other, 10).1, "{other:?}");
        }
    }

    #[test]
    fn what_is_kept_is_bounded_and_one_long_request_is_kept_all_the_same() {
        let encodings = Encodings::default();
        for index in 0..20 {
            sent(&encodings, head(index, 1), 10);
            assert!(encodings.0.lock().unwrap().len() <= KEPT_MAX);
        }
        sent(&encodings, head(20, 1), KEPT_BYTES_MAX + 1);
        assert_eq!(encodings.0.lock().unwrap().len(), 1);
        assert!(!sent(&encodings, head(20, 1), KEPT_BYTES_MAX + 1).1);
    }

    #[test]
    fn request_that_cannot_be_encoded_leaves_nothing() {
        let encodings = Encodings::default();
        assert_eq!(encodings.get_or(head(1, 1), || Err("too big")), Err("too big"));
        assert!(sent(&encodings, head(1, 1), 10).1);
    }
}
