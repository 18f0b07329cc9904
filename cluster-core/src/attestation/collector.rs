//! Gathers attestations until a quorum certifies a batch.

use std::collections::BTreeMap;

use common::{
    batch::{Attestation, CertifiedBatch},
    certificate::Signers,
    crypto::{
        Signature,
        preimage::{Tag, preimage},
    },
    ids::{BatchSeq, ChainId, ClusterId, Digest, Founding, RaftNodeId},
    quorum::attestation_quorum,
    registry::Registry,
};

use crate::{batcher::OutboxBatch, queue::ClusterQueue};

/// Attestations kept for batches that are not closed here yet; the furthest ahead go.
const EARLY_MAX: usize = 1_024;

/// Why an attestation does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttestError {
    /// Of another cluster or founding.
    #[error("an attestation of cluster {cluster}, founding {founding}")]
    Foreign {
        /// Its cluster.
        cluster: ClusterId,
        /// Its founding.
        founding: Founding,
    },
    /// The batch is final.
    #[error("batch {0} is final")]
    Past(BatchSeq),
    /// Too far ahead to be kept: send it again.
    #[error("batch {0} is not closed here, and no room is left to keep attestations of it")]
    TooEarly(BatchSeq),
    /// Not in the roster of the batch.
    #[error("{0} is not in the roster of the batch")]
    NotInRoster(RaftNodeId),
    /// The batch built here is another one: one of the two logs was forked. Evidence.
    #[error("{by} attests {got} as batch {seq}, built here was {held}")]
    OtherDigest {
        /// Batch.
        seq: BatchSeq,
        /// Who attests.
        by: RaftNodeId,
        /// Digest attested.
        got: Digest,
        /// Digest built here.
        held: Digest,
    },
    /// The signature does not verify under the registered key.
    #[error("the attestation of {0} does not verify")]
    BadSignature(RaftNodeId),
}

/// Verified attestations of the batches in the outbox.
#[derive(Clone, Debug, Default)]
pub struct Collector {
    verified: BTreeMap<BatchSeq, BTreeMap<usize, Signature>>,
    early: BTreeMap<(BatchSeq, RaftNodeId), Attestation>,
}

impl Collector {
    /// Takes an attestation. Returns the batch if it is certified with it, or was before.
    ///
    /// # Errors
    /// [`AttestError`]: count it against the sender, [`AttestError::Past`] and
    /// [`AttestError::TooEarly`] apart.
    pub fn add(
        &mut self,
        queue: &ClusterQueue,
        attestation: Attestation,
    ) -> Result<Option<CertifiedBatch>, AttestError> {
        let seq = attestation.seq;
        let is_certified = self.count(queue, attestation)?;
        Ok(if is_certified { self.certified(queue, seq) } else { None })
    }

    /// The same without the batch: whether it is certified with the attestation, or was before.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub fn count(&mut self, queue: &ClusterQueue, attestation: Attestation) -> Result<bool, AttestError> {
        let (cluster, founding) = (attestation.cluster, attestation.founding);
        if cluster != queue.cluster() || founding != queue.founding() {
            return Err(AttestError::Foreign { cluster, founding });
        }
        let seq = attestation.seq;
        if seq <= queue.batcher().last_final().seq {
            return Err(AttestError::Past(seq));
        }
        let Some(batch) = queue.batcher().batch(seq) else {
            return self.keep_early(attestation).map(|()| false);
        };
        let position = batch
            .roster
            .position(attestation.by)
            .ok_or(AttestError::NotInRoster(attestation.by))?;
        if attestation.digest != batch.digest {
            return Err(AttestError::OtherDigest {
                seq,
                by: attestation.by,
                got: attestation.digest,
                held: batch.digest,
            });
        }
        let known = self.verified.get(&seq).and_then(|signed| signed.get(&position));
        if known != Some(&attestation.signature) {
            if !is_signed(
                queue.registry(),
                queue.chain_id(),
                batch,
                position,
                &attestation.signature,
            ) {
                return Err(AttestError::BadSignature(attestation.by));
            }
            self.verified
                .entry(seq)
                .or_default()
                .insert(position, attestation.signature);
        }
        let signed = self.verified.get(&seq).map_or(0, BTreeMap::len);
        Ok(signed >= attestation_quorum(batch.roster.members.len(), queue.fault_model()))
    }

    fn keep_early(&mut self, attestation: Attestation) -> Result<(), AttestError> {
        let key = (attestation.seq, attestation.by);
        if self.early.len() >= EARLY_MAX && !self.early.contains_key(&key) {
            let furthest = *self.early.last_key_value().expect("it is full").0;
            if furthest <= key {
                return Err(AttestError::TooEarly(attestation.seq));
            }
            self.early.remove(&furthest);
        }
        self.early.insert(key, attestation);
        Ok(())
    }

    /// Looks again after a batch closed here or became final: counts attestations that came early,
    /// forgets what is final. Returns batches certified by that, and what was wrong with the others.
    pub fn refresh(&mut self, queue: &ClusterQueue) -> (Vec<CertifiedBatch>, Vec<AttestError>) {
        let last_final = queue.batcher().last_final().seq;
        let last_closed = queue.batcher().last_closed().seq;
        self.verified.retain(|seq, _| *seq > last_final);
        let later = self.early.split_off(&(last_closed.next(), RaftNodeId(0)));
        let (mut certified, mut errors) = (Vec::new(), Vec::new());
        for attestation in core::mem::replace(&mut self.early, later).into_values() {
            match self.add(queue, attestation) {
                Ok(Some(batch)) => certified.push(batch),
                Ok(None) | Err(AttestError::Past(_)) => {}
                Err(error) => errors.push(error),
            }
        }
        certified.dedup_by_key(|batch| batch.header.seq);
        (certified, errors)
    }

    /// The certified batch `seq`, if a quorum has attested it: what is submitted, and sent again.
    #[must_use]
    pub fn certified(&self, queue: &ClusterQueue, seq: BatchSeq) -> Option<CertifiedBatch> {
        let batch = queue.batcher().batch(seq)?;
        let signed = self.verified.get(&seq)?;
        let members = batch.roster.members.len();
        let needed = attestation_quorum(members, queue.fault_model());
        if signed.len() < needed {
            return None;
        }
        let signed: Vec<(usize, Signature)> = signed.iter().map(|(at, by)| (*at, *by)).collect();
        Some(CertifiedBatch {
            header: batch.header.clone(),
            attestations: Signers::gather(members, &signed[..needed]),
            entries: batch
                .entries
                .clone()
                .try_into()
                .expect("the batcher bounds the rows of a batch"),
        })
    }

    /// Members whose attestation of `seq` is missing here, so that they can be asked.
    #[must_use]
    pub fn missing(&self, queue: &ClusterQueue, seq: BatchSeq) -> Vec<RaftNodeId> {
        let Some(batch) = queue.batcher().batch(seq) else {
            return Vec::new();
        };
        let signed = self.verified.get(&seq);
        let is_missing = |at: &usize| signed.is_none_or(|signed| !signed.contains_key(at));
        (0..batch.roster.members.len())
            .filter(is_missing)
            .map(|at| batch.roster.members[at].raft)
            .collect()
    }
}

fn is_signed(
    registry: &Registry,
    chain: &ChainId,
    batch: &OutboxBatch,
    position: usize,
    signature: &Signature,
) -> bool {
    let member = batch.roster.members[position];
    let key = registry
        .by_idx(member.raft.idx())
        .and_then(|device| device.keys.get(member.key_version.0 as usize));
    key.is_some_and(|key| key.verifies(&preimage(Tag::Batch, chain, &batch.header), signature))
}
