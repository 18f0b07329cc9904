//! Data directories that an agent must not use: it says why, ends with 78, and leaves every byte as it was.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use common::{
    codec::encode,
    ids::ClusterId,
    task::Scope,
    testing::{Fleet, task},
    wire::{
        cluster::WriteOutcome,
        op::{OpAnswer, OpRequest},
    },
};

use super::harness::{AGENTS, Operator, PATIENCE, Place, Process};

const UNSAFE: i32 = 78;
const PAYLOAD: &[u8] = b"bytes that occur nowhere else";

/// A cluster that has acknowledged one task, and then ended in order.
async fn used_place() -> Place {
    after_use(Place::new()).await
}

/// The same, in a place that was prepared.
async fn after_use(place: Place) -> Place {
    let operator = Operator::connect(&place);
    let running: Vec<Process> = AGENTS.iter().map(|label| place.spawn(label)).collect();
    let leader = operator.leader().await;
    let mut content = task("task-1");
    content.payload = PAYLOAD.to_vec().try_into().unwrap();
    let entry = place.fleet.submit("op1", ClusterId(0), 1, Scope::Cluster, &content);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let answer = operator.ask(&leader, &OpRequest::Enter(entry.clone())).await;
        if let Ok(OpAnswer::Write {
            outcome: WriteOutcome::Committed(_),
            ..
        }) = answer
        {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "not acknowledged: {answer:?}");
    }
    for process in running {
        assert_eq!(process.terminate().await.code(), Some(0));
    }
    place
}

