//! The model itself: what it keeps, what it loses, how it fails.

#![allow(clippy::disallowed_methods)]

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

use powercut::{Cut, Fault, Machine, Rng};

/// Runs `work` of the test `test` in a worker until it says "ready", and kills it there.
fn live(machine: &Machine, test: &str) -> Vec<String> {
    let mut life = machine.run(test, machine.data().to_str().unwrap());
    let mut said = Vec::new();
    while let Some(line) = life.next_line() {
        if line == "ready" {
            said.extend(life.kill());
            return said;
        }
        said.push(line);
    }
    panic!("the worker ended: {}", life.log());
}

/// In a worker: does `work` in the data directory, says "ready" and waits for its end.
fn in_worker(work: impl FnOnce(&Path, &powercut::Report)) -> bool {
    let Some((data, report)) = powercut::worker() else {
        return false;
    };
    work(Path::new(&data), &report);
    report.say("ready");
    loop {
        std::thread::park();
    }
}

fn read(machine: &Machine, name: &str) -> Option<String> {
    fs::read_to_string(machine.data().join(name)).ok()
}

fn sync_dir(dir: &Path) {
    File::open(dir).unwrap().sync_all().unwrap();
}

#[test]
fn what_was_synced_survives_and_nothing_else() {
    let worked = in_worker(|data, _| {
        let mut file = File::create(data.join("half")).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_data().unwrap();
        file.write_all(b", not synced").unwrap();
        fs::write(data.join("named"), b"never synced").unwrap();
        sync_dir(data);
        let other = File::create(data.join("nameless")).unwrap();
        other.write_all_at(b"bytes", 0).unwrap();
        other.sync_all().unwrap();
    });
    if worked {
        return;
    }
    let machine = Machine::new();
    live(&machine, "what_was_synced_survives_and_nothing_else");
    assert_eq!(
        read(&machine, "half").as_deref(),
        Some("synced, not synced"),
        "a kill loses nothing"
    );
    machine.cut(Cut::Drop);
    assert_eq!(read(&machine, "half").as_deref(), Some("synced"));
    assert_eq!(
        read(&machine, "named").as_deref(),
        Some(""),
        "its name was synced, its bytes were not"
    );
    assert_eq!(
        read(&machine, "nameless"),
        None,
        "its bytes were synced, its name was not"
    );
}

#[test]
fn renamed_and_removed_files_come_back_until_the_directory_is_synced() {
    const TEST: &str = "renamed_and_removed_files_come_back_until_the_directory_is_synced";
    let worked = in_worker(|data, _| {
        if data.join("old").exists() {
            // Second life.
            fs::write(data.join("new.tmp"), b"new").unwrap();
            File::open(data.join("new.tmp")).unwrap().sync_all().unwrap();
            fs::rename(data.join("new.tmp"), data.join("old")).unwrap();
            fs::remove_file(data.join("gone")).unwrap();
            // Takes the inode of what went, if the file system gives it out again.
            fs::write(data.join("other"), b"other").unwrap();
            File::open(data.join("other")).unwrap().sync_all().unwrap();
        } else {
            for name in ["old", "gone"] {
                fs::write(data.join(name), name).unwrap();
                File::open(data.join(name)).unwrap().sync_all().unwrap();
            }
            sync_dir(data);
        }
    });
    if worked {
        return;
    }
    let machine = Machine::new();
    live(&machine, TEST);
    machine.cut(Cut::Drop);
    live(&machine, TEST);
    assert_eq!(
        (read(&machine, "old").as_deref(), read(&machine, "gone")),
        (Some("new"), None)
    );
    machine.cut(Cut::Drop);
    assert_eq!(read(&machine, "old").as_deref(), Some("old"));
    assert_eq!(read(&machine, "gone").as_deref(), Some("gone"));
    assert_eq!(read(&machine, "other"), None);
}

#[test]
fn bytes_of_a_killed_process_become_durable_with_the_next_sync_and_not_before() {
    const TEST: &str = "bytes_of_a_killed_process_become_durable_with_the_next_sync_and_not_before";
    let worked = in_worker(|data, report| {
        let path = data.join("file");
        let mut file = File::options()
            .create(true)
            .read(true)
            .append(true)
            .open(&path)
            .unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        report.say(&text);
        match text.as_str() {
            "" => {
                file.sync_all().unwrap();
                sync_dir(data);
                file.write_all(b"one").unwrap();
            }
            "one" => file.write_all(b"two").unwrap(),
            _ => file.sync_all().unwrap(),
        }
    });
    if worked {
        return;
    }
    let machine = Machine::new();
    assert_eq!(live(&machine, TEST), [""]);
    assert_eq!(live(&machine, TEST), ["one"]);
    machine.cut(Cut::Drop);
    assert_eq!(read(&machine, "file").as_deref(), Some(""));
    for want in ["", "one", "onetwo"] {
        assert_eq!(live(&machine, TEST), [want]);
    }
    machine.cut(Cut::Drop);
    assert_eq!(read(&machine, "file").as_deref(), Some("onetwo"));
}

