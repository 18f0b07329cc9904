//! The way up: closed batches are attested, certified and handed to the validators.
//!
//! In: the outbox of the replicated state, attestations of members. Out: `Cut` and `Beat` proposals,
//! attestations, certified batches. Called by: the agent, one task each.
//!
//! * [`cut`]: the leader closes what waits, and gives a sign of life where nothing does.
//! * [`attest`]: this member signs each batch of its own durable log, once.
//! * [`submit`]: whoever holds a certified batch sees to it that the validators get it.
//! * `usual`: how long finality takes, by which a member judges whether the leader holds a batch back.
//!
//! # Rules
//! * Any member may collect attestations and submit. The leader does at once, the others when a batch
//!   is not final after twice the usual time: a leader cannot censor, and cannot take a batch with it.
//! * The outbox says what is missing. Nothing about progress is remembered across a restart, so a new
//!   leader resends from the last final batch, and the validators execute each once.

pub mod attest;
pub mod cut;
pub mod submit;
mod usual;
