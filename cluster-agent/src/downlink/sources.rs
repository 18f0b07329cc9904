//! Which validator is followed, and which ones are doubted.
//!
//! # Rules
//! * The nearest one is followed, those that are doubted last.
//! * Upon an answer without blocks: the next one.
//! * Upon an answer that cannot be right, or does not come in time: that one is doubted, for a pause that grows each time. Only good conduct for as
//!   long as the longest pause makes up for it: one right answer costs a validator that lies nothing.
//! * Who fails, or has no blocks, begins anew the next time, as does everybody after a time without leading: what is
//!   compared is block time with the time of this machine, whose clock drifts.
//! * Now and then another one is asked, without a wait, for what comes next, and again while it brings much: an answer has
//!   a bound. Upon blocks there that are newer than the followed one's by more than can have been made since: the followed
//!   one holds blocks back, and is doubted. (Unless a cluster that was away catches up with it, and fast, the time apart
//!   that blocks take to enter.) What counts is the block time of blocks with proofs, never what somebody claims.
//! * Upon no answer to such a question: another one is asked the next time. It is not doubted: what the followed one holds
//!   back makes the answers of the others large, and slow on a slow link.
//! * An answer that may bring much has time for it.

use std::{collections::BTreeMap, time::Duration};

use common::{
    codec::Wire,
    ids::{BlockTime, DeviceId},
    wire::feed::Followed as Answer,
};

use super::FOLLOW_SLACK;
use crate::raft::LINK_BYTES_PER_MS_MIN;

/// Pauses for a validator that is doubted.
const DOUBT_US_MIN: u64 = 10_000_000;
const DOUBT_US_MAX: u64 = 300_000_000;
/// Who brings so much block time in a unit of time is not left for being behind: a cluster catches up with it.
const CATCHES_UP: u64 = 2;
/// What the longest answer takes on the slowest link.
const TRANSFER_US_MAX: u64 = Answer::BYTES_MAX as u64 * 1_000 / LINK_BYTES_PER_MS_MIN;

/// A validator, and why it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Turn {
    pub device: DeviceId,
    /// Not the one that is followed: it is asked what the other may have held back.
    pub is_comparison: bool,
}

/// See the module.
pub(super) struct Sources {
    /// Time between two comparisons, microseconds of both clocks.
    compare_us: u64,
    doubts: BTreeMap<DeviceId, Doubt>,
    /// Those that did not answer when they were asked beside the followed one.
    silent: BTreeMap<DeviceId, Doubt>,
    /// Validators before the followed one in the order.
    skipped: usize,
    followed: Option<Followed>,
    comparisons: usize,
    compared: Option<Compared>,
    /// The newest block that entered since this member leads.
    entered: Option<BlockTime>,
    /// How long full groups of blocks took to enter since the followed one answered.
    entering_us: u64,
    /// When the last question was asked.
    asked_us: u64,
    /// The next answer may take so much longer than a small one: it may bring what others have not.
    spare_us: u64,
}

#[derive(Clone, Copy, Default)]
struct Doubt {
    times: u32,
    until_us: u64,
}

/// What the validator that is followed showed.
#[derive(Clone, Copy)]
struct Followed {
    device: DeviceId,
    /// Its newest block, in an answer that came then.
    newest: BlockTime,
    at_us: u64,
    /// The newest block when it was compared last, or was followed first.
    newest_before: BlockTime,
    before_us: u64,
    /// How long full groups of blocks took to enter in between.
    entering_us: u64,
    /// It has answered since then, and what had entered before is known: what it brought can be told.
    is_measured: bool,
    compare_at_us: u64,
}

/// A validator that has brought much beside the followed one, and is asked for more.
#[derive(Clone, Copy)]
struct Compared {
    device: DeviceId,
    newest: BlockTime,
    at_us: u64,
}

impl Doubt {
    /// Once more, for a longer pause.
    fn grow(&mut self, now_us: u64, jitter_us: u64) {
        if now_us >= self.until_us.saturating_add(DOUBT_US_MAX) {
            self.times = 0;
        }
        let pause_us = (DOUBT_US_MIN << self.times.min(16)).min(DOUBT_US_MAX);
        self.times = self.times.saturating_add(1);
        self.until_us = now_us.saturating_add(pause_us + jitter_us % (pause_us / 4));
    }
}

