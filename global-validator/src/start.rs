//! Puts the rooms of a validator together: the one entry for `main`, the simulator and tests.

use std::{io, sync::Arc, time::Duration};

use common::{
    block::{Block, FinalizedBlock},
    codec::Label,
    crypto::ConsensusKey,
    genesis::Genesis,
    global_queue::GlobalQueue,
    ids::{BlockTime, DeviceId, Height, NodeIdx},
    registry::Registry,
    validator_set::ValidatorSet,
    wire::bft::{BatchNotice, BftMessage},
};
use global_core::{Config, Holdings, Ledger, Recipient, Verifier, batch_pool::StoredBatch};
use tokio::sync::mpsc;
use transport::{
    ports::{BoxFuture, Disk},
    watch::Watch,
};

use crate::{
    api::{Api, ApiParts},
    batch_store::{BATCHES, BatchStore, SharedBatch},
    block_store::{BLOCKS, BlockStore},
    block_time::BlockClock,
    driver::{Driver, EVENTS_WAITING_MAX, Event, EventSender, Incoming},
    executed::{Executed, ExecutedWatch},
    execution::{ChainState, Gathered},
    exit::Stop,
    guard::{MARKER_FILE, Owner, Refusal, SigningGuard},
    halt::Halt,
    intake::{Announce, Intake},
    outcomes::Outcomes,
    peers::{PeerDoor, Peers, fetch::Fetcher},
    ports::Ports,
    prove::Prover,
    service::{Door, Doors},
    stopwatch::Stopwatch,
    verified_entries::VerifiedEntries,
};

/// Who a validator is and how it starts.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The fleet.
    pub genesis: Arc<Genesis>,
    /// Name of this validator in it.
    pub label: Label,
    /// Its consensus key.
    pub consensus_key: ConsensusKey,
    /// How long to listen before the first vote, at least four view timers.
    pub clone_watch: Duration,
}

/// A running validator. Its tasks go on when this is dropped; [`Validator::shut_down`] ends the driver.
#[derive(Clone)]
pub struct Validator {
    executed: ExecutedWatch,
    blocks: BlockStore,
    batches: BatchStore,
    fetcher: Fetcher,
    halt: Halt,
    shutdown: Watch<bool>,
}

/// Tells the core and the other validators of a stored batch.
struct Announcer {
    events: EventSender,
    peers: Peers,
}

impl Announce for Announcer {
    fn stored(&self, batch: SharedBatch, stored: StoredBatch, is_news: bool) -> BoxFuture<()> {
        if is_news {
            let notice = BatchNotice {
                header: batch.header.clone(),
                attestations: batch.attestations.clone(),
            };
            self.peers.send(Recipient::All, &BftMessage::BatchNotice(notice));
        }
        let events = self.events.clone();
        Box::pin(async move {
            // If the driver has ended the validator is ending.
            let _ = events.send(Event::BatchStored(stored)).await;
        })
    }
}

/// Damage found at a start is a refusal: the operator must look. Anything else is the disk's failure.
fn opening(file: &'static str) -> impl FnOnce(io::Error) -> Stop {
    move |error| match error.kind() {
        io::ErrorKind::InvalidData => Refusal::Corrupt {
            file,
            why: error.to_string(),
        }
        .into(),
        _ => Stop::storage(file)(error),
    }
}

/// Stores that vanished beside the marker are not made anew.
fn check_stores(disk: &dyn Disk) -> Result<(), Stop> {
    let is_marked = disk.read(MARKER_FILE).map_err(Stop::storage(MARKER_FILE))?.is_some();
    for name in [BLOCKS, BATCHES] {
        let files = disk.list(&format!("{name}-")).map_err(Stop::storage(name))?;
        if is_marked && files.is_empty() {
            return Err(Refusal::MissingStore(name).into());
        }
    }
    Ok(())
}

