//! Decides whether an entry may enter this cluster's log here and now.
//!
//! In: signed entries, log entries of a leader, the applied state, the time. Out: enter, a known
//! answer, or a refusal. Called by: the agent's API (admission) and Raft (static check before append).
//!
//! # Rules
//! * *Static*: encoding, size, chain, a signature under a registered key. A follower refuses an append
//!   only for what no registry can repair; an entry under an unknown key is appended and judged in
//!   `apply`.
//! * *Dynamic*: the question that `apply` will ask is asked of the current state, so a refusal here
//!   gives the reason that `apply` would give. `apply` decides once more.
//! * A number used before with the same content: the answer it was given then; nothing enters. Below the
//!   window of remembered answers the task's own history says whether the entry took effect; what has no
//!   effect there can have none any more, and is refused.
//! * The outbox has a quota in bytes: `Submit` stops at 75 %, `Claim` at 85 %, entries of holders,
//!   `Requeue` and the rest at 100 %. `Renew` is in no batch and always passes.
//! * Open tasks and their bytes are bounded, so that a snapshot can always carry them: beyond it no
//!   `Submit` enters, and everything that ends tasks does.
//! * Each author has a rate. A refusal says when to come back.
//!
//! # Why
//! What is in the log must be carried until it is final; so what may enter is bounded, and what frees
//! tasks is let in longest. Admission is no input of `apply`: two members may admit differently, and
//! the log still gives them one state.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use common::{
    batch::RosterChange,
    bug::{self, Bug},
    crypto::{AdmittedKey, sha256},
    entry::{Action, LogEntry, SignatureOracle, SignedEntry, StaticFault, StaticVerdict},
    ids::{ChainId, ClusterId, DeviceId, Digest, RaftNodeId},
    number_stream::Lookup,
    registry::Registry,
    validator_set::ValidatorSet,
    verdict::{Answer, Reason, Verdict},
};

use crate::{
    global_view::{AdvanceError, check_part_static},
    queue::ClusterQueue,
};

/// Remembers pairs of signature and key that were found good, at most a fixed number; the oldest goes.
///
/// It remembers exactly "this signature over these bytes verifies under this key". Whether the key is
/// the author's is looked up in the state each time. A bad signature is not remembered: whoever sends
/// it pays for the check.
#[derive(Clone, Debug)]
pub struct VerifiedCache {
    entries_max: usize,
    good: BTreeSet<Digest>,
    order: VecDeque<Digest>,
}

impl VerifiedCache {
    /// An empty cache of at most `entries_max` pairs.
    #[must_use]
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries_max,
            good: BTreeSet::new(),
            order: VecDeque::new(),
        }
    }

    /// Pairs remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.good.len()
    }

    /// Whether nothing is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.good.is_empty()
    }
}

impl SignatureOracle for VerifiedCache {
    fn is_signed_by(&mut self, entry: &SignedEntry, chain: &ChainId, key: &AdmittedKey) -> bool {
        let message = entry.preimage(chain);
        let name = sha256(&[&entry.signature.to_bytes(), &key.to_bytes(), &message]);
        if self.good.contains(&name) {
            return true;
        }
        if !key.verifies(&message, &entry.signature) {
            return false;
        }
        if self.entries_max > 0 && self.good.insert(name) {
            self.order.push_back(name);
            if self.order.len() > self.entries_max
                && let Some(oldest) = self.order.pop_front()
            {
                self.good.remove(&oldest);
            }
        }
        true
    }
}

