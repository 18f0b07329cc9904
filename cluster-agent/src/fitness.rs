//! Whether the link profile fits what this member measures, and whether it leads without a quorum.
//!
//! In: round trips to the voters, times until appends were durable, the age of a leader's quorum.
//! Out: warnings in the log, and in the agent's status while they hold. Nothing is changed: timeouts cannot change while a member runs.
//!
//! # Rules
//! * Upon a round trip or a flush of the last minute above what the configuration assumes: a warning
//!   `profile_does_not_fit`, once per minute and key.
//! * Upon a leader whose quorum is silent for three election timeouts: a warning
//!   `leader_without_quorum`, once per episode. It ends with an acknowledgement or the leadership.
//!
//! # Why
//! A profile that is too fast for its links elects leaders whose acknowledgements never count: the
//! cluster looks alive and accepts nothing. See [`RaftConfig`] for the relations.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex},
    time::Duration,
};

use common::{codec::Label, wire::op::Alarm};

use crate::{
    raft::{RaftConfig, RaftRole, RaftStatus},
    shell::{Shell, lock},
};

/// Measurements count for so long, and a warning is repeated after it.
const MINUTE_US: u64 = 60_000_000;
/// Measurements kept; under more load they span less than a minute.
const MEASUREMENTS_MAX: usize = 1_024;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Election timeouts without a quorum that a leader is given.
const SILENT_TIMEOUTS_MAX: u64 = 3;

/// The measurements of the last minute, at most [`MEASUREMENTS_MAX`].
#[derive(Debug, Default)]
pub(crate) struct Recent(VecDeque<(u64, u64)>);

impl Recent {
    /// Notes that something took `took_us` at `now_us`, both in microseconds.
    pub(crate) fn note(&mut self, now_us: u64, took_us: u64) {
        self.forget(now_us);
        if self.0.len() == MEASUREMENTS_MAX {
            self.0.pop_front();
        }
        self.0.push_back((now_us, took_us));
    }

    fn forget(&mut self, now_us: u64) {
        while self
            .0
            .front()
            .is_some_and(|(at_us, _)| now_us.saturating_sub(*at_us) > MINUTE_US)
        {
            self.0.pop_front();
        }
    }

    /// The longest of the last minute.
    pub(crate) fn highest(&mut self, now_us: u64) -> Option<u64> {
        self.forget(now_us);
        self.0.iter().map(|(_, took_us)| *took_us).max()
    }

    /// What 99 % of the last minute stay below. One measurement may always be above it: a single slow
    /// flush of few says nothing.
    fn p99(&mut self, now_us: u64) -> Option<u64> {
        self.forget(now_us);
        let mut took: Vec<u64> = self.0.iter().map(|(_, took_us)| *took_us).collect();
        took.sort_unstable();
        let left_out = (took.len() / 100).max(1);
        let place = took.len().checked_sub(1 + left_out)?;
        Some(took[place])
    }
}

/// A key of the configuration that reality exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Misfit {
    /// As in `agent.toml`.
    key: &'static str,
    /// Its value.
    assumed_ms: u64,
    /// What was measured.
    measured_us: u64,
}

impl From<Misfit> for Alarm {
    fn from(misfit: Misfit) -> Self {
        Self::ProfileDoesNotFit {
            key: Label::new(misfit.key).expect("keys are short and plain"),
            assumed_ms: misfit.assumed_ms,
            measured_us: misfit.measured_us,
        }
    }
}

/// What was warned of, and when.
#[derive(Debug, Default)]
struct Fitness {
    warned_us: BTreeMap<&'static str, u64>,
    leading_since_us: Option<u64>,
    is_quorum_missed: bool,
}

impl Fitness {
    /// Those of `misfits` that were not warned of within the last minute: they are now.
    fn due(&mut self, now_us: u64, misfits: &[Misfit]) -> Vec<Misfit> {
        let mut due = misfits.to_vec();
        due.retain(|misfit| {
            let warned_us = self.warned_us.get(misfit.key);
            warned_us.is_none_or(|at_us| now_us.saturating_sub(*at_us) >= MINUTE_US)
        });
        self.warned_us.extend(due.iter().map(|misfit| (misfit.key, now_us)));
        due
    }