/// Every file below `dir` with its bytes.
fn content(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            found.extend(content(&entry.path()));
        } else if kind.is_file() {
            found.insert(entry.path(), fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// `label` refuses to start with `text`, twice, and nothing in `data` has changed.
fn is_refused_untouched(place: &Place, label: &str, data: &Path, text: &str) {
    let before = content(data);
    for _ in 0..2 {
        let (code, said) = place.run_to_end(label);
        assert!(code == UNSAFE && said.contains(text), "{code}: {said}");
        let after = content(data);
        assert_eq!(
            after.keys().collect::<Vec<_>>(),
            before.keys().collect::<Vec<_>>(),
            "other files"
        );
        let changed: Vec<_> = before.iter().filter(|(path, bytes)| after[*path] != **bytes).collect();
        assert!(
            changed.is_empty(),
            "{:?}",
            changed.iter().map(|(path, _)| path).collect::<Vec<_>>()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn directory_of_another_owner_or_a_newer_release_is_refused_untouched() {
    let place = used_place().await;
    let data = place.path("c1-1/data");
    // Another fleet with the same keys.
    let mut other = Fleet::new(1, 3, 4).genesis;
    other.genesis_time.0 += 1;
    fs::write(place.path("genesis.bin"), encode(&other)).unwrap();
    is_refused_untouched(&place, "c1-1", &data, "belongs to another fleet");
    fs::write(place.path("genesis.bin"), encode(&place.fleet.genesis)).unwrap();
    // The directory of another device of the same cluster.
    let config = place.config("c1-2");
    let foreign = config.replace("data_dir = \"data\"", "data_dir = \"../c1-1/data\"");
    assert_ne!(foreign, config);
    fs::write(place.config_path("c1-2"), foreign).unwrap();
    is_refused_untouched(&place, "c1-2", &data, "belongs to another device");
    // A newer release's, with fields that are not known here.
    let meta = fs::read_to_string(data.join("meta")).unwrap();
    let newer = meta.replace("\"format_version\": 1", "\"new_field\": 5, \"format_version\": 2");
    assert_ne!(newer, meta);
    fs::write(data.join("meta"), newer).unwrap();
    is_refused_untouched(&place, "c1-1", &data, "use the newer release");
    // As it was, it is used.
    fs::write(data.join("meta"), meta).unwrap();
    let running = place.spawn("c1-1");
    let operator = Operator::connect(&place);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while operator.status("c1-1").await.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "{}", place.log("c1-1"));
    }
    assert_eq!(running.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_log_beside_its_marker_is_refused_untouched() {
    let place = used_place().await;
    let data = place.path("c1-1/data");
    fs::remove_dir_all(data.join("log")).unwrap();
    is_refused_untouched(
        &place,
        "c1-1",
        &data,
        "start on an empty one with the next `incarnation`",
    );
    assert!(!data.join("log").exists(), "a log was made");
}

/// The only segment of a small log.
fn segment_of(data: &Path) -> PathBuf {
    data.join("log/0000000000000001.seg")
}

/// End of what is written in a segment.
fn used(segment: &[u8]) -> usize {
    segment
        .iter()
        .rposition(|byte| *byte != 0)
        .expect("something is written")
        + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bit_flipped_anywhere_in_the_log_is_refused_untouched() {
    let place = used_place().await;
    let data = place.path("c1-1/data");
    let whole = fs::read(segment_of(&data)).unwrap();
    // In the first group, in the middle, and in the last group, of which nothing follows.
    for at in [100, used(&whole) / 2, used(&whole) - 600] {
        let bytes = whole.clone();
        let near = (at..).find(|at| bytes[*at] != 0 && bytes[*at] != 0xa5);
        let mut bytes = bytes;
        bytes[near.expect("something is written")] ^= 0x10;
        fs::write(segment_of(&data), bytes).unwrap();
        is_refused_untouched(&place, "c1-1", &data, "the log store is damaged");
    }
    // As it was, it is used.
    fs::write(segment_of(&data), whole).unwrap();
    let running = place.spawn("c1-1");
    let operator = Operator::connect(&place);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while operator.status("c1-1").await.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "{}", place.log("c1-1"));
    }
    assert_eq!(running.terminate().await.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_end_of_the_log_that_is_gone_is_refused_untouched() {
    let place = used_place().await;
    let data = place.path("c1-1/data");
    let mut bytes = fs::read(segment_of(&data)).unwrap();
    let used = used(&bytes);
    bytes[used - used % 512 - 512..].fill(0);
    fs::write(segment_of(&data), &bytes).unwrap();
    is_refused_untouched(&place, "c1-1", &data, "the log was acknowledged up to group");
    // A file that is shorter than it was made is no power cut's work either.
    fs::write(segment_of(&data), &bytes[..used / 2]).unwrap();
    is_refused_untouched(&place, "c1-1", &data, "the log store is damaged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn torn_last_group_is_cut_with_a_warning_and_the_agent_goes_on() {
    let place = used_place().await;
    let data = place.path("c1-1/data");
    let mark = fs::read(data.join("log/END")).unwrap();
    // It writes more, and is killed.
    let running: Vec<Process> = AGENTS.iter().map(|label| place.spawn(label)).collect();
    let operator = Operator::connect(&place);
    operator.leader().await;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while fs::read(data.join("log/END")).unwrap() == mark {
        assert!(tokio::time::Instant::now() < deadline, "{}", place.log("c1-1"));
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    running.into_iter().for_each(Process::kill);
    // As a power cut may leave it: an old mark, and of the last write nothing but the header.
    fs::write(data.join("log/END"), mark).unwrap();
    let mut bytes = fs::read(segment_of(&data)).unwrap();
    let mut sectors = bytes.chunks(512);
    let last = sectors.rposition(|sector| sector.starts_with(b"MLOG"));
    let from = last.expect("groups begin with sectors") * 512 + 64;
    bytes[from..].fill(0);
    fs::write(segment_of(&data), bytes).unwrap();
    let running: Vec<Process> = AGENTS.iter().map(|label| place.spawn(label)).collect();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while operator.status("c1-1").await.is_none() {
        assert!(tokio::time::Instant::now() < deadline, "{}", place.log("c1-1"));
    }
    let log = place.log("c1-1");
    let says = "was not written to its end and was not acknowledged: it is cut off";
    assert!(log.contains(says), "{log}");
    operator.leader().await;
    for process in running {
        assert_eq!(process.terminate().await.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flipped_bit_in_an_entry_acknowledged_by_sled_is_refused_at_every_start() {
    let place = Place::new();
    for label in AGENTS {
        let config = place.config(label) + "[disk]\nlog = \"sled\"\n";
        fs::write(place.config_path(label), config).unwrap();
    }
    let place = after_use(place).await;
    let data = place.path("c1-1/data");
    let path = data.join("log/db");
    let mut bytes = fs::read(&path).unwrap();
    // Every copy that sled has of it.
    let places: Vec<usize> = (0..bytes.len() - PAYLOAD.len())
        .filter(|at| bytes[*at..].starts_with(PAYLOAD))
        .collect();
    assert!(!places.is_empty(), "the entry lies in the log");
    for at in places {
        bytes[at + 3] ^= 0x10;
    }
    fs::write(&path, &bytes).unwrap();
    let names =
        |content: BTreeMap<PathBuf, Vec<u8>>| content.into_keys().filter(|path| !path.starts_with(data.join("log")));
    let before: Vec<_> = names(content(&data)).collect();
    for _ in 0..3 {
        let (code, said) = place.run_to_end("c1-1");
        assert!(
            code == UNSAFE && said.contains("the log store is damaged"),
            "{code}: {said}"
        );
        assert_eq!(
            names(content(&data)).collect::<Vec<_>>(),
            before,
            "files beside the log"
        );
        assert!(path.exists() && data.join("log/REACHED").exists(), "the log is kept");
    }
}
