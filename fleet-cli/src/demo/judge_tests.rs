//! The judge says yes to a good run, and no to each kind of violation.

use super::*;
use crate::demo::{
    honesty::{READS_MIN, REFUSALS_MIN},
    journal::ReadView,
};

fn id(n: usize) -> String {
    format!("{n:064x}")
}

fn at(at_ms: u64, event: Event) -> Line {
    Line { at_ms, event }
}

fn acknowledged(at_ms: u64, verb: &str, n: usize, by: &str) -> Line {
    at(
        at_ms,
        Event::Acknowledged {
            verb: verb.into(),
            task: id(n),
            by: by.into(),
            verdict: "granted".into(),
            cluster: "c1".into(),
            index: n as u64,
        },
    )
}

fn run(at_ms: u64, n: usize, drone: &str, begins: bool) -> Line {
    let (task, drone) = (id(n), drone.to_owned());
    at(
        at_ms,
        if begins {
            Event::RunBegan { task, drone }
        } else {
            Event::RunEnded { task, drone }
        },
    )
}

fn refused(at_ms: u64, fault: usize) -> Line {
    let (agent, outcome) = ("c1-2".into(), "no_quorum".into());
    at(
        at_ms,
        Event::Probed {
            fault,
            agent,
            outcome,
            took_ms: 1,
        },
    )
}

/// A read that shows everything up to `as_of_ms`, and says so.
fn read(at_ms: u64, fault: usize, as_of_ms: u64, cut: Cut) -> Line {
    at(
        at_ms,
        Event::Read {
            fault,
            agent: "c1-2".into(),
            cluster: "c1".into(),
            view: ReadView::Cluster,
            sent_ms: at_ms,
            mode: if cut == Cut::Island { "island" } else { "read_only" }.into(),
            staleness_ms: Some(at_ms - as_of_ms),
            after: None,
            upto: None,
            tasks: (0..as_of_ms as usize / 50).map(id).collect(),
        },
    )
}

/// 600 tasks, 20 per 1000 ms, faults of 1000 ms each, all completed and final.
fn good() -> Evidence {
    let mut lines = Vec::new();
    let mut evidence = Evidence {
        digests: Digests {
            compared: ["v1", "v2"].map(String::from).into(),
            expected: 2,
            differences: Vec::new(),
        },
        ..Evidence::default()
    };
    for n in 0..600 {
        let ms = n as u64 * 50;
        lines.push(acknowledged(ms, "submit", n, "op1"));
        lines.push(run(ms + 10, n, "c1-1", true));
        lines.push(run(ms + 20, n, "c1-1", false));
        lines.push(acknowledged(ms + 21, "complete", n, "c1-1"));
        lines.push(at(ms + 400, Event::SeenFinal { task: id(n) }));
        evidence.finals.insert(
            id(n),
            FinalTask {
                key: format!("k{n}"),
                state: TaskState::Completed,
                after: Vec::new(),
            },
        );
        evidence.proofs.verified.insert(id(n));
    }
    for (fault, (kind, cut)) in KINDS.into_iter().enumerate() {
        let ms = 2_000 + fault as u64 * 5_000;
        let targets = vec!["x".into()];
        let kind = kind.into();
        lines.push(at(ms, Event::Broken { fault, kind, targets }));
        if cut != Cut::None {
            lines.extend((0..READS_MIN).map(|_| read(ms + 500, fault, ms, cut)));
        }
        if cut == Cut::Minority {
            lines.extend((0..REFUSALS_MIN).map(|_| refused(ms + 600, fault)));
        }
        let effect = "seen".into();
        lines.push(at(ms + 1_000, Event::Healed { fault, effect }));
    }
    lines.sort_by_key(|line| line.at_ms);
    evidence.lines = lines;
    evidence.proofs.tampered = (1, 1);
    evidence
}

/// The reasons after `change`, which must be some.
fn reasons(change: impl FnOnce(&mut Evidence)) -> String {
    let mut evidence = good();
    change(&mut evidence);
    let judgement = judge(&evidence);
    assert_eq!(judgement.result["ok"], json!(false), "the judge says yes");
    judgement.reasons.join("\n")
}

fn is_submit_of(line: &Line, n: usize) -> bool {
    matches!(&line.event, Event::Acknowledged { verb, task, .. } if verb == "submit" && *task == id(n))
}

#[test]
fn good_run_passes_with_every_field_of_the_result() {
    let judgement = judge(&good());
    assert_eq!(judgement.reasons, Vec::<String>::new());
    for (field, value) in [
        ("acknowledged", json!(600)),
        ("finalized", json!(600)),
        ("completed", json!(600)),
        ("expired", json!(0)),
        ("lost", json!(0)),
        ("duplicated", json!(0)),
        ("digests_agree", json!(true)),
        ("proofs_verified", json!(600)),
        ("tampered_proof_rejected", json!(true)),
        ("elapsed_s", json!(0.0)),
    ] {
        assert_eq!(judgement.result[field], value, "{field}");
    }
    assert_eq!(judgement.result["faults"].as_array().map(Vec::len), Some(KINDS.len()));
}

#[test]
fn lost_task_fails_the_run() {
    let text = reasons(|e| assert!(e.finals.remove(&id(7)).is_some()));
    assert!(
        text.contains("1 tasks acknowledged and lost") && text.contains(&id(7)),
        "{text}"
    );
}

#[test]
fn task_done_twice_fails_the_run() {
    let text = reasons(|e| e.lines.push(acknowledged(40_000, "complete", 7, "c1-2")));
    assert!(text.contains("was completed 2 times"), "{text}");
    let text = reasons(|e| e.finals.get_mut(&id(7)).unwrap().key = "k8".into());
    assert!(text.contains("have one key, k8"), "{text}");
}

