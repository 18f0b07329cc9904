//! Power cuts under a validator's files: no vote is forgotten, no batch or block that was acknowledged is lost.
//!
//! A worker votes, stores batches and stores blocks on one disk, as the validator does. It says what it is about
//! to sign and what was acknowledged; the test holds what the disk kept against that.

#![allow(clippy::disallowed_methods)]

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::Path,
    sync::Arc,
};

use common::{
    block::{Block, FinalizedBlock},
    certificate::{Ballot, Vote},
    genesis::FaultModel,
    ids::{ClusterId, Digest, Epoch, Height, View},
    task::Scope,
    testing::{BlockChain, ClusterLog, Fleet, task},
    wire::bft::Certificate,
};
use global_core::{GuardRecord, Record};
use global_validator::{
    batch_store::{BatchStore, SharedBatch},
    block_store::BlockStore,
    guard::{Owner, SigningGuard},
    halt::Halt,
};
use powercut::{Cut, Machine, Report, Rng};
use transport::{
    machine::{MachineDisk, MachineEntropy, OnPanic, TokioSpawner},
    ports::{Disk, Entropy, Spawner},
};

/// Machines, and lives of each one after the other.
const MACHINES: u64 = 5;
const LIVES: u64 = 4;
/// Lines after which a worker is killed, at most.
const LINES_PER_LIFE_MAX: u64 = 200;
const CLUSTER: ClusterId = ClusterId(0);

/// The stores of one validator, opened.
struct Stores {
    guard: SigningGuard,
    batches: BatchStore,
    blocks: BlockStore,
}

fn disk_of(data: &Path) -> Arc<dyn Disk> {
    // The writers of the stores that were closed a moment ago end with their runtime.
    Arc::new(MachineDisk::open(data).expect("nobody else holds the directory"))
}

