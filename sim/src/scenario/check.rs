//! What is wrong with a scenario, before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use common::quorum::is_bft_quorum;

use super::{Kind, Scenario, enemies};
use crate::byzantine::Post;

impl Scenario {
    /// What is wrong, for people.
    pub(super) fn check(&self) -> Result<(), String> {
        let sizes = [
            ("clusters", self.clusters, 1..=50),
            ("agents", self.agents, 1..=32),
            ("validators", self.validators, 1..=32),
        ];
        if let Some((key, got, want)) = sizes.into_iter().find(|(_, got, want)| !want.contains(got)) {
            return Err(format!("{key} {got} is not in {} to {}", want.start(), want.end()));
        }
        if !(1..=86_400).contains(&self.secs) || !(1..=60_000).contains(&self.write_every_ms) {
            return Err("secs must be 1 to 86400 and write_every_ms 1 to 60000".into());
        }
        if self
            .snapshot_entries
            .is_some_and(|entries| !(20..=100_000).contains(&entries))
        {
            return Err("snapshot_entries must be 20 to 100000".into());
        }
        enemies(&self.enemies)?.check(self.population())?;
        if self
            .faults
            .iter()
            .any(|fault| fault.who.is_empty() && !matches!(fault.kind, Kind::Lossy | Kind::Thin))
        {
            return Err("every fault but lossy and thin must say who".into());
        }
        if !self.faults.is_sorted_by_key(|fault| fault.at_ms) {
            return Err("faults must ascend by at_ms".into());
        }
        self.check_overlaps()?;
        self.check_losses()?;
        let words = self.faults.iter().flat_map(|fault| &fault.who);
        for word in words {
            self.check_word(word).map_err(|why| format!("who \"{word}\" {why}"))?;
        }
        Ok(())
    }

    /// All links are in one condition at a time, and wall clocks are wrong at one machine at a time.
    fn check_overlaps(&self) -> Result<(), String> {
        let shared = |kind| match kind {
            Kind::Lossy | Kind::Thin => Some("links"),
            Kind::ClockIn1970 => Some("clocks"),
            _ => None,
        };
        let mut ends_ms = BTreeMap::new();
        for fault in &self.faults {
            let Some(what) = shared(fault.kind) else { continue };
            if ends_ms.get(what).is_some_and(|end_ms| *end_ms > fault.at_ms) {
                return Err(format!(
                    "a second fault of the {what} begins at {} ms, before the first has ended: give them one after the other",
                    fault.at_ms
                ));
            }
            ends_ms.insert(what, fault.at_ms + fault.lasts_ms);
        }
        Ok(())
    }

    /// Validators whose disks are lost do not come back: with those in enemies' hands they must leave a quorum.
    fn check_losses(&self) -> Result<(), String> {
        let losses = self.faults.iter().filter(|fault| fault.kind == Kind::DiskLost);
        let words: BTreeSet<&str> = losses.flat_map(|fault| &fault.who).map(String::as_str).collect();
        let mut lost: BTreeSet<String> = (1..=self.validators).map(|number| format!("v{number}")).collect();
        lost.retain(|name| {
            [name.as_str(), "validators", "all"]
                .iter()
                .any(|word| words.contains(word))
        });
        if lost.is_empty() {
            return Ok(());
        }
        let enemies = enemies(&self.enemies)?;
        let hacked = enemies.iter().filter(|enemy| matches!(enemy.post, Post::Validator(_)));
        lost.extend(hacked.map(|enemy| enemy.post.to_string()));
        let (lost, all) = (lost.len() as u64, u64::from(self.validators));
        if is_bft_quorum(all - lost, all) {
            return Ok(());
        }
        Err(format!(
            "disk_lost and enemies take {lost} of {all} validators for good, and the others could agree on nothing: name \
             fewer, or let them crash"
        ))
    }

    fn check_word(&self, word: &str) -> Result<(), &'static str> {
        let number = |text: &str, most: u32| text.parse::<u32>().is_ok_and(|number| (1..=most).contains(&number));
        let is_cluster = |text: &str| text.strip_prefix('c').is_some_and(|text| number(text, self.clusters));
        let is_agent = |text: &str| {
            let split = text.split_once('-');
            split.is_some_and(|(cluster, agent)| is_cluster(cluster) && number(agent, self.agents))
        };
        let is_validator = |text: &str| text.strip_prefix('v').is_some_and(|text| number(text, self.validators));
        let is_group = matches!(word, "validators" | "agents" | "all");
        let is_leader = word.strip_prefix("leader ").is_some_and(is_cluster);
        if is_group || is_leader || is_cluster(word) || is_agent(word) || is_validator(word) {
            return Ok(());
        }
        Err("is no process, cluster or group of this fleet")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        title = "t"
        story = "s"
        clusters = 2
        agents = 3
        validators = 4
        secs = 5
        [[fault]]
        at_ms = 1000
        lasts_ms = 500
        kind = "isolate"
        who = ["leader c2", "c1-3", "v4", "validators"]
    "#;

    #[test]
    fn mistakes_are_named() {
        assert!(Scenario::from_toml(GOOD).is_ok());
        let with = |from: &str, to: &str| Scenario::from_toml(&GOOD.replace(from, to)).unwrap_err().to_string();
        assert!(with("c1-3", "c3-1").contains("c3-1"));
        assert!(with("v4", "v5").contains("v5"));
        assert!(with("leader c2", "leader v1").contains("leader v1"));
        assert!(with("isolate", "vanish").contains("vanish"));
        assert!(with("lasts_ms", "lasts").contains("lasts"));
        assert!(with("secs = 5", "secs = 0").contains("secs"));
        assert!(with("clusters = 2", "clusters = 0").contains("clusters"));
        assert!(with("[[fault]]", "[expect]\nkilled = 1\n[[fault]]").contains("killed"));
        let lossy = "[[fault]]\nat_ms = 500\nlasts_ms = 501\nkind = \"lossy\"\n";
        let thin = "[[fault]]\nat_ms = 1000\nlasts_ms = 500\nkind = \"thin\"\n[[fault]]";
        assert!(with("[[fault]]", &format!("{lossy}{thin}")).contains("links"));
        let clock = "[[fault]]\nat_ms = 500\nlasts_ms = 501\nkind = \"clock_in1970\"\nwho = [\"v1\"]\n";
        let clocks = format!("{clock}{}[[fault]]", clock.replace("500", "1000"));
        assert!(with("[[fault]]", &clocks).contains("clocks"));
        let loses =
            |who| format!("[[fault]]\nat_ms = 500\nlasts_ms = 1\nkind = \"disk_lost\"\nwho = [{who}]\n[[fault]]");
        assert!(with("[[fault]]", &loses(r#""v1", "v2""#)).contains("2 of 4"));
        assert!(with("[[fault]]", &loses(r#""all""#)).contains("4 of 4"));
        let hacked = format!("[[enemy]]\nwho = \"v2\"\nactor = \"withholder\"\n{}", loses(r#""v1""#));
        assert!(with("[[fault]]", &hacked).contains("2 of 4"));
        assert!(Scenario::from_toml(&GOOD.replace("[[fault]]", &loses(r#""v1", "c1-1""#))).is_ok());
        let apart = GOOD.replace("[[fault]]", &format!("{}{thin}", lossy.replace("501", "500")));
        assert!(Scenario::from_toml(&apart).is_ok());
    }
}
