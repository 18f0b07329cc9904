//! What is wrong with a scenario, before anything runs.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    genesis::FaultModel,
    quorum::{attestation_quorum, is_bft_quorum},
};

use super::{Kind, Scenario, Scripted, enemies};
use crate::{byzantine::Post, fleet::Population};

/// Why nothing would happen to `who`, the processes that a fault may mean.
fn without_effect(kind: Kind, who: &BTreeSet<String>, population: Population) -> Option<&'static str> {
    let is_validator = |name: &String| name.starts_with('v');
    let named = who.iter().filter(|name| !name.starts_with("leader ")).count();
    let has_all = named == population.nodes() as usize;
    match kind {
        Kind::Isolate | Kind::Flap | Kind::OneWayOut | Kind::OneWayIn if has_all => {
            Some("nobody is left outside whom they could be cut from: name fewer")
        }
        Kind::InPieces if who.len() < 2 => Some("in_pieces needs two processes or more"),
        Kind::Ring if who.len() < 4 => Some("ring needs four processes or more: in a ring of three all are neighbours"),
        Kind::ThreeWays if who.len() < 5 => {
            Some("three_ways needs five processes or more: fewer are in_pieces, or two groups")
        }
        Kind::FromValidators if population.validators == 1 && who.iter().all(is_validator) => {
            Some("there is no other validator that it could be cut from")
        }
        Kind::CrashInApply | Kind::CrashInSnapshot if who.iter().any(is_validator) => {
            Some("it happens to drones only: name no validator, or let it crash")
        }
        Kind::CrashInSnapshot if who.len() > 1 => Some("crash_in_snapshot happens to one drone: name one"),
        Kind::ClockIn1970 if !who.iter().all(is_validator) => {
            Some("it happens to validators only: drones do not read a wall clock")
        }
        Kind::Lossy | Kind::Thin if !who.is_empty() => Some("it happens to all links: leave who out"),
        Kind::Lossy | Kind::Thin => None,
        _ if who.is_empty() => Some("every fault but lossy and thin must say who"),
        _ => None,
    }
}

