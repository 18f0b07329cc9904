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
    /// How long blocks took to enter since the followed one answered.
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
    /// How long blocks took to enter in between.
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

    /// An answer brought so many bytes of blocks that were new, which took so long to enter.
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
        is_left
            .then(|| self.followed.take())
            .flatten()
            .map(|followed| followed.device)
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
mod tests {
    use super::*;

    const S: u64 = 1_000_000;
    const A: DeviceId = DeviceId([1; 32]);
    const B: DeviceId = DeviceId([2; 32]);
    const C: DeviceId = DeviceId([3; 32]);

    fn turn(sources: &mut Sources, now_us: u64) -> Turn {
        sources.turn(vec![A, B, C], |_| true, now_us).unwrap()
    }

    fn follow(device: DeviceId) -> Turn {
        Turn {
            device,
            is_comparison: false,
        }
    }

    const CONTACT_S: u64 = 8;

    /// A has been followed since second 0.
    fn followed() -> Sources {
        let mut sources = Sources::new(CONTACT_S * S);
        sources.entered = Some(BlockTime(0));
        sources.gave(follow(A), Some(BlockTime(0)), 0);
        sources
    }

    /// At second `now_s` A gives a block of time `newest_s`, and another one gives one of time `other_s` when it has entered,
    /// `took_s` later.
    fn compared(sources: &mut Sources, now_s: u64, newest_s: u64, other_s: u64, took_s: u64) -> Option<DeviceId> {
        assert_eq!(sources.gave(follow(A), Some(BlockTime(newest_s * S)), now_s * S), None);
        let now_us = (now_s + took_s) * S;
        let asked = turn(sources, now_us);
        assert!(asked.is_comparison && asked.device != A, "{asked:?}");
        assert_eq!(turn(sources, now_us), follow(A), "one comparison at a time");
        let left = sources.gave(asked, Some(BlockTime(other_s * S)), now_us);
        if turn(sources, now_us) == asked {
            // It has no more.
            sources.gave(asked, None, now_us);
        }
        left
    }

    #[test]
    fn nearest_validator_is_followed_and_after_an_answer_without_blocks_the_next() {
        let mut sources = Sources::new(CONTACT_S * S);
        for device in [A, B, C, A] {
            assert_eq!(turn(&mut sources, 0), follow(device));
            sources.gave(follow(device), None, 0);
        }
        assert_eq!(sources.turn(Vec::new(), |_| true, 0), None);
    }

    #[test]
    fn validator_that_keeps_up_with_others_stays() {
        let mut sources = followed();
        for now_s in (8..800).step_by(8) {
            assert_eq!(compared(&mut sources, now_s, now_s - 4, now_s, 0), None);
        }
    }

    #[test]
    fn validator_whose_blocks_are_older_than_those_of_others_holds_them_back() {
        let mut sources = followed();
        assert_eq!(compared(&mut sources, 8, 7, 8, 0), None);
        assert_eq!(compared(&mut sources, 16, 11, 16, 0), Some(A));
    }

    #[test]
    fn blocks_made_while_those_before_them_entered_show_nothing() {
        let mut sources = followed();
        for now_s in (100..800).step_by(50) {
            assert_eq!(compared(&mut sources, now_s, now_s, now_s + 40, 40), None);
        }
    }

    #[test]
    fn validator_with_which_a_cluster_catches_up_stays_and_one_that_lets_others_do_it_does_not() {
        let hour = 3_600;
        let mut sources = followed();
        assert_eq!(compared(&mut sources, 8, 100, 200, 0), None);
        assert_eq!(compared(&mut sources, 16, 300, 400, 0), None);
        // From here on only the comparisons bring much.
        assert_eq!(compared(&mut sources, 24, 401, hour, 0), Some(A));
    }

    #[test]
    fn validator_that_was_doubted_is_compared_after_its_first_answer() {
        let mut sources = followed();
        sources.doubt(A, 0, 0);
        sources.gave(follow(B), Some(BlockTime(9 * S)), 9 * S);
        assert_eq!(compared(&mut sources, 10, 5, 10, 0), Some(A));
    }

    #[test]
    fn all_others_that_answer_take_part_in_comparisons() {
        let mut sources = followed();
        let asked = [8, 16].map(|now_s| turn(&mut sources, now_s * S).device);
        assert!(asked.contains(&B) && asked.contains(&C), "{asked:?}");
        let alone = sources.turn(vec![A, B, C], |device| *device == A, 24 * S).unwrap();
        assert_eq!(alone, follow(A), "nobody else would answer at once");
    }

    #[test]
    fn comparison_goes_on_while_it_brings_much_since_answers_have_a_bound() {
        let mut sources = followed();
        sources.gave(follow(A), Some(BlockTime(S)), 8 * S);
        let asked = turn(&mut sources, 8 * S);
        for tenths in 1..=9 {
            // Half a second of blocks in a tenth.
            let (now_us, newest) = ((80 + tenths) * S / 10, BlockTime(S + tenths * S / 2));
            assert_eq!(sources.gave(asked, Some(newest), now_us), None, "{tenths}");
            assert_eq!(turn(&mut sources, now_us), asked);
        }
        let (now_us, newest) = (8 * S + S, BlockTime(S + 51 * S / 10));
        assert_eq!(sources.gave(asked, Some(newest), now_us), Some(A));
    }

