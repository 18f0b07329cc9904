//! Whatever happens on the way, the age that is shown is not below the truth.

use common::{
    ids::{ClusterId, TaskId},
    task::{Scope, TaskState},
    testing::{Fleet, task},
    wire::op::{Consistency, Finality, TaskView},
};

use super::*;
use crate::client::{
    tasks::Freshness,
    testing::{client, read},
};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn view(fleet: &Fleet, first: u8) -> TaskView {
    TaskView {
        id: TaskId([first; 32]),
        author: fleet.id("op1"),
        scope: Scope::Cluster,
        through: ClusterId(0),
        task: task("k"),
        state: TaskState::Queued,
        cluster: Some(ClusterId(0)),
        custody_until: None,
        holder: None,
        attempts: 0,
        percent: 0,
        finality: Finality::ClusterCommitted,
    }
}

fn page(fleet: &Fleet, first: u8, more: bool, staleness_ms: Option<u64>) -> OpAnswer {
    OpAnswer::Tasks {
        tasks: vec![view(fleet, first)].try_into().unwrap(),
        more,
        context: read(staleness_ms),
    }
}

fn local(staleness_ms_max: Option<u64>) -> Freshness {
    Freshness {
        consistency: Consistency::Local,
        staleness_ms_max,
    }
}

#[tokio::test(start_paused = true)]
async fn age_goes_on_while_the_answer_and_others_are_waited_for() {
    let fleet = Fleet::new(2, 3, 4);
    let answers = vec![
        (ms(50), page(&fleet, 1, false, Some(100))),
        (ms(400), page(&fleet, 2, false, Some(10))),
    ];
    let listed = client(&fleet, answers).tasks(&[], local(None), false).await.unwrap();
    tokio::time::advance(ms(1_000)).await;
    let ages: Vec<_> = listed
        .answers
        .iter()
        .map(|(_, read)| read.now().staleness_ms.unwrap())
        .collect();
    assert!((1_500..1_510).contains(&ages[0]), "{ages:?}");
    assert!((1_410..1_420).contains(&ages[1]), "{ages:?}");
    let of_row = listed.rows[0].read.now();
    assert!(
        of_row.staleness_ms >= Some(1_500) && of_row.global_age_ms >= Some(1_500),
        "{of_row:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn oldest_page_speaks_for_all() {
    let fleet = Fleet::new(2, 3, 4);
    // Calls are answered in turn: the other cluster's only page comes second.
    let other = |age| (ms(600), page(&fleet, 9, false, age));
    for (first, second, floor) in [
        (Some(900), Some(0), Some(900)),
        (Some(0), Some(900), Some(900)),
        (None, Some(0), None),
    ] {
        let answers = vec![
            (ms(10), page(&fleet, 1, true, first)),
            other(Some(0)),
            (ms(10), page(&fleet, 2, false, second)),
        ];
        let listed = client(&fleet, answers).tasks(&[], local(None), false).await.unwrap();
        let age = listed.answers[0].1.now().staleness_ms;
        assert_eq!(age.is_none(), floor.is_none(), "unknown is older than all");
        assert!(age >= floor, "{age:?}, at least {floor:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn answer_that_grew_too_old_on_the_way_is_refused_here() {
    let fleet = Fleet::new(2, 3, 4);
    // On its own way.
    let slow = vec![
        (ms(450), page(&fleet, 1, false, Some(100))),
        (ms(10), page(&fleet, 2, false, Some(0))),
    ];
    let refused = client(&fleet, slow)
        .tasks(&[], local(Some(500)), false)
        .await
        .unwrap_err();
    assert_eq!(refused.exit, Exit::TooStale, "{refused}");
    // While the other cluster was waited for.
    let fast = || (ms(10), page(&fleet, 1, false, Some(100)));
    let late = || (ms(450), page(&fleet, 2, false, Some(0)));
    let refused = client(&fleet, vec![fast(), late()])
        .tasks(&[], local(Some(500)), false)
        .await;
    assert_eq!(refused.unwrap_err().exit, Exit::TooStale);
    let listed = client(&fleet, vec![fast(), late()])
        .tasks(&[], local(Some(600)), false)
        .await;
    assert_eq!(listed.unwrap().rows.len(), 2);
    // One task.
    let one = |age| OpAnswer::Task {
        task: Some(view(&fleet, 1)),
        context: read(Some(age)),
    };
    let found = || {
        let answers = vec![(ms(10), one(100)), (ms(450), one(0))];
        client(&fleet, answers)
    };
    let (tight, wide) = (found(), found());
    let refused = tight.find(TaskId([1; 32]), local(Some(500))).await.unwrap_err();
    assert_eq!(refused.exit, Exit::TooStale);
    wide.find(TaskId([1; 32]), local(Some(600))).await.unwrap();
}
