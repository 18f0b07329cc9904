//! The witness of a run: hears everything that the shells show, and asks every checker.
//!
//! * `agents`: what they apply and close, when they lead, what they answer each other, what their logs' disks hold.
//! * `validators`: what they send, execute and order, and what their disks hold.
//! * `chain`: the final blocks, executed once more.
//!
//! # Rules
//! * It sees true time, disks and links; the shells do not see it.
//! * The first violation counts: what follows from it says little. The run ends there.

mod agents;
mod chain;
mod validators;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use common::{genesis::Genesis, ids::NodeIdx, validator_set::ValidatorSet, wire::frame::FrameKind};

use crate::{
    byzantine::suspects::Suspects,
    checkers::{Checker, Observation},
    ports::{Listener, Sender},
    trace::Trace,
};

/// Names of violations that no checker finds, beside [`NAMES`](crate::checkers::NAMES): a panic, a process that ends or does
/// not start without a reason, a story that did not come about.
pub const OF_THE_RUN: [&str; 3] = ["no-panic", "restarts", "expectation"];

/// An invariant that broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which: the name of the checker.
    pub checker: &'static str,
    /// When, in virtual time.
    pub at_ms: u64,
    /// What happened, in one sentence.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (secs, ms) = (self.at_ms / 1_000, self.at_ms % 1_000);
        write!(f, "{secs}.{ms:03} s: {}: {}", self.checker, self.what)
    }
}

impl Listener for Witness {
    fn hear_request(&self, from: Sender, kind: FrameKind, body: &Bytes) {
        self.hear_validator(from, kind, body);
    }

    fn hear_answer(&self, from: NodeIdx, kind: FrameKind, request: &[u8], answer: &[u8]) {
        self.hear_member(from, kind, request, answer);
    }
}

struct Inner {
    genesis: Arc<Genesis>,
    set: ValidatorSet,
    checkers: Vec<Box<dyn Checker>>,
    violation: Option<Violation>,
    suspects: Suspects,
    agents: agents::Known,
    validators: validators::Known,
    chain: chain::Chain,
    /// Only this checker is asked.
    only: Option<&'static str>,
    applies: u64,
}

/// Shared by everybody in a run.
#[derive(Clone)]
pub struct Witness {
    inner: Arc<Mutex<Inner>>,
    trace: Trace,
}

impl Witness {
    /// A witness that asks `checkers` about the fleet of `genesis`.
    #[must_use]
    pub fn new(trace: Trace, genesis: Arc<Genesis>, checkers: Vec<Box<dyn Checker>>) -> Self {
        let inner = Inner {
            set: ValidatorSet::from_genesis(&genesis),
            chain: chain::Chain::begin(&genesis),
            genesis,
            checkers,
            violation: None,
            suspects: Suspects::default(),
            agents: agents::Known::default(),
            validators: validators::Known::default(),
            only: None,
            applies: 0,
        };
        Self {
            inner: Arc::new(Mutex::new(inner)),
            trace,
        }
    }

    /// The same, but only the checker of this name is asked, and nothing else is a violation.
    #[must_use]
    pub fn only(self, checker: Option<&'static str>) -> Self {
        if checker.is_some() {
            let mut inner = self.lock();
            inner.only = checker;
            inner.checkers.retain(|each| Some(each.name()) == checker);
        }
        self
    }

    /// Another witness of the same run, who asks nobody: for clients whom nothing was promised.
    #[must_use]
    pub fn blind(&self) -> Self {
        Self::new(self.trace.clone(), self.lock().genesis.clone(), Vec::new())
    }

    /// Who is held to nothing, or to less.
    #[must_use]
    pub fn suspects(&self) -> Suspects {
        self.lock().suspects.clone()
    }

    /// Makes more of them known.
    pub fn suspect(&self, add: impl FnOnce(&mut Suspects)) {
        add(&mut self.lock().suspects);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True time of the run, microseconds.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        self.trace.now_us()
    }

    /// Shows `seen` to all checkers.
    pub fn see(&self, seen: &Observation) {
        let now_us = self.trace.now_us();
        let mut inner = self.lock();
        if inner.violation.is_some() {
            return;
        }
        let Inner { checkers, suspects, .. } = &mut *inner;
        let judging = (checkers.iter_mut()).filter(|checker| suspects.judges(checker.name(), seen));
        for checker in judging {
            if let Err(what) = checker.observe(now_us, seen) {
                let checker = checker.name();
                inner.violation = Some(Violation {
                    checker,
                    at_ms: now_us / 1_000,
                    what,
                });
                return;
            }
        }
    }

    /// Something that no checker can see is wrong.
    pub fn violate(&self, checker: &'static str, what: String) {
        debug_assert!(
            crate::checkers::NAMES.contains(&checker) || OF_THE_RUN.contains(&checker),
            "{checker} is in no list"
        );
        let at_ms = self.trace.now_us() / 1_000;
        let mut inner = self.lock();
        if inner.only.is_none_or(|only| only == checker) {
            inner.violation.get_or_insert(Violation { checker, at_ms, what });
        }
    }

    /// The first violation, if there was one.
    #[must_use]
    pub fn violation(&self) -> Option<Violation> {
        self.lock().violation.clone()
    }

    /// How often a state machine was seen at a new position.
    #[must_use]
    pub fn applies(&self) -> u64 {
        self.lock().applies
    }

    /// The run has ended: every checker says its last word.
    pub fn finish(&self) {
        let now_us = self.trace.now_us();
        let mut inner = self.lock();
        if inner.violation.is_some() {
            return;
        }
        for checker in &mut inner.checkers {
            if let Err(what) = checker.finish(now_us) {
                let checker = checker.name();
                let at_ms = now_us / 1_000;
                inner.violation = Some(Violation { checker, at_ms, what });
                return;
            }
        }
    }
}
