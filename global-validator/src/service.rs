//! The one service that the transport calls: it sends each request to the door of its protocol.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use common::wire::frame::{FrameKind, Protocol, Refusal, RefusalCode};
use transport::ports::{BoxFuture, Peer, Service};

use crate::{api::Api, intake::Intake, peers::PeerDoor};

/// A service that can be given to a transport before the validator behind it exists: until then it
/// refuses with `NotNow`.
#[derive(Clone, Default)]
pub struct Door(Arc<OnceLock<Doors>>);

impl Door {
    /// Closed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    pub(crate) fn open(&self, doors: Doors) {
        assert!(self.0.set(doors).is_ok(), "a door is opened by one validator, once");
    }
}

/// The doors of one validator.
pub(crate) struct Doors {
    pub(crate) feed: Intake,
    pub(crate) bft: PeerDoor,
    pub(crate) op: Api,
}

impl Service for Door {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        let doors = self.0.clone();
        Box::pin(async move {
            let Some(doors) = doors.get() else {
                return Err(Refusal::new(RefusalCode::NotNow, "starting"));
            };
            match peer.protocol {
                Protocol::Feed => doors.feed.handle(peer.idx, kind, body).await,
                Protocol::Bft => doors.bft.handle(peer.idx, kind, body).await,
                Protocol::Op => doors.op.handle(peer.idx, body).await,
                Protocol::Raft | Protocol::Cluster => Err(Refusal::new(
                    RefusalCode::Denied,
                    "a validator does not speak this protocol",
                )),
            }
        })
    }
}
