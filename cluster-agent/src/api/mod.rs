//! What an agent answers: writes, reads, status; over the network and through the drone's local socket.
//!
//! * [`enter`]: a signed entry on its way into the log, forwarded once.
//! * [`read`]: linearizable, local with an honest age, or final.
//! * `read_round`: one confirmation of the leader for many reads.
//! * [`op`]: operators and gateways, over the network.
//! * [`transfer`]: another leader on request.
//! * [`local`]: the drone's own software, for which the agent signs.

pub mod enter;
pub mod local;
pub mod op;
pub mod read;
pub(crate) mod read_round;
pub mod transfer;
