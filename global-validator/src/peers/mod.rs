//! The other validators (`muster-bft/1`): what is pushed to them, asked of them, and answered to them.
//!
//! * [`outgoing`]: a bounded queue and a sender per peer; what waits together travels together.
//! * [`fetch`]: blocks and batches by digest, finalized blocks by height. [`wants`]: who is asked for which.
//! * [`round_trip`]: how long that takes.
//! * [`door`]: what comes in; signatures are checked here, off the driver's task.

pub mod door;
pub mod fetch;
pub mod outgoing;
pub mod round_trip;
pub mod wants;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use common::{
    codec::encode,
    ids::{DeviceId, NodeIdx},
    registry::Registry,
    validator_set::ValidatorSet,
    wire::bft::{BftMessage, BundledKind, Certificate},
};
use global_core::Recipient;

pub use door::PeerDoor;
use outgoing::{Haste, Outbound, Outgoing};

/// One other validator.
#[derive(Clone)]
pub struct PeerLink {
    /// Its number.
    pub idx: NodeIdx,
    /// Its identity.
    pub device: DeviceId,
    /// What waits to be sent to it.
    pub outgoing: Outgoing,
}

/// All other validators of the set.
#[derive(Clone)]
pub struct Peers(Arc<BTreeMap<NodeIdx, PeerLink>>);

impl Peers {
    /// The members of `set` but `me`.
    #[must_use]
    pub fn new(registry: &Registry, set: &ValidatorSet, me: NodeIdx) -> Self {
        let links = set
            .members()
            .iter()
            .filter(|validator| validator.device != me)
            .filter_map(|validator| {
                let member = registry.by_idx(validator.device)?;
                let link = PeerLink {
                    idx: member.idx,
                    device: member.id,
                    outgoing: Outgoing::default(),
                };
                Some((member.idx, link))
            });
        Self(Arc::new(links.collect()))
    }

    /// In order of their numbers.
    pub fn iter(&self) -> impl Iterator<Item = &PeerLink> {
        self.0.values()
    }

    /// By number.
    #[must_use]
    pub fn get(&self, idx: NodeIdx) -> Option<&PeerLink> {
        self.0.get(&idx)
    }

    /// Queues `message`; encoded once for all.
    pub fn send(&self, to: Recipient, message: &BftMessage) {
        let outbound = outbound(message);
        match to {
            Recipient::All => {
                let haste = haste_of(message);
                for link in self.iter() {
                    link.outgoing.push(outbound.clone(), haste);
                }
            }
            Recipient::One(idx) => {
                if let Some(link) = self.get(idx) {
                    link.outgoing.push(outbound, Haste::Urgent);
                }
            }
        }
    }
}

/// Who has the votes for a block needs their certificate no more: sent on to all, it only helps who missed some. It goes
/// along with my next vote, which for a notarization is the finalize vote that is being made durable.
fn haste_of(message: &BftMessage) -> Haste {
    match message {
        BftMessage::Certificate(Certificate::Notarization(_) | Certificate::Finalization(_)) => Haste::Patient,
        _ => Haste::Urgent,
    }
}

fn outbound(message: &BftMessage) -> Outbound {
    let (kind, body): (BundledKind, Bytes) = match message {
        BftMessage::Proposal(proposal) => (BundledKind::Proposal, encode(proposal.as_ref()).into()),
        BftMessage::Vote(vote) => (BundledKind::Vote, encode(vote).into()),
        BftMessage::Certificate(certificate) => (BundledKind::Certificate, encode(certificate).into()),
        BftMessage::BatchNotice(notice) => (BundledKind::BatchNotice, encode(notice).into()),
    };
    Outbound { kind, body }
}
