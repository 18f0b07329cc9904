//! What becomes of one datagram: dropped, delayed, doubled.
//!
//! In: a [`Rule`] and random numbers. Out: a [`Fate`]. Pure: the same numbers give the same fates.
//!
//! # Rules
//! * Every datagram takes the same count of random numbers, whatever the rule says: a change of one field changes no fate that
//!   another field decides.
//! * Chances are counted in parts per million, times in microseconds.

use rand::Rng;
use serde::{Deserialize, Serialize};

/// One in one million is 1, always is this.
pub const PPM: u32 = 1_000_000;

/// Longest delay, jitter or holding back: 60 s.
pub const DELAY_US_MAX: u64 = 60_000_000;

/// How the datagrams of one directed link fare. The default lets them pass as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rule {
    /// Nothing passes; the other fields do not matter.
    pub drops_all: bool,
    /// Chance that a datagram is lost.
    pub loss_ppm: u32,
    /// Every datagram is late by this much.
    pub delay_us: u64,
    /// And by up to this much more, each copy by its own draw: jitter alone changes the order too.
    pub jitter_us: u64,
    /// Chance that a copy is held back, so that later ones overtake it.
    pub reorder_ppm: u32,
    /// For how long it is held back.
    pub reorder_us: u64,
    /// Chance that a datagram that is not lost arrives twice.
    pub duplicate_ppm: u32,
}

/// A rule that cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// More than always.
    #[error("{field} is {got} parts per million, at most {PPM} are possible")]
    Chance {
        /// Which.
        field: &'static str,
        /// Its value.
        got: u32,
    },
    /// Memory for late datagrams is bounded, and so is their lateness.
    #[error("{field} is {got} microseconds, at most {DELAY_US_MAX} are allowed")]
    Delay {
        /// Which.
        field: &'static str,
        /// Its value.
        got: u64,
    },
}

impl Rule {
    /// Nothing passes.
    pub const CUT: Self = Self {
        drops_all: true,
        loss_ppm: 0,
        delay_us: 0,
        jitter_us: 0,
        reorder_ppm: 0,
        reorder_us: 0,
        duplicate_ppm: 0,
    };

    /// Whether datagrams pass as they are.
    #[must_use]
    pub fn changes_nothing(&self) -> bool {
        let without_chance = Self { reorder_us: 0, ..*self };
        without_chance == Self::default()
    }

    /// Whether the rule can be followed.
    ///
    /// # Errors
    /// The first field that is out of range.
    pub fn check(&self) -> Result<(), RuleError> {
        let chances = [
            ("loss_ppm", self.loss_ppm),
            ("reorder_ppm", self.reorder_ppm),
            ("duplicate_ppm", self.duplicate_ppm),
        ];
        if let Some((field, got)) = chances.into_iter().find(|(_, got)| *got > PPM) {
            return Err(RuleError::Chance { field, got });
        }
        let delays = [
            ("delay_us", self.delay_us),
            ("jitter_us", self.jitter_us),
            ("reorder_us", self.reorder_us),
        ];
        match delays.into_iter().find(|(_, got)| *got > DELAY_US_MAX) {
            Some((field, got)) => Err(RuleError::Delay { field, got }),
            None => Ok(()),
        }
    }
}

/// What becomes of one datagram: none to two copies, each with its delay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fate {
    delays_us: [u64; 2],
    copies: usize,
}

impl Fate {
    /// Nothing arrives.
    pub const DROPPED: Self = Self {
        delays_us: [0, 0],
        copies: 0,
    };

    /// Delays of the copies, in microseconds from now.
    #[must_use]
    pub fn delays_us(&self) -> &[u64] {
        &self.delays_us[..self.copies]
    }
}

/// Decides what becomes of the next datagram of a link under `rule`, which must have been checked.
#[must_use]
pub fn fate(rule: &Rule, random: &mut impl Rng) -> Fate {
    let is_lost = happens(rule.loss_ppm, random);
    let is_doubled = happens(rule.duplicate_ppm, random);
    let delays_us = [late_by(rule, random), late_by(rule, random)];
    if rule.drops_all || is_lost {
        return Fate::DROPPED;
    }
    Fate {
        delays_us,
        copies: 1 + usize::from(is_doubled),
    }
}

fn late_by(rule: &Rule, random: &mut impl Rng) -> u64 {
    let jitter_us = below(rule.jitter_us + 1, random);
    let is_held_back = happens(rule.reorder_ppm, random);
    rule.delay_us + jitter_us + if is_held_back { rule.reorder_us } else { 0 }
}

fn happens(chance_ppm: u32, random: &mut impl Rng) -> bool {
    below(u64::from(PPM), random) < u64::from(chance_ppm)
}

