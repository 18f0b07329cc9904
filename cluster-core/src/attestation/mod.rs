//! Decides what this member signs, and when a batch is certified.
//!
//! In: closed batches of the own applied and fsynced state, attestations of others. Out: records to
//! persist, attestations to send, certified batches. Called by: the agent's uplink.
//!
//! # Rules
//! * Each member of a batch's roster signs every batch of its own applied and fsynced state, in order,
//!   unasked: [`AttestGuard::next`].
//! * Upon a batch that the guard has not signed: its record (founding, seq, digest, signature) is
//!   durable before the signature leaves the process.
//! * Upon a batch with the digest it signed before: the same signature again. With another digest:
//!   [`Decision::Quarantine`], and nothing is signed.
//! * Upon the final cursor: records at or below it go.
//! * Nothing is signed for a founding that was left.
//! * Upon an attestation of a roster's member, verified under its registered key: it counts once. A
//!   quorum makes a [`CertifiedBatch`](common::batch::CertifiedBatch). Whoever collects a quorum may submit.
//!
//! # Invariants
//! * attest-once: a device never signs two digests for one (founding, seq).
//!
//! # Why
//! Two quorums of `ceil((m + f + 1) / 2)` share an honest device; since it signs once, two conflicting
//! batches are never both certified. The guard lives outside the database, since a database that
//! reopens empty must not sign twice.

mod collector;
mod guard;

pub use collector::{AttestError, Collector};
pub use guard::{AttestGuard, Decision, GuardRecord, RecordError, ToSign};

#[cfg(test)]
mod tests;
