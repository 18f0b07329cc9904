//! Blocks come down past a validator that lies, and is the nearest. All of it in virtual time.

use std::{sync::Arc, time::Duration};

use cluster_agent::raft::ProposeOutcome;
use common::{
    batch::CertifiedBatch,
    block::{Advance, AdvancePart},
    codec::encode,
    entry::LogEntry,
    ids::{ClusterId, Height, LogIndex},
    task::{Scope, Task},
    testing::{ClusterLog, Fleet, task},
};
use transport::quic::hello_of;

use super::support::{
    Net,
    liar::{Liar, Lie},
};

const C2: ClusterId = ClusterId(1);
/// Between two validators an agent loses no more than some pauses.
const SOON: Duration = Duration::from_secs(2);

/// Cluster `c1` whose nearest validator lies from now on.
struct Place {
    net: Net,
    liar: Liar,
    /// The log of cluster `c2`, which nobody runs.
    other: ClusterLog,
    numbers: u64,
}

impl Place {
    async fn with(lie: Lie) -> Self {
        let net = Net::with_fleet(Fleet::new(2, 3, 4), 3).all_started().await;
        let leader = net.leader().await;
        // Validators at one distance are asked in this order.
        let turn = |label: &&str| (net.fleet.idx(label).0 + net.fleet.idx(&leader).0) % 4;
        let nearest = ["v1", "v2", "v3", "v4"].into_iter().min_by_key(turn).unwrap();
        let liar = Liar::new(net.ground.clone(), lie);
        let hello = hello_of(net.fleet.chain, net.fleet.id(nearest));
        net.network.join(net.fleet.idx(nearest), hello, Arc::new(liar.clone()));
        let other = ClusterLog::new(&net.fleet, C2);
        Self {
            net,
            liar,
            other,
            numbers: 0,
        }
    }

    /// A batch of `c2` with two tasks of `payload` bytes each.
    fn batch(&mut self, payload: usize) -> CertifiedBatch {
        let fleet = &self.net.fleet;
        let mut entry = || {
            self.numbers += 1;
            let task = Task {
                payload: vec![1; payload].try_into().unwrap(),
                ..task(&format!("k{}", self.numbers))
            };
            fleet.submit("op1", C2, self.numbers, Scope::Fleet, &task)
        };
        let entries = vec![entry(), entry()];
        self.other.granted(fleet, entries)
    }

    fn height(&self) -> Height {
        let mut heights = self.net.labels.iter().map(|label| {
            let machine = self.net.agent(label).machine();
            machine.with(|state| state.queue.global_height())
        });
        heights.next().map(|first| heights.fold(first, Height::min)).unwrap()
    }

    /// Waits until every member has applied `height`, and says how long it took.
    async fn applied(&self, height: Height) -> Duration {
        let begun = tokio::time::Instant::now();
        self.net
            .eventually("the block is applied", || (self.height() >= height).then_some(()))
            .await;
        begun.elapsed()
    }

    fn last_index(&self) -> LogIndex {
        self.net.agent("c1-1").raft().status().last_index
    }
}

