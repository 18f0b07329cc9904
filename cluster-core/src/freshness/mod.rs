//! Decides the mode of an agent and how old its answers may be, from evidence.
//!
//! In: linearizable positions with the time at which they were asked for, applied positions, blocks
//! that executed a batch of the own cluster, word that the quorum is lost. Out: mode, ages, and when the
//! mode changes by age alone. Called by: the agent's shell.
//!
//! # Rules
//! * Upon a position asked for at `t0` and applied now: the cluster's state here is fresh as of `t0`.
//! * Upon a block that executed a batch of the own cluster closed above a position asked for at `t0`:
//!   the global view is fresh as of `t0`. The same if it holds an entry signed here after `t0`.
//! * Ages grow with the own clock divided by `1 - rho`. After a start everything is unknown.
//! * Upon word that the quorum is lost: `read_only` at once, and until a position that was asked for
//!   afterwards comes (`catching_up`) and is applied. Ages do not change with it.
//! * Upon proof that the global view is none that validators have: it is as old as nobody knows.
//! * The mode also changes when evidence merely ages; the instant of the next such change is known.
//!
//! # Invariants
//! * honest-staleness: no age is below the truth.
//!
//! # Why
//! A heartbeat is no evidence, since a cut-off leader goes on sending them; nor is the arrival of a
//! block, since a validator can feed blocks an hour late.

use std::collections::VecDeque;

use common::{ids::LogIndex, wire::op::Mode};

/// Positions remembered until a block includes them.
const POSITIONS_MAX: usize = 256;

/// A position and when it was asked for, microseconds of the own clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    t0_us: u64,
    index: LogIndex,
}

/// Ages above which evidence no longer supports a mode. Microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreshnessLimits {
    /// Above it the cluster's quorum counts as lost: a few times the interval of asking.
    pub quorum_age_us_max: u64,
    /// Above it the validators count as out of reach.
    pub global_age_us_max: u64,
}

/// What an agent knows of its own freshness.
#[derive(Clone, Debug)]
pub struct Freshness {
    drift_ppm: u32,
    limits: FreshnessLimits,
    /// Ascending in both fields: a later question gets no lower position.
    waiting: VecDeque<Asked>,
    /// Applied, and not yet below a batch that a block executed.
    unconfirmed: VecDeque<Asked>,
    fresh_as_of_us: Option<u64>,
    answered_as_of_us: Option<u64>,
    global_fresh_as_of_us: Option<u64>,
    /// The quorum was lost then: what was asked for before it no longer supports a mode.
    lost_us: Option<u64>,
    applied: LogIndex,
}

impl Freshness {
    /// After a start: nothing is known. `drift_ppm` is rho of the genesis file.
    #[must_use]
    pub fn new(drift_ppm: u32, limits: FreshnessLimits) -> Self {
        Self {
            drift_ppm,
            limits,
            waiting: VecDeque::new(),
            unconfirmed: VecDeque::new(),
            fresh_as_of_us: None,
            answered_as_of_us: None,
            global_fresh_as_of_us: None,
            lost_us: None,
            applied: LogIndex(0),
        }
    }

    /// A leader confirmed by a quorum answered `index` to a question asked at `t0_us`.
    pub fn answered(&mut self, t0_us: u64, index: LogIndex) {
        self.answered_as_of_us = self.answered_as_of_us.max(Some(t0_us));
        push(&mut self.waiting, Asked { t0_us, index });
        self.settle();
    }

    /// Everything up to `index` is applied here.
    pub fn applied(&mut self, index: LogIndex) {
        self.applied = self.applied.max(index);
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(asked) = self.waiting.front().copied()
            && asked.index <= self.applied
        {
            self.waiting.pop_front();
            self.fresh_as_of_us = self.fresh_as_of_us.max(Some(asked.t0_us));
            push(&mut self.unconfirmed, asked);
        }
    }

    /// A block was applied that executed a batch of the own cluster and founding closed at `cut`.
    pub fn own_batch_final(&mut self, cut: LogIndex) {
        while let Some(asked) = self.unconfirmed.front().copied()
            && asked.index < cut
        {
            self.unconfirmed.pop_front();
            self.global_fresh_as_of_us = self.global_fresh_as_of_us.max(Some(asked.t0_us));
        }
    }

    /// A block was applied that holds an entry this agent began to sign at `t0_us`.
    pub fn own_entry_final(&mut self, t0_us: u64) {
        self.global_fresh_as_of_us = self.global_fresh_as_of_us.max(Some(t0_us));
    }

