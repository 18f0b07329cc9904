//! How many machines a simulated fleet has, and what they are like when nothing is wrong.

use std::num::NonZeroU64;

use cluster_agent::{
    config::Limits,
    raft::{LinkProfile, RaftConfig},
};
use common::{
    genesis::Timing,
    lease_terms::{ClockBounds, LeaseTerms},
};

use crate::ports::{DiskTiming, LinkConditions};

/// How many processes of each sort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Population {
    /// Clusters.
    pub clusters: u32,
    /// Agents in each cluster.
    pub agents: u32,
    /// Validators.
    pub validators: u32,
}

impl Population {
    /// Processes altogether.
    #[must_use]
    pub fn nodes(&self) -> u32 {
        self.clusters * self.agents + self.validators
    }
}

/// The machine under every process of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Links.
    pub links: LinkConditions,
    /// Disks.
    pub disks: DiskTiming,
    /// Clocks gain or lose at most this, per million; at most the fleet's bound.
    pub drift_ppm_max: u32,
    /// What agents suppose of their links.
    pub profile: LinkProfile,
    /// A snapshot is made after this many entries, and this many are kept below it.
    pub snapshot_entries: (u64, u64),
    /// Quota of an outbox; `None`: that of the profile.
    pub outbox_bytes_max: Option<u64>,
    /// Of what the program keeps of closed tasks, machines keep one part in so many
    /// ([`common::retention_scale`]).
    pub keeps_one_in: NonZeroU64,
}

impl Conditions {
    /// An agent's limits.
    #[must_use]
    pub fn limits(&self, raft: &RaftConfig) -> Limits {
        let limits = Limits::for_raft(raft);
        Limits {
            outbox_bytes_max: self.outbox_bytes_max.unwrap_or(limits.outbox_bytes_max),
            ..limits
        }
    }
}

/// Drift that clocks of a simulated fleet stay below.
pub const DRIFT_PPM: u32 = 500;

/// The timing of a development fleet, for links of up to 100 ms and clocks that drift by up to `drift_ppm`.
pub(super) fn timing(drift_ppm: u32) -> Timing {
    // C - 2 (b + e) - t_stop is 10.3 s: more drift leaves less for the lease under it.
    let drift_ppm = drift_ppm.max(DRIFT_PPM);
    let global_lease_ms = (10_300_000_000 / (1_000_000 + 2 * u64::from(drift_ppm)) / 100 * 100) as u32;
    Timing {
        clocks: ClockBounds {
            block_time_bound_ms: 500,
            clock_error_ms: 100,
            drift_ppm,
        },
        idle_block_interval_ms: 1_000,
        delay_ms_min: 10,
        delay_ms_max: 100,
        lease: LeaseTerms {
            custody_ms: 12_000,
            lease_ms: 6_000,
            global_lease_ms,
            stop_ms: 500,
        },
        regions_min: 0,
    }
}
