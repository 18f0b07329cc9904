//! Every decision of a start: what is cut, what is refused, and that refusing changes nothing.

use std::{io::Write, sync::Mutex};

use powercut::Rng;

use super::*;

/// A log on which some groups were acknowledged one after the other.
struct Written {
    dir: TempDir,
    /// What the log held after each group.
    states: Vec<(Recovered, Vec<LogRecord>)>,
    /// The end mark after each group.
    marks: Vec<Vec<u8>>,
}

fn state_of(dir: &Path) -> (Recovered, Vec<LogRecord>) {
    let log = open(copy(dir).path());
    (log.recovered().unwrap(), all(&log))
}

/// Groups of all kinds; the last one is `last`.
fn written(last: LogOp) -> Written {
    let dir = fast_dir();
    let log = open(dir.path());
    let noise = |len: usize, seed| Bytes::from(Rng::new(seed).bytes(len));
    let ops = [
        LogOp::Vote("vote 1".into()),
        LogOp::Append(vec![
            record(1, noise(300, 1)),
            record(2, noise(900, 2)),
            record(3, vec![0; 700]),
        ]),
        LogOp::Truncate { from: LogIndex(3) },
        LogOp::Append(vec![record(3, noise(100, 3))]),
        purge(1),
        LogOp::Vote("vote 2".into()),
        last,
    ];
    let (mut states, mut marks) = (Vec::new(), Vec::new());
    for op in ops {
        write(&log, op).unwrap();
        states.push(state_of(dir.path()));
        marks.push(fs::read(dir.path().join(end::END)).unwrap());
    }
    // As a kill leaves it: the end of the process writes nothing more here.
    let killed = copy(dir.path());
    Written {
        dir: killed,
        states,
        marks,
    }
}

fn an_append() -> LogOp {
    let rng = |seed| Rng::new(seed).bytes(1_500);
    LogOp::Append(vec![record(4, rng(4)), record(5, rng(5))])
}

impl Written {
    fn segment(&self) -> PathBuf {
        files::path_of(self.dir.path(), 1)
    }

    /// The mark as a power cut may leave it: of the last group but one.
    fn forget_last_mark(&self) {
        fs::write(self.dir.path().join(end::END), &self.marks[self.marks.len() - 2]).unwrap();
    }

    fn before_last(&self) -> &(Recovered, Vec<LogRecord>) {
        &self.states[self.states.len() - 2]
    }

    fn last(&self) -> &(Recovered, Vec<LogRecord>) {
        self.states.last().unwrap()
    }

    /// Where the last frame lies.
    fn last_frame(&self) -> std::ops::Range<usize> {
        let bytes = fs::read(self.segment()).unwrap();
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
        let headers = (0..used)
            .step_by(SECTOR_BYTES)
            .filter(|at| frame::Header::parse(&bytes[*at..]).is_some());
        headers.max().unwrap()..used.next_multiple_of(SECTOR_BYTES)
    }
}

/// What a start would find, without one.
fn found(dir: &Path) -> Result<Found, StoreError> {
    let (_, end) = EndFile::open(dir)?;
    recover(dir, &end, SMALL.segment_bytes)
}

fn content(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut found: Vec<_> = entries.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    found.sort();
    found
}

/// A start refuses `dir` twice, says `text`, and changes nothing.
fn is_refused(dir: &Path, text: &str) {
    let before = content(dir);
    for _ in 0..2 {
        let error = try_open(dir).err().unwrap_or_else(|| panic!("not refused: {text}"));
        assert!(
            matches!(&error, StoreError::Corrupt(why) if why.contains(text)),
            "{error}; wanted {text:?}"
        );
        assert!(content(dir) == before, "something was changed");
    }
}