impl Sources {
    /// Nobody is doubted. `contact_us`: how long a cluster may be unheard of without harm.
    pub fn new(contact_us: u64) -> Self {
        Self {
            compare_us: contact_us.max(2),
            doubts: BTreeMap::new(),
            silent: BTreeMap::new(),
            skipped: 0,
            followed: None,
            comparisons: 0,
            compared: None,
            entered: None,
            entering_us: 0,
            asked_us: 0,
            spare_us: 0,
        }
    }

    /// Whom to ask, of `order`, nearest first. `is_alive`: whether it is likely to answer at once.
    pub fn turn(
        &mut self,
        mut order: Vec<DeviceId>,
        is_alive: impl Fn(&DeviceId) -> bool,
        now_us: u64,
    ) -> Option<Turn> {
        self.asked_us = now_us;
        // Of those that are doubted the one that has been for longest.
        order.sort_by_key(|device| until_us(&self.doubts, device, now_us));
        let device = *order.get(self.skipped % order.len().max(1))?;
        let followed = self.followed.filter(|followed| followed.device == device);
        self.compared = self
            .compared
            .filter(|compared| followed.is_some() && is_alive(&compared.device));
        if let Some(compared) = self.compared {
            return Some(Turn {
                device: compared.device,
                is_comparison: true,
            });
        }
        let is_due = |followed: &Followed| followed.is_measured && followed.compare_at_us <= now_us;
        if let Some(followed) = followed.filter(is_due) {
            let compare_at_us = now_us.saturating_add(self.compare_us);
            self.followed = Some(Followed {
                compare_at_us,
                ..followed
            });
            order.retain(|other| *other != device && is_alive(other));
            if let Some(other) = self.other(order, now_us) {
                return Some(Turn {
                    device: other,
                    is_comparison: true,
                });
            }
        }
        Some(Turn {
            device,
            is_comparison: false,
        })
    }

    /// Whom to compare with, of `others`. They take turns but for those that failed; if all did, the one that did first.
    fn other(&mut self, mut others: Vec<DeviceId>, now_us: u64) -> Option<DeviceId> {
        self.comparisons = self.comparisons.wrapping_add(1);
        let rest_until_us = |other: &DeviceId| {
            let is_silent_until_us = until_us(&self.silent, other, now_us);
            is_silent_until_us.max(until_us(&self.doubts, other, now_us))
        };
        let ready: Vec<_> = others
            .iter()
            .filter(|other| rest_until_us(other) == 0)
            .copied()
            .collect();
        if ready.is_empty() {
            others.sort_by_key(rest_until_us);
            return others.first().copied();
        }
        Some(ready[self.comparisons % ready.len()])
    }

    /// How much longer than a small one the answer of `turn` may take, in microseconds.
    pub fn transfer_us(&self, turn: Turn, now_us: u64) -> u64 {
        let compared = self.followed.filter(|_| turn.is_comparison);
        // What a link carries at all it carries in less time than it was made in.
        let uncompared_us = compared.map(|followed| now_us.saturating_sub(followed.before_us).max(self.compare_us));
        uncompared_us
            .unwrap_or_default()
            .max(self.spare_us)
            .min(TRANSFER_US_MAX)
    }

    /// An answer brought so many bytes of blocks that were new, of which full groups took so long to enter.
    pub fn entered(&mut self, bytes: usize, took_us: u64) {
        // The next one holds what was made while this one came.
        self.spare_us = (bytes as u64 * 1_000 / LINK_BYTES_PER_MS_MIN).min(TRANSFER_US_MAX);
        self.entering_us = self.entering_us.saturating_add(took_us);
    }

