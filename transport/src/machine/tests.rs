//! Clock, disk and journal on the real machine. Damage is made by writing into the files.

use std::{
    fs,
    io::{self, ErrorKind},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
};

use tempfile::TempDir;

use super::{journal::JOURNAL_RECORD_BYTES_MAX, *};
use crate::ports::{Clock as _, Disk as _, Entropy as _, Journal, Spawner as _};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(future)
}

fn disk() -> (TempDir, MachineDisk) {
    let directory = tempfile::tempdir().unwrap();
    let disk = MachineDisk::open(&directory.path().join("data")).unwrap();
    (directory, disk)
}

fn append(journal: &mut Box<dyn Journal>, records: &[&[u8]]) -> io::Result<Vec<u64>> {
    block_on(journal.append(records.iter().map(|record| record.to_vec()).collect()))
}

fn bytes_of(records: &[(u64, Vec<u8>)]) -> Vec<&[u8]> {
    records.iter().map(|(_, record)| &record[..]).collect()
}

/// A journal `j` with appends `[a]`, `[bb, ccc]`, `[dddd]`, closed. Returns its path and the offsets.
fn written(disk: &MachineDisk) -> (PathBuf, Vec<u64>) {
    let (mut journal, records) = disk.open_journal("j").unwrap();
    assert!(records.is_empty());
    let mut offsets = append(&mut journal, &[b"a"]).unwrap();
    offsets.extend(append(&mut journal, &[b"bb", b"ccc"]).unwrap());
    offsets.extend(append(&mut journal, &[b"dddd"]).unwrap());
    (disk.path().join("j"), offsets)
}

fn reopened(disk: &MachineDisk) -> Vec<Vec<u8>> {
    let (_, records) = disk.open_journal("j").unwrap();
    records.into_iter().map(|(_, record)| record).collect()
}

fn flip(path: &PathBuf, at: u64) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at as usize] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn clock_never_goes_back_and_wall_is_of_this_century() {
    let clock = MachineClock::new();
    let mut last = clock.now();
    for _ in 0..100_000 {
        let now = clock.now();
        assert!(now >= last);
        last = now;
    }
    assert!(clock.wall().0 > 1_600_000_000_000_000);
    // Two clocks of one machine are the same clock.
    assert!(MachineClock::new().now().us.abs_diff(clock.now().us) < 1_000_000);
}

#[test]
fn entropy_differs_between_generators_and_stays_below_its_end() {
    let (a, b) = (MachineEntropy::new(), MachineEntropy::new());
    let draw = |entropy: &MachineEntropy| [entropy.next_u64(), entropy.next_u64()];
    assert_ne!(draw(&a), draw(&b));
    assert!((0..1_000).all(|_| a.below(7) < 7));
}

#[tokio::test]
async fn panic_of_a_task_ends_that_task_only() {
    let spawner = TokioSpawner::new(tokio::runtime::Handle::current(), OnPanic::Log);
    let (sender, receiver) = tokio::sync::oneshot::channel();
    spawner.spawn("bad", Box::pin(async { panic!("as asked") }));
    spawner.spawn("good", Box::pin(async move { sender.send(7).unwrap() }));
    assert_eq!(receiver.await, Ok(7));
}

