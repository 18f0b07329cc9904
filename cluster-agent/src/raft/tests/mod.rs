//! Members in one process: the adapter through its public door, and requests no honest peer sends.

mod cancelled;
mod cluster;
mod conformance;
mod harness;
mod hostile;
mod hostile_entries;
mod hostile_votes;
mod lanes;
mod reads;
mod snapshots;
mod target;
