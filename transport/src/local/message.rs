//! Requests and answers of the local socket, as types and as lines of JSON.
//!
//! # Rules
//! * A write answers with the log index and the decision, or with an error whose `code` says whether
//!   another try makes sense. `unknown_outcome` carries the id under which the outcome can be learnt.
//! * A claim, a report and a result name the task; the fence is the drone's newest claim unless given.

use common::{
    entry::{Fence, Progress},
    ids::{Assignment, EntryId, Founding, LogIndex, TaskId},
    task::{Scope, TaskState},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{
    fixed::quote_non_numbers,
    spec::{SpecError, TaskSpec, place_from_json, place_to_json},
};

/// Rows of one `tasks` answer.
pub const TASKS_PER_ANSWER_MAX: u16 = 256;

/// What on-board software asks of the agent of its drone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Queue a task, signed by the drone.
    Submit {
        /// The task.
        spec: Box<TaskSpec>,
        /// Whose queue it enters.
        scope: Scope,
    },
    /// Take a task.
    Claim {
        /// Which.
        task: TaskId,
    },
    /// Renew all claims of the drone now. (The agent renews by itself as well.)
    Renew,
    /// Report on a task that is held.
    Progress {
        /// Which.
        task: TaskId,
        /// Under which claim, if not the newest.
        fence: Option<Fence>,
        /// What.
        progress: Progress,
    },
    /// The task is done.
    Complete {
        /// Which.
        task: TaskId,
        /// Under which claim, if not the newest. A drone whose agent was restarted names it.
        fence: Option<Fence>,
        /// For people.
        reason: String,
    },
    /// The task could not be done.
    Fail {
        /// Which.
        task: TaskId,
        /// Under which claim, if not the newest.
        fence: Option<Fence>,
        /// For people.
        reason: String,
        /// Whether another try makes sense.
        retriable: bool,
    },
    /// Give a task back. The vehicle has stopped.
    Release {
        /// Which.
        task: TaskId,
        /// Under which claim, if not the newest.
        fence: Option<Fence>,
    },
    /// End a task that the drone submitted.
    Cancel {
        /// Which.
        task: TaskId,
        /// For people.
        reason: String,
    },
    /// One task.
    Task {
        /// Which.
        task: TaskId,
    },
    /// Tasks in order of their ids.
    Tasks {
        /// Only those of one queue.
        scope: Option<Scope>,
        /// Only these states; empty means all.
        states: Vec<TaskState>,
        /// After this one.
        after: Option<TaskId>,
        /// At most this many, up to [`TASKS_PER_ANSWER_MAX`].
        limit: u16,
    },
    /// State of the agent.
    Status,
    /// Answered as `status` when `position` differs from this one, and after 20 s at the latest.
    Watch {
        /// `position` of an earlier answer, 0 at first.
        since: u64,
    },
}

/// A fencing token in JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FenceJson {
    /// How often the task was assigned.
    pub assignment: u64,
    /// Founding of the cluster.
    pub founding: u32,
    /// Log index of the claim.
    pub index: u64,
}

impl From<Fence> for FenceJson {
    fn from(fence: Fence) -> Self {
        Self {
            assignment: fence.assignment.0,
            founding: fence.founding.0,
            index: fence.index.0,
        }
    }
}

