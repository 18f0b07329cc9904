use proptest::prelude::*;

use super::*;

const LIMITS: FreshnessLimits = FreshnessLimits {
    quorum_age_us_max: 1_000_000,
    global_age_us_max: 3_000_000,
};

fn freshness() -> Freshness {
    Freshness::new(500, LIMITS)
}

#[test]
fn nothing_is_known_after_a_start() {
    let f = freshness();
    assert_eq!(
        (f.staleness_us(5), f.global_age_us(5), f.mode(5)),
        (None, None, Mode::ReadOnly)
    );
}

#[test]
fn age_counts_from_the_question_and_grows_by_drift() {
    let mut f = freshness();
    f.answered(1_000_000, LogIndex(7));
    assert_eq!(f.staleness_us(1_100_000), None, "not applied yet");
    assert_eq!((f.mode(1_100_000), f.behind()), (Mode::CatchingUp, 7));
    f.applied(LogIndex(7));
    assert_eq!(f.staleness_us(2_000_000), Some(1_000_501));
    assert_eq!(f.mode(1_500_000), Mode::Island);
    assert_eq!(f.mode(2_000_000), Mode::ReadOnly, "no answer for longer than the limit");
}

#[test]
fn age_on_the_slowest_clock_is_not_below_the_truth_however_slow_that_is() {
    // Of ten hours such clocks show 18 s less than all, and three quarters.
    for (drift_ppm, shown_us) in [(500, 35_982_000_000), (250_000, 27_000_000_000)] {
        let mut f = Freshness::new(drift_ppm, LIMITS);
        f.answered(0, LogIndex(7));
        f.applied(LogIndex(7));
        assert_eq!(f.staleness_us(shown_us), Some(36_000_000_000));
    }
}

#[test]
fn global_view_is_fresh_only_through_a_batch_closed_above_the_position() {
    let mut f = freshness();
    f.answered(1_000_000, LogIndex(7));
    f.answered(1_200_000, LogIndex(9));
    f.applied(LogIndex(9));
    f.own_batch_final(LogIndex(7));
    assert_eq!(f.global_age_us(1_300_000), None, "closed at the position, not above it");
    f.own_batch_final(LogIndex(9));
    assert_eq!(
        f.global_age_us(1_300_000),
        Some(300_151),
        "only the first question is below the cut"
    );
    f.own_entry_final(1_250_000);
    assert_eq!(f.global_age_us(1_300_000), Some(50_026));
    assert_eq!(f.mode(1_300_000), Mode::Normal);
}

#[test]
fn refuted_global_view_has_no_age_and_the_clusters_own_state_keeps_its() {
    let mut f = freshness();
    f.answered(1_000_000, LogIndex(1));
    f.applied(LogIndex(2));
    f.own_batch_final(LogIndex(2));
    assert_eq!(f.mode(1_100_000), Mode::Normal);
    f.answered(1_200_000, LogIndex(2));
    f.global_refuted();
    f.own_batch_final(LogIndex(3));
    assert_eq!((f.global_age_us(1_300_000), f.mode(1_300_000)), (None, Mode::Island));
    assert!(f.staleness_us(1_300_000).is_some());
}

#[test]
fn lost_quorum_is_read_only_at_once_and_until_a_later_position_is_applied() {
    let mut f = freshness();
    f.answered(1_000_000, LogIndex(7));
    f.applied(LogIndex(7));
    f.answered(1_400_000, LogIndex(8));
    f.quorum_lost(1_500_000);
    assert_eq!(f.mode(1_500_000), Mode::ReadOnly);
    assert_eq!(f.staleness_us(1_500_000), Some(500_251), "ages do not change with it");
    f.applied(LogIndex(8));
    assert_eq!(f.mode(1_600_000), Mode::ReadOnly, "asked for before the loss");
    f.answered(1_700_000, LogIndex(12));
    assert_eq!((f.mode(1_800_000), f.behind()), (Mode::CatchingUp, 4));
    f.applied(LogIndex(12));
    assert_eq!(f.mode(1_800_000), Mode::Island);
}

#[test]
fn mode_changes_by_age_alone_at_the_instant_that_was_foretold() {
    let mut f = freshness();
    assert_eq!(f.next_mode_change_us(5), None, "nothing known, nothing to lapse");
    f.answered(1_000_000, LogIndex(7));
    f.applied(LogIndex(7));
    f.own_entry_final(1_100_000);
    assert_eq!(f.mode(1_200_000), Mode::Normal);
    let at = f.next_mode_change_us(1_200_000).expect("the evidence lapses");
    assert_eq!((f.mode(at - 1), f.mode(at)), (Mode::Normal, Mode::ReadOnly));
    assert_eq!(f.next_mode_change_us(at), None);
}