async fn open(fleet: &Fleet, data: &Path, when: &str) -> Stores {
    let disk = disk_of(data);
    let entropy: Arc<dyn Entropy> = Arc::new(MachineEntropy::new());
    let spawner: Arc<dyn Spawner> = Arc::new(TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log));
    let owner = Owner {
        chain: fleet.chain,
        device: fleet.id("v1"),
        idx: fleet.idx("v1"),
    };
    let guard = SigningGuard::open(&disk, &entropy, fleet.consensus_key("v1"), owner).await;
    let (genesis, registry) = (Arc::new(fleet.genesis.clone()), Arc::new(fleet.registry.clone()));
    let batches = BatchStore::open(&disk, &spawner, &Halt::default(), genesis, registry);
    let blocks = BlockStore::open(&disk, &spawner, &Halt::default(), &fleet.chain);
    let failed = |error: &dyn std::fmt::Display| -> ! { panic!("{when}: {error}") };
    Stores {
        guard: guard.unwrap_or_else(|error| failed(&error)),
        batches: batches.unwrap_or_else(|error: io::Error| failed(&error)),
        blocks: blocks.unwrap_or_else(|error: io::Error| failed(&error)),
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn ballot(view: u64, content: u64) -> Ballot {
    Ballot {
        epoch: Epoch(0),
        view: View(view),
        height: Height(view),
        digest: Digest([content as u8; 32]),
    }
}

fn notarize(view: u64, content: u64) -> GuardRecord {
    GuardRecord::Vote(Vote::Notarize(ballot(view, content)))
}

fn finalize(view: u64, content: u64) -> GuardRecord {
    GuardRecord::Vote(Vote::Finalize(ballot(view, content)))
}

/// All batches and blocks there will be, the same in test and worker.
struct Content {
    fleet: Fleet,
    log: ClusterLog,
    made: Vec<SharedBatch>,
    chain: BlockChain,
    blocks: Vec<FinalizedBlock>,
    /// A proposal so long that the guard's journal soon has to be rewritten.
    long: Block,
}

impl Content {
    fn new() -> Self {
        let fleet = Fleet::new(1, 3, 4);
        let mut other_chain = BlockChain::new(&fleet, Digest::default());
        Self {
            log: ClusterLog::new(&fleet, CLUSTER),
            chain: BlockChain::new(&fleet, Digest::default()),
            long: other_chain.block(&fleet, &[], 20),
            fleet,
            made: Vec::new(),
            blocks: Vec::new(),
        }
    }

    fn batch(&mut self, at: usize) -> SharedBatch {
        while self.made.len() <= at {
            let number = self.made.len() as u64 + 1;
            let task = task(&format!("task-{number}"));
            let entry = self.fleet.submit("op1", CLUSTER, number, Scope::Fleet, &task);
            let batch = self.log.granted(&self.fleet, vec![entry]);
            let roster = self.fleet.roster(CLUSTER);
            let batch = batch.verify(&self.fleet.registry, &roster, FaultModel::Byzantine);
            self.made.push(Arc::new(batch.expect("a good batch")));
        }
        self.made[at].clone()
    }

    /// The blocks above height `from`.
    fn blocks(&mut self, from: usize, count: usize) -> &[FinalizedBlock] {
        while self.blocks.len() < from + count {
            let block = self.chain.block(&self.fleet, &[], 20);
            self.blocks.push(self.fleet.finalize(block));
        }
        &self.blocks[from..from + count]
    }

    /// A proposal of `view` of some 100 KiB, to be persisted only.
    fn long_proposal(&self, view: u64) -> Record {
        let mut proposal = self.fleet.propose(self.long.clone(), None);
        proposal.block.header.view = View(view);
        let filler = self.fleet.nullification(View(1));
        proposal.nullifications = vec![filler; 400].try_into().expect("within the bound");
        Record::Proposal(Box::new(proposal))
    }
}

/// Works for ever. `view`: the first to vote in.
async fn work(data: &Path, seed: u64, mut view: u64, report: &Report) {
    let (mut rng, mut content) = (Rng::new(seed), Content::new());
    let mut stores = open(&content.fleet, data, "worker").await;
    report.say(format!("open {} {}", stores.batches.len(), stores.blocks.tip().0));
    for batch in 0..stores.batches.len() {
        // Whoever sends a batch again is told that it is here.
        let (_, is_new) = stores.batches.put(content.batch(batch)).await.unwrap();
        assert!(!is_new, "batches come back in order");
        report.say(format!("batch {batch}"));
    }
    loop {
        match rng.below(8) {
            0..=3 => {
                let choice = rng.below(256);
                report.say(format!("will {view} {choice}"));
                vote(&mut stores.guard, &content, &mut rng, view, choice, report).await;
                view += 1;
            }
            4 | 5 => {
                let held = stores.batches.len();
                let count = 1 + rng.below(3) as usize;
                let puts = (held..held + count)
                    .map(|at| (at, content.batch(at)))
                    .collect::<Vec<_>>();
                let store = &stores.batches;
                let puts = puts.into_iter().map(async |(at, batch)| {
                    store.put(batch).await.unwrap();
                    report.say(format!("batch {at}"));
                });
                futures::future::join_all(puts).await;
            }
            _ => {
                let tip = stores.blocks.tip().0.0 as usize;
                let blocks = content.blocks(tip, 1 + rng.below(3) as usize);
                stores.blocks.append(blocks).await.unwrap();
                report.say(format!("tip {}", stores.blocks.tip().0));
            }
        }
    }
}

/// Notarizes in `view`, then finalizes or nullifies, or neither; each is said once it may be sent.
async fn vote(guard: &mut SigningGuard, content: &Content, rng: &mut Rng, view: u64, choice: u64, report: &Report) {
    guard.admit(notarize(view, choice)).unwrap();
    guard.flush().await.unwrap();
    let _ = guard.sign_vote(Vote::Notarize(ballot(view, choice)));
    report.say(format!("voted {view} {choice}"));
    if rng.once_in(3) {
        guard.persist(content.long_proposal(view));
    }
    guard.persist(Record::Certificate(Certificate::Notarization(
        content.fleet.notarization(ballot(view, choice)),
    )));
    if rng.once_in(2) {
        guard.admit(finalize(view, choice)).unwrap();
        guard.flush().await.unwrap();
        let _ = guard.sign_vote(Vote::Finalize(ballot(view, choice)));
        report.say(format!("finalized {view} {choice}"));
    }
    if rng.once_in(4) && view > 3 {
        report.say(format!("compacts {}", view - 3));
        guard.compact((Epoch(0), View(view - 3))).await.unwrap();
    }
}

/// What was said, and so must hold.
#[derive(Default)]
struct Said {
    /// May have been signed.
    may: BTreeSet<(u64, u64)>,
    voted: BTreeMap<u64, u64>,
    finalized: BTreeMap<u64, u64>,
    compacted: u64,
    batches: u64,
    tip: u64,
}

impl Said {
    fn hear(&mut self, line: &str) {
        let mut words = line.split(' ');
        let kind = words.next().unwrap_or_default();
        let numbers: Vec<u64> = words.map(|word| word.parse().expect("a number")).collect();
        match (kind, numbers.as_slice()) {
            ("open", [batches, tip]) => {
                assert!(
                    *batches >= self.batches && *tip >= self.tip,
                    "{line}: less than was acknowledged"
                );
                self.tip = *tip;
            }
            ("will", [view, choice]) => drop(self.may.insert((*view, *choice))),
            ("voted", [view, choice]) => drop(self.voted.insert(*view, *choice)),
            ("finalized", [view, choice]) => drop(self.finalized.insert(*view, *choice)),
            ("compacts", [view]) => self.compacted = *view,
            ("batch", [at]) => self.batches = self.batches.max(at + 1),
            ("tip", [height]) => self.tip = *height,
            _ => panic!("the worker says {line:?}"),
        }
    }

    fn next_view(&self) -> u64 {
        self.may.last().map_or(1, |(view, _)| view + 1)
    }

    /// Holds the opened stores against what was said.
    async fn check(&self, mut stores: Stores, content: &mut Content, when: &str) {
        let floor = stores.guard.guard().compacted().map_or(0, |(_, view)| view.0);
        assert!(
            floor <= self.compacted,
            "{when}: compacted to {floor}, asked for {}",
            self.compacted
        );
        for (view, choice) in self.voted.range(floor + 1..) {
            let other = notarize(*view, choice ^ 1);
            assert!(
                stores.guard.guard().holds(&notarize(*view, *choice)),
                "{when}: vote of view {view} is lost"
            );
            assert!(
                stores.guard.admit(other).is_err(),
                "{when}: a second vote in view {view}"
            );
        }
        for (view, choice) in self.finalized.range(floor + 1..) {
            assert!(
                stores.guard.guard().holds(&finalize(*view, *choice)),
                "{when}: finalize of view {view} is lost"
            );
        }
        for record in stores.guard.guard().records() {
            let GuardRecord::Vote(Vote::Notarize(ballot) | Vote::Finalize(ballot)) = record else {
                panic!("{when}: {record:?} was never made")
            };
            let made = (ballot.view.0, u64::from(ballot.digest.0[0]));
            assert!(self.may.contains(&made), "{when}: {record:?} was never made");
        }
        for at in 0..self.batches as usize {
            let batch = content.batch(at);
            let digest = batch.digest(&content.fleet.chain);
            let found = stores.batches.verified(&digest).unwrap();
            assert_eq!(found.as_ref(), Some(&batch), "{when}: batch {at} is lost");
        }
        assert!(stores.blocks.tip().0.0 >= self.tip, "{when}: blocks are lost");
        let tip = stores.blocks.tip().0.0 as usize;
        for (height, block) in (1..).zip(content.blocks(0, tip)) {
            assert_eq!(
                stores.blocks.at(Height(height)).unwrap().as_ref(),
                Some(block),
                "{when}"
            );
        }
    }
}

fn live(machine: &Machine, test: &str, said: &mut Said, seed: u64) {
    let mut rng = Rng::new(!seed);
    let life = format!("{seed} {} {}", said.next_view(), machine.data().display());
    let mut life = machine.run(test, &life);
    let kill_after = if rng.once_in(5) {
        0
    } else {
        1 + rng.below(LINES_PER_LIFE_MAX)
    };
    for _ in 0..kill_after {
        let line = life
            .next_line()
            .unwrap_or_else(|| panic!("the worker ended: {}", life.log()));
        said.hear(&line);
    }
    std::thread::sleep(std::time::Duration::from_micros(rng.below(4_000)));
    life.kill().iter().for_each(|line| said.hear(line));
}

fn run(test: &str, is_mix: bool) {
    if let Some((life, report)) = powercut::worker() {
        let words: Vec<&str> = life.splitn(3, ' ').collect();
        let (seed, view) = (words[0].parse().unwrap(), words[1].parse().unwrap());
        return runtime().block_on(work(Path::new(words[2]), seed, view, &report));
    }
    let (first_seed, mut content) = (powercut::first_seed(), Content::new());
    let (mut votes, mut batches, mut blocks, mut compacted) = (0, 0, 0, 0);
    for number in 0..MACHINES {
        let (machine, mut said) = (Machine::new(), Said::default());
        for life in 0..LIVES {
            let seed = first_seed * 1_000 + number * 10 + life;
            // Before some cuts the process alone dies and comes back: its page cache is not the disk.
            for restart in 0..life % 3 {
                live(&machine, test, &mut said, seed + 100 * (restart + 1));
            }
            live(&machine, test, &mut said, seed);
            let cut = if is_mix { Cut::Mix { seed } } else { Cut::Drop };
            machine.cut(cut);
            let when = format!("seed {seed}, {cut:?}");
            let runtime = runtime();
            let stores = runtime.block_on(open(&content.fleet, &machine.data(), &when));
            compacted += u64::from(stores.guard.guard().compacted().is_some());
            runtime.block_on(said.check(stores, &mut content, &when));
            drop(runtime);
            machine.adopt();
        }
        votes += said.voted.len();
        batches += said.batches;
        blocks += said.tip;
    }
    eprintln!(
        "{test}: {} cuts from seed {first_seed}; acknowledged {votes} votes, {batches} batches, {blocks} blocks",
        MACHINES * LIVES
    );
    assert!(
        votes > 200 && batches > 100 && blocks > 100 && compacted > 2,
        "too little was tried"
    );
}

#[test]
fn votes_batches_and_blocks_survive_when_only_synced_bytes_do() {
    run("votes_batches_and_blocks_survive_when_only_synced_bytes_do", false);
}

#[test]
fn votes_batches_and_blocks_survive_when_random_pages_do() {
    run("votes_batches_and_blocks_survive_when_random_pages_do", true);
}
