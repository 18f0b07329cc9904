//! `fleet dev cut` and `heal`: which links are meant, and how their datagrams shall fare.
//!
//! # Rules
//! * Only links that exist are named: between agents of one cluster, between an agent and a validator, between validators.
//! * Without an impairment nothing passes. A later rule for a link replaces the earlier one.
//! * The operator's own connections are no links: a process that is cut off can still be asked.

use std::time::Duration;

use serde_json::{Value, json};
use transport::relay::{DELAY_US_MAX, PPM, Rule, RuledLink};

use super::{
    layout::{Layout, is_validator},
    plan::Plan,
    relay::{self, Request, Shown},
};
use crate::{
    clock::parse_duration,
    exit::{Exit, Failure, Outcome},
};

/// What is cut.
#[derive(Clone, Debug, PartialEq, Eq, clap::Subcommand)]
pub enum Target {
    /// An agent from everybody: c1-2.
    Agent {
        /// Its name.
        name: String,
    },
    /// The agents of a cluster from all validators: c1.
    Cluster {
        /// Its name.
        name: String,
    },
    /// A validator from everybody: v1.
    Validator {
        /// Its name.
        name: String,
    },
    /// One process from another.
    Link {
        /// An agent or a validator.
        from: String,
        /// Another.
        to: String,
    },
}

/// Which direction is cut, seen from what is named (of a link: the first name).
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum OneWay {
    /// What would reach it.
    In,
    /// What it sends.
    Out,
}

/// How datagrams fare. Without any of these nothing passes.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct Impairment {
    /// Lose this share at random instead of all: 30%.
    #[arg(long, global = true, value_name = "PERCENT", value_parser = parse_percent)]
    loss: Option<u32>,
    /// Deliver late by this much: 50ms.
    #[arg(long, global = true, value_parser = parse_delay)]
    delay: Option<Duration>,
    /// And by up to this much more, at random.
    #[arg(long, global = true, value_parser = parse_delay)]
    jitter: Option<Duration>,
    /// Hold this share back for 10 ms, so that later ones overtake it.
    #[arg(long, global = true, value_name = "PERCENT", value_parser = parse_percent)]
    reorder: Option<u32>,
    /// Deliver this share twice.
    #[arg(long, global = true, value_name = "PERCENT", value_parser = parse_percent)]
    duplicate: Option<u32>,
}

/// For how long `--reorder` holds a datagram back.
const REORDER_US: u64 = 10_000;

impl Impairment {
    /// The rule that is meant.
    #[must_use]
    pub fn rule(&self) -> Rule {
        if *self == Self::default() {
            return Rule::CUT;
        }
        let us = |duration: Option<Duration>| duration.unwrap_or_default().as_micros() as u64;
        Rule {
            drops_all: false,
            loss_ppm: self.loss.unwrap_or(0),
            delay_us: us(self.delay),
            jitter_us: us(self.jitter),
            reorder_ppm: self.reorder.unwrap_or(0),
            reorder_us: if self.reorder.is_some() { REORDER_US } else { 0 },
            duplicate_ppm: self.duplicate.unwrap_or(0),
        }
    }
}

/// Parses `30%` or `0.5%` to parts per million.
fn parse_percent(text: &str) -> Result<u32, String> {
    let error = || format!("{text:?} is no percentage like 30% or 0.5%");
    let number = text.strip_suffix('%').ok_or_else(error)?;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let is_plain = |part: &str, digits_max| {
        (1..=digits_max).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit())
    };
    if !is_plain(whole, 3) || !is_plain(decimals, 4) {
        return Err(error());
    }
    let ppm: u32 = format!("{whole}{decimals:0<4}").parse().map_err(|_| error())?;
    if ppm > PPM {
        return Err(format!("{text} is more than 100%"));
    }
    Ok(ppm)
}

