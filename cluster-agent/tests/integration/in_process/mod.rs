//! Whole clusters in one process, in virtual time.

mod bad_submissions;
mod buffer;
mod cluster;
mod island;
mod modes;
pub mod support;