/// Blocks, batches and what executing them left behind.
struct Stores {
    blocks: BlockStore,
    batches: BatchStore,
    verified: VerifiedEntries,
    outcomes: Outcomes,
    ledger: Ledger<ChainState>,
    /// Time of the newest final block, executed or not.
    newest: BlockTime,
}

impl Stores {
    fn open(ports: &Ports, halt: &Halt, genesis: &Arc<Genesis>, registry: &Arc<Registry>) -> Result<Self, Stop> {
        let chain = *registry.chain();
        let (disk, spawner) = (&ports.disk, &ports.spawner);
        let blocks = BlockStore::open(disk, spawner, halt, &chain).map_err(opening(BLOCKS))?;
        let batches =
            BatchStore::open(disk, spawner, halt, genesis.clone(), registry.clone()).map_err(opening(BATCHES))?;
        let state = ChainState::genesis(GlobalQueue::genesis(genesis));
        let mut stores = Self {
            blocks,
            batches,
            verified: VerifiedEntries::new(registry.clone()),
            outcomes: Outcomes::default(),
            ledger: Ledger::genesis(chain, genesis.genesis_time, state),
            newest: genesis.genesis_time,
        };
        stores.replay()?;
        Ok(stores)
    }

    /// Executes the stored blocks, up to the first one whose batches did not all arrive before the end; those
    /// above are final all the same, and executed once the batches come.
    fn replay(&mut self) -> Result<(), Stop> {
        while let Some(finalized) = self.blocks.at(self.ledger.tip().height.next())? {
            let height = finalized.block.header.height;
            self.newest = finalized.block.header.time;
            let diverged = |error| Stop::Diverged(format!("replaying height {height}: {error}"));
            let is_executed_below = self.ledger.executed_height() == self.ledger.tip().height;
            let gathered = match is_executed_below {
                true => self.gather(&finalized)?,
                false => None,
            };
            let Some(gathered) = gathered else {
                tracing::info!(%height, "not executed yet: batches of this final block or one below are not here");
                self.ledger.restore(&finalized).map_err(diverged)?;
                continue;
            };
            self.ledger.replay(&finalized, &gathered).map_err(diverged)?;
            let outcomes = self.ledger.executed_state().outcomes().clone();
            self.outcomes.record(height, outcomes);
        }
        Ok(())
    }

    fn gather(&self, finalized: &FinalizedBlock) -> Result<Option<Gathered>, Stop> {
        let block: &Block = &finalized.block;
        let mut batches = Vec::with_capacity(block.refs.len());
        for name in &block.refs {
            if !self.batches.contains(&name.digest) {
                return Ok(None);
            }
            batches.push(self.batches.verified(&name.digest)?);
        }
        Ok(Some(Gathered {
            batches,
            verified: self.verified.clone(),
        }))
    }

    /// The blocks that the guard says were durable must be here.
    fn check_guard(&self, guard: &SigningGuard) -> Result<(), Stop> {
        let Some((epoch, view)) = guard.guard().compacted() else {
            return Ok(());
        };
        let last = self.blocks.at(self.blocks.tip().0)?;
        let block_view = last.map(|last| last.block.header.view).unwrap_or_default();
        if block_view < view {
            return Err(Refusal::BlocksMissing {
                epoch,
                view,
                block_view,
            }
            .into());
        }
        Ok(())
    }
}

