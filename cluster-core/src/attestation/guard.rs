//! What this member has signed, so that it signs each batch once.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    batch::Attestation,
    codec::Wire,
    crypto::{DeviceKey, Signature},
    ids::{BatchSeq, ChainId, Digest, Founding, LogIndex, RaftNodeId},
};
use serde::{Deserialize, Serialize};

use crate::{batcher::OutboxBatch, queue::ClusterQueue};

/// One line of the guard's journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuardRecord {
    /// This digest was signed for this batch.
    Signed {
        /// Founding.
        founding: Founding,
        /// Batch.
        seq: BatchSeq,
        /// What was signed.
        digest: Digest,
        /// The signature, given again when asked.
        signature: Signature,
    },
    /// Batches up to `seq` are final: nothing of them is signed any more.
    Final {
        /// Founding.
        founding: Founding,
        /// Last final batch.
        seq: BatchSeq,
    },
    /// This founding was left for good.
    Left {
        /// Founding.
        founding: Founding,
    },
}

impl Wire for GuardRecord {
    const BYTES_MAX: usize = 256;
}

/// What the guard says to a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Not signed yet: sign.
    Sign,
    /// Signed before with this digest: give this signature again.
    Repeat(Signature),
    /// Final, or of a founding that was left: nothing to sign.
    Past,
    /// Another digest was signed: stop as voter and say so.
    Quarantine {
        /// What was signed.
        held: Digest,
        /// What is asked for now.
        want: Digest,
    },
}

/// A journal that contradicts itself: the member must not sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guard's journal holds two digests for batch {seq} of founding {founding}: {first} and {second}")]
pub struct RecordError {
    /// Founding.
    pub founding: Founding,
    /// Batch.
    pub seq: BatchSeq,
    /// Digest read first.
    pub first: Digest,
    /// Digest read second.
    pub second: Digest,
}

/// A signature that may leave the process once `record` is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToSign {
    /// Append it to the journal and fsync; `None` if it is there already.
    pub record: Option<GuardRecord>,
    /// Send it afterwards.
    pub attestation: Attestation,
}

/// Signed batches that are not final.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttestGuard {
    signed: BTreeMap<(Founding, BatchSeq), (Digest, Signature)>,
    last_final: BTreeMap<Founding, BatchSeq>,
    left: BTreeSet<Founding>,
}

impl AttestGuard {
    /// Reads a journal from its beginning.
    ///
    /// # Errors
    /// [`RecordError`]: fatal.
    pub fn replay(records: impl IntoIterator<Item = GuardRecord>) -> Result<Self, RecordError> {
        let mut guard = Self::default();
        for record in records {
            guard.note(record)?;
        }
        Ok(guard)
    }

    fn note(&mut self, record: GuardRecord) -> Result<(), RecordError> {
        match record {
            GuardRecord::Signed {
                founding,
                seq,
                digest,
                signature,
            } => {
                if let Some((first, _)) = self.signed.get(&(founding, seq))
                    && *first != digest
                {
                    return Err(RecordError {
                        founding,
                        seq,
                        first: *first,
                        second: digest,
                    });
                }
                self.signed.insert((founding, seq), (digest, signature));
            }
            GuardRecord::Final { founding, seq } => {
                let last = self.last_final.entry(founding).or_default();
                *last = seq.max(*last);
                let last = *last;
                self.signed.retain(|key, _| key.0 != founding || key.1 > last);
            }
            GuardRecord::Left { founding } => {
                self.left.insert(founding);
            }
        }
        Ok(())
    }

    /// What to do about `digest` as batch `seq` of `founding`. Changes nothing.
    #[must_use]
    pub fn decide(&self, founding: Founding, seq: BatchSeq, digest: Digest) -> Decision {
        match self.signed.get(&(founding, seq)) {
            Some((held, _)) if *held != digest => Decision::Quarantine {
                held: *held,
                want: digest,
            },
            _ if self.left.contains(&founding) => Decision::Past,
            Some((_, signature)) => Decision::Repeat(*signature),
            None if self.last_final.get(&founding).is_some_and(|last| seq <= *last) => Decision::Past,
            None => Decision::Sign,
        }
    }

