//! What an agent refuses to start with, and what it says.

use std::{fs, net::UdpSocket, os::unix::fs::PermissionsExt};

use common::{codec::encode, testing::Fleet};

use super::harness::{AGENTS, Operator, Place, command, device_key};

const INVALID: i32 = 6;
const UNSAFE: i32 = 78;

/// Runs `c1-1` after `change` to its configuration file.
fn with_config(change: impl Fn(String) -> String) -> (i32, String) {
    let place = Place::new();
    fs::write(place.config_path("c1-1"), change(place.config("c1-1"))).unwrap();
    place.run_to_end("c1-1")
}

#[test]
fn unknown_key_and_wrong_unit_are_refused() {
    let (code, said) = with_config(|text| text + "hartbeat = \"100ms\"\n");
    assert!(
        code == INVALID && said.contains("unknown field `hartbeat`"),
        "{code}: {said}"
    );
    let (code, said) = with_config(|text| text + "heartbeat = \"100\"\n");
    assert!(
        code == INVALID && said.contains("needs one of the units"),
        "{code}: {said}"
    );
}

#[test]
fn missing_world_readable_and_foreign_keys_are_refused() {
    let place = Place::new();
    let key = place.path("c1-1").join("device.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, said) = place.run_to_end("c1-1");
    assert!(code == INVALID && said.contains("device.key"), "{code}: {said}");
    fs::remove_file(&key).unwrap();
    let (code, said) = place.run_to_end("c1-1");
    assert!(code == INVALID && said.contains("device.key"), "{code}: {said}");
    // A key that does not fit the certificate.
    device_key("c1-2").write_new(&key).unwrap();
    let (code, said) = place.run_to_end("c1-1");
    assert!(
        code == INVALID && said.contains("does not match the certificate"),
        "{code}: {said}"
    );
    // Key and certificate of another device.
    fs::write(place.path("c1-1").join("device.pem"), place.certificate("c1-2")).unwrap();
    let (code, said) = place.run_to_end("c1-1");
    assert!(
        code == INVALID && said.contains("is not the key of \"c1-1\""),
        "{code}: {said}"
    );
    assert!(!place.path("c1-1").join("data").exists(), "nothing was written");
}

#[test]
fn port_in_use_is_refused() {
    let place = Place::new();
    let _taken = UdpSocket::bind(("127.0.0.1", place.ports["c1-1"])).unwrap();
    let (code, said) = place.run_to_end("c1-1");
    assert!(
        code == INVALID && said.contains(&place.ports["c1-1"].to_string()),
        "{code}: {said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn used_directory_refuses_another_fleet_and_lost_files() {
    let place = Place::new();
    let operator = Operator::connect(&place);
    let running: Vec<_> = AGENTS.iter().map(|label| place.spawn(label)).collect();
    operator.leader().await;
    for process in running {
        process.kill();
    }
    // Another genesis file with the same keys: another fleet.
    let mut other = Fleet::new(1, 3, 4).genesis;
    other.genesis_time.0 += 1;
    fs::write(place.path("genesis.bin"), encode(&other)).unwrap();
    let (code, said) = place.run_to_end("c1-1");
    assert!(
        code == UNSAFE && said.contains("belongs to another fleet"),
        "{code}: {said}"
    );
    fs::write(place.path("genesis.bin"), encode(&place.fleet.genesis)).unwrap();
    // A guard that is gone might sign twice.
    fs::remove_file(place.path("c1-1/data/attest-guard")).unwrap();
    let (code, said) = place.run_to_end("c1-1");
    assert!(code == UNSAFE && said.contains("attest-guard"), "{code}: {said}");
    // An empty database beside its marker might vote twice.
    fs::remove_dir_all(place.path("c1-2/data/log")).unwrap();
    let (code, said) = place.run_to_end("c1-2");
    assert!(
        code == UNSAFE && said.contains("is empty, but it once was not"),
        "{code}: {said}"
    );
    fs::remove_file(place.path("c1-3/data/counters")).unwrap();
    let (code, said) = place.run_to_end("c1-3");
    assert!(code == UNSAFE && said.contains("counters"), "{code}: {said}");
}

#[test]
fn version_is_printed() {
    let mut command = command(std::path::Path::new("none"));
    let output = command.arg("--version").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "cluster-agent 0.1.0");
}
