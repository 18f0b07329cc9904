//! Raft for a regional cluster: the only room that names openraft.
//!
//! In: commands to replicate, requests of peers. Out: [`ProposeOutcome`], [`RaftStatus`], applied
//! commands in the [`ReplicatedMachine`]. Ports: [`LogStore`](store::LogStore) (disk),
//! [`SnapshotStore`](store::snapshot::SnapshotStore), [`RaftLink`] (peers), [`AppendCheck`].
//!
//! ```text
//!   propose -> handle -> openraft core -> log -------> LogStore (one queue, group commit)
//!                          |      ^        |  chain
//!                          v      |        v
//!              RaftLink <- network server  machine -> ReplicatedMachine, SnapshotStore
//! ```
//!
//! # Rules
//! * Production and the simulator run this same code over other ports and another
//!   [`AsyncRuntime`]: time, tasks and randomness come from the runtime parameter.
//! * Every write has a deadline of ours and ends as committed, refused or unknown.
//! * openraft's fatal errors end the process: [`RaftHandle::fatal`].
//!
//! # Invariants
//! * raft-chain: equal chains mean equal logs; a fork is refused, never merged.
//! * vote-once: a Raft id belongs to one data directory and is never used again ([`store::identity`]).
//!
//! # Source
//! Ongaro 2014 (thesis), §3 log and elections, §6.4 reads, §9.6 pre-vote; openraft 0.10.

mod alarm;
mod codec;
mod config;
mod confirm;
pub mod conformance;
mod encodings;
mod handle;
mod lane;
mod log;
mod machine;
mod network;
mod on_the_way;
mod pipeline;
mod pledge;
mod propose;
mod server;
mod signal;
mod snapshot_data;
mod snapshot_file;
mod snapshot_policy;
mod snapshot_receiver;
mod status;
pub mod store;
mod types;

#[cfg(test)]
mod tests;

pub use alarm::{AlarmSink, RaftAlarm};
pub use codec::{COMMAND_BYTES_MAX, FORMAT_VERSION, MEMBERS_MAX, TooBig};
pub use config::{ConfigError, ConfigProblem, LinkProfile, RaftConfig};
pub use handle::{ChangeError, Founding, MembersChange, OpenError, RaftHandle, RaftPorts};
pub use machine::{Origin, ReplicatedMachine, RestoreError, RestoreJob, SnapshotJob};
pub(crate) use network::LINK_BYTES_PER_MS_MIN;
pub use network::{LinkError, REPLY_BYTES_MAX, RaftLink, RaftRpc, decode_answer, encode_answer};
pub use openraft_rt::AsyncRuntime;
pub use openraft_rt_tokio::TokioRuntime;
pub use pledge::{Pledge, pledge_of};
pub use propose::{ProposeOutcome, ProposeRefusal, ReadRefusal};
pub use server::{AppendCheck, RpcRefusal, TERM_JUMP_MAX};
pub use signal::Signal;
pub use snapshot_file::{SnapshotSink, SnapshotSource};
pub use status::{FatalReason, PeerStatus, RaftRole, RaftStatus};
pub use types::Member;