    /// How long this member has led without a quorum, in milliseconds: since its last acknowledgement,
    /// or since it was first seen to lead. `None` if it does not lead others.
    fn quorum_age_ms(&mut self, now_us: u64, status: &RaftStatus) -> Option<u64> {
        if status.role != RaftRole::Leader || status.voters.iter().all(|id| *id == status.id) {
            self.leading_since_us = None;
            return None;
        }
        let since_us = *self.leading_since_us.get_or_insert(now_us);
        let led_ms = now_us.saturating_sub(since_us) / 1_000;
        Some(status.quorum_acked_age_ms.unwrap_or(led_ms))
    }

    /// Whether to warn of `age_ms`: at the beginning of an episode.
    fn begins_without_quorum(&mut self, age_ms: Option<u64>, config: &RaftConfig) -> bool {
        let is_missed = age_ms.is_some_and(|age_ms| age_ms > quorum_silence_ms_max(config));
        let begins = is_missed && !self.is_quorum_missed;
        self.is_quorum_missed = is_missed;
        begins
    }
}

/// What exceeds the configuration: round trip and flush, each `None` if not measured.
fn misfits(config: &RaftConfig, rtt_us: Option<u64>, append_us: Option<u64>) -> Vec<Misfit> {
    let rows = [
        ("link.rtt_p999", config.rtt_ms_p999, rtt_us),
        ("disk.fsync_p99", config.fsync_ms_p99, append_us),
    ];
    let misfits = rows.into_iter().filter_map(|(key, assumed_ms, measured_us)| {
        let measured_us = measured_us.filter(|us| *us > assumed_ms.saturating_mul(1_000))?;
        Some(Misfit {
            key,
            assumed_ms,
            measured_us,
        })
    });
    misfits.collect()
}