impl From<FenceJson> for Fence {
    fn from(fence: FenceJson) -> Self {
        Self {
            assignment: Assignment(fence.assignment),
            founding: Founding(fence.founding),
            index: LogIndex(fence.index),
        }
    }
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRequest {
    verb: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spec: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fence: Option<FenceJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retriable: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    #[serde(skip_serializing_if = "Option::is_none")]
    states: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    after: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<u64>,
}

/// Reads the word of a state; `cancelled` is accepted for `canceled`.
#[must_use]
pub fn state_from_word(word: &str) -> Option<TaskState> {
    let word = if word == "cancelled" { "canceled" } else { word };
    TaskState::ALL.into_iter().find(|state| state.word() == word)
}

fn task_id(text: Option<&String>, field: &str) -> Result<TaskId, SpecError> {
    let text = text.ok_or_else(|| SpecError::new(field, "is missing"))?;
    TaskId::from_hex(text).ok_or_else(|| SpecError::new(field, "is not 64 hexadecimal digits"))
}

impl Request {
    /// Reads one line.
    ///
    /// # Errors
    /// [`SpecError`] names the field; answer with [`ErrorCode::Invalid`].
    pub fn from_line(line: &str) -> Result<Self, SpecError> {
        let raw: RawRequest =
            serde_json::from_str(&quote_non_numbers(line)).map_err(|e| SpecError::new("request", e))?;
        let task = || task_id(raw.task.as_ref(), "task");
        let fence = raw.fence.map(Fence::from);
        let reason = raw.reason.clone().unwrap_or_default();
        let progress = |progress| {
            Ok(Self::Progress {
                task: task()?,
                fence,
                progress,
            })
        };
        match raw.verb.as_str() {
            "submit" => {
                let spec = raw.spec.as_ref().ok_or_else(|| SpecError::new("spec", "is missing"))?;
                let spec = TaskSpec::from_json(spec.get())
                    .map_err(|e| SpecError::new(format!("spec.{}", e.field), e.problem))?;
                Ok(Self::Submit {
                    spec: Box::new(spec),
                    scope: raw.scope.unwrap_or(Scope::Fleet),
                })
            }
            "claim" => Ok(Self::Claim { task: task()? }),
            "renew" => Ok(Self::Renew),
            "start" => progress(Progress::Started),
            "pause" => progress(Progress::Paused),
            "resume" => progress(Progress::Resumed),
            "progress" => match raw.percent {
                Some(percent @ 0..=100) => progress(Progress::Percent(percent)),
                Some(percent) => Err(SpecError::new("percent", format!("{percent} is above 100"))),
                None => Err(SpecError::new("percent", "is missing")),
            },
            "complete" => Ok(Self::Complete {
                task: task()?,
                fence,
                reason,
            }),
            "fail" => Ok(Self::Fail {
                task: task()?,
                fence,
                reason,
                retriable: raw.retriable.unwrap_or(false),
            }),
            "release" => Ok(Self::Release { task: task()?, fence }),
            "cancel" => Ok(Self::Cancel { task: task()?, reason }),
            "task" => Ok(Self::Task { task: task()? }),
            "tasks" => Ok(Self::Tasks {
                scope: raw.scope,
                states: states(raw.states.as_deref().unwrap_or_default())?,
                after: raw
                    .after
                    .as_ref()
                    .map(|after| task_id(Some(after), "after"))
                    .transpose()?,
                limit: raw.limit.unwrap_or(TASKS_PER_ANSWER_MAX).clamp(1, TASKS_PER_ANSWER_MAX),
            }),
            "status" => Ok(Self::Status),
            "watch" => Ok(Self::Watch {
                since: raw.since.unwrap_or(0),
            }),
            other => Err(SpecError::new("verb", format!("{other:?} is unknown"))),
        }
    }

    /// Writes one line, without its newline.
    #[must_use]
    pub fn to_line(&self) -> String {
        let mut raw = RawRequest {
            verb: self.verb().to_owned(),
            ..RawRequest::default()
        };
        let some_text = |text: &String| (!text.is_empty()).then(|| text.clone());
        match self {
            Self::Submit { spec, scope } => {
                raw.spec = Some(RawValue::from_string(spec.to_json()).expect("a written spec is JSON"));
                raw.scope = Some(*scope);
            }
            Self::Claim { task } | Self::Task { task } => raw.task = Some(task.to_hex()),
            Self::Progress { task, fence, progress } => {
                raw.task = Some(task.to_hex());
                raw.fence = fence.map(FenceJson::from);
                if let Progress::Percent(percent) = progress {
                    raw.percent = Some(*percent);
                }
            }
            Self::Complete { task, fence, reason } => {
                raw.task = Some(task.to_hex());
                raw.fence = fence.map(FenceJson::from);
                raw.reason = some_text(reason);
            }
            Self::Fail {
                task,
                fence,
                reason,
                retriable,
            } => {
                raw.task = Some(task.to_hex());
                raw.fence = fence.map(FenceJson::from);
                raw.reason = some_text(reason);
                raw.retriable = Some(*retriable);
            }
            Self::Release { task, fence } => {
                raw.task = Some(task.to_hex());
                raw.fence = fence.map(FenceJson::from);
            }
            Self::Cancel { task, reason } => {
                raw.task = Some(task.to_hex());
                raw.reason = some_text(reason);
            }
            Self::Tasks {
                scope,
                states,
                after,
                limit,
            } => {
                raw.scope = *scope;
                raw.states = Some(states.iter().map(|state| state.word().to_owned()).collect());
                raw.after = after.map(|after| after.to_hex());
                raw.limit = Some(*limit);
            }
            Self::Watch { since } => raw.since = Some(*since),
            Self::Renew | Self::Status => {}
        }
        serde_json::to_string(&raw).expect("texts, numbers and lists have a JSON form")
    }

