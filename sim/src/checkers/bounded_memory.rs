//! bounded-memory: outboxes stay within their quota, and snapshots keep logs short.

use super::{Checker, Observation};

/// Keeps nothing.
pub struct BoundedMemory;

impl Checker for BoundedMemory {
    fn name(&self) -> &'static str {
        "bounded-memory"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        let Observation::Sizes {
            agent,
            outbox_bytes,
            outbox_bytes_max,
            log_records,
            log_records_max,
        } = seen
        else {
            return Ok(());
        };
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
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn outbox_above_its_quota_and_log_that_is_never_purged_are_caught() {
        let sizes = |outbox_bytes, log_records| Observation::Sizes {
            agent: "c1-1".into(),
            outbox_bytes,
            outbox_bytes_max: 100,
            log_records,
            log_records_max: 10,
        };
        let told = |seen| judge(BoundedMemory, &[(0, seen)]);
        assert_eq!(told(sizes(100, 10)), Ok(()));
        assert!(told(sizes(101, 10)).is_err());
        assert!(told(sizes(100, 11)).is_err());
    }
}