fn parse_delay(text: &str) -> Result<Duration, String> {
    let delay = parse_duration(text)?;
    if delay.as_micros() > u128::from(DELAY_US_MAX) {
        return Err(format!("{text} is more than {} s", DELAY_US_MAX / 1_000_000));
    }
    Ok(delay)
}

/// Cuts or impairs what is meant by `target`; in force when this returns.
///
/// # Errors
/// [`Exit::Invalid`]: no such target, or no relay. [`Exit::NoConnection`]: the relay does not run.
pub async fn cut(layout: &Layout, plan: &Plan, target: &Target, one_way: Option<OneWay>, rule: Rule) -> Outcome<Shown> {
    let links = links_of(plan, target, one_way)?;
    relay::ask(layout, plan, &Request::Set { links, rule }).await
}

/// Heals the links from and to what `words` mean (processes, clusters), all of them without words; in force when this returns.
///
/// # Errors
/// [`Exit::Invalid`]: unknown words, or no relay. [`Exit::NoConnection`]: the relay does not run.
pub async fn heal(layout: &Layout, plan: &Plan, words: &[String]) -> Outcome<Shown> {
    let mut names = Vec::new();
    for word in words {
        names.extend(plan.meant_by(word)?);
    }
    names.retain(|name| !relay::is_relay(name));
    if names.is_empty() && !words.is_empty() {
        let todo = "name agents, validators or clusters, or nothing for all links";
        return Err(refused("the relay has no links of its own".to_owned(), todo));
    }
    let names = (!words.is_empty()).then_some(names);
    relay::ask(layout, plan, &Request::Heal { names }).await
}

/// The directed links that `target` means.
fn links_of(plan: &Plan, target: &Target, one_way: Option<OneWay>) -> Outcome<Vec<(String, String)>> {
    let pairs: Vec<(String, String)> = match target {
        Target::Agent { name } => from_everybody(plan, &known(plan, name, Kind::Agent)?),
        Target::Validator { name } => from_everybody(plan, &known(plan, name, Kind::Validator)?),
        Target::Cluster { name } => {
            let agents = plan.agents().filter(|(cluster, _)| *name == format!("c{cluster}"));
            let pairs: Vec<_> = agents
                .flat_map(|(_, agent)| plan.validators().map(move |validator| (agent.clone(), validator)))
                .collect();
            if pairs.is_empty() {
                return Err(refused(
                    format!("{name:?} is no cluster of this fleet"),
                    "name one like c1",
                ));
            }
            pairs
        }
        Target::Link { from, to } => {
            let pair = (known(plan, from, Kind::Any)?, known(plan, to, Kind::Any)?);
            if !are_linked(&pair.0, &pair.1) {
                return Err(refused(
                    format!("{from} and {to} never speak with each other"),
                    "name two agents of one cluster, two validators, or an agent and a validator",
                ));
            }
            vec![pair]
        }
    };
    let directed = pairs.into_iter().flat_map(|(one, other)| {
        let out = (one_way != Some(OneWay::In)).then(|| (one.clone(), other.clone()));
        let back = (one_way != Some(OneWay::Out)).then_some((other, one));
        out.into_iter().chain(back)
    });
    Ok(directed.collect())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Agent,
    Validator,
    Any,
}

/// `name`, if it is a process of this kind.
fn known(plan: &Plan, name: &str, kind: Kind) -> Outcome<String> {
    if !plan.names().iter().any(|known| known == name) {
        let what = format!("{name:?} is no agent or validator of this fleet");
        return Err(refused(what, "name one like c1-2 or v1"));
    }
    match (kind, is_validator(name)) {
        (Kind::Agent, true) => Err(refused(
            format!("{name} is a validator"),
            &format!("say: fleet dev cut validator {name}"),
        )),
        (Kind::Validator, false) => Err(refused(
            format!("{name} is an agent"),
            &format!("say: fleet dev cut agent {name}"),
        )),
        _ => Ok(name.to_owned()),
    }
}

