//! Plans under which seeded bugs show: short, small, and rich in what a bug needs.

use std::time::Duration;

use cluster_agent::raft::LinkProfile;

use crate::{
    byzantine::{ActorKind, Enemies, Enemy, Post},
    faults::{Family, Weather},
    fleet::Population,
    run::Plan,
    scenario::{Kind, Scripted},
};

/// What is on the stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// One cluster of 3 under every sort of fault.
    Storm,
    /// One cluster of 5 under cuts of every shape.
    Cuts,
    /// One cluster of 3 whose processes are killed, all at once too.
    Crashes,
    /// One cluster of 3 on links that lose, delay and double.
    BadLinks,
    /// Little and long work in a cluster of 5, whose members are cut off one after the other, each for longer than a lease.
    Leases,
    /// The same on clocks that gain and lose up to a quarter.
    Drift,
    /// One cluster of 3 with small snapshots, whose leaders are killed one after the other.
    Snapshots,
    /// Many writes and a small outbox, cut off from the validators for a long time.
    FullOutbox,
    /// Many writes, nothing broken.
    Rush,
    /// Two clusters and four validators, cut into two halves with one cluster in each.
    Stations,
    /// One cluster of 3 that is cut off from all validators.
    Island,
    /// Validators that do not reach each other for a while.
    Apart,
    /// One validator is down while the others finalize more than can be walked back block by block.
    Absence,
    /// One cluster of 3: one is cut off, another loses its disk, and the third, who alone has everything, is down for a
    /// while.
    LostDisks,
    /// One cluster of 3 on links that hold some frames up, so that later ones overtake them.
    Jitter,
    /// Two clusters; who leads the first hands out other copies of certified batches.
    Copies,
    /// A validator starts under a wall clock that shows 1970, and is cut off.
    OldClock,
}

fn weather(every_ms: u64, lasts_ms: (u64, u64), only: Option<Family>) -> Weather {
    Weather {
        every_us: every_ms * 1_000,
        lasts_us: (lasts_ms.0 * 1_000, lasts_ms.1 * 1_000),
        at_once_max: 3,
        only,
    }
}

impl Stage {
    /// All of them.
    pub const ALL: [Self; 17] = [
        Self::Storm,
        Self::Cuts,
        Self::Crashes,
        Self::BadLinks,
        Self::Leases,
        Self::Drift,
        Self::Snapshots,
        Self::FullOutbox,
        Self::Rush,
        Self::Stations,
        Self::Island,
        Self::Apart,
        Self::Absence,
        Self::LostDisks,
        Self::Jitter,
        Self::Copies,
        Self::OldClock,
    ];

