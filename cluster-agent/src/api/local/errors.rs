//! Why the drone's own software is told no.

use common::{
    verdict::{Reason, Verdict},
    wire::op::WriteRefusal,
};
use transport::local::{ErrorCode, LocalError};

pub(super) fn error(code: ErrorCode, reason: impl std::fmt::Display) -> LocalError {
    LocalError::new(code, reason)
}

pub(super) fn ending() -> LocalError {
    error(ErrorCode::Unavailable, "the agent is ending")
}

pub(super) fn rejected(reason: Reason) -> LocalError {
    let code = match reason {
        Reason::Denied | Reason::UnknownKey | Reason::StaleKey => ErrorCode::Denied,
        Reason::Conflict | Reason::KeyConflict(_) => ErrorCode::Conflict,
        Reason::Malformed => ErrorCode::Invalid,
        Reason::UnknownTask => ErrorCode::NotFound,
        _ => ErrorCode::Rejected,
    };
    error(code, reason)
}

pub(super) fn refused(refusal: WriteRefusal) -> LocalError {
    match refusal {
        WriteRefusal::NoQuorum { retry_after_ms, .. } => LocalError {
            retry_after_ms: Some(retry_after_ms),
            ..error(ErrorCode::NoQuorum, "the cluster has no majority here")
        },
        WriteRefusal::CatchingUp { behind } => {
            error(ErrorCode::Unavailable, format!("this agent is {behind} entries behind"))
        }
        WriteRefusal::Overloaded { what, retry_after_ms } => LocalError {
            retry_after_ms: Some(retry_after_ms),
            ..error(ErrorCode::Unavailable, format!("overloaded: {what}"))
        },
        WriteRefusal::Rejected {
            verdict: Verdict::Rejected(reason),
            ..
        } => rejected(reason),
        WriteRefusal::Rejected { detail, .. } => error(ErrorCode::Rejected, detail),
    }
}
