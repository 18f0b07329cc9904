//! Tier 2, pure: the BFT core, block building, execution with lagging roots, sync.
//!
//! A validator gives [`GlobalCore`] what came in ([`Input`]) and performs what comes out
//! ([`Effect`]). No clock, no IO, no randomness, no threads: time is an argument,
//! effects are data. The dependency list in `Cargo.toml` is the proof.
//!
//! **The contract of effects:** they are performed in order; a `Persist` is durable before any later
//! send; if a persist fails the process stops.
//!
//! Read in this order: [`consensus`] (views, votes, certificates), [`ledger`] (the tree of blocks and
//! its execution), [`batch_pool`] and [`block_builder`] (what a leader proposes), [`sync`] (how a
//! validator that was down comes back), [`guard`] (what a key never signs), [`verify`] (who may speak),
//! [`core`] (all of them together).
#![forbid(unsafe_code)]
// An error here is a block refused or a machine stopped: rare, so its size is of no matter.
#![allow(clippy::result_large_err)]

pub mod batch_pool;
pub mod block_builder;
pub mod clock;
pub mod config;
pub mod consensus;
pub mod core;
pub mod effect;
#[cfg(test)]
mod fuzz;
pub mod guard;
pub mod ledger;
mod mutant;
pub mod sync;
pub mod verify;

pub use crate::{
    clock::{Instant, Now},
    config::{Config, ConfigError, Timing},
    core::{GlobalCore, Holdings, Input, Recovered},
    effect::{Draft, Effect, Evidence, HaltReason, Recipient, Record},
    guard::{Guard, GuardRecord},
    ledger::{Cursor, Execution, Ledger, Roots},
    verify::{Checked, CheckedMessage, Verifier, VerifyError},
};