impl Validator {
    /// Starts a validator on `ports` and opens `door`, the service behind its transport.
    ///
    /// # Errors
    /// [`Stop`]: it must not run. Nothing was sent.
    pub async fn start(setup: Setup, ports: Ports, door: &Door) -> Result<Self, Stop> {
        let genesis = &setup.genesis;
        let registry = Arc::new(Registry::from_genesis(genesis));
        let member = registry
            .by_label(setup.label.as_str())
            .ok_or_else(|| Stop::NotInGenesis(setup.label.clone()))?;
        let (me, device) = (member.idx, member.id);
        let config = Config::from_genesis(genesis, Some(me))?;
        let halt = Halt::default();
        let owner = Owner {
            chain: *registry.chain(),
            device,
            idx: me,
        };
        SigningGuard::check_owner(ports.disk.as_ref(), &owner, &setup.consensus_key)?;
        check_stores(ports.disk.as_ref())?;
        // The stores first: once the guard's marker is there, they are expected.
        let stores = Stores::open(&ports, &halt, genesis, &registry)?;
        let guard = SigningGuard::open(&ports.disk, &ports.entropy, setup.consensus_key.clone(), owner).await?;
        stores.check_guard(&guard)?;
        let clone_watch = clone_watch(setup.clone_watch, &config);
        let parts = Parts {
            setup,
            ports,
            registry,
            config,
            halt,
            me,
            device,
            clone_watch,
        };
        Ok(parts.run(guard, stores, door))
    }

    /// The newest executed state and the validator's place in the protocol.
    #[must_use]
    pub fn executed(&self) -> &ExecutedWatch {
        &self.executed
    }

    /// Height of the last final block, to wait on.
    #[must_use]
    pub fn height(&self) -> &Watch<Height> {
        self.blocks.tip_watch()
    }

    /// Final blocks.
    #[must_use]
    pub fn blocks(&self) -> &BlockStore {
        &self.blocks
    }

    /// Certified batches on this validator's disk.
    #[must_use]
    pub fn batches(&self) -> &BatchStore {
        &self.batches
    }

    /// Blocks and batches that are wanted from other validators, or being asked for.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.fetcher.wanted()
    }

    /// Waits until the validator stops by itself; for ever if it does not.
    pub async fn stopped(&self) -> Arc<Stop> {
        self.halt.stopped().await
    }

    /// Why it stopped by itself, if it did.
    #[must_use]
    pub fn stop_reason(&self) -> Option<Arc<Stop>> {
        self.halt.reason()
    }

    /// Ends the driver after what it is doing: nothing more is signed. What was signed is durable.
    pub fn shut_down(&self) {
        self.shutdown.set(true);
    }
}

/// At least four view timers, as they are when the network is at its best.
fn clone_watch(wanted: Duration, config: &Config) -> Duration {
    wanted.max(Duration::from_micros(4 * 3 * config.timing.delay_us_min))
}

struct Parts {
    setup: Setup,
    ports: Ports,
    registry: Arc<Registry>,
    config: Config,
    halt: Halt,
    me: NodeIdx,
    device: DeviceId,
    clone_watch: Duration,
}

/// What doors and driver share.
struct Rooms {
    set: Arc<ValidatorSet>,
    peers: Peers,
    events: EventSender,
    incoming: Incoming,
    executed: ExecutedWatch,
    block_clock: BlockClock,
    intake: Intake,
    stores: Stores,
    stopwatch: Stopwatch,
}

impl Parts {
    fn run(self, guard: SigningGuard, stores: Stores, door: &Door) -> Validator {
        let (sender, events) = mpsc::channel(EVENTS_WAITING_MAX);
        let rooms = self.rooms(stores, sender);
        let fetcher = self.fetcher(&rooms);
        self.spawn_peers(&rooms, &fetcher);
        let shutdown = Watch::new(false);
        door.open(self.doors(&rooms));
        let validator = Validator {
            executed: rooms.executed.clone(),
            blocks: rooms.stores.blocks.clone(),
            batches: rooms.stores.batches.clone(),
            fetcher: fetcher.clone(),
            halt: self.halt.clone(),
            shutdown: shutdown.clone(),
        };
        let driver = Driver {
            fetcher,
            config: self.config,
            clone_watch: self.clone_watch,
            guard,
            ledger: rooms.stores.ledger,
            peers: rooms.peers,
            blocks: rooms.stores.blocks,
            batches: rooms.stores.batches,
            verified: rooms.stores.verified,
            outcomes: rooms.stores.outcomes,
            executed: rooms.executed,
            block_clock: rooms.block_clock,
            events,
            sender: rooms.events,
            incoming: rooms.incoming,
            shutdown,
            halt: self.halt,
            ports: self.ports.clone(),
            stopwatch: rooms.stopwatch,
        };
        self.ports.spawner.spawn("driver", Box::pin(driver.run()));
        validator
    }