impl Scenario {
    /// What is wrong, for people.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_sizes()?;
        enemies(&self.enemies)?.check(self.population())?;
        if !self.faults.is_sorted_by_key(|fault| fault.at_ms) {
            return Err("faults must ascend by at_ms".into());
        }
        self.check_times()?;
        self.check_effects()?;
        self.check_overlaps()?;
        self.check_losses()?;
        self.check_lost_drones()?;
        self.check_clocks()?;
        self.check_expectation()
    }

    fn check_sizes(&self) -> Result<(), String> {
        let sizes = [
            ("clusters", self.clusters, 1..=50),
            ("agents", self.agents, 1..=32),
            ("validators", self.validators, 1..=32),
        ];
        if let Some((key, got, want)) = sizes.into_iter().find(|(_, got, want)| !want.contains(got)) {
            return Err(format!("{key} {got} is not in {} to {}", want.start(), want.end()));
        }
        // As a genesis file has it.
        if self.agents == 2 {
            return Err("agents 2: a cluster has 1 agent or at least 3, since 2 tolerate no failure".into());
        }
        if matches!(self.validators, 2 | 3) {
            let got = self.validators;
            return Err(format!(
                "validators {got}: a fleet has 1 validator or at least 4, since {got} tolerate no faulty one"
            ));
        }
        if !(1..=86_400).contains(&self.secs) || !(1..=60_000).contains(&self.write_every_ms) {
            return Err("secs must be 1 to 86400 and write_every_ms 1 to 60000".into());
        }
        let is_good = |entries| (20..=100_000).contains(&entries);
        if !self.snapshot_entries.is_none_or(is_good) {
            return Err("snapshot_entries must be 20 to 100000".into());
        }
        Ok(())
    }

    /// Each fault begins and ends within the story.
    fn check_times(&self) -> Result<(), String> {
        let (secs, ends_ms) = (self.secs, self.secs * 1_000);
        let is_late = |fault: &&Scripted| {
            let end_ms = fault.at_ms.checked_add(fault.lasts_ms);
            end_ms.is_none_or(|end_ms| end_ms > ends_ms)
        };
        let Some(Scripted { at_ms, lasts_ms, .. }) = self.faults.iter().find(is_late) else {
            return Ok(());
        };
        Err(format!(
            "the fault at_ms {at_ms} that lasts_ms {lasts_ms} does not end within the story of {secs} s: give it less time, \
             or the story more secs"
        ))
    }

    /// Each fault names processes of this fleet, and does something to one of them.
    fn check_effects(&self) -> Result<(), String> {
        let enemies = enemies(&self.enemies)?;
        let placed = enemies
            .iter()
            .filter(|enemy| !matches!(enemy.post, Post::Leader { .. }));
        let hacked: BTreeSet<String> = placed.map(|enemy| enemy.post.to_string()).collect();
        let mut lost = BTreeSet::new();
        for fault in &self.faults {
            let who = fault
                .meant(self.population())
                .map_err(|word| format!("who \"{word}\" is no process, cluster or group of this fleet"))?;
            let is_spared = matches!(fault.kind, Kind::DiskLost | Kind::CrashInApply) && who.is_subset(&hacked);
            let is_lost = !who.is_empty() && who.is_subset(&lost);
            let why = without_effect(fault.kind, &who, self.population())
                .or(is_spared.then_some("an enemy prevents it where it has its hands: name another process"))
                .or(is_lost.then_some("a validator whose disk was lost does not come back: name another process"));
            if let Some(why) = why {
                return Err(format!("the fault at_ms {} would do nothing: {why}", fault.at_ms));
            }
            if fault.kind == Kind::DiskLost {
                let are_lost = |name: &String| name.starts_with('v') && !hacked.contains(name);
                lost.extend(who.into_iter().filter(are_lost));
            }
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

    /// Validators with wrong wall clocks are at most as many as the fleet withstands: the others' clocks are the time.
    fn check_clocks(&self) -> Result<(), String> {
        let all = u64::from(self.validators);
        for fault in self.faults.iter().filter(|fault| fault.kind == Kind::ClockIn1970) {
            // All of them are validators: others were refused.
            let wrong = fault.meant(self.population()).map_or(0, |who| who.len() as u64);
            if !is_bft_quorum(all.saturating_sub(wrong), all) {
                return Err(format!(
                    "clock_in1970 at {} ms is of {wrong} of {all} validators, and the others are no quorum that knows \
                     the time: name fewer",
                    fault.at_ms
                ));
            }
        }
        Ok(())
    }

    /// Validators whose disks are lost do not come back: with those in enemies' hands they must leave a quorum.
    fn check_losses(&self) -> Result<(), String> {
        let losses = self.faults.iter().filter(|fault| fault.kind == Kind::DiskLost);
        let mut lost: BTreeSet<String> = losses
            .flat_map(|fault| fault.meant(self.population()).unwrap_or_default())
            .filter(|name| name.starts_with('v'))
            .collect();
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

    /// Disks that a cluster lacks at one time leave enough members to certify its batches: only those who signed before can
    /// say who signs from now on.
    fn check_lost_drones(&self) -> Result<(), String> {
        let losses: Vec<(&Scripted, BTreeSet<String>)> = (self.faults.iter())
            .filter(|fault| fault.kind == Kind::DiskLost)
            .map(|fault| (fault, fault.meant(self.population()).unwrap_or_default()))
            .collect();
        let all = self.agents as usize;
        let spare = all - attestation_quorum(all, FaultModel::Byzantine);
        for (fault, _) in &losses {
            let is_lost = |other: &Scripted| {
                other.at_ms <= fault.at_ms && (other.at_ms == fault.at_ms || other.at_ms + other.lasts_ms > fault.at_ms)
            };
            let lost = losses.iter().filter(|(other, _)| is_lost(other));
            let lost: BTreeSet<&String> = lost.flat_map(|(_, who)| who).collect();
            let of = |cluster: u32| {
                let (leader, members) = (format!("leader c{cluster}"), format!("c{cluster}-"));
                (lost.iter())
                    .filter(|name| **name == &leader || name.starts_with(&members))
                    .count()
            };
            if let Some(cluster) = (1..=self.clusters).find(|cluster| of(*cluster) > spare) {
                return Err(format!(
                    "at {} ms {} of the {all} disks of c{cluster} are lost, and the others could certify no batch any more: \
                     name at most {spare}, or let them crash",
                    fault.at_ms,
                    of(cluster)
                ));
            }
        }
        Ok(())
    }

    /// What is expected can come about in this fleet.
    fn check_expectation(&self) -> Result<(), String> {
        if self.expect.deeds_min > 0 && self.enemies.is_empty() {
            return Err("deeds_min expects deeds of enemies, and the story has no [[enemy]]".into());
        }
        if self.expect.island_ms_min.max(self.expect.island_tasks_min) > 0 && self.clusters == 1 {
            return Err("island_ms_min and island_tasks_min compare clusters, and there is one".into());
        }
        Ok(())
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

    /// [`GOOD`] with `to` in the place of `from`, and what is wrong with it.
    fn with(from: &str, to: &str) -> String {
        assert!(GOOD.contains(from), "{from}");
        let read = Scenario::from_toml(&GOOD.replace(from, to));
        read.expect_err(&format!("{to} is a mistake")).to_string()
    }

    /// [`GOOD`] with this fault before its own; `who` is a list as in the file.
    fn with_fault(kind: &str, who: &str) -> Result<(), String> {
        let fault = format!("[[fault]]\nat_ms = 500\nlasts_ms = 500\nkind = \"{kind}\"\nwho = {who}\n[[fault]]");
        let read = Scenario::from_toml(&GOOD.replace("[[fault]]", &fault));
        read.map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn mistakes_are_named() {
        assert!(Scenario::from_toml(GOOD).is_ok());
        assert!(with("c1-3", "c3-1").contains("c3-1"));
        assert!(with("v4", "v5").contains("v5"));
        assert!(with("leader c2", "leader v1").contains("leader v1"));
        assert!(with("isolate", "vanish").contains("vanish"));
        assert!(with("lasts_ms", "lasts").contains("lasts"));
        assert!(with("secs = 5", "secs = 0").contains("secs"));
        assert!(with("clusters = 2", "clusters = 0").contains("clusters"));
        assert!(with("[[fault]]", "[expect]\nkilled = 1\n[[fault]]").contains("killed"));
        assert!(with("[\"leader c2\", \"c1-3\", \"v4\", \"validators\"]", "[]").contains("must say who"));
    }

    #[test]
    fn names_are_those_of_the_fleet_to_the_letter() {
        for word in [
            "c01",
            "c1-+2",
            "c1-02",
            "c+1",
            "v04",
            "leader c02",
            "leader",
            "leader ",
            "c1-",
            "C1",
            "v1'",
            "",
        ] {
            assert!(
                with("c1-3", word).contains(&format!("\"{word}\" is no process")),
                "{word}"
            );
        }
        let hacked = |who| format!("[[enemy]]\nwho = \"{who}\"\nactor = \"withholder\"\n[[fault]]");
        assert!(Scenario::from_toml(&GOOD.replace("[[fault]]", &hacked("v2"))).is_ok());
        for word in ["v02", "leader c+1", "c1-03"] {
            assert!(
                with("[[fault]]", &hacked(word)).contains(&format!("\"{word}\"")),
                "{word}"
            );
        }
    }

    #[test]
    fn fleets_that_no_genesis_file_can_have_are_refused() {
        assert!(with("agents = 3", "agents = 2").contains("agents 2"));
        assert!(with("validators = 4", "validators = 2").contains("validators 2"));
        assert!(with("validators = 4", "validators = 3").contains("validators 3"));
        let sizes = [(1, 1, 1), (50, 32, 32), (1, 3, 1), (2, 1, 4)];
        for (clusters, agents, validators) in sizes {
            let text = format!(
                "title = \"t\"\nstory = \"s\"\nclusters = {clusters}\nagents = {agents}\nvalidators = {validators}\nsecs = 1"
            );
            assert_eq!(Scenario::from_toml(&text).map(drop), Ok(()));
            // Panics if there is no such fleet.
            assert_eq!(
                common::testing::Fleet::new(clusters, agents, validators)
                    .set
                    .members()
                    .len(),
                validators as usize
            );
        }
    }

    #[test]
    fn fault_that_does_not_end_within_the_story_is_refused() {
        assert!(with("at_ms = 1000", "at_ms = 9000000000000000000").contains("at_ms 9000000000000000000"));
        assert!(with("lasts_ms = 500", "lasts_ms = 9223372036854775807").contains("lasts_ms 9223372036854775807"));
        assert!(with("at_ms = 1000", "at_ms = 30000").contains("story of 5 s"));
        assert!(with("lasts_ms = 500", "lasts_ms = 4001").contains("story of 5 s"));
        assert!(Scenario::from_toml(&GOOD.replace("lasts_ms = 500", "lasts_ms = 4000")).is_ok());
    }

    #[test]
    fn fault_that_would_do_nothing_is_refused() {
        let refused = [
            ("isolate", r#"["all"]"#, "nobody is left"),
            ("flap", r#"["agents", "validators"]"#, "nobody is left"),
            (
                "one_way_in",
                r#"["c1", "c2", "validators", "leader c1"]"#,
                "nobody is left",
            ),
            ("in_pieces", r#"["c1-1", "c1-1"]"#, "two processes"),
            ("in_pieces", r#"["leader c1"]"#, "two processes"),
            ("ring", r#"["c1", "leader c1"]"#, "four processes"),
            ("three_ways", r#"["c1", "leader c2"]"#, "five processes"),
            ("crash_in_apply", r#"["v1"]"#, "drones only"),
            ("crash_in_apply", r#"["all"]"#, "drones only"),
            ("crash_in_snapshot", r#"["v1"]"#, "drones only"),
            ("crash_in_snapshot", r#"["c1"]"#, "name one"),
            ("clock_in1970", r#"["agents"]"#, "validators only"),
            ("clock_in1970", r#"["leader c1"]"#, "validators only"),
            ("lossy", r#"["c1"]"#, "leave who out"),
        ];
        for (kind, who, why) in refused {
            let problem = with_fault(kind, who).expect_err(&format!("{kind} of {who} does nothing"));
            assert!(
                problem.contains("at_ms 500") && problem.contains(why),
                "{kind} of {who}: {problem}"
            );
        }
        let alone = GOOD
            .replace("validators = 4", "validators = 1")
            .replace("isolate", "from_validators");
        let alone = alone.replace(r#""leader c2", "c1-3", "v4", "validators""#, r#""v1""#);
        let problem = Scenario::from_toml(&alone).unwrap_err().to_string();
        assert!(problem.contains("no other validator"), "{problem}");
        let accepted = [
            ("isolate", r#"["agents"]"#),
            ("in_pieces", r#"["leader c1", "c1-1"]"#),
            ("ring", r#"["c1", "leader c2"]"#),
            ("ring", r#"["validators"]"#),
            ("three_ways", r#"["agents"]"#),
            ("from_validators", r#"["v1"]"#),
            ("crash_in_apply", r#"["agents"]"#),
            ("crash_in_snapshot", r#"["leader c1"]"#),
            ("clock_in1970", r#"["v1"]"#),
        ];
        for (kind, who) in accepted {
            assert_eq!(with_fault(kind, who), Ok(()), "{kind} of {who}");
        }
    }

    #[test]
    fn nothing_more_is_lost_by_enemies_and_by_those_who_do_not_come_back() {
        let fault = |at_ms: u64, kind: &str, who: &str| {
            format!("[[fault]]\nat_ms = {at_ms}\nlasts_ms = 1\nkind = \"{kind}\"\nwho = [\"{who}\"]\n")
        };
        let after = |first: &str, second: &str| with("[[fault]]", &format!("{first}{second}[[fault]]"));
        let hacked = "[[enemy]]\nwho = \"c1-2\"\nactor = \"withholder\"\n";
        for kind in ["disk_lost", "crash_in_apply"] {
            assert!(after(hacked, &fault(500, kind, "c1-2")).contains("an enemy prevents it"));
        }
        let lost = fault(500, "disk_lost", "v1");
        assert!(after(&lost, &fault(600, "crash", "v1")).contains("at_ms 600 would do nothing"));
        let good = format!(
            "{lost}{}{}[[fault]]",
            fault(600, "crash", "v2"),
            fault(700, "crash", "all")
        );
        assert!(Scenario::from_toml(&GOOD.replace("[[fault]]", &good)).is_ok());
    }

    #[test]
    fn expectation_that_nothing_could_meet_is_refused() {
        assert!(with("[[fault]]", "[expect]\ndeeds_min = 1\n[[fault]]").contains("no [[enemy]]"));
        let alone = |key: &str| {
            let text = GOOD
                .replace("clusters = 2", "clusters = 1")
                .replace("leader c2", "c1-1");
            Scenario::from_toml(&text.replace("[[fault]]", &format!("[expect]\n{key} = 1\n[[fault]]")))
        };
        assert!(alone("killed_min").is_ok());
        for key in ["island_ms_min", "island_tasks_min"] {
            assert!(alone(key).unwrap_err().to_string().contains(key));
        }
    }

    #[test]
    fn links_and_clocks_have_one_fault_at_a_time() {
        let lossy = "[[fault]]\nat_ms = 500\nlasts_ms = 501\nkind = \"lossy\"\n";
        let thin = "[[fault]]\nat_ms = 1000\nlasts_ms = 500\nkind = \"thin\"\n[[fault]]";
        assert!(with("[[fault]]", &format!("{lossy}{thin}")).contains("links"));
        let clock = "[[fault]]\nat_ms = 500\nlasts_ms = 501\nkind = \"clock_in1970\"\nwho = [\"v1\"]\n";
        let clocks = format!("{clock}{}[[fault]]", clock.replace("500", "1000"));
        assert!(with("[[fault]]", &clocks).contains("clocks"));
        let two = clock.replace("501", "500").replace("\"v1\"", "\"v1\", \"v3\"");
        assert!(with("[[fault]]", &format!("{two}[[fault]]")).contains("2 of 4"));
        let apart = GOOD.replace("[[fault]]", &format!("{}{thin}", lossy.replace("501", "500")));
        assert!(Scenario::from_toml(&apart).is_ok());
    }

    #[test]
    fn losses_leave_a_quorum_of_validators() {
        let loses =
            |who| format!("[[fault]]\nat_ms = 500\nlasts_ms = 1\nkind = \"disk_lost\"\nwho = [{who}]\n[[fault]]");
        assert!(with("[[fault]]", &loses(r#""v1", "v2""#)).contains("2 of 4"));
        assert!(with("[[fault]]", &loses(r#""all""#)).contains("4 of 4"));
        let hacked = format!("[[enemy]]\nwho = \"v2\"\nactor = \"withholder\"\n{}", loses(r#""v1""#));
        assert!(with("[[fault]]", &hacked).contains("2 of 4"));
        assert!(Scenario::from_toml(&GOOD.replace("[[fault]]", &loses(r#""v1", "c1-1""#))).is_ok());
    }

    #[test]
    fn disks_that_a_cluster_lacks_at_one_time_leave_who_can_certify() {
        let loses = |at_ms: u64, who: &str| {
            format!("[[fault]]\nat_ms = {at_ms}\nlasts_ms = 100\nkind = \"disk_lost\"\nwho = [{who}]\n")
        };
        let told = |faults: &str| Scenario::from_toml(&GOOD.replace("[[fault]]", &format!("{faults}[[fault]]")));
        for who in [r#""c2""#, r#""agents""#, r#""c2-1", "c2-3""#, r#""leader c2", "c2-1""#] {
            let refused = told(&loses(500, who)).expect_err(who).to_string();
            assert!(
                refused.contains("of the 3 disks of c2") || refused.contains("of the 3 disks of c1"),
                "{refused}"
            );
        }
        let overlap = format!("{}{}", loses(500, r#""c2-1""#), loses(599, r#""c2-2""#));
        assert!(
            told(&overlap)
                .unwrap_err()
                .to_string()
                .contains("at 599 ms 2 of the 3 disks of c2")
        );
        let in_turn = format!("{}{}", loses(500, r#""c2-1", "leader c1""#), loses(600, r#""c2-2""#));
        assert!(told(&in_turn).is_ok());
    }
}