    /// The word of the verb.
    #[must_use]
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Submit { .. } => "submit",
            Self::Claim { .. } => "claim",
            Self::Renew => "renew",
            Self::Progress { progress, .. } => match progress {
                Progress::Started => "start",
                Progress::Paused => "pause",
                Progress::Resumed => "resume",
                Progress::Percent(_) => "progress",
            },
            Self::Complete { .. } => "complete",
            Self::Fail { .. } => "fail",
            Self::Release { .. } => "release",
            Self::Cancel { .. } => "cancel",
            Self::Task { .. } => "task",
            Self::Tasks { .. } => "tasks",
            Self::Status => "status",
            Self::Watch { .. } => "watch",
        }
    }
}

fn states(words: &[String]) -> Result<Vec<TaskState>, SpecError> {
    words
        .iter()
        .map(|word| state_from_word(word).ok_or_else(|| SpecError::new("states", format!("{word:?} is no state"))))
        .collect()
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The cluster has no majority: nothing was written; try again later.
    NoQuorum,
    /// The drone may not do this.
    Denied,
    /// The key or the number belongs to other content.
    Conflict,
    /// The request breaks a rule that does not depend on time.
    Invalid,
    /// It may have been done: ask for the task, or send the same request again.
    UnknownOutcome,
    /// Starting, behind, or a queue is full: nothing was written; try again later.
    Unavailable,
    /// It stands in the log and changed nothing, or cannot; the reason says why.
    Rejected,
    /// No such task here.
    NotFound,
}

/// A request that was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}")]
pub struct LocalError {
    /// Why, for programs.
    pub code: ErrorCode,
    /// Why, for people.
    pub reason: String,
    /// Identity of the signed entry, if one was signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Worth trying again after this time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl LocalError {
    /// An error without id and delay.
    #[must_use]
    pub fn new(code: ErrorCode, reason: impl std::fmt::Display) -> Self {
        Self {
            code,
            reason: reason.to_string(),
            id: None,
            retry_after_ms: None,
        }
    }
}

/// One task, as the agent of a drone sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRow {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its author's key of it, as text where it is text.
    #[serde(default)]
    pub key: String,
    /// Where it is in its life.
    pub state: TaskState,
    /// What sort of work it is.
    pub kind: common::task::TaskKind,
    /// Whose queue it is in.
    pub scope: Scope,
    /// Label of the cluster that has custody, or whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Label of the drone that holds it, or held it last while its state is `unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// Whether the holder is this drone.
    #[serde(default)]
    pub is_mine: bool,
    /// The holder's claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceJson>,
    /// Until when this drone may work on it, on the agent's clock (`now_us` of the answer). Absent: it
    /// may not, now. It moves on with renewals.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub may_run_until_us: Option<u64>,
    /// Higher goes first.
    #[serde(default)]
    pub priority: u8,
    /// Tries used.
    #[serde(default)]
    pub attempts: u8,
    /// As last reported.
    #[serde(default)]
    pub percent: u8,
    /// Where, in order.
    #[serde(default)]
    pub places: Vec<PlaceJson>,
    /// Milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub earliest_start_ms: Option<u64>,
    /// Milliseconds since the Unix epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    /// Tasks that must be completed first.
    #[serde(default)]
    pub after: Vec<String>,
    /// For the on-board software, base 64.
    #[serde(default)]
    pub payload_base64: String,
    /// Height of the block in which its newest event is final; absent while it is only in its cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub final_height: Option<u64>,
}

