//! Two hosts behind one identity: whose frames reach which of them.
//!
//! # Rules
//! * Everybody else stands on the side of the first host, of the second, or of both, anew in each period.
//! * A host hears whoever stands on its side, and nobody else hears it.

use common::ids::NodeIdx;

use crate::random::Stream;

/// One of the two hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The first one.
    First,
    /// Its twin.
    Second,
}

/// Who stands on which side: a function of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sides {
    /// Determines all sides.
    pub seed: u64,
    /// How long everybody stays on a side, microseconds; above 0.
    pub period_us: u64,
}

impl Sides {
    /// The hosts on the side of `other`: one, or both in the order of [`Host`].
    #[must_use]
    pub fn of(&self, other: NodeIdx, now_us: u64) -> (Host, Option<Host>) {
        let period = now_us / self.period_us;
        let drawn = Stream::split(self.seed, period << 32 | u64::from(other.0)).between(0, 4);
        match drawn {
            0 | 1 => (Host::First, None),
            2 | 3 => (Host::Second, None),
            _ => (Host::First, Some(Host::Second)),
        }
    }

    /// Whether frames pass between `host` and `other`.
    #[must_use]
    pub fn reaches(&self, host: Host, other: NodeIdx, now_us: u64) -> bool {
        let (one, both) = self.of(other, now_us);
        one == host || both == Some(host)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_stands_somewhere_and_sides_change() {
        let sides = Sides {
            seed: 3,
            period_us: 100,
        };
        let at = |now_us| (0..4).map(NodeIdx).map(|idx| sides.of(idx, now_us)).collect::<Vec<_>>();
        assert_eq!(at(0), at(99));
        assert!((0..100).any(|period| at(period * 100) != at(0)));
        let is_split = |now_us| {
            let hosts = at(now_us);
            hosts.contains(&(Host::First, None)) && hosts.contains(&(Host::Second, None))
        };
        assert!((0..100).any(|period| is_split(period * 100)));
        let reached = |host| (0..100).any(|period| sides.reaches(host, NodeIdx(1), period * 100));
        assert!(reached(Host::First) && reached(Host::Second));
    }
}
