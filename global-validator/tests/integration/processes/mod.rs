//! Real validators on loopback: killed, on disks that fail, on files that they must refuse.

mod chain;
mod disks;
mod harness;
mod refusals;
