//! Jitter.

use std::sync::{Mutex, PoisonError};

use rand::{Rng as _, rngs::StdRng};

use crate::ports::Entropy;

/// A generator seeded by the system.
#[derive(Debug)]
pub struct MachineEntropy(Mutex<StdRng>);

impl MachineEntropy {
    /// Seeds a generator.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "this is the port's implementation")]
    pub fn new() -> Self {
        Self(Mutex::new(rand::make_rng()))
    }
}

impl Default for MachineEntropy {
    fn default() -> Self {
        Self::new()
    }
}

impl Entropy for MachineEntropy {
    fn next_u64(&self) -> u64 {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).next_u64()
    }
}
