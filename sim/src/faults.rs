//! Kills: one process or one whole cluster at a time, at moments drawn from the seed.
//!
//! One fault at a time, so that a quorum is always left or comes back whole: what is acknowledged must
//! survive each of them.

use crate::{fleet::SimFleet, random::Stream, workload::Doors};

/// Quiet time before a kill, and time a victim stays down.
const QUIET_US: (u64, u64) = (1_000_000, 4_000_000);
const DOWN_US: (u64, u64) = (500_000, 6_000_000);

enum Phase {
    Quiet { until_us: u64 },
    Down { until_us: u64, victims: Vec<String> },
}

/// Kills and restarts until its count is used up.
pub struct Nemesis {
    random: Stream,
    left: u32,
    targets: Vec<Vec<String>>,
    phase: Phase,
}

impl Nemesis {
    /// Strikes `kills` times at the processes and clusters of `fleet`.
    #[must_use]
    pub fn new(seed: u64, kills: u32, fleet: &SimFleet) -> Self {
        let singles = fleet
            .agent_names()
            .into_iter()
            .chain(fleet.validator_names())
            .map(|name| vec![name]);
        let clusters = (1..=fleet.fleet.genesis.clusters.len()).map(|cluster| {
            let prefix = format!("c{cluster}-");
            fleet
                .agent_names()
                .into_iter()
                .filter(|name| name.starts_with(&prefix))
                .collect()
        });
        let targets = singles.chain(clusters).collect();
        let mut random = Stream::split(seed, 0x6b69_6c6c);
        let until_us = random.between(QUIET_US.0, QUIET_US.1);
        Self {
            random,
            left: kills,
            targets,
            phase: Phase::Quiet { until_us },
        }
    }

    /// Whether it is through, with everything started again.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.left == 0 && matches!(self.phase, Phase::Quiet { .. })
    }

    /// Kills or restarts what is due. `doors` is told of the new lives.
    pub async fn strike(&mut self, fleet: &mut SimFleet, now_us: u64, doors: &Doors) {
        match &self.phase {
            Phase::Quiet { until_us } if now_us >= *until_us => {
                let pick = self.random.between(0, self.targets.len() as u64 - 1) as usize;
                let victims = self.targets[pick].clone();
                for name in &victims {
                    forget(doors, name);
                    fleet.kill(name);
                }
                self.left -= 1;
                self.phase = Phase::Down {
                    until_us: now_us + self.random.between(DOWN_US.0, DOWN_US.1),
                    victims,
                };
            }
            Phase::Down { until_us, victims } if now_us >= *until_us => {
                for name in victims {
                    fleet.start(name).await;
                    remember(doors, name, fleet);
                }
                self.phase = Phase::Quiet {
                    until_us: now_us + self.random.between(QUIET_US.0, QUIET_US.1),
                };
            }
            Phase::Quiet { .. } | Phase::Down { .. } => {}
        }
    }
}

fn forget(doors: &Doors, name: &str) {
    doors
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .remove(name);
}

fn remember(doors: &Doors, name: &str, fleet: &SimFleet) {
    if let Some(agent) = fleet.agent(name) {
        doors
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .insert(name.to_owned(), agent);
    }
}
