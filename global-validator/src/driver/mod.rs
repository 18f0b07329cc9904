//! The one task that owns the core: inputs in, effects out, in order.
//! In: [`Event`]s of doors, stores and fetches; time. Out: everything the core wants done.
//! Called by: [`crate::Validator::start`], once.
//!
//! # Rules
//! * Upon a start: listen for `clone_watch` without a word, then build the core from what is durable.
//! * Upon events: step the core with each, then perform all effects together: first everything that
//!   must be durable, with one fsync of the guard's journal beside one of the blocks, then what is sent.
//! * Upon a valid message signed with this validator's key that the guard does not hold: stop (78).
//! * Upon any failure of the disk: stop (70). Upon a quorum that computed otherwise: stop (70).
//!
//! # Invariants
//! * durable-before-sent: whatever the core asked to persist before a send survived an fsync before it.
//!
//! # Why
//! One task, because the protocol is a sequence; everything that can be done beside it (signatures,
//! fetches, answers) is done by others, who hand their results in through bounded queues: one for this
//! validator's own rooms, and an inbox for each peer. The driver takes from all in turn.

mod clone_watch;
mod incoming;
mod perform;

use std::{sync::Arc, time::Duration};

use common::{
    block::{BatchRef, Block, FinalizedBlock},
    ids::{Digest, NodeIdx},
};
use futures::FutureExt;
use global_core::{
    Checked, CheckedMessage, Config, Effect, GlobalCore, Input, Instant, Ledger, Now, Recovered,
    batch_pool::StoredBatch,
};
use tokio::sync::{mpsc, oneshot};
use transport::watch::Watch;

pub use self::incoming::{Heard, Incoming, NotTaken};

use self::clone_watch::CloneWatch;
use crate::{
    batch_store::BatchStore,
    block_store::BlockStore,
    block_time::BlockClock,
    executed::{Executed, ExecutedWatch},
    execution::ChainState,
    exit::Stop,
    guard::{Refusal, SigningGuard},
    halt::Halt,
    outcomes::Outcomes,
    peers::{Peers, fetch::Fetcher},
    ports::Ports,
    stopwatch::Stopwatch,
    verified_entries::VerifiedEntries,
};

/// Events of this validator's own rooms that may wait for the driver.
pub const EVENTS_WAITING_MAX: usize = 4_096;
/// Events that are stepped before their effects are performed together.
const EVENTS_PER_ROUND_MAX: usize = 64;
/// How often round trips and the wall clock are looked at.
const LOOK_AROUND: Duration = Duration::from_secs(1);

/// Something the driver is told.
pub enum Event {
    /// By another validator; checked.
    Message {
        /// Who sent it (not always who signed it).
        from: NodeIdx,
        /// What.
        message: CheckedMessage,
    },
    /// A certified batch is durable here.
    BatchStored(StoredBatch),
    /// Another validator holds a certified batch.
    Noticed {
        /// Who.
        from: NodeIdx,
        /// Which.
        batch: BatchRef,
    },
    /// Another validator wants a block that is not in the store.
    AskedForBlock {
        /// Which.
        digest: Digest,
        /// Where the answer goes.
        answer: oneshot::Sender<Option<Box<Block>>>,
    },
    /// A block that the core asked for; its digest is the one asked for.
    BlockFetched(Box<Block>),
    /// Final blocks that the core asked for; none if the peer failed.
    Synced {
        /// Who was asked.
        from: NodeIdx,
        /// Verified, ascending.
        blocks: Vec<Checked<FinalizedBlock>>,
    },
    /// Final blocks above my tip at the start, verified: may bear signatures of mine.
    Overheard(Vec<Checked<FinalizedBlock>>),
    /// A peer is connected anew.
    Connected(NodeIdx),
}

/// Where events of this validator's own rooms go.
pub type EventSender = mpsc::Sender<Event>;

/// What the driver works with.
pub struct Driver {
    pub(crate) ports: Ports,
    pub(crate) config: Config,
    pub(crate) clone_watch: Duration,
    pub(crate) guard: SigningGuard,
    pub(crate) ledger: Ledger<ChainState>,
    pub(crate) peers: Peers,
    pub(crate) fetcher: Fetcher,
    pub(crate) blocks: BlockStore,
    pub(crate) batches: BatchStore,
    pub(crate) verified: VerifiedEntries,
    pub(crate) outcomes: Outcomes,
    pub(crate) executed: ExecutedWatch,
    pub(crate) block_clock: BlockClock,
    pub(crate) events: mpsc::Receiver<Event>,
    pub(crate) incoming: Incoming,
    pub(crate) sender: EventSender,
    pub(crate) shutdown: Watch<bool>,
    pub(crate) halt: Halt,
    pub(crate) stopwatch: Stopwatch,
}

