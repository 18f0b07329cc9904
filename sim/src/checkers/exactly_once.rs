//! exactly-once: each committed author-signed entry is in exactly one batch; each batch is finalized at
//! most once; per cluster the finalized batches are a gap-free prefix. Whoever sends an entry again hears the answer that it
//! was given.

use std::collections::{BTreeMap, BTreeSet};

use common::{
    ids::{BatchSeq, ClusterId, Digest, EntryId, Height, LogIndex},
    verdict::{Reason, Verdict},
};

use super::{Checker, Health, Observation};

/// Remembers every batch that was closed and every one that was finalized.
#[derive(Default)]
pub struct ExactlyOnce {
    closed: BTreeMap<(ClusterId, BatchSeq), Digest>,
    batch_of: BTreeMap<EntryId, (ClusterId, BatchSeq)>,
    executed: BTreeMap<Height, Digest>,
    finalized: BTreeMap<ClusterId, BTreeMap<BatchSeq, Digest>>,
    /// The first answer to each entry that names its place in a log, and when it was given.
    answers: BTreeMap<EntryId, (LogIndex, Verdict, u64)>,
    acknowledged: BTreeSet<EntryId>,
    /// Of these, acknowledged before all outboxes were empty.
    due: BTreeSet<EntryId>,
}

impl ExactlyOnce {
    fn closed(&mut self, place: (ClusterId, BatchSeq), digest: Digest, entries: &[EntryId]) -> Result<(), String> {
        let (cluster, seq) = place;
        match self.closed.insert(place, digest) {
            Some(first) if first != digest => return Err(format!("two batches {seq} of {cluster} were closed")),
            Some(_) => return Ok(()),
            None => {}
        }
        for entry in entries {
            if let Some((_, first)) = self.batch_of.insert(*entry, place) {
                let entry = entry.to_hex();
                return Err(format!("entry {entry} is in batches {first} and {seq} of {cluster}"));
            }
        }
        Ok(())
    }

    fn finalized(&mut self, height: Height, place: (ClusterId, BatchSeq), digest: Digest) -> Result<(), String> {
        let (cluster, seq) = place;
        let done = self.finalized.entry(cluster).or_default();
        let next = done.last_key_value().map_or(BatchSeq(1), |(last, _)| last.next());
        if seq != next {
            return Err(format!(
                "block {height} has batch {seq} of {cluster}, the next is {next}"
            ));
        }
        done.insert(seq, digest);
        match self.closed.get(&place) {
            Some(closed) if *closed != digest => {
                Err(format!("block {height} has another batch {seq} than {cluster} closed"))
            }
            _ => Ok(()),
        }
    }
}

impl ExactlyOnce {
    fn answered(&mut self, now_us: u64, entry: EntryId, answer: (LogIndex, Verdict)) -> Result<(), String> {
        let (index, verdict, _) = *self.answers.entry(entry).or_insert((answer.0, answer.1, now_us));
        if (index, verdict) == answer {
            return Ok(());
        }
        Err(format!(
            "entry {} was {verdict:?} at index {index}, and now is {:?} at index {}",
            entry.to_hex(),
            answer.1,
            answer.0
        ))
    }

    /// An entry that stands in a log is not refused, unless its number is so old that nobody remembers what it was.
    fn refused(&self, asked_us: u64, entry: &EntryId, verdict: Verdict) -> Result<(), String> {
        match self.answers.get(entry) {
            Some((index, first, at_us)) if *at_us <= asked_us && verdict != Verdict::Rejected(Reason::NumberWindow) => {
                let entry = entry.to_hex();
                Err(format!(
                    "entry {entry} was {first:?} at index {index}, and now is refused: {verdict:?}"
                ))
            }
            _ => Ok(()),
        }
    }
}