#[test]
fn shadow_follows_every_kind_of_write() {
    const TEST: &str = "shadow_follows_every_kind_of_write";
    let worked = in_worker(|data, _| {
        let mut rng = Rng::new(7);
        fs::create_dir(data.join("dir")).unwrap();
        let path = data.join("dir/file");
        let mut file = File::options()
            .create(true)
            .truncate(true)
            .read(true)
            .write(true)
            .open(&path)
            .unwrap();
        file.sync_all().unwrap();
        for step in 0..300u64 {
            let len = rng.below(9_000) as usize;
            let bytes = rng.bytes(len);
            match rng.below(7) {
                0 => file.set_len(rng.below(60_000)).unwrap(),
                1 => file.write_all(&bytes).unwrap(),
                2 => {
                    fs::write(data.join("dir/copied"), &bytes).unwrap();
                    // Through copy_file_range, where it is not refused.
                    fs::copy(data.join("dir/copied"), data.join("dir/copy")).unwrap();
                    File::open(data.join("dir/copy")).unwrap().sync_all().unwrap();
                }
                3 => {
                    let parts = [std::io::IoSlice::new(&bytes), std::io::IoSlice::new(b"end")];
                    let _ = file.write_vectored(&parts).unwrap();
                }
                _ => file.write_all_at(&bytes, rng.below(60_000)).unwrap(),
            }
            if step % 7 == 0 {
                file.sync_data().unwrap();
            }
        }
        file.sync_data().unwrap();
        File::open(data.join("dir/copied")).unwrap().sync_all().unwrap();
        sync_dir(&data.join("dir"));
        sync_dir(data);
    });
    if worked {
        return;
    }
    let machine = Machine::new();
    live(&machine, TEST);
    let names = ["dir/file", "dir/copied", "dir/copy"];
    let before = names.map(|name| fs::read(machine.data().join(name)).unwrap());
    for cut in [Cut::Drop, Cut::Mix { seed: 3 }] {
        machine.cut(cut);
        assert!(
            before == names.map(|name| fs::read(machine.data().join(name)).unwrap()),
            "{cut:?}"
        );
    }
}

#[test]
fn full_disk_tears_a_write_and_a_failed_sync_loses_what_it_covered() {
    const TEST: &str = "full_disk_tears_a_write_and_a_failed_sync_loses_what_it_covered";
    let worked = in_worker(|data, report| {
        let mut file = File::create(data.join("file")).unwrap();
        file.sync_all().unwrap();
        sync_dir(data);
        report.say(
            File::create(data.join("x/refused"))
                .unwrap_err()
                .raw_os_error()
                .unwrap(),
        );
        report.say("opened");
        let _ = report.hear();
        report.say(file.write_all(b"12345678").unwrap_err().raw_os_error().unwrap());
        report.say("written");
        let _ = report.hear();
        report.say(file.sync_all().unwrap_err().raw_os_error().unwrap());
        file.sync_all().unwrap();
    });
    if worked {
        return;
    }
    let machine = Machine::new();
    machine.faults().fail(Fault::ReadOnly, "refused");
    let mut life = machine.run(TEST, machine.data().to_str().unwrap());
    assert_eq!(life.next_line().as_deref(), Some("30"));
    machine.faults().mend();
    assert_eq!(life.next_line().as_deref(), Some("opened"));
    machine.faults().fail(Fault::Full, "file");
    life.tell("go on");
    assert_eq!(life.next_line().as_deref(), Some("28"));
    assert_eq!(life.next_line().as_deref(), Some("written"));
    assert_eq!(read(&machine, "file").as_deref(), Some("1234"));
    machine.faults().fail(Fault::SyncOnce, "file");
    life.tell("go on");
    assert_eq!(life.next_line().as_deref(), Some("5"));
    assert_eq!(life.next_line().as_deref(), Some("ready"));
    assert!(machine.faults().has_struck());
    life.kill();
    machine.cut(Cut::Drop);
    let survived = read(&machine, "file").unwrap();
    assert_eq!(survived, "\0\0\0\0", "the second sync had only the size left to write");
}
