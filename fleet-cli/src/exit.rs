//! How `fleet` ends: the exit codes, and errors that say what happened, what it means, what to do.
//!
//! # Rules
//! * One code per fate, so that a script knows without reading text whether another try makes sense.
//! * With `-o json` an error is one JSON object on stderr.

use std::fmt;

use common::{
    ids::RaftNodeId,
    verdict::{Reason, Verdict},
    wire::op::WriteRefusal,
};

/// Exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Exit {
    /// A fault of this program or of the machine.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The author or the certificate may not do this.
    Denied = 3,
    /// No process was reached: nothing was sent.
    NoConnection = 4,
    /// It contradicts what is there: state, fence, key, number.
    Conflict = 5,
    /// A file or a value is wrong.
    Invalid = 6,
    /// The cluster has no majority, or takes nothing now. Nothing was written.
    NoQuorum = 7,
    /// It may have been written. The id tells how to ask.
    OutcomeUnknown = 8,
    /// The answer would be older than allowed.
    TooStale = 9,
    /// A proof does not hold, or the demo's judge says no.
    VerificationFailed = 10,
    /// Going on could break a promise.
    RefusedForSafety = 78,
}

/// An end other than success.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Exit code.
    pub exit: Exit,
    /// What happened.
    pub what: String,
    /// What it means.
    pub means: String,
    /// What to do.
    pub todo: String,
    /// Identity of the entry whose outcome is not known, or of the task it collides with.
    pub id: Option<String>,
}

impl Failure {
    /// A failure with the usual meaning of its code.
    pub fn new(exit: Exit, what: impl fmt::Display) -> Self {
        let (means, todo) = match exit {
            Exit::Failed => ("this program or this machine is at fault", "look at the text above"),
            Exit::Usage => ("nothing was sent", "see --help"),
            Exit::Denied => ("nothing changed", "use an operator that has the role"),
            Exit::NoConnection => (
                "nothing was sent",
                "check that the processes run and the addresses are right",
            ),
            Exit::Conflict => ("nothing changed", "look at the task's state and history"),
            Exit::Invalid => ("nothing was sent", "correct the value that is named"),
            Exit::NoQuorum => ("nothing was written", "try again later, or through another cluster"),
            Exit::OutcomeUnknown => (
                "it may have been written, or be written yet",
                "repeat the same command: it sends the same signed bytes",
            ),
            Exit::TooStale => ("no answer is fresh enough", "allow an older one, or wait for contact"),
            Exit::VerificationFailed => ("it must not be relied on", "get it again from another source"),
            Exit::RefusedForSafety => ("nothing was changed", "read the message before you go on"),
        };
        Self {
            exit,
            what: what.to_string(),
            means: means.to_owned(),
            todo: todo.to_owned(),
            id: None,
        }
    }

