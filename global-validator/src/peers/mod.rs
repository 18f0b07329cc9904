//! The other validators (`muster-bft/1`): what is pushed to them, asked of them, and answered to them.
//!
//! * [`outgoing`]: a bounded queue and a sender per peer.
//! * [`fetch`]: blocks and batches by digest, finalized blocks by height.
//! * [`round_trip`]: how long that takes.
//! * [`door`]: what comes in; signatures are checked here, off the driver's task.

pub mod door;
pub mod fetch;
pub mod outgoing;
pub mod round_trip;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use common::{
    codec::encode,
    ids::{DeviceId, NodeIdx},
    registry::Registry,
    validator_set::ValidatorSet,
    wire::{bft::BftMessage, frame::FrameKind},
};
use global_core::Recipient;

pub use door::PeerDoor;
use outgoing::{Outbound, Outgoing};

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
                for link in self.iter() {
                    link.outgoing.push(outbound.clone());
                }
            }
            Recipient::One(idx) => {
                if let Some(link) = self.get(idx) {
                    link.outgoing.push(outbound);
                }
            }
        }
    }
}

fn outbound(message: &BftMessage) -> Outbound {
    let (kind, body): (FrameKind, Bytes) = match message {
        BftMessage::Proposal(proposal) => (FrameKind::Proposal, encode(proposal.as_ref()).into()),
        BftMessage::Vote(vote) => (FrameKind::Vote, encode(vote).into()),
        BftMessage::Certificate(certificate) => (FrameKind::Certificate, encode(certificate).into()),
        BftMessage::BatchNotice(notice) => (FrameKind::BatchNotice, encode(notice).into()),
    };
    Outbound { kind, body }
}