#[test]
fn group_that_was_not_written_to_its_end_is_cut_at_whatever_byte() {
    let log = written(an_append());
    let (whole, frame) = (fs::read(log.segment()).unwrap(), log.last_frame());
    assert!(frame.len() > 5 * SECTOR_BYTES);
    log.forget_last_mark();
    for end in frame.clone() {
        let mut cut = whole.clone();
        cut[end..].fill(0);
        fs::write(log.segment(), cut).unwrap();
        let found = found(log.dir.path()).unwrap_or_else(|error| panic!("cut at {end}: {error}"));
        // Bytes behind the body say nothing.
        let is_whole = found.group == 7;
        assert!(!is_whole || end > frame.start + 3_000, "cut at {end}");
        let wanted = if is_whole { log.last() } else { log.before_last() };
        assert_eq!(found.index.recovered(), wanted.0, "cut at {end}");
    }
    fs::write(log.segment(), &whole[..]).unwrap();
    assert_eq!(state_of(log.dir.path()), *log.last());
}

#[test]
fn group_of_which_any_sectors_are_missing_is_cut() {
    let log = written(an_append());
    let (whole, frame) = (fs::read(log.segment()).unwrap(), log.last_frame());
    log.forget_last_mark();
    let sectors = frame.len() / SECTOR_BYTES;
    for present in 0..1u32 << sectors {
        let mut torn = whole.clone();
        for sector in (0..sectors).filter(|sector| present >> sector & 1 == 0) {
            let from = frame.start + sector * SECTOR_BYTES;
            torn[from..from + SECTOR_BYTES].fill(0);
        }
        fs::write(log.segment(), torn).unwrap();
        let found = found(log.dir.path()).unwrap_or_else(|error| panic!("{present:b}: {error}"));
        let is_whole = present + 1 == 1 << sectors;
        let wanted = if is_whole { log.last() } else { log.before_last() };
        assert_eq!(found.index.recovered(), wanted.0, "{present:b}");
        assert_eq!(found.repairs.is_empty(), is_whole || present == 0, "{present:b}");
    }
}

#[test]
fn what_was_cut_never_comes_back() {
    let log = written(an_append());
    let (whole, frame) = (fs::read(log.segment()).unwrap(), log.last_frame());
    log.forget_last_mark();
    for missing in 0..frame.len() / SECTOR_BYTES {
        let mut torn = whole.clone();
        let from = frame.start + missing * SECTOR_BYTES;
        torn[from..from + SECTOR_BYTES].fill(0);
        fs::write(log.segment(), torn).unwrap();
        log.forget_last_mark();
        let again = open(log.dir.path());
        write(&again, LogOp::Vote("vote 3".into())).unwrap();
        drop(again);
        let bytes = fs::read(log.segment()).unwrap();
        let behind = &bytes[frame.start + SECTOR_BYTES..];
        assert!(
            behind.iter().all(|byte| *byte == 0),
            "{missing}: something is left of the torn group"
        );
        let (recovered, records) = state_of(log.dir.path());
        assert_eq!(
            (recovered.vote, records),
            (Some("vote 3".into()), log.before_last().1.clone())
        );
    }
}

#[test]
fn page_that_a_device_loses_while_it_writes_costs_nothing_that_was_acknowledged() {
    let log = written(an_append());
    let (whole, frame) = (fs::read(log.segment()).unwrap(), log.last_frame());
    log.forget_last_mark();
    let pages = frame.start / frame::PAGE_BYTES..frame.end.div_ceil(frame::PAGE_BYTES);
    for page in pages {
        let mut lost = whole.clone();
        let from = page * frame::PAGE_BYTES;
        lost[from..from + frame::PAGE_BYTES].fill(0);
        fs::write(log.segment(), lost).unwrap();
        let found = found(log.dir.path()).unwrap_or_else(|error| panic!("page {page}: {error}"));
        assert_eq!((found.group, found.index.recovered()), (6, log.before_last().0.clone()));
    }
}