    /// The global view here is one that no quorum has: its age means nothing, whatever blocks said before.
    pub fn global_refuted(&mut self) {
        self.unconfirmed.clear();
        self.global_fresh_as_of_us = None;
    }

    /// What the slowest clock shows of a second, in microseconds.
    fn shown_ppm(&self) -> u128 {
        u128::from(1_000_000_u32.saturating_sub(self.drift_ppm).max(1))
    }

    fn age_us(&self, as_of_us: Option<u64>, now_us: u64) -> Option<u64> {
        let age = u128::from(now_us.saturating_sub(as_of_us?));
        let grown = (age * 1_000_000).div_ceil(self.shown_ppm());
        Some(u64::try_from(grown).unwrap_or(u64::MAX))
    }

    /// How old the cluster's state here may be at `now_us`, in microseconds; `None` is "unknown".
    #[must_use]
    pub fn staleness_us(&self, now_us: u64) -> Option<u64> {
        self.age_us(self.fresh_as_of_us, now_us)
    }

    /// How old the global view here may be at `now_us`, in microseconds; `None` is "unknown".
    #[must_use]
    pub fn global_age_us(&self, now_us: u64) -> Option<u64> {
        self.age_us(self.global_fresh_as_of_us, now_us)
    }

    /// Entries still to be applied up to the newest position heard of.
    #[must_use]
    pub fn behind(&self) -> u64 {
        self.waiting
            .back()
            .map_or(0, |asked| asked.index.0.saturating_sub(self.applied.0))
    }

    /// The quorum is known to be lost at `now_us`: the leader has been silent for too long, or says so
    /// itself.
    pub fn quorum_lost(&mut self, now_us: u64) {
        self.lost_us = self.lost_us.max(Some(now_us));
    }

    fn supports_quorum(&self, as_of_us: Option<u64>, now_us: u64) -> bool {
        let age_us = self.age_us(as_of_us, now_us);
        as_of_us > self.lost_us && age_us.is_some_and(|age| age <= self.limits.quorum_age_us_max)
    }

    /// The mode at `now_us`.
    #[must_use]
    pub fn mode(&self, now_us: u64) -> Mode {
        if self.supports_quorum(self.fresh_as_of_us, now_us) {
            let age_us = self.global_age_us(now_us);
            if age_us.is_some_and(|age| age <= self.limits.global_age_us_max) {
                Mode::Normal
            } else {
                Mode::Island
            }
        } else if self.supports_quorum(self.answered_as_of_us, now_us) {
            Mode::CatchingUp
        } else {
            Mode::ReadOnly
        }
    }

    /// The next instant, after `now_us`, at which the mode changes if nothing is heard until then;
    /// `None` if it stays.
    #[must_use]
    pub fn next_mode_change_us(&self, now_us: u64) -> Option<u64> {
        let quorum_max = self.limits.quorum_age_us_max;
        let lapses = [
            self.lapses_us(self.fresh_as_of_us, quorum_max),
            self.lapses_us(self.answered_as_of_us, quorum_max),
            self.lapses_us(self.global_fresh_as_of_us, self.limits.global_age_us_max),
        ];
        let mode = self.mode(now_us);
        let changes = |at: &u64| *at > now_us && self.mode(*at) != mode;
        lapses.into_iter().flatten().filter(changes).min()
    }

    /// The first instant at which what is fresh as of `as_of_us` is older than `age_us_max`.
    fn lapses_us(&self, as_of_us: Option<u64>, age_us_max: u64) -> Option<u64> {
        let longest = u128::from(age_us_max) * self.shown_ppm() / 1_000_000;
        let longest = u64::try_from(longest).unwrap_or(u64::MAX);
        Some(as_of_us?.saturating_add(longest).saturating_add(1))
    }
}

/// Keeps the list ascending and bounded. Of two questions with one position the later is the better
/// evidence; a question that goes back in either field says nothing new.
fn push(list: &mut VecDeque<Asked>, asked: Asked) {
    if let Some(last) = list.back_mut() {
        if asked.t0_us <= last.t0_us || asked.index < last.index {
            return;
        }
        if asked.index == last.index {
            *last = asked;
            return;
        }
    }
    if list.len() == POSITIONS_MAX {
        // Every second one goes: what is left is true, and only coarser.
        let mut keep = false;
        list.retain(|_| {
            keep = !keep;
            keep
        });
    }
    list.push_back(asked);
}

#[cfg(test)]
mod tests;
