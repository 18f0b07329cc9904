//! What the answers to one write say of it together.
//!
//! # Rules
//! * An agent that may have taken the entry makes the outcome unknown, whatever another one refuses later.
//! * A refusal by a rule ends a write that certainly was not taken before.

use common::{
    ids::{EntryId, RaftNodeId},
    verdict::Answer,
    wire::{
        cluster::WriteOutcome,
        frame::RefusalCode,
        op::{Mode, OpAnswer, WriteRefusal},
    },
};
use transport::ports::CallError;

use super::{
    AskError, Peer,
    author::{Entered, Route},
};
use crate::exit::{Exit, Failure, Outcome, failure_of_refusal};

/// What is known after the tries so far.
#[derive(Debug, Default)]
pub(super) struct Tries {
    may_be_written: bool,
    refusal: Option<Failure>,
    unreachable: Option<String>,
    /// The last agent that answered is on the wrong side of a cut.
    pub(super) is_without_quorum: bool,
}

/// A write that stands in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Done {
    pub(super) answer: Answer,
    pub(super) mode: Mode,
}

impl Done {
    pub(super) fn entered(self, id: EntryId, route: &Route, peer: &Peer) -> Entered {
        Entered {
            id,
            cluster: route.cluster,
            index: self.answer.index,
            verdict: self.answer.verdict,
            via: peer.label.clone(),
            mode: self.mode,
        }
    }
}

impl Tries {
    /// Of bytes that were sent before, and whose outcome is not known.
    pub(super) fn of_a_resend() -> Self {
        Self {
            may_be_written: true,
            ..Self::default()
        }
    }

    /// A refusal for good, unless an earlier try may stand in the log: then whoever refuses may merely not
    /// have applied it yet.
    fn refuse(&mut self, failure: Failure) -> Option<Outcome<Done>> {
        if self.may_be_written {
            self.refusal = Some(failure);
            return None;
        }
        Some(Err(failure))
    }

    /// Takes one answer; `Some` ends the write.
    pub(super) fn take(
        &mut self,
        name_of: &dyn Fn(RaftNodeId) -> String,
        peer: &Peer,
        answer: Result<OpAnswer, AskError>,
    ) -> Option<Outcome<Done>> {
        self.is_without_quorum = false;
        match answer {
            Ok(OpAnswer::Write { outcome, mode, .. }) => match outcome {
                WriteOutcome::Committed(answer) => Some(Ok(Done { answer, mode })),
                WriteOutcome::Refused(refusal @ WriteRefusal::Rejected { .. }) => {
                    self.refuse(failure_of_refusal(&refusal, name_of))
                }
                WriteOutcome::Refused(refusal) => {
                    self.is_without_quorum = !matches!(refusal, WriteRefusal::Overloaded { .. });
                    self.refusal = Some(failure_of_refusal(&refusal, name_of));
                    None
                }
                WriteOutcome::Unknown => {
                    self.may_be_written = true;
                    self.is_without_quorum = mode == Mode::ReadOnly;
                    None
                }
            },
            Err(AskError::Call(CallError::Refused(refusal))) => {
                let failure = AskError::Call(CallError::Refused(refusal.clone())).into_failure(&peer.label);
                match refusal.code {
                    RefusalCode::Denied | RefusalCode::Invalid => self.refuse(failure),
                    _ => {
                        self.refusal = Some(failure);
                        None
                    }
                }
            }
            Err(AskError::Call(error)) if error.had_no_effect() => {
                self.unreachable = Some(format!("{}: {error}", peer.label));
                None
            }
            Ok(_) | Err(_) => {
                self.may_be_written = true;
                None
            }
        }
    }

