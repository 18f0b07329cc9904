//! One confirmation of the leader for all reads that wait for one.
//!
//! # Rules
//! * A round begins after the one before it has ended. Reads that come meanwhile share the next one.
//! * Upon a round's begin nobody joins it any more: whoever shares a round came before it, so that the
//!   position it gives includes every write acknowledged before they came.
//!
//! # Why
//! A confirmation costs a request to every voter. With one for each read, many reads at a time would cost
//! the cluster more than as many writes, which share their requests.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{ids::LogPosition, wire::cluster::Confirmation};
use futures::{FutureExt, future::Shared};
use tokio::sync::Semaphore;

use crate::{
    ports::BoxFuture,
    raft::ReadRefusal,
    shell::{Shell, lock},
};

type Round = Shared<BoxFuture<Result<LogPosition, ReadRefusal>>>;

/// The round that has not begun, and the turn of the one that runs.
pub(crate) struct ReadRounds {
    next: Mutex<Option<Round>>,
    turn: Arc<Semaphore>,
}

impl Default for ReadRounds {
    fn default() -> Self {
        Self {
            next: Mutex::new(None),
            turn: Arc::new(Semaphore::new(1)),
        }
    }
}

impl Shell {
    /// On the leader: a position that includes every write acknowledged before this call, confirmed by a
    /// majority within `left`.
    pub(crate) async fn confirmed_position(self: &Arc<Self>, left: Duration) -> Result<LogPosition, ReadRefusal> {
        let round = lock(&self.read_rounds.next)
            .get_or_insert_with(|| self.read_round())
            .clone();
        let confirmed = tokio::time::timeout(left, round).await;
        confirmed.unwrap_or(Err(ReadRefusal::Deadline))
    }

    /// Goes on only while somebody waits for it. If all have gone before it began, the next read takes it over.
    fn read_round(self: &Arc<Self>) -> Round {
        // Weak, since the shell holds the round until it begins.
        let (turn, shell) = (self.read_rounds.turn.clone(), Arc::downgrade(self));
        let round = async move {
            let _turn = turn.acquire_owned().await;
            let shell = shell.upgrade().ok_or(ReadRefusal::Stopped)?;
            *lock(&shell.read_rounds.next) = None;
            shell
                .raft
                .linearizable_position(Confirmation::AtOnce, shell.read_deadline())
                .await
        };
        round.boxed().shared()
    }
}
