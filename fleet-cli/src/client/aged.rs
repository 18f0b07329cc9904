//! How old an answer is when it is shown.
//!
//! # Rules
//! * An agent says how old a value may be when it writes its answer. What passed since the question was sent
//!   comes on top, on this machine's own clock, so that an age is never below the truth: not after a slow way
//!   back, and not while another process was waited for.
//! * Of several pages the oldest speaks for all.
//! * `--max-staleness` is judged by the agent and again here, when everything has arrived.

use std::time::Duration;

use common::wire::op::{Mode, OpAnswer, OpRequest, ReadContext};
use tokio::time::Instant;

use crate::exit::{Exit, Failure, Outcome};

/// How a value was read, and when it was asked for.
#[derive(Clone, Debug)]
pub struct Read {
    context: ReadContext,
    sent: Instant,
}

impl Read {
    /// What an answer to a question that was sent at `sent` says.
    #[must_use]
    pub fn new(context: ReadContext, sent: Instant) -> Self {
        Self { context, sent }
    }

    /// With ages as of now.
    #[must_use]
    pub fn now(&self) -> ReadContext {
        let mut context = self.context.clone();
        age(&mut context, self.sent.elapsed());
        context
    }

    /// The older one; one of unknown age is older than all.
    #[must_use]
    pub fn older(self, other: Self) -> Self {
        let age = |read: &Self| read.now().staleness_ms.map_or(u64::MAX, |ms| ms);
        if age(&other) > age(&self) { other } else { self }
    }

    /// Whether it is at most `staleness_ms_max` old now.
    ///
    /// # Errors
    /// [`Exit::TooStale`] with its age.
    pub fn check(&self, from: &str, staleness_ms_max: Option<u64>) -> Outcome {
        let now = self.now();
        match staleness_ms_max {
            Some(max) if now.staleness_ms.is_none_or(|age| age > max) => {
                Err(too_stale(from, now.staleness_ms, now.mode))
            }
            _ => Ok(()),
        }
    }
}

/// Adds `elapsed` to the ages, rounded up, and what two clocks may drift apart meanwhile.
pub fn age(context: &mut ReadContext, elapsed: Duration) {
    context.staleness_ms = older(context.staleness_ms, elapsed);
    context.global_age_ms = older(context.global_age_ms, elapsed);
}

/// An age, `elapsed` later. Clocks drift by less than one in a thousand.
#[must_use]
pub fn older(age_ms: Option<u64>, elapsed: Duration) -> Option<u64> {
    let elapsed_us = elapsed.as_micros().saturating_mul(1_001).div_ceil(1_000);
    let elapsed_ms = u64::try_from(elapsed_us.div_ceil(1_000)).unwrap_or(u64::MAX);
    age_ms.map(|ms| ms.saturating_add(elapsed_ms))
}

/// The failure, if `answer` came back older than `request` allows.
pub(super) fn check_answer(from: &str, request: &OpRequest, answer: &OpAnswer, sent: Instant) -> Outcome {
    let max = match request {
        OpRequest::Task { staleness_ms_max, .. } | OpRequest::Tasks { staleness_ms_max, .. } => *staleness_ms_max,
        _ => None,
    };
    match answer {
        OpAnswer::Task { context, .. } | OpAnswer::Tasks { context, .. } if max.is_some() => {
            Read::new(context.clone(), sent).check(from, max)
        }
        _ => Ok(()),
    }
}

/// An answer that is older than the caller allows.
#[must_use]
pub fn too_stale(from: &str, staleness_ms: Option<u64>, mode: Mode) -> Failure {
    let age = staleness_ms.map_or("unknown".into(), |ms| format!("{ms} ms"));
    let text = format!("{from}: the answer's age is {age} (mode {})", mode.word());
    Failure::new(Exit::TooStale, text)
}

#[cfg(test)]
mod tests;