/// Why an append is refused: no registry can repair it, so the leader is faulty.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendFault {
    /// A bad entry.
    #[error("{0}")]
    Entry(#[from] StaticFault),
    /// A bad roster.
    #[error("the roster is not ordered, or names a device of another cluster")]
    Roster,
    /// A bad part of a block.
    #[error("{0}")]
    Advance(#[from] AdvanceError),
}

/// What static checks need of the state. Refresh it when the registry or the validators change.
#[derive(Clone, Debug)]
pub struct StaticChecker {
    cluster: ClusterId,
    registry: Registry,
    set: ValidatorSet,
}

impl StaticChecker {
    /// From the state that the log proves so far.
    #[must_use]
    pub fn of(queue: &ClusterQueue) -> Self {
        Self {
            cluster: queue.cluster(),
            registry: queue.registry().clone(),
            set: queue.validators().clone(),
        }
    }

    /// Whether an entry may be appended to this cluster's log, as far as that is the same for ever.
    ///
    /// # Errors
    /// [`AppendFault`].
    pub fn check(&self, entry: &LogEntry, oracle: &mut impl SignatureOracle) -> Result<(), AppendFault> {
        match entry {
            LogEntry::Author(entry) => match entry.clone().check_with(&self.registry, oracle) {
                StaticVerdict::Good(_) | StaticVerdict::UnknownKey => Ok(()),
                StaticVerdict::Bad(fault) => Err(fault.into()),
            },
            LogEntry::Roster(RosterChange { roster }) => {
                let is_foreign = roster.devices().any(|idx| {
                    self.registry
                        .by_idx(idx)
                        .is_some_and(|device| device.cluster != Some(self.cluster))
                });
                if roster.is_ordered() && !is_foreign {
                    Ok(())
                } else {
                    Err(AppendFault::Roster)
                }
            }
            LogEntry::GlobalAdvance(part) => {
                Ok(check_part_static(part, self.cluster, self.registry.chain(), &self.set)?)
            }
            LogEntry::Cut { .. } | LogEntry::Beat { .. } | LogEntry::RegistryNotice(_) => Ok(()),
        }
    }
}

/// Tokens of one author.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    millitokens: u64,
    at_us: u64,
}

/// A rate per author. Bounded by the registry: only registered authors are counted.
#[derive(Clone, Debug)]
pub struct Quota {
    per_second: u32,
    burst: u32,
    buckets: BTreeMap<DeviceId, Bucket>,
}

impl Quota {
    /// `per_second` entries per author in the long run, `burst` at once.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        Self {
            per_second,
            burst,
            buckets: BTreeMap::new(),
        }
    }

    /// Takes one token of `author` at `now_us`.
    ///
    /// # Errors
    /// Milliseconds until there is one.
    pub fn take(&mut self, author: &DeviceId, now_us: u64) -> Result<(), u64> {
        let full = u64::from(self.burst) * 1_000;
        let bucket = self.buckets.entry(*author).or_insert(Bucket {
            millitokens: full,
            at_us: now_us,
        });
        let gained = u128::from(now_us.saturating_sub(bucket.at_us)) * u128::from(self.per_second) / 1_000;
        if gained > 0 {
            bucket.millitokens = u64::try_from(gained).map_or(full, |gained| full.min(bucket.millitokens + gained));
            bucket.at_us = now_us;
        }
        match bucket.millitokens.checked_sub(1_000) {
            Some(left) => {
                bucket.millitokens = left;
                Ok(())
            }
            None if self.per_second == 0 => Err(u64::MAX),
            None => Err((1_000 - bucket.millitokens).div_ceil(u64::from(self.per_second))),
        }
    }
}

/// Limits of admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Bytes of rows that are not final, open batch included.
    pub outbox_bytes_max: u64,
    /// Open tasks of the cluster; beyond it no `Submit` enters.
    pub open_tasks_max: u64,
    /// Bytes of what a snapshot carries for this cluster alone; beyond it no `Submit` enters.
    pub state_bytes_max: u64,
    /// Entries per second and author.
    pub entries_per_second: u32,
    /// Entries at once per author.
    pub entries_burst: u32,
}

/// An entry that may be proposed, or whose outcome is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// Propose it.
    Enter,
    /// It is in the log: this is its answer.
    Known(Answer),
}

/// What is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The outbox, for this kind of entry.
    Outbox {
        /// Bytes in it.
        used: u64,
        /// Bytes up to which this kind may enter.
        max: u64,
    },
    /// The state: more open tasks, or more bytes of them, than a snapshot should carry.
    State {
        /// Open tasks.
        tasks: u64,
        /// Bytes.
        bytes: u64,
    },
    /// The author's rate.
    Author {
        /// Worth trying again after this time.
        retry_after_ms: u64,
    },
}

impl Full {
    /// The word for `Overloaded { what }`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Full::Outbox { .. } => "outbox",
            Full::State { .. } => "state",
            Full::Author { .. } => "author",
        }
    }
}

/// Why an entry does not enter. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AdmitError {
    /// By a rule; the same bytes will never enter while the state is as it is.
    #[error("{0}")]
    Rejected(Reason),
    /// By a static rule; the detail is for the local log.
    #[error("{0}")]
    Static(#[from] StaticFault),
    /// A bounded queue is full; worth trying again.
    #[error("overloaded: {0:?}")]
    Overloaded(Full),
}