fn quorum_silence_ms_max(config: &RaftConfig) -> u64 {
    config.election_timeout_ms_max.saturating_mul(SILENT_TIMEOUTS_MAX)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

impl Shell {
    /// Compares what is measured with what is assumed. Runs as long as the agent.
    pub(crate) async fn watch_fitness(self: Arc<Self>, appends: Arc<Mutex<Recent>>) {
        let (mut fitness, mut round_trips) = (Fitness::default(), Recent::default());
        while !self.is_ending() {
            self.pause(LOOK_EVERY).await;
            let now_us = self.now_us();
            if let Some(rtt_us) = self.rtt_us_to_voters() {
                round_trips.note(now_us, rtt_us);
            }
            let append_us = lock(&appends).p99(now_us);
            let misfits = misfits(&self.raft_config, round_trips.highest(now_us), append_us);
            for misfit in fitness.due(now_us, &misfits) {
                tracing::warn!(
                    event = "profile_does_not_fit",
                    key = misfit.key,
                    assumed_ms = misfit.assumed_ms,
                    measured_us = misfit.measured_us,
                    "slower than the configuration assumes: choose the next slower link.profile, or raise the key"
                );
            }
            self.look_at_quorum(&mut fitness).await;
            let mut alarms: Vec<Alarm> = misfits.into_iter().map(Alarm::from).collect();
            alarms.extend(fitness.is_quorum_missed.then_some(Alarm::LeaderWithoutQuorum));
            *lock(&self.alarms) = alarms;
        }
    }

    /// The longest round trip to another voter, as far as measured.
    fn rtt_us_to_voters(&self) -> Option<u64> {
        let voters = self.raft.status().voters.into_iter();
        let others = voters.filter(|id| *id != self.me.raft);
        let devices = others.filter_map(|id| self.device_of(id));
        devices
            .filter_map(|device| self.ports.transport.rtt(&device))
            .map(micros)
            .max()
    }

    async fn look_at_quorum(&self, fitness: &mut Fitness) {
        let mut age_ms = fitness.quorum_age_ms(self.now_us(), &self.raft.status());
        if age_ms.is_some_and(|age_ms| age_ms > quorum_silence_ms_max(&self.raft_config)) {
            // What is published may be older than what Raft knows; one that does not answer is no better.
            let patience = Duration::from_millis(self.raft_config.heartbeat_ms);
            let asked = self.within(patience, self.raft.contact_age()).await.flatten();
            age_ms = asked.map(|age| micros(age) / 1_000).or(age_ms);
        }
        if fitness.begins_without_quorum(age_ms, &self.raft_config) {
            tracing::warn!(
                event = "leader_without_quorum",
                age_ms,
                "this member leads and no quorum acknowledges it: nothing is accepted here"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use common::ids::RaftNodeId;

    use super::*;
    use crate::raft::LinkProfile;

    fn mesh() -> RaftConfig {
        RaftConfig::for_profile(LinkProfile::Mesh)
    }

    #[test]
    fn what_is_assumed_fits_and_more_is_named_with_both_values() {
        assert_eq!(misfits(&mesh(), Some(100_000), Some(50_000)), []);
        assert_eq!(misfits(&mesh(), None, None), []);
        let rtt = Misfit {
            key: "link.rtt_p999",
            assumed_ms: 100,
            measured_us: 100_001,
        };
        let flush = Misfit {
            key: "disk.fsync_p99",
            assumed_ms: 50,
            measured_us: 50_001,
        };
        assert_eq!(misfits(&mesh(), Some(100_001), Some(50_001)), [rtt, flush]);
    }

    #[test]
    fn warning_comes_once_a_minute_for_each_key() {
        let mut fitness = Fitness::default();
        let mut count = |now_us, rtt_us, append_us| fitness.due(now_us, &misfits(&mesh(), rtt_us, append_us)).len();
        assert_eq!(count(0, Some(200_000), None), 1);
        assert_eq!(count(MINUTE_US - 1, Some(200_000), Some(60_000)), 1, "the other key");
        assert_eq!(count(MINUTE_US, Some(200_000), Some(60_000)), 1);
        assert_eq!(count(MINUTE_US + 1, Some(200_000), Some(60_000)), 0);
    }

    #[test]
    fn measurements_are_of_the_last_minute_and_bounded() {
        let mut recent = Recent::default();
        assert_eq!((recent.highest(0), recent.p99(0)), (None, None));
        recent.note(0, 900);
        assert_eq!(
            (recent.highest(0), recent.p99(0)),
            (Some(900), None),
            "one says nothing"
        );
        recent.note(1, 10);
        assert_eq!(
            (recent.highest(MINUTE_US), recent.p99(MINUTE_US)),
            (Some(900), Some(10))
        );
        assert_eq!(recent.highest(MINUTE_US + 1), Some(10));
        for number in 0..2 * MEASUREMENTS_MAX as u64 {
            recent.note(MINUTE_US, number);
        }
        assert_eq!(recent.0.len(), MEASUREMENTS_MAX);
        // 1024..2048 are left; ten of them are the 1 % above.
        assert_eq!(recent.p99(MINUTE_US), Some(2_037));
    }

    fn leads(acked_age_ms: Option<u64>) -> RaftStatus {
        let id = RaftNodeId(1);
        RaftStatus {
            role: RaftRole::Leader,
            voters: vec![id, RaftNodeId(2), RaftNodeId(3)],
            quorum_acked_age_ms: acked_age_ms,
            ..RaftStatus::of(id)
        }
    }

    #[test]
    fn leader_without_quorum_is_told_once_per_episode() {
        let mut fitness = Fitness::default();
        let mut tells = |status: &RaftStatus| {
            let age_ms = fitness.quorum_age_ms(0, status);
            fitness.begins_without_quorum(age_ms, &mesh())
        };
        assert!(!tells(&leads(Some(9_000))), "three timeouts are given");
        assert!(tells(&leads(Some(9_001))));
        assert!(!tells(&leads(Some(60_000))), "the same episode");
        assert!(!tells(&leads(Some(10))));
        assert!(tells(&leads(Some(9_001))), "another episode");
        assert!(!tells(&RaftStatus::of(RaftNodeId(1))), "a follower");
        assert!(tells(&leads(Some(9_001))));
    }

    #[test]
    fn leader_that_was_never_acknowledged_counts_from_its_election() {
        let mut fitness = Fitness::default();
        assert_eq!(fitness.quorum_age_ms(1_000_000, &leads(None)), Some(0));
        assert_eq!(fitness.quorum_age_ms(11_000_000, &leads(None)), Some(10_000));
        assert_eq!(fitness.quorum_age_ms(12_000_000, &RaftStatus::of(RaftNodeId(1))), None);
        assert_eq!(fitness.quorum_age_ms(13_000_000, &leads(None)), Some(0));
        let alone = RaftStatus {
            voters: vec![RaftNodeId(1)],
            ..leads(Some(99_000))
        };
        assert_eq!(fitness.quorum_age_ms(14_000_000, &alone), None, "it is its own quorum");
    }
}
