//! Lengths of leases and custody, and the inequality that keeps two drones from holding one task.
//!
//! # Why
//! A drone counts on its lease until `t0 + G` on its own clock, which may run slow by `rho`, and then
//! needs `t_stop` to stop. The global tier counts custody from block time, which may be off by the
//! bound `b` and a validator's clock error `e` at both ends. So `G (1 + 2 rho) + t_stop <= C - 2 (b + e)`
//! makes the drone stop before anybody else can be assigned the task.

use serde::{Deserialize, Serialize};

use crate::bug::{self, Bug};

/// What every clock in the fleet is trusted for. Constants of the genesis file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClockBounds {
    /// b: how far a block's time may be from an honest validator's clock.
    pub block_time_bound_ms: u32,
    /// e: largest error of an honest validator's clock.
    pub clock_error_ms: u32,
    /// rho: largest drift of a drone's clock, parts per million, below 1/3.
    pub drift_ppm: u32,
}

/// C, L, G and t_stop of one task, written into its row when the task is assigned or submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseTerms {
    /// C: custody of a cluster lasts this long after its last executed batch or beat.
    pub custody_ms: u32,
    /// L: a lease inside a cluster lasts this long after the drone signed.
    pub lease_ms: u32,
    /// G: a lease on a fleet-scope task lasts this long after the drone signed what was finalized.
    pub global_lease_ms: u32,
    /// t_stop: the vehicle needs this long to stop.
    pub stop_ms: u32,
}

/// A set of lengths with which two drones could hold one task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseTermsError {
    /// A length that must be positive is zero.
    #[error("{0} must be above 0 ms")]
    Zero(&'static str),
    /// The drift bound is 1/3 or more.
    #[error("drift_ppm {0} must be below 333333")]
    Drift(u32),
    /// `G (1 + 2 rho) + t_stop > C - 2 (b + e)`.
    #[error(
        "global_lease {global_lease_ms} ms with drift and stop needs {needed_us} us, but custody {custody_ms} ms less twice \
         the block time bound and clock error leaves {left_us} us: lengthen custody or shorten the lease"
    )]
    CustodyTooShort {
        /// G.
        global_lease_ms: u32,
        /// C.
        custody_ms: u32,
        /// Left side, microseconds.
        needed_us: u64,
        /// Right side, microseconds.
        left_us: u64,
    },
}

impl LeaseTerms {
    /// Checks the inequality above.
    ///
    /// # Errors
    /// [`LeaseTermsError`] with both sides.
    pub fn check(&self, clocks: &ClockBounds) -> Result<(), LeaseTermsError> {
        for (value, name) in [
            (self.custody_ms, "custody"),
            (self.lease_ms, "lease"),
            (self.global_lease_ms, "global_lease"),
        ] {
            if value == 0 {
                return Err(LeaseTermsError::Zero(name));
            }
        }
        if clocks.drift_ppm >= 333_333 {
            return Err(LeaseTermsError::Drift(clocks.drift_ppm));
        }
        let us = |ms: u32| u64::from(ms) * 1_000;
        let drift_us = (us(self.global_lease_ms) * 2 * u64::from(clocks.drift_ppm)).div_ceil(1_000_000);
        let needed_us = us(self.global_lease_ms) + drift_us + us(self.stop_ms);
        let left_us =
            us(self.custody_ms).saturating_sub(2 * (us(clocks.block_time_bound_ms) + us(clocks.clock_error_ms)));
        if needed_us > left_us {
            return Err(LeaseTermsError::CustodyTooShort {
                global_lease_ms: self.global_lease_ms,
                custody_ms: self.custody_ms,
                needed_us,
                left_us,
            });
        }
        Ok(())
    }

    /// How long a leader waits on its own clock, after it applied the newest renewal, before it may
    /// say that the lease has certainly ended: `L (1 + 3 rho) + t_stop (1 + rho)`, in microseconds.
    #[must_use]
    pub fn certainly_ended_after_us(&self, clocks: &ClockBounds) -> u64 {
        let scaled = |ms: u32, drifts: u64| {
            let us = u64::from(ms) * 1_000;
            us + (us * drifts * u64::from(clocks.drift_ppm)).div_ceil(1_000_000)
        };
        match () {
            () if bug::active(Bug::RequeueEarly) => scaled(self.lease_ms, 3) / 2,
            () if bug::active(Bug::LeaseWithoutDrift) => scaled(self.lease_ms, 0) + scaled(self.stop_ms, 0),
            () => scaled(self.lease_ms, 3) + scaled(self.stop_ms, 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOCKS: ClockBounds = ClockBounds {
        block_time_bound_ms: 500,
        clock_error_ms: 100,
        drift_ppm: 500,
    };
    const DEV: LeaseTerms = LeaseTerms {
        custody_ms: 12_000,
        lease_ms: 6_000,
        global_lease_ms: 10_200,
        stop_ms: 500,
    };

    #[test]
    fn shipped_profiles_hold_the_inequality() {
        let row = |c, l, g, s, b, e| {
            let clocks = ClockBounds {
                block_time_bound_ms: b,
                clock_error_ms: e,
                drift_ppm: 500,
            };
            LeaseTerms {
                custody_ms: c,
                lease_ms: l,
                global_lease_ms: g,
                stop_ms: s,
            }
            .check(&clocks)
        };
        assert_eq!(row(12_000, 6_000, 10_200, 500, 500, 100), Ok(()), "dev");
        assert_eq!(row(30_000, 10_000, 26_700, 2_000, 500, 100), Ok(()), "lan");
        assert_eq!(row(60_000, 30_000, 49_900, 5_000, 2_000, 500), Ok(()), "mesh");
        assert_eq!(row(150_000, 90_000, 127_800, 10_000, 5_000, 1_000), Ok(()), "satcom");
    }

    #[test]
    fn lease_that_outlives_custody_is_refused_with_both_sides() {
        let error = LeaseTerms {
            global_lease_ms: 10_400,
            ..DEV
        }
        .check(&CLOCKS)
        .unwrap_err();
        assert!(matches!(error, LeaseTermsError::CustodyTooShort { needed_us, left_us, .. } if needed_us > left_us));
        assert_eq!(
            LeaseTerms { lease_ms: 0, ..DEV }.check(&CLOCKS),
            Err(LeaseTermsError::Zero("lease"))
        );
    }

    #[test]
    fn certain_end_is_after_lease_and_stop_with_drift() {
        // 6 s x 1.0015 + 0.5 s x 1.0005
        assert_eq!(DEV.certainly_ended_after_us(&CLOCKS), 6_009_000 + 500_250);
    }
}