    /// The blocks of an answer that came at `at_us` have entered, up to one of time `newest`; `None`: there were none.
    /// Returns the validator that turns out to hold blocks back.
    pub fn gave(&mut self, turn: Turn, newest: Option<BlockTime>, at_us: u64) -> Option<DeviceId> {
        let before = self.entered;
        self.entered = before.max(newest);
        if turn.is_comparison {
            return self.compare(turn.device, newest, at_us);
        }
        let entering_us = std::mem::take(&mut self.entering_us);
        let followed = self.followed.take().filter(|followed| followed.device == turn.device);
        let Some(newest) = newest else {
            self.skipped = self.skipped.wrapping_add(1);
            return None;
        };
        let Some(followed) = followed else {
            // Who was doubted before is on trial.
            let is_new = !self.doubts.contains_key(&turn.device);
            self.followed = Some(Followed {
                device: turn.device,
                newest,
                at_us,
                newest_before: before.unwrap_or(newest),
                before_us: self.asked_us,
                entering_us: 0,
                is_measured: before.is_some(),
                compare_at_us: at_us.saturating_add(if is_new { self.compare_us } else { 0 }),
            });
            return None;
        };
        self.followed = Some(Followed {
            newest,
            at_us,
            entering_us: followed.entering_us.saturating_add(entering_us),
            is_measured: true,
            ..followed
        });
        None
    }

    fn compare(&mut self, device: DeviceId, newest: Option<BlockTime>, at_us: u64) -> Option<DeviceId> {
        self.silent.remove(&device);
        let before = self.compared.take();
        let followed = self.followed.as_mut()?;
        // Made since its answer, by clocks that are off by much less than this.
        let made_us = at_us.saturating_sub(followed.at_us).saturating_add(self.compare_us / 2);
        let is_behind = newest.is_some_and(|newest| newest.0 > followed.newest.0.saturating_add(made_us));
        let (last, last_us) = before.map_or((followed.newest, followed.at_us), |before| {
            (before.newest, before.at_us)
        });
        let is_fast = |newest: BlockTime| {
            let took_us = at_us.saturating_sub(last_us);
            newest.0.saturating_sub(last.0) > CATCHES_UP.saturating_mul(took_us)
        };
        if let Some(newest) = newest.filter(|newest| !is_behind && is_fast(*newest)) {
            self.compared = Some(Compared { device, newest, at_us });
            return None;
        }
        let brought_us = followed.newest.0.saturating_sub(followed.newest_before.0);
        // However long the log takes for what it gives: that is not its fault.
        let took_us = followed.at_us.saturating_sub(followed.before_us);
        let took_us = took_us.saturating_sub(followed.entering_us);
        followed.newest_before = newest.unwrap_or(last).max(followed.newest);
        followed.before_us = at_us;
        followed.entering_us = 0;
        followed.is_measured = false;
        self.entering_us = 0;
        let is_left = is_behind && brought_us <= CATCHES_UP.saturating_mul(took_us);
        if !is_left {
            return None;
        }
        self.followed.take().map(|followed| followed.device)
    }

    /// Whoever had the turn did not answer in time, or refused. `jitter_us`: any number.
    pub fn no_answer(&mut self, turn: Turn, now_us: u64, jitter_us: u64) {
        if turn.is_comparison {
            self.compared = None;
            self.silent.entry(turn.device).or_default().grow(now_us, jitter_us);
            return;
        }
        // Perhaps because there was so much of it.
        let slack_us = micros(FOLLOW_SLACK);
        self.spare_us = self.spare_us.saturating_mul(2).clamp(slack_us, TRANSFER_US_MAX);
        self.doubt(turn.device, now_us, jitter_us);
    }

    /// Leaves `device` alone for a while. `jitter_us`: any number.
    pub fn doubt(&mut self, device: DeviceId, now_us: u64, jitter_us: u64) {
        self.begin_again();
        self.followed = self.followed.filter(|followed| followed.device != device);
        self.doubts.entry(device).or_default().grow(now_us, jitter_us);
    }

    /// Nothing is asked for now, or nobody is reached: what was measured is of no use later.
    pub fn pause(&mut self) {
        self.begin_again();
        (self.followed, self.entered, self.entering_us) = (None, None, 0);
    }

    /// The order has changed: the first one is next.
    pub fn begin_again(&mut self) {
        self.skipped = 0;
        self.compared = None;
    }
}

/// Until when `device` is left alone; 0: it is not.
fn until_us(doubts: &BTreeMap<DeviceId, Doubt>, device: &DeviceId, now_us: u64) -> u64 {
    let until_us = doubts.get(device).map_or(0, |doubt| doubt.until_us);
    if until_us > now_us { until_us } else { 0 }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
