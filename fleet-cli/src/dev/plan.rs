//! What a dev fleet consists of: names, ports, zones.

use serde::{Deserialize, Serialize};

use super::layout::RELAY;
use crate::{
    draft::{DraftZone, Profile},
    exit::{Exit, Failure, Outcome},
};

/// What a dev fleet consists of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Version of the binaries that made it.
    pub version: String,
    /// Clusters.
    pub clusters: u32,
    /// Agents in each.
    pub agents: u32,
    /// Validators.
    pub validators: u32,
    /// Constants of time.
    pub profile: Profile,
    /// Ascending: where one cluster's zone ends and the next begins, millimetres east.
    pub borders_mm: Vec<i32>,
    /// UDP port of each process, by name.
    pub ports: Vec<(String, u16)>,
    /// The relay between the processes; a fleet without one knows its processes directly.
    #[serde(default)]
    pub relay: Option<RelayPlan>,
    /// Operators, op1, op2 and so on; the context is op1's.
    #[serde(default = "one_operator")]
    pub operators: u32,
    /// Lines that every agent.toml gets beside the usual ones; empty but for benchmarks.
    #[serde(default)]
    pub agent_toml: String,
}

fn one_operator() -> u32 {
    1
}

/// The relay of a dev fleet.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayPlan {
    /// Decides which datagrams of an impaired link fare how.
    pub seed: u64,
    /// UDP port at which the others reach each process, by name.
    pub ports: Vec<(String, u16)>,
}

/// Side of the plane that the zones divide unless told otherwise: 5 km.
const PLANE_MM: i32 = 5_000_000;

impl Plan {
    /// A fleet of this build's version, without ports yet.
    ///
    /// # Errors
    /// [`Exit::Usage`]: sizes that tolerate no failure.
    pub fn new(clusters: u32, agents: u32, validators: u32, profile: Profile) -> Outcome<Self> {
        let usage = |text: &str| Err(Failure::new(Exit::Usage, text));
        if !(1..=16).contains(&clusters) {
            return usage("--clusters must be 1 to 16");
        }
        if agents == 2 || !(1..=9).contains(&agents) {
            return usage("--agents must be 1, or 3 to 9: 2 tolerate no failure");
        }
        if validators != 1 && !(4..=16).contains(&validators) {
            return usage("--validators must be 1, or 4 to 16: 2 or 3 tolerate no faulty one");
        }
        Ok(Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            clusters,
            agents,
            validators,
            profile,
            borders_mm: (1..clusters as i32).map(|i| i * (PLANE_MM / clusters as i32)).collect(),
            ports: Vec::new(),
            relay: Some(RelayPlan::default()),
            operators: one_operator(),
            agent_toml: String::new(),
        })
    }

    /// The same fleet, whose processes know each other directly: nothing between them costs time, and no link can be cut.
    #[must_use]
    pub fn without_relay(mut self) -> Self {
        self.relay = None;
        self
    }

    /// A fleet of `clusters` x `agents` for a benchmark. With 0 `validators` the genesis file names one that nobody runs
    /// and nobody dials: the clusters work as islands. No relay stands
    /// between its processes.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_bench(clusters: u32, agents: u32, validators: u32, profile: Profile) -> Outcome<Self> {
        let plan = Self::new(clusters, agents, validators.max(1), profile)?;
        Ok(Self { validators, ..plan }.without_relay())
    }

    /// Names of the agents, cluster by cluster.
    pub fn agents(&self) -> impl Iterator<Item = (u32, String)> + '_ {
        (1..=self.clusters).flat_map(|c| (1..=self.agents).map(move |a| (c, format!("c{c}-{a}"))))
    }

    /// Names of the validators in the genesis file, whether they run or not.
    pub(super) fn genesis_validators(&self) -> impl Iterator<Item = String> {
        (1..=self.validators.max(1)).map(|v| format!("v{v}"))
    }

    /// Names of the operators.
    pub fn operators(&self) -> impl Iterator<Item = String> {
        (1..=self.operators).map(|n| format!("op{n}"))
    }

    /// Names of the validators that run.
    pub fn validators(&self) -> impl Iterator<Item = String> + '_ {
        (1..=self.validators).map(|v| format!("v{v}"))
    }

    /// Names of all agents and validators: validators first, agents lean on them.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.validators().chain(self.agents().map(|(_, name)| name)).collect()
    }

    /// Names of all processes: the relay first if there is one, everything passes through it.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let relay = self.relay.iter().map(|_| RELAY.to_owned());
        relay.chain(self.names()).collect()
    }

    /// The port at which a process listens.
    #[must_use]
    pub fn port(&self, name: &str) -> u16 {
        port_in(&self.ports, name)
    }

    /// The port at which other processes of the fleet reach it.
    #[must_use]
    pub fn port_for_peers(&self, name: &str) -> u16 {
        port_in(self.relay.as_ref().map_or(&self.ports, |relay| &relay.ports), name)
    }

    /// The names meant by `word`: a process, a cluster, or `all`.
    ///
    /// # Errors
    /// [`Exit::Invalid`].
    pub fn meant_by(&self, word: &str) -> Outcome<Vec<String>> {
        let prefix = format!("{word}-");
        let names: Vec<String> = self
            .processes()
            .into_iter()
            .filter(|name| word == "all" || name == word || name.starts_with(&prefix))
            .collect();
        if names.is_empty() {
            return Err(Failure::new(
                Exit::Invalid,
                format!("{word:?} is no agent, validator or cluster of this fleet"),
            )
            .todo("name one like c1-2, v1, c1, or `all`"));
        }
        Ok(names)
    }

    /// The zone of cluster `at` (from 0) in both frames: strips from west to east.
    pub(super) fn zones(&self, at: usize) -> Vec<DraftZone> {
        let west = at
            .checked_sub(1)
            .map_or(i32::MIN, |before| self.borders_mm[before].saturating_add(1));
        let east = self.borders_mm.get(at).copied().unwrap_or(i32::MAX);
        let strip = 3_600_000_000 / i64::from(self.clusters);
        let lon = |i: i64| (-1_800_000_000 + i * strip) as i32;
        let is_last = at + 1 == self.clusters as usize;
        vec![
            DraftZone::Local {
                min_mm: [west.min(east), i32::MIN],
                max_mm: [east, i32::MAX],
            },
            DraftZone::Geo {
                min_e7: [-900_000_000, lon(at as i64) + i32::from(at > 0)],
                max_e7: [900_000_000, if is_last { 1_800_000_000 } else { lon(at as i64 + 1) }],
            },
        ]
    }
}

