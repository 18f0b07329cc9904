//! What this validator shows of itself: the state after its last final block, and where it is in the protocol.

use std::sync::Arc;

use common::{
    global_queue::GlobalQueue,
    ids::{Epoch, View},
};
use global_core::Holdings;
use transport::watch::Watch;

/// The state of the chain at its executed final tip, and the validator's place in the protocol.
#[derive(Clone, Debug)]
pub struct Executed {
    /// The state; copies share what they do not change.
    pub queue: Arc<GlobalQueue>,
    /// Epoch that votes.
    pub epoch: Epoch,
    /// View this validator is in.
    pub view: View,
    /// Whether it still listens before its first vote.
    pub is_listening: bool,
    /// How much its core held when it came here.
    pub holdings: Holdings,
}

/// The newest [`Executed`], written by the driver alone.
pub type ExecutedWatch = Watch<Arc<Executed>>;
