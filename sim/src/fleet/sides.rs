//! Which links are cut, and which agents reach a majority of their cluster.

use std::collections::BTreeSet;

use common::ids::ClusterId;

use super::SimFleet;
use crate::ports::Direction;

impl SimFleet {
    /// Cuts exactly these directions in the name of the fault `number`, beside what others cut.
    pub fn set_cuts(&mut self, number: u64, directions: BTreeSet<Direction>) {
        self.cuts.insert(number, directions);
        self.cuts.retain(|_, directions| !directions.is_empty());
        self.network.set_cuts(&self.cuts.values().flatten().copied().collect());
        self.sides_changed = (0..self.population.clusters).map(ClusterId).collect();
        self.note_sides();
    }

    /// Which agents reach a majority of their cluster's members both ways, over others if need be.
    pub(super) fn note_sides(&mut self) {
        for cluster in std::mem::take(&mut self.sides_changed) {
            let members = self.members(cluster);
            for name in &members {
                let has_majority = 2 * self.reached_from(name, &members) > members.len();
                if self.sides.insert(name.clone(), has_majority) != Some(has_majority) {
                    self.witness.side(name, cluster, has_majority);
                }
            }
        }
    }

    fn reached_from(&self, name: &str, members: &[String]) -> usize {
        let is_up = |name: &String| self.machine(name).process.is_some();
        let mut reached: BTreeSet<&str> = BTreeSet::from([name]);
        let mut todo = vec![name];
        while let Some(near) = todo.pop() {
            for far in members.iter().filter(|far| is_up(far)) {
                if !reached.contains(far.as_str()) && self.network.is_open(self.id(near), self.id(far)) {
                    reached.insert(far);
                    todo.push(far);
                }
            }
        }
        reached.len()
    }
}
