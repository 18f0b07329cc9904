//! Sends again, to anybody and much later, what it heard or sent before.

use std::collections::VecDeque;

use bytes::Bytes;
use common::{ids::NodeIdx, wire::frame::FrameKind};

use super::{Actor, Hand};
use crate::ports::Leaves;

/// Requests that it remembers.
const KEPT_MAX: usize = 512;
/// Longest wait before one is sent again.
const LATER_US: u64 = 3_000_000;

/// See the module.
#[derive(Default)]
pub struct Replayer {
    kept: VecDeque<(FrameKind, Bytes)>,
}

impl Replayer {
    fn keep(&mut self, hand: &mut Hand, kind: FrameKind, body: Bytes) {
        // A lane's frames mean something only in their order.
        if kind.is_lane() || kind == FrameKind::Operate {
            return;
        }
        if self.kept.len() == KEPT_MAX {
            self.kept.pop_front();
        }
        self.kept.push_back((kind, body));
        if !hand.one_in(4) {
            return;
        }
        let at = hand.random.between(0, self.kept.len() as u64 - 1) as usize;
        let everybody = hand.everybody();
        if let (Some((kind, body)), Some(to)) = (self.kept.get(at).cloned(), hand.pick(&everybody)) {
            let after_us = hand.random.between(0, LATER_US);
            hand.did("sent again");
            hand.send_later(to, kind, body, after_us);
        }
    }
}

impl Actor for Replayer {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        self.keep(hand, kind, body.clone());
        Leaves::As(body.clone())
    }

    fn hears(&mut self, hand: &mut Hand, _from: NodeIdx, kind: FrameKind, body: &[u8]) {
        self.keep(hand, kind, Bytes::copy_from_slice(body));
    }
}
