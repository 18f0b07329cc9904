//! Requests and answers of the local socket, as types and as lines of JSON.
//!
//! # Rules
//! * A write answers with the log index and the decision, or with an error whose `code` says whether
//!   another try makes sense. `unknown_outcome` carries the id under which the outcome can be learnt.
//! * A claim, a report and a result name the task; the fence is the drone's newest claim unless given.

mod answer;
mod request;
#[cfg(test)]
mod tests;

pub use answer::{
    Answer, ErrorCode, LocalError, PlaceJson, Reply, StatusRow, TaskRow, answer_from_line, answer_to_line,
};
pub use request::{FenceJson, Request, TASKS_PER_ANSWER_MAX, state_from_word};
