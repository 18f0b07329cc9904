//! Submit: one task from flags, or many from a file.

use std::{path::PathBuf, time::Duration};

use common::{
    entry::Action,
    ids::{BlockTime, ClusterId, EntryId, TaskId},
    task::{AfterCustody, OnLeaseLoss, Place, Scope, TaskKind},
    verdict::{Reason, Verdict},
    wire::op::{Consistency, Finality},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use transport::local::{
    TaskSpec,
    spec::{SpecError, place_from_json},
};

use super::bulk;
use crate::{
    client::{
        Client,
        author::{Author, Ended, accepted, task_payload},
        tasks::Freshness,
    },
    clock::{self, parse_duration, parse_time},
    exit::{Exit, Failure, Outcome},
    files,
    printer::Printer,
};

/// `fleet task submit`
#[derive(Debug, clap::Args)]
pub struct SubmitArgs {
    /// What sort of work it is: pickup, dropoff, delivery, survey, patrol, custom.
    #[arg(long, value_parser = parse_kind, required_unless_present_any = ["file", "resend"])]
    kind: Option<TaskKind>,
    /// Your own key of the task: one key is one task. Made up unless given.
    #[arg(long)]
    key: Option<String>,
    /// 0 to 255, higher goes first.
    #[arg(long, default_value_t = 100)]
    priority: u8,
    /// Expires after this time: 2026-05-01T12:00:00Z, or milliseconds since 1970.
    #[arg(long, value_parser = parse_deadline, conflicts_with = "ttl")]
    deadline: Option<BlockTime>,
    /// Expires after this long: 10m.
    #[arg(long, value_parser = parse_duration)]
    ttl: Option<Duration>,
    /// Not before this time.
    #[arg(long, value_parser = parse_deadline)]
    earliest: Option<BlockTime>,
    /// Where: lat,lon or lat,lon,alt in degrees and metres. The first place decides the zone.
    #[arg(long = "place", value_name = "LAT,LON[,ALT]", value_parser = parse_geo, allow_hyphen_values = true)]
    places: Vec<Place>,
    /// Where: east,north or east,north,up in metres of the local frame.
    #[arg(long = "local", value_name = "E,N[,U]", value_parser = parse_local, allow_hyphen_values = true)]
    local: Vec<Place>,
    /// Whose queue: the whole fleet's, or one cluster's from the start and for good.
    #[arg(long, value_parser = parse_scope, default_value = "fleet")]
    scope: Scope,
    /// With --scope cluster: whose queue. Else: only this cluster may do it.
    #[arg(long)]
    cluster: Option<String>,
    /// Enter it through this agent and no other.
    #[arg(long, value_name = "AGENT")]
    pub(super) via: Option<String>,
    /// Id of a task that must be completed first, or its beginning.
    #[arg(long)]
    after: Vec<String>,
    /// Mass of the load, grams.
    #[arg(long, default_value_t = 0)]
    payload_g: u32,
    /// For whom.
    #[arg(long, default_value = "")]
    requester: String,
    /// Name and value for people: k=v.
    #[arg(long = "label", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// What the drone must be able to do.
    #[arg(long = "capability")]
    capabilities: Vec<String>,
    /// What the vehicle does when its lease ends: stop, continue, return.
    #[arg(long, value_parser = parse_word::<OnLeaseLoss>, default_value = "stop")]
    on_lease_loss: OnLeaseLoss,
    /// What the fleet does when custody ends: reassign, hold. By default what fits the kind.
    #[arg(long, value_parser = parse_word::<AfterCustody>)]
    after_custody: Option<AfterCustody>,
    /// How often it may be tried.
    #[arg(long, default_value_t = 3)]
    max_attempts: u8,
    /// File with up to 8 KiB for the on-board software.
    #[arg(long)]
    payload_file: Option<PathBuf>,
    /// Submit every line of this file of JSON objects. Interrupted, the same command goes on.
    #[arg(long, conflicts_with_all = ["kind", "key", "places", "local", "after", "resend"])]
    file: Option<PathBuf>,
    /// Send the kept bytes of an entry whose outcome was unknown.
    #[arg(long, value_name = "ID", conflicts_with_all = ["kind", "key"])]
    resend: Option<String>,
    /// If there is no majority, let the agent keep it on its disk and enter it when there is one again. It
    /// is then "buffered" and not accepted: it may still be refused.
    #[arg(long, conflicts_with_all = ["file", "resend"])]
    buffer: bool,
    /// Wait until the task is final in the fleet's order.
    #[arg(long)]
    wait: bool,
    /// Longest wait for an outcome.
    #[arg(long, default_value = "15s", value_parser = parse_duration)]
    timeout: Duration,
}

fn parse_word<T: serde::de::DeserializeOwned>(word: &str) -> Result<T, String> {
    serde_json::from_value(Value::from(word)).map_err(|e| e.to_string())
}

fn parse_kind(word: &str) -> Result<TaskKind, String> {
    parse_word(word)
}

fn parse_scope(word: &str) -> Result<Scope, String> {
    parse_word(word)
}

fn parse_deadline(text: &str) -> Result<BlockTime, String> {
    match text.parse::<u64>() {
        Ok(ms) => ms.checked_mul(1_000).map(BlockTime).ok_or_else(|| "is too late".into()),
        Err(_) => parse_time(text),
    }
}

fn parse_place(text: &str, names: [&str; 3]) -> Result<Place, String> {
    let numbers: Vec<&str> = text.split(',').map(str::trim).collect();
    if !(2..=3).contains(&numbers.len()) {
        return Err(format!(
            "{text:?} must be {},{} or {}",
            names[0],
            names[1],
            names.join(",")
        ));
    }
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    if let Some(at) = numbers.iter().position(|number| !is_number(number)) {
        return Err(format!("{}: {:?} is not a decimal number", names[at], numbers[at]));
    }
    let fields: Vec<String> = names
        .iter()
        .zip(&numbers)
        .map(|(name, number)| format!("\"{name}\":{number}"))
        .collect();
    place_from_json(&format!("{{{}}}", fields.join(",")), "place").map_err(|e: SpecError| e.to_string())
}

fn parse_geo(text: &str) -> Result<Place, String> {
    parse_place(text, ["lat", "lon", "alt"])
}

fn parse_local(text: &str) -> Result<Place, String> {
    parse_place(text, ["east_m", "north_m", "up_m"])
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not name=value"))?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What a spec's problem means for a command.
pub(super) fn spec_failure(error: SpecError) -> Failure {
    Failure::new(Exit::Invalid, error)
}

pub(super) async fn run(client: &Client, args: SubmitArgs, printer: &Printer) -> Outcome {
    if let Some(id) = &args.resend {
        return resend(client, id, args.timeout, printer).await;
    }
    let clusters = clusters(client, &args)?;
    if let Some(file) = &args.file {
        return bulk::run(client, file, args.scope, &clusters, args.timeout, printer).await;
    }
    let spec = spec(client, &args).await?;
    let task = spec.resolve(&client.context.genesis).map_err(spec_failure)?;
    let author = Author::open(client)?;
    let route = author.route(&clusters).await?;
    let number = author.reserve(&route, 1).await?;
    let entry = author.sign(&route, number, args.scope, Action::Submit, task_payload(&task));
    let ended = if args.buffer {
        author.enter_or_buffer(&route, &entry, args.timeout).await?
    } else {
        Ended::Entered(author.enter_or_keep(&route, &entry, args.timeout).await?)
    };
    let (id, mut result) = match ended {
        Ended::Entered(entered) => {
            let verdict = accepted(entered.verdict)?;
            let id = task_of(entered.id, entered.verdict);
            let result = json!({
                "task": id.to_hex(), "key": spec.key, "verdict": verdict, "entry": entered.id.to_hex(),
                "index": entered.index.0, "cluster": client.context.cluster_label(entered.cluster),
                "finality": "cluster_committed", "via": entered.via, "mode": entered.mode.word(),
            });
            (id, result)
        }
        Ended::Buffered { id, via, mode } => {
            printer.note(&format!(
                "{via} keeps it until it has a majority again; look with `fleet task get {} --via {via}`",
                id.to_hex()
            ));
            let id = TaskId::from(id);
            let result = json!({
                "task": id.to_hex(), "key": spec.key, "entry": id.to_hex(),
                "cluster": client.context.cluster_label(route.cluster),
                "finality": "buffered", "via": via, "mode": mode.word(),
            });
            (id, result)
        }
    };
    if args.wait {
        let (height, verdict) = wait_final(client, id, args.timeout).await?;
        result["finality"] = json!("final");
        result["final_height"] = json!(height);
        // The fleet's order decides which of two submissions under one key is the task.
        if let Verdict::Rejected(Reason::DuplicateOf(first)) = verdict {
            result["task"] = json!(first.to_hex());
            result["verdict"] = json!("duplicate");
        }
    }
    printer.object(&result);
    Ok(())
}

/// The task that a submission led to: its own, or the one it is a duplicate of.
pub(super) fn task_of(entry: EntryId, verdict: Verdict) -> TaskId {
    match verdict {
        Verdict::Rejected(Reason::DuplicateOf(task)) => task,
        _ => entry.into(),
    }
}

async fn resend(client: &Client, id: &str, timeout: Duration, printer: &Printer) -> Outcome {
    let id = EntryId::from_hex(id)
        .ok_or_else(|| Failure::new(Exit::Invalid, format!("{id:?} is not 64 hexadecimal digits")))?;
    let author = Author::open(client)?;
    let (entry, entered) = author.resend(&id, timeout).await?;
    let verdict = accepted(entered.verdict)?;
    let task = entry
        .header
        .action
        .task()
        .unwrap_or_else(|| task_of(entered.id, entered.verdict));
    printer.object(&json!({
        "task": task.to_hex(), "entry": id.to_hex(), "what": entry.header.action.word(), "verdict": verdict,
        "index": entered.index.0, "cluster": client.context.cluster_label(entered.cluster),
        "via": entered.via, "mode": entered.mode.word(),
    }));
    Ok(())
}

/// Clusters to enter through, in the order of preference.
fn clusters(client: &Client, args: &SubmitArgs) -> Outcome<Vec<ClusterId>> {
    let context = &client.context;
    if let Some(via) = &args.via {
        let cluster = context.asked_clusters()[0];
        if args.scope == Scope::Cluster
            && args
                .cluster
                .as_ref()
                .is_some_and(|c| *c != context.cluster_label(cluster))
        {
            return Err(Failure::new(
                Exit::Usage,
                format!("--via {via} is not an agent of --cluster"),
            ));
        }
        return Ok(vec![cluster]);
    }
    match (&args.cluster, args.scope) {
        (Some(label), Scope::Cluster) => Ok(vec![context.cluster(label)?]),
        (None, Scope::Cluster) => Err(Failure::new(Exit::Usage, "--scope cluster needs --cluster or --via")),
        (_, Scope::Fleet) => Ok(context.clusters().collect()),
    }
}

async fn spec(client: &Client, args: &SubmitArgs) -> Outcome<TaskSpec> {
    let kind = args
        .kind
        .ok_or_else(|| Failure::new(Exit::Usage, "--kind is missing"))?;
    let key = match &args.key {
        Some(key) => key.clone(),
        None => format!("fleet-{}", common::ids::to_hex(&clock::random::<8>()?)),
    };
    let mut spec = TaskSpec::new(key, kind);
    spec.priority = args.priority;
    spec.earliest_start = args.earliest;
    spec.deadline = args
        .deadline
        .or_else(|| args.ttl.map(|ttl| clock::wall().plus_ms(ttl.as_millis() as u64)));
    spec.places = args.places.iter().chain(&args.local).copied().collect();
    spec.payload_g = args.payload_g;
    spec.requester.clone_from(&args.requester);
    spec.labels = args.labels.iter().cloned().collect();
    spec.capabilities.clone_from(&args.capabilities);
    spec.cluster = args.cluster.clone().filter(|_| args.scope == Scope::Fleet);
    for prefix in &args.after {
        spec.after.push(client.resolve(prefix).await?.to_hex());
    }
    spec.on_lease_loss = args.on_lease_loss;
    spec.after_custody = args.after_custody;
    spec.max_attempts = args.max_attempts;
    if let Some(path) = &args.payload_file {
        spec.payload = files::read_bounded(path, common::limits::TASK_PAYLOAD_BYTES_MAX as u64)?;
    }
    Ok(spec)
}

/// Waits until a task is final and returns height and decision.
async fn wait_final(client: &Client, id: TaskId, limit: Duration) -> Outcome<(u64, Verdict)> {
    let end = Instant::now() + limit;
    let freshness = Freshness {
        consistency: Consistency::Local,
        staleness_ms_max: None,
    };
    loop {
        let found = client.find(id, freshness).await.ok().map(|found| found.view.finality);
        match found {
            Some(Finality::Final { height, verdict }) => {
                accepted(verdict)?;
                return Ok((height.0, verdict));
            }
            Some(Finality::Refused { verdict }) => {
                accepted(verdict)?;
            }
            _ => {}
        }
        if Instant::now() >= end {
            let (what, means) = if found == Some(Finality::Buffered) {
                (
                    "the task is buffered, and not accepted within the timeout",
                    "one agent keeps it; it enters when that agent has a majority again",
                )
            } else {
                (
                    "the task is acknowledged, and not final within the timeout",
                    "it is on a majority of its cluster's disks; the validators have not ordered it yet",
                )
            };
            return Err(Failure::new(Exit::OutcomeUnknown, what)
                .means(means)
                .todo("look at `fleet status`; watch it with `fleet task watch`")
                .id(id.to_hex()));
        }
        sleep(Duration::from_millis(50)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_the_command_line_are_exact_and_name_the_bad_number() {
        let geo = Place::Geo {
            lat_e7: 525_200_066,
            lon_e7: -134_049_540,
            alt_m: 30,
        };
        assert_eq!(parse_geo("52.5200066, -13.404954,30"), Ok(geo));
        let local = Place::Local {
            east_mm: -1_500,
            north_mm: 2,
            up_mm: 0,
        };
        assert_eq!(parse_local("-1.5,0.002"), Ok(local));
        assert!(parse_geo("91,0").unwrap_err().contains("lat"));
        assert!(parse_geo("1,NaN").unwrap_err().starts_with("lon"));
        assert!(parse_geo("1,\"}").unwrap_err().starts_with("lon"));
        assert!(parse_local("1").is_err() && parse_local("1,2,3,4").is_err());
    }

    #[test]
    fn deadline_is_a_time_or_milliseconds() {
        assert_eq!(parse_deadline("1700000000000"), parse_deadline("2023-11-14T22:13:20Z"));
        assert!(parse_deadline("tomorrow").is_err());
    }
}