fn port_in(ports: &[(String, u16)], name: &str) -> u16 {
    let found = ports.iter().find(|(known, _)| known == name);
    found.map_or(0, |(_, port)| *port)
}

#[cfg(test)]
mod tests {
    use common::task::{Place, Zone};

    use super::*;

    #[test]
    fn plan_written_before_there_were_relays_has_none() {
        let plan = Plan::new(1, 1, 1, Profile::Dev).unwrap().without_relay();
        let mut old = serde_json::to_value(&plan).unwrap();
        old.as_object_mut().unwrap().remove("relay");
        assert_eq!(serde_json::from_value::<Plan>(old).unwrap(), plan);
    }

    #[test]
    fn every_place_is_in_exactly_one_clusters_zone() {
        let plan = Plan::new(3, 3, 4, Profile::Dev).unwrap();
        let zones = |at: usize| {
            plan.zones(at).into_iter().map(|zone| match zone {
                DraftZone::Geo { min_e7, max_e7 } => Zone::Geo { min_e7, max_e7 },
                DraftZone::Local { min_mm, max_mm } => Zone::Local { min_mm, max_mm },
            })
        };
        let holders = |place: Place| (0..3).filter(|at| zones(*at).any(|zone| zone.contains(&place))).count();
        for x in [
            i32::MIN,
            -1,
            0,
            1_666_666,
            1_666_667,
            3_333_332,
            3_333_333,
            5_000_000,
            i32::MAX,
        ] {
            assert_eq!(
                holders(Place::Local {
                    east_mm: x,
                    north_mm: 0,
                    up_mm: 0
                }),
                1,
                "east {x}"
            );
        }
        for lon_e7 in [
            -1_800_000_000,
            -600_000_001,
            -600_000_000,
            0,
            600_000_000,
            600_000_001,
            1_800_000_000,
        ] {
            assert_eq!(
                holders(Place::Geo {
                    lat_e7: 0,
                    lon_e7,
                    alt_m: 0
                }),
                1,
                "lon {lon_e7}"
            );
        }
    }

    #[test]
    fn words_mean_processes_clusters_or_all() {
        let plan = Plan::new(3, 3, 4, Profile::Dev).unwrap();
        assert_eq!(plan.meant_by("c2").unwrap(), ["c2-1", "c2-2", "c2-3"]);
        assert_eq!(plan.meant_by("v3").unwrap(), ["v3"]);
        assert_eq!(plan.meant_by("relay").unwrap(), ["relay"]);
        assert_eq!(plan.meant_by("all").unwrap().len(), 14);
        assert_eq!(plan.without_relay().meant_by("relay").unwrap_err().exit, Exit::Invalid);
        let plan = Plan::new(3, 3, 4, Profile::Dev).unwrap();
        for bad in ["c4", "c1-4", "v5", "", "c"] {
            assert_eq!(plan.meant_by(bad).unwrap_err().exit, Exit::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn size_that_tolerates_no_failure_is_refused() {
        for (c, a, v) in [(0, 3, 4), (3, 2, 4), (3, 0, 4), (3, 3, 3), (3, 3, 2), (17, 3, 4)] {
            assert_eq!(
                Plan::new(c, a, v, Profile::Dev).unwrap_err().exit,
                Exit::Usage,
                "{c} {a} {v}"
            );
        }
        assert!(Plan::new(1, 1, 1, Profile::Dev).is_ok());
    }
}
