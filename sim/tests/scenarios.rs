//! Every story in `configs/scenarios`, once. The long one is shortened here; `sim run --scenario` has its whole length.

use sim::{run::run_scenario, scenario::Scenario};

/// Virtual seconds that a story may last here; what comes later in it is cut.
const SECS_MAX: u64 = 60;

fn scenarios() -> Vec<(String, Scenario)> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    paths.sort();
    let read = |path: std::path::PathBuf| {
        let scenario = Scenario::from_toml(&std::fs::read_to_string(&path).unwrap()).unwrap();
        (path.display().to_string(), scenario)
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn every_story_ends_well() {
    for (path, mut scenario) in scenarios() {
        scenario.secs = scenario.secs.min(SECS_MAX);
        for fault in &mut scenario.faults {
            fault.lasts_ms = fault.lasts_ms.min(scenario.secs * 1_000 - fault.at_ms);
        }
        let report = run_scenario(&scenario, 1);
        assert_eq!(report.violation, None, "{path}: {:#?}", report.processes);
        assert_eq!(report.faults.len(), scenario.faults.len(), "{path}");
        assert!(report.tasks_acked > 10, "{path} shows nothing");
        assert_eq!(report.tasks_final, report.tasks_acked, "{path}");
    }
}
