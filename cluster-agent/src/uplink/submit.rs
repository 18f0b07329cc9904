//! Whoever holds a certified batch sees to it that the validators get it.
//!
//! # Rules
//! * The leader submits a certified batch at once, the others when it is not final after twice the usual
//!   time. Several batches are in flight; the first ones of the outbox go first.
//! * One validator at first, the nearest by round trip. Not final after four times the usual time: to so
//!   many that an honest one is among them. From then on with growing pauses and jitter.
//! * Upon a validator that fails: it is left alone for a growing pause, the next one is asked.
//! * Upon `Parked`: the batches before it are sent to that validator as well.
//! * Upon the final cursor: what is final is forgotten.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use super::usual::UsualFinality;
use crate::shell::{Shell, lock};
use bytes::Bytes;
use cluster_core::attestation::AttestError;
use common::{
    bug::{self, Bug},
    codec::decode,
    ids::{BatchSeq, DeviceId},
    quorum::holds_honest_validator,
    wire::{
        feed::BatchReceipt,
        frame::{FrameKind, Protocol},
    },
};
use futures::FutureExt;

/// Batches in flight: the first ones of the outbox.
pub(super) const IN_FLIGHT_MAX: usize = 8;
/// One submission must be answered within the usual time to finality, within these bounds: then the
/// next validator is asked, and a batch that comes twice is stored once.
const SUBMIT_US_MIN: u64 = 500_000;
const SUBMIT_US_MAX: u64 = 5_000_000;
/// Longest pause between two submissions of one batch, also after an outage that made finality slow.
const PAUSE_US_MAX: u64 = 10_000_000;
/// Pauses for a validator that fails.
const BREAKER_US_MIN: u64 = 250_000;
const BREAKER_US_MAX: u64 = 10_000_000;

/// What is known of the validators, and of how long finality takes.
pub(crate) struct Validators {
    breakers: Mutex<BTreeMap<DeviceId, Breaker>>,
    usual: Mutex<UsualFinality>,
}

#[derive(Clone, Copy, Default)]
struct Breaker {
    failures: u32,
    open_until_us: u64,
}

impl Validators {
    /// All of them answer so far; finality takes what [`UsualFinality::supposed`] says.
    pub(crate) fn new(rtt: Duration, batch_interval: Duration) -> Self {
        Self {
            breakers: Mutex::default(),
            usual: Mutex::new(UsualFinality::supposed(rtt, batch_interval)),
        }
    }

    /// A validator answered, or did not.
    pub(crate) fn note(&self, device: DeviceId, is_ok: bool, now_us: u64, jitter_us: u64) {
        let mut breakers = lock(&self.breakers);
        let breaker = breakers.entry(device).or_default();
        if is_ok {
            *breaker = Breaker::default();
            return;
        }
        let pause_us = (BREAKER_US_MIN << breaker.failures.min(16)).min(BREAKER_US_MAX);
        breaker.failures = breaker.failures.saturating_add(1);
        breaker.open_until_us = now_us.saturating_add(pause_us + jitter_us % (pause_us / 4));
    }

    fn is_resting(&self, device: &DeviceId, now_us: u64) -> bool {
        lock(&self.breakers)
            .get(device)
            .is_some_and(|breaker| breaker.open_until_us > now_us)
    }
}

/// A batch on its way.
struct Flight {
    first_us: u64,
    next_us: u64,
    tries: u32,
    is_widened: bool,
    /// When it was first submitted from here.
    submitted_us: Option<u64>,
}

impl Shell {
    /// How long it usually takes from the close of a batch to its finality, as measured here.
    pub(crate) fn usual_final_us(&self) -> u64 {
        lock(&self.validators.usual).us()
    }

    /// How long the leader is trusted with a batch that is not final.
    pub(super) fn patience_us(&self) -> u64 {
        lock(&self.validators.usual).patience_us()
    }

    /// A batch became final `took_us` after it was signed here, and was among those that are submitted.
    pub(super) fn learn_usual_final(&self, took_us: u64) {
        lock(&self.validators.usual).learn(took_us);
    }

    /// Whether `validator` is likely to answer at once.
    pub(crate) fn is_alive(&self, validator: &DeviceId) -> bool {
        let is_connected = self.ports.transport.is_connected(validator, Protocol::Feed);
        is_connected && !self.validators.is_resting(validator, self.now_us())
    }