    fn rooms(&self, stores: Stores, events: EventSender) -> Rooms {
        let set = Arc::new(self.config.set.clone());
        let bound_us = u64::from(self.setup.genesis.timing.clocks.block_time_bound_ms) * 1_000;
        let block_clock = BlockClock::start(self.ports.clock.clone(), stores.newest, bound_us);
        let peers = Peers::new(&self.registry, &set, self.me);
        let executed = Watch::new(Arc::new(Executed {
            queue: Arc::new(stores.ledger.executed_state().queue().clone()),
            epoch: set.epoch(),
            view: stores.ledger.tip().view.next(),
            is_listening: true,
            holdings: Holdings::default(),
        }));
        let announcer = Announcer {
            events: events.clone(),
            peers: peers.clone(),
        };
        let intake = Intake::new(
            self.registry.clone(),
            stores.batches.clone(),
            stores.blocks.clone(),
            executed.clone(),
            stores.verified.clone(),
            Arc::new(announcer),
            self.halt.clone(),
        );
        Rooms {
            set,
            peers,
            events,
            incoming: Incoming::default(),
            executed,
            block_clock,
            intake,
            stores,
            stopwatch: Stopwatch::default(),
        }
    }

    fn fetcher(&self, rooms: &Rooms) -> Fetcher {
        Fetcher::new(
            rooms.peers.clone(),
            self.ports.transport.clone(),
            *self.registry.chain(),
            self.config.set.clone(),
            rooms.intake.clone(),
            rooms.events.clone(),
        )
    }

    /// What talks to each of the other validators.
    fn spawn_peers(&self, rooms: &Rooms, fetcher: &Fetcher) {
        for link in rooms.peers.iter() {
            let (incoming, idx) = (rooms.incoming.clone(), link.idx);
            let came_back = move || {
                // If its inbox is full it has sent much itself; the core sends again by its own timers.
                let _ = incoming.push(idx, Event::Connected(idx), 0);
            };
            let sending = link
                .outgoing
                .clone()
                .run(link.device, self.ports.transport.clone(), came_back);
            self.ports.spawner.spawn("peer", Box::pin(sending));
            let asking = fetcher.clone().run(link.clone());
            self.ports.spawner.spawn("fetch", Box::pin(asking));
        }
    }

    fn doors(&self, rooms: &Rooms) -> Doors {
        let stores = &rooms.stores;
        let bft = PeerDoor::new(
            Verifier::new(*self.registry.chain(), self.config.set.clone()),
            rooms.incoming.clone(),
            rooms.executed.clone(),
            rooms.intake.clone(),
            stores.blocks.clone(),
            self.halt.clone(),
        );
        let op = Api::new(ApiParts {
            registry: self.registry.clone(),
            device: self.device,
            label: self.setup.label.clone(),
            set: rooms.set.clone(),
            executed: rooms.executed.clone(),
            blocks: stores.blocks.clone(),
            batches: stores.batches.clone(),
            prover: Prover {
                blocks: stores.blocks.clone(),
                batches: stores.batches.clone(),
                outcomes: stores.outcomes.clone(),
            },
            peers: rooms.peers.clone(),
            transport: self.ports.transport.clone(),
            clock: self.ports.clock.clone(),
            block_clock: rooms.block_clock.clone(),
            halt: self.halt.clone(),
            stopwatch: rooms.stopwatch.clone(),
        });
        Doors {
            feed: rooms.intake.clone(),
            bft,
            op,
        }
    }
}
