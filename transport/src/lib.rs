//! QUIC once for both tiers, and the ports through which both shells touch the machine.
//!
//! * [`ports`]: what a shell needs from outside: messages, clock, tasks, entropy, disk. The simulator
//!   implements them too; there is no other way in or out of a shell.
//! * [`identity`], [`certificate`], [`verifier`]: who a process is and whom it admits.
//! * [`quic`]: the messages port over QUIC. [`machine`]: the other ports on Linux.
//! * [`memory`]: the ports inside of one process, for tests and as the simulator's base.
//! * `relay` (feature `relay`): cuts and impairs links between processes of dev fleets and tests.
//! * [`log_limit`]: how many log lines a peer may cause.
//! * [`watch`]: a value that tasks can wait on, woken in order of waiting.
#![forbid(unsafe_code)]

pub mod base32;
pub mod certificate;
pub mod identity;
pub mod local;
pub mod log_limit;
pub mod machine;
pub mod memory;
pub mod ports;
pub mod quic;
#[cfg(feature = "relay")]
pub mod relay;
pub mod verifier;
pub mod watch;
