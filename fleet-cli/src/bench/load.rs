//! Closed loops: each client has one request in flight, and the next begins when it ends.
//!
//! # Rules
//! * An operation counts if it ends inside the window; what ends in the warm-up does not.
//! * A failed operation is counted by its kind and is no latency.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::proc;
use crate::exit::{Exit, Failure, Outcome};

/// What is not measured at the begin of each run.
pub const WARM_UP: Duration = Duration::from_secs(1);
/// Pause of a client after a failure.
const AFTER_FAILURE: Duration = Duration::from_millis(20);

/// Why an operation failed, in a word.
pub type Fault = String;

/// What a run gave.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// Latencies of the operations that ended in the window, microseconds, ascending.
    pub latencies_us: Vec<u32>,
    /// Failures by kind, in the window and the warm-up.
    pub errors: BTreeMap<Fault, u64>,
    /// Processor time of the fleet's processes in the window, microseconds.
    pub server_cpu_us: u64,
    /// Processor time of this process in the window, microseconds.
    pub client_cpu_us: u64,
    /// Length of the window.
    pub secs: u64,
}

#[derive(Default)]
struct Seen {
    latencies_us: Vec<u32>,
    errors: BTreeMap<Fault, u64>,
}

/// Runs `op(client, nth of that client)` in `clients` loops for [`WARM_UP`] and `secs`. `pids` are the processes whose time is
/// counted.
///
/// # Errors
/// A panic inside `op`.
pub async fn closed_loop<F, Fut>(clients: u32, secs: u64, pids: &[i32], op: F) -> Outcome<Measured>
where
    F: Fn(u32, u64) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<(), Fault>> + Send + 'static,
{
    let op = Arc::new(op);
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(secs);
    let mut loops = JoinSet::new();
    for client in 0..clients {
        let op = op.clone();
        loops.spawn(async move {
            let mut seen = Seen::default();
            for nth in 0.. {
                let sent = Instant::now();
                if sent >= end {
                    break;
                }
                match op(client, nth).await {
                    Ok(()) => {
                        let now = Instant::now();
                        if now >= begin && now < end {
                            seen.latencies_us.push((now - sent).as_micros() as u32);
                        }
                    }
                    Err(fault) => {
                        *seen.errors.entry(fault).or_default() += 1;
                        tokio::time::sleep(AFTER_FAILURE).await;
                    }
                }
            }
            seen
        });
    }
    tokio::time::sleep_until(begin.into()).await;
    let cost = Cost::of(pids);
    tokio::time::sleep_until(end.into()).await;
    let (server_cpu_us, client_cpu_us) = cost.since(pids);
    let mut measured = Measured {
        server_cpu_us,
        client_cpu_us,
        secs,
        ..Measured::default()
    };
    while let Some(seen) = loops.join_next().await {
        let seen = seen.map_err(|error| Failure::new(Exit::Failed, error))?;
        measured.latencies_us.extend(seen.latencies_us);
        for (fault, count) in seen.errors {
            *measured.errors.entry(fault).or_default() += count;
        }
    }
    measured.latencies_us.sort_unstable();
    Ok(measured)
}

/// Processor time at one moment.
struct Cost {
    servers_us: u64,
    own_us: u64,
}

impl Cost {
    fn of(pids: &[i32]) -> Self {
        Self {
            servers_us: pids.iter().map(|pid| proc::cpu_us(*pid)).sum(),
            own_us: proc::own_cpu_us(),
        }
    }

    fn since(&self, pids: &[i32]) -> (u64, u64) {
        let now = Self::of(pids);
        (
            now.servers_us.saturating_sub(self.servers_us),
            now.own_us.saturating_sub(self.own_us),
        )
    }
}

/// The value below which `percent` of an ascending list lie; 0 for an empty one.
#[must_use]
pub fn percentile(ascending: &[u32], percent: usize) -> u32 {
    let at = (ascending.len() * percent).div_ceil(100).saturating_sub(1);
    ascending.get(at).copied().unwrap_or(0)
}

/// Milliseconds with three decimals.
#[must_use]
pub fn ms(us: u32) -> f64 {
    f64::from(us) / 1_000.0
}

/// With one decimal.
#[must_use]
pub fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

impl Measured {
    /// Operations per second.
    #[must_use]
    pub fn ops_per_s(&self) -> f64 {
        self.latencies_us.len() as f64 / self.secs as f64
    }

    /// The fields that every result has.
    #[must_use]
    pub fn to_json(&self, op: &str, clients: u32) -> Value {
        let ops = self.latencies_us.len();
        let per_op = |us: u64| rounded(us as f64 / ops.max(1) as f64);
        json!({
            "op": op, "clients": clients, "secs": self.secs, "ops": ops, "ops_per_s": rounded(self.ops_per_s()),
            "p50_ms": ms(percentile(&self.latencies_us, 50)), "p99_ms": ms(percentile(&self.latencies_us, 99)),
            "max_ms": ms(self.latencies_us.last().copied().unwrap_or(0)), "errors": self.errors,
            "server_cpu_us_per_op": per_op(self.server_cpu_us), "client_cpu_us_per_op": per_op(self.client_cpu_us),
            "load_1min": proc::load_1min(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentile_is_a_value_of_the_list() {
        let list: Vec<u32> = (1..=100).collect();
        assert_eq!(
            (percentile(&list, 50), percentile(&list, 99), percentile(&list, 100)),
            (50, 99, 100)
        );
        assert_eq!((percentile(&[7], 50), percentile(&[], 50)), (7, 0));
    }

    #[tokio::test]
    async fn failures_are_counted_and_are_no_latency() {
        let measured = closed_loop(2, 1, &[], |client, _| async move {
            tokio::time::sleep(Duration::from_millis(5)).await;
            if client == 0 { Ok(()) } else { Err("refused".to_owned()) }
        })
        .await
        .unwrap();
        let row = measured.to_json("x", 2);
        assert!(measured.errors["refused"] > 0 && !measured.latencies_us.is_empty());
        assert!(measured.latencies_us.iter().all(|us| *us >= 5_000) && row["p50_ms"].as_f64() >= Some(5.0));
    }
}
