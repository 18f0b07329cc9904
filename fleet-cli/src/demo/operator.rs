//! The demo's operator: submits the day's tasks as they become known, and journals what is acknowledged.
//!
//! # Rules
//! * Signed bytes whose outcome is unknown are sent again, to the same cluster, until it is known.
//! * A cluster that certainly wrote nothing may be passed over for another, with a number of its own.
//! * A drop-off is submitted when its pickup is acknowledged: its link is the pickup's id.

use std::{sync::Arc, time::Duration};

use common::{
    entry::Action,
    ids::{BlockTime, ClusterId, TaskId},
    task::{Scope, Task},
};
use futures::{StreamExt, stream};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};

use super::{
    journal::{Event, Journal},
    workload::{Leg, Request, Workload},
};
use crate::{
    client::{
        Client,
        author::{Author, Entered, Route, accepted, task_payload},
    },
    exit::{Exit, Failure, Outcome},
};

/// Requests in hand at one time.
const IN_FLIGHT_MAX: usize = 48;
/// A round over one cluster's agents before another cluster is tried.
const ENTER_DEADLINE: Duration = Duration::from_millis(2_500);
/// A submission that nobody takes for this long ends the demo.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);
/// How long agents are tried in the order found last.
const ROUTE_AGE_MAX: Duration = Duration::from_millis(1_000);

/// The day as it is played.
#[derive(Clone, Debug)]
pub struct Day {
    /// What is asked for.
    pub workload: Workload,
    /// Length of the day on this machine's clock.
    pub seconds: u64,
    /// Wall time of its begin.
    pub begin_wall: BlockTime,
    /// The same on the monotonic clock.
    pub begin: Instant,
}

struct Operator<'a> {
    client: &'a Client,
    author: Author<'a>,
    day: Day,
    journal: Journal,
    routes: Mutex<Vec<Option<(Instant, Route)>>>,
}

/// Submits every task of the day.
///
/// # Errors
/// A submission that nobody takes, or a fault of this machine.
pub async fn submit_all(client: Arc<Client>, day: Day, journal: Journal) -> Outcome {
    let operator = Operator {
        author: Author::open(&client)?,
        client: &client,
        routes: Mutex::new(vec![None; client.context.genesis.clusters.len()]),
        day,
        journal,
    };
    let requests = operator.day.workload.requests.clone();
    let mut work =
        stream::iter(requests.into_iter().map(|request| operator.request(request))).buffer_unordered(IN_FLIGHT_MAX);
    while let Some(outcome) = work.next().await {
        outcome?;
    }
    Ok(())
}

impl Operator<'_> {
    async fn request(&self, request: Request) -> Outcome {
        let offset = self.day.workload.offset_ms(request.arrival, self.day.seconds);
        sleep_until(self.day.begin + Duration::from_millis(offset)).await;
        if let Some(pickup) = self.submit(&request, Leg::Pickup, None).await? {
            self.submit(&request, Leg::Dropoff, Some(pickup.to_hex())).await?;
        }
        Ok(())
    }

    /// Submits one leg and returns its id, `None` if it was refused for good.
    async fn submit(&self, request: &Request, leg: Leg, after: Option<String>) -> Outcome<Option<TaskId>> {
        let spec = self
            .day
            .workload
            .spec(request, leg, self.day.begin_wall, self.day.seconds, after);
        let task = spec
            .resolve(&self.client.context.genesis)
            .map_err(|e| Failure::new(Exit::Invalid, e))?;
        match self.enter(&task, request).await {
            Ok(entered) => {
                let verdict = accepted(entered.verdict)?;
                let id = TaskId::from(entered.id);
                self.journal.record(Event::Acknowledged {
                    verb: "submit".into(),
                    task: id.to_hex(),
                    by: "op1".into(),
                    verdict: verdict.into(),
                    cluster: self.client.context.cluster_label(entered.cluster),
                    index: entered.index.0,
                });
                Ok(Some(id))
            }
            Err(failure) if matches!(failure.exit, Exit::Conflict | Exit::Denied | Exit::Invalid) => {
                self.journal.record(Event::Refused {
                    key: spec.key,
                    reason: failure.what,
                });
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }

    /// Enters a submission through the cluster of its zone, or another if that one takes nothing.
    async fn enter(&self, task: &Task, request: &Request) -> Outcome<Entered> {
        let clusters: Vec<ClusterId> = self.client.context.clusters().collect();
        let zone = task.places.first().and_then(|place| {
            let holds = |id: &ClusterId| {
                let cluster = self.client.context.genesis.clusters.get(id.0 as usize);
                cluster.is_some_and(|cluster| cluster.zones.iter().any(|zone| zone.contains(place)))
            };
            clusters.iter().position(holds)
        });
        let first = zone.unwrap_or(request.id as usize % clusters.len());
        let end = Instant::now() + GIVE_UP_AFTER;
        let mut turn = 0;
        loop {
            let cluster = clusters[(first + turn) % clusters.len()];
            match self.enter_through(task, cluster, end).await {
                Err(failure) if matches!(failure.exit, Exit::NoQuorum | Exit::NoConnection) && Instant::now() < end => {
                    turn += 1
                }
                outcome => return outcome,
            }
        }
    }

    async fn enter_through(&self, task: &Task, cluster: ClusterId, end: Instant) -> Outcome<Entered> {
        let route = self.route(cluster).await?;
        let number = self.author.reserve(&route, 1).await?;
        let entry = self
            .author
            .sign(&route, number, Scope::Fleet, Action::Submit, task_payload(task));
        let mut may_be_written = false;
        loop {
            let route = self.route(cluster).await.unwrap_or_else(|_| route.clone());
            match self.author.enter(&route, &entry, ENTER_DEADLINE).await {
                Err(failure) if failure.exit == Exit::OutcomeUnknown => may_be_written = true,
                // Once it may have been written, "nothing was written this time" says nothing about the first time.
                Err(failure) if may_be_written && matches!(failure.exit, Exit::NoQuorum | Exit::NoConnection) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                outcome => return outcome,
            }
            if Instant::now() >= end {
                let text = format!(
                    "the outcome of a submission is unknown after {} s",
                    GIVE_UP_AFTER.as_secs()
                );
                return Err(Failure::new(Exit::OutcomeUnknown, text).id(entry.id(&self.client.context.chain).to_hex()));
            }
        }
    }

    async fn route(&self, cluster: ClusterId) -> Outcome<Route> {
        let at = cluster.0 as usize;
        if let Some((found, route)) = &self.routes.lock().await[at]
            && found.elapsed() < ROUTE_AGE_MAX
        {
            return Ok(route.clone());
        }
        let route = self.author.route(&[cluster]).await?;
        self.routes.lock().await[at] = Some((Instant::now(), route.clone()));
        Ok(route)
    }
}