    #[test]
    fn comparison_that_brings_no_more_than_is_made_ends() {
        let mut sources = followed();
        sources.gave(follow(A), Some(BlockTime(8 * S)), 8 * S);
        let asked = turn(&mut sources, 8 * S);
        assert_eq!(sources.gave(asked, Some(BlockTime(9 * S)), 8 * S + S / 10), None);
        assert_eq!(turn(&mut sources, 9 * S), asked);
        assert_eq!(sources.gave(asked, Some(BlockTime(10 * S)), 9 * S), None);
        assert_eq!(turn(&mut sources, 9 * S), follow(A));
    }

    #[test]
    fn comparison_without_an_answer_is_nobody_s_fault_and_the_next_one_asks_another() {
        let mut sources = followed();
        let mut asked = Vec::new();
        for second in [8, 16, 24] {
            let other = turn(&mut sources, second * S);
            assert!(other.is_comparison);
            asked.push(other.device);
            sources.no_answer(other, second * S, 0);
            assert_eq!(turn(&mut sources, second * S), follow(A), "the nearest, as before");
        }
        assert!(asked.contains(&B) && asked.contains(&C), "{asked:?}");
    }

    #[test]
    fn answer_that_may_bring_much_has_time_for_it() {
        let mut sources = followed();
        assert_eq!(sources.transfer_us(follow(A), 7 * S), 0, "it brings what is new");
        let other = turn(&mut sources, 8 * S);
        assert_eq!(sources.transfer_us(other, 8 * S), 8 * S, "all that has been made");
        assert_eq!(sources.transfer_us(other, 80 * S), TRANSFER_US_MAX);
        sources.entered(LINK_BYTES_PER_MS_MIN as usize * 2_000, 0);
        assert_eq!(
            sources.transfer_us(follow(B), 9 * S),
            2 * S,
            "what was made while this came"
        );
        sources.entered(0, 0);
        // None of them answers in time.
        let mut times = Vec::new();
        for device in [B, C, A, B] {
            sources.no_answer(follow(device), 9 * S, 0);
            times.push(sources.transfer_us(follow(A), 9 * S));
        }
        assert_eq!(times, [S * 3 / 2, S * 3, S * 6, TRANSFER_US_MAX]);
    }

    #[test]
    fn validator_whose_blocks_take_long_to_enter_stays_while_the_cluster_catches_up_with_it() {
        let mut sources = Sources::new(CONTACT_S * S);
        let mut now_us = 0;
        // Half a minute of blocks in each answer, a tenth of a second apart but for the 20 s that they take to enter.
        for answer in 1..20 {
            let asked = turn(&mut sources, now_us);
            assert!(answer > 2 || asked == follow(A), "nothing is known of it yet");
            now_us += S / 10;
            let left = sources.gave(asked, Some(BlockTime(answer * 30 * S)), now_us);
            assert_eq!(left, None, "answer {answer}");
            sources.entered(1_000, 20 * S);
            now_us += 20 * S;
        }
    }

    #[test]
    fn what_was_measured_before_a_pause_is_held_against_nobody() {
        let hours = 10 * 3_600;
        let pauses: [fn(&mut Sources, u64); 3] = [
            |sources, _| sources.pause(),
            |sources, now_us| sources.doubt(A, now_us, 0),
            |sources, now_us| assert_eq!(sources.gave(follow(A), None, now_us), None),
        ];
        for pause in pauses {
            let mut sources = followed();
            pause(&mut sources, 9 * S);
            sources.begin_again();
            let now_us = hours * S;
            assert_eq!(turn(&mut sources, now_us), follow(A));
            // The clock of this machine has lost 18 s.
            let newest_us = now_us + 18 * S;
            assert_eq!(sources.gave(follow(A), Some(BlockTime(newest_us)), now_us), None);
            let asked = turn(&mut sources, now_us + CONTACT_S * S);
            let next_us = now_us + CONTACT_S * S;
            let left = sources.gave(asked, Some(BlockTime(newest_us + CONTACT_S * S)), next_us);
            assert_eq!(left, None);
        }
    }

    #[test]
    fn doubted_validator_is_left_for_growing_pauses_and_the_oldest_doubt_is_asked_first_where_all_are() {
        let mut sources = Sources::new(8 * S);
        sources.doubt(A, 0, 0);
        assert_eq!(turn(&mut sources, 0), follow(B));
        assert_eq!(turn(&mut sources, DOUBT_US_MIN), follow(A));
        sources.doubt(A, DOUBT_US_MIN, 0);
        assert_eq!(turn(&mut sources, 3 * DOUBT_US_MIN - 1), follow(B));
        assert_eq!(turn(&mut sources, 3 * DOUBT_US_MIN), follow(A));
        let now_us = 3 * DOUBT_US_MIN;
        for device in [C, A, B, C] {
            sources.doubt(device, now_us, 0);
        }
        // The first time for B, the second for C, the third for A.
        assert_eq!(turn(&mut sources, now_us), follow(B));
        for _ in 0..100 {
            sources.doubt(A, now_us, u64::MAX);
        }
        assert_eq!(turn(&mut sources, now_us + 2 * DOUBT_US_MAX), follow(A));
    }
}
