//! committed-on-quorum: when a member applies an entry for the first time, a majority of the cluster's disks holds
//! that entry (or has purged it, which only what was committed is).

use super::{Checker, Observation};

/// Keeps nothing: the witness counts the disks in the instant of the apply.
pub struct CommittedOnQuorum;

impl Checker for CommittedOnQuorum {
    fn name(&self) -> &'static str {
        "committed-on-quorum"
    }

    fn observe(&mut self, _now_us: u64, seen: &Observation) -> Result<(), String> {
        match seen {
            Observation::Committed {
                agent,
                cluster,
                index,
                copies,
                voters,
                ..
            } if 2 * copies <= *voters => Err(format!(
                "{agent} applied index {index} of {cluster}, which {copies} of {voters} disks hold"
            )),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::*, *};

    #[test]
    fn entry_that_is_applied_from_a_minority_is_caught() {
        let committed = |copies, voters| Observation::Committed {
            agent: "c1-1".into(),
            cluster: ClusterId(0),
            index: LogIndex(7),
            leader: None,
            copies,
            voters,
        };
        assert_eq!(judge(CommittedOnQuorum, &[(0, committed(2, 3))]), Ok(()));
        assert!(judge(CommittedOnQuorum, &[(0, committed(1, 3))]).is_err());
        assert!(judge(CommittedOnQuorum, &[(0, committed(2, 4))]).is_err());
    }
}