#[test]
fn small_file_is_replaced_whole_and_removed() {
    let (_guard, disk) = disk();
    assert_eq!(disk.read("meta").unwrap(), None);
    block_on(disk.replace("meta", b"one".to_vec())).unwrap();
    block_on(disk.replace("meta", b"two".to_vec())).unwrap();
    assert_eq!(disk.read("meta").unwrap().unwrap(), b"two");
    let mode = fs::metadata(disk.path().join("meta")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(fs::metadata(disk.path()).unwrap().permissions().mode() & 0o777, 0o700);
    block_on(disk.remove("meta")).unwrap();
    block_on(disk.remove("meta")).unwrap();
    assert_eq!(disk.read("meta").unwrap(), None);
}

#[test]
fn list_shows_files_by_prefix_and_nothing_unfinished() {
    let (_guard, disk) = disk();
    for name in ["seg-2", "seg-1", "other"] {
        block_on(disk.replace(name, Vec::new())).unwrap();
    }
    drop(disk.open_journal("seg-3").unwrap());
    fs::write(disk.path().join("seg-4.unfinished"), b"half").unwrap();
    fs::create_dir(disk.path().join("seg-5")).unwrap();
    assert_eq!(disk.list("seg-").unwrap(), ["seg-1", "seg-2", "seg-3"]);
    assert_eq!(disk.list("").unwrap(), ["other", "seg-1", "seg-2", "seg-3"]);
}

#[test]
fn second_holder_of_a_directory_is_refused_with_the_likely_cause() {
    let (_guard, disk) = disk();
    let error = MachineDisk::open(disk.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::WouldBlock);
    let text = error.to_string();
    assert!(
        text.contains("held by another process") && text.contains("data_dir"),
        "{text}"
    );
    // A journal holds the directory too.
    let (path, (journal, _)) = (disk.path().to_owned(), disk.open_journal("j").unwrap());
    drop(disk);
    assert!(MachineDisk::open(&path).is_err());
    drop(journal);
    assert!(MachineDisk::open(&path).is_ok());
}

#[test]
fn journal_returns_its_records_after_reopening() {
    let (_guard, disk) = disk();
    let (_, offsets) = written(&disk);
    let (journal, records) = disk.open_journal("j").unwrap();
    assert_eq!(bytes_of(&records), [&b"a"[..], b"bb", b"ccc", b"dddd"]);
    assert_eq!(records.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), offsets);
    assert_eq!(journal.read(offsets[2]).unwrap(), b"ccc");
    assert!(journal.read(offsets[2] + 1).is_err());
    assert!(journal.read(0).is_err());
    assert!(journal.read(journal.bytes()).is_err());
    assert_eq!(journal.bytes(), fs::metadata(disk.path().join("j")).unwrap().len());
}

#[test]
fn journal_goes_on_where_it_ended() {
    let (_guard, disk) = disk();
    written(&disk);
    let (mut journal, _) = disk.open_journal("j").unwrap();
    append(&mut journal, &[b"e"]).unwrap();
    append(&mut journal, &[]).unwrap();
    drop(journal);
    assert_eq!(reopened(&disk), [&b"a"[..], b"bb", b"ccc", b"dddd", b"e"]);
}

#[test]
fn empty_and_largest_records_are_kept() {
    let (_guard, disk) = disk();
    let (mut journal, _) = disk.open_journal("j").unwrap();
    let largest = vec![7; JOURNAL_RECORD_BYTES_MAX];
    // Five of the largest do not fit one append group.
    let mut records = vec![&b""[..]];
    records.extend([&largest[..]; 5]);
    let offsets = append(&mut journal, &records).unwrap();
    assert_eq!(journal.read(offsets[5]).unwrap(), largest);
    drop(journal);
    assert_eq!(reopened(&disk), records);
}

#[test]
fn journal_cut_anywhere_in_its_last_append_keeps_all_before_it() {
    let (_guard, disk) = disk();
    let (path, offsets) = written(&disk);
    let whole = fs::read(&path).unwrap();
    for len in offsets[3] as usize..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(reopened(&disk), [&b"a"[..], b"bb", b"ccc"], "cut to {len} bytes");
        assert_eq!(fs::metadata(&path).unwrap().len(), offsets[3], "the torn part is gone");
    }
}

