//! Every story in `configs/scenarios`, once, from its beginning to its end.

use std::{collections::BTreeSet, path::PathBuf};

use sim::{run::run_scenario, scenario::Scenario};

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/scenarios"))
}

#[track_caller]
fn ends_well(name: &str) {
    let text = std::fs::read_to_string(folder().join(name)).unwrap();
    let scenario = Scenario::from_toml(&text).unwrap();
    let report = run_scenario(&scenario, 1);
    assert_eq!(report.violation, None, "{:#?}", report.processes);
    assert_eq!(report.faults.len(), scenario.faults.len());
    assert!(report.tasks_acked > 10, "{name} shows nothing");
    assert_eq!(report.tasks_final, report.tasks_acked);
}

/// A test for each story, and the list of them.
macro_rules! stories {
    ($($test:ident: $file:literal,)+) => {
        const STORIES: &[&str] = &[$($file),+];

        $(
            #[test]
            fn $test() {
                ends_well($file);
            }
        )+
    };
}

stories! {
    booted_in_1970: "booted-in-1970.toml",
    city_cut_off: "city-cut-off.toml",
    disk_full: "disk-full.toml",
    falls_apart: "falls-apart.toml",
    frozen_leader: "frozen-leader.toml",
    ground_station_burns_down: "ground-station-burns-down.toml",
    ground_station_withholds: "ground-station-withholds.toml",
    ground_stations_apart: "ground-stations-apart.toml",
    hacked_ground_station: "hacked-ground-station.toml",
    hacked_lead_drone: "hacked-lead-drone.toml",
    lead_drone_shot_down: "lead-drone-shot-down.toml",
    one_ear_deaf: "one-ear-deaf.toml",
    poisoned_snapshot: "poisoned-snapshot.toml",
    power_cycle: "power-cycle.toml",
    radio_shadow: "radio-shadow.toml",
    rush_hour: "rush-hour.toml",
    sd_card_dies: "sd-card-dies.toml",
    sd_card_replaced: "sd-card-replaced.toml",
    sd_card_rots: "sd-card-rots.toml",
    thin_radio: "thin-radio.toml",
    two_stations_one_key: "two-stations-one-key.toml",
}

#[test]
fn each_story_of_the_folder_has_its_test() {
    let files: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(files, STORIES.iter().map(|&name| name.to_owned()).collect());
}

/// What is missing in a story of two clusters with these lines, which end in a fault or an enemy.
fn missing(secs: u64, lines: &str) -> Option<String> {
    let head = "title = \"t\"\nstory = \"s\"\nclusters = 2\nagents = 3\nvalidators = 4\nwrite_every_ms = 500";
    let scenario = Scenario::from_toml(&format!("{head}\nsecs = {secs}\n{lines}")).unwrap();
    let violation = run_scenario(&scenario, 1).violation?;
    assert_eq!(violation.checker, "expectation", "{violation}");
    Some(violation.what)
}

#[test]
fn enemy_that_gets_hold_of_nobody_is_missed() {
    let withholder = "[[enemy]]\nwho = \"v3\"\nactor = \"withholder\"\n";
    let poisoner = "[[enemy]]\nwho = \"leader c1\"\nactor = \"poisoner\"\n";
    assert_eq!(missing(1, withholder), None);
    // Leaders are taken from the third second on.
    for expect in ["", "[expect]\ndeeds_min = 1\n"] {
        let what = missing(1, &format!("{expect}{withholder}{poisoner}")).expect("nobody led yet");
        assert!(what.contains("in their hands: 1, at least 2 expected"), "{what}");
    }
}

#[test]
fn island_is_a_cluster_that_falls_behind_and_works_on() {
    let cut = |who: &str| {
        let expect = "[expect]\nisland_ms_min = 5000\nisland_tasks_min = 5\n";
        let fault = format!("[[fault]]\nat_ms = 3000\nlasts_ms = 17000\nkind = \"from_validators\"\nwho = [\"{who}\"]");
        missing(20, &format!("{expect}{fault}"))
    };
    assert_eq!(cut("c1"), None);
    // With everybody cut off none is behind another, but for the moment in which they come back.
    let what = cut("agents").expect("no island");
    assert!(what.contains("milliseconds as an island"), "{what}");
}
