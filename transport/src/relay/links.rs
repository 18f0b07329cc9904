//! The rules in force, and the datagrams that wait because of them.
//!
//! In: datagrams with their link. Out: what to send now, and when to look again. Knows no socket.
//!
//! # Rules
//! * Each directed link draws from its own numbers, which begin anew when its rule is set: its n-th datagram has the
//!   fate that the seed says, whatever other links carry.
//! * A datagram that waits is dropped when its time comes if the link is cut by then.
//! * What waits takes at most [`WAITING_BYTES_MAX`]; what comes beyond it is dropped and counted.

use std::collections::BTreeMap;

use rand::{SeedableRng as _, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};
use tokio::time::{Duration, Instant};

use super::fate::{Rule, fate};

/// Memory for datagrams that wait.
pub const WAITING_BYTES_MAX: usize = 32 * 1024 * 1024;

/// A directed link: from one end to another, by their places in the relay's list.
pub(super) type LinkId = (usize, usize);

/// What the relay did with datagrams since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Copies sent on.
    pub forwarded: u64,
    /// Dropped because their link is cut.
    pub cut: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Arrived twice.
    pub doubled: u64,
    /// Dropped because too many waited, or the system took no more.
    pub overflowed: u64,
    /// Dropped because no end sends from their address.
    pub unknown: u64,
}

struct Ruled {
    rule: Rule,
    random: Xoshiro256PlusPlus,
}

struct Waiting {
    link: LinkId,
    bytes: Box<[u8]>,
}

/// All links of a relay.
pub(super) struct Links {
    seed: u64,
    ruled: BTreeMap<LinkId, Ruled>,
    /// By the time they are due, and then in the order they came.
    waiting: BTreeMap<(Instant, u64), Waiting>,
    waiting_bytes: usize,
    arrivals: u64,
    pub(super) counters: Counters,
}

/// What to do with a datagram at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Now {
    /// Copies to send.
    pub(super) copies: usize,
    /// Whether copies wait for later.
    pub(super) has_waiting: bool,
}