#[test]
fn torn_tail_is_cut_and_later_appends_are_kept() {
    let (_guard, disk) = disk();
    let (path, _) = written(&disk);
    let whole = fs::read(&path).unwrap();
    // What a power cut leaves: zeros, garbage, or part of a record.
    for tail in [vec![0; 5_000], vec![0xff; 300], vec![9, 0, 0, 0, 1, 2, 3, 4, 5]] {
        fs::write(&path, [&whole[..], &tail].concat()).unwrap();
        let (mut journal, records) = disk.open_journal("j").unwrap();
        assert_eq!(records.len(), 4);
        append(&mut journal, &[b"later"]).unwrap();
        drop(journal);
        assert_eq!(reopened(&disk).last().unwrap(), b"later");
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn append_of_which_a_later_part_reached_the_disk_first_is_cut_as_torn() {
    let (_guard, disk) = disk();
    let (mut journal, _) = disk.open_journal("j").unwrap();
    append(&mut journal, &[b"before"]).unwrap();
    let offsets = append(&mut journal, &[&[1; 5_000], &[2; 5_000], &[3; 5_000]]).unwrap();
    drop(journal);
    let path = disk.path().join("j");
    // The page of the second record never arrived; the third is whole.
    let mut bytes = fs::read(&path).unwrap();
    bytes[offsets[1] as usize..offsets[2] as usize].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(reopened(&disk), [b"before".to_vec(), vec![1; 5_000]]);
}

#[test]
fn damage_before_a_later_append_is_refused_and_nothing_is_changed() {
    let (_guard, disk) = disk();
    let (path, offsets) = written(&disk);
    let whole = fs::read(&path).unwrap();
    for at in offsets[0]..offsets[3] {
        flip(&path, at);
        let damaged = fs::read(&path).unwrap();
        let error = disk.open_journal("j").map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "bit flipped at {at}");
        assert!(error.to_string().contains("is damaged at byte"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), damaged, "nothing was changed");
        fs::write(&path, &whole).unwrap();
    }
    assert_eq!(reopened(&disk).len(), 4);
}

#[test]
fn finished_journal_is_read_without_a_change_and_has_no_torn_end() {
    let (_guard, disk) = disk();
    let (path, offsets) = written(&disk);
    let whole = fs::read(&path).unwrap();
    let records = disk.read_journal("j").unwrap();
    assert_eq!(records.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), offsets);
    for (offset, record) in &records {
        assert_eq!(&disk.read_record("j", *offset).unwrap(), record);
    }
    assert_eq!(
        disk.read_record("j", offsets[1] + 1).unwrap_err().kind(),
        ErrorKind::InvalidData
    );
    for len in offsets[3] as usize + 1..whole.len() {
        fs::write(&path, &whole[..len]).unwrap();
        for error in [
            disk.read_journal("j").unwrap_err(),
            disk.read_record("j", offsets[3]).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::InvalidData, "cut to {len} bytes: {error}");
        }
        assert_eq!(disk.read_record("j", offsets[2]).unwrap(), b"ccc");
        assert_eq!(fs::read(&path).unwrap(), whole[..len], "nothing was changed");
    }
    for len in 0..20 {
        fs::write(&path, &whole[..len]).unwrap();
        assert_eq!(disk.read_journal("j").unwrap_err().kind(), ErrorKind::InvalidData);
        assert_eq!(
            disk.read_record("j", offsets[0]).unwrap_err().kind(),
            ErrorKind::InvalidData,
            "a header of {len} bytes"
        );
    }
    assert_eq!(disk.read_journal("k").unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.read_record("k", 20).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(disk.list("k").unwrap().is_empty());
}

#[test]
fn payload_that_looks_like_a_record_does_not_turn_a_power_cut_into_damage() {
    let (_guard, disk) = disk();
    let (path, offsets) = written(&disk);
    // A record of another journal, whole, inside of a record that is torn.
    let whole = fs::read(&path).unwrap();
    let inner = whole[offsets[0] as usize..offsets[1] as usize].to_vec();
    let (mut other, _) = disk.open_journal("k").unwrap();
    let at = append(&mut other, &[&[inner, vec![0; 100]].concat()]).unwrap()[0];
    drop(other);
    let other_path = disk.path().join("k");
    let bytes = fs::read(&other_path).unwrap();
    fs::write(&other_path, &bytes[..bytes.len() - 10]).unwrap();
    let (journal, records) = disk.open_journal("k").unwrap();
    assert!(records.is_empty());
    assert_eq!(journal.bytes(), at);
}

#[test]
fn damaged_header_and_newer_format_are_refused() {
    let (_guard, disk) = disk();
    let (path, _) = written(&disk);
    let whole = fs::read(&path).unwrap();
    for at in 0..20 {
        flip(&path, at);
        let error = disk.open_journal("j").map(|_| ()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "bit flipped at {at}");
        fs::write(&path, &whole).unwrap();
    }
    for len in 0..20 {
        fs::write(&path, &whole[..len]).unwrap();
        assert!(disk.open_journal("j").is_err(), "cut to {len} bytes");
    }
    let mut newer = whole.clone();
    newer[8] = 2;
    let crc = crc32c::crc32c(&newer[..16]).to_le_bytes();
    newer[16..20].copy_from_slice(&crc);
    fs::write(&path, &newer).unwrap();
    let error = disk.open_journal("j").map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("format version 2"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), newer);
}

