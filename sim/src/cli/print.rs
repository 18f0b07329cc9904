//! How a run is printed.

use std::time::Duration;

use common::wire::frame::{ANSWER_KIND, FrameKind};
use serde_json::{Value, json};

use super::COMMIT;
use crate::{faults::Family, machine, run::Report, trace::Event};

const EVENTS: [(&str, Event); 6] = [
    ("delivered", Event::Delivered),
    ("dropped", Event::Dropped),
    ("synced", Event::Synced),
    ("applied", Event::Applied),
    ("started", Event::Started),
    ("killed", Event::Killed),
];

fn speed(report: &Report, wall: Duration) -> f64 {
    report.virtual_ms as f64 / 1e3 / wall.as_secs_f64().max(1e-9)
}

/// So many a second of the time in which there was work.
fn per_second(count: u64, report: &Report) -> f64 {
    let worked = report.plan.lasts.min(Duration::from_millis(report.virtual_ms));
    count as f64 / worked.as_secs_f64().max(1e-3)
}

/// Frames and bytes of each kind; every answer and refusal is of a kind of its own.
fn frames_by_kind(report: &Report) -> Value {
    let word = |byte: u8| {
        let kind = FrameKind::ALL.iter().find(|kind| kind.byte() == byte);
        kind.map_or_else(
            || {
                if byte == ANSWER_KIND {
                    "Answer".to_owned()
                } else {
                    "Refusal".to_owned()
                }
            },
            |kind| format!("{kind:?}"),
        )
    };
    let volumes = report.delivered.iter();
    let of_kind = volumes.map(|(byte, volume)| (word(*byte), json!([volume.frames, volume.bytes])));
    Value::Object(of_kind.collect())
}

pub(super) fn as_json(report: &Report, wall: Duration) -> Value {
    let kinds: serde_json::Map<String, Value> = EVENTS
        .iter()
        .map(|(word, event)| ((*word).to_owned(), report.counts.of(*event).into()))
        .collect();
    let faults: Vec<Value> = report
        .faults
        .iter()
        .map(|fault| {
            json!({
                "family": fault.family.word(),
                "what": fault.what,
                "from_ms": fault.from_ms,
                "until_ms": fault.until_ms,
            })
        })
        .collect();
    let violations: Vec<Value> = report
        .violation
        .iter()
        .map(|violation| json!({ "checker": violation.checker, "at_ms": violation.at_ms, "what": violation.what }))
        .collect();
    let enemies: Vec<Value> = report
        .enemies
        .iter()
        .map(|enemy| json!({ "who": enemy.who, "actor": enemy.actor.word(), "deeds": enemy.deeds }))
        .collect();
    let population = report.plan.population;
    json!({
        "seed": report.plan.seed,
        "commit": COMMIT,
        "trace_hash": report.trace_hash.to_hex(),
        "events": EVENTS.iter().map(|(_, event)| report.counts.of(*event)).sum::<u64>(),
        "kinds": kinds,
        "frames": report.counts.of(Event::Delivered) + report.counts.of(Event::Dropped),
        "frames_by_kind": frames_by_kind(report),
        "rss_mib_peak": machine::rss_mib_peak(),
        "cpu_seconds": machine::cpu_seconds(),
        "syncs": report.counts.of(Event::Synced),
        "applies": report.applies,
        "sim_seconds": report.virtual_ms as f64 / 1e3,
        "wall_seconds": wall.as_secs_f64(),
        "speed": speed(report, wall),
        "acked_per_second": per_second(report.tasks_acked, report),
        "completed_per_second": per_second(report.completed, report),
        "population": { "clusters": population.clusters, "agents": population.agents, "validators": population.validators },
        "nodes": population.nodes(),
        "messages": report.counts.of(Event::Delivered),
        "faults": faults,
        "enemies": enemies,
        "tasks_acked": report.tasks_acked,
        "tasks_final": report.tasks_final,
        "tasks_by_state": report.tasks_by_state,
        "tasks_left": report.tasks_left,
        "tasks_moved": report.tasks_moved,
        "batches_final": report.batches_final,
        "completed": report.completed,
        "retries": report.retries,
        "linearizable_reads": report.linearizable_reads,
        "no_quorum": report.no_quorum,
        "height": report.height.0,
        "violations": violations,
    })
}

pub(super) fn as_table(report: &Report, wall: Duration) -> String {
    let population = report.plan.population;
    let mut lines = vec![
        format!("seed          {} (commit {COMMIT})", report.plan.seed),
        format!(
            "population    {} clusters of {} agents, {} validators",
            population.clusters, population.agents, population.validators
        ),
        format!("trace hash    {}", report.trace_hash.to_hex()),
    ];
    lines.extend(EVENTS.map(|(word, event)| format!("{word:<13} {}", report.counts.of(event))));
    lines.extend([
        format!(
            "virtual time  {}.{:03} s, {:.1} times as fast as real time",
            report.virtual_ms / 1_000,
            report.virtual_ms % 1_000,
            speed(report, wall)
        ),
        format!(
            "tasks         {} acknowledged ({:.1} a second), {} final, {} completions ({:.1} a second), {} ended and left",
            report.tasks_acked,
            per_second(report.tasks_acked, report),
            report.tasks_final,
            report.completed,
            per_second(report.completed, report),
            report.tasks_left
        ),
        format!(
            "clients       {} retries, {} linearizable reads, {} refused for want of a majority",
            report.retries, report.linearizable_reads, report.no_quorum
        ),
        format!("height        {}", report.height),
    ]);
    lines.extend(report.enemies.iter().map(|enemy| format!("{:<13} {enemy}", "enemy")));
    for family in Family::ALL {
        let of_family = report.faults.iter().filter(|fault| fault.family == family);
        lines.extend(of_family.map(|fault| {
            format!(
                "{:<13} {:>6}.{:03} to {:>6}.{:03} s: {}",
                family.word(),
                fault.from_ms / 1_000,
                fault.from_ms % 1_000,
                fault.until_ms / 1_000,
                fault.until_ms % 1_000,
                fault.what
            )
        }));
    }
    if report.violation.is_some() {
        lines.extend(report.processes.iter().cloned());
    }
    lines.push(format!("violations    {}", u64::from(report.violation.is_some())));
    lines.join("\n")
}
