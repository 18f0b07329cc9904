//! Deterministic simulation of whole fleets: the real shells of both tiers in virtual time, from one seed.
//!
//! * [`run`]: one run of a plan, and what it came to.
//! * [`fleet`]: which processes run, and how they are started, killed and paused.
//! * [`faults`]: cuts, bad links, bad disks, wrong clocks, crashes, pauses.
//! * [`byzantine`]: processes in an enemy's hands.
//! * [`scenario`]: faults as a story, from a file.
//! * [`schedule`]: a run as a file, and the smallest one that still fails. [`page`], [`timeline`]: a run for people.
//! * [`workload`]: what the fleet is asked to do, and what it acknowledged.
//! * [`witness`]: hears what happens and asks the [`checkers`], one for each invariant.
//! * [`runtime`]: tokio's current-thread runtime with paused time, under openraft's `AsyncRuntime`.
//! * [`ports`]: what a shell touches instead of the machine: clock, tasks, entropy, messages, disk.
//! * [`mutants`]: rules broken on purpose, to show that the checkers see it.
//! * [`cli`]: the command line.
//! * [`trace`]: the hash that two runs of one seed must share.
//!
//! # Why it is deterministic
//! One thread; virtual time that moves only when nothing can run; every random number from the seed;
//! no order taken from a hash table. What the shells may not use is banned by `clippy.toml`.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)
)]

mod batch_disk;
pub mod byzantine;
pub mod checkers;
pub mod cli;
pub mod faults;
pub mod fleet;
pub mod guard_disk;
mod machine;
pub mod mutants;
pub mod page;
pub mod ports;
pub mod random;
pub mod run;
pub mod runtime;
pub mod scenario;
pub mod schedule;
pub mod timeline;
pub mod trace;
pub mod witness;
pub mod workload;