#[test]
fn start_writes_zeros_behind_the_end_once_more() {
    let log = written(an_append());
    let segment = log.segment();
    let end = log.last_frame().end;
    // What the disk kept of a group that an earlier start had cut, in vain: the cache shows zeros at the next start.
    // Here it comes back between what a start reads and what it syncs.
    let stale = fs::read(&segment).unwrap()[..SECTOR_BYTES].to_vec();
    let (_, mark) = EndFile::open(log.dir.path()).unwrap();
    let found = found(log.dir.path()).unwrap();
    let at = end.next_multiple_of(frame::PAGE_BYTES);
    let file = File::options().write(true).open(&segment).unwrap();
    file.write_all_at(&stale, at as u64).unwrap();
    let mut fsync: Fsync = Box::new(File::sync_data);
    settle(log.dir.path(), &mark, &found, &mut fsync).unwrap();
    assert!(fs::read(&segment).unwrap()[end..].iter().all(|byte| *byte == 0));
    assert_eq!(state_of(log.dir.path()), *log.last());
}

#[test]
fn log_of_an_older_format_is_refused_by_its_number() {
    let log = written(an_append());
    let mut old = fs::read(log.segment()).unwrap();
    old[4..6].copy_from_slice(&1u16.to_le_bytes());
    let header = [&old[..56], &old[60..61]].concat();
    let sum = crc32c(&header);
    old[56..60].copy_from_slice(&sum.to_le_bytes());
    fs::write(log.segment(), old).unwrap();
    is_refused(log.dir.path(), "format 1 of an older release");
}

#[test]
fn length_beyond_all_frames_is_no_header() {
    let log = written(an_append());
    let mut sector = fs::read(log.segment()).unwrap()[..SECTOR_BYTES].to_vec();
    sector[48..52].fill(0xff);
    assert_eq!(frame::Header::parse(&sector), None);
    assert!(!frame::is_torn_header(&sector));
}

#[test]
fn acknowledged_group_is_never_cut() {
    for last in [an_append(), LogOp::Vote("vote 3".into())] {
        let log = written(last);
        let (whole, frame) = (fs::read(log.segment()).unwrap(), log.last_frame());
        for from in frame.clone().step_by(SECTOR_BYTES) {
            let mut torn = whole.clone();
            torn[from..frame.end].fill(0);
            fs::write(log.segment(), torn).unwrap();
            is_refused(log.dir.path(), "acknowledged up to group 7");
        }
    }
}

#[test]
fn flipped_bit_never_costs_an_acknowledged_group() {
    for is_mark_old in [false, true] {
        let log = written(an_append());
        if is_mark_old {
            log.forget_last_mark();
        }
        let used = log.last_frame().end;
        let segment = File::options().read(true).write(true).open(log.segment()).unwrap();
        let (mut refused, mut whole) = (0, 0);
        // All that is not zero, and a bit of each sector between and behind.
        let whole_bytes = fs::read(log.segment()).unwrap();
        let is_written = |bit: &usize| whole_bytes[bit / 8] != 0;
        let written = (0..used * 8).filter(is_written);
        let bits = written.chain((0..whole_bytes.len() * 8).step_by(SECTOR_BYTES * 8 + 11));
        for bit in bits {
            let mut byte = [0];
            let at = bit as u64 / 8;
            segment.read_exact_at(&mut byte, at).unwrap();
            let flipped = [byte[0] ^ 1 << (bit % 8)];
            segment.write_all_at(&flipped, at).unwrap();
            match found(log.dir.path()) {
                Ok(found) => {
                    assert_eq!(found.index.recovered(), log.last().0, "bit {bit}");
                    whole += 1;
                }
                Err(StoreError::Corrupt(_)) => refused += 1,
                Err(other) => panic!("bit {bit}: {other}"),
            }
            segment.write_all_at(&byte, at).unwrap();
        }
        assert!(refused > 20_000 && whole > 100, "{refused} refused, {whole} harmless");
        assert_eq!(state_of(log.dir.path()), *log.last());
    }
}

#[test]
fn flipped_bit_of_the_mark_is_refused() {
    let log = written(an_append());
    let mark = log.marks.last().unwrap();
    for bit in 0..44 * 8 {
        let mut flipped = mark.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(log.dir.path().join(end::END), flipped).unwrap();
        assert!(
            matches!(try_open(log.dir.path()), Err(StoreError::Corrupt(_))),
            "bit {bit}"
        );
    }
}

