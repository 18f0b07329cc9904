//! QUIC once for both tiers, and the ports through which both shells touch the machine.
//!
//! * [`ports`]: what a shell needs from outside: messages, clock, tasks, entropy, disk. The simulator
//!   implements them too; there is no other way in or out of a shell.
//! * [`watch`]: a value that tasks can wait on, woken in order of waiting.
#![forbid(unsafe_code)]

pub mod local;
pub mod ports;
pub mod watch;
