//! Proof that a log store and a snapshot store fit under the adapter: openraft's own storage suite.
//!
//! Production's store, the one in memory and the simulator's all pass it, which makes the latter two
//! faithful doubles.

use std::{marker::PhantomData, sync::Arc};

use openraft::{
    StorageError,
    testing::log::{StoreBuilder, Suite},
};
use openraft_rt::AsyncRuntime;

use super::{
    config::{LinkProfile, RaftConfig},
    log::RaftLog,
    machine::{MachineAdapter, Origin, ReplicatedMachine, RestoreError, RestoreJob, SnapshotJob},
    signal::Signal,
    snapshot_file::SnapshotSource,
    store::{LogStore, snapshot::SnapshotStore},
    types::TypeConfig,
};
use common::ids::{Digest, LogPosition, RaftNodeId};

/// Fresh stores, and what must live as long as they do (a temporary directory).
pub struct FreshStores {
    /// An empty log store.
    pub log: Arc<dyn LogStore>,
    /// An empty snapshot store.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Dropped after the stores.
    pub guard: Box<dyn Send + Sync>,
}

/// Runs openraft's storage suite on stores made by `make`. Must be called inside the runtime `R`.
///
/// # Errors
/// What the suite found.
///
/// # Panics
/// The suite asserts.
pub async fn check_stores<R: AsyncRuntime>(make: impl Fn() -> FreshStores + Send + Sync) -> Result<(), String> {
    let builder = Builder::<R, _> {
        make,
        runtime: PhantomData,
    };
    Suite::test_all(builder).await.map_err(|error| error.to_string())
}

/// Entries that a log under test keeps in memory, bytes.
const CACHE_BYTES: usize = 1024 * 1024;

struct Builder<R, F> {
    make: F,
    runtime: PhantomData<fn() -> R>,
}

impl<R: AsyncRuntime, F: Fn() -> FreshStores + Send + Sync>
    StoreBuilder<TypeConfig<R>, RaftLog<R>, MachineAdapter<R>, Box<dyn Send + Sync>> for Builder<R, F>
{
    async fn build(
        &self,
    ) -> Result<(Box<dyn Send + Sync>, RaftLog<R>, MachineAdapter<R>), StorageError<TypeConfig<R>>> {
        let stores = (self.make)();
        let log = RaftLog::open_with(stores.log, Arc::new(|_| ()), CACHE_BYTES)
            .map_err(|error| storage_error::<R>(&error))?;
        let machine = MachineAdapter::open(
            Arc::new(NoMachine),
            stores.snapshots,
            log.clone(),
            RaftConfig::for_profile(LinkProfile::Lan).snapshot_bounds(),
            Signal::default(),
        )
        .await;
        let machine = machine.map_err(|error| storage_error::<R>(&error))?;
        Ok((stores.guard, log, machine))
    }
}

fn storage_error<R: AsyncRuntime>(error: &(impl std::error::Error + 'static)) -> StorageError<TypeConfig<R>> {
    StorageError::read(openraft::AnyError::new(error))
}

/// The suite looks at positions and membership only, which the adapter keeps.
struct NoMachine;

impl ReplicatedMachine for NoMachine {
    fn apply(&self, _: LogPosition, _: RaftNodeId, _: Digest, _: &[u8]) -> Vec<u8> {
        Vec::new()
    }

    fn advance(&self, _: LogPosition, _: Digest) {}

    fn snapshot(&self) -> SnapshotJob {
        Box::new(|_| Ok(()))
    }

    fn prepare(
        self: Arc<Self>,
        _: LogPosition,
        _: Digest,
        _: Origin,
        _: &mut dyn SnapshotSource,
    ) -> Result<RestoreJob, RestoreError> {
        Ok(Box::new(|| ()))
    }
}
