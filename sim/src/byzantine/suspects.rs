//! What nobody is held to when enemies are about: ARCHITECTURE.md's fault model, as a filter of observations.
//!
//! # Rules
//! * A hacked process is held to nothing.
//! * In a cluster with a hacked member, what the honest ones believe to be final must still agree with everybody
//!   (agreement), and what they keep is bounded. The other promises are made to clusters that only crash.
//! * All others are held to everything.

use std::collections::BTreeSet;

use common::ids::ClusterId;

use crate::checkers::Observation;

/// Hacked processes, and the clusters that have one among their members.
#[derive(Clone, Debug, Default)]
pub struct Suspects {
    processes: BTreeSet<String>,
    clusters: BTreeSet<ClusterId>,
}

impl Suspects {
    /// Nobody holds this process to anything from now on.
    pub fn add_process(&mut self, name: &str) {
        self.processes.insert(name.to_owned());
    }

    /// This cluster has a hacked member, or will have one.
    pub fn add_cluster(&mut self, cluster: ClusterId) {
        self.clusters.insert(cluster);
    }

    /// Whether the process is hacked.
    #[must_use]
    pub fn has_process(&self, name: &str) -> bool {
        self.processes.contains(name)
    }

    /// Whether the cluster has a hacked member, or will have one.
    #[must_use]
    pub fn has_cluster(&self, cluster: ClusterId) -> bool {
        self.clusters.contains(&cluster)
    }

    /// Whether the process is a member of such a cluster.
    #[must_use]
    pub fn has_mate(&self, name: &str) -> bool {
        self.clusters
            .iter()
            .any(|cluster| name.starts_with(&format!("c{}-", cluster.0 + 1)))
    }

    /// Whether `checker` is to see this.
    #[must_use]
    pub fn judges(&self, checker: &str, seen: &Observation) -> bool {
        if self.processes.is_empty() && self.clusters.is_empty() {
            return true;
        }
        // A task of the fleet may have gone to a cluster whose claims and reports nobody tells of.
        if checker == "ends-visibly" && matches!(seen, Observation::Acts { .. }) && !self.clusters.is_empty() {
            return false;
        }
        // What a cluster closed bounds what validators hold, whatever the cluster is.
        if checker == "bounded-memory" && matches!(seen, Observation::Closed { .. }) {
            return true;
        }
        let (who, cluster) = origin(seen);
        if who.is_some_and(|who| self.has_process(who)) {
            return false;
        }
        let is_among_suspects = cluster.is_some_and(|cluster| self.has_cluster(cluster))
            || cluster.is_none() && who.is_some_and(|who| self.has_mate(who) && !is_kept_bounded(seen));
        !is_among_suspects || checker == "agreement"
    }
}

/// What every honest process owes, whatever its mates do.
fn is_kept_bounded(seen: &Observation) -> bool {
    matches!(seen, Observation::Sizes { .. })
}

/// Whose word it is, and in which cluster, if that is told.
fn origin(seen: &Observation) -> (Option<&str>, Option<ClusterId>) {
    match seen {
        Observation::Applied { agent, cluster, .. }
        | Observation::Leads { agent, cluster, .. }
        | Observation::Backs { agent, cluster, .. }
        | Observation::Acked { agent, cluster, .. }
        | Observation::Refused { agent, cluster, .. }
        | Observation::Read { agent, cluster, .. }
        | Observation::ReadWithin { agent, cluster, .. }
        | Observation::LinearizableRead { agent, cluster, .. }
        | Observation::Committed { agent, cluster, .. }
        | Observation::Pledged { agent, cluster, .. }
        | Observation::Side { agent, cluster, .. } => (Some(agent), Some(*cluster)),
        Observation::Executed { validator, .. }
        | Observation::Root { validator, .. }
        | Observation::Holds { validator, .. } => (Some(validator), None),
        Observation::Knows { process, cluster, .. } => (Some(process), *cluster),
        Observation::Sizes { agent, .. } | Observation::Stands { agent, .. } | Observation::Begins { agent } => {
            (Some(agent), None)
        }
        Observation::Acts { drone, .. } => (Some(drone), None),
        Observation::Closed { cluster, .. } | Observation::Logs { cluster, .. } => (None, Some(*cluster)),
        _ => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{BatchSeq, Digest, Height, LogIndex, LogPosition, Term};

    use super::*;

    fn applied(agent: &str, cluster: u32) -> Observation {
        Observation::Applied {
            agent: agent.into(),
            cluster: ClusterId(cluster),
            position: LogPosition {
                term: Term(1),
                index: LogIndex(1),
            },
            digest: Digest::default(),
            height: Height(1),
            root: Digest::default(),
        }
    }

    #[test]
    fn hacked_process_is_held_to_nothing_its_mates_to_agreement_and_others_to_all() {
        let mut suspects = Suspects::default();
        assert!(suspects.judges("durable", &applied("c1-1", 0)));
        suspects.add_cluster(ClusterId(0));
        suspects.add_process("c1-1");
        assert!(!suspects.judges("agreement", &applied("c1-1", 0)));
        assert!(suspects.judges("agreement", &applied("c1-2", 0)));
        assert!(!suspects.judges("state-machine-safety", &applied("c1-2", 0)));
        assert!(suspects.judges("state-machine-safety", &applied("c2-1", 1)));
        let acts = |drone: &str| Observation::Acts {
            drone: drone.into(),
            task: common::ids::TaskId([1; 32]),
            fence: common::entry::Fence::default(),
            is_begin: true,
        };
        assert!(!suspects.judges("one-holder", &acts("c1-2")));
        assert!(suspects.judges("one-holder", &acts("c10-2")));
        assert!(!suspects.judges("ends-visibly", &acts("c10-2")));
    }

    #[test]
    fn what_a_suspect_cluster_closed_bounds_honest_validators_and_counts_for_nothing_else() {
        let mut suspects = Suspects::default();
        suspects.add_cluster(ClusterId(0));
        suspects.add_process("v1");
        let closed = Observation::Closed {
            cluster: ClusterId(0),
            seq: BatchSeq(1),
            digest: Digest::default(),
            entries: Vec::new(),
        };
        assert!(suspects.judges("bounded-memory", &closed));
        assert!(!suspects.judges("exactly-once", &closed));
        let holds = |validator: &str| Observation::Holds {
            validator: validator.into(),
            height: Height(1),
            holdings: Default::default(),
        };
        assert!(suspects.judges("bounded-memory", &holds("v2")));
        assert!(!suspects.judges("bounded-memory", &holds("v1")));
    }
}
