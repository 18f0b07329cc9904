use std::fs;

use common::{codec::encode, testing::Fleet};

use super::*;

const GOOD: &str = r#"
genesis = "genesis.bin"
label = "c1-1"
cluster = "c1"
key = "key.pem"
certificate = "cert.pem"
data_dir = "data"
listen = "127.0.0.1:41001"

[[peer]]
label = "c1-2"
address = "127.0.0.1:41002"

[[peer]]
label = "v1"
address = "127.0.0.1:42001"

[link]
profile = "dev"
heartbeat = "150ms"

[limits]
outbox_bytes = "1MiB"
"#;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("genesis.bin"), encode(&Fleet::dev().genesis)).unwrap();
        Self(dir)
    }

    fn load(&self, text: &str) -> Result<AgentConfig, ConfigErrors> {
        let path = self.0.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        AgentConfig::load(&path)
    }

    fn problems(&self, text: &str) -> Vec<String> {
        self.load(text).unwrap_err().problems
    }
}

#[test]
fn good_file_is_read_with_paths_beside_it() {
    let dir = Dir::new();
    let config = dir.load(GOOD).unwrap();
    let fleet = Fleet::dev();
    assert_eq!((config.device, config.cluster), (fleet.idx("c1-1"), ClusterId(0)));
    assert_eq!(config.data_dir, dir.0.path().join("data"));
    assert_eq!(
        config.peers.iter().map(|(id, _)| *id).collect::<Vec<_>>(),
        [fleet.id("c1-2"), fleet.id("v1")]
    );
    assert_eq!(
        (config.raft.heartbeat_ms, config.raft.election_timeout_ms_max),
        (150, 600)
    );
    assert_eq!(config.limits.outbox_bytes_max, 1 << 20);
}

#[test]
fn incarnation_is_one_unless_a_data_directory_was_lost() {
    let dir = Dir::new();
    assert_eq!(dir.load(GOOD).unwrap().incarnation, 1);
    let second = GOOD.replace("listen =", "incarnation = 2\nlisten =");
    assert_eq!(dir.load(&second).unwrap().incarnation, 2);
    for wrong in ["0", "8193"] {
        let problems = dir.problems(&second.replace("= 2\n", &format!("= {wrong}\n")));
        assert!(
            problems[0].contains(&format!("incarnation {wrong} must be from 1")),
            "{problems:?}"
        );
    }
}

#[test]
fn unknown_key_is_refused_by_name() {
    let problems = Dir::new().problems(&GOOD.replace("heartbeat =", "hartbeat ="));
    assert!(problems[0].contains("unknown field `hartbeat`"), "{problems:?}");
}

#[test]
fn number_without_unit_and_wrong_unit_are_refused() {
    let bare = Dir::new().problems(&GOOD.replace("\"150ms\"", "150"));
    assert!(bare[0].contains("a text with a unit"), "{bare:?}");
    let wrong = Dir::new().problems(&GOOD.replace("\"1MiB\"", "\"1mb\""));
    assert_eq!(
        wrong,
        ["limits.outbox_bytes: \"1mb\" needs one of the units B, KiB, MiB, GiB"]
    );
}

#[test]
fn every_problem_is_listed_with_both_keys_and_values() {
    let text = GOOD
        .replace("127.0.0.1:41002", "nowhere")
        .replace("\"v1\"", "\"c1-2\"")
        .replace("150ms", "400ms")
        .replace("1MiB", "1KiB")
        .replace("cluster = \"c1\"", "cluster = \"c2\"");
    let problems = Dir::new().problems(&text);
    assert_eq!(
        problems,
        [
            "cluster: \"c2\", but the genesis file puts \"c1-1\" into cluster \"c1\"",
            "peer \"c1-2\" address: \"nowhere\" is not an address such as \"127.0.0.1:41001\"",
            "peer: \"c1-2\" appears twice",
            "election_timeout_ms_min 300 must be at least 2 * heartbeat_ms 800",
            "limits.outbox_bytes 1024 B must be at least 393216 B (four batches)",
        ]
    );
}

