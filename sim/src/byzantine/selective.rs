//! Speaks to some and not to others, and late to the rest: whom it favours changes.

use bytes::Bytes;
use common::{ids::NodeIdx, wire::frame::FrameKind};

use super::{Actor, Hand};
use crate::{ports::Leaves, random::Stream};

/// How long it favours the same ones.
const PERIOD_US: u64 = 1_500_000;
/// Longest delay.
const LATE_US: u64 = 800_000;

/// See the module.
#[derive(Default)]
pub struct Selective {
    seed: Option<u64>,
}

impl Actor for Selective {
    fn sends(&mut self, hand: &mut Hand, to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        let seed = *self.seed.get_or_insert_with(|| hand.random.next_u64());
        let period = hand.now_us / PERIOD_US;
        match Stream::split(seed, period << 32 | u64::from(to.0)).between(0, 3) {
            0 => {
                hand.did("not sent to this one");
                Leaves::Never
            }
            1 if !kind.is_lane() => {
                hand.did("sent late to this one");
                Leaves::Late(hand.random.between(0, LATE_US))
            }
            _ => Leaves::As(body.clone()),
        }
    }
}