    /// Its name in commands and tables.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Storm => "storm",
            Self::Cuts => "cuts",
            Self::Crashes => "crashes",
            Self::BadLinks => "bad-links",
            Self::Leases => "leases",
            Self::Drift => "drift",
            Self::Snapshots => "snapshots",
            Self::FullOutbox => "full-outbox",
            Self::Rush => "rush",
            Self::Stations => "stations",
            Self::Island => "island",
            Self::Apart => "apart",
            Self::Absence => "absence",
            Self::LostDisks => "lost-disks",
            Self::Jitter => "jitter",
            Self::Copies => "copies",
            Self::OldClock => "old-clock",
        }
    }

    /// The stage of this name.
    #[must_use]
    pub fn of(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|stage| stage.word() == word)
    }

    /// The plan with the chance of `seed`.
    #[must_use]
    pub fn plan(self, seed: u64) -> Plan {
        let mut plan = Plan::small(seed);
        plan.population = Population {
            clusters: 1,
            agents: 3,
            validators: 4,
        };
        // Elections come often.
        plan.conditions.profile = LinkProfile::Dev;
        plan.lasts = Duration::from_secs(20);
        plan.weather = match self {
            Self::Storm => weather(2_500, (300, 6_000), None),
            Self::Cuts => weather(2_500, (1_000, 6_000), Some(Family::Partition)),
            Self::Crashes => weather(2_000, (300, 3_000), Some(Family::Process)),
            Self::BadLinks => weather(2_000, (1_000, 5_000), Some(Family::Quality)),
            Self::FullOutbox => weather(3_000, (8_000, 15_000), Some(Family::Partition)),
            Self::Rush
            | Self::Snapshots
            | Self::Leases
            | Self::Drift
            | Self::Island
            | Self::Apart
            | Self::Absence
            | Self::LostDisks
            | Self::Stations
            | Self::Copies
            | Self::OldClock
            | Self::Jitter => weather(0, (1_000, 1_000), None),
        };
        match self {
            Self::Storm | Self::Crashes | Self::Island | Self::Apart | Self::LostDisks => {}
            Self::Absence => plan.lasts = Duration::from_secs(36),
            Self::Jitter => {
                plan.conditions.links.spike_ppm = 30_000;
                plan.conditions.links.spike_us = 300_000;
                plan.load.write_every = Duration::from_millis(40);
                plan.load.read_every = Duration::from_millis(20);
            }
            Self::BadLinks => plan.load.read_every = Duration::from_millis(40),
            Self::Cuts => {
                plan.population.agents = 5;
                plan.load.read_every = Duration::from_millis(40);
            }
            Self::Leases | Self::Drift => {
                // Fewer tasks than vehicles: whatever is free is claimed at once.
                plan.population.agents = 5;
                plan.load.write_every = Duration::from_secs(7);
                plan.load.work_max = Duration::from_secs(40);
                plan.lasts = Duration::from_secs(140);
                plan.load.look_us = (20_000, 80_000);
            }
            Self::Snapshots => {
                plan.conditions.snapshot_entries = (60, 20);
                plan.lasts = Duration::from_secs(28);
            }
            Self::FullOutbox => {
                plan.load.write_every = Duration::from_millis(30);
                plan.conditions.outbox_bytes_max = Some(24_000);
                plan.lasts = Duration::from_secs(30);
            }
            Self::Rush => {
                plan.load.write_every = Duration::from_millis(10);
                plan.conditions.snapshot_entries = (100, 50);
                plan.lasts = Duration::from_secs(60);
            }
            Self::Stations => plan.population.clusters = 2,
            Self::Copies => {
                plan.population.clusters = 2;
                plan.enemies = Enemies::of(&[Enemy {
                    post: Post::Leader { cluster: 1 },
                    actor: ActorKind::Copyist,
                }]);
            }
            Self::OldClock => plan.lasts = Duration::from_secs(26),
        }
        if self == Self::Drift {
            plan.conditions.drift_ppm_max = 250_000;
        }
        plan
    }

    /// Faults that come whatever the seed.
    #[must_use]
    pub fn script(self) -> Vec<Scripted> {
        let fault = |at_ms, lasts_ms, kind, who: &str| Scripted {
            at_ms,
            lasts_ms,
            kind,
            who: vec![who.to_owned()],
        };
        match self {
            // Each in its turn, for longer than a lease.
            Self::Leases | Self::Drift => (0..12)
                .map(|turn| {
                    let who = format!("c1-{}", turn % 5 + 1);
                    fault(6_000 + turn * 11_000, 9_500, Kind::Isolate, &who)
                })
                .collect(),
            Self::Stations => vec![Scripted {
                who: ["v1", "v2", "c1"].map(str::to_owned).into(),
                ..fault(5_000, 8_000, Kind::Isolate, "c1")
            }],
            Self::Island => vec![fault(4_000, 8_000, Kind::FromValidators, "c1")],
            Self::Apart => vec![fault(4_000, 10_000, Kind::InPieces, "validators")],
            Self::LostDisks => vec![
                fault(4_000, 5_000, Kind::Isolate, "c1-3"),
                fault(8_000, 500, Kind::DiskLost, "c1-2"),
                fault(8_000, 6_000, Kind::Crash, "c1-1"),
            ],
            Self::OldClock => vec![
                fault(5_000, 18_000, Kind::ClockIn1970, "v1"),
                fault(12_000, 8_000, Kind::Isolate, "v1"),
            ],
            Self::Absence => vec![fault(2_000, 33_000, Kind::Crash, "v4")],
            Self::Snapshots => (0..8)
                .map(|turn| fault(3_000 + turn * 3_000, 1_200, Kind::Crash, "leader c1"))
                .collect(),
            _ => Vec::new(),
        }
    }
}