impl TaskRow {
    /// The task's id.
    #[must_use]
    pub fn task_id(&self) -> Option<TaskId> {
        TaskId::from_hex(&self.id)
    }
}

/// A place in JSON, written and read without floating point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlaceJson(pub common::task::Place);

impl Serialize for PlaceJson {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        RawValue::from_string(place_to_json(&self.0))
            .map_err(serde::ser::Error::custom)?
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for PlaceJson {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        place_from_json(raw.get(), "place")
            .map(Self)
            .map_err(serde::de::Error::custom)
    }
}

/// State of an agent, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRow {
    /// Label of the drone.
    pub label: String,
    /// 64 hexadecimal digits.
    pub device: String,
    /// Label of its cluster.
    pub cluster: String,
    /// `normal`, `island`, `read_only` or `catching_up`.
    pub mode: String,
    /// Whether it leads its cluster.
    pub is_leader: bool,
    /// Label of the leader, as far as known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leader: Option<String>,
    /// Index applied.
    pub applied: u64,
    /// Global height applied.
    pub global_height: u64,
}

/// What a request that was done is answered. Fields that do not belong to its verb are absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply {
    /// Identity of the signed entry: 64 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Where it stands in the cluster's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// What was decided there: `granted` or `late`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// The task that a write is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// Of a granted claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fence: Option<FenceJson>,
    /// To `task` (one row) and `tasks`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tasks: Option<Vec<TaskRow>>,
    /// To `tasks`: whether there are more after the last row.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub more: Option<bool>,
    /// To `status` and `watch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusRow>,
    /// Differs from that of an earlier answer if anything may have changed in between.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// The clock of `may_run_until_us`, read when the answer was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub now_us: Option<u64>,
}

impl Reply {
    /// The answer to a write that stands in the log.
    #[must_use]
    pub fn written(entry: EntryId, index: LogIndex, verdict: &str) -> Self {
        Self {
            entry: Some(entry.to_hex()),
            index: Some(index.0),
            verdict: Some(verdict.to_owned()),
            ..Self::default()
        }
    }

    /// Of an answer to `task`: its one row.
    #[must_use]
    pub fn row(&self) -> Option<&TaskRow> {
        self.tasks.as_ref()?.first()
    }
}

/// Answer to one request.
pub type Answer = Result<Reply, LocalError>;

/// Writes an answer as one line, without its newline.
#[must_use]
pub fn answer_to_line(answer: &Answer) -> String {
    #[derive(Serialize)]
    struct Done<'a> {
        ok: bool,
        #[serde(flatten)]
        reply: &'a Reply,
    }
    #[derive(Serialize)]
    struct Failed<'a> {
        ok: bool,
        error: &'a LocalError,
    }
    let line = match answer {
        Ok(reply) => serde_json::to_string(&Done { ok: true, reply }),
        Err(error) => serde_json::to_string(&Failed { ok: false, error }),
    };
    line.expect("texts, numbers and lists have a JSON form")
}

/// Reads one answer line.
///
/// # Errors
/// What is wrong with it.
pub fn answer_from_line(line: &str) -> Result<Answer, String> {
    #[derive(Deserialize)]
    struct Head {
        ok: bool,
        error: Option<LocalError>,
    }
    let head: Head = serde_json::from_str(line).map_err(|e| e.to_string())?;
    match (head.ok, head.error) {
        (true, _) => serde_json::from_str::<Reply>(line).map(Ok).map_err(|e| e.to_string()),
        (false, Some(error)) => Ok(Err(error)),
        (false, None) => Err("neither ok nor an error".into()),
    }
}

#[cfg(test)]
mod tests {
    use common::task::TaskKind;

    use super::*;