impl Links {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            seed,
            ruled: BTreeMap::new(),
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            arrivals: 0,
            counters: Counters::default(),
        }
    }

    /// Puts a checked rule in force.
    pub(super) fn set(&mut self, link: LinkId, rule: Rule) {
        if rule.changes_nothing() {
            self.ruled.remove(&link);
            return;
        }
        let own = ((link.0 as u64) << 32 | link.1 as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let random = Xoshiro256PlusPlus::seed_from_u64(self.seed ^ own);
        self.ruled.insert(link, Ruled { rule, random });
    }

    /// Takes the rules of links away for which `is_meant` holds.
    pub(super) fn heal(&mut self, is_meant: impl Fn(LinkId) -> bool) {
        self.ruled.retain(|link, _| !is_meant(*link));
    }

    /// The rules in force.
    pub(super) fn rules(&self) -> impl Iterator<Item = (LinkId, Rule)> + '_ {
        self.ruled.iter().map(|(link, ruled)| (*link, ruled.rule))
    }

    fn is_cut(&self, link: LinkId) -> bool {
        self.ruled.get(&link).is_some_and(|ruled| ruled.rule.drops_all)
    }

    /// Decides about a datagram that arrived at `now`.
    pub(super) fn arrived(&mut self, link: LinkId, bytes: &[u8], now: Instant) -> Now {
        let Some(ruled) = self.ruled.get_mut(&link) else {
            return Now {
                copies: 1,
                has_waiting: false,
            };
        };
        let fate = fate(&ruled.rule, &mut ruled.random);
        match fate.delays_us() {
            [] if ruled.rule.drops_all => self.counters.cut += 1,
            [] => self.counters.lost += 1,
            [_] => {}
            _ => self.counters.doubled += 1,
        }
        let copies = fate.delays_us().iter().filter(|delay| **delay == 0).count();
        let mut has_waiting = false;
        for delay_us in fate.delays_us().iter().filter(|delay| **delay > 0) {
            has_waiting |= self.wait(link, bytes, now + Duration::from_micros(*delay_us));
        }
        Now { copies, has_waiting }
    }

    fn wait(&mut self, link: LinkId, bytes: &[u8], due: Instant) -> bool {
        if self.waiting_bytes + bytes.len() > WAITING_BYTES_MAX {
            self.counters.overflowed += 1;
            return false;
        }
        self.waiting_bytes += bytes.len();
        self.arrivals += 1;
        let bytes = bytes.into();
        self.waiting.insert((due, self.arrivals), Waiting { link, bytes });
        true
    }

    /// The next datagram whose time has come by `now` and whose link lets it pass.
    pub(super) fn due(&mut self, now: Instant) -> Option<(LinkId, Box<[u8]>)> {
        loop {
            let first = self.waiting.first_entry().filter(|first| first.key().0 <= now)?;
            let Waiting { link, bytes } = first.remove();
            self.waiting_bytes -= bytes.len();
            if self.is_cut(link) {
                self.counters.cut += 1;
            } else {
                return Some((link, bytes));
            }
        }
    }

    /// When the next waiting datagram is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.waiting.first_key_value().map(|((due, _), _)| *due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: LinkId = (0, 1);

    fn late(delay_us: u64) -> Rule {
        Rule {
            delay_us,
            ..Rule::default()
        }
    }

    #[test]
    fn late_datagrams_come_in_order_when_they_are_due() {
        let (mut links, now) = (Links::new(1), Instant::now());
        links.set(LINK, late(1_000));
        let waits = Now {
            copies: 0,
            has_waiting: true,
        };
        assert_eq!(links.arrived(LINK, b"a", now), waits);
        assert_eq!(links.arrived(LINK, b"b", now), waits);
        assert_eq!(links.due(now), None);
        let due = links.next_due().unwrap();
        assert_eq!(due, now + Duration::from_millis(1));
        assert_eq!(links.due(due), Some((LINK, b"a"[..].into())));
        assert_eq!(links.due(due), Some((LINK, b"b"[..].into())));
        assert_eq!((links.due(due), links.next_due(), links.waiting_bytes), (None, None, 0));
    }

    #[test]
    fn datagram_on_its_way_when_the_link_is_cut_does_not_arrive() {
        let (mut links, now) = (Links::new(1), Instant::now());
        links.set(LINK, late(1_000));
        links.arrived(LINK, b"a", now);
        links.set(LINK, Rule::CUT);
        assert_eq!(links.due(now + Duration::from_secs(1)), None);
        assert_eq!((links.counters.cut, links.waiting_bytes), (1, 0));
    }

    #[test]
    fn what_waits_is_bounded_and_the_rest_is_counted() {
        let (mut links, now) = (Links::new(1), Instant::now());
        links.set(LINK, late(1_000));
        let datagram = vec![0; 64 * 1024];
        for _ in 0..WAITING_BYTES_MAX / datagram.len() {
            assert!(links.arrived(LINK, &datagram, now).has_waiting);
        }
        assert!(!links.arrived(LINK, &datagram, now).has_waiting);
        assert_eq!(links.counters.overflowed, 1);
        while links.due(now + Duration::from_secs(1)).is_some() {}
        assert!(links.arrived(LINK, &datagram, now).has_waiting, "room is given back");
    }

    #[test]
    fn links_fates_do_not_depend_on_what_other_links_carry() {
        let half = Rule {
            loss_ppm: 500_000,
            ..Rule::default()
        };
        let now = Instant::now();
        let fates = |seed: u64, other: usize| {
            let mut links = Links::new(seed);
            links.set(LINK, half);
            links.set((1, 0), half);
            (0..64)
                .map(|_| {
                    for _ in 0..other {
                        links.arrived((1, 0), b"x", now);
                    }
                    links.arrived(LINK, b"a", now).copies
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(fates(1, 0), fates(1, 3));
        assert_ne!(fates(1, 0), fates(2, 0));
    }

    #[test]
    fn rule_that_changes_nothing_is_no_rule() {
        let mut links = Links::new(1);
        links.set(LINK, Rule::CUT);
        assert_eq!(links.rules().collect::<Vec<_>>(), [(LINK, Rule::CUT)]);
        links.set(LINK, Rule::default());
        assert_eq!(links.rules().count(), 0);
        links.set(LINK, Rule::CUT);
        links.heal(|(from, _)| from == 1);
        assert_eq!(links.rules().count(), 1);
        links.heal(|(from, _)| from == 0);
        assert_eq!(links.rules().count(), 0);
    }
}
