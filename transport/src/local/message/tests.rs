//! Requests and answers survive their lines; bad ones are refused by field.

use common::{
    entry::{Fence, Progress},
    ids::{Assignment, EntryId, Founding, LogIndex, TaskId},
    task::{Scope, TaskKind, TaskState},
};

use super::*;
use crate::local::TaskSpec;

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
        Request::Work { limit: 3 },
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
