//! `fleet demo`: a fleet of real processes at work while parts of it are killed, judged from its own
//! journal.
//!
//! * [`workload`], [`generator`]: what is asked for. [`operator`]: asks. [`drone`]: does it.
//! * [`faults`]: breaks things. [`minority`]: asks those that are cut off. [`honesty`]: whether they lied. [`journal`]: what was seen. [`evidence`], [`judge`]: whether promises held.
//!
//! # Rules
//! * Nothing the servers say of themselves is taken for an acknowledgement.
//! * However it ends, Ctrl-C too, no process stays behind.

mod drone;
mod evidence;
mod faults;
mod generator;
mod honesty;
mod journal;
mod judge;
mod minority;
mod operator;
mod workload;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::Either;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use self::{
    drone::Drone,
    journal::{Event, Journal},
    judge::{Evidence, Judgement},
    operator::Day,
    workload::Workload,
};
use crate::{
    client::{Client, connect},
    clock,
    dev::{Interrupt, fleet::DevFleet, layout::Layout, plan::Plan},
    draft::Profile,
    exit::{Exit, Failure, Outcome},
    files,
    printer::Printer,
};

/// Longest workload file.
const WORKLOAD_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// Longest wait for the fleet to begin.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// After the day and the last heal, what is open has this long to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

/// `fleet demo`
#[derive(Debug, clap::Args)]
pub struct DemoArgs {
    /// Requests of a day in the JSON form of the dynamic pick-up and delivery problem; otherwise a day is
    /// made from --seed.
    #[arg(long)]
    workload: Option<PathBuf>,
    /// Seconds into which the day is compressed.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(10..=3_600))]
    seconds: u64,
    /// Seed of the day.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Requests of the day; two tasks each.
    #[arg(long, default_value_t = generator::REQUESTS_DEFAULT, value_parser = parse_requests)]
    requests: usize,
    /// Keep keys, data, logs and the journal.
    #[arg(long)]
    keep: bool,
}

fn parse_requests(text: &str) -> Result<usize, String> {
    let count: usize = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if (300..=workload::REQUESTS_MAX).contains(&count) {
        Ok(count)
    } else {
        Err(format!("must be 300 to {}", workload::REQUESTS_MAX))
    }
}

/// Runs `fleet demo` in `dir`, which must not hold anything; by default in a directory that is removed.
///
/// # Errors
/// [`Exit::VerificationFailed`] with the judge's reasons; else of the machine or the workload file.
pub async fn run(args: DemoArgs, dir: Option<&Path>, printer: &Printer) -> Outcome {
    let workload = match &args.workload {
        Some(path) => Workload::parse(&files::read_bounded(path, WORKLOAD_BYTES_MAX)?)?,
        None => generator::generate(args.seed, args.requests),
    };
    let mut interrupt = Interrupt::listen()?;
    let begin = std::time::Instant::now();
    let home = Home::new(dir, args.keep)?;
    let layout = Layout::new(&home.path);
    let mut plan = Plan::new(3, 3, 4, Profile::Dev)?;
    plan.borders_mm = workload.borders_mm(3);
    printer.note(&format!(
        "a fleet of 9 agents and 4 validators in {}; {} requests, {} tasks, in {} s",
        layout.dir.display(),
        workload.requests.len(),
        workload.requests.len() * 2,
        args.seconds
    ));
    let mut fleet = DevFleet::open(layout, Some(plan))?.killed_on_drop();
    let played = interrupt.or(play(&mut fleet, &args, workload, printer)).await;
    let names = fleet.plan.processes();
    let ended = fleet.kill(&names).await;
    drop(fleet);
    let (mut judgement, journal) = played
        .and_then(|played| ended.map(|_| played))
        .inspect_err(|_| home.keep_for(printer))?;
    judgement.result["elapsed_s"] = serde_json::json!(begin.elapsed().as_millis() as f64 / 1_000.0);
    print(&judgement, printer);
    if judgement.reasons.is_empty() {
        home.remove();
        return Ok(());
    }
    home.keep_for(printer);
    Err(Failure::new(
        Exit::VerificationFailed,
        format!("the fleet broke a promise:\n  - {}", judgement.reasons.join("\n  - ")),
    )
    .means("this build must not be relied on, or this machine is far too slow for a fleet of 13 processes")
    .todo(format!("look at the logs beside {}", journal.display())))
}

/// The directory of a demo.
#[derive(Debug)]
struct Home {
    path: PathBuf,
    is_kept: bool,
}

impl Home {
    fn new(dir: Option<&Path>, keep: bool) -> Outcome<Self> {
        if let Some(dir) = dir {
            let is_used = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
            if is_used {
                return Err(
                    Failure::new(Exit::RefusedForSafety, format!("{} is not empty", dir.display()))
                        .todo("choose another --dir"),
                );
            }
            files::private_dir(dir)?;
            return Ok(Self {
                path: dir.to_owned(),
                is_kept: true,
            });
        }
        let path = std::env::temp_dir().join(format!("muster-demo-{}", common::ids::to_hex(&clock::random::<4>()?)));
        files::private_dir(&path)?;
        Ok(Self { path, is_kept: keep })
    }

    fn keep_for(&self, printer: &Printer) {
        printer.note(&format!(
            "keys, data, logs and the journal stay in {}",
            self.path.display()
        ));
    }

