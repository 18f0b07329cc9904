//! Judges what cut-off agents said while they were cut off: refusals, and the age of every answer.
//! In: the journal. Out: [`Honesty`]. Pure: called by the judge and by its tests.
//!
//! # Rules
//! * A read that was sent at `t` and says "at most `s` old" shows every task that was acknowledged by
//!   its cluster before `t - s`. The same for the final view and what was seen final by then.
//! * Whoever reaches no majority acknowledges nothing, and says so often enough to be heard.
//! * "Unknown" is an honest age. It shows nothing, and is only counted.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::journal::{Event, Line, ReadView};

/// Refusals for want of a quorum that must be heard from each minority.
pub const REFUSALS_MIN: usize = 5;
/// Reads that must be answered by the agents of each cut.
pub const READS_MIN: usize = 5;

/// What was seen at the agents of one cut.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AtCut {
    /// Writes refused with "no quorum".
    pub refused: usize,
    /// Writes whose outcome was not known.
    pub unknown: usize,
    /// Writes acknowledged, which a minority must not.
    pub acknowledged: usize,
    /// Other answers to writes, in words.
    pub other: BTreeSet<String>,
    /// Reads that were answered with an age.
    pub reads: usize,
    /// Reads whose age was "unknown".
    pub reads_of_unknown_age: usize,
    /// Highest age that was said, milliseconds.
    pub age_ms_max: u64,
    /// Modes that were said.
    pub modes: BTreeSet<String>,
}

/// What all cuts showed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Honesty {
    /// By number of the fault.
    pub cuts: BTreeMap<usize, AtCut>,
    /// Ages that were below the truth, in words.
    pub lies: Vec<String>,
}

impl Honesty {
    /// Looks at all probes and reads of a journal.
    #[must_use]
    pub fn of(lines: &[Line]) -> Self {
        let mut honesty = Self::default();
        let known = Known::of(lines);
        for line in lines {
            match &line.event {
                Event::Probed { fault, outcome, .. } => honesty.cuts.entry(*fault).or_default().count(outcome),
                Event::Read { fault, .. } => {
                    honesty.cuts.entry(*fault).or_default().read(&line.event);
                    honesty.lies.extend(known.lie_of(&line.event));
                }
                _ => {}
            }
        }
        honesty
    }

    /// Reasons against the fault `fault`, whose agents were cut off from their majority if `is_minority`.
    pub fn judge(&self, fault: usize, kind: &str, is_minority: bool, reasons: &mut Vec<String>) {
        let nothing = AtCut::default();
        let cut = self.cuts.get(&fault).unwrap_or(&nothing);
        if cut.reads < READS_MIN {
            reasons.push(format!(
                "{} reads with an age were answered during the {kind}, at least {READS_MIN} needed",
                cut.reads
            ));
        }
        let mode = if is_minority { "read_only" } else { "island" };
        if !cut.modes.contains(mode) {
            reasons.push(format!("nobody said {mode:?} during the {kind}, but {:?}", cut.modes));
        }
        if !is_minority {
            return;
        }
        if cut.refused < REFUSALS_MIN {
            reasons.push(format!(
                "{} writes were refused with \"no quorum\" during the {kind}, at least {REFUSALS_MIN} needed; other answers: {:?}",
                cut.refused, cut.other
            ));
        }
        if cut.acknowledged > 0 {
            reasons.push(format!(
                "{} writes were acknowledged by a minority during the {kind}",
                cut.acknowledged
            ));
        }
    }

    /// For the result.
    #[must_use]
    pub fn json(&self, fault: usize) -> Value {
        self.cuts.get(&fault).map_or(Value::Null, |cut| {
            json!({
                "refused_no_quorum": cut.refused, "outcome_unknown": cut.unknown, "acknowledged_by_minority": cut.acknowledged,
                "other_answers": cut.other, "reads_checked": cut.reads, "reads_of_unknown_age": cut.reads_of_unknown_age,
                "age_ms_max": cut.age_ms_max, "modes": cut.modes,
            })
        })
    }
}

impl AtCut {
    fn count(&mut self, outcome: &str) {
        match outcome {
            "no_quorum" => self.refused += 1,
            "unknown" => self.unknown += 1,
            "committed" => self.acknowledged += 1,
            other => {
                self.other.insert(other.to_owned());
            }
        }
    }

    fn read(&mut self, read: &Event) {
        let Event::Read { mode, staleness_ms, .. } = read else {
            return;
        };
        self.modes.insert(mode.clone());
        match staleness_ms {
            Some(age_ms) => {
                self.reads += 1;
                self.age_ms_max = self.age_ms_max.max(*age_ms);
            }
            None => self.reads_of_unknown_age += 1,
        }
    }
}

/// What the journal proves to have been true, and from when on.
struct Known<'a> {
    /// By cluster: tasks that were acknowledged there.
    acknowledged: BTreeMap<&'a str, BTreeMap<&'a str, u64>>,
    /// Tasks that were seen final.
    final_since: BTreeMap<&'a str, u64>,
}