#[test]
fn two_vehicles_at_one_time_fail_the_run_and_one_after_the_other_do_not() {
    let text = reasons(|e| {
        e.lines.push(run(40_000, 7, "c1-1", true));
        e.lines.push(run(40_001, 7, "c1-2", true));
    });
    assert!(text.contains("c1-1 and c1-2 worked on task"), "{text}");
    let mut evidence = good();
    evidence.lines.push(run(40_000, 7, "c1-2", true));
    let judgement = judge(&evidence);
    assert_eq!(
        (judgement.reasons.len(), &judgement.result["run_again"]),
        (0, &json!(1))
    );
}

#[test]
fn too_few_acknowledged_fail_the_run() {
    let text = reasons(|e| e.lines.retain(|line| !is_submit_of(line, 599)));
    assert!(text.contains("599 tasks acknowledged, at least 600"), "{text}");
    let text = reasons(|e| e.tasks_expected = Some(602));
    assert!(text.contains("600 tasks acknowledged, the workload has 602"), "{text}");
    let refused = Event::Refused {
        key: "k".into(),
        reason: "r".into(),
    };
    assert!(reasons(|e| e.lines.push(at(1, refused))).contains("1 submissions were refused"));
}

#[test]
fn task_that_neither_completed_nor_expired_fails_the_run() {
    for state in [
        TaskState::Claimed,
        TaskState::Unknown,
        TaskState::Failed,
        TaskState::Canceled,
    ] {
        let text = reasons(|e| e.finals.get_mut(&id(7)).unwrap().state = state);
        assert!(
            text.contains("599 tasks are completed or expired") && text.contains(state.word()),
            "{text}"
        );
    }
}

#[test]
fn dropoff_that_failed_with_its_expired_pickup_counts_as_expired() {
    let mut evidence = good();
    evidence.finals.get_mut(&id(7)).unwrap().state = TaskState::Expired;
    let dropoff = evidence.finals.get_mut(&id(8)).unwrap();
    dropoff.state = TaskState::Failed;
    dropoff.after = vec![id(7)];
    let judgement = judge(&evidence);
    assert_eq!(judgement.reasons, Vec::<String>::new());
    assert_eq!(
        (&judgement.result["expired"], &judgement.result["expired_with_pickup"]),
        (&json!(2), &json!(1))
    );
}

#[test]
fn late_finality_fails_the_run() {
    // The last heal is at 28 s: 5 % of what was acknowledged before may be late, one more may not.
    let late = |count: usize| {
        move |e: &mut Evidence| {
            for line in &mut e.lines {
                if let Event::SeenFinal { task } = &line.event
                    && (0..count).any(|n| *task == id(n))
                {
                    line.at_ms = 38_001;
                }
            }
        }
    };
    let before = 561;
    assert!(reasons(late(before / 20 + 1)).contains("95 % needed"));
    let mut evidence = good();
    late(before / 20)(&mut evidence);
    assert_eq!(judge(&evidence).reasons, Vec::<String>::new());
}

#[test]
fn fault_that_is_missing_quiet_unhealed_or_without_effect_fails_the_run() {
    let is_leader = |line: &Line| matches!(&line.event, Event::Broken { fault: 0, .. });
    assert!(reasons(|e| e.lines.retain(|line| !is_leader(line))).contains("the fault leader_killed did not happen"));
    let healed = |line: &Line| matches!(&line.event, Event::Healed { fault: 1, .. });
    assert!(reasons(|e| e.lines.retain(|line| !healed(line))).contains("did not heal"));
    let text = reasons(|e| {
        for line in &mut e.lines {
            if let Event::Healed { effect, .. } = &mut line.event {
                effect.clear();
            }
        }
    });
    assert!(text.contains("no observed effect"), "{text}");
    let text = reasons(|e| {
        e.lines
            .retain(|line| !(2_000..=3_000).contains(&line.at_ms) || !matches!(line.event, Event::Acknowledged { .. }));
    });
    assert!(text.contains("0 acknowledged during the leader_killed fault"), "{text}");
}

#[test]
fn age_below_the_truth_fails_the_run() {
    let text = reasons(|e| {
        for line in &mut e.lines {
            if let Event::Read { tasks, .. } = &mut line.event {
                tasks.pop();
            }
        }
    });
    assert!(text.contains("and did not show task"), "{text}");
}

#[test]
fn minority_that_is_not_heard_to_refuse_fails_the_run() {
    let text = reasons(|e| {
        e.lines
            .retain(|line| !matches!(line.event, Event::Probed { fault: 1, .. }))
    });
    assert!(text.contains("0 writes were refused"), "{text}");
}

#[test]
fn digests_that_differ_or_were_not_compared_fail_the_run() {
    assert!(reasons(|e| e.digests.differences.push("v1 and v2 at height 9".into())).contains("v1 and v2"));
    assert!(reasons(|e| assert!(e.digests.compared.remove("v2"))).contains("1 of 2 processes"));
    assert!(reasons(|e| e.digests = Digests::default()).contains("0 of 0 processes"));
}

#[test]
fn proof_that_is_missing_or_a_tampered_one_that_passes_fails_the_run() {
    assert!(reasons(|e| assert!(e.proofs.verified.remove(&id(7)))).contains("no proof that verifies"));
    assert!(reasons(|e| e.proofs.failures.push("bad".into())).contains("proof: bad"));
    assert!(reasons(|e| e.proofs.tampered = (1, 0)).contains("0 of 1 proofs with a flipped bit"));
    assert!(reasons(|e| e.proofs.tampered = (0, 0)).contains("0 of 0 proofs with a flipped bit"));
}