#[test]
fn length_above_the_cap_is_damage_and_not_allocated() {
    let (_guard, disk) = disk();
    let (path, offsets) = written(&disk);
    let mut bytes = fs::read(&path).unwrap();
    bytes[offsets[1] as usize..][..4].copy_from_slice(&(JOURNAL_RECORD_BYTES_MAX as u32 + 1).to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert!(disk.open_journal("j").is_err());
}

#[test]
fn rewrite_replaces_all_records() {
    let (_guard, disk) = disk();
    written(&disk);
    let (mut journal, _) = disk.open_journal("j").unwrap();
    let offsets = block_on(journal.rewrite(vec![b"x".to_vec(), b"yy".to_vec()])).unwrap();
    assert_eq!(journal.read(offsets[1]).unwrap(), b"yy");
    append(&mut journal, &[b"z"]).unwrap();
    drop(journal);
    assert_eq!(reopened(&disk), [&b"x"[..], b"yy", b"z"]);
    assert_eq!(disk.list("").unwrap(), ["j"]);
}

#[test]
fn rewrite_that_a_crash_left_unfinished_is_ignored() {
    let (_guard, disk) = disk();
    written(&disk);
    fs::write(disk.path().join("j.unfinished"), b"half of a new journal").unwrap();
    assert_eq!(reopened(&disk).len(), 4);
    let (mut journal, _) = disk.open_journal("j").unwrap();
    block_on(journal.rewrite(vec![b"new".to_vec()])).unwrap();
    drop(journal);
    assert_eq!(reopened(&disk), [b"new"]);
}

#[test]
fn failed_write_poisons_the_journal() {
    let (_guard, disk) = disk();
    let (mut journal, _) = disk.open_journal("j").unwrap();
    let offset = append(&mut journal, &[b"good"]).unwrap()[0];
    // A directory in the way lets the rewrite fail, whoever runs the test.
    let in_the_way = disk.path().join("j.unfinished");
    fs::create_dir(&in_the_way).unwrap();
    assert!(block_on(journal.rewrite(vec![b"new".to_vec()])).is_err());
    fs::remove_dir(&in_the_way).unwrap();
    for error in [
        append(&mut journal, &[b"more"]).unwrap_err(),
        block_on(journal.rewrite(Vec::new())).unwrap_err(),
        journal.read(offset).unwrap_err(),
    ] {
        assert!(error.to_string().contains("failed before"), "{error}");
    }
    drop(journal);
    assert_eq!(reopened(&disk), [b"good"], "a new start sees what was durable");
}

#[test]
fn journal_is_open_once_at_a_time() {
    let (_guard, disk) = disk();
    let (journal, _) = disk.open_journal("j").unwrap();
    let error = disk.open_journal("j").map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ResourceBusy);
    drop(journal);
    assert!(disk.open_journal("j").is_ok());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// A power cut leaves anything in place of the last append: bytes of it, zeros, old garbage.
    #[test]
    fn power_cut_in_the_last_append_never_costs_an_earlier_one(
        appends in proptest::collection::vec(proptest::collection::vec(proptest::collection::vec(0u8..4, 0..200), 1..5), 1..5),
        garbage in proptest::collection::vec(0u8..=255, 0..600),
        damage_at in 0usize..600,
        keep in 0usize..800,
    ) {
        let (_guard, disk) = disk();
        let (mut journal, _) = disk.open_journal("j").unwrap();
        let mut offsets = Vec::new();
        for records in &appends {
            offsets.push(block_on(journal.append(records.clone())).unwrap()[0] as usize);
        }
        drop(journal);
        let path = disk.path().join("j");
        let mut bytes = fs::read(&path).unwrap();
        let last_append_at = *offsets.last().unwrap();
        let from = (last_append_at + damage_at).min(bytes.len());
        let to = (from + garbage.len()).min(bytes.len());
        bytes[from..to].copy_from_slice(&garbage[..to - from]);
        bytes.truncate((last_append_at + keep).min(bytes.len()));
        fs::write(&path, &bytes).unwrap();
        let all: Vec<Vec<u8>> = appends.iter().flatten().cloned().collect();
        let durable = all.len() - appends.last().unwrap().len();
        let records = reopened(&disk);
        proptest::prop_assert!(records.len() >= durable && records.len() <= all.len());
        proptest::prop_assert_eq!(&records[..], &all[..records.len()]);
        // And what was cut stays cut.
        proptest::prop_assert_eq!(reopened(&disk), records);
    }
}

#[test]
#[should_panic(expected = "is not the name of a file")]
fn name_outside_of_the_directory_is_a_bug() {
    let (_guard, disk) = disk();
    let _ = disk.read("../elsewhere");
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_on_a_runtime_of_several_threads_let_its_other_tasks_run() {
    let (_guard, disk) = disk();
    let (mut journal, _) = disk.open_journal("j").unwrap();
    for i in 0..20u8 {
        journal.append(vec![vec![i; 100]]).await.unwrap();
    }
    drop(journal);
    assert_eq!(reopened(&disk).len(), 20);
}
