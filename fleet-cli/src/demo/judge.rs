//! Says whether the fleet kept its promises, from the demo's own journal and from proofs.
//! In: [`Evidence`]. Out: [`Judgement`]. Pure: called by `fleet demo` and by its tests.
//!
//! # Rules
//! * lost: acknowledged, and not in the final global state, or without a proof that verifies.
//! * duplicated: two tasks with one key, two granted completions of one task, or two vehicles at work
//!   on one task at one time.
//! * lied: a cut-off agent said an age below the truth, or acknowledged without a majority ([`super::honesty`]).
//! * Every reason for a "no" is named; there is no partial credit.

use std::collections::{BTreeMap, BTreeSet};

use common::task::TaskState;
use serde_json::{Value, json};

use super::{
    honesty::Honesty,
    journal::{Event, Line},
};

/// Tasks that must be acknowledged without a workload file.
pub const ACKNOWLEDGED_MIN: usize = 600;
/// Acknowledgements that must come in during each fault.
pub const ACKNOWLEDGED_PER_FAULT_MIN: usize = 20;
/// Time after the last heal in which 95 % must be final.
pub const FINAL_WITHIN_MS: u64 = 10_000;

/// What a fault leaves of the agents that it hits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing that answers.
    None,
    /// Agents without a majority.
    Minority,
    /// A whole cluster without validators.
    Island,
}

/// Faults that must happen.
pub const KINDS: [(&str, Cut); 6] = [
    ("leader_killed", Cut::None),
    ("leader_cut", Cut::Minority),
    ("validator_killed", Cut::None),
    ("cluster_cut", Cut::Island),
    ("agent_cut", Cut::Minority),
    ("cluster_killed", Cut::None),
];

/// What a task came to, as the final global state says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinalTask {
    /// The author's key.
    pub key: String,
    /// Its state.
    pub state: TaskState,
    /// Tasks it waited for.
    pub after: Vec<String>,
}

/// What is known of digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    /// Processes that were compared with another at an equal position.
    pub compared: BTreeSet<String>,
    /// Processes there are.
    pub expected: usize,
    /// Differences found, in words.
    pub differences: Vec<String>,
}

/// What proofs say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proofs {
    /// Tasks whose proof verified offline and says the state that the fleet says.
    pub verified: BTreeSet<String>,
    /// Failures, in words.
    pub failures: Vec<String>,
    /// Proofs with a flipped bit that were tried, and how many of them were refused.
    pub tampered: (usize, usize),
}

/// Everything the judge looks at.
#[derive(Clone, Debug, Default)]
pub struct Evidence {
    /// The journal.
    pub lines: Vec<Line>,
    /// With a workload file: twice its requests.
    pub tasks_expected: Option<usize>,
    /// The final global state, by task id.
    pub finals: BTreeMap<String, FinalTask>,
    /// Digests of all processes.
    pub digests: Digests,
    /// Proofs of all acknowledged tasks.
    pub proofs: Proofs,
    /// How long the demo took.
    pub elapsed_ms: u64,
}

/// The judgement.
#[derive(Clone, Debug, PartialEq)]
pub struct Judgement {
    /// Why not; empty if the fleet kept its promises.
    pub reasons: Vec<String>,
    /// The result object.
    pub result: Value,
}

#[derive(Debug, PartialEq, Eq)]
struct Fault {
    number: usize,
    kind: String,
    targets: Vec<String>,
    from_ms: u64,
    to_ms: Option<u64>,
    effect: String,
    acknowledged: usize,
    submitted: usize,
}

