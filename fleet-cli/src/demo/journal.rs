//! What the demo saw with its own eyes: every acknowledgement, every run of a vehicle, every fault.
//!
//! # Rules
//! * One line per event, appended to a file; the judge reads the file, not the memory that wrote it.
//! * Times are milliseconds of this process's own monotonic clock since the begin of the demo.

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
    time::Instant,
};

use serde::{Deserialize, Serialize};

use crate::exit::{Exit, Failure, Outcome};

/// Something that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case", deny_unknown_fields)]
pub enum Event {
    /// A write was acknowledged to its author.
    Acknowledged {
        /// `submit`, `claim`, `start`, `complete` and so on.
        verb: String,
        /// 64 hexadecimal digits.
        task: String,
        /// Label of the author.
        by: String,
        /// `granted`, `late`, `duplicate`.
        verdict: String,
        /// Label of the cluster whose log holds it.
        cluster: String,
        /// Where in that log.
        index: u64,
    },
    /// A submission was refused for good.
    Refused {
        /// The author's key of the task.
        key: String,
        /// Why.
        reason: String,
    },
    /// A vehicle began to work on a task.
    RunBegan {
        /// 64 hexadecimal digits.
        task: String,
        /// Label of the drone.
        drone: String,
    },
    /// A vehicle stopped working on a task.
    RunEnded {
        /// 64 hexadecimal digits.
        task: String,
        /// Label of the drone.
        drone: String,
    },
    /// Processes were killed, or cut off.
    Broken {
        /// Number of the fault.
        fault: usize,
        /// What kind of fault.
        kind: String,
        /// Which processes.
        targets: Vec<String>,
    },
    /// A write was tried at an agent that is cut off.
    Probed {
        /// Number of the fault.
        fault: usize,
        /// Which agent.
        agent: String,
        /// `no_quorum`, `unknown`, `committed`, or the answer in words.
        outcome: String,
        /// How long the answer took.
        took_ms: u64,
    },
    /// An agent that is cut off answered a read.
    Read {
        /// Number of the fault.
        fault: usize,
        /// Which agent.
        agent: String,
        /// Label of its cluster.
        cluster: String,
        /// Of what.
        view: ReadView,
        /// When it was asked; the line's own time is that of the answer.
        sent_ms: u64,
        /// Mode it said to be in.
        mode: String,
        /// Age it said; `None` is "unknown".
        staleness_ms: Option<u64>,
        /// The answer begins after this task.
        after: Option<String>,
        /// And is complete up to this one; `None` is the end.
        upto: Option<String>,
        /// Tasks it showed.
        tasks: Vec<String>,
    },
    /// They run and reach each other again, and their cluster or the validators answer as before.
    Healed {
        /// Number of the fault.
        fault: usize,
        /// What was seen meanwhile.
        effect: String,
    },
    /// A task was first seen final.
    SeenFinal {
        /// 64 hexadecimal digits.
        task: String,
    },
}

/// What a read was of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReadView {
    /// What the agent applied of its cluster's log.
    Cluster,
    /// What finalized blocks say.
    Final,
}

/// An event and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds since the begin.
    pub at_ms: u64,
    /// What was seen.
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Debug, Default)]
struct Counts {
    submits: usize,
    acknowledged: usize,
    completes: usize,
    finals: usize,
    refused: usize,
    reads: usize,
    islands: usize,
    broken: Option<String>,
}

#[derive(Debug)]
struct Inner {
    file: fs::File,
    counts: Counts,
}

/// The journal; clones write to the same file.
#[derive(Clone, Debug)]
pub struct Journal {
    path: PathBuf,
    begin: Instant,
    inner: Arc<Mutex<Inner>>,
}

