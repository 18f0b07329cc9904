//! What the binary refuses to start with: exit code, and the words that tell what to do.

use std::{fs, net::UdpSocket, os::unix::fs::PermissionsExt, process::Command};

use common::{codec::encode, testing::Fleet, wire::op::ValidatorStatus};

use super::harness::{Operator, Place, V, command, consensus_key, device_key};

const INVALID_INPUT: i32 = 6;
const REFUSED_FOR_SAFETY: i32 = 78;

/// Runs `v1` to its end and checks exit code and words.
#[track_caller]
fn refuses(place: &Place, code: i32, words: &[&str]) {
    let (got, said) = place.run_to_end("v1");
    assert_eq!(got, code, "{said}");
    for part in words {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

/// A place whose `v1` ran and voted.
async fn used() -> Place {
    let place = Place::new();
    runs_until(&place, "above height 1", |status| status.height.0 > 1).await;
    place
}

/// Runs all validators until `v1` is as `is_done` says, and ends them.
async fn runs_until(place: &Place, what: &str, is_done: impl Fn(&ValidatorStatus) -> bool) {
    let running: Vec<_> = V.iter().map(|label| place.spawn(label)).collect();
    Operator::new(place).wait(place, "v1", what, is_done).await;
    for process in running {
        process.terminate().await;
    }
}

#[test]
fn version_and_usage() {
    let version = Command::new(env!("CARGO_BIN_EXE_global-validator"))
        .arg("--version")
        .output()
        .unwrap();
    assert_eq!(version.stdout, b"global-validator 0.1.0\n");
    let usage = Command::new(env!("CARGO_BIN_EXE_global-validator")).output().unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

#[test]
fn unknown_key_and_wrong_unit_in_the_configuration() {
    let place = Place::new();
    let good = place.config("v1");
    fs::write(place.config_path("v1"), format!("colour = \"red\"\n{good}")).unwrap();
    refuses(&place, INVALID_INPUT, &["colour", "line 1"]);
    fs::write(place.config_path("v1"), good.replace("200ms", "200 parsecs")).unwrap();
    refuses(&place, INVALID_INPUT, &["200 parsecs", "250ms"]);
    let missing = command(&place.path("nowhere.toml")).output().unwrap();
    assert_eq!(missing.status.code(), Some(INVALID_INPUT));
}

#[test]
fn missing_and_world_readable_keys() {
    for file in ["device.key", "consensus.key"] {
        let place = Place::new();
        let path = place.path("v1").join(file);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        refuses(&place, INVALID_INPUT, &[file, "0644", "chmod 600"]);
        fs::remove_file(&path).unwrap();
        refuses(&place, INVALID_INPUT, &[file, "there is no key file"]);
    }
}

#[test]
fn key_that_does_not_match_the_certificate() {
    let place = Place::new();
    fs::write(place.path("v1").join("device.pem"), place.certificate("v2")).unwrap();
    refuses(&place, INVALID_INPUT, &["does not match", "device.key", "device.pem"]);
}

#[test]
fn keys_of_another_validator() {
    let place = Place::new();
    let own = place.path("v1");
    fs::remove_file(own.join("consensus.key")).unwrap();
    consensus_key("v2").write_new(&own.join("consensus.key")).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["consensus key", "\"v1\""]);

    let place = Place::new();
    let own = place.path("v1");
    fs::remove_file(own.join("device.key")).unwrap();
    device_key("v2").write_new(&own.join("device.key")).unwrap();
    fs::write(own.join("device.pem"), place.certificate("v2")).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["device key", "\"v1\""]);
}

#[test]
fn missing_malformed_and_foreign_label_in_genesis() {
    let place = Place::new();
    fs::write(place.path("genesis.bin"), b"not a genesis file").unwrap();
    refuses(&place, INVALID_INPUT, &["genesis file", "malformed"]);
    fs::remove_file(place.path("genesis.bin")).unwrap();
    refuses(&place, INVALID_INPUT, &["genesis file", "No such file"]);
    let place = Place::new();
    fs::write(
        place.config_path("v1"),
        place.config("v1").replace("label = \"v1\"", "label = \"v9\""),
    )
    .unwrap();
    refuses(&place, INVALID_INPUT, &["\"v9\"", "not a validator"]);
}

#[test]
fn port_in_use() {
    let place = Place::new();
    let _taken = UdpSocket::bind(("127.0.0.1", place.ports["v1"])).unwrap();
    refuses(&place, INVALID_INPUT, &["in use", &place.ports["v1"].to_string()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_directory_of_another_fleet() {
    let place = used().await;
    // The same devices and keys in a fleet that differs in one number is another fleet.
    let mut genesis = Fleet::new(1, 3, 4).genesis;
    genesis.timing.idle_block_interval_ms += 1;
    fs::write(place.path("genesis.bin"), encode(&genesis)).unwrap();
    let terms = transport::certificate::Terms {
        now_unix_s: place.now_unix_s,
        days: 30,
        serial: [1; 16],
    };
    let fleet = Fleet::from_genesis(genesis);
    let certificate = place
        .ca
        .issue(&fleet.id("v1"), &device_key("v1").public(), &terms)
        .unwrap();
    fs::write(place.path("v1").join("device.pem"), certificate.pem).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["belongs to fleet"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_corrupt_and_restored_guard() {
    let place = used().await;
    let data = place.path("v1").join("data");
    let guard = data.join("guard.journal");
    let good = fs::read(&guard).unwrap();

    // A bit flipped in the first record, with later ones behind it, is damage, not a torn tail.
    let mut flipped = good.clone();
    flipped[40] ^= 1;
    fs::write(&guard, flipped).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["guard.journal is corrupt"]);

    fs::remove_file(&guard).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["guard.journal is missing"]);
    assert!(!guard.exists(), "a refusal makes no new guard");

    // A copy made before a later start does not pass for the original.
    fs::write(&guard, &good).unwrap();
    let others: Vec<_> = V.iter().map(|label| place.spawn(label)).collect();
    let operator = Operator::new(&place);
    operator.wait(&place, "v1", "up", |status| !status.is_listening).await;
    drop(others);
    fs::write(&guard, &good).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["restored from a backup"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_block_store_beside_its_marker_and_damaged_blocks() {
    let place = used().await;
    let blocks = place.path("v1").join("data").join("blocks-000000.seg");
    let first_run_bytes = fs::metadata(&blocks).unwrap().len() as usize;
    // Without a later append the damage would be what a power cut may leave: cut off, not refused.
    runs_until(&place, "its blocks have grown", |_| {
        fs::metadata(&blocks).unwrap().len() as usize > first_run_bytes
    })
    .await;
    let good = fs::read(&blocks).unwrap();
    fs::remove_file(&blocks).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["store blocks is missing"]);
    let mut flipped = good.clone();
    flipped[first_run_bytes / 2] ^= 1;
    fs::write(&blocks, flipped).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["blocks", "corrupt"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_process_on_one_data_directory() {
    let place = Place::new();
    let _first = place.spawn("v1");
    let operator = Operator::new(&place);
    operator.wait(&place, "v1", "up", |_| true).await;
    refuses(&place, INVALID_INPUT, &["data_dir"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restored_directory_hears_its_own_later_votes_and_refuses() {
    let place = used().await;
    let data = place.path("v1").join("data");
    let copy = place.path("copy");
    copy_dir(&data, &copy);
    // It goes on and votes; the others remember.
    let running: Vec<_> = V.iter().map(|label| place.spawn(label)).collect();
    let operator = Operator::new(&place);
    let before = operator
        .wait(&place, "v1", "voting", |status| !status.is_listening)
        .await;
    operator
        .wait(&place, "v1", "further", |status| status.height.0 > before.height.0 + 4)
        .await;
    let mut running = running.into_iter();
    running.next().unwrap().kill();
    fs::remove_dir_all(&data).unwrap();
    copy_dir(&copy, &data);
    // Marker and guard fit each other, as both are of the same backup: only listening finds it out.
    let config = place.config("v1").replace("200ms", "20s");
    fs::write(place.config_path("v1"), config).unwrap();
    refuses(&place, REFUSED_FOR_SAFETY, &["was not signed here"]);
    drop(running);
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
