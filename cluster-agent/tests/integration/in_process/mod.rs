//! Whole clusters in one process, in virtual time.

mod bad_submissions;
mod buffer;
mod cluster;
mod downlink;
mod finality;
mod island;
mod log_lines;
mod lost_disks;
mod modes;
pub mod support;
