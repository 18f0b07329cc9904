//! Who is followed, compared, doubted and left.

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
