//! Real agents on loopback: killed, cut off, on disks that fail.

mod damage;
mod disks;
mod harness;
mod kills;
mod lost_disks;
mod partition;
mod partitions;
mod refusals;
mod snapshots;