    #[test]
    fn every_request_survives_its_line() {
        let task = TaskId([7; 32]);
        let fence = Some(Fence {
            assignment: Assignment(2),
            founding: Founding(0),
            index: LogIndex(9),
        });
        let progress = |progress| Request::Progress {
            task,
            fence: None,
            progress,
        };
        for request in [
            Request::Submit {
                spec: Box::new(TaskSpec::new("k", TaskKind::Survey)),
                scope: Scope::Cluster,
            },
            Request::Claim { task },
            Request::Renew,
            progress(Progress::Started),
            progress(Progress::Paused),
            progress(Progress::Resumed),
            progress(Progress::Percent(40)),
            Request::Complete {
                task,
                fence,
                reason: String::new(),
            },
            Request::Fail {
                task,
                fence,
                reason: "wind".into(),
                retriable: true,
            },
            Request::Release { task, fence: None },
            Request::Cancel {
                task,
                reason: "not needed".into(),
            },
            Request::Task { task },
            Request::Tasks {
                scope: Some(Scope::Fleet),
                states: vec![TaskState::Assigned],
                after: Some(task),
                limit: 10,
            },
            Request::Status,
            Request::Watch { since: 4 },
        ] {
            assert_eq!(Request::from_line(&request.to_line()), Ok(request));
        }
    }

    #[test]
    fn bad_request_is_refused_by_field() {
        for (line, field) in [
            ("not json", "request"),
            (r#"{"verb":"claim","colour":1}"#, "request"),
            (r#"{"verb":"fly"}"#, "verb"),
            (r#"{"verb":"claim"}"#, "task"),
            (r#"{"verb":"claim","task":"12"}"#, "task"),
            (r#"{"verb":"submit"}"#, "spec"),
            (
                r#"{"verb":"submit","spec":{"key":"k","kind":"survey","priority":-1}}"#,
                "spec.priority",
            ),
            (r#"{"verb":"tasks","states":["lost"]}"#, "states"),
        ] {
            assert_eq!(Request::from_line(line).expect_err(line).field, field, "{line}");
        }
        let percent = format!(r#"{{"verb":"progress","task":"{}","percent":101}}"#, "0".repeat(64));
        assert_eq!(Request::from_line(&percent).expect_err("above 100").field, "percent");
    }

    #[test]
    fn cancelled_is_read_as_canceled() {
        assert_eq!(state_from_word("cancelled"), Some(TaskState::Canceled));
        assert_eq!(state_from_word("canceled"), Some(TaskState::Canceled));
    }

    #[test]
    fn answers_survive_their_lines() {
        let reply = Reply {
            fence: Some(FenceJson {
                assignment: 1,
                founding: 0,
                index: 5,
            }),
            task: Some("ab".repeat(32)),
            ..Reply::written(EntryId([1; 32]), LogIndex(5), "granted")
        };
        let line = answer_to_line(&Ok(reply.clone()));
        assert!(line.starts_with(r#"{"ok":true"#) && !line.contains("null"), "{line}");
        assert_eq!(answer_from_line(&line), Ok(Ok(reply)));

        let row = TaskRow {
            id: "ab".repeat(32),
            key: "k".into(),
            state: TaskState::Claimed,
            kind: TaskKind::Delivery,
            scope: Scope::Fleet,
            cluster: Some("c1".into()),
            holder: Some("c1-1".into()),
            is_mine: true,
            fence: None,
            may_run_until_us: Some(7),
            priority: 100,
            attempts: 1,
            percent: 0,
            places: vec![PlaceJson(common::task::Place::Local {
                east_mm: 1_427_890,
                north_mm: -1,
                up_mm: 0,
            })],
            earliest_start_ms: None,
            deadline_ms: Some(3),
            after: Vec::new(),
            payload_base64: String::new(),
            final_height: Some(2),
        };
        let answer = Ok(Reply {
            tasks: Some(vec![row]),
            more: Some(false),
            now_us: Some(5),
            ..Reply::default()
        });
        assert_eq!(answer_from_line(&answer_to_line(&answer)), Ok(answer));

        let refused = Err(LocalError {
            retry_after_ms: Some(300),
            ..LocalError::new(ErrorCode::NoQuorum, "no majority")
        });
        let line = answer_to_line(&refused);
        assert_eq!(
            line,
            r#"{"ok":false,"error":{"code":"no_quorum","reason":"no majority","retry_after_ms":300}}"#
        );
        assert_eq!(answer_from_line(&line), Ok(refused));
        assert!(answer_from_line("{}").is_err());
    }
}
