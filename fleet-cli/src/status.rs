//! `fleet status`: the whole fleet on one screen.

use common::wire::op::ValidatorStatus;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    client::{Client, aged::older},
    cluster,
    exit::{Exit, Failure, Outcome},
    printer::Printer,
    view,
};

/// Runs `fleet status`.
///
/// # Errors
/// [`Exit::NoConnection`] if nobody answers at all.
pub async fn run(client: &Client, printer: &Printer) -> Outcome {
    let validators = client.context.validators();
    let sent = Instant::now();
    let agents = client.context.agents(None);
    let asked = futures::join!(client.validator_status(&validators), client.agent_status(&agents));
    let (statuses, clusters) = (asked.0, cluster::rows_of(client, asked.1, sent));
    let up: Vec<&ValidatorStatus> = statuses.iter().flatten().collect();
    let agents_up = clusters
        .iter()
        .any(|row| row["leader"].is_string() || row["term"].is_u64());
    if up.is_empty() && !agents_up {
        let first = validators
            .first()
            .zip(statuses.into_iter().next().and_then(Result::err));
        let failure = first.map(|(peer, error)| client.failure_of(peer, error));
        return Err(failure.unwrap_or_else(|| Failure::new(Exit::NoConnection, "no process of the fleet answers")));
    }
    let global = global(client, &up, &statuses_up(client, &statuses), sent);
    let queue = up
        .iter()
        .max_by_key(|status| status.executed)
        .map(|status| view::counts(&status.tasks));
    if printer.is_json() {
        printer.object(&json!({"global": global, "queue": queue, "clusters": clusters}));
        return Ok(());
    }
    let word = |name: &str| {
        global[name]
            .as_str()
            .map_or_else(|| global[name].to_string(), str::to_owned)
    };
    printer.text(&format!(
        "fleet {}   height {}   newest block {} old   validators {}/{} up, {}",
        client.context.genesis.fleet,
        word("height"),
        word("age"),
        word("validators_up"),
        word("validators"),
        word("tolerance"),
    ));
    if let Some(offset) = global["clock_offset_us_max"]
        .as_u64()
        .filter(|us| *us > alarm_us(client))
    {
        printer.text(&format!(
            "CLOCK: a validator is {offset} us off block time; check its time source"
        ));
    }
    if global["digests_agree"] == json!(false) {
        printer.text("DIGESTS DIFFER between validators at one height: keep their data and look at their logs");
    }
    for line in alarm_lines(&clusters) {
        printer.text(&line);
    }
    let queue = queue.unwrap_or_default();
    let counts: Vec<String> = queue
        .as_object()
        .into_iter()
        .flatten()
        .map(|(state, count)| format!("{state} {count}"))
        .collect();
    printer.text(&format!(
        "queue: {}\n",
        if counts.is_empty() {
            "empty".to_owned()
        } else {
            counts.join(", ")
        }
    ));
    printer.rows(&cluster::COLUMNS, &clusters);
    Ok(())
}

/// One line for each alarm of an agent that answered.
fn alarm_lines(clusters: &[Value]) -> Vec<String> {
    let alarms = clusters.iter().filter_map(|row| row["alarms"].as_array()).flatten();
    alarms
        .filter_map(|alarm| Some(format!("ALARM: {}", alarm.as_str()?)))
        .collect()
}

fn alarm_us(client: &Client) -> u64 {
    u64::from(client.context.genesis.timing.clocks.clock_error_ms) * 1_000 / 2
}

/// Weight of each validator and whether it answers.
fn statuses_up<E>(client: &Client, statuses: &[Result<ValidatorStatus, E>]) -> Vec<(u64, bool)> {
    let peers = client.context.validators();
    client
        .context
        .genesis
        .validators
        .iter()
        .map(|validator| {
            let at = peers.iter().position(|peer| peer.idx == validator.device);
            (validator.weight, at.is_some_and(|at| statuses[at].is_ok()))
        })
        .collect()
}

