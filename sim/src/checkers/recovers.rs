//! recovers: within a bound after the fleet healed, every cluster has a leader, every agent is in mode `normal` and knows how
//! old what it says is, votes and signs, drones get work and finish it, every write has an answer, the outboxes are empty, everything acknowledged is final, and heights grow.

use common::ids::Height;

use super::{Checker, Observation};

/// Time after healing within which a fleet settles: several elections, an idle timeout of connections,
/// the longest pause between two attempts of a sender, and the backlog of the longest cut.
pub const SETTLE_US: u64 = 60_000_000;

/// Remembers since when the fleet is whole, and what was missing when it was last looked at.
#[derive(Default)]
pub struct Recovers {
    healed: Option<(u64, Option<Height>)>,
    missing: Option<String>,
}

impl Checker for Recovers {
    fn name(&self) -> &'static str {
        "recovers"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Healed => self.healed = Some((now_us, None)),
            Observation::Health {
                leaderless,
                unwell,
                outsiders,
                idle,
                open_writes,
                outbox_bytes,
                not_final,
                height,
            } => {
                let Some((since_us, first)) = &mut self.healed else {
                    return Ok(());
                };
                let first = *first.get_or_insert(*height);
                let mut missing = Vec::new();
                if let Some(cluster) = leaderless.first() {
                    missing.push(format!("{cluster} has no leader"));
                }
                if let Some(agent) = unwell.first() {
                    missing.push(format!("{agent} is not in mode normal with known ages"));
                }
                if let Some(agent) = outsiders.first() {
                    missing.push(format!("{agent} does not vote and sign in its cluster"));
                }
                if let Some((cluster, what)) = idle.first() {
                    missing.push(format!("{what} in cluster {cluster} since"));
                }
                if *open_writes > 0 {
                    missing.push(format!("{open_writes} writes have no answer"));
                }
                if *outbox_bytes > 0 {
                    missing.push(format!("{outbox_bytes} bytes wait in outboxes"));
                }
                if *not_final > 0 {
                    missing.push(format!("{not_final} acknowledged tasks are not final everywhere"));
                }
                if *height <= first {
                    missing.push(format!("the height stays at {height}"));
                }
                self.missing = (!missing.is_empty()).then(|| missing.join(", "));
                if now_us - *since_us > SETTLE_US {
                    return self.finish(now_us);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, now_us: u64) -> Result<(), String> {
        let Some((since_us, _)) = self.healed else {
            return Err("the faults never ended".into());
        };
        match &self.missing {
            Some(missing) => Err(format!(
                "{} s after the fleet healed: {missing}",
                (now_us - since_us) / 1_000_000
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::ClusterId;

    use super::{super::*, *};

    fn health(leaderless: &[u32], numbers: [u64; 3], height: u64) -> Observation {
        Observation::Health {
            leaderless: leaderless.iter().map(|cluster| ClusterId(*cluster)).collect(),
            unwell: Vec::new(),
            outsiders: Vec::new(),
            idle: Vec::new(),
            open_writes: numbers[0],
            outbox_bytes: numbers[1],
            not_final: numbers[2],
            height: Height(height),
        }
    }

    fn told(last: Observation) -> Result<(), String> {
        let begins = health(&[0, 1], [1, 1, 1], 5);
        judge(
            Recovers::default(),
            &[(0, Observation::Healed), (1, begins), (SETTLE_US + 1, last)],
        )
    }

    #[test]
    fn whatever_does_not_come_back_is_caught() {
        assert_eq!(told(health(&[], [0, 0, 0], 6)), Ok(()));
        assert!(told(health(&[1], [0, 0, 0], 6)).unwrap_err().contains("no leader"));
        let mut island = health(&[], [0, 0, 0], 6);
        if let Observation::Health { unwell, .. } = &mut island {
            unwell.push("c1-2".into());
        }
        assert!(told(island).unwrap_err().contains("c1-2"));
        let mut newcomer = health(&[], [0, 0, 0], 6);
        if let Observation::Health { outsiders, .. } = &mut newcomer {
            outsiders.push("c1-3".into());
        }
        assert!(told(newcomer).unwrap_err().contains("c1-3 does not vote and sign"));
        let mut workless = health(&[], [0, 0, 0], 6);
        if let Observation::Health { idle, .. } = &mut workless {
            idle.push((ClusterId(1), "no vehicle has done anything"));
        }
        assert!(told(workless).unwrap_err().contains("no vehicle has done anything"));
        assert!(told(health(&[], [1, 0, 0], 6)).is_err());
        assert!(told(health(&[], [0, 1, 0], 6)).is_err());
        assert!(told(health(&[], [0, 0, 1], 6)).is_err());
        assert!(told(health(&[], [0, 0, 0], 5)).unwrap_err().contains("height"));
    }

    #[test]
    fn fleet_that_takes_its_time_is_not_caught_before_the_bound() {
        let early = health(&[0], [9, 9, 9], 5);
        let history = [(0, Observation::Healed), (SETTLE_US, early)];
        let mut checker = Recovers::default();
        for (now_us, seen) in &history {
            assert_eq!(checker.observe(*now_us, seen), Ok(()));
        }
        assert!(checker.finish(SETTLE_US).is_err());
    }
}
