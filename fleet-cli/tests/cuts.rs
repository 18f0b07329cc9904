//! Cut links between real processes, with the `fleet` command line: who is cut off stays within the operator's reach, the
//! others go on, and after the heal all is as if nothing had been.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::DevFleet;

/// Polls until `holds`; the limit is far beyond what is needed on a slow machine.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(180);
    while !holds() {
        assert!(Instant::now() < end, "not within 180 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Submits a task of cluster c1's own through `via` until it is acknowledged; returns its id.
#[track_caller]
fn submit(fleet: &DevFleet, key: &str, via: &str) -> String {
    let arguments = [
        "task",
        "submit",
        "--kind",
        "survey",
        "--scope",
        "cluster",
        "--cluster",
        "c1",
    ];
    let mut id = None;
    eventually("the task is acknowledged", || {
        let done = fleet.run(&[&arguments[..], &["--key", key, "--via", via, "-o", "json"]].concat());
        if done.code == 0 {
            id = done.json()["task"].as_str().map(str::to_owned);
        }
        id.is_some()
    });
    id.expect("it was acknowledged")
}

fn agents(fleet: &DevFleet) -> Vec<Value> {
    fleet.json(&["cluster", "status", "c1"]).as_array().unwrap().clone()
}

fn row<'a>(rows: &'a [Value], key: &str, name: &str) -> &'a Value {
    rows.iter().find(|row| row[key] == name).expect("a row of this name")
}

#[test]
fn agent_that_is_cut_off_is_still_asked_the_others_go_on_and_it_catches_up_after_the_heal() {
    let fleet = DevFleet::up(&["--clusters", "1"]);
    submit(&fleet, "before", "c1-1");
    let before = agents(&fleet);
    let cut = before.iter().find(|row| row["role"] == "follower").expect("two follow");
    let name = cut["agent"].as_str().unwrap();
    let others: Vec<&str> = ["c1-1", "c1-2", "c1-3"]
        .into_iter()
        .filter(|other| *other != name)
        .collect();

    let shown = fleet.json(&["dev", "cut", "agent", name]);
    assert_eq!(
        (&shown["cut"], &shown["impaired"]),
        (&12.into(), &0.into()),
        "2 agents, 4 validators, 2 ways"
    );
    for (nth, via) in others.iter().enumerate() {
        submit(&fleet, &format!("during-{nth}"), via);
    }
    let during = agents(&fleet);
    let (own, other) = (row(&during, "agent", name), row(&during, "agent", others[0]));
    assert!(own["applied"].is_number(), "the operator reaches it: {own}");
    assert!(own["applied"].as_u64() < other["applied"].as_u64(), "{own} {other}");
    let status = fleet.json(&["dev", "status"]);
    let status = status.as_array().unwrap();
    assert_eq!(row(status, "name", name)["links"], "cut off");
    assert_eq!(row(status, "name", "v1")["links"], "cut from 1 of 6");
    assert!(row(status, "name", "relay")["relay"]["datagrams"]["cut"].as_u64() > Some(0));

    assert_eq!(fleet.json(&["dev", "heal", name])["cut"], 0);
    let last = submit(&fleet, "after", name);
    eventually("all agents have the same queue", || {
        let rows = agents(&fleet);
        rows.iter()
            .all(|row| row["queue_digest"] == rows[0]["queue_digest"] && row["queue_digest"].is_string())
    });
    eventually("what was submitted is final", || {
        let done = fleet.run(&["task", "get", &last, "-o", "json"]);
        done.code == 0 && done.json()["finality"] == "final"
    });
    let keys: Vec<String> = fleet
        .json(&["task", "list"])
        .as_array()
        .unwrap()
        .iter()
        .map(|row| row["key"].to_string())
        .collect();
    let mut once = keys.clone();
    once.sort();
    once.dedup();
    assert_eq!((keys.len(), once.len()), (4, 4), "{keys:?}");
}

#[test]
fn cluster_cut_from_the_validators_goes_on_and_its_work_is_final_after_the_heal() {
    let fleet = DevFleet::up(&["--clusters", "1"]);
    let shown = fleet.json(&["dev", "cut", "cluster", "c1"]);
    assert_eq!(shown["cut"], 24, "3 agents, 4 validators, 2 ways");
    let ids = [submit(&fleet, "k1", "c1-1"), submit(&fleet, "k2", "c1-2")];
    // The validators go on among themselves, so time passes for the fleet.
    let height = || {
        let rows = fleet.json(&["validator", "status"]);
        rows.as_array()
            .unwrap()
            .iter()
            .filter_map(|row| row["height"].as_u64())
            .max()
    };
    let at_cut = height();
    eventually("two more blocks are final", || {
        height() > at_cut.map(|height| height + 1)
    });
    for id in &ids {
        let task = fleet.json(&["task", "get", id]);
        assert_ne!(
            task["finality"], "final",
            "no batch can have reached a validator: {task}"
        );
    }
    assert_eq!(fleet.json(&["dev", "heal", "c1"])["cut"], 0);
    for id in &ids {
        eventually("it is final", || {
            let done = fleet.run(&["task", "get", id, "-o", "json"]);
            done.code == 0 && done.json()["finality"] == "final"
        });
    }
}

