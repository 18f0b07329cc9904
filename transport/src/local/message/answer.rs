//! What on-board software is answered.

use common::{
    ids::{EntryId, LogIndex, TaskId},
    task::{Scope, TaskState},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::FenceJson;
use crate::local::spec::{place_from_json, place_to_json};

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
    /// Mode of the agent when it answered: `normal`, `island`, `read_only` or `catching_up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
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
            mode: None,
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
    /// Since when, on the clock of `now_us`.
    pub mode_since_us: u64,
    /// The mode before it; absent if it is the first since the agent started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode_before: Option<String>,
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
    /// Differs from that of an earlier answer if anything may have changed in between, the mode too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// Mode of the agent when it answered: `normal`, `island`, `read_only` or `catching_up`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How old the agent's picture of its cluster may be; absent is "unknown".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staleness_ms: Option<u64>,
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