    pub(super) fn failure(self, id: &EntryId) -> Failure {
        if self.may_be_written {
            let now = self.refusal.map(|refusal| format!(" (now: {})", refusal.what));
            let what = format!("no agent says how the write ended{}", now.unwrap_or_default());
            return Failure::new(Exit::OutcomeUnknown, what).id(id.to_hex());
        }
        match (self.refusal, self.unreachable) {
            (Some(refusal), _) => refusal,
            (None, Some(text)) => Failure::new(Exit::NoConnection, text),
            (None, None) => Failure::new(Exit::NoConnection, "there was no time to send anything"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use common::{
        ids::{ClusterId, DeviceId, LogIndex, NodeIdx, TaskId},
        verdict::{Reason, Verdict},
    };

    use super::*;
    use crate::client::author::accepted;

    fn peer() -> Peer {
        Peer {
            label: "c1-1".into(),
            id: DeviceId([1; 32]),
            idx: NodeIdx(0),
            cluster: Some(ClusterId(0)),
            address: "127.0.0.1:1".parse().unwrap(),
            socket: None,
        }
    }

    fn write(outcome: WriteOutcome) -> Result<OpAnswer, AskError> {
        Ok(OpAnswer::Write {
            id: EntryId([2; 32]),
            outcome,
            mode: Mode::Normal,
        })
    }

    fn no_quorum() -> WriteOutcome {
        WriteOutcome::Refused(WriteRefusal::NoQuorum {
            leader: None,
            retry_after_ms: 1,
        })
    }

    fn end_of(answers: Vec<Result<OpAnswer, AskError>>) -> Outcome<Done> {
        let mut tries = Tries::default();
        for answer in answers {
            if let Some(outcome) = tries.take(&|id| id.to_string(), &peer(), answer) {
                return outcome;
            }
        }
        Err(tries.failure(&EntryId([2; 32])))
    }

    #[test]
    fn one_unknown_answer_makes_the_outcome_unknown_whatever_others_refuse() {
        let unreachable = || Err(AskError::Call(CallError::Unreachable(DeviceId([1; 32]))));
        let timeout = || Err(AskError::Call(CallError::Timeout(Duration::from_secs(1))));
        assert_eq!(end_of(vec![unreachable()]).unwrap_err().exit, Exit::NoConnection);
        assert_eq!(
            end_of(vec![unreachable(), write(no_quorum())]).unwrap_err().exit,
            Exit::NoQuorum
        );
        for unknown in [timeout(), write(WriteOutcome::Unknown), Err(AskError::Malformed)] {
            let failure = end_of(vec![unknown, write(no_quorum()), unreachable()]).unwrap_err();
            assert_eq!(failure.exit, Exit::OutcomeUnknown);
            assert_eq!(failure.id, Some("02".repeat(32)));
        }
    }

    #[test]
    fn rejection_by_one_who_may_not_have_applied_it_does_not_end_a_write_that_may_stand_in_the_log() {
        let rejected = || {
            write(WriteOutcome::Refused(WriteRefusal::Rejected {
                verdict: Verdict::Rejected(Reason::Denied),
                detail: Default::default(),
            }))
        };
        let failure = end_of(vec![write(WriteOutcome::Unknown), rejected()]).unwrap_err();
        assert_eq!(failure.exit, Exit::OutcomeUnknown);
        let mut resend = Tries::of_a_resend();
        for refusal in [rejected(), write(no_quorum())] {
            assert_eq!(resend.take(&|id| id.to_string(), &peer(), refusal), None);
        }
        assert_eq!(resend.failure(&EntryId([2; 32])).exit, Exit::OutcomeUnknown);
        assert_eq!(end_of(vec![rejected()]).unwrap_err().exit, Exit::Denied);
    }

    #[test]
    fn committed_entry_ends_the_write_with_its_decision() {
        let answer = Answer {
            index: LogIndex(9),
            verdict: Verdict::Granted,
        };
        let outcome = end_of(vec![
            write(WriteOutcome::Unknown),
            write(WriteOutcome::Committed(answer)),
        ]);
        let mode = Mode::Normal;
        assert_eq!(outcome, Ok(Done { answer, mode }));
    }

    #[test]
    fn rejection_is_final_and_a_duplicate_is_success() {
        let rejected = WriteOutcome::Refused(WriteRefusal::Rejected {
            verdict: Verdict::Rejected(Reason::Denied),
            detail: Default::default(),
        });
        assert_eq!(end_of(vec![write(rejected)]).unwrap_err().exit, Exit::Denied);
        let task = TaskId([4; 32]);
        assert_eq!(accepted(Verdict::Rejected(Reason::DuplicateOf(task))), Ok("duplicate"));
        let conflict = accepted(Verdict::Rejected(Reason::KeyConflict(task))).unwrap_err();
        assert_eq!((conflict.exit, conflict.id), (Exit::Conflict, Some(task.to_hex())));
    }
}
