//! How a snapshot comes in: frames into a draft, a full check, the installation.
//!
//! # Rules
//! * One snapshot comes in at a time. A later leader's replaces it, another's only when it is idle.
//! * A frame counts if it continues the draft; the answer says where to go on. What a draft holds outlives
//!   connections, leaders and this process.
//! * A whole draft is checked and installed by a task of its own. Whoever sent the last frame, or asks with
//!   an empty one, waits a little for its outcome and otherwise hears that everything has arrived.
//! * A frame whose sender goes away is written to its end all the same, before the next one is looked at.
//! * A bad snapshot is removed, and everything is as it was.
//!
//! # Why
//! Checking a million signatures takes minutes, longer than any answer is waited for; and a sender that
//! gave its last frame minutes would wait them for a peer that is gone.

use std::{
    sync::{Arc, Mutex as BlockingMutex, PoisonError},
    time::Duration,
};

use common::ids::{Digest, RaftNodeId};
use futures::lock::{Mutex, OwnedMutexGuard};
use openraft::errors::RaftError;
use openraft_rt::{AsyncRuntime, Instant};

use super::{
    alarm::{AlarmSink, RaftAlarm},
    codec::{SnapshotFrame, SnapshotReply, WireVote},
    log::RaftLog,
    machine::MachineAdapter,
    on_the_way::OnTheWay,
    server::{Answer, Raft, RpcRefusal, check_entry, panicked, stopped},
    signal::Signal,
    snapshot_data::SnapshotData,
    store::{
        StoreError,
        snapshot::{DraftName, SnapshotDraft, SnapshotStore, run},
    },
    types::{Snapshot, vote_from_wire, vote_to_wire},
};

/// How long an answer is held back for the outcome of an installation.
const OUTCOME_WAIT: Duration = Duration::from_secs(2);

/// What an installation needs, for the task that does it.
pub(super) struct Installer<R: AsyncRuntime> {
    pub raft: Raft<R>,
    pub log: RaftLog<R>,
    pub machine: MachineAdapter<R>,
    pub alarms: AlarmSink,
    pub on_the_way: Arc<OnTheWay>,
}

impl<R: AsyncRuntime> Clone for Installer<R> {
    fn clone(&self) -> Self {
        Self {
            raft: self.raft.clone(),
            log: self.log.clone(),
            machine: self.machine.clone(),
            alarms: self.alarms.clone(),
            on_the_way: self.on_the_way.clone(),
        }
    }
}

/// The outcome of an installation, once there is one.
#[derive(Default)]
struct Outcome {
    answer: BlockingMutex<Option<Answer<SnapshotReply>>>,
    signal: Signal,
}

impl Outcome {
    fn get(&self) -> Option<Answer<SnapshotReply>> {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, answer: Answer<SnapshotReply>) {
        *self.answer.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
        self.signal.notify();
    }
}

/// A snapshot on its way in.
enum Slot<I> {
    Receiving {
        vote: WireVote,
        of: (Digest, u64),
        draft: Box<dyn SnapshotDraft>,
        touched: I,
    },
    Installing {
        of: (Digest, u64),
        outcome: Arc<Outcome>,
    },
}

/// The receiving side of snapshots.
pub(super) struct SnapshotReceiver<R: AsyncRuntime> {
    installer: Installer<R>,
    store: Arc<dyn SnapshotStore>,
    idle: Duration,
    /// Held while a frame is written, by the task that does it.
    slot: SharedSlot<R>,
}

type SharedSlot<R> = Arc<Mutex<Option<Slot<<R as AsyncRuntime>::Instant>>>>;
type HeldSlot<R> = OwnedMutexGuard<Option<Slot<<R as AsyncRuntime>::Instant>>>;

impl<R: AsyncRuntime> Clone for SnapshotReceiver<R> {
    fn clone(&self) -> Self {
        Self {
            installer: self.installer.clone(),
            store: self.store.clone(),
            idle: self.idle,
            slot: self.slot.clone(),
        }
    }
}

impl<R: AsyncRuntime> SnapshotReceiver<R> {
    /// Nothing comes in yet. An unfinished snapshot may be replaced after `idle` without a frame.
    pub fn new(installer: Installer<R>, store: Arc<dyn SnapshotStore>, idle: Duration) -> Self {
        Self {
            installer,
            store,
            idle,
            slot: Arc::default(),
        }
    }

    /// Takes a frame of `from`, whose vote was checked.
    pub async fn frame(&self, from: RaftNodeId, frame: SnapshotFrame) -> Answer<SnapshotReply> {
        let (bytes_total, of) = (frame.bytes_total, (frame.digest, frame.bytes_total));
        // A task of its own, which goes on when the sender goes away: else its write would go on beside the
        // next frame's. It holds the slot, so there is one of them.
        let (receiver, slot) = (self.clone(), self.slot.clone().lock_owned().await);
        let collecting = R::spawn(async move { receiver.collect(from, frame, slot).await });
        let outcome = match collecting.await.map_err(panicked)?? {
            Collected::Continue(offset) => return Ok(SnapshotReply::Continue { offset }),
            Collected::Whole(outcome) => outcome,
        };
        let decided = async {
            loop {
                let seen = outcome.signal.version();
                if let Some(answer) = outcome.get() {
                    return answer;
                }
                outcome.signal.changed(seen).await;
            }
        };
        let Ok(answer) = R::timeout(OUTCOME_WAIT, decided).await else {
            return Ok(SnapshotReply::Continue { offset: bytes_total });
        };
        let mut slot = self.slot.lock().await;
        if matches!(&*slot, Some(Slot::Installing { of: installing, .. }) if *installing == of) {
            *slot = None;
        }
        answer
    }