    /// Validators in the order in which they are asked: those that answer, nearest first.
    pub(crate) fn validators_by_distance(&self) -> Vec<DeviceId> {
        let now_us = self.now_us();
        let members = self.set.members().iter();
        let mut rows: Vec<_> = members
            .filter_map(|validator| self.registry.by_idx(validator.device))
            .map(|member| {
                let transport = &self.ports.transport;
                let is_resting = self.validators.is_resting(&member.id, now_us);
                let is_away = !transport.is_connected(&member.id, Protocol::Feed);
                let rtt_us = transport.rtt(&member.id).map_or(u128::MAX, |rtt| rtt.as_micros());
                // Members of a cluster and clusters spread over equally near validators.
                let turn = (member.idx.0 + self.me.idx.0) % self.set.members().len().max(1) as u32;
                (is_resting, is_away, rtt_us / 2_000, turn, member.id)
            })
            .collect();
        rows.sort_unstable();
        rows.into_iter().map(|(.., id)| id).collect()
    }

    /// Runs as long as the agent.
    pub(crate) async fn submit_batches(self: Arc<Self>) {
        let mut flights: BTreeMap<BatchSeq, Flight> = BTreeMap::new();
        while !self.is_ending() {
            let pulse = self.machine.pulse().get();
            let certified_seen = self.certified.get();
            flights = flights.split_off(&pulse.last_final.next());
            self.count_early_attestations();
            let now_us = self.now_us();
            let next_us = self.submit_due(&mut flights, now_us);
            let wait = Duration::from_micros(next_us.saturating_sub(now_us).clamp(1_000, 1_000_000));
            let closed = self
                .machine
                .turn()
                .wait_until(|now| (now.closed, now.last_final) != (pulse.closed, pulse.last_final));
            let certified = self.certified.wait_until(|now| *now != certified_seen);
            let any = futures::future::select(Box::pin(closed), Box::pin(certified));
            let _ = self.within(wait, any).await;
        }
    }

    fn count_early_attestations(&self) {
        let (_, errors) = self.machine.with(|state| lock(&self.collector).refresh(&state.queue));
        for error in errors {
            if let AttestError::OtherDigest { by, .. } = error {
                tracing::error!(%by, %error, "a member attests another history: one of the two logs was forked");
            } else {
                tracing::warn!(%error, "an attestation does not count");
            }
        }
    }

    /// Submits what is due, and says when to look again.
    fn submit_due(self: &Arc<Self>, flights: &mut BTreeMap<BatchSeq, Flight>, now_us: u64) -> u64 {
        let (usual_us, patience_us) = (self.usual_final_us(), self.patience_us());
        let is_leader = self.is_leader();
        let seqs: Vec<BatchSeq> = self.machine.with(|state| {
            let outbox = state.queue.batcher().outbox();
            outbox.take(IN_FLIGHT_MAX).map(|batch| batch.header.seq).collect()
        });
        let mut look_us = now_us.saturating_add(1_000_000);
        for seq in seqs {
            let first_delay_us = if is_leader {
                0
            } else {
                patience_us + self.ports.entropy.below(patience_us / 2)
            };
            let flight = flights.entry(seq).or_insert_with(|| Flight {
                first_us: now_us,
                next_us: now_us.saturating_add(first_delay_us),
                tries: 0,
                is_widened: false,
                submitted_us: None,
            });
            if is_leader && flight.tries == 0 {
                flight.next_us = now_us;
            }
            if flight.next_us > now_us || (flight.tries > 0 && bug::active(Bug::BatchNotResubmitted)) {
                look_us = look_us.min(flight.next_us);
                continue;
            }
            let batch = self
                .machine
                .with(|state| lock(&self.collector).certified(&state.queue, seq));
            // Not certified yet: an attestation wakes this task.
            let Some(batch) = batch else { continue };
            let body = Bytes::from(batch.encoded());
            let is_late = flight
                .submitted_us
                .is_some_and(|at| now_us.saturating_sub(at) >= 4 * usual_us);
            flight.is_widened |= is_late;
            self.submit_to_some(seq, &body, flight.tries, flight.is_widened);
            flight.submitted_us.get_or_insert(now_us);
            flight.tries = flight.tries.saturating_add(1);
            let pause_us = ((4 * usual_us) << flight.tries.saturating_sub(1).min(8)).min(PAUSE_US_MAX);
            flight.next_us = now_us.saturating_add(pause_us + self.ports.entropy.below(pause_us / 4));
            look_us = look_us.min(flight.next_us);
            tracing::debug!(%seq, tries = flight.tries, since_us = now_us - flight.first_us, "a batch was submitted");
        }
        look_us
    }