/// The driver after listening.
struct Running {
    core: GlobalCore<ChainState>,
    timer: Option<Instant>,
    effects: Vec<Effect>,
}

enum Woken {
    Event(Event),
    Heard(Heard),
    Timer,
    Shutdown,
}

impl Driver {
    /// Drives until shutdown, or until something stops the validator.
    pub async fn run(mut self) {
        if let Err(stop) = self.drive().await {
            self.halt.stop(stop);
        }
        self.incoming.close();
    }

    async fn drive(&mut self) -> Result<(), Stop> {
        let Some(held) = self.listen().await? else {
            return Ok(());
        };
        let mut running = self.begin()?;
        while let Some(heard) = held.pop() {
            self.take(&mut running, heard.event)?;
        }
        let mut look_around_at = self.now().at;
        loop {
            self.perform(&mut running).await?;
            self.publish(&running);
            if self.now().at >= look_around_at {
                self.look_around(&mut running);
                look_around_at = self.now().at.plus_us(LOOK_AROUND.as_micros() as u64);
                continue;
            }
            let wake_at = running.timer.map_or(look_around_at, |timer| timer.min(look_around_at));
            match self.wait(wake_at).await {
                Woken::Event(event) | Woken::Heard(Heard { event, .. }) => self.take_round(&mut running, event)?,
                Woken::Timer => self.step(&mut running, Input::Tick),
                Woken::Shutdown => return Ok(()),
            }
        }
    }

    fn now(&self) -> Now {
        Now {
            at: Instant(self.ports.clock.now().us),
            clock: self.block_clock.now(),
        }
    }

    /// Waits for an event, for `until`, or for the shutdown.
    async fn wait(&mut self, until: Instant) -> Woken {
        let left = Duration::from_micros(until.0.saturating_sub(self.ports.clock.now().us));
        futures::select_biased! {
            _ = self.shutdown.wait_until(|is_asked| *is_asked).fuse() => Woken::Shutdown,
            event = self.events.recv().fuse() => event.map_or(Woken::Shutdown, Woken::Event),
            heard = self.incoming.next().fuse() => Woken::Heard(heard),
            () = tokio::time::sleep(left).fuse() => Woken::Timer,
        }
    }

    /// Listens without a word. Returns what was heard, or `None` if the shutdown came.
    async fn listen(&mut self) -> Result<Option<Incoming>, Stop> {
        let until = self.now().at.plus_us(self.clone_watch.as_micros() as u64);
        tracing::info!(clone_watch = ?self.clone_watch, "listening before the first vote");
        for link in self.peers.iter() {
            // What others hold above my tip may bear signatures of mine that I do not remember.
            self.overhear(link.idx, self.blocks.tip().0.next());
        }
        let held = Incoming::default();
        while self.now().at < until {
            match self.wait(until).await {
                Woken::Heard(Heard {
                    event: Event::AskedForBlock { answer, .. },
                    ..
                }) => {
                    // Whoever asked may have given up.
                    let _ = answer.send(None);
                }
                Woken::Heard(Heard { from, event, bytes }) => {
                    self.check_clone(&event)?;
                    // Of a peer that says more meanwhile the rest is dropped: its core sends again what matters.
                    let _ = held.push(from, event, bytes);
                }
                // What others hold. A stored batch is found on the disk when the core is built; it has asked for
                // nothing yet that could be fetched.
                Woken::Event(event) => self.check_clone(&event)?,
                Woken::Timer => {}
                Woken::Shutdown => return Ok(None),
            }
        }
        Ok(Some(held))
    }

    /// Builds the core from what is durable.
    fn begin(&mut self) -> Result<Running, Stop> {
        let mut effects = Vec::new();
        let recovered = self.recovered()?;
        let ledger = self.ledger.clone();
        let now = self.now();
        let core = GlobalCore::new(self.config.clone(), ledger, recovered, now, &mut effects);
        tracing::info!(view = %core.view(), height = %core.tip().height, "voting");
        let running = Running {
            core,
            timer: None,
            effects,
        };
        self.note_executed(&running, 0);
        Ok(running)
    }

    fn recovered(&self) -> Result<Recovered, Stop> {
        use common::wire::bft::Certificate;
        use global_core::Record;
        let mut recovered = Recovered {
            guard: self.guard.guard().clone(),
            ..Recovered::default()
        };
        for record in self.guard.persisted() {
            match record {
                Record::Proposal(proposal) => recovered.proposals.push((**proposal).clone()),
                Record::Certificate(certificate) => recovered.certificates.push(certificate.clone()),
            }
        }
        if let Some(last) = self.blocks.at(self.ledger.tip().height)? {
            let finalization = Certificate::Finalization(last.proof.finalization);
            recovered.certificates.push(finalization);
        }
        let queue = self.ledger.executed_state().queue();
        for cluster in queue.clusters() {
            if let Some(cursor) = queue.cursor(cluster) {
                let waiting = self.batches.from_seq(cluster, cursor.founding, cursor.next_seq);
                recovered.batches.extend(waiting);
            }
        }
        Ok(recovered)
    }