impl AdmitError {
    /// The decision shown to the author, if it is one.
    #[must_use]
    pub fn verdict(&self) -> Option<Verdict> {
        match self {
            Self::Rejected(reason) => Some(Verdict::Rejected(*reason)),
            Self::Static(_) => Some(Verdict::Rejected(Reason::Malformed)),
            Self::Overloaded(_) => None,
        }
    }
}

/// Decides what enters here.
#[derive(Clone, Debug)]
pub struct Admission {
    limits: AdmissionLimits,
    quota: Quota,
}

impl Admission {
    /// With full buckets.
    #[must_use]
    pub fn new(limits: AdmissionLimits) -> Self {
        Self {
            limits,
            quota: Quota::new(limits.entries_per_second, limits.entries_burst),
        }
    }

    /// Whether `entry` may be proposed now. `leader` is the member that would append it.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn admit(
        &mut self,
        queue: &ClusterQueue,
        leader: RaftNodeId,
        entry: &SignedEntry,
        oracle: &mut impl SignatureOracle,
        now_us: u64,
    ) -> Result<Admitted, AdmitError> {
        // Cheap checks first. The signature comes before the rate, so that nobody uses up another's.
        entry.check_shape()?;
        if entry.header.cluster != queue.cluster() {
            return Err(AdmitError::Rejected(Reason::WrongCluster));
        }
        let known = queue.registry().key(&entry.header.author, entry.header.key_version);
        let key = *known.ok_or(AdmitError::Rejected(Reason::UnknownKey))?;
        if !oracle.is_signed_by(entry, queue.chain_id(), &key) {
            return Err(StaticFault::BadSignature.into());
        }
        let id = entry.id(queue.chain_id());
        let is_renewal = matches!(entry.header.action, Action::Renew { .. });
        if !is_renewal {
            match queue.lookup(entry, id) {
                Lookup::Fresh => {}
                Lookup::Repeated(answer) => return Ok(Admitted::Known(answer)),
                Lookup::Conflict => return Err(AdmitError::Rejected(Reason::Conflict)),
                // Its author may never have heard that it was accepted, and asks again after many others.
                Lookup::OutsideWindow => {
                    let known = queue.effect_of(entry, id).map(Admitted::Known);
                    return known.ok_or(AdmitError::Rejected(Reason::NumberWindow));
                }
            }
        }
        let next = queue.applied().0.index.next();
        if let (Verdict::Rejected(reason), _) = queue.decide(entry, id, next, leader) {
            return Err(AdmitError::Rejected(reason));
        }
        self.check_state(queue, entry)?;
        self.check_outbox(queue, entry)?;
        self.quota
            .take(&entry.header.author, now_us)
            .map_err(|retry_after_ms| AdmitError::Overloaded(Full::Author { retry_after_ms }))?;
        Ok(Admitted::Enter)
    }

    /// What grows the state stops long before a snapshot could not carry it; what ends tasks goes on.
    fn check_state(&self, queue: &ClusterQueue, entry: &SignedEntry) -> Result<(), AdmitError> {
        if entry.header.action != Action::Submit {
            return Ok(());
        }
        let (tasks, bytes) = (queue.open_tasks(), queue.state_bytes());
        if tasks < self.limits.open_tasks_max && bytes < self.limits.state_bytes_max {
            Ok(())
        } else {
            Err(AdmitError::Overloaded(Full::State { tasks, bytes }))
        }
    }

    fn check_outbox(&self, queue: &ClusterQueue, entry: &SignedEntry) -> Result<(), AdmitError> {
        let percent = match entry.header.action {
            Action::Renew { .. } => return Ok(()),
            Action::Submit => 75,
            Action::Claim { .. } => 85,
            _ => 100,
        };
        let max = self.limits.outbox_bytes_max / 100 * percent;
        let used = queue.batcher().pending_bytes() + entry.payload.len() as u64;
        if used <= max || bug::active(Bug::OutboxUnbounded) {
            Ok(())
        } else {
            Err(AdmitError::Overloaded(Full::Outbox { used, max }))
        }
    }

    /// Whether a `Roster` entry may be proposed now.
    ///
    /// # Errors
    /// [`AdmitError`].
    pub fn admit_roster(&self, queue: &ClusterQueue, change: &RosterChange) -> Result<(), AdmitError> {
        queue.check_roster_static(change).map_err(AdmitError::Rejected)?;
        let (used, max) = (queue.batcher().pending_bytes(), self.limits.outbox_bytes_max);
        if used <= max {
            Ok(())
        } else {
            Err(AdmitError::Overloaded(Full::Outbox { used, max }))
        }
    }
}

#[cfg(test)]
mod tests;
