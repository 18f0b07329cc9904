//! Disks that are lost, and whether one may be.
//!
//! # Rules
//! * A cluster loses one disk, and the next not before the machine's new disk votes and signs in the place of the
//!   old one: what a majority holds may be on two disks of three, and more lost disks than a roster withstands
//!   stop its batches for good.
//! * A validator whose disk is lost does not come back: its key signed what nobody remembers, and the validator set does
//!   not change yet. With those in enemies' hands there are never more of them than the fleet withstands.
//! * No fault that is drawn takes a disk of a cluster with an enemy: together they are more than the cluster withstands.

use common::{
    ids::{ClusterId, RaftNodeId},
    quorum::is_bft_quorum,
};

use super::SimFleet;

impl SimFleet {
    /// The Raft id of an agent on the disk that it has now.
    fn raft_id(&self, name: &str) -> Option<RaftNodeId> {
        let incarnation = self.agents.get(name)?.incarnation;
        Some(RaftNodeId::new(self.machine(name).idx, incarnation))
    }

    /// Agents of a cluster that do not vote and sign under the id of the disk that they have now, or are members under
    /// another one as well; all, if the cluster has no leader to ask.
    #[must_use]
    pub fn outsiders(&self, cluster: ClusterId) -> Vec<String> {
        let members = self.members(cluster);
        let leader = self.leader(&members).and_then(|name| self.agent(&name));
        let Some(leader) = leader else { return members };
        let status = leader.raft().status();
        let (in_force, last) = leader.machine().with(|state| {
            let cursor = state.queue.global().cursor(cluster).expect("a cluster of this fleet");
            (state.queue.roster().clone(), cursor.roster.clone())
        });
        let is_in = |id: RaftNodeId| {
            let votes = status.voters.contains(&id) && !status.is_joint;
            let signs = in_force.position(id).is_some() && last.position(id).is_some();
            let is_once = status.learners.iter().all(|learner| learner.idx() != id.idx());
            votes && signs && is_once
        };
        let is_outside = |name: &String| self.raft_id(name).is_none_or(|id| !is_in(id));
        members.into_iter().filter(is_outside).collect()
    }

    /// Agents whose disks may be lost now.
    #[must_use]
    pub fn agents_with_a_disk_to_lose(&self) -> Vec<String> {
        let suspects = self.witness.suspects();
        let clusters = (0..self.population.clusters).map(ClusterId);
        let whole = clusters.filter(|cluster| !suspects.has_cluster(*cluster) && self.outsiders(*cluster).is_empty());
        whole.flat_map(|cluster| self.members(cluster)).collect()
    }

    /// Validators whose disks may be lost now.
    #[must_use]
    pub fn validators_with_a_disk_to_lose(&self) -> Vec<String> {
        let whole = self.honest_validators();
        // Each has the same weight.
        let (left, all) = (
            (whole.len() as u64).saturating_sub(1),
            u64::from(self.population.validators),
        );
        if is_bft_quorum(left, all) { whole } else { Vec::new() }
    }

    /// Turns a machine off and empties its disk. An agent starts again at `until_us`, with the next incarnation, as an
    /// operator would have it.
    pub fn lose_disk(&mut self, name: &str, until_us: u64) {
        self.cut_power(name, until_us);
        let machine = self.machine(name);
        let (device, idx) = (machine.device, machine.idx);
        machine.disk.wipe();
        let Some(slot) = self.agents.get_mut(name) else {
            self.machine_mut(name).is_lost = true;
            return;
        };
        slot.log.wipe();
        slot.snapshots.wipe();
        slot.incarnation += 1;
        let raft = RaftNodeId::new(idx, slot.incarnation);
        self.network.renew(&device, raft);
    }
}
