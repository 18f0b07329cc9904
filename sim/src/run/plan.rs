//! What is run: a population, its machines and links, its work, its faults and enemies.

use std::{num::NonZeroU64, time::Duration};

use cluster_agent::raft::LinkProfile;

use crate::{
    byzantine::Enemies,
    faults::Weather,
    fleet::{Conditions, DRIFT_PPM, Population},
    ports::{DiskTiming, LinkConditions},
    random::Stream,
    workload::Load,
};

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Determines everything below chance.
    pub seed: u64,
    /// Processes.
    pub population: Population,
    /// Links, disks, clocks.
    pub conditions: Conditions,
    /// Work.
    pub load: Load,
    /// Faults.
    pub weather: Weather,
    /// How long the operators write and faults come.
    pub lasts: Duration,
    /// Only the checker of this name judges; `None`: all do.
    pub judge: Option<&'static str>,
    /// Processes in an enemy's hands.
    pub enemies: Enemies,
}

/// Delays of 2 to 20 ms, a little loss.
const USUAL_LINKS: LinkConditions = LinkConditions {
    delay_us_min: 2_000,
    delay_us_max: 20_000,
    loss_ppm: 1_000,
    spike_ppm: 0,
    spike_us: 0,
    duplicate_ppm: 0,
    bytes_per_second: 0,
};

/// All is kept as long as the program says.
pub(crate) const KEEPS_ALL: NonZeroU64 = NonZeroU64::MIN;

/// In three of four seeds closed tasks leave within the run: after 512 to 64 blocks, or when more than 128 to 16 are kept.
fn keeps_one_in(seed: u64) -> NonZeroU64 {
    let drawn = Stream::split(seed, 0x6b65_6570).between(0, 3);
    [1, 512, 1_024, 4_096]
        .into_iter()
        .nth(drawn as usize)
        .and_then(NonZeroU64::new)
        .unwrap_or(KEEPS_ALL)
}

impl Plan {
    /// The population for finding bugs: 3 clusters of 3 agents and 4 validators in half of the seeds, else 1
    /// to 3 clusters of 3 to 7; a fault every 8 s, up to 3 at once. Agents have the default profile, which fits these
    /// links, and in a quarter of the seeds one with timers that are short for them: elections come often. In three
    /// of four closed tasks leave while the run lasts.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        let mut random = Stream::split(seed, 0x706f_7075);
        let (clusters, agents) = match random.between(0, 7) {
            0 => (1, 5),
            1 => (2, 5),
            2 => (1, 7),
            3 => (2, 4),
            _ => (3, 3),
        };
        let snapshot_entries = random.between(100, 1_500);
        // Where elections come often, reads do too.
        let (profile, read_every_ms) = match random.between(0, 3) {
            0 => (LinkProfile::Dev, 200),
            _ => (LinkProfile::Mesh, 500),
        };
        Self {
            seed,
            population: Population {
                clusters,
                agents,
                validators: 4,
            },
            conditions: Conditions {
                links: USUAL_LINKS,
                disks: DiskTiming {
                    sync_us_min: 500,
                    sync_us_max: 5_000,
                },
                drift_ppm_max: DRIFT_PPM,
                profile,
                snapshot_entries: (snapshot_entries, snapshot_entries / 2),
                outbox_bytes_max: None,
                keeps_one_in: keeps_one_in(seed),
            },
            load: Load {
                write_every: Duration::from_millis(100),
                read_every: Duration::from_millis(read_every_ms),
                look_us: (100_000, 400_000),
                work_max: Duration::from_secs(3),
                claims_max: 1,
            },
            weather: Weather {
                every_us: 8_000_000,
                lasts_us: (500_000, 15_000_000),
                at_once_max: 3,
                only: None,
            },
            lasts: Duration::from_secs(40),
            judge: None,
            enemies: Enemies::default(),
        }
    }

    /// The load by which the simulator's speed is measured: 3 clusters of 3 agents and 4 validators; in each cluster about 10
    /// submits a second are acknowledged, and nine of ten are claimed and completed, since vehicles look often, work for moments
    /// and hold claims that wait to be final beside the one that they act on; a fault every 10 s.
    #[must_use]
    pub fn bench(seed: u64) -> Self {
        let small = Self::small(seed);
        Self {
            population: Population {
                clusters: 3,
                agents: 3,
                validators: 4,
            },
            conditions: Conditions {
                profile: LinkProfile::Mesh,
                snapshot_entries: (1_000, 500),
                keeps_one_in: KEEPS_ALL,
                ..small.conditions
            },
            load: Load {
                write_every: Duration::from_millis(80),
                read_every: Duration::from_millis(500),
                look_us: (15_000, 45_000),
                work_max: Duration::from_millis(40),
                claims_max: 8,
            },
            weather: Weather {
                every_us: 10_000_000,
                ..small.weather
            },
            lasts: Duration::from_secs(30),
            ..small
        }
    }

    /// The population for enemies: 2 clusters of 3 agents and 4 validators, one of these in an enemy's
    /// hands, and in half of the seeds the leader of a cluster or another member as well; faults beside them.
    #[must_use]
    pub fn byzantine(seed: u64) -> Self {
        let small = Self::small(seed);
        let population = Population {
            clusters: 2,
            agents: 3,
            validators: 4,
        };
        Self {
            population,
            lasts: Duration::from_secs(20),
            enemies: Enemies::draw(seed, population),
            ..small
        }
    }

    /// The population for scale: 50 clusters of 10 agents and 7 validators.
    #[must_use]
    pub fn fleet(seed: u64) -> Self {
        let small = Self::small(seed);
        Self {
            population: Population {
                clusters: 50,
                agents: 10,
                validators: 7,
            },
            conditions: Conditions {
                profile: LinkProfile::Mesh,
                snapshot_entries: (10_000, 5_000),
                keeps_one_in: KEEPS_ALL,
                ..small.conditions
            },
            load: Load {
                write_every: Duration::from_secs(1),
                read_every: Duration::from_secs(5),
                look_us: (1_000_000, 3_000_000),
                ..small.load
            },
            ..small
        }
    }
}
