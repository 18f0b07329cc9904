//! The journey of tasks through real processes, with the `fleet` command line.

mod support;

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use support::{DevFleet, FLEET, build_siblings, running_under};

/// Polls until `holds`; the limit is far beyond what is needed on a slow machine.
#[track_caller]
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(180);
    while !holds() {
        assert!(Instant::now() < end, "not within 180 s: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn submit(fleet: &DevFleet, key: &str) -> String {
    let submit = [
        "task", "submit", "--kind", "delivery", "--key", key, "--local", "1,2", "--wait",
    ];
    fleet.json(&submit)["task"].as_str().expect("a task id").to_owned()
}

#[test]
fn one_task_goes_from_the_operators_hand_to_a_proof_that_verifies_offline() {
    let fleet = DevFleet::up(&["--clusters", "1", "--agents", "1", "--validators", "1"]);
    let id = submit(&fleet, "parcel-1");
    // A beginning of the id is enough.
    assert_eq!(fleet.json(&["task", "get", &id[..8]])["state"], "assigned");
    let claimed = fleet.json(&["task", "claim", &id, "--as", "c1-1"]);
    assert_eq!(
        (&claimed["verdict"], &claimed["fence"]["assignment"]),
        (&"granted".into(), &1.into())
    );
    fleet.run(&["task", "claim", &id, "--as", "c1-1"]).ended_with(5);
    fleet.run(&["task", "start", &id, "--as", "c1-1"]).ended_with(0);
    fleet
        .run(&["task", "complete", &id, "--as", "c1-1", "--reason", "handed over"])
        .ended_with(0);
    fleet.run(&["task", "watch", &id, "--deadline", "180s"]).ended_with(0);
    let history = fleet.json(&["task", "history", &id]);
    let words: Vec<&str> = history
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|event| event["what"].as_str())
        .collect();
    assert_eq!(words, ["submit", "assigned", "claim", "start", "complete"]);

    let genesis = fleet.path("genesis.bin");
    let proof = fleet.home.path().join("p.proof");
    let mut proven = serde_json::Value::Null;
    eventually("the proof shows the completion", || {
        proven = fleet.json(&["task", "prove", &id, "-f", "p.proof"]);
        proven["state"] == "completed"
    });
    fleet.run(&["dev", "down"]).ended_with(0);
    assert_eq!(fleet.running(), Vec::<String>::new());
    let verify = ["task", "verify", "p.proof", "--genesis", genesis.to_str().unwrap()];
    let verified = fleet.json(&verify);
    assert_eq!(
        (&verified["task"], &verified["state"]),
        (&id.as_str().into(), &"completed".into())
    );
    let good = std::fs::read(&proof).unwrap();
    for at in [0, good.len() / 2, good.len() - 1] {
        let mut tampered = good.clone();
        tampered[at] ^= 1;
        std::fs::write(&proof, tampered).unwrap();
        fleet.run(&verify).ended_with(10);
    }
}

#[test]
fn key_is_one_task_and_an_ended_task_stays_ended() {
    let fleet = DevFleet::up(&["--clusters", "1", "--agents", "1", "--validators", "1"]);
    let id = submit(&fleet, "k");
    assert_eq!(submit(&fleet, "k"), id, "same key and content: same task");
    let other = [
        "task", "submit", "--kind", "survey", "--key", "k", "--local", "1,2", "--wait",
    ];
    let done = fleet.run(&other).ended_with(5);
    assert!(done.err.contains(&id), "{}", done.err);
    fleet
        .run(&["task", "cancel", &id, "--reason", "not needed"])
        .ended_with(0);
    eventually("the task is canceled", || {
        fleet.json(&["task", "get", &id])["state"] == "canceled"
    });
    let listed = fleet.json(&["task", "list", "--state", "cancelled"]);
    assert!(listed.as_array().unwrap().iter().any(|task| task["id"] == id.as_str()));
    fleet.run(&["task", "claim", &id, "--as", "c1-1"]).ended_with(5);
    fleet.run(&["task", "get", "ffff"]).ended_with(6);
}

