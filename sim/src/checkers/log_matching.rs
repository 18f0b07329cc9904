//! log-matching: two records with one identity (term, leader, index) are equal, and where two logs hold the same
//! record at one index, they are equal below it as well.

use bytes::Bytes;
use cluster_agent::raft::store::record_leader;
use common::ids::{LogIndex, RaftNodeId, Term};

use super::{Checker, LogTail, Observation};

/// Keeps nothing: each look at the disks is judged alone.
pub struct LogMatching {
    /// Who led when a record was appended; with the index, the identity of its entry.
    leader_of: fn(&[u8]) -> Option<(Term, RaftNodeId)>,
}

impl Default for LogMatching {
    fn default() -> Self {
        Self {
            leader_of: record_leader,
        }
    }
}

fn compare(a: &LogTail, b: &LogTail, leader_of: fn(&[u8]) -> Option<(Term, RaftNodeId)>) -> Result<(), String> {
    let first = a.first.max(b.first);
    let tail = |log: &LogTail| {
        log.records
            .get((first.0 - log.first.0) as usize..)
            .map_or(0, <[_]>::len)
    };
    let common = tail(a).min(tail(b));
    fn at(log: &LogTail, first: LogIndex, at: usize) -> &Bytes {
        &log.records[(first.0 - log.first.0) as usize + at]
    }
    let is_equal = |place: &usize| {
        let (of_a, of_b) = (at(a, first, *place), at(b, first, *place));
        // Logs of the simulator share the memory of equal records.
        (of_a.as_ptr() == of_b.as_ptr() && of_a.len() == of_b.len()) || of_a == of_b
    };
    // Records carry the chain of their log, so that two of one identity with other pasts differ.
    let contradicts = |place: &usize| {
        let led = (leader_of(at(a, first, *place)), leader_of(at(b, first, *place)));
        led.0.is_some() && led.0 == led.1
    };
    if let Some(place) = (0..common).filter(|place| !is_equal(place)).find(contradicts) {
        return Err(format!(
            "{} and {} hold different records of one term and leader at index {}",
            a.agent,
            b.agent,
            first.0 + place as u64
        ));
    }
    let Some(last_equal) = (0..common).rev().find(is_equal) else {
        return Ok(());
    };
    match (0..last_equal).find(|place| !is_equal(place)) {
        None => Ok(()),
        Some(differs) => Err(format!(
            "{} and {} hold the same record at index {} and different ones at index {}",
            a.agent,
            b.agent,
            first.0 + last_equal as u64,
            first.0 + differs as u64
        )),
    }
}

impl Checker for LogMatching {
    fn name(&self) -> &'static str {
        "log-matching"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Logs { logs, .. } = seen else {
            return Ok(());
        };
        for (at, a) in logs.iter().enumerate() {
            for b in &logs[at + 1..] {
                compare(a, b, self.leader_of)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn log(agent: &str, first: u64, records: &[&'static str]) -> LogTail {
        LogTail {
            agent: agent.into(),
            first: LogIndex(first),
            records: records.iter().map(|text| Bytes::from_static(text.as_bytes())).collect(),
        }
    }

    /// Each record was led by whom its first letter names.
    fn told(a: LogTail, b: LogTail) -> Result<(), String> {
        let logs = Observation::Logs {
            cluster: ClusterId(0),
            logs: vec![a, b],
        };
        let checker = LogMatching {
            leader_of: |record| Some((Term(1), RaftNodeId(record[0].into()))),
        };
        judge(checker, &[(0, logs)])
    }

    #[test]
    fn two_records_of_one_identity_are_caught() {
        let told = |second| told(log("c1-1", 3, &["a", "b1"]), log("c1-2", 3, &["a", second]));
        assert_eq!(told("b1"), Ok(()));
        assert_eq!(told("c1"), Ok(()), "of another leader");
        assert!(told("b2").unwrap_err().contains("index 4"));
    }

    #[test]
    fn difference_below_an_equal_record_is_caught() {
        let one = log("c1-1", 3, &["a", "b", "c"]);
        assert_eq!(told(one.clone(), log("c1-2", 4, &["b", "c", "d"])), Ok(()));
        assert_eq!(
            told(one.clone(), log("c1-2", 3, &["a", "x", "y"])),
            Ok(()),
            "not replicated yet"
        );
        assert!(
            told(one.clone(), log("c1-2", 3, &["a", "x", "c"]))
                .unwrap_err()
                .contains("index 4")
        );
        assert_eq!(told(one, log("c1-2", 9, &["z"])), Ok(()), "nothing in common");
    }
}
