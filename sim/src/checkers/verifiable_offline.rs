//! verifiable-offline: a proof file convinces somebody who holds only the genesis file.

use std::sync::Arc;

use common::{genesis::Genesis, proof};

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

impl Checker for VerifiableOffline {
    fn name(&self) -> &'static str {
        "verifiable-offline"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Proof { task, bytes } = seen else {
            return Ok(());
        };
        match proof::verify(bytes, &self.genesis) {
            Ok(report) if report.task_id == *task => Ok(()),
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