    async fn collect(&self, from: RaftNodeId, frame: SnapshotFrame, mut slot: HeldSlot<R>) -> Answer<Collected> {
        let of = (frame.digest, frame.bytes_total);
        let draft = match slot.take() {
            Some(Slot::Installing {
                of: installing,
                outcome,
            }) => {
                let is_decided = outcome.get().is_some();
                if installing == of {
                    let answer = Collected::Whole(outcome.clone());
                    *slot = Some(Slot::Installing { of, outcome });
                    return Ok(answer);
                }
                if !is_decided {
                    *slot = Some(Slot::Installing {
                        of: installing,
                        outcome,
                    });
                    return Ok(Collected::Continue(0));
                }
                self.open_draft(of).await?
            }
            Some(Slot::Receiving {
                vote,
                of: receiving,
                draft,
                touched,
            }) => {
                let is_newest = (frame.vote.term, frame.vote.candidate) >= (vote.term, vote.candidate);
                if !is_newest && touched.elapsed() <= self.idle {
                    *slot = Some(Slot::Receiving {
                        vote,
                        of: receiving,
                        draft,
                        touched,
                    });
                    return Ok(Collected::Continue(0));
                }
                if receiving == of {
                    draft
                } else {
                    self.open_draft(of).await?
                }
            }
            None => self.open_draft(of).await?,
        };
        let vote = frame.vote;
        let draft = self.add(draft, frame).await?;
        let held = draft.bytes_len();
        if held < of.1 {
            let touched = R::Instant::now();
            *slot = Some(Slot::Receiving {
                vote,
                of,
                draft,
                touched,
            });
            return Ok(Collected::Continue(held));
        }
        let outcome = Arc::<Outcome>::default();
        let (installer, told) = (self.installer.clone(), outcome.clone());
        drop(R::spawn(async move {
            let answer = installer.install(from, vote, of.0, draft).await;
            told.set(answer);
        }));
        *slot = Some(Slot::Installing {
            of,
            outcome: outcome.clone(),
        });
        Ok(Collected::Whole(outcome))
    }

    /// Adds a frame that continues the draft; any other changes nothing.
    async fn add(&self, mut draft: Box<dyn SnapshotDraft>, frame: SnapshotFrame) -> Answer<Box<dyn SnapshotDraft>> {
        if frame.offset != draft.bytes_len() || frame.bytes.is_empty() {
            return Ok(draft);
        }
        let append = move || match draft.append(&frame.bytes) {
            Ok(()) => Ok(draft),
            Err(error) => {
                draft.discard();
                Err(error)
            }
        };
        let added = run(&*self.store, append).await.and_then(|added| added);
        added.map_err(|error| no_space(&error))
    }

    async fn open_draft(&self, (digest, bytes_total): (Digest, u64)) -> Answer<Box<dyn SnapshotDraft>> {
        let store = self.store.clone();
        let open = move || {
            let draft = store.draft(DraftName::Incoming(digest))?;
            if draft.bytes_len() <= bytes_total {
                return Ok(draft);
            }
            draft.discard();
            store.draft(DraftName::Incoming(digest))
        };
        let opened = run(&*self.store, open).await.and_then(|opened| opened);
        opened.map_err(|error| no_space(&error))
    }
}

enum Collected {
    Continue(u64),
    Whole(Arc<Outcome>),
}

impl<R: AsyncRuntime> Installer<R> {
    async fn install(
        &self,
        from: RaftNodeId,
        vote: WireVote,
        digest: Digest,
        draft: Box<dyn SnapshotDraft>,
    ) -> Answer<SnapshotReply> {
        let bad = |why: String| {
            (self.alarms)(RaftAlarm::BadSnapshot { from, why });
            RpcRefusal::BadSnapshot
        };
        let checked = self.machine.check_incoming(draft, digest).await;
        let checked = checked.map_err(|error| match error {
            StoreError::Corrupt(why) => bad(why),
            other => no_space(&other),
        })?;
        let (meta, last, chain) = (checked.meta.clone(), checked.last, checked.chain);
        // From here on its draft goes when nobody holds it any more.
        let snapshot = SnapshotData::incoming(checked);
        if (last.term, last.leader) > (vote.term, vote.candidate) {
            return Err(bad("a snapshot of a later leader than its sender".into()));
        }
        check_entry(&self.log, &self.alarms, &self.on_the_way.check(), last, Some(chain))?;
        if let Some(committed) = self.log.committed()
            && last > committed
            && last.index <= committed.index
        {
            (self.alarms)(RaftAlarm::ConflictBelowCommitted {
                index: last.index,
                committed: committed.index,
            });
            return Err(RpcRefusal::ConflictBelowCommitted);
        }
        // The log came while the snapshot was on its way. It says as much, for two logs with one entry are the same below it
        // (Raft §5.3), and openraft 0.10.0-alpha.37 takes its own progress back if the snapshot is installed all the same.
        if self.log.is_beyond(last, vote) {
            return Ok(SnapshotReply::Done { vote });
        }
        let snapshot = Snapshot { meta, snapshot };
        let response = self.raft.install_full_snapshot(vote_from_wire(vote), snapshot).await;
        let response = response.map_err(|error| stopped::<R>(RaftError::Fatal(error)))?;
        Ok(SnapshotReply::Done {
            vote: vote_to_wire(&response.vote),
        })
    }
}

fn no_space(error: &StoreError) -> RpcRefusal {
    tracing::error!(%error, "a snapshot from a peer is not stored; the state is as it was");
    RpcRefusal::NoSpace
}