#[test]
fn file_of_tasks_is_submitted_once_however_often_it_is_given() {
    let fleet = DevFleet::up(&["--clusters", "1", "--agents", "1", "--validators", "1"]);
    let line = |n: usize, after: &str| {
        format!(r#"{{"key":"n{n}","kind":"survey","places":[{{"east_m":{n}.5,"north_m":1}}],"after":[{after}]}}"#)
    };
    let mut lines: Vec<String> = (0..40).map(|n| line(n, "")).collect();
    lines.push(line(40, "\"key:n3\""));
    let file = fleet.home.path().join("tasks.jsonl");
    std::fs::write(&file, lines.join("\n")).unwrap();
    let submit = ["task", "submit", "--file", "tasks.jsonl", "-o", "jsonl"];
    let first = fleet.run(&submit).ended_with(0).out;
    assert!(first.lines().last().unwrap().contains("\"acknowledged\":41"), "{first}");
    let again = fleet.run(&submit).ended_with(0).out;
    assert!(again.contains("\"done_before\":41"), "{again}");
    let tasks = || fleet.json(&["task", "list"]).as_array().unwrap().clone();
    eventually("all are final", || {
        tasks().iter().filter(|task| task["finality"] == "final").count() == 41
    });
    assert_eq!(tasks().len(), 41);
    std::fs::write(&file, lines.join("\n") + "\n" + &line(3, "")).unwrap();
    let done = fleet.run(&submit).ended_with(6);
    assert!(done.err.contains("line 42: key"), "{}", done.err);
}

#[test]
fn everything_killed_comes_back_with_what_was_acknowledged() {
    let fleet = DevFleet::up(&["--clusters", "1"]);
    let id = submit(&fleet, "k1");
    fleet.run(&["dev", "kill", "v1", "v2", "c1"]).ended_with(0);
    // The cluster's agents are gone, so nothing can be sent.
    let timeout = ["task", "submit", "--kind", "survey", "--timeout", "3s"];
    fleet.run(&timeout).ended_with(4);
    fleet.run(&["dev", "up", "--deadline", "180s"]).ended_with(0);
    assert_eq!(fleet.running().len(), 8, "3 agents, 4 validators, the relay");
    assert_eq!(fleet.json(&["task", "get", &id])["state"], "assigned");
    fleet.run(&["dev", "kill", "all"]).ended_with(0);
    assert_eq!(fleet.running(), Vec::<String>::new());
    fleet.run(&["status"]).ended_with(4);
    fleet.run(&["dev", "up", "--deadline", "180s"]).ended_with(0);
    eventually("the task is back", || {
        let done = fleet.run(&["task", "get", &id, "-o", "json"]);
        done.code == 0 && done.json()["state"] == "assigned"
    });
    submit(&fleet, "k2");
    fleet.run(&["dev", "restart", "c1-2", "v3"]).ended_with(0);
    let status = fleet.json(&["status"]);
    assert_eq!(status["global"]["digests_agree"], true);
}

#[test]
fn minority_takes_no_write_and_says_so() {
    let fleet = DevFleet::up(&["--clusters", "1"]);
    fleet.run(&["dev", "kill", "c1-1", "c1-2"]).ended_with(0);
    let submit = [
        "task",
        "submit",
        "--kind",
        "survey",
        "--key",
        "k",
        "--timeout",
        "6s",
        "-o",
        "json",
    ];
    let mut refused = None;
    eventually("the last member knows that it is alone", || {
        let done = fleet.run(&submit);
        let is_refused = done.code == 7;
        refused = Some(done);
        is_refused
    });
    let done = refused.unwrap();
    assert!(done.err.contains("no majority"), "{}", done.err);
    assert_eq!(done.out, "", "nothing was acknowledged");
}

#[test]
fn agent_named_with_via_is_the_only_one_that_answers() {
    let fleet = DevFleet::up(&["--clusters", "1"]);
    let led = |wanted: &str| {
        let agents = fleet.json(&["cluster", "status"]);
        let rows = agents.as_array().unwrap().clone();
        rows.iter()
            .any(|row| row["agent"] == wanted && row["role"] == "leader" && row["mode"] == "normal")
    };
    for to in ["c1-2", "c1-3"] {
        // A busy machine may need more than one try.
        eventually("it is handed over", || {
            let handed = fleet.run(&["cluster", "transfer-leader", "c1", "--to", to, "-o", "json"]);
            handed.code == 0 && handed.json()["leader"] == to
        });
        eventually("it leads", || led(to));
    }
    fleet
        .run(&["cluster", "transfer-leader", "c1", "--to", "v1"])
        .ended_with(2);
    let submit = |key: &'static str, via: &'static str| {
        [
            "task",
            "submit",
            "--kind",
            "survey",
            "--key",
            key,
            "--scope",
            "cluster",
            "--via",
            via,
            "--timeout",
            "120s",
            "-o",
            "json",
        ]
    };
    let done = fleet.run(&submit("k1", "c1-1")).ended_with(0).json();
    assert_eq!(
        (&done["via"], &done["mode"]),
        (&"c1-1".into(), &"normal".into()),
        "{done}"
    );
    let id = done["task"].as_str().unwrap().to_owned();
    let row = fleet.json(&["task", "get", &id, "--via", "c1-1", "--consistency", "linearizable"]);
    assert_eq!(
        (&row["read"]["from"], &row["read"]["consistency"]),
        (&"c1-1".into(), &"linearizable".into())
    );
    // The others are gone: the one that is asked says so, and nobody else is asked.
    fleet.run(&["dev", "kill", "c1-2", "c1-3"]).ended_with(0);
    eventually("it knows that it is alone", || {
        fleet.json(&["task", "get", &id, "--via", "c1-1"])["read"]["mode"] == "read_only"
    });
    let begun = Instant::now();
    let refused = fleet.run(&submit("k2", "c1-1")).ended_with(7);
    assert!(
        refused.err.contains("no majority") && refused.out.is_empty(),
        "{}",
        refused.err
    );
    assert!(
        begun.elapsed() < Duration::from_secs(90),
        "it does not wait for its timeout"
    );
    fleet
        .run(&["task", "get", &id, "--via", "c1-1", "--consistency", "linearizable"])
        .ended_with(7);
    fleet
        .run(&["task", "list", "--via", "c1-1", "--max-staleness", "1ms"])
        .ended_with(9);
    fleet.run(&["task", "list", "--via", "c1-2"]).ended_with(4);
    fleet.run(&["task", "list", "--via", "v1"]).ended_with(6);
    fleet.run(&["cluster", "transfer-leader", "c1"]).ended_with(7);
    let status = fleet.json(&["cluster", "status"]);
    let alone = &status.as_array().unwrap()[0];
    assert_eq!((&alone["agent"], &alone["mode"]), (&"c1-1".into(), &"read_only".into()));
    assert!(alone["mode_age_ms"].is_u64());
}

#[test]
fn buffered_submission_survives_kill_nine_and_becomes_final_once() {
    let fleet = DevFleet::up(&["--clusters", "1"]);
    submit(&fleet, "before");
    fleet.run(&["dev", "kill", "c1-2", "c1-3"]).ended_with(0);
    let read = |id: &str| fleet.json(&["task", "get", id, "--via", "c1-1"]);
    eventually("it knows that it is alone", || {
        let listed = fleet.json(&["task", "list", "--via", "c1-1"]);
        listed
            .as_array()
            .unwrap()
            .first()
            .is_some_and(|task| task["read"]["mode"] == "read_only")
    });
    let buffer = [
        "task", "submit", "--kind", "survey", "--key", "kept", "--buffer", "--via", "c1-1", "-o", "json",
    ];
    let kept = fleet.run(&buffer).ended_with(0).json();
    assert_eq!(
        (&kept["finality"], &kept["mode"]),
        (&"buffered".into(), &"read_only".into()),
        "{kept}"
    );
    let id = kept["task"].as_str().unwrap().to_owned();
    assert_eq!(read(&id)["finality"], "buffered");
    fleet.run(&["dev", "kill", "c1-1"]).ended_with(0);
    fleet.run(&["dev", "up", "--deadline", "180s"]).ended_with(0);
    eventually("it is final", || {
        let done = fleet.run(&["task", "get", &id, "-o", "json"]);
        done.code == 0 && done.json()["finality"] == "final"
    });
    let status = fleet.json(&["cluster", "status"]);
    assert!(
        status
            .as_array()
            .unwrap()
            .iter()
            .all(|agent| agent["buffer_entries"] == 0),
        "{status}"
    );
    let history = fleet.json(&["task", "history", &id]);
    let submits = history
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["what"] == "submit");
    assert_eq!(submits.count(), 1);
}

#[test]
fn interrupted_demo_leaves_no_process_behind() {
    build_siblings();
    let home = tempfile::Builder::new().prefix("ft").tempdir().unwrap();
    let mut demo = Command::new(FLEET)
        .args(["demo", "--dir", "demo"])
        .current_dir(home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the demo has started its fleet", || {
        running_under(home.path()).len() == 14
    });
    let pid = rustix::process::Pid::from_raw(demo.id() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = demo.wait().unwrap();
    assert!(!status.success());
    assert_eq!(running_under(home.path()), Vec::<String>::new());
}