impl Checker for ExactlyOnce {
    fn name(&self) -> &'static str {
        "exactly-once"
    }

    fn observe(&mut self, now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Closed {
                cluster,
                seq,
                digest,
                entries,
            } => self.closed((*cluster, *seq), *digest, entries),
            Observation::Executed {
                height, block, refs, ..
            } => {
                if self.executed.insert(*height, *block).is_some() {
                    return Ok(());
                }
                for (cluster, seq, digest) in refs {
                    self.finalized(*height, (*cluster, *seq), *digest)?;
                }
                Ok(())
            }
            Observation::Acked {
                entry, index, verdict, ..
            } if index.0 > 0 => {
                self.acknowledged.insert(*entry);
                self.answered(now_us, *entry, (*index, *verdict))
            }
            Observation::Refused {
                asked_us,
                entry,
                verdict,
                ..
            } => self.refused(*asked_us, entry, *verdict),
            // Drones go on: what they write later may be under way when the run ends.
            Observation::Health(Health { outbox_bytes: 0, .. }) => {
                self.due.append(&mut self.acknowledged);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What was acknowledged before the outboxes were empty is final.
    fn finish(&mut self, _now_us: u64) -> Result<(), String> {
        let is_final = |(cluster, seq): &(ClusterId, BatchSeq)| {
            self.finalized.get(cluster).is_some_and(|done| done.contains_key(seq))
        };
        let missing = |entry: &&EntryId| !self.batch_of.get(*entry).is_some_and(is_final);
        match self.due.iter().find(missing) {
            Some(entry) => Err(format!(
                "entry {} was acknowledged and is in no final batch",
                entry.to_hex()
            )),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    fn closed(seq: u64, digest: u8, entries: &[u8]) -> Observation {
        Observation::Closed {
            cluster: ClusterId(0),
            seq: BatchSeq(seq),
            digest: Digest([digest; 32]),
            entries: entries.iter().map(|number| EntryId([*number; 32])).collect(),
        }
    }

    fn block(height: u64, refs: &[(u64, u8)]) -> Observation {
        let of_cluster = |(seq, digest): &(u64, u8)| (ClusterId(0), BatchSeq(*seq), Digest([*digest; 32]));
        Observation::Executed {
            validator: "v1".into(),
            height: Height(height),
            block: Digest([height as u8; 32]),
            refs: refs.iter().map(of_cluster).collect(),
            carried_root: Digest([0; 32]),
            time: BlockTime(height),
        }
    }

    fn told(history: &[Observation]) -> Result<(), String> {
        let history: Vec<_> = history.iter().map(|seen| (0, seen.clone())).collect();
        judge(ExactlyOnce::default(), &history)
    }

    #[test]
    fn batches_in_order_are_fine_whoever_reports_them() {
        let history = [
            closed(1, 1, &[7]),
            closed(1, 1, &[7]),
            closed(2, 2, &[8]),
            block(1, &[(1, 1)]),
            block(1, &[(1, 1)]),
            block(2, &[(2, 2)]),
        ];
        assert_eq!(told(&history), Ok(()));
    }

    #[test]
    fn entry_in_two_batches_is_caught() {
        assert!(told(&[closed(1, 1, &[7]), closed(2, 2, &[7])]).is_err());
        assert!(told(&[closed(1, 1, &[7, 7])]).is_err());
    }

    #[test]
    fn gap_repetition_and_foreign_batch_are_caught() {
        assert!(told(&[block(1, &[(2, 2)])]).unwrap_err().contains("the next is 1"));
        assert!(told(&[block(1, &[(1, 1)]), block(2, &[(1, 1)])]).is_err());
        assert!(told(&[closed(1, 1, &[]), block(1, &[(1, 9)])]).is_err());
        assert!(told(&[closed(1, 1, &[]), closed(1, 9, &[])]).is_err());
    }

    #[test]
    fn another_answer_to_the_same_entry_is_caught() {
        let first = acked("c1-1", 0, 7, 3);
        let with = |verdict| {
            let mut again = acked("c1-2", 5, 7, 3);
            if let Observation::Acked { verdict: told, .. } = &mut again {
                *told = verdict;
            }
            judge(ExactlyOnce::default(), &[(4, first.clone()), (9, again)])
        };
        let rejected = Verdict::Rejected(Reason::Blocked);
        assert!(!with(Verdict::Granted).is_err_and(|what| what.contains("and now is")));
        assert!(with(rejected).unwrap_err().contains("and now is Rejected"));
        let elsewhere = [(4, first.clone()), (9, acked("c1-2", 5, 7, 4))];
        assert!(
            judge(ExactlyOnce::default(), &elsewhere)
                .unwrap_err()
                .contains("at index 4")
        );
        let refused = |asked_us, why| {
            let refused = Observation::Refused {
                agent: "c1-2".into(),
                cluster: ClusterId(0),
                asked_us,
                entry: EntryId([7; 32]),
                verdict: Verdict::Rejected(why),
            };
            judge(ExactlyOnce::default(), &[(4, first.clone()), (9, refused)])
        };
        assert!(refused(5, Reason::Blocked).unwrap_err().contains("and now is refused"));
        assert_eq!(refused(5, Reason::NumberWindow), Ok(()), "nobody remembers it");
        assert_eq!(
            refused(3, Reason::Blocked),
            Ok(()),
            "it was asked before the answer was given"
        );
    }

    #[test]
    fn acknowledged_entry_that_never_becomes_final_is_caught() {
        let health = |outbox_bytes| {
            Observation::Health(Health {
                outbox_bytes,
                ..Health::default()
            })
        };
        let begun = [acked("c1-1", 0, 7, 3), closed(1, 1, &[7])];
        let history = |outbox_bytes| [&begun[..], &[health(outbox_bytes)]].concat();
        assert!(told(&history(0)).unwrap_err().contains("no final batch"));
        assert_eq!(told(&history(9)), Ok(()), "it is still under way");
        assert_eq!(told(&[history(0), vec![block(1, &[(1, 1)])]].concat()), Ok(()));
    }
}
