//! What processes cost, from `/proc` (proc(5)).

use std::fs;

/// Microseconds per clock tick of `/proc/<pid>/stat`: the kernel's USER_HZ is 100 on every architecture we run on.
const US_PER_TICK: u64 = 10_000;

/// User and system time used so far, microseconds; 0 for a process that is gone.
#[must_use]
pub fn cpu_us(pid: i32) -> u64 {
    cpu_of(&fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default()).unwrap_or(0)
}

/// The same of this process.
#[must_use]
pub fn own_cpu_us() -> u64 {
    cpu_of(&fs::read_to_string("/proc/self/stat").unwrap_or_default()).unwrap_or(0)
}

/// Fields 14 and 15; the name in between may hold anything.
fn cpu_of(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.get(stat.rfind(')')? + 1..)?.split_whitespace().collect();
    let ticks: u64 = fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
    Some(ticks * US_PER_TICK)
}

/// Resident memory, KiB; 0 for a process that is gone.
#[must_use]
pub fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

/// Processes that wanted to run, mean of the last minute: what else went on here.
#[must_use]
pub fn load_1min() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace()
        .next()
        .and_then(|load| load.parse().ok())
        .unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_behind_a_name_of_any_kind() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194560 100 0 0 0 12 3 0 0 20 0 1 0 100 1 1";
        assert_eq!(cpu_of(stat), Some(150_000));
        assert_eq!(cpu_of("7 (x) S 1"), None);
        assert!(resident_kib(std::process::id() as i32) > 0);
    }
}