fn refused(what: String, todo: &str) -> Failure {
    Failure::new(Exit::Invalid, what)
        .means("no link was changed")
        .todo(todo)
}

fn from_everybody(plan: &Plan, name: &str) -> Vec<(String, String)> {
    let others = plan.names().into_iter().filter(|other| are_linked(name, other));
    others.map(|other| (name.to_owned(), other)).collect()
}

/// Whether two processes speak with each other.
#[must_use]
pub fn are_linked(one: &str, other: &str) -> bool {
    let cluster = |name: &str| name.split('-').next().map(str::to_owned);
    one != other && (is_validator(one) || is_validator(other) || cluster(one) == cluster(other))
}

/// How the links of `name` fare, for people: `-` if nothing is changed.
#[must_use]
pub fn summary(plan: &Plan, name: &str, rules: &[RuledLink]) -> String {
    let peers = plan.names().iter().filter(|other| are_linked(name, other)).count();
    let of = |is_meant: &dyn Fn(&RuledLink) -> bool| rules.iter().filter(|link| is_meant(link)).count();
    let cut_in = of(&|link| link.to == name && link.rule.drops_all);
    let cut_out = of(&|link| link.from == name && link.rule.drops_all);
    let impaired = of(&|link| (link.to == name || link.from == name) && !link.rule.drops_all);
    let mut parts = Vec::new();
    match (cut_in, cut_out) {
        (0, 0) => {}
        (i, o) if i == peers && o == peers => parts.push("cut off".to_owned()),
        (i, o) if i == o => parts.push(format!("cut from {i} of {peers}")),
        (i, o) => parts.push(format!("cut in {i}, out {o} of {peers}")),
    }
    if impaired > 0 {
        parts.push(format!("{impaired} of {} ways impaired", 2 * peers));
    }
    if parts.is_empty() {
        "-".to_owned()
    } else {
        parts.join(", ")
    }
}

