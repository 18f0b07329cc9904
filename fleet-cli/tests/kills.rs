//! Kill -9 of anything at random moments, then restart: nothing acknowledged is lost, nothing is twice.
//!
//! The moments come from a seed that is printed; `MUSTER_KILL_SEED` and `MUSTER_KILL_ROUNDS` choose others.

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{DevFleet, fleet};

const ROUNDS: u64 = 20;
/// Command lines that submit at one time.
const SUBMITTERS: usize = 3;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().expect("a number"))
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) % end
    }
}

/// What to kill in a round. Every kind comes up as often.
fn targets(random: &mut Random, round: u64, fleet: &DevFleet) -> Vec<String> {
    let agent = |random: &mut Random| format!("c{}-{}", random.below(3) + 1, random.below(3) + 1);
    match round % 6 {
        0 => vec![agent(random)],
        1 => {
            let rows = fleet.run(&["cluster", "list", "-o", "json"]);
            let leader = (rows.code == 0).then(|| rows.json()).and_then(|rows| {
                let row = &rows[random.below(3) as usize];
                row["leader"].as_str().map(str::to_owned)
            });
            vec![leader.unwrap_or_else(|| agent(random))]
        }
        2 => vec![format!("v{}", random.below(4) + 1)],
        3 => vec![format!("c{}", random.below(3) + 1)],
        4 => vec!["all".into()],
        _ => vec![agent(random), format!("v{}", random.below(4) + 1), agent(random)],
    }
}

#[test]
fn nothing_acknowledged_is_lost_or_doubled_whatever_is_killed() {
    let seed = from_env("MUSTER_KILL_SEED", u64::from(std::process::id()));
    let rounds = from_env("MUSTER_KILL_ROUNDS", ROUNDS);
    println!("MUSTER_KILL_SEED={seed} MUSTER_KILL_ROUNDS={rounds}");
    let mut random = Random(seed);
    let dev = DevFleet::up(&[]);
    let acknowledged: Arc<Mutex<BTreeMap<String, String>>> = Arc::default();
    let is_over = Arc::new(AtomicBool::new(false));
    let submitters: Vec<_> = (0..SUBMITTERS)
        .map(|nth| {
            let (home, acknowledged, is_over) = (dev.home.path().to_owned(), acknowledged.clone(), is_over.clone());
            std::thread::spawn(move || submit_until(&is_over, nth, &home, &acknowledged))
        })
        .collect();
    for round in 0..rounds {
        std::thread::sleep(Duration::from_millis(random.below(1_500)));
        let names = targets(&mut random, round, &dev);
        let before = acknowledged.lock().unwrap().len();
        let words: Vec<&str> = names.iter().map(String::as_str).collect();
        dev.run(&[&["dev", "kill"], &words[..]].concat()).ended_with(0);
        std::thread::sleep(Duration::from_millis(random.below(1_500)));
        dev.run(&["dev", "up", "--deadline", "180s"]).ended_with(0);
        println!("round {round}: killed {names:?}, {before} acknowledged before");
    }
    is_over.store(true, Ordering::Relaxed);
    for submitter in submitters {
        submitter.join().expect("a submitter asserts on its own");
    }
    let acknowledged = acknowledged.lock().unwrap().clone();
    assert!(
        acknowledged.len() as u64 >= rounds,
        "{} tasks acknowledged",
        acknowledged.len()
    );
    judge(&dev, &acknowledged);
}

/// Submits tasks one after another, and writes down what is acknowledged.
fn submit_until(is_over: &AtomicBool, nth: usize, home: &Path, acknowledged: &Mutex<BTreeMap<String, String>>) {
    for n in 0.. {
        if is_over.load(Ordering::Relaxed) {
            return;
        }
        let (key, place) = (format!("k{nth}-{n}"), format!("{},1", (n * 1_234) % 5_000));
        let arguments = ["task", "submit", "--kind", "survey", "--timeout", "3s", "-o", "json"];
        let done = fleet(home, &[&arguments[..], &["--key", &key, "--local", &place]].concat());
        if done.code == 0 {
            let task = done.json()["task"].as_str().expect("an id").to_owned();
            acknowledged.lock().unwrap().insert(key, task);
        } else {
            assert!([4, 7, 8].contains(&done.code), "exit {}: {}", done.code, done.err);
        }
    }
}

fn judge(dev: &DevFleet, acknowledged: &BTreeMap<String, String>) {
    let end = Instant::now() + Duration::from_secs(180);
    let finals: Vec<Value> = loop {
        let done = dev.run(&["task", "list", "--consistency", "final", "-o", "json"]);
        let rows = if done.code == 0 { done.json() } else { Value::Null };
        let rows: Vec<Value> = rows.as_array().cloned().unwrap_or_default();
        let known: BTreeSet<&str> = rows
            .iter()
            .filter(|row| row["finality"] == "final")
            .filter_map(|row| row["id"].as_str())
            .collect();
        let missing: Vec<_> = acknowledged
            .iter()
            .filter(|(_, id)| !known.contains(id.as_str()))
            .collect();
        if missing.is_empty() {
            break rows;
        }
        assert!(Instant::now() < end, "acknowledged and not final: {missing:?}");
        std::thread::sleep(Duration::from_millis(200));
    };
    let mut keys: BTreeMap<&str, usize> = BTreeMap::new();
    // A submission whose outcome was unknown may have become a task as well; none may be there twice.
    for row in finals.iter().filter(|row| row["finality"] == "final") {
        *keys.entry(row["key"].as_str().expect("a key")).or_default() += 1;
    }
    let twice: Vec<_> = keys.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty(), "twice: {twice:?}");
    let end = Instant::now() + Duration::from_secs(180);
    while dev.json(&["status"])["global"]["digests_agree"] != true {
        assert!(Instant::now() < end, "the validators' states differ");
    }
    let (key, id) = acknowledged.iter().next_back().expect("some are acknowledged");
    let proven = dev.json(&["task", "prove", id, "-f", "p.proof"]);
    assert_eq!(proven["key"], key.as_str());
}
