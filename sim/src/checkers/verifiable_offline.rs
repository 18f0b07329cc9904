//! verifiable-offline: a proof file convinces somebody who holds only the genesis file, and one in which a single
//! bit of a signature differs convinces nobody.

use std::sync::Arc;

use common::{
    codec::decode,
    genesis::Genesis,
    proof::{self, TaskProof},
};

use super::{Checker, Observation};

/// Holds the genesis file.
pub struct VerifiableOffline {
    genesis: Arc<Genesis>,
}

impl VerifiableOffline {
    /// For proofs under `genesis`.
    #[must_use]
    pub fn new(genesis: Arc<Genesis>) -> Self {
        Self { genesis }
    }
}

impl VerifiableOffline {
    /// Each signature under a finalization, one bit flipped.
    fn refuses_spoilt(&self, bytes: &[u8]) -> Result<(), String> {
        let proof: TaskProof = decode(bytes).map_err(|error| error.to_string())?;
        let finalizations = proof.segments.iter().map(|segment| &segment.finality.finalization);
        for signature in finalizations.flat_map(|finalization| &finalization.signers.signatures) {
            let needle = signature.to_bytes();
            let at = bytes.windows(needle.len()).position(|window| window == needle);
            let at = at.ok_or("a proof does not hold the signatures that were read from it")?;
            let mut spoilt = bytes.to_vec();
            spoilt[at] ^= 1;
            if proof::verify(&spoilt, &self.genesis).is_ok() {
                return Err("a proof with a spoilt signature of a validator convinces".into());
            }
        }
        Ok(())
    }
}

impl Checker for VerifiableOffline {
    fn name(&self) -> &'static str {
        "verifiable-offline"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Proof { task, bytes } = seen else {
            return Ok(());
        };
        match proof::verify(bytes, &self.genesis) {
            Ok(report) if report.task_id == *task => self.refuses_spoilt(bytes),
            Ok(_) => Err(format!("the proof of task {} is of another task", task.to_hex())),
            Err(error) => Err(format!("the proof of task {} convinces nobody: {error}", task.to_hex())),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::{ids::TaskId, testing::Fleet};

    use super::{super::*, *};

    #[test]
    fn file_that_proves_nothing_is_caught() {
        let genesis = Arc::new(Fleet::dev().genesis);
        let proof = Observation::Proof {
            task: TaskId([1; 32]),
            bytes: vec![1, 2, 3],
        };
        assert!(judge(VerifiableOffline::new(genesis), &[(0, proof)]).is_err());
    }
}