#[test]
fn record_damaged_while_the_log_is_in_use_is_not_read() {
    let dir = fast_dir();
    let log = open(dir.path());
    write(&log, LogOp::Append(records(1..5))).unwrap();
    let path = files::path_of(dir.path(), 1);
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(7).position(|window| window == b"entry 3").unwrap();
    let file = File::options().write(true).open(&path).unwrap();
    file.write_all_at(b"entry 7", at as u64).unwrap();
    assert_eq!(log.read(LogIndex(1), LogIndex(3), usize::MAX).unwrap(), records(1..3));
    let error = log.read(LogIndex(3), LogIndex(4), usize::MAX).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt(_)), "{error}");
}

/// A log over several segments, all of whose records are live.
fn long_log() -> (TempDir, Vec<LogRecord>) {
    let dir = fast_dir();
    let log = open(dir.path());
    let wanted: Vec<_> = (1..=40)
        .map(|index| record(index, Rng::new(index).bytes(2_000)))
        .collect();
    for record in &wanted {
        write(&log, LogOp::Append(vec![record.clone()])).unwrap();
    }
    drop(log);
    assert!(files::list(dir.path()).unwrap().len() > 4);
    (dir, wanted)
}

#[test]
fn lost_segment_is_refused_whichever_it_is() {
    let (dir, wanted) = long_log();
    let numbers = files::list(dir.path()).unwrap();
    let (_, end) = EndFile::open(dir.path()).unwrap();
    for number in numbers {
        let lost = copy(dir.path());
        fs::remove_file(files::path_of(lost.path(), number)).unwrap();
        if number > end.segment {
            assert_eq!(all(&open(lost.path())), wanted, "it was empty");
            continue;
        }
        let text = match number {
            1 => "are missing",
            // The one after it shows that it is gone, or the mark does.
            _ => ".seg",
        };
        is_refused(lost.path(), text);
    }
}

#[test]
fn lost_oldest_segment_is_noticed_behind_a_purge_too() {
    let (dir, _) = long_log();
    let log = open(dir.path());
    write(&log, purge(30)).unwrap();
    drop(log);
    let numbers = files::list(dir.path()).unwrap();
    assert!(numbers[0] > 1, "{numbers:?}");
    fs::remove_file(files::path_of(dir.path(), numbers[0])).unwrap();
    is_refused(dir.path(), "are missing");
}

#[test]
fn files_that_do_not_belong_here_are_refused() {
    // A stale segment under a later number, as if it were used again.
    let (dir, _) = long_log();
    let (_, end) = EndFile::open(dir.path()).unwrap();
    let next = files::path_of(dir.path(), end.segment + 1);
    fs::copy(files::path_of(dir.path(), 1), next).unwrap();
    is_refused(dir.path(), "a group of segment 1 at 0");
    // A whole log of another directory, and a segment of it.
    let (dir, _) = long_log();
    let error = SegmentLog::open(dir.path(), [8; 16], SMALL, Marker::none())
        .err()
        .unwrap();
    assert!(error.to_string().contains("another data directory"), "{error}");
    let other = fast_dir();
    let log = SegmentLog::open(other.path(), [8; 16], SMALL, Marker::none()).unwrap();
    write(&log, LogOp::Append(records(1..3))).unwrap();
    drop(log);
    fs::copy(files::path_of(other.path(), 1), files::path_of(dir.path(), 2)).unwrap();
    is_refused(dir.path(), "a group of another data directory");
    // No mark.
    let (dir, _) = long_log();
    fs::remove_file(dir.path().join(end::END)).unwrap();
    is_refused(dir.path(), "the end mark is gone");
}

