//! One key on two hosts (Bano et al. 2020, "Twins: BFT systems made robust"): nothing is rewritten, the same code
//! runs twice, each half on its own disk, and each hears others than its twin.
//!
//! Who hears whom is decided in [`crate::ports::Sides`].

use bytes::Bytes;
use common::{ids::NodeIdx, wire::frame::FrameKind};

use super::{Actor, Hand};
use crate::{
    ports::{Leaves, Sides},
    random::Stream,
};

/// Behind the name of the second one.
pub const SUFFIX: &str = "-twin";
/// Numbers of second processes begin here, above those of all devices.
pub const FIRST_ID: u32 = 1_000_000;

/// Sides that last 0.2 to 2.5 s.
#[must_use]
pub fn sides(seed: u64) -> Sides {
    Sides {
        seed,
        period_us: Stream::split(seed, 0x7369_6465).between(200_000, 2_500_000),
    }
}

/// One of the two. Its mask hides the other one's signatures.
#[derive(Default)]
pub struct Twin;

impl Actor for Twin {
    fn sends(&mut self, hand: &mut Hand, _to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        match kind {
            FrameKind::Vote => hand.did("vote"),
            FrameKind::Proposal => hand.did("proposal"),
            _ => {}
        }
        Leaves::As(body.clone())
    }
}