    /// Says what it means.
    #[must_use]
    pub fn means(mut self, text: impl fmt::Display) -> Self {
        self.means = text.to_string();
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn todo(mut self, text: impl fmt::Display) -> Self {
        self.todo = text.to_string();
        self
    }

    /// Names an entry or a task.
    #[must_use]
    pub fn id(mut self, id: impl fmt::Display) -> Self {
        self.id = Some(id.to_string());
        self
    }

    /// A fault of this machine while `what`.
    pub fn io(what: impl fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |error| {
            Self::new(Exit::Failed, format!("{what}: {error}")).todo("check the file system and its permissions")
        }
    }

    /// One JSON object for scripts.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({"error": {
            "exit": self.exit as u8, "what": self.what, "means": self.means, "do": self.todo, "id": self.id,
        }})
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "error: {}\n  means: {}\n  do:    {}",
            self.what, self.means, self.todo
        )?;
        match &self.id {
            Some(id) => write!(f, "\n  id:    {id}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Failure {}

/// What every command returns.
pub type Outcome<T = ()> = Result<T, Failure>;

/// The exit code of a decision that changed nothing.
#[must_use]
pub fn exit_of_reason(reason: Reason) -> Exit {
    match reason {
        Reason::UnknownKey | Reason::Denied | Reason::StaleKey | Reason::Constrained => Exit::Denied,
        Reason::Malformed | Reason::WrongCluster | Reason::UnknownTask => Exit::Invalid,
        Reason::Conflict
        | Reason::NumberWindow
        | Reason::Expired
        | Reason::WrongState(_)
        | Reason::Fenced
        | Reason::NotHolder
        | Reason::NotInCustody
        | Reason::OldCounter
        | Reason::Blocked
        | Reason::LeaseRenewed
        | Reason::DuplicateOf(_)
        | Reason::KeyConflict(_)
        | Reason::TooManyClaims
        | Reason::LinkEnded(_) => Exit::Conflict,
    }
}

/// The failure of an entry that stands in a log and changed nothing.
#[must_use]
pub fn failure_of_reason(reason: Reason) -> Failure {
    let failure = Failure::new(exit_of_reason(reason), reason);
    match reason {
        Reason::KeyConflict(task) => failure
            .means("one key is one task; nothing changed")
            .todo("choose another --key, or look at the task that has it")
            .id(task.to_hex()),
        Reason::Blocked => failure.todo("wait until the linked task is completed"),
        Reason::LinkEnded(_) => failure
            .means("a task that waits for it could never start; nothing changed")
            .todo("submit the linked task anew, and link to the new one"),
        Reason::StaleKey => failure.todo("sign with the new key"),
        _ => failure,
    }
}

/// The failure of a write that is not in any log and will not be. `name_of` gives a member's label.
#[must_use]
pub fn failure_of_refusal(refusal: &WriteRefusal, name_of: &dyn Fn(RaftNodeId) -> String) -> Failure {
    match refusal {
        WriteRefusal::NoQuorum { leader, retry_after_ms } => {
            let leader = leader.map_or("no leader is known".into(), |id| {
                format!("last known leader: {}", name_of(id))
            });
            Failure::new(Exit::NoQuorum, format!("the cluster has no majority ({leader})"))
                .todo(format!("try again in {retry_after_ms} ms, or through another cluster"))
        }
        WriteRefusal::CatchingUp { behind } => Failure::new(
            Exit::NoQuorum,
            format!("the agent is {behind} entries behind its cluster"),
        )
        .todo("try again soon, or through another agent"),
        WriteRefusal::Overloaded { what, retry_after_ms } => {
            Failure::new(Exit::NoQuorum, format!("a bounded queue is full: {what}"))
                .todo(format!("try again in {retry_after_ms} ms"))
        }
        WriteRefusal::Rejected { verdict, detail } => match verdict {
            Verdict::Rejected(reason) => {
                let mut failure = failure_of_reason(*reason);
                if !detail.as_str().is_empty() {
                    failure.what = format!("{} ({detail})", failure.what);
                }
                failure
            }
            _ => Failure::new(Exit::Invalid, detail),
        },
    }
}

#[cfg(test)]
mod tests {
    use common::{codec::Label, ids::TaskId, task::TaskState};

    use super::*;

    #[test]
    fn each_fate_has_the_code_that_scripts_rely_on() {
        let codes = [
            (Exit::Usage, 2),
            (Exit::Denied, 3),
            (Exit::NoConnection, 4),
            (Exit::Conflict, 5),
            (Exit::Invalid, 6),
            (Exit::NoQuorum, 7),
            (Exit::OutcomeUnknown, 8),
            (Exit::TooStale, 9),
            (Exit::VerificationFailed, 10),
            (Exit::RefusedForSafety, 78),
        ];
        for (exit, code) in codes {
            assert_eq!(exit as u8, code);
        }
    }

    #[test]
    fn refusals_and_decisions_map_to_their_codes() {
        let no_quorum = WriteRefusal::NoQuorum {
            leader: Some(RaftNodeId(7)),
            retry_after_ms: 300,
        };
        let name_of = |id: RaftNodeId| format!("c1-{}", id.0);
        let failure = failure_of_refusal(&no_quorum, &name_of);
        assert_eq!(failure.exit, Exit::NoQuorum);
        assert!(failure.what.contains("last known leader: c1-7"), "{failure}");
        assert!(failure.todo.contains("300 ms"), "{failure}");
        let rejected = |reason| WriteRefusal::Rejected {
            verdict: Verdict::Rejected(reason),
            detail: Label::default(),
        };
        for (reason, exit) in [
            (Reason::Denied, Exit::Denied),
            (Reason::UnknownKey, Exit::Denied),
            (Reason::Malformed, Exit::Invalid),
            (Reason::Fenced, Exit::Conflict),
            (Reason::WrongState(TaskState::Completed), Exit::Conflict),
        ] {
            assert_eq!(failure_of_refusal(&rejected(reason), &name_of).exit, exit, "{reason:?}");
        }
        let task = TaskId([3; 32]);
        assert_eq!(failure_of_reason(Reason::KeyConflict(task)).id, Some(task.to_hex()));
    }

    #[test]
    fn error_says_what_happened_what_it_means_and_what_to_do() {
        let text = Failure::new(Exit::OutcomeUnknown, "no answer").id("ab").to_string();
        for part in [
            "error: no answer",
            "means: it may have been written",
            "do:    repeat",
            "id:    ab",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
