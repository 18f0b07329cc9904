//! What this process took of the machine it runs on: beside the simulation, and none of it flows into a run.

/// Clock ticks in a second, as Linux counts a process's time for everybody (`proc(5)`).
const TICKS_PER_SECOND: f64 = 100.0;

/// Most memory this process had, MiB; 0 where `/proc` does not say.
pub fn rss_mib_peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: Option<u64> = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    kib.unwrap_or(0) / 1_024
}

/// Seconds of processor time that this process used; 0 where `/proc` does not say.
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name in brackets may hold anything; what follows it is counted from field 3.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields
        .skip(11)
        .take(2)
        .filter_map(|ticks| ticks.parse::<u64>().ok())
        .sum();
    ticks as f64 / TICKS_PER_SECOND
}

#[cfg(test)]
mod tests {
    #[test]
    fn this_process_took_something() {
        assert!(super::rss_mib_peak() > 1);
        let mut sum = 0u64;
        while super::cpu_seconds() == 0.0 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}