/// Blocks of `batches` batches each, past a validator with `lie`, one every two seconds for a minute.
async fn blocks_enter_soon(lie: Lie, batches: usize, payload: usize) -> Place {
    let mut place = Place::with(lie).await;
    let (asked, index) = (place.liar.asked(), place.last_index());
    let mut slowest = Duration::ZERO;
    for _ in 0..30 {
        let batches = (0..batches).map(|_| place.batch(payload)).collect();
        place.net.ground.add_block(batches);
        slowest = slowest.max(place.applied(place.net.ground.height()).await);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    assert!(slowest <= SOON, "{slowest:?}");
    let asked = place.liar.asked() - asked;
    assert!(
        (1..=12).contains(&asked),
        "the validator that lies was asked {asked} times"
    );
    // A block in one part or two, beats, and blocks without batches.
    let entries = place.last_index().0 - index.0;
    assert!(entries < 300, "{entries} entries for 30 blocks");
    place
}

#[tokio::test(start_paused = true)]
async fn batch_that_lacks_a_row_is_its_source_s_fault_and_the_next_validator_is_asked() {
    blocks_enter_soon(Lie::RowDropped, 1, 16).await;
}

#[tokio::test(start_paused = true)]
async fn batch_that_lacks_a_row_in_a_block_of_several_parts_does_not_fill_the_log() {
    blocks_enter_soon(Lie::RowDropped, 20, 8 * 1024).await;
}

#[tokio::test(start_paused = true)]
async fn batch_by_digest_that_lacks_a_row_comes_from_the_next_validator() {
    blocks_enter_soon(Lie::RowDroppedByDigest, 3, 16).await;
}

#[tokio::test(start_paused = true)]
async fn validator_that_keeps_the_batches_of_its_blocks_is_left() {
    let mut place = Place::with(Lie::KeepsBatches).await;
    for _ in 0..20 {
        let batches = (0..5).map(|_| place.batch(16)).collect();
        place.net.ground.add_block(batches);
    }
    // One batch that was waited for.
    let took = place.applied(place.net.ground.height()).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn validator_that_gives_one_block_at_a_time_is_left() {
    let place = Place::with(Lie::Drips).await;
    let asked = place.liar.asked();
    let mut most_behind = 0;
    for second in 0..60 {
        for _ in 0..10 {
            place.net.ground.grow(1);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let behind = place.net.ground.height().0 - place.height().0;
        // At first it takes some time until another one is asked too.
        if second >= 10 {
            most_behind = most_behind.max(behind);
        }
    }
    let asked = place.liar.asked() - asked;
    // Whoever is tried again may pass its first comparison, when its first block is late by less than clocks may be off
    // and blocks may take; it does not pass the second one, a quarter of the custody time (3 s) later. An answer before each takes 2.4 s.
    assert!(most_behind <= 80, "{most_behind} blocks behind, ten a second");
    // Four times in each of three trials. It would be asked 25 times if it were not left.
    assert!(asked <= 15, "asked {asked} times");
}

#[tokio::test(start_paused = true)]
async fn validator_that_gives_one_block_at_a_time_is_left_where_the_link_is_as_slow_as_links_may_be() {
    let mut place = Place::with(Lie::Drips).await;
    place.net.ground.set_bytes_per_ms(128);
    let mut most_behind = 0;
    for second in 0..60 {
        for _ in 0..10 {
            // 60 kB a second.
            let batch = place.batch(2_500);
            place.net.ground.add_block(vec![batch]);
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let behind = place.net.ground.height().0 - place.height().0;
        if second >= 15 {
            most_behind = most_behind.max(behind);
        }
    }
    assert!(most_behind <= 80, "{most_behind} blocks behind, ten a second");
}

#[tokio::test(start_paused = true)]
async fn validator_that_gives_one_block_at_a_time_is_left_where_no_answer_holds_what_shows_it() {
    let place = Place::with(Lie::Drips).await;
    for _ in 0..30 * 60 {
        place.net.ground.grow(1);
        tokio::time::sleep(Duration::from_micros(16_667)).await;
    }
    let behind = place.net.ground.height().0 - place.height().0;
    // 64 blocks come with an answer.
    assert!(behind <= 400, "{behind} blocks behind, sixty a second");
}

#[tokio::test(start_paused = true)]
async fn blocks_that_enter_by_another_way_while_an_answer_comes_are_nobody_s_fault() {
    let place = Place::with(Lie::IsSlow).await;
    let net = &place.net;
    // The first question may have been asked of it before it came.
    for _ in 0..2 {
        let asked = place.liar.asked();
        net.eventually("it is asked", || (place.liar.asked() > asked).then_some(()))
            .await;
    }
    net.ground.grow(1);
    // As those of a leader before, which stand in the log and are applied when their successor has asked.
    let finalized = net.ground.newest_block();
    let (height, digest) = (finalized.block.header.height, finalized.block.digest());
    let batches = Vec::new().try_into().unwrap();
    let leader = net.leader().await;
    for part in AdvancePart::split(height, digest, &encode(&Advance { finalized, batches })) {
        let entry = encode(&LogEntry::GlobalAdvance(part));
        let outcome = net.agent(&leader).raft().propose(entry.into(), SOON).await;
        assert!(matches!(outcome, ProposeOutcome::Committed { .. }), "{outcome:?}");
    }
    assert!(place.height() >= height || place.applied(height).await < SOON);
    let asked = place.liar.asked();
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(place.liar.asked() > asked, "it was left");
}
