//! Who listens to what leaves a device.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use common::{
    ids::{DeviceId, NodeIdx},
    wire::{bft::Bundle, frame::FrameKind},
};

use super::SimNetwork;
use crate::ports::twins::Host;

/// Who sends a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    /// The device, by its key.
    pub idx: NodeIdx,
    /// Whether it is in an enemy's hands.
    pub is_hacked: bool,
}

/// Told of what leaves devices, before anything happens to it on the way.
pub trait Listener: Send + Sync {
    /// A request leaves. Of a device with a tap: what the tap lets out. What comes in a bundle is told one by one.
    fn hear_request(&self, from: Sender, kind: FrameKind, body: &Bytes);

    /// An honest member of a cluster answers another one's request of Raft, alone or in a lane.
    fn hear_answer(&self, from: NodeIdx, kind: FrameKind, request: &[u8], answer: &[u8]);
}

impl SimNetwork {
    /// Tells `listener` of everything from now on.
    pub fn listen(&self, listener: Arc<dyn Listener>) {
        self.lock().listener = Some(listener);
    }

    /// Tells the listener of a request that leaves `device`, if it leaves honest or hacked hands, whichever is asked for.
    pub(super) fn overhear(&self, device: &DeviceId, of_hacked: bool, kind: FrameKind, body: &Bytes) {
        if of_hacked && !self.is_tapped.load(Ordering::Relaxed) {
            return;
        }
        let (listener, sender) = {
            let state = self.lock();
            let (Some(listener), Some(known)) = (&state.listener, state.known.get(device)) else {
                return;
            };
            let sender = Sender {
                idx: known.idx,
                is_hacked: known.first.tap.is_some(),
            };
            (listener.clone(), sender)
        };
        if sender.is_hacked != of_hacked {
            return;
        }
        match unbundled(kind, body) {
            None => listener.hear_request(sender, kind, body),
            Some(messages) => messages
                .iter()
                .for_each(|(kind, body)| listener.hear_request(sender, *kind, body)),
        }
    }

    /// Tells the listener of an answer of Raft that leaves `device`, if that is honest.
    pub(in crate::ports) fn overhear_answer(&self, device: &DeviceId, kind: FrameKind, request: &[u8], answer: &[u8]) {
        let is_raft = matches!(kind, FrameKind::RaftAppend | FrameKind::RaftVote | FrameKind::RaftLane);
        if !is_raft || self.has_tap(device, Host::First) {
            return;
        }
        let (listener, idx) = {
            let state = self.lock();
            let (Some(listener), Some(known)) = (&state.listener, state.known.get(device)) else {
                return;
            };
            (listener.clone(), known.idx)
        };
        listener.hear_answer(idx, kind, request, answer);
    }
}

/// The messages of a bundle. `None` if it is none.
pub(super) fn unbundled(kind: FrameKind, body: &[u8]) -> Option<Vec<(FrameKind, Bytes)>> {
    let bundle: Bundle = (kind == FrameKind::Bundle).then(|| common::codec::decode(body).ok())??;
    let messages = bundle.messages.iter();
    Some(
        messages
            .map(|message| (message.kind.frame_kind(), Bytes::copy_from_slice(&message.body)))
            .collect(),
    )
}