    fn remove(&self) {
        if !self.is_kept {
            // Nothing depends on it: what cannot be removed stays in the directory for temporary files.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

/// Tasks of the runtime that end with this scope.
struct Crew(JoinSet<()>);

async fn play(
    fleet: &mut DevFleet,
    args: &DemoArgs,
    workload: Workload,
    printer: &Printer,
) -> Outcome<(Judgement, PathBuf)> {
    let names = fleet.plan.processes();
    let path = fleet.layout.dir.join("journal.jsonl");
    let journal = Journal::create(&path)?;
    fleet.start(&names)?;
    let client = Arc::new(connect::open(&fleet.layout.context())?);
    fleet.wait_ready(&client, &names, READY_DEADLINE).await?;
    printer.note(&format!("ready after {} ms", journal.now_ms()));

    let tasks_expected = args.workload.is_some().then_some(workload.requests.len() * 2);
    let is_over = Arc::new(AtomicBool::new(false));
    let mut crew = Crew(JoinSet::new());
    board(&mut crew, fleet, &client, &journal, &is_over);
    let day = Day {
        workload,
        seconds: args.seconds,
        begin_wall: clock::wall(),
        begin: Instant::now(),
    };
    let begin = day.begin;
    let mut submitting = JoinSet::new();
    submitting.spawn(operator::submit_all(client.clone(), day, journal.clone()));
    let note = |text: &str| printer.note(&format!("{:>6.1} s  {text}", journal.now_ms() as f64 / 1_000.0));
    let day_and_faults = async {
        faults::play(fleet, &client, &journal, begin, args.seconds, note).await?;
        match submitting.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => Err(Failure::new(Exit::Failed, error)),
            None => Ok(()),
        }
    };
    with_progress(day_and_faults, &journal, printer).await?;
    let lines = journal.read_back()?;
    let acknowledged: BTreeSet<String> = lines.into_iter().filter_map(|line| submitted(line.event)).collect();
    note(&format!(
        "{} tasks acknowledged; waiting until the last of them ends",
        acknowledged.len()
    ));
    let end_of_day = begin + Duration::from_secs(args.seconds);
    let drain = end_of_day.saturating_duration_since(Instant::now()) + DRAIN_DEADLINE;
    let over = async { Ok(evidence::wait_over(&client, &acknowledged, drain).await) };
    let finals = with_progress(over, &journal, printer).await?;
    is_over.store(true, Ordering::Relaxed);
    note("comparing digests, fetching and verifying every proof");
    let digests = evidence::compare_digests(&client, Duration::from_secs(20)).await;
    let proofs = evidence::gather_proofs(&client, &acknowledged, &finals, args.seed).await;
    drop(crew);
    client.close().await;
    let evidence = Evidence {
        lines: journal.read_back()?,
        tasks_expected,
        finals,
        digests,
        proofs,
        elapsed_ms: journal.now_ms(),
    };
    Ok((judge::judge(&evidence), path))
}

fn submitted(event: Event) -> Option<String> {
    match event {
        Event::Acknowledged { verb, task, .. } if verb == "submit" => Some(task),
        _ => None,
    }
}

/// Puts the on-board software of every drone to work, and the watcher of finality.
fn board(crew: &mut Crew, fleet: &DevFleet, client: &Arc<Client>, journal: &Journal, is_over: &Arc<AtomicBool>) {
    let per_cluster = fleet.plan.agents as usize;
    for (nth, (cluster, label)) in fleet.plan.agents().enumerate() {
        let drone = Drone {
            socket: fleet.layout.socket(&label),
            label,
            cluster: format!("c{cluster}"),
            turn: (nth % per_cluster, per_cluster),
            journal: journal.clone(),
            is_over: is_over.clone(),
        };
        crew.0.spawn(drone.run());
    }
    let (client, journal) = (client.clone(), journal.clone());
    crew.0
        .spawn(async move { evidence::watch_finality(&client, &journal).await });
}

/// Shows a line of progress that is rewritten while `work` goes on, on a terminal only.
async fn with_progress<T>(work: impl Future<Output = Outcome<T>>, journal: &Journal, printer: &Printer) -> Outcome<T> {
    let mut work = std::pin::pin!(work);
    loop {
        match futures::future::select(work.as_mut(), std::pin::pin!(sleep(Duration::from_millis(200)))).await {
            Either::Left((outcome, _)) => {
                if printer.is_live() {
                    eprint!("\r\u{1b}[K");
                }
                return outcome;
            }
            Either::Right(_) if printer.is_live() => {
                let totals = journal.totals();
                eprint!(
                    "\r\u{1b}[K{:>6.1} s  acknowledged {}  final {}  completed {}",
                    journal.now_ms() as f64 / 1_000.0,
                    totals.submits,
                    totals.finals,
                    totals.completes
                );
            }
            Either::Right(_) => {}
        }
    }
}

fn print(judgement: &Judgement, printer: &Printer) {
    if printer.is_json() {
        // One line, the last one, for scripts.
        printer.line(&judgement.result.to_string());
        return;
    }
    let mut result = judgement.result.clone();
    let faults = result
        .as_object_mut()
        .and_then(|result| result.remove("faults"))
        .unwrap_or_default();
    printer.object(&result);
    for fault in faults.as_array().into_iter().flatten() {
        let text = |name: &str| {
            fault[name]
                .as_str()
                .map_or_else(|| fault[name].to_string(), str::to_owned)
        };
        printer.text(&format!(
            "fault: {} {} from {} to {} ms: {}",
            text("kind"),
            text("target"),
            text("from_ms"),
            text("to_ms"),
            text("effect")
        ));
    }
    printer.text(if judgement.reasons.is_empty() {
        "the fleet kept its promises"
    } else {
        "THE FLEET BROKE A PROMISE"
    });
}
