//! Submits every line of a file, and goes on where it was interrupted.
//!
//! # Rules
//! * Number, cluster and last height of a line are on the disk before it is signed: the same line then
//!   always gives the same bytes, and sending them again does no harm.
//! * A progress file belongs to the exact content of its file.
//! * Entries in flight stay within a quarter of the window of remembered numbers.

use std::{
    collections::BTreeMap,
    io::Write,
    path::{Path, PathBuf},
    time::Duration,
};

use common::{
    crypto::sha256,
    entry::Action,
    ids::{ClusterId, EntryNumber, Height, TaskId},
    limits::NUMBER_WINDOW,
    task::{Scope, Task},
};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use transport::local::{Names, TaskSpec};

use crate::{
    client::{
        Client,
        author::{Author, Entered, Route, accepted, not_after, task_payload},
    },
    exit::{Exit, Failure, Outcome},
    files::{self, Lock},
    printer::Printer,
};

/// Longest file.
const FILE_BYTES_MAX: u64 = 256 * 1024 * 1024;
/// Lines whose numbers are reserved together.
const LINES_PER_CHUNK: usize = NUMBER_WINDOW as usize / 4;
/// Entries in flight.
const IN_FLIGHT_MAX: usize = 32;

/// What is on the disk of a line before it is sent, and again when it is done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    line: usize,
    cluster: u32,
    number: u64,
    not_after_height: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

impl Record {
    fn is_done(&self) -> bool {
        self.task.is_some() || self.refused.is_some()
    }
}

/// The progress of one file: appended, fsynced, the newest record of a line counts.
struct Progress {
    path: PathBuf,
    records: BTreeMap<usize, Record>,
    _lock: Lock,
}

impl Progress {
    fn open(dir: &Path, content: &[u8]) -> Outcome<Self> {
        let dir = dir.join("bulk");
        files::private_dir(&dir)?;
        let name = sha256(&[content]).to_hex();
        let lock = Lock::take(&dir.join(format!("{name}.lock")))?;
        let path = dir.join(format!("{name}.jsonl"));
        let mut records = BTreeMap::new();
        if path.exists() {
            let bytes = files::read_bounded(&path, FILE_BYTES_MAX)?;
            let text = String::from_utf8_lossy(&bytes);
            for line in text.split_inclusive('\n') {
                // A torn last line was never acted upon: records are durable before anything is sent.
                let Some(line) = line.strip_suffix('\n') else { break };
                let record: Record = serde_json::from_str(line).map_err(|e| {
                    Failure::new(Exit::RefusedForSafety, format!("{}: {e}", path.display()))
                        .means("it is not known which lines were sent with which numbers")
                })?;
                records.insert(record.line, record);
            }
            let whole = text.rfind('\n').map_or(0, |at| at + 1);
            let file = std::fs::OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(Failure::io("cannot open the progress"))?;
            file.set_len(whole as u64)
                .map_err(Failure::io("cannot cut the progress"))?;
        }
        Ok(Self {
            path,
            records,
            _lock: lock,
        })
    }

    fn record(&mut self, records: Vec<Record>) -> Outcome {
        let mut text = String::new();
        for record in &records {
            text += &serde_json::to_string(record).map_err(|e| Failure::new(Exit::Failed, e))?;
            text.push('\n');
        }
        let append = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&self.path)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()
        };
        append().map_err(Failure::io(format!("cannot write {}", self.path.display())))?;
        self.records
            .extend(records.into_iter().map(|record| (record.line, record)));
        Ok(())
    }
}

/// Looks up `key:NAME` among earlier lines.
struct FileNames<'a> {
    client: &'a Client,
    by_key: &'a BTreeMap<String, TaskId>,
}

impl Names for FileNames<'_> {
    fn cluster(&self, label: &str) -> Option<ClusterId> {
        self.client.context.genesis.cluster(label)
    }

    fn task(&self, reference: &str) -> Option<TaskId> {
        match reference.strip_prefix("key:") {
            Some(key) => self.by_key.get(key).copied(),
            None => TaskId::from_hex(reference),
        }
    }
}

fn parse_lines(text: &str) -> Outcome<Vec<(usize, TaskSpec)>> {
    let mut keys = BTreeMap::new();
    let mut specs = Vec::new();
    for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let number = at + 1;
        let invalid = |e: &dyn std::fmt::Display| Failure::new(Exit::Invalid, format!("line {number}: {e}"));
        let spec = TaskSpec::from_json(line).map_err(|e| invalid(&e))?;
        if let Some(before) = keys.insert(spec.key.clone(), number) {
            return Err(invalid(&format!("key: {:?} is that of line {before}", spec.key)));
        }
        for reference in &spec.after {
            let key = reference.strip_prefix("key:");
            if key.is_some_and(|key| key == spec.key || !keys.contains_key(key)) {
                return Err(invalid(&format!("after: {reference} is no earlier line")));
            }
        }
        specs.push((number, spec));
    }
    Ok(specs)
}