#[test]
fn late_answers_to_old_questions_make_nothing_younger() {
    let mut f = freshness();
    f.answered(2_000_000, LogIndex(5));
    f.applied(LogIndex(5));
    f.answered(1_000_000, LogIndex(5));
    assert_eq!(f.staleness_us(2_000_000), Some(0));
    f.own_entry_final(2_000_000);
    f.own_entry_final(1);
    assert_eq!(f.global_age_us(2_000_000), Some(0));
}

#[test]
fn list_of_positions_is_bounded_and_stays_true() {
    let mut f = freshness();
    for i in 1..=10_000u64 {
        f.answered(i * 1_000, LogIndex(i));
        f.applied(LogIndex(i));
        assert!(f.unconfirmed.len() <= POSITIONS_MAX);
    }
    f.own_batch_final(LogIndex(5_000));
    let age = f.global_age_us(10_000_000).unwrap();
    assert!(
        age >= 5_001_000,
        "never younger than the newest question below the cut: {age}"
    );
}

/// What happens next to one member, its cluster, and the chain of blocks.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// True time passes, microseconds.
    Pass(u64),
    /// Somebody's write commits in the cluster.
    Commit,
    /// The member asks for a linearizable position; the answer is on its way.
    Ask,
    /// The oldest answer arrives.
    Answer,
    /// The member applies up to this many entries.
    Apply(u64),
    /// A batch of the cluster closes; the next block may hold it.
    CloseBatch,
    /// A block is proposed with what closed by now and is finalized.
    Finalize,
    /// The member applies the next block, however late it was fed.
    Block,
    /// The leader has been silent for too long.
    Lose,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1u64..500_000).prop_map(Step::Pass),
        3 => Just(Step::Commit),
        2 => Just(Step::Ask),
        2 => Just(Step::Answer),
        2 => (1u64..5).prop_map(Step::Apply),
        2 => Just(Step::CloseBatch),
        2 => Just(Step::Finalize),
        2 => Just(Step::Block),
        1 => Just(Step::Lose),
    ]
}

proptest! {
    #[test]
    fn no_age_is_below_the_truth(
        steps in prop::collection::vec(step(), 1..200),
        drift_ppm in -500i64..=500,
    ) {
        let mut f = freshness();
        let read = |true_us: u64| (true_us as i128 * (1_000_000 + i128::from(drift_ppm)) / 1_000_000) as u64;
        let mut now = 1_000_000;
        // True times of commits by index, of finalizations by height; the newest cut in each block.
        let (mut commits, mut finalized): (Vec<u64>, Vec<(u64, Option<u64>)>) = (Vec::new(), Vec::new());
        let (mut applied, mut blocks) = (0u64, 0usize);
        let mut answers = VecDeque::new();
        let mut cut = None;
        for step in steps {
            match step {
                Step::Pass(us) => now += us,
                Step::Lose => f.quorum_lost(read(now)),
                Step::Commit => commits.push(now),
                Step::Ask => answers.push_back((read(now), commits.len() as u64)),
                Step::Answer => {
                    if let Some((t0_us, index)) = answers.pop_front() {
                        f.answered(t0_us, LogIndex(index));
                    }
                }
                Step::Apply(n) => {
                    applied = (applied + n).min(commits.len() as u64);
                    f.applied(LogIndex(applied));
                }
                Step::CloseBatch => {
                    // The entry that closes it stands in the log, above all before it.
                    commits.push(now);
                    cut = Some(commits.len() as u64);
                }
                Step::Finalize => finalized.push((now, cut.take())),
                Step::Block => {
                    if let Some((_, cut)) = finalized.get(blocks) {
                        blocks += 1;
                        if let Some(cut) = cut {
                            f.own_batch_final(LogIndex(*cut));
                        }
                    }
                }
            }
            let mode = f.mode(read(now));
            match f.next_mode_change_us(read(now)) {
                Some(at) => prop_assert!(f.mode(at - 1) == mode && f.mode(at) != mode),
                None => prop_assert_eq!(f.mode(read(now) + 1_000_000_000), mode),
            }
            let age = |missed: Option<u64>| missed.map_or(0, |at| now - at);
            if let Some(staleness_us) = f.staleness_us(read(now)) {
                let truth = age(commits.get(applied as usize).copied());
                // Two readings of a clock in whole microseconds.
                prop_assert!(staleness_us + 2 >= truth, "{staleness_us} us, in truth {truth} us");
            }
            if let Some(age_us) = f.global_age_us(read(now)) {
                let truth = age(finalized.get(blocks).map(|block| block.0));
                prop_assert!(age_us + 2 >= truth, "global {age_us} us, in truth {truth} us");
            }
        }
    }
}