#[test]
fn group_missing_in_the_middle_is_refused() {
    let log = written(an_append());
    let whole = fs::read(log.segment()).unwrap();
    let headers: Vec<_> = (0..whole.len())
        .step_by(SECTOR_BYTES)
        .filter(|at| frame::Header::parse(&whole[*at..]).is_some())
        .collect();
    assert_eq!(headers.len(), 7);
    for (group, pair) in (1..).zip(headers.windows(2)) {
        let mut lost = whole.clone();
        lost[pair[0]..pair[1]].fill(0);
        fs::write(log.segment(), lost).unwrap();
        is_refused(log.dir.path(), &format!("before group {}", group + 1));
    }
}

#[test]
fn shortened_segment_is_lengthened_only_if_nothing_of_the_log_was_there() {
    let log = written(an_append());
    let (whole, frame) = (fs::read(log.segment()).unwrap(), log.last_frame());
    let next = frame.end.next_multiple_of(frame::PAGE_BYTES);
    for len in [next + SECTOR_BYTES, next + SECTOR_BYTES + 17, whole.len() - 1] {
        fs::write(log.segment(), &whole[..len]).unwrap();
        let again = open(log.dir.path());
        assert_eq!(all(&again), log.last().1);
        drop(again);
        assert_eq!(fs::metadata(log.segment()).unwrap().len() as usize, whole.len());
    }
    // However old the mark is: no power cut shortens a file.
    log.forget_last_mark();
    for len in [frame.end, frame.end - 1, frame.start + 1, frame.start] {
        fs::write(log.segment(), &whole[..len]).unwrap();
        assert!(matches!(try_open(log.dir.path()), Err(StoreError::Corrupt(_))), "{len}");
    }
}

#[test]
fn first_group_of_a_new_segment_that_is_torn_is_cut_and_the_segment_made_again() {
    let (dir, mut wanted) = long_log();
    let (_, end) = EndFile::open(dir.path()).unwrap();
    // Take groups back until the newest segment has one group.
    let newest = files::path_of(dir.path(), end.segment);
    let bytes = fs::read(&newest).unwrap();
    let first = frame::Header::parse(&bytes).unwrap();
    let count = (0..bytes.len())
        .step_by(SECTOR_BYTES)
        .filter(|at| frame::Header::parse(&bytes[*at..]).is_some())
        .count();
    wanted.truncate(40 - count);
    let mark = End {
        group: first.stamp.group - 1,
        segment: end.segment - 1,
        ..end
    };
    let (mut file, _) = EndFile::open(dir.path()).unwrap();
    file.write(&mark).unwrap();
    drop(file);
    let mut torn = vec![0; bytes.len()];
    torn[..SECTOR_BYTES].copy_from_slice(&bytes[..SECTOR_BYTES]);
    fs::write(&newest, &torn).unwrap();
    let again = open(dir.path());
    assert_eq!(all(&again), wanted);
    let next = wanted.len() as u64 + 1;
    write(&again, LogOp::Append(vec![record(next, vec![3; 3_000])])).unwrap();
    drop(again);
    wanted.push(record(next, vec![3; 3_000]));
    assert_eq!(all(&open(dir.path())), wanted);
    // Damaged instead of torn: refused.
    let mut damaged = bytes.clone();
    damaged[700] ^= 1;
    let dir = copy(dir.path());
    fs::write(files::path_of(dir.path(), end.segment), damaged).unwrap();
    assert!(matches!(try_open(dir.path()), Err(StoreError::Corrupt(_))));
}

#[test]
fn cut_is_told_in_the_log_of_the_process() {
    #[derive(Clone, Default)]
    struct Said(Arc<Mutex<Vec<u8>>>);
    impl Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let log = written(an_append());
    let (mut torn, frame) = (fs::read(log.segment()).unwrap(), log.last_frame());
    torn[frame.end - SECTOR_BYTES..].fill(0);
    fs::write(log.segment(), torn).unwrap();
    log.forget_last_mark();
    let said = Said::default();
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_ansi(false)
        .finish();
    tracing::subscriber::with_default(subscriber, || drop(open(log.dir.path())));
    let text = String::from_utf8(said.0.lock().unwrap().clone()).unwrap();
    assert!(
        text.contains("WARN") && text.contains("was not written to its end") && text.contains("0001.seg"),
        "{text}"
    );
}
