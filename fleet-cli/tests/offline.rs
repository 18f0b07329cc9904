//! What `fleet` does without any other process: input that is wrong, keys, genesis files, self-test.

mod support;

use std::{os::unix::fs::PermissionsExt, path::Path};

use support::fleet;

const WORKLOAD: &str = r#"{"static_info":{"problem":"dpdptw","planing_horizon":240},"requests":[
    {"id":1,"arrival_time":0.5,"pickup_service_time":5,"pickup_lower_tw":24.5,"pickup_upper_tw":161.25,
     "delivery_service_time":5,"delivery_lower_tw":168.5,"delivery_upper_tw":240,
     "pickup_location":{"x_coord":1.5,"y_coord":3.5},"delivery_location":{"x_coord":1.5,"y_coord":4.5}},
    {"id":2,"arrival_time":0.5,"pickup_service_time":5,"pickup_lower_tw":24,"pickup_upper_tw":161,
     "delivery_service_time":5,"delivery_lower_tw":168,"delivery_upper_tw":200,
     "pickup_location":{"x_coord":1.5,"y_coord":3.5},"delivery_location":{"x_coord":1.5,"y_coord":4.5}}]}"#;

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn bad_workload_is_refused_by_field_and_request_before_anything_starts() {
    let home = home();
    for (from, to, words) in [
        ("dpdptw", "vrp", "static_info: problem"),
        (r#""id":2"#, r#""id":1"#, "request 1: id"),
        (
            r#""pickup_lower_tw":24,"#,
            r#""pickup_lower_tw":162,"#,
            "request 2: pickup_lower_tw",
        ),
        (
            r#""x_coord":1.5"#,
            r#""x_coord":NaN"#,
            "request 1: pickup_location.x_coord",
        ),
    ] {
        std::fs::write(home.path().join("w.json"), WORKLOAD.replacen(from, to, 1)).unwrap();
        let done = fleet(home.path(), &["demo", "--workload", "w.json", "--dir", "demo"]).ended_with(6);
        assert!(done.err.contains(words), "{}", done.err);
        assert!(!home.path().join("demo").exists(), "something was made");
    }
    fleet(home.path(), &["demo", "--workload", "missing.json"]).ended_with(6);
}

#[test]
fn wrong_command_line_ends_with_2_and_a_missing_context_with_6() {
    let home = home();
    for wrong in [
        &["fly"][..],
        &["task", "submit"],
        &["task", "submit", "--kind", "fly"],
        &["task", "submit", "--kind", "survey", "--place", "91,0"],
        &["task", "submit", "--kind", "survey", "--local", "NaN,0"],
        &["task", "submit", "--kind", "survey", "--ttl", "10"],
        &["task", "list", "--state", "lost"],
        &["dev", "up", "--agents", "2"],
        &["dev", "up", "--validators", "3"],
        &["demo", "--requests", "299"],
    ] {
        fleet(home.path(), wrong).ended_with(2);
    }
    for no_context in [
        &["status"][..],
        &["task", "list"],
        &["block", "list"],
        &["dev", "down"],
        &["dev", "status"],
    ] {
        let done = fleet(home.path(), no_context).ended_with(6);
        assert!(done.err.contains("dev up"), "does not say what to do: {}", done.err);
    }
    let done = fleet(home.path(), &["status", "-o", "json"]).ended_with(6);
    let error: serde_json::Value = serde_json::from_str(&done.err).expect("scripts get JSON");
    assert_eq!(error["error"]["exit"], 6);
}

#[test]
fn context_with_an_unknown_key_or_another_fleets_genesis_is_refused() {
    let home = home();
    std::fs::write(home.path().join("fleet.toml"), "genesis = \"g\"\ncolour = 1\n").unwrap();
    let done = fleet(home.path(), &["--context", "fleet.toml", "status"]).ended_with(6);
    assert!(done.err.contains("colour"), "{}", done.err);
}

fn make_fleet(home: &Path) {
    fleet(home, &["ca", "init", "--fleet", "field-1", "--out", "ca"]).ended_with(0);
    fleet(
        home,
        &[
            "ca",
            "genesis",
            "ca/genesis-draft.toml",
            "--make-keys",
            "--out",
            "genesis.bin",
        ],
    )
    .ended_with(0);
}

#[test]
fn authority_genesis_file_and_certificate_are_made_and_never_replaced() {
    let home = home();
    make_fleet(home.path());
    let mode = |name: &str| std::fs::metadata(home.path().join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("ca/ca.key"), mode("ca/op1.key")), (0o600, 0o600));
    let key = std::fs::read(home.path().join("ca/ca.key")).unwrap();
    fleet(home.path(), &["ca", "init", "--fleet", "field-1", "--out", "ca"]).ended_with(78);
    fleet(
        home.path(),
        &["ca", "genesis", "ca/genesis-draft.toml", "--out", "genesis.bin"],
    )
    .ended_with(78);
    assert_eq!(std::fs::read(home.path().join("ca/ca.key")).unwrap(), key);
    let sign = |label, out| {
        let sign = [
            "ca",
            "sign",
            label,
            "--genesis",
            "genesis.bin",
            "--ca-key",
            "ca/ca.key",
            "--out",
            out,
        ];
        fleet(home.path(), &sign)
    };
    sign("op1", "op1.pem").ended_with(0);
    let pem = std::fs::read_to_string(home.path().join("op1.pem")).unwrap();
    assert!(pem.starts_with("-----BEGIN CERTIFICATE-----"), "{pem}");
    let done = sign("nobody", "nobody.pem").ended_with(6);
    assert!(done.err.contains("nobody"), "{}", done.err);
    sign("op1", "op1.pem").ended_with(78);
}

#[test]
fn key_that_others_can_read_and_another_authoritys_key_sign_nothing() {
    let home = home();
    make_fleet(home.path());
    fleet(home.path(), &["ca", "init", "--fleet", "field-1", "--out", "other"]).ended_with(0);
    let sign = |key| {
        let sign = [
            "ca",
            "sign",
            "op1",
            "--genesis",
            "genesis.bin",
            "--ca-key",
            key,
            "--out",
            "op1.pem",
        ];
        fleet(home.path(), &sign)
    };
    let done = sign("other/ca.key").ended_with(6);
    assert!(done.err.contains("not in the genesis file"), "{}", done.err);
    let path = home.path().join("ca/ca.key");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let done = sign("ca/ca.key").ended_with(6);
    assert!(done.err.contains("chmod 600"), "{}", done.err);
    assert!(!home.path().join("op1.pem").exists());
}

#[test]
fn file_that_is_no_proof_ends_with_10_and_one_that_is_no_genesis_with_6() {
    let home = home();
    make_fleet(home.path());
    std::fs::write(home.path().join("p.proof"), b"nothing").unwrap();
    fleet(home.path(), &["task", "verify", "p.proof", "--genesis", "genesis.bin"]).ended_with(10);
    fleet(home.path(), &["task", "verify", "p.proof", "--genesis", "p.proof"]).ended_with(6);
    fleet(home.path(), &["task", "verify", "missing", "--genesis", "genesis.bin"]).ended_with(6);
}

#[test]
fn self_test_passes_and_completions_name_the_verbs() {
    let home = home();
    let checks = fleet(home.path(), &["selftest", "-o", "json"]).ended_with(0).json();
    assert!(checks.as_array().is_some_and(|checks| checks.len() >= 5), "{checks}");
    let script = fleet(home.path(), &["completion", "bash"]).ended_with(0).out;
    for verb in ["submit", "prove", "restart", "selftest"] {
        assert!(script.contains(verb), "{verb} is not completed");
    }
}