/// A number from 0 up to but not including `end`, from one draw (the high half of a product; the bias is below 2^-38 here).
fn below(end: u64, random: &mut impl Rng) -> u64 {
    ((u128::from(random.next_u64()) * u128::from(end)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

    use super::*;

    fn fates(rule: &Rule, seed: u64, count: usize) -> Vec<Fate> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        (0..count).map(|_| fate(rule, &mut random)).collect()
    }

    fn rules() -> impl Strategy<Value = Rule> {
        let ppm = 0..=PPM;
        let us = 0..=DELAY_US_MAX;
        (ppm.clone(), us.clone(), us.clone(), ppm.clone(), us, ppm).prop_map(
            |(loss_ppm, delay_us, jitter_us, reorder_ppm, reorder_us, duplicate_ppm)| Rule {
                drops_all: false,
                loss_ppm,
                delay_us,
                jitter_us,
                reorder_ppm,
                reorder_us,
                duplicate_ppm,
            },
        )
    }

    /// Of how many a seed makes happen what has this chance: within five standard deviations (plus one) of the mean.
    fn is_plausible(happened: usize, of: usize, chance_ppm: u32) -> bool {
        let p = f64::from(chance_ppm) / f64::from(PPM);
        let mean = of as f64 * p;
        (happened as f64 - mean).abs() <= 5.0 * (mean * (1.0 - p)).sqrt() + 1.0
    }

    proptest! {
        #[test]
        fn same_seed_gives_the_same_fates(rule in rules(), seed: u64) {
            prop_assert_eq!(fates(&rule, seed, 100), fates(&rule, seed, 100));
        }

        #[test]
        fn cut_lets_nothing_pass(rule in rules(), seed: u64) {
            let cut = Rule { drops_all: true, ..rule };
            prop_assert!(fates(&cut, seed, 200).iter().all(|fate| fate.delays_us().is_empty()));
        }

        #[test]
        fn as_many_are_lost_doubled_and_held_back_as_the_rule_says(rule in rules(), seed: u64) {
            const COUNT: usize = 4_000;
            let held = Rule { jitter_us: 0, delay_us: 0, reorder_us: 1, ..rule };
            let seen = fates(&held, seed, COUNT);
            let arrived: Vec<_> = seen.iter().filter(|fate| !fate.delays_us().is_empty()).collect();
            prop_assert!(is_plausible(COUNT - arrived.len(), COUNT, rule.loss_ppm));
            let doubled = arrived.iter().filter(|fate| fate.delays_us().len() == 2).count();
            prop_assert!(is_plausible(doubled, arrived.len(), rule.duplicate_ppm));
            let late = arrived.iter().filter(|fate| fate.delays_us()[0] == 1).count();
            prop_assert!(is_plausible(late, arrived.len(), rule.reorder_ppm));
        }

        #[test]
        fn delays_stay_between_the_rules_bounds(rule in rules(), seed: u64) {
            let bounds = rule.delay_us..=rule.delay_us + rule.jitter_us + rule.reorder_us;
            for fate in fates(&rule, seed, 100) {
                prop_assert!(fate.delays_us().iter().all(|delay| bounds.contains(delay)));
            }
        }

        #[test]
        fn what_one_field_decides_another_does_not_change(rule in rules(), seed: u64) {
            let more_jitter = Rule { jitter_us: rule.jitter_us / 2, duplicate_ppm: 0, ..rule };
            let is_lost = |fate: &Fate| fate.delays_us().is_empty();
            let lost = |rule: &Rule| fates(rule, seed, 100).iter().map(is_lost).collect::<Vec<_>>();
            prop_assert_eq!(lost(&rule), lost(&more_jitter));
        }
    }

    #[test]
    fn default_rule_passes_everything_at_once() {
        assert!(Rule::default().changes_nothing() && !Rule::CUT.changes_nothing());
        assert!(
            fates(&Rule::default(), 1, 100)
                .iter()
                .all(|fate| fate.delays_us() == [0])
        );
    }

    #[test]
    fn rule_out_of_range_is_refused_with_its_field() {
        let loss = Rule {
            loss_ppm: PPM + 1,
            ..Rule::default()
        };
        let got = PPM + 1;
        assert_eq!(loss.check(), Err(RuleError::Chance { field: "loss_ppm", got }));
        let jitter = Rule {
            jitter_us: u64::MAX,
            ..Rule::default()
        };
        let got = u64::MAX;
        assert_eq!(
            jitter.check(),
            Err(RuleError::Delay {
                field: "jitter_us",
                got
            })
        );
        assert_eq!(Rule::CUT.check(), Ok(()));
    }
}