    fn step(&self, running: &mut Running, input: Input) {
        let noted = running.effects.len();
        running.core.step(self.now(), input, &mut running.effects);
        self.note_executed(running, noted);
    }

    fn execute(&self, running: &mut Running, block: &Block) -> Result<(), Stop> {
        let gathered = self.gather(block)?;
        let noted = running.effects.len();
        let (now, digest) = (self.now(), block.digest());
        running.core.execute(now, &digest, &gathered, &mut running.effects);
        self.note_executed(running, noted);
        Ok(())
    }

    /// Keeps the outcomes of final blocks that the last step reported as executed: the core may drop
    /// their states in the next one.
    fn note_executed(&self, running: &Running, noted: usize) {
        for effect in &running.effects[noted..] {
            if let Effect::Executed { height, digest } = effect {
                let state = running.core.ledger().state_of(digest);
                let state = state.expect("the state of an executed block stays until the next step");
                self.outcomes.record(*height, state.outcomes().clone());
            }
        }
    }

    fn take_round(&mut self, running: &mut Running, first: Event) -> Result<(), Stop> {
        self.take(running, first)?;
        for turn in 1..EVENTS_PER_ROUND_MAX {
            // In turn, so that neither peers nor this validator's own rooms keep the others waiting.
            let (own, peers) = (&mut self.events, &self.incoming);
            let event = match turn % 2 {
                0 => own.try_recv().ok().or_else(|| Some(peers.pop()?.event)),
                _ => peers.pop().map(|heard| heard.event).or_else(|| own.try_recv().ok()),
            };
            let Some(event) = event else { break };
            self.take(running, event)?;
        }
        Ok(())
    }

    /// Nobody else may sign with this validator's key.
    fn check_clone(&self, event: &Event) -> Result<(), Refusal> {
        let watch = CloneWatch::new(&self.guard, &self.config);
        match event {
            Event::Message { message, .. } => watch.check_message(message),
            Event::Synced { blocks, .. } | Event::Overheard(blocks) => watch.check_finalized(blocks),
            _ => Ok(()),
        }
    }

    fn take(&self, running: &mut Running, event: Event) -> Result<(), Stop> {
        self.check_clone(&event)?;
        let input = match event {
            Event::Message { message, .. } => Input::Message(message),
            Event::BatchStored(stored) => {
                self.stopwatch.batch_stored(stored.batch.digest, self.now().at.0);
                Input::BatchStored(stored)
            }
            Event::Noticed { from, batch } => Input::BatchHeard { batch, from },
            Event::AskedForBlock { digest, answer } => {
                let block = running.core.ledger().block(&digest).cloned().map(Box::new);
                // Whoever asked may have given up.
                let _ = answer.send(block);
                return Ok(());
            }
            Event::BlockFetched(block) => Input::BlockFetched(block),
            Event::Synced { from, blocks } if blocks.is_empty() => Input::SyncFailed { from },
            Event::Synced { from, blocks } => Input::SyncAnswered { from, blocks },
            Event::Overheard(_) => return Ok(()),
            Event::Connected(peer) => Input::PeerConnected(peer),
        };
        self.step(running, input);
        Ok(())
    }

    /// Tells the core how far peers are, and follows the wall clock a little.
    fn look_around(&self, running: &mut Running) {
        for link in self.peers.iter() {
            if let Some(us) = link.outgoing.round_trip_us() {
                self.step(running, Input::RoundTrip { peer: link.idx, us });
            }
        }
        let ahead_us = self.block_clock.follow();
        // Half of the least bound on clocks is worth a word; block time itself is not moved by it.
        if ahead_us.unsigned_abs() > self.config.timing.block_time_bound_us / 2 {
            tracing::warn!(ahead_us, "the wall clock is off from this validator's block time");
        }
    }

    /// Shows the doors where the core is now.
    fn publish(&self, running: &Running) {
        let core = &running.core;
        let (before, state) = (self.executed.get(), core.ledger().executed_state());
        let is_same_state = before.queue.tip() == state.queue().tip();
        if is_same_state && before.view == core.view() && !before.is_listening {
            return;
        }
        let queue = if is_same_state {
            before.queue.clone()
        } else {
            Arc::new(state.queue().clone())
        };
        self.executed.set(Arc::new(Executed {
            queue,
            epoch: self.config.set.epoch(),
            view: core.view(),
            is_listening: false,
            holdings: core.holdings(before.queue.height()),
        }));
    }
}
