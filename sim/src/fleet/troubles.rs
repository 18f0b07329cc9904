//! What is wrong with the disk of one machine, fault by fault, and what its process may blame on it.
//!
//! # Rules
//! * Each fault has a trouble of its own, by its number: the end of one leaves the others in force. The worst counts.
//! * A process may end because of a trouble while that is in force, and for [`NOTICED_WITHIN_US`] afterwards: a failed
//!   sync is noticed at once, so who ends later has another reason. A paused process notices nothing; its time stands
//!   still.
//! * A new life may blame nothing that ended before it began.

use std::collections::BTreeMap;

use crate::ports::DiskTrouble;

/// A process that met trouble of its disk has ended this long after the trouble, at the latest.
const NOTICED_WITHIN_US: u64 = 10_000_000;

/// Exit codes of a process on such a disk: it failed or is full; or what it holds is damaged, which is refused for
/// safety as well.
fn exit_codes(trouble: DiskTrouble) -> &'static [u8] {
    match trouble {
        DiskTrouble::Healthy | DiskTrouble::Slow { .. } => &[],
        DiskTrouble::Failing | DiskTrouble::Full => &[74],
        DiskTrouble::Rotten { .. } => &[70, 74, 78],
    }
}

/// The troubles of one disk.
#[derive(Default)]
pub(super) struct Troubles {
    /// By the number of the fault.
    in_force: BTreeMap<u64, DiskTrouble>,
    /// With the time of their ends.
    ended: Vec<(DiskTrouble, u64)>,
}

impl Troubles {
    /// Begins the trouble of the fault `number`, or ends it with [`DiskTrouble::Healthy`].
    pub(super) fn set(&mut self, number: u64, trouble: DiskTrouble, now_us: u64) {
        let before = if trouble == DiskTrouble::Healthy {
            self.in_force.remove(&number)
        } else {
            self.in_force.insert(number, trouble)
        };
        self.ended
            .retain(|(_, ended_us)| now_us <= ended_us + NOTICED_WITHIN_US);
        self.ended.extend(before.map(|before| (before, now_us)));
    }

    /// The worst of those in force.
    pub(super) fn worst(&self) -> DiskTrouble {
        self.in_force.values().max().copied().unwrap_or_default()
    }

    /// A new life begins on the disk as it is.
    pub(super) fn begin_life(&mut self) {
        self.ended.clear();
    }

    /// The process stood still for `paused_us` and could notice nothing.
    pub(super) fn resume(&mut self, paused_us: u64, now_us: u64) {
        for (_, ended_us) in &mut self.ended {
            *ended_us = (*ended_us + paused_us).min(now_us);
        }
    }

    fn to_blame(&self, now_us: u64) -> impl Iterator<Item = u8> {
        let fresh = move |ended: &&(DiskTrouble, u64)| now_us <= ended.1 + NOTICED_WITHIN_US;
        let ended = self.ended.iter().filter(fresh).map(|(trouble, _)| *trouble);
        let in_force = self.in_force.values().copied();
        in_force
            .chain(ended)
            .flat_map(|trouble| exit_codes(trouble).iter().copied())
    }

    /// Whether its process may end with `exit_code` now.
    pub(super) fn excuse(&self, exit_code: u8, now_us: u64) -> bool {
        self.to_blame(now_us).any(|code| code == exit_code)
    }

    /// Whether its process may end at all, or not start.
    pub(super) fn excuse_some(&self, now_us: u64) -> bool {
        self.to_blame(now_us).next().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ports::Rotten;

    #[test]
    fn end_of_one_trouble_leaves_the_others_and_the_worst_counts() {
        let slow = DiskTrouble::Slow { times: 20 };
        let slower = DiskTrouble::Slow { times: 300 };
        let mut troubles = Troubles::default();
        assert_eq!(troubles.worst(), DiskTrouble::Healthy);
        troubles.set(1, DiskTrouble::Full, 0);
        troubles.set(2, slow, 0);
        assert_eq!(troubles.worst(), DiskTrouble::Full);
        troubles.set(2, DiskTrouble::Healthy, 1);
        assert_eq!(troubles.worst(), DiskTrouble::Full);
        troubles.set(3, slow, 1);
        troubles.set(4, slower, 1);
        troubles.set(1, DiskTrouble::Healthy, 2);
        assert_eq!(troubles.worst(), slower);
        troubles.set(3, DiskTrouble::Healthy, 3);
        troubles.set(4, DiskTrouble::Healthy, 3);
        assert_eq!(troubles.worst(), DiskTrouble::Healthy);
    }

    #[test]
    fn excuse_is_over_ten_seconds_after_the_trouble_and_with_the_life_that_met_it() {
        let mut troubles = Troubles::default();
        assert!(!troubles.excuse_some(0));
        troubles.set(1, DiskTrouble::Failing, 0);
        assert!(troubles.excuse(74, 100_000_000), "in force");
        assert!(!troubles.excuse(70, 0), "a failing disk is not a damaged one");
        troubles.set(1, DiskTrouble::Healthy, 100_000_000);
        assert!(troubles.excuse(74, 110_000_000));
        assert!(!troubles.excuse(74, 110_000_001));
        assert!(!troubles.excuse_some(110_000_001));
        let what = Rotten::Records;
        troubles.set(2, DiskTrouble::Rotten { what, at: 1 }, 200_000_000);
        troubles.set(3, DiskTrouble::Failing, 200_000_000);
        troubles.set(2, DiskTrouble::Healthy, 201_000_000);
        assert!(troubles.excuse(78, 202_000_000), "the older one is not forgotten");
        troubles.begin_life();
        assert!(!troubles.excuse(78, 202_000_000), "it is by who did not meet it");
        assert!(troubles.excuse(74, 202_000_000));
    }

    #[test]
    fn paused_process_has_its_time_when_it_goes_on() {
        let mut troubles = Troubles::default();
        troubles.set(1, DiskTrouble::Full, 0);
        troubles.set(1, DiskTrouble::Healthy, 5_000_000);
        // It stood still from 8 s to 20 s: 3 s of its time are over.
        troubles.resume(12_000_000, 20_000_000);
        assert!(troubles.excuse(74, 27_000_000));
        assert!(!troubles.excuse(74, 27_000_001));
    }
}