/// Runs of lines none of which waits for another of its run: ids of earlier runs are known.
fn chunks(specs: &[(usize, TaskSpec)]) -> Vec<&[(usize, TaskSpec)]> {
    let mut chunks = Vec::new();
    let mut start = 0;
    for at in 0..specs.len() {
        let keys: Vec<&str> = specs[start..at].iter().map(|(_, spec)| spec.key.as_str()).collect();
        let waits = specs[at]
            .1
            .after
            .iter()
            .any(|r| r.strip_prefix("key:").is_some_and(|key| keys.contains(&key)));
        if waits || at - start == LINES_PER_CHUNK {
            chunks.push(&specs[start..at]);
            start = at;
        }
    }
    if start < specs.len() {
        chunks.push(&specs[start..]);
    }
    chunks
}

pub(super) async fn run(
    client: &Client,
    file: &Path,
    scope: Scope,
    clusters: &[ClusterId],
    timeout: Duration,
    printer: &Printer,
) -> Outcome {
    let content = files::read_bounded(file, FILE_BYTES_MAX)?;
    let text =
        std::str::from_utf8(&content).map_err(|e| Failure::new(Exit::Invalid, format!("{}: {e}", file.display())))?;
    // Every line is read before the first is sent.
    let specs = parse_lines(text)?;
    let author = Author::open(client)?;
    let mut progress = Progress::open(&client.context.data_dir, &content)?;
    let resumed = progress.records.values().filter(|record| record.is_done()).count();
    let mut by_key = BTreeMap::new();
    let (mut acknowledged, mut refused) = (0, 0);
    for chunk in chunks(&specs) {
        let mut tasks: Vec<(usize, Task)> = Vec::new();
        for (line, spec) in chunk {
            let names = FileNames {
                client,
                by_key: &by_key,
            };
            let task = spec
                .resolve(&names)
                .map_err(|e| Failure::new(Exit::Invalid, format!("line {line}: {e}")))?;
            tasks.push((*line, task));
        }
        reserve(&author, &mut progress, chunk, clusters).await?;
        submit_chunk(client, &author, &mut progress, &tasks, scope, timeout, printer).await?;
        for (line, spec) in chunk {
            let record = progress.records.get(line);
            match record
                .and_then(|record| record.task.as_deref())
                .and_then(TaskId::from_hex)
            {
                Some(task) => {
                    by_key.insert(spec.key.clone(), task);
                    acknowledged += 1;
                }
                None => refused += 1,
            }
        }
    }
    let summary =
        json!({"lines": specs.len(), "acknowledged": acknowledged, "refused": refused, "done_before": resumed});
    printer.event(
        &summary,
        &format!(
            "{acknowledged} of {} tasks acknowledged, {refused} refused",
            specs.len()
        ),
    );
    if refused > 0 {
        return Err(Failure::new(Exit::Conflict, format!("{refused} tasks were refused"))
            .means("the others are queued")
            .todo("see the reasons above"));
    }
    Ok(())
}

/// Gives every line of a chunk that has none yet a number, durably.
async fn reserve(
    author: &Author<'_>,
    progress: &mut Progress,
    chunk: &[(usize, TaskSpec)],
    clusters: &[ClusterId],
) -> Outcome {
    let fresh: Vec<usize> = chunk
        .iter()
        .map(|(line, _)| *line)
        .filter(|line| !progress.records.contains_key(line))
        .collect();
    if fresh.is_empty() {
        return Ok(());
    }
    let route = author.route(clusters).await?;
    let first = author.reserve(&route, fresh.len() as u64).await?;
    let records = (first.0..)
        .zip(fresh)
        .map(|(number, line)| Record {
            line,
            cluster: route.cluster.0,
            number,
            not_after_height: not_after(route.height).0,
            task: None,
            refused: None,
        })
        .collect();
    progress.record(records)
}

