//! Ports for the unit tests of the stores.

use std::sync::Arc;

use transport::{
    machine::{OnPanic, TokioSpawner},
    memory::MemoryDisk,
    ports::{Disk, Spawner},
};

pub(crate) fn spawner() -> Arc<dyn Spawner> {
    Arc::new(TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log))
}

pub(crate) fn on(disk: &MemoryDisk) -> Arc<dyn Disk> {
    Arc::new(disk.clone())
}