    fn submit_to_some(self: &Arc<Self>, seq: BatchSeq, body: &Bytes, tries: u32, is_widened: bool) {
        let mut order = self.validators_by_distance();
        if order.is_empty() {
            return;
        }
        // A repetition begins with another one: the first may have taken it and said nothing to the rest.
        let turn = tries as usize % order.len();
        order.rotate_left(turn);
        let count = if is_widened { self.count_with_honest(&order) } else { 1 };
        let rest: Vec<DeviceId> = order.split_off(count.min(order.len()));
        for device in order {
            let (shell, body, rest) = (self.clone(), body.clone(), rest.clone());
            let task = async move { shell.submit_until_taken(seq, body, device, rest).await };
            self.spawn("submit-batch", task.boxed());
        }
    }

    /// How many of the first ones surely hold an honest validator.
    fn count_with_honest(&self, order: &[DeviceId]) -> usize {
        let mut weight = 0;
        for (count, device) in (1..).zip(order) {
            let idx = self.registry.by_id(device).map(|member| member.idx);
            let position = idx.and_then(|idx| self.set.position(idx));
            weight += position.map_or(0, |at| self.set.members()[at].weight);
            if holds_honest_validator(weight, self.set.total_weight()) {
                return count;
            }
        }
        order.len()
    }

    /// Submits to `device`; if it fails, to the next ones.
    async fn submit_until_taken(&self, seq: BatchSeq, body: Bytes, device: DeviceId, rest: Vec<DeviceId>) {
        let rest = rest.into_iter().filter(|_| !bug::active(Bug::BatchNotResubmitted));
        for device in std::iter::once(device).chain(rest) {
            let Some(receipt) = self.submit_to(seq, body.clone(), device).await else {
                continue;
            };
            if let BatchReceipt::Parked { next } = receipt {
                self.fill_gap(next, seq, device).await;
            }
            return;
        }
    }

    async fn submit_to(&self, seq: BatchSeq, body: Bytes, device: DeviceId) -> Option<BatchReceipt> {
        let deadline = Duration::from_micros(self.usual_final_us().clamp(SUBMIT_US_MIN, SUBMIT_US_MAX));
        let call = self
            .ports
            .transport
            .call(device, FrameKind::SubmitBatch, body, deadline);
        let receipt = call.await.map_err(|error| error.to_string());
        let receipt = receipt.and_then(|bytes| decode(&bytes).map_err(|error| error.to_string()));
        self.validators
            .note(device, receipt.is_ok(), self.now_us(), self.ports.entropy.next_u64());
        receipt
            .map_err(|error| tracing::debug!(%device, %seq, error, "a validator did not take a batch"))
            .ok()
    }

    /// A validator lacks batches before `seq`: it gets those that are certified here.
    async fn fill_gap(&self, next: BatchSeq, seq: BatchSeq, device: DeviceId) {
        let missing = (next.0..seq.0).map(BatchSeq).take(IN_FLIGHT_MAX);
        for seq in missing.filter(|_| !bug::active(Bug::BatchNotResubmitted)) {
            let batch = self
                .machine
                .with(|state| lock(&self.collector).certified(&state.queue, seq));
            let Some(batch) = batch else { return };
            if self.submit_to(seq, batch.encoded().into(), device).await.is_none() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validator_that_fails_rests_for_a_growing_pause_and_is_back_after_its_first_answer() {
        let validators = Validators::new(Duration::ZERO, Duration::ZERO);
        let device = DeviceId([1; 32]);
        validators.note(device, false, 0, 0);
        assert!(validators.is_resting(&device, BREAKER_US_MIN - 1));
        assert!(!validators.is_resting(&device, BREAKER_US_MIN));
        validators.note(device, false, 0, 0);
        assert!(validators.is_resting(&device, 2 * BREAKER_US_MIN - 1));
        for _ in 0..100 {
            validators.note(device, false, 0, u64::MAX);
        }
        assert!(!validators.is_resting(&device, 2 * BREAKER_US_MAX));
        validators.note(device, true, 0, 0);
        assert!(!validators.is_resting(&device, 1));
    }
}