#[test]
fn validators_split_in_halves_finalize_nothing_and_agree_after_the_heal() {
    let fleet = DevFleet::up(&["--clusters", "1"]);
    for one in ["v1", "v2"] {
        for other in ["v3", "v4"] {
            fleet.run(&["dev", "cut", "link", one, other]).ended_with(0);
        }
    }
    let id = submit(&fleet, "k", "c1-1");
    let dropped = || {
        let rows = fleet.json(&["dev", "status"]);
        row(rows.as_array().unwrap(), "name", "relay")["relay"]["datagrams"]["cut"].as_u64()
    };
    let at_first = dropped();
    eventually("they try to reach each other", || {
        dropped() > at_first.map(|count| count + 300)
    });
    let task = fleet.json(&["task", "get", &id]);
    assert_ne!(task["finality"], "final", "half of the weight finalized it: {task}");
    fleet.run(&["dev", "heal"]).ended_with(0);
    eventually("it is final", || {
        let done = fleet.run(&["task", "get", &id, "-o", "json"]);
        done.code == 0 && done.json()["finality"] == "final"
    });
    eventually("all validators have one state", || {
        let done = fleet.run(&["status", "-o", "json"]);
        done.code == 0 && done.json()["global"]["digests_agree"] == true
    });
}

#[test]
fn impaired_links_are_worked_around() {
    let fleet = DevFleet::up(&["--clusters", "1", "--relay-seed", "7"]);
    // The fleet keeps its seed, so another one cannot be had.
    let other = fleet
        .run(&["dev", "up", "--clusters", "1", "--relay-seed", "8"])
        .ended_with(6);
    assert!(other.err.contains("has seed 7, not 8"), "{}", other.err);
    fleet
        .run(&[
            "dev",
            "up",
            "--clusters",
            "1",
            "--relay-seed",
            "7",
            "--deadline",
            "180s",
        ])
        .ended_with(0);
    for word in ["agent", "validator"] {
        let name = if word == "agent" { "c1-1" } else { "v1" };
        let flags = [
            "--loss",
            "10%",
            "--delay",
            "5ms",
            "--jitter",
            "5ms",
            "--reorder",
            "5%",
            "--duplicate",
            "5%",
        ];
        fleet
            .run(&[&["dev", "cut", word, name][..], &flags].concat())
            .ended_with(0);
    }
    let id = submit(&fleet, "k", "c1-2");
    eventually("it is final", || {
        let done = fleet.run(&["task", "get", &id, "-o", "json"]);
        done.code == 0 && done.json()["finality"] == "final"
    });
    let shown = fleet.json(&["dev", "heal"]);
    for fate in ["lost", "doubled", "forwarded"] {
        assert!(shown["datagrams"][fate].as_u64() > Some(0), "{fate}: {shown}");
    }
    assert_eq!(shown["links"], Value::Array(vec![]));
}

#[test]
fn wrong_target_dead_relay_and_a_fleet_without_one_say_what_to_do() {
    let size = ["--clusters", "1", "--agents", "1", "--validators", "1"];
    let fleet = DevFleet::up(&size);
    for wrong in [
        &["agent", "v1"][..],
        &["agent", "c9-9"],
        &["cluster", "c2"],
        &["validator", "c1-1"],
        &["link", "c1-1", "c1-1"],
        &["link", "c1-1", "relay"],
    ] {
        let done = fleet.run(&[&["dev", "cut"], wrong].concat()).ended_with(6);
        assert!(done.err.contains("do:"), "{}", done.err);
    }
    for wrong in [
        &["agent"][..],
        &["fleet", "c1"],
        &["agent", "c1-1", "--loss", "101%"],
        &["agent", "c1-1", "--loss", "30"],
        &["agent", "c1-1", "--delay", "61s"],
        &["agent", "c1-1", "--one-way", "up"],
    ] {
        fleet.run(&[&["dev", "cut"], wrong].concat()).ended_with(2);
    }
    fleet.run(&["dev", "heal", "c2"]).ended_with(6);
    fleet.run(&["dev", "heal", "relay"]).ended_with(6);
    assert_eq!(
        fleet.json(&["dev", "heal"])["links"],
        Value::Array(vec![]),
        "nothing was cut"
    );

    fleet.run(&["dev", "kill", "relay"]).ended_with(0);
    let done = fleet.run(&["dev", "cut", "agent", "c1-1"]).ended_with(4);
    assert!(done.err.contains("fleet dev up"), "{}", done.err);
    fleet.run(&["dev", "up", "--deadline", "180s"]).ended_with(0);
    fleet
        .run(&["dev", "cut", "link", "c1-1", "v1", "--one-way", "out"])
        .ended_with(0);

    let direct = DevFleet::up(&[&size[..], &["--no-relay"]].concat());
    let done = direct.run(&["dev", "cut", "agent", "c1-1"]).ended_with(6);
    assert!(done.err.contains("--no-relay"), "{}", done.err);
    assert_eq!(direct.running().len(), 2);
}