/// Judges.
#[must_use]
pub fn judge(evidence: &Evidence) -> Judgement {
    let acknowledged = acknowledged_tasks(&evidence.lines);
    let faults = faults(&evidence.lines);
    let mut reasons = Vec::new();
    let lost: Vec<&String> = acknowledged
        .keys()
        .filter(|task| !evidence.finals.contains_key(**task))
        .copied()
        .collect();
    name_some(&mut reasons, "acknowledged and lost", &lost);
    let duplicated = duplicates(evidence);
    reasons.extend(duplicated.iter().cloned());
    let (completed, expired, expired_with_pickup) = ends(&acknowledged, &evidence.finals);
    judge_counts(evidence, &acknowledged, completed + expired, &mut reasons);
    let share = judge_finality(evidence, &acknowledged, &faults, &mut reasons);
    let honesty = Honesty::of(&evidence.lines);
    judge_faults(&faults, &honesty, &mut reasons);
    let digests_agree = judge_digests(&evidence.digests, &mut reasons);
    let tampered_rejected = judge_proofs(evidence, &acknowledged, &mut reasons);
    let result = json!({
        "ok": reasons.is_empty(),
        "acknowledged": acknowledged.len(),
        "finalized": acknowledged.keys().filter(|task| evidence.finals.contains_key(**task)).count(),
        "completed": completed,
        "expired": expired,
        "expired_with_pickup": expired_with_pickup,
        "lost": lost.len(),
        "duplicated": duplicated.len(),
        "run_again": runs_again(&evidence.lines),
        "final_within_10s_percent": share,
        "digests_agree": digests_agree,
        "proofs_verified": evidence.proofs.verified.len(),
        "tampered_proof_rejected": tampered_rejected,
        "reads_checked": honesty.cuts.values().map(|cut| cut.reads).sum::<usize>(),
        "ages_below_the_truth": honesty.lies.len(),
        "faults": faults.iter().map(|fault| fault_json(fault, &honesty)).collect::<Vec<_>>(),
        "reasons": reasons,
        "elapsed_s": evidence.elapsed_ms as f64 / 1_000.0,
    });
    Judgement { reasons, result }
}

fn fault_json(fault: &Fault, honesty: &Honesty) -> Value {
    json!({
        "cut": honesty.json(fault.number), "kind": fault.kind, "target": fault.targets, "from_ms": fault.from_ms, "to_ms": fault.to_ms,
        "effect": fault.effect, "acknowledged": fault.acknowledged, "submitted": fault.submitted,
    })
}

/// Acknowledged tasks with the time of their acknowledgement.
fn acknowledged_tasks(lines: &[Line]) -> BTreeMap<&String, u64> {
    let mut tasks = BTreeMap::new();
    for line in lines {
        if let Event::Acknowledged { verb, task, .. } = &line.event
            && verb == "submit"
        {
            tasks.entry(task).or_insert(line.at_ms);
        }
    }
    tasks
}

fn name_some(reasons: &mut Vec<String>, what: &str, tasks: &[&String]) {
    if !tasks.is_empty() {
        let some: Vec<&str> = tasks.iter().take(3).map(|task| task.as_str()).collect();
        reasons.push(format!("{} tasks {what}: {}", tasks.len(), some.join(", ")));
    }
}

/// Completed, expired (also with their pickup), and the latter alone.
fn ends(acknowledged: &BTreeMap<&String, u64>, finals: &BTreeMap<String, FinalTask>) -> (usize, usize, usize) {
    let (mut completed, mut expired, mut with_pickup) = (0, 0, 0);
    for task in acknowledged.keys().filter_map(|id| finals.get(*id)) {
        let state_of = |id: &String| finals.get(id).map(|task| task.state);
        match task.state {
            TaskState::Completed => completed += 1,
            TaskState::Expired => expired += 1,
            // A drop-off fails with its pickup: the deadline that was missed is the pickup's.
            TaskState::Failed if task.after.iter().any(|id| state_of(id) == Some(TaskState::Expired)) => {
                expired += 1;
                with_pickup += 1;
            }
            _ => {}
        }
    }
    (completed, expired, with_pickup)
}