impl<'a> Known<'a> {
    fn of(lines: &'a [Line]) -> Self {
        let mut known = Self {
            acknowledged: BTreeMap::new(),
            final_since: BTreeMap::new(),
        };
        for line in lines {
            match &line.event {
                // A duplicate is the author's own task under another entry's id, which may be in another log.
                Event::Acknowledged {
                    verb,
                    task,
                    verdict,
                    cluster,
                    ..
                } if verb == "submit" && verdict == "granted" => {
                    let tasks = known.acknowledged.entry(cluster).or_default();
                    tasks.entry(task).or_insert(line.at_ms);
                }
                Event::SeenFinal { task } => {
                    known.final_since.entry(task).or_insert(line.at_ms);
                }
                _ => {}
            }
        }
        known
    }

    /// What the read should have shown, and did not.
    fn lie_of(&self, read: &Event) -> Option<String> {
        let Event::Read {
            agent,
            cluster,
            view,
            sent_ms,
            staleness_ms,
            after,
            upto,
            tasks,
            ..
        } = read
        else {
            return None;
        };
        let as_of_ms = sent_ms.checked_sub((*staleness_ms)?)?;
        let truth = match view {
            ReadView::Cluster => self.acknowledged.get(cluster.as_str())?,
            ReadView::Final => &self.final_since,
        };
        let shown: BTreeSet<&str> = tasks.iter().map(String::as_str).collect();
        let is_in_page = |task: &str| {
            after.as_ref().is_none_or(|after| task > after.as_str())
                && upto.as_ref().is_none_or(|upto| task <= upto.as_str())
        };
        let hidden = truth
            .iter()
            .find(|(task, since_ms)| **since_ms < as_of_ms && is_in_page(task) && !shown.contains(*task));
        hidden.map(|(task, since_ms)| {
            format!(
                "{agent} said at {sent_ms} ms that its answer was at most {} ms old, and did not show task {task}, known since {since_ms} ms",
                sent_ms - as_of_ms
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> String {
        format!("{n:064x}")
    }

    fn submit(at_ms: u64, n: u64) -> Line {
        let event = Event::Acknowledged {
            verb: "submit".into(),
            task: id(n),
            by: "op1".into(),
            verdict: "granted".into(),
            cluster: "c1".into(),
            index: n,
        };
        Line { at_ms, event }
    }

    fn read(sent_ms: u64, staleness_ms: Option<u64>, tasks: &[u64], page: (Option<u64>, Option<u64>)) -> Line {
        let event = Event::Read {
            fault: 0,
            agent: "c1-2".into(),
            cluster: "c1".into(),
            view: ReadView::Cluster,
            sent_ms,
            mode: "read_only".into(),
            staleness_ms,
            after: page.0.map(id),
            upto: page.1.map(id),
            tasks: tasks.iter().copied().map(id).collect(),
        };
        Line { at_ms: sent_ms, event }
    }

    fn lies(read: Line) -> usize {
        Honesty::of(&[submit(100, 1), submit(200, 2), submit(300, 3), read])
            .lies
            .len()
    }

    #[test]
    fn age_below_the_truth_is_a_lie_and_one_at_it_is_not() {
        // Task 3 is hidden, and known since 300 ms.
        assert_eq!(lies(read(1_000, Some(699), &[1, 2], (None, None))), 1);
        assert_eq!(lies(read(1_000, Some(700), &[1, 2], (None, None))), 0);
        assert_eq!(lies(read(1_000, Some(0), &[1, 2, 3], (None, None))), 0);
        assert_eq!(lies(read(1_000, None, &[], (None, None))), 0, "unknown is honest");
        assert_eq!(lies(read(1_000, Some(5_000), &[], (None, None))), 0, "before the begin");
    }

    #[test]
    fn page_answers_for_its_own_range_only() {
        assert_eq!(lies(read(1_000, Some(0), &[2], (Some(1), Some(2)))), 0);
        assert_eq!(lies(read(1_000, Some(0), &[3], (Some(1), None))), 1);
    }

    #[test]
    fn final_view_is_held_against_what_was_seen_final() {
        let seen = Line {
            at_ms: 400,
            event: Event::SeenFinal { task: id(1) },
        };
        let mut read = read(1_000, Some(500), &[], (None, None));
        if let Event::Read { view, .. } = &mut read.event {
            *view = ReadView::Final;
        }
        assert_eq!(Honesty::of(&[submit(100, 1), seen.clone(), read.clone()]).lies.len(), 1);
        assert_eq!(
            Honesty::of(&[submit(100, 1), read, seen]).lies.len(),
            1,
            "order of lines does not matter"
        );
    }

    #[test]
    fn quiet_or_acknowledging_minority_fails() {
        let probe = |outcome: &str| Line {
            at_ms: 1,
            event: Event::Probed {
                fault: 0,
                agent: "c1-2".into(),
                outcome: outcome.into(),
                took_ms: 1,
            },
        };
        let mut lines: Vec<Line> = (0..REFUSALS_MIN).map(|_| probe("no_quorum")).collect();
        lines.extend((0..READS_MIN).map(|_| read(1_000, Some(1_000), &[], (None, None))));
        let reasons = |lines: &[Line]| {
            let mut reasons = Vec::new();
            Honesty::of(lines).judge(0, "cut", true, &mut reasons);
            reasons
        };
        assert_eq!(reasons(&lines), Vec::<String>::new());
        assert!(
            reasons(&lines[1..])[0].contains("4 writes were refused"),
            "{:?}",
            reasons(&lines[1..])
        );
        assert!(reasons(&lines[..lines.len() - 1])[0].contains("4 reads"));
        lines.push(probe("committed"));
        assert!(reasons(&lines)[0].contains("acknowledged by a minority"));
    }
}