#[test]
fn bounds_of_snapshots_and_state_are_read_and_checked() {
    let keys = "[limits]\nsnapshot_entries = 20\nsnapshot_entries_kept = 5\nsnapshot_bytes = \"64KiB\"\n\
                snapshot_bytes_kept = \"32KiB\"\nopen_tasks = 1000\nstate_bytes = \"1MiB\"\n";
    let config = Dir::new().load(&GOOD.replace("[limits]\n", keys)).unwrap();
    assert_eq!(
        (config.raft.snapshot_entries, config.raft.snapshot_entries_kept),
        (20, 5)
    );
    assert_eq!(
        (config.raft.snapshot_bytes, config.raft.snapshot_bytes_kept),
        (64 << 10, 32 << 10)
    );
    assert_eq!(
        (config.limits.open_tasks_max, config.limits.state_bytes_max),
        (1_000, 1 << 20)
    );
    let config = Dir::new()
        .load(&GOOD.replace("[limits]\n", "[disk]\nlog_bytes = \"2MiB\"\n[limits]\n"))
        .unwrap();
    assert_eq!(config.log_bytes_max, 2 << 20);
    assert_eq!(config.log_kind, LogKind::Segments, "unless the file says otherwise");
    let config = Dir::new()
        .load(&GOOD.replace("[limits]\n", "[disk]\nlog = \"sled\"\n[limits]\n"))
        .unwrap();
    assert_eq!(config.log_kind, LogKind::Sled);
    let problems = Dir::new().problems(&GOOD.replace("[limits]\n", "[disk]\nlog = \"redb\"\n[limits]\n"));
    assert!(problems[0].contains("unknown variant `redb`"), "{problems:?}");
    let problems = Dir::new().problems(&GOOD.replace("[limits]\n", "[limits]\nstate_bytes = \"3GiB\"\n"));
    assert!(
        problems[0].starts_with("limits.state_bytes 3221225472 B must be at most 2147483648 B"),
        "{problems:?}"
    );
}

#[test]
fn measurements_are_read_and_what_does_not_fit_the_heartbeat_is_refused() {
    let dir = Dir::new();
    let with = |rtt: &str, fsync: &str| {
        let link = GOOD.replace("[limits]", &format!("rtt_p999 = \"{rtt}\"\n\n[limits]"));
        dir.load(&format!("{link}\n[disk]\nfsync_p99 = \"{fsync}\"\n"))
    };
    let raft = with("30ms", "45ms").unwrap().raft;
    assert_eq!((raft.rtt_ms_p999, raft.fsync_ms_p99), (30, 45));
    let refused = with("31ms", "45ms").unwrap_err();
    assert_eq!(
        refused.problems,
        ["heartbeat_ms 150 must be at least 2 * (rtt_ms_p999 + fsync_ms_p99) 152"]
    );
}

#[test]
fn device_of_another_fleet_or_kind_is_refused() {
    let stranger = Dir::new().problems(&GOOD.replace("label = \"c1-1\"", "label = \"c9-1\""));
    assert!(
        stranger[0].starts_with("label: \"c9-1\" is no device of the genesis file"),
        "{stranger:?}"
    );
    let validator = Dir::new().problems(&GOOD.replace("label = \"c1-1\"", "label = \"v2\""));
    assert_eq!(
        validator[0],
        "label: \"v2\" is no drone but a Validator in the genesis file"
    );
    let foreign = Dir::new().problems(&GOOD.replace("\"c1-2\"", "\"c2-1\""));
    assert_eq!(
        foreign,
        ["peer: \"c2-1\" is neither a validator nor a member of this cluster"]
    );
}

#[test]
fn missing_or_damaged_genesis_is_named() {
    let dir = Dir::new();
    fs::write(dir.0.path().join("genesis.bin"), b"not a genesis file").unwrap();
    assert!(dir.problems(GOOD)[0].contains("is not a genesis file"));
    fs::remove_file(dir.0.path().join("genesis.bin")).unwrap();
    assert!(dir.problems(GOOD)[0].contains("cannot be read"));
}

#[test]
fn shipped_example_is_valid_and_says_the_defaults() {
    let dir = Dir::new();
    let example = include_str!("../../../configs/agent.toml");
    let config = dir.load(example).unwrap();
    let defaults = RaftConfig {
        cluster_name: "c1-1".into(),
        ..RaftConfig::for_profile(crate::raft::LinkProfile::Mesh)
    };
    assert_eq!(config.raft, defaults);
    assert_eq!(config.limits, Limits::for_raft(&defaults));
}

#[test]
fn batches_of_slow_links_stay_open_for_longer() {
    let interval_ms = |profile| {
        Limits::for_raft(&RaftConfig::for_profile(profile))
            .batch_interval
            .as_millis()
    };
    use crate::raft::LinkProfile::{Dev, Lan, Mesh, Satcom};
    assert_eq!([Lan, Dev, Mesh, Satcom].map(interval_ms), [20, 40, 400, 1_800]);
}
