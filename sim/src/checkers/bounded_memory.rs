//! bounded-memory: outboxes stay within their quota, snapshots keep logs short, and validators hold no more than what is open.
//!
//! # Rules
//! * A validator holds a batch from when its cluster closed it until a final block with it is executed there.
//! * It holds what concerns a view, and the blocks of it, until a later view is final.

use std::collections::BTreeMap;

use common::ids::{BatchSeq, ClusterId, Height};
use global_core::Holdings;

use super::{Checker, Observation};

/// Knows which batches there are, and up to which height each was executed.
#[derive(Default)]
pub struct BoundedMemory {
    closed: BTreeMap<ClusterId, BatchSeq>,
    /// The last batch of a cluster in a block.
    executed: BTreeMap<(ClusterId, Height), BatchSeq>,
}

impl BoundedMemory {
    /// Batches of a cluster that wait for a validator that has executed up to `height`.
    fn waiting(&self, cluster: ClusterId, height: Height) -> u64 {
        let closed = self.closed.get(&cluster).copied().unwrap_or_default();
        let below = self.executed.range((cluster, Height(0))..=(cluster, height));
        let executed = below.last().map_or(BatchSeq(0), |(_, seq)| *seq);
        closed.0.saturating_sub(executed.0)
    }

    fn holds(&self, validator: &str, height: Height, held: &Holdings) -> Result<(), String> {
        let Holdings { views, blocks, .. } = *held;
        if views > held.views_max() {
            return Err(format!(
                "{validator} holds votes and certificates of {views} views, {} are open",
                held.views_open
            ));
        }
        if blocks > held.blocks_max() {
            return Err(format!(
                "{validator} holds {blocks} blocks, with {} views and {} heights open",
                held.views_open, held.heights_open
            ));
        }
        for (cluster, batches) in &held.batches {
            let waiting = self.waiting(*cluster, height);
            if *batches > waiting {
                return Err(format!(
                    "{validator} holds {batches} batches of cluster {cluster}, of which {waiting} are not executed at {height}"
                ));
            }
        }
        Ok(())
    }
}

impl Checker for BoundedMemory {
    fn name(&self) -> &'static str {
        "bounded-memory"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Closed { cluster, seq, .. } => {
                let closed = self.closed.entry(*cluster).or_default();
                *closed = (*seq).max(*closed);
            }
            Observation::Executed { height, refs, .. } => {
                self.executed
                    .extend(refs.iter().map(|(cluster, seq, _)| ((*cluster, *height), *seq)));
            }
            Observation::Holds {
                validator,
                height,
                holdings,
            } => return self.holds(validator, *height, holdings),
            Observation::Sizes {
                agent,
                outbox_bytes,
                outbox_bytes_max,
                log_records,
                log_records_max,
            } => {
                if outbox_bytes > outbox_bytes_max {
                    return Err(format!(
                        "the outbox of {agent} has {outbox_bytes} bytes, its quota is {outbox_bytes_max}"
                    ));
                }
                if log_records > log_records_max {
                    return Err(format!(
                        "the log of {agent} has {log_records} records, it should have {log_records_max} at most"
                    ));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use common::ids::{BlockTime, Digest};

    use super::{super::*, *};

    const C1: ClusterId = ClusterId(0);

    #[test]
    fn outbox_above_its_quota_and_log_that_is_never_purged_are_caught() {
        let sizes = |outbox_bytes, log_records| Observation::Sizes {
            agent: "c1-1".into(),
            outbox_bytes,
            outbox_bytes_max: 100,
            log_records,
            log_records_max: 10,
        };
        let told = |seen| judge(BoundedMemory::default(), &[(0, seen)]);
        assert_eq!(told(sizes(100, 10)), Ok(()));
        assert!(told(sizes(101, 10)).is_err());
        assert!(told(sizes(100, 11)).is_err());
    }

    fn holds(height: u64, holdings: Holdings) -> Observation {
        Observation::Holds {
            validator: "v1".into(),
            height: Height(height),
            holdings,
        }
    }

    #[test]
    fn batches_that_a_validator_keeps_after_they_were_executed_are_caught() {
        let closed = Observation::Closed {
            cluster: C1,
            seq: BatchSeq(5),
            digest: Digest([1; 32]),
            entries: Vec::new(),
        };
        let executed = Observation::Executed {
            validator: "v2".into(),
            height: Height(7),
            block: Digest([7; 32]),
            refs: vec![(C1, BatchSeq(2), Digest([2; 32])), (C1, BatchSeq(3), Digest([3; 32]))],
            carried_root: Digest::default(),
            time: BlockTime(0),
        };
        let told = |height, batches| {
            let held = Holdings {
                batches: [(C1, batches)].into(),
                ..Holdings::default()
            };
            let seen = [(0, closed.clone()), (1, executed.clone()), (2, holds(height, held))];
            judge(BoundedMemory::default(), &seen)
        };
        assert_eq!(told(7, 2), Ok(()));
        assert_eq!(told(6, 5), Ok(()), "it has not executed them itself");
        assert!(told(7, 3).is_err());
        assert!(told(6, 6).is_err(), "nobody closed a sixth");
    }

    #[test]
    fn views_and_blocks_that_are_kept_after_a_later_view_is_final_are_caught() {
        let held = |views, blocks| Holdings {
            views_open: 1,
            views,
            heights_open: 0,
            blocks,
            ..Holdings::default()
        };
        let told = |held| judge(BoundedMemory::default(), &[(0, holds(1, held))]);
        let (views_max, blocks_max) = (held(0, 0).views_max(), held(0, 0).blocks_max());
        assert_eq!(told(held(views_max, blocks_max)), Ok(()));
        assert!(told(held(views_max + 1, 0)).is_err());
        assert!(told(held(0, blocks_max + 1)).is_err());
    }
}