/// Running totals, for progress and for pacing faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Acknowledged submissions.
    pub submits: usize,
    /// Acknowledged writes of any kind.
    pub acknowledged: usize,
    /// Acknowledged completions.
    pub completes: usize,
    /// Tasks seen final.
    pub finals: usize,
    /// Writes that a minority refused with "no quorum".
    pub refused: usize,
    /// Reads that cut-off agents answered with an age.
    pub reads: usize,
    /// Reads whose agent said that its cluster is an island.
    pub islands: usize,
}

impl Journal {
    /// Begins a journal in a new file.
    ///
    /// # Errors
    /// Of the file system.
    pub fn create(path: &Path) -> Outcome<Self> {
        let file = fs::OpenOptions::new()
            .create_new(true)
            .append(true)
            .open(path)
            .map_err(Failure::io(format!("cannot create {}", path.display())))?;
        Ok(Self {
            path: path.to_owned(),
            begin: Instant::now(),
            inner: Arc::new(Mutex::new(Inner {
                file,
                counts: Counts::default(),
            })),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Milliseconds since the begin.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.begin.elapsed().as_millis() as u64
    }

    /// Writes one event. A journal that cannot be written fails the demo when it is read.
    pub fn record(&self, event: Event) {
        let mut inner = self.lock();
        // Under the lock, so that lines stand in the order of their times.
        let line = Line {
            at_ms: self.now_ms(),
            event,
        };
        match &line.event {
            Event::Acknowledged { verb, verdict, .. } => {
                inner.counts.acknowledged += 1;
                inner.counts.submits += usize::from(verb == "submit");
                inner.counts.completes += usize::from(verb == "complete" && verdict == "granted");
            }
            Event::SeenFinal { .. } => inner.counts.finals += 1,
            Event::Probed { outcome, .. } => inner.counts.refused += usize::from(outcome == "no_quorum"),
            Event::Read { staleness_ms, mode, .. } => {
                inner.counts.reads += usize::from(staleness_ms.is_some());
                inner.counts.islands += usize::from(mode == "island");
            }
            _ => {}
        }
        let written = serde_json::to_vec(&line)
            .map_err(std::io::Error::from)
            .and_then(|mut bytes| {
                bytes.push(b'\n');
                inner.file.write_all(&bytes)
            });
        if let Err(error) = written {
            inner.counts.broken = Some(error.to_string());
        }
    }

    /// Totals so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let inner = self.lock();
        Totals {
            submits: inner.counts.submits,
            acknowledged: inner.counts.acknowledged,
            completes: inner.counts.completes,
            finals: inner.counts.finals,
            refused: inner.counts.refused,
            reads: inner.counts.reads,
            islands: inner.counts.islands,
        }
    }

    /// Reads the file back.
    ///
    /// # Errors
    /// A line that could not be written, or is damaged.
    pub fn read_back(&self) -> Outcome<Vec<Line>> {
        if let Some(error) = &self.lock().counts.broken {
            return Err(Failure::new(
                Exit::Failed,
                format!("the journal could not be written: {error}"),
            ));
        }
        let text = fs::read_to_string(&self.path).map_err(Failure::io("cannot read the journal"))?;
        text.lines()
            .map(|line| serde_json::from_str(line).map_err(|e| Failure::new(Exit::Failed, format!("journal: {e}"))))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::create(&dir.path().join("journal.jsonl")).unwrap();
        let submit = Event::Acknowledged {
            verb: "submit".into(),
            task: "ab".into(),
            by: "op1".into(),
            verdict: "granted".into(),
            cluster: "c1".into(),
            index: 3,
        };
        let killed = Event::Broken {
            fault: 0,
            kind: "leader_killed".into(),
            targets: vec!["c1-1".into()],
        };
        journal.record(submit.clone());
        journal.clone().record(killed.clone());
        let events: Vec<Event> = journal
            .read_back()
            .unwrap()
            .into_iter()
            .map(|line| line.event)
            .collect();
        assert_eq!(events, [submit, killed]);
        assert_eq!(journal.totals().submits, 1);
        assert!(
            Journal::create(&dir.path().join("journal.jsonl")).is_err(),
            "a journal is never written over"
        );
    }
}
