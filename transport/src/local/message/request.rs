//! What on-board software asks.

use common::{
    entry::{Fence, Progress},
    ids::{Assignment, Founding, LogIndex, TaskId},
    task::{Scope, TaskState},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::local::{
    fixed::quote_non_numbers,
    spec::{SpecError, TaskSpec},
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
    /// What this drone holds, and behind it what it could claim, the most urgent first.
    Work {
        /// At most this many, up to [`TASKS_PER_ANSWER_MAX`].
        limit: u16,
    },
    /// State of the agent.
    Status,
    /// Answered as `status` when `position` differs from this one (an entry was applied, or the mode
    /// changed), and after 20 s at the latest.
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
    /// [`SpecError`] names the field; answer with [`ErrorCode::Invalid`](super::ErrorCode::Invalid).
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
            "work" => Ok(Self::Work {
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
            Self::Work { limit } => raw.limit = Some(*limit),
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
            Self::Work { .. } => "work",
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