    /// The lowest batch of the queue's outbox that this member has still to sign, with the guard's
    /// decision: [`Decision::Sign`] or [`Decision::Quarantine`].
    /// `durable`: everything up to this index is applied and fsynced here.
    #[must_use]
    pub fn next<'q>(
        &self,
        queue: &'q ClusterQueue,
        me: RaftNodeId,
        durable: LogIndex,
    ) -> Option<(&'q OutboxBatch, Decision)> {
        queue
            .batcher()
            .outbox()
            .filter(|batch| batch.roster.position(me).is_some() && batch.header.cut.index <= durable)
            .map(|batch| {
                let header = &batch.header;
                (&**batch, self.decide(header.founding, header.seq, batch.digest))
            })
            .find(|(_, decision)| matches!(decision, Decision::Sign | Decision::Quarantine { .. }))
    }

    /// Signs `batch`, or repeats the signature given before.
    ///
    /// # Errors
    /// The decision, if it is neither [`Decision::Sign`] nor [`Decision::Repeat`].
    pub fn sign(
        &mut self,
        key: &DeviceKey,
        chain: &ChainId,
        me: RaftNodeId,
        batch: &OutboxBatch,
    ) -> Result<ToSign, Decision> {
        let header = &batch.header;
        let digest = header.digest(chain);
        assert_eq!(digest, batch.digest, "an outbox batch carries the digest of its header");
        let (signature, record) = match self.decide(header.founding, header.seq, digest) {
            Decision::Repeat(signature) => (signature, None),
            Decision::Sign => {
                let signature = key.sign_attestation(chain, header);
                self.signed.insert((header.founding, header.seq), (digest, signature));
                let record = GuardRecord::Signed {
                    founding: header.founding,
                    seq: header.seq,
                    digest,
                    signature,
                };
                (signature, Some(record))
            }
            other => return Err(other),
        };
        Ok(ToSign {
            record,
            attestation: Attestation {
                cluster: header.cluster,
                founding: header.founding,
                seq: header.seq,
                digest,
                by: me,
                signature,
            },
        })
    }

    /// Batches up to `seq` are final. Returns the record to append, if it says something new.
    pub fn finalized(&mut self, founding: Founding, seq: BatchSeq) -> Option<GuardRecord> {
        if seq == BatchSeq(0) || self.last_final.get(&founding).is_some_and(|last| seq <= *last) {
            return None;
        }
        let record = GuardRecord::Final { founding, seq };
        self.note(record.clone()).expect("only a signed record can contradict");
        Some(record)
    }

    /// The founding was left. Returns the record to append.
    pub fn leave(&mut self, founding: Founding) -> GuardRecord {
        self.left.insert(founding);
        GuardRecord::Left { founding }
    }

    /// All that must be remembered, for rewriting the journal when it has grown.
    #[must_use]
    pub fn compacted(&self) -> Vec<GuardRecord> {
        let last_final = self.last_final.iter().map(|(founding, seq)| GuardRecord::Final {
            founding: *founding,
            seq: *seq,
        });
        let signed = self
            .signed
            .iter()
            .map(|((founding, seq), (digest, signature))| GuardRecord::Signed {
                founding: *founding,
                seq: *seq,
                digest: *digest,
                signature: *signature,
            });
        let left = self
            .left
            .iter()
            .map(|founding| GuardRecord::Left { founding: *founding });
        last_final.chain(signed).chain(left).collect()
    }

    /// Records in memory.
    #[must_use]
    pub fn len(&self) -> usize {
        self.signed.len()
    }

    /// Whether nothing signed is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.signed.is_empty()
    }
}
