//! recovers: within a bound after the fleet healed, every cluster has a leader, every agent is in mode `normal` and knows how
//! old what it says is, votes and signs, drones get work and finish it, every write has an answer, the outboxes are empty, everything acknowledged is final, and heights grow.

use common::ids::Height;

use super::{Checker, Health, Observation};

/// Time after healing within which a fleet settles: several elections, an idle timeout of connections,
/// the longest pause between two attempts of a sender, and the backlog of the longest cut.
pub const SETTLE_US: u64 = 60_000_000;

/// Remembers since when the fleet is whole, and what was missing when it was last looked at.
#[derive(Default)]
pub struct Recovers {
    healed: Option<(u64, Option<Height>)>,
    missing: Option<String>,
}

impl Health {
    /// What a fleet lacks that was at height `first` when it healed; nothing of a fleet that is well.
    #[must_use]
    pub fn missing(&self, first: Height) -> Vec<String> {
        let Self {
            leaderless,
            unwell,
            outsiders,
            idle,
            open_writes,
            outbox_bytes,
            not_final,
            height,
        } = self;
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
        missing
    }
}

impl Checker for Recovers {
    fn name(&self) -> &'static str {
        "recovers"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Healed => self.healed = Some((now_us, None)),
            Observation::Health(health) => {
                let Some((since_us, first)) = &mut self.healed else {
                    return Ok(());
                };
                let missing = health.missing(*first.get_or_insert(health.height));
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

    fn health(leaderless: &[u32], numbers: [u64; 3], height: u64) -> Health {
        Health {
            leaderless: leaderless.iter().map(|cluster| ClusterId(*cluster)).collect(),
            open_writes: numbers[0],
            outbox_bytes: numbers[1],
            not_final: numbers[2],
            height: Height(height),
            ..Health::default()
        }
    }

    fn told(last: Health) -> Result<(), String> {
        let begins = health(&[0, 1], [1, 1, 1], 5);
        let at = |now_us, health| (now_us, Observation::Health(health));
        judge(
            Recovers::default(),
            &[(0, Observation::Healed), at(1, begins), at(SETTLE_US + 1, last)],
        )
    }

    #[test]
    fn whatever_does_not_come_back_is_caught() {
        assert_eq!(told(health(&[], [0, 0, 0], 6)), Ok(()));
        assert!(told(health(&[1], [0, 0, 0], 6)).unwrap_err().contains("no leader"));
        let mut island = health(&[], [0, 0, 0], 6);
        island.unwell.push("c1-2".into());
        assert!(told(island).unwrap_err().contains("c1-2"));
        let mut newcomer = health(&[], [0, 0, 0], 6);
        newcomer.outsiders.push("c1-3".into());
        assert!(told(newcomer).unwrap_err().contains("c1-3 does not vote and sign"));
        let mut workless = health(&[], [0, 0, 0], 6);
        workless.idle.push((ClusterId(1), "no vehicle has done anything"));
        assert!(told(workless).unwrap_err().contains("no vehicle has done anything"));
        assert!(told(health(&[], [1, 0, 0], 6)).is_err());
        assert!(told(health(&[], [0, 1, 0], 6)).is_err());
        assert!(told(health(&[], [0, 0, 1], 6)).is_err());
        assert!(told(health(&[], [0, 0, 0], 5)).unwrap_err().contains("height"));
    }

    #[test]
    fn fleet_that_takes_its_time_is_not_caught_before_the_bound() {
        let early = health(&[0], [9, 9, 9], 5);
        let history = [(0, Observation::Healed), (SETTLE_US, Observation::Health(early))];
        let mut checker = Recovers::default();
        for (now_us, seen) in &history {
            assert_eq!(checker.observe(*now_us, seen), Ok(()));
        }
        assert!(checker.finish(SETTLE_US).is_err());
    }
}
