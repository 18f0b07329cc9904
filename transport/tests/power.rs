//! What a start finds is as durable as what it writes: a process that was killed left more in the page cache than
//! on the disk, the next one builds on it, and then the power goes.

#![allow(clippy::disallowed_methods)]

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use powercut::{Cut, Machine};
use transport::{machine::MachineDisk, ports::Disk as _};

const RECORD: &[u8] = b"a record";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().build().unwrap()
}

fn records(disk: &MachineDisk) -> usize {
    let (_, records) = disk.open_journal("x.journal").unwrap();
    assert!(records.iter().all(|(_, record)| record == RECORD));
    records.len()
}

/// First life: dies after a write and a rename, before their syncs. Second: says what it finds.
fn work(data: &Path, report: &powercut::Report) {
    let disk = MachineDisk::open(data).unwrap();
    let path = data.join("x.journal");
    if path.exists() {
        let marker = disk.read("marker").unwrap().is_some();
        report.say(format!("{} records, marker {marker}", records(&disk)));
    } else {
        let (mut journal, _) = disk.open_journal("x.journal").unwrap();
        let before = fs::read(&path).unwrap().len();
        runtime().block_on(journal.append(vec![RECORD.to_vec()])).unwrap();
        let bytes = fs::read(&path).unwrap();
        // The same append again, as far as it comes before its sync.
        File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .write_all(&bytes[before..])
            .unwrap();
        fs::write(data.join("marker.unfinished"), b"marker").unwrap();
        File::open(data.join("marker.unfinished")).unwrap().sync_all().unwrap();
        fs::rename(data.join("marker.unfinished"), data.join("marker")).unwrap();
        report.say("ready");
    }
    loop {
        std::thread::park();
    }
}

#[test]
fn what_a_start_finds_survives_a_power_cut_after_it() {
    const TEST: &str = "what_a_start_finds_survives_a_power_cut_after_it";
    if let Some((data, report)) = powercut::worker() {
        return work(Path::new(&data), &report);
    }
    let machine = Machine::new();
    for want in ["ready", "2 records, marker true"] {
        let mut life = machine.run(TEST, machine.data().to_str().unwrap());
        assert_eq!(life.next_line().as_deref(), Some(want), "{}", life.log());
        life.kill();
    }
    machine.cut(Cut::Drop);
    let disk = MachineDisk::open(&machine.data()).unwrap();
    assert_eq!(records(&disk), 2);
    assert_eq!(disk.read("marker").unwrap().as_deref(), Some(&b"marker"[..]));
}
