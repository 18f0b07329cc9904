//! Everything a validator needs from outside. `main` gives the machine's, the simulator gives its own.

use std::sync::Arc;

use transport::ports::{Clock, Disk, Entropy, Spawner, Transport};

/// The ports, shared by all rooms of one validator.
#[derive(Clone)]
pub struct Ports {
    /// Requests to other processes.
    pub transport: Arc<dyn Transport>,
    /// Boot-time clock and wall clock.
    pub clock: Arc<dyn Clock>,
    /// Starts tasks.
    pub spawner: Arc<dyn Spawner>,
    /// Jitter.
    pub entropy: Arc<dyn Entropy>,
    /// The data directory.
    pub disk: Arc<dyn Disk>,
}
