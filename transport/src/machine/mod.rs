//! The ports on a Linux machine. `main` puts these in; a shell cannot tell them from the simulator's.

mod clock;
mod disk;
mod entropy;
mod journal;
mod tasks;
#[cfg(test)]
mod tests;

pub use clock::MachineClock;
pub use disk::{MachineDisk, disk_error};
pub use entropy::MachineEntropy;
pub use journal::{JOURNAL_GROUP_BYTES_MAX, JOURNAL_RECORD_BYTES_MAX};
pub use tasks::{EXIT_INTERNAL_ERROR, OnPanic, TokioSpawner};

/// Runs file operations of some hundred microseconds to some ten milliseconds where they are asked for.
///
/// On a runtime of several threads the others take over this thread's tasks meanwhile; on a runtime of
/// one thread everything waits, which small tools accept.
fn blocking<T>(work: impl FnOnce() -> T) -> T {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::try_current().map(|handle| handle.runtime_flavor()) {
        Ok(RuntimeFlavor::MultiThread) => tokio::task::block_in_place(work),
        _ => work(),
    }
}