/// What is in force, for the answer of a command.
#[must_use]
pub fn to_json(shown: &Shown) -> Value {
    let cut = shown.links.iter().filter(|link| link.rule.drops_all).count();
    json!({
        "cut": cut, "impaired": shown.links.len() - cut, "links": shown.links, "datagrams": shown.counters,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::draft::Profile;

    fn plan() -> Plan {
        Plan::new(2, 3, 4, Profile::Dev).unwrap()
    }

    fn agent(name: &str) -> Target {
        Target::Agent { name: name.into() }
    }

    fn link(from: &str, to: &str) -> Target {
        let (from, to) = (from.into(), to.into());
        Target::Link { from, to }
    }

    #[test]
    fn agent_is_cut_from_its_cluster_and_all_validators_both_ways() {
        let links = links_of(&plan(), &agent("c1-2"), None).unwrap();
        assert_eq!(links.len(), 2 * (2 + 4));
        assert!(links.contains(&("c1-2".into(), "c1-1".into())) && links.contains(&("v4".into(), "c1-2".into())));
        assert!(
            !links
                .iter()
                .any(|(from, to)| from.starts_with("c2") || to.starts_with("c2"))
        );
        let inward = links_of(&plan(), &agent("c1-2"), Some(OneWay::In)).unwrap();
        assert!(inward.len() == 6 && inward.iter().all(|(_, to)| to == "c1-2"));
    }

    #[test]
    fn cluster_is_cut_from_the_validators_and_stays_whole() {
        let target = Target::Cluster { name: "c2".into() };
        let links = links_of(&plan(), &target, None).unwrap();
        assert_eq!(links.len(), 2 * 3 * 4);
        assert!(links.iter().all(|(from, to)| is_validator(from) != is_validator(to)));
        let out = links_of(&plan(), &target, Some(OneWay::Out)).unwrap();
        assert!(out.len() == 12 && out.iter().all(|(from, _)| from.starts_with("c2-")));
    }

    #[test]
    fn validator_is_cut_from_validators_and_all_agents() {
        let target = Target::Validator { name: "v1".into() };
        assert_eq!(links_of(&plan(), &target, None).unwrap().len(), 2 * (3 + 6));
    }

    #[test]
    fn link_is_cut_both_ways_or_from_the_first_to_the_second() {
        let out = links_of(&plan(), &link("c1-1", "v2"), Some(OneWay::Out)).unwrap();
        assert_eq!(out, [("c1-1".into(), "v2".into())]);
        assert_eq!(links_of(&plan(), &link("c1-1", "v2"), None).unwrap().len(), 2);
    }

    #[test]
    fn target_of_another_kind_or_none_is_refused_with_what_to_do() {
        let validator = |name: &str| Target::Validator { name: name.into() };
        let cluster = |name: &str| Target::Cluster { name: name.into() };
        for (target, hint) in [
            (agent("v1"), "cut validator v1"),
            (validator("c1-1"), "cut agent c1-1"),
            (agent("c1"), "c1-2"),
            (agent("c3-1"), "c1-2"),
            (agent("relay"), "c1-2"),
            (cluster("c3"), "c1"),
            (cluster("c1-1"), "c1"),
            (link("c1-1", "c2-1"), "one cluster"),
            (link("c1-1", "c1-1"), "two agents"),
            (link("c1-1", ""), "c1-2"),
        ] {
            let failure = links_of(&plan(), &target, None).unwrap_err();
            assert_eq!(failure.exit, Exit::Invalid, "{target:?}");
            assert!(failure.todo.contains(hint), "{target:?}: {failure}");
        }
    }

    #[test]
    fn percentages_and_delays_out_of_range_are_refused() {
        assert_eq!(parse_percent("30%"), Ok(300_000));
        assert_eq!(parse_percent("0.5%"), Ok(5_000));
        assert_eq!(parse_percent("100%"), Ok(PPM));
        assert_eq!(parse_percent("0.0001%"), Ok(1));
        for bad in [
            "30",
            "101%",
            "100.0001%",
            "-1%",
            "%",
            "1.%",
            ".5%",
            "0.00001%",
            "NaN%",
            "1e1%",
            "9999%",
        ] {
            assert!(parse_percent(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_delay("60s"), Ok(Duration::from_secs(60)));
        assert!(parse_delay("61s").is_err() && parse_delay("5").is_err());
    }

    #[test]
    fn without_impairment_nothing_passes() {
        assert_eq!(Impairment::default().rule(), Rule::CUT);
        let lossy = Impairment {
            loss: Some(1),
            ..Impairment::default()
        };
        let rule = lossy.rule();
        assert_eq!((rule.drops_all, rule.loss_ppm, rule.reorder_us), (false, 1, 0));
    }

    #[test]
    fn summary_says_how_much_of_a_process_is_cut() {
        let plan = plan();
        let ruled = |target: &Target, one_way, rule| -> Vec<RuledLink> {
            let links = links_of(&plan, target, one_way).unwrap();
            links
                .into_iter()
                .map(|(from, to)| RuledLink { from, to, rule })
                .collect()
        };
        let cut = ruled(&agent("c1-2"), None, Rule::CUT);
        assert_eq!(summary(&plan, "c1-2", &cut), "cut off");
        assert_eq!(summary(&plan, "c1-1", &cut), "cut from 1 of 6");
        assert_eq!(summary(&plan, "c2-1", &cut), "-");
        let inward = ruled(&agent("c1-2"), Some(OneWay::In), Rule::CUT);
        assert_eq!(summary(&plan, "c1-2", &inward), "cut in 6, out 0 of 6");
        let late = Rule {
            delay_us: 1,
            ..Rule::default()
        };
        assert_eq!(
            summary(&plan, "v1", &ruled(&link("v1", "v2"), None, late)),
            "2 of 18 ways impaired"
        );
    }
}