fn judge_counts(evidence: &Evidence, acknowledged: &BTreeMap<&String, u64>, ended: usize, reasons: &mut Vec<String>) {
    match evidence.tasks_expected {
        None if acknowledged.len() < ACKNOWLEDGED_MIN => {
            reasons.push(format!(
                "{} tasks acknowledged, at least {ACKNOWLEDGED_MIN} needed",
                acknowledged.len()
            ));
        }
        Some(expected) if acknowledged.len() != expected => {
            reasons.push(format!(
                "{} tasks acknowledged, the workload has {expected}",
                acknowledged.len()
            ));
        }
        _ => {}
    }
    if ended != acknowledged.len() {
        let mut others: BTreeMap<&str, usize> = BTreeMap::new();
        for task in acknowledged.keys().filter_map(|id| evidence.finals.get(*id)) {
            *others.entry(task.state.word()).or_default() += 1;
        }
        reasons.push(format!(
            "{ended} tasks are completed or expired, {} were acknowledged; states: {others:?}",
            acknowledged.len()
        ));
    }
    let refused = evidence
        .lines
        .iter()
        .filter(|line| matches!(line.event, Event::Refused { .. }))
        .count();
    if refused > 0 {
        reasons.push(format!("{refused} submissions were refused"));
    }
}

fn duplicates(evidence: &Evidence) -> Vec<String> {
    let mut found = Vec::new();
    let mut keys: BTreeMap<&str, &str> = BTreeMap::new();
    for (id, task) in &evidence.finals {
        if let Some(other) = keys.insert(&task.key, id) {
            found.push(format!("tasks {other} and {id} have one key, {}", task.key));
        }
    }
    let mut completions: BTreeMap<&str, usize> = BTreeMap::new();
    for line in &evidence.lines {
        if let Event::Acknowledged {
            verb, task, verdict, ..
        } = &line.event
            && verb == "complete"
            && verdict == "granted"
        {
            *completions.entry(task).or_default() += 1;
        }
    }
    found.extend(
        completions
            .iter()
            .filter(|(_, count)| **count > 1)
            .map(|(task, count)| format!("task {task} was completed {count} times")),
    );
    found.extend(overlaps(&evidence.lines));
    found
}

/// Two vehicles at work on one task at one time.
fn overlaps(lines: &[Line]) -> Vec<String> {
    let mut at_work: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut found = Vec::new();
    for line in lines {
        match &line.event {
            Event::RunBegan { task, drone } => {
                let drones = at_work.entry(task).or_default();
                if let Some(other) = drones.iter().find(|other| **other != drone.as_str()) {
                    found.push(format!(
                        "{other} and {drone} worked on task {task} at one time, at {} ms",
                        line.at_ms
                    ));
                }
                drones.insert(drone);
            }
            Event::RunEnded { task, drone } => {
                at_work.entry(task).or_default().remove(drone.as_str());
            }
            _ => {}
        }
    }
    found
}

/// Tasks that were run more than once, one after the other.
fn runs_again(lines: &[Line]) -> usize {
    let mut runs: BTreeMap<&str, usize> = BTreeMap::new();
    for line in lines {
        if let Event::RunBegan { task, .. } = &line.event {
            *runs.entry(task).or_default() += 1;
        }
    }
    runs.values().filter(|count| **count > 1).count()
}

fn faults(lines: &[Line]) -> Vec<Fault> {
    let mut faults: BTreeMap<usize, Fault> = BTreeMap::new();
    for line in lines {
        match &line.event {
            Event::Broken { fault, kind, targets } => {
                faults.insert(
                    *fault,
                    Fault {
                        number: *fault,
                        kind: kind.clone(),
                        targets: targets.clone(),
                        from_ms: line.at_ms,
                        to_ms: None,
                        effect: String::new(),
                        acknowledged: 0,
                        submitted: 0,
                    },
                );
            }
            Event::Healed { fault, effect } => {
                if let Some(fault) = faults.get_mut(fault) {
                    fault.to_ms = Some(line.at_ms);
                    fault.effect.clone_from(effect);
                }
            }
            Event::Acknowledged { verb, .. } => {
                for fault in faults.values_mut().filter(|fault| fault.to_ms.is_none()) {
                    fault.acknowledged += 1;
                    fault.submitted += usize::from(verb == "submit");
                }
            }
            _ => {}
        }
    }
    faults.into_values().collect()
}