async fn submit_chunk(
    client: &Client,
    author: &Author<'_>,
    progress: &mut Progress,
    tasks: &[(usize, Task)],
    scope: Scope,
    timeout: Duration,
    printer: &Printer,
) -> Outcome {
    let waiting: Vec<(Record, &Task)> = tasks
        .iter()
        .filter_map(|(line, task)| Some((progress.records.get(line)?.clone(), task)))
        .filter(|(record, _)| !record.is_done())
        .collect();
    let mut routes: BTreeMap<u32, Route> = BTreeMap::new();
    for (record, _) in &waiting {
        if let std::collections::btree_map::Entry::Vacant(slot) = routes.entry(record.cluster) {
            slot.insert(author.route(&[ClusterId(record.cluster)]).await?);
        }
    }
    let sends = waiting.into_iter().map(|(record, task)| {
        let route = &routes[&record.cluster];
        async move {
            let outcome = send(author, route, &record, task, scope, timeout).await;
            (record, outcome)
        }
    });
    let mut answers = stream::iter(sends).buffer_unordered(IN_FLIGHT_MAX);
    let mut unknown: Option<Failure> = None;
    while let Some((mut record, outcome)) = answers.next().await {
        let line = record.line;
        match outcome.and_then(|entered| accepted(entered.verdict).map(|verdict| (entered, verdict))) {
            Ok((entered, verdict)) => {
                let task = super::submit::task_of(entered.id, entered.verdict).to_hex();
                let cluster = client.context.cluster_label(entered.cluster);
                printer.event(
                    &json!({"line": line, "task": task, "verdict": verdict, "cluster": cluster, "index": entered.index.0}),
                    &format!("line {line}: {task} {verdict}"),
                );
                record.task = Some(task);
            }
            Err(failure) if matches!(failure.exit, Exit::Conflict | Exit::Denied | Exit::Invalid) => {
                printer.event(
                    &json!({"line": line, "error": failure.what}),
                    &format!("line {line}: refused: {}", failure.what),
                );
                record.refused = Some(failure.what);
            }
            Err(failure) => {
                // One line that may be written makes the whole command's outcome unknown.
                if unknown.as_ref().is_none_or(|known| known.exit != Exit::OutcomeUnknown) {
                    unknown = Some(failure);
                }
                continue;
            }
        }
        progress.record(vec![record])?;
    }
    match unknown {
        Some(failure) => {
            Err(failure.todo("run the same command again: it goes on where it stopped, with the same signed bytes"))
        }
        None => Ok(()),
    }
}

async fn send(
    author: &Author<'_>,
    route: &Route,
    record: &Record,
    task: &Task,
    scope: Scope,
    timeout: Duration,
) -> Outcome<Entered> {
    let entry = author.sign_until(
        route.cluster,
        EntryNumber(record.number),
        Height(record.not_after_height),
        scope,
        Action::Submit,
        task_payload(task),
    );
    author.enter(route, &entry, timeout).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(key: &str, after: &str) -> String {
        format!(r#"{{"key":"{key}","kind":"survey","after":[{after}]}}"#)
    }

    #[test]
    fn problem_of_a_file_names_line_and_field_before_anything_is_sent() {
        let good = line("a", "");
        for (second, words) in [
            (r#"{"key":"b","kind":"fly"}"#.to_owned(), "line 2: kind"),
            (line("a", ""), "line 2: key"),
            (line("b", "\"key:c\""), "line 2: after"),
            (line("b", "\"key:b\""), "line 2: after"),
        ] {
            let failure = parse_lines(&format!("{good}\n{second}\n")).unwrap_err();
            assert_eq!(failure.exit, Exit::Invalid);
            assert!(failure.what.starts_with(words), "{failure}");
        }
    }

    #[test]
    fn task_that_waits_for_another_of_the_file_is_sent_after_it() {
        let text = [
            line("a", ""),
            line("b", ""),
            line("c", "\"key:a\""),
            line("d", "\"key:c\""),
        ]
        .join("\n");
        let specs = parse_lines(&text).unwrap();
        let sizes: Vec<usize> = chunks(&specs).iter().map(|chunk| chunk.len()).collect();
        assert_eq!(sizes, [2, 1, 1]);
        let many: Vec<String> = (0..600).map(|i| line(&format!("k{i}"), "")).collect();
        let specs = parse_lines(&many.join("\n")).unwrap();
        assert_eq!(
            chunks(&specs).iter().map(|chunk| chunk.len()).collect::<Vec<_>>(),
            [256, 256, 88]
        );
    }

    #[test]
    fn line_keeps_its_number_over_an_interruption() {
        let dir = tempfile::tempdir().unwrap();
        let record = Record {
            line: 1,
            cluster: 0,
            number: 7,
            not_after_height: 9,
            task: None,
            refused: None,
        };
        let mut progress = Progress::open(dir.path(), b"content").unwrap();
        progress.record(vec![record.clone()]).unwrap();
        assert_eq!(
            Progress::open(dir.path(), b"content").err().map(|e| e.exit),
            Some(Exit::Conflict)
        );
        drop(progress);
        // A torn record is dropped, what is whole stays.
        let path = std::fs::read_dir(dir.path().join("bulk"))
            .unwrap()
            .map(|e| e.unwrap().path());
        let path = path
            .into_iter()
            .find(|p| p.extension().is_some_and(|e| e == "jsonl"))
            .unwrap();
        let mut file = std::fs::OpenOptions::new().append(true).open(path).unwrap();
        file.write_all(b"{\"line\":2").unwrap();
        let mut progress = Progress::open(dir.path(), b"content").unwrap();
        assert_eq!(progress.records.get(&1), Some(&record));
        progress
            .record(vec![Record {
                task: Some("ab".into()),
                ..record
            }])
            .unwrap();
        drop(progress);
        let progress = Progress::open(dir.path(), b"content").unwrap();
        assert!(progress.records.len() == 1 && progress.records[&1].is_done());
        drop(progress);
        assert!(Progress::open(dir.path(), b"other content").unwrap().records.is_empty());
    }
}