fn global(client: &Client, up: &[&ValidatorStatus], weights: &[(u64, bool)], sent: Instant) -> Value {
    let best = up.iter().max_by_key(|status| status.height);
    let age_us = best.map(|status| status.clock_offset_us.max(0) as u64);
    json!({
        "fleet": client.context.genesis.fleet.as_str(),
        "chain_id": client.context.chain.to_hex(),
        "height": best.map(|status| status.height.0),
        "age": view::age(older(age_us.map(|us| us.div_ceil(1_000)), sent.elapsed())),
        "validators_up": up.len(),
        "validators": client.context.genesis.validators.len(),
        "tolerance": tolerance(weights),
        "digests_agree": digests_agree(up),
        "clock_offset_us_max": clock_spread_us(up),
    })
}

/// How far validators' clocks are apart, as far as their offsets from one block's time tell.
fn clock_spread_us(up: &[&ValidatorStatus]) -> Option<u64> {
    let best = up.iter().map(|status| status.height).max()?;
    let offsets = up
        .iter()
        .filter(|status| status.height == best)
        .map(|status| status.clock_offset_us);
    let (min, max) = offsets.fold((i64::MAX, i64::MIN), |(min, max), us| (min.min(us), max.max(us)));
    Some(max.abs_diff(min))
}

/// Whether validators that executed the same height have the same state.
fn digests_agree(up: &[&ValidatorStatus]) -> bool {
    up.iter().all(|a| {
        up.iter()
            .all(|b| a.executed != b.executed || a.state_digest == b.state_digest)
    })
}

/// In words: how many more may fail, by count of the lightest that matter.
fn tolerance(weights: &[(u64, bool)]) -> String {
    let total: u64 = weights.iter().map(|(weight, _)| weight).sum();
    let mut up: Vec<u64> = weights
        .iter()
        .filter(|(_, is_up)| *is_up)
        .map(|(weight, _)| *weight)
        .collect();
    let mut left: u64 = up.iter().sum();
    if !common::quorum::is_bft_quorum(left, total) {
        return "NO QUORUM: nothing becomes final".into();
    }
    // The heaviest may be the ones that fail.
    up.sort_unstable_by_key(|weight| std::cmp::Reverse(*weight));
    let mut more = 0;
    for weight in up {
        left -= weight;
        if !common::quorum::is_bft_quorum(left, total) {
            break;
        }
        more += 1;
    }
    format!("{more} more may fail")
}

#[cfg(test)]
mod tests {
    use common::{codec::Label, testing::Fleet, wire::op::Alarm};

    use super::*;
    use crate::client::{
        AskError,
        testing::{agent_status, client},
    };

    #[test]
    fn alarm_of_an_agent_is_shown_in_the_status_of_the_fleet() {
        let fleet = Fleet::new(2, 3, 4);
        let client = client(&fleet, Vec::new());
        let slow = Alarm::ProfileDoesNotFit {
            key: Label::new("link.rtt_p999").unwrap(),
            assumed_ms: 100,
            measured_us: 140_000,
        };
        let statuses = vec![
            Ok(agent_status(&fleet, "c1-1", vec![slow])),
            Ok(agent_status(&fleet, "c2-1", vec![Alarm::LeaderWithoutQuorum])),
        ];
        let rows = cluster::rows_of(&client, statuses, Instant::now());
        assert_eq!(
            alarm_lines(&rows),
            [
                "ALARM: c1-1 profile_does_not_fit: link.rtt_p999 is 100 ms, 140000 us measured",
                "ALARM: c2-1 leader_without_quorum"
            ]
        );
        let quiet = vec![Ok(agent_status(&fleet, "c1-1", vec![])), Err(AskError::Malformed)];
        assert_eq!(alarm_lines(&cluster::rows_of(&client, quiet, Instant::now())), [""; 0]);
    }

    #[test]
    fn tolerance_counts_the_heaviest_that_may_still_fail() {
        let four = |up: usize| (0..4).map(|i| (1, i < up)).collect::<Vec<_>>();
        assert_eq!(tolerance(&four(4)), "1 more may fail");
        assert_eq!(tolerance(&four(3)), "0 more may fail");
        assert!(tolerance(&four(2)).starts_with("NO QUORUM"));
        let weighted = [(5, true), (5, true), (3, true), (3, true), (1, true)];
        assert_eq!(tolerance(&weighted), "1 more may fail");
    }
}