fn judge_faults(faults: &[Fault], honesty: &Honesty, reasons: &mut Vec<String>) {
    for (kind, _) in KINDS {
        if !faults.iter().any(|fault| fault.kind == kind) {
            reasons.push(format!("the fault {kind} did not happen"));
        }
    }
    reasons.extend(honesty.lies.iter().take(3).cloned());
    for fault in faults {
        match KINDS.iter().find(|(kind, _)| *kind == fault.kind) {
            Some((_, Cut::Minority)) => honesty.judge(fault.number, &fault.kind, true, reasons),
            Some((_, Cut::Island)) => honesty.judge(fault.number, &fault.kind, false, reasons),
            Some((_, Cut::None)) | None => {}
        }
        if fault.to_ms.is_none() {
            reasons.push(format!("{} {:?} did not heal", fault.kind, fault.targets));
        }
        if fault.effect.is_empty() {
            reasons.push(format!("the {} fault had no observed effect", fault.kind));
        }
        if fault.acknowledged < ACKNOWLEDGED_PER_FAULT_MIN {
            reasons.push(format!(
                "{} acknowledged during the {} fault, at least {ACKNOWLEDGED_PER_FAULT_MIN} needed",
                fault.acknowledged, fault.kind
            ));
        }
    }
}

/// Share, in percent, of the tasks acknowledged before the last heal that were final in time.
fn judge_finality(
    evidence: &Evidence,
    acknowledged: &BTreeMap<&String, u64>,
    faults: &[Fault],
    reasons: &mut Vec<String>,
) -> Option<u64> {
    let healed_ms = faults.iter().filter_map(|fault| fault.to_ms).max()?;
    let mut final_at: BTreeMap<&String, u64> = BTreeMap::new();
    for line in &evidence.lines {
        if let Event::SeenFinal { task } = &line.event {
            final_at.entry(task).or_insert(line.at_ms);
        }
    }
    let before: Vec<&&String> = acknowledged
        .iter()
        .filter(|(_, at)| **at <= healed_ms)
        .map(|(task, _)| task)
        .collect();
    let in_time = before
        .iter()
        .filter(|task| {
            final_at
                .get(**task)
                .is_some_and(|at| *at <= healed_ms + FINAL_WITHIN_MS)
        })
        .count();
    let percent = (in_time * 100).checked_div(before.len()).unwrap_or(0) as u64;
    if in_time * 100 < before.len() * 95 || before.is_empty() {
        reasons.push(format!(
            "{in_time} of {} tasks acknowledged before the last heal were final within {} s of it, 95 % needed",
            before.len(),
            FINAL_WITHIN_MS / 1_000
        ));
    }
    Some(percent)
}

fn judge_digests(digests: &Digests, reasons: &mut Vec<String>) -> bool {
    reasons.extend(
        digests
            .differences
            .iter()
            .map(|difference| format!("digests differ: {difference}")),
    );
    if digests.compared.len() < digests.expected || digests.expected == 0 {
        reasons.push(format!(
            "digests of {} of {} processes were compared with another's at an equal position",
            digests.compared.len(),
            digests.expected
        ));
        return false;
    }
    digests.differences.is_empty()
}

fn judge_proofs(evidence: &Evidence, acknowledged: &BTreeMap<&String, u64>, reasons: &mut Vec<String>) -> bool {
    let proofs = &evidence.proofs;
    reasons.extend(
        proofs
            .failures
            .iter()
            .take(3)
            .map(|failure| format!("proof: {failure}")),
    );
    let missing: Vec<&String> = acknowledged
        .keys()
        .filter(|task| !proofs.verified.contains(**task))
        .copied()
        .collect();
    name_some(reasons, "have no proof that verifies", &missing);
    let (tried, refused) = proofs.tampered;
    if tried == 0 || refused != tried {
        reasons.push(format!("{refused} of {tried} proofs with a flipped bit were refused"));
    }
    tried > 0 && refused == tried
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
