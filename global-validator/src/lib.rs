//! Tier 2, shell and binary: a validator's disk, its doors, and the one task that drives the core.
//!
//! The core (`global-core`) decides; this crate does. Read in the order of the journey: [`intake`]
//! (batches come in) -> [`batch_store`] -> [`driver`] (proposes and votes through the core) ->
//! [`guard`] (what is signed, and what was durable before) -> [`peers`] -> [`execution`] ->
//! [`block_store`] -> [`intake`] again (blocks go down) and [`api`] (operators ask).
#![forbid(unsafe_code)]

pub mod api;
pub mod batch_store;
pub mod block_store;
pub mod block_time;
pub mod config;
pub mod driver;
pub mod executed;
pub mod execution;
pub mod exit;
pub mod guard;
pub mod halt;
pub mod identity;
pub mod intake;
pub mod outcomes;
pub mod peers;
pub mod ports;
pub mod prove;
pub mod segments;
pub mod service;
pub mod stopwatch;
pub mod verified_entries;

mod start;
#[cfg(test)]
mod test_ports;

pub use crate::{
    exit::Stop,
    ports::Ports,
    service::Door,
    start::{Setup, Validator},
};
