//! honest-staleness: the age that a read states is never below the truth.
//!
//! # Rules
//! * An answer at `t` with age `a` from index `i` says: no entry above `i` was committed before `t - a`. The
//!   checker knows the first instant at which any member applied anything above `i`.
//! * The same for the global view, with the first instant at which a validator executed a higher block.
//! * "Unknown" says nothing, and is never wrong.
//! * Who allows an age is answered if the age told is known and within it, and not otherwise.

use std::collections::BTreeMap;

use common::ids::{ClusterId, Height, LogIndex};

use super::{Checker, Observation};

/// Rises of a position, each with the first time at which it was seen; ascending in both.
struct Rises<T>(Vec<(T, u64)>);

impl<T> Default for Rises<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy + Ord> Rises<T> {
    fn note(&mut self, position: T, now_us: u64) {
        if self.0.last().is_none_or(|(highest, _)| *highest < position) {
            self.0.push((position, now_us));
        }
    }

    /// When something above `position` was first seen.
    fn first_above(&self, position: T) -> Option<u64> {
        let at = self.0.partition_point(|(seen, _)| *seen <= position);
        self.0.get(at).map(|(_, at_us)| *at_us)
    }
}

/// Knows when what was first applied.
#[derive(Default)]
pub struct HonestStaleness {
    applied: BTreeMap<ClusterId, Rises<LogIndex>>,
    executed: Rises<Height>,
}

/// An error if the claim "nothing newer than `age_ms` is missing" is wrong at `now_us`.
fn judge_age(
    who: &str,
    what: &str,
    now_us: u64,
    age_ms: Option<u64>,
    newer_since_us: Option<u64>,
) -> Result<(), String> {
    let (Some(age_ms), Some(since_us)) = (age_ms, newer_since_us) else {
        return Ok(());
    };
    let truth_us = now_us.saturating_sub(since_us);
    if truth_us <= age_ms.saturating_mul(1_000) {
        return Ok(());
    }
    Err(format!(
        "{who} says that its {what} is at most {age_ms} ms old, and lacks what is {truth_us} us old"
    ))
}

impl Checker for HonestStaleness {
    fn name(&self) -> &'static str {
        "honest-staleness"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Applied { cluster, position, .. } => {
                self.applied.entry(*cluster).or_default().note(position.index, now_us);
            }
            Observation::Root { height, .. } => self.executed.note(*height, now_us),
            Observation::Read {
                agent,
                cluster,
                applied,
                staleness_ms,
                height,
                global_age_ms,
            } => {
                let newer = self.applied.get(cluster).and_then(|rises| rises.first_above(*applied));
                judge_age(agent, "state", now_us, *staleness_ms, newer)?;
                let newer = self.executed.first_above(*height);
                judge_age(agent, "global view", now_us, *global_age_ms, newer)?;
            }
            Observation::ReadWithin {
                agent,
                age_ms_max,
                age_ms,
                is_answered,
                ..
            } if *is_answered != age_ms.is_some_and(|age_ms| age_ms <= *age_ms_max) => {
                let done = if *is_answered { "answered" } else { "refused" };
                return Err(format!(
                    "{agent} {done} a read that allows {age_ms_max} ms, with an age of {age_ms:?} ms"
                ));
            }
            // It was answered at some time behind the question.
            Observation::FinalRead {
                validator,
                asked_us,
                height,
                age_ms,
            } => {
                let newer = self.executed.first_above(*height);
                judge_age(validator, "final state", *asked_us, *age_ms, newer)?;
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::ids::Digest;

    use super::{super::*, *};

    fn read(staleness_ms: Option<u64>, global_age_ms: Option<u64>) -> Observation {
        Observation::Read {
            agent: "c1-3".into(),
            cluster: ClusterId(0),
            applied: LogIndex(5),
            staleness_ms,
            height: Height(2),
            global_age_ms,
        }
    }

    /// Index 6 was applied elsewhere at 1 s and height 3 executed at 2 s; the read is at 5 s.
    fn told(read: Observation) -> Result<(), String> {
        let root = |height| Observation::Root {
            validator: "v1".into(),
            height: Height(height),
            root: Digest([0; 32]),
        };
        let history = [
            (500_000, applied("c1-1", 1, 5, 1)),
            (1_000_000, applied("c1-1", 1, 6, 2)),
            (1_500_000, root(2)),
            (2_000_000, root(3)),
            (5_000_000, read),
        ];
        judge(HonestStaleness::default(), &history)
    }

    #[test]
    fn age_below_the_truth_is_caught() {
        assert_eq!(told(read(Some(4_000), Some(3_000))), Ok(()));
        assert!(told(read(Some(3_999), None)).unwrap_err().contains("its state"));
        assert!(told(read(None, Some(2_999))).unwrap_err().contains("global view"));
        assert_eq!(told(read(None, None)), Ok(()), "unknown is an answer");
    }

    #[test]
    fn answer_beyond_the_allowed_age_is_caught_and_so_is_a_refusal_within_it() {
        let within = |age_ms, is_answered| Observation::ReadWithin {
            agent: "c1-3".into(),
            cluster: ClusterId(0),
            age_ms_max: 300,
            age_ms,
            is_answered,
        };
        assert_eq!(told(within(Some(300), true)), Ok(()));
        assert_eq!(told(within(Some(301), false)), Ok(()));
        assert_eq!(told(within(None, false)), Ok(()));
        assert!(told(within(Some(301), true)).unwrap_err().contains("answered"));
        assert!(told(within(None, true)).unwrap_err().contains("answered"));
        assert!(told(within(Some(300), false)).unwrap_err().contains("refused"));
    }
}
