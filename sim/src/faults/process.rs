//! Processes that are killed, stand still, or lose power together, with the clocks of their machines; and one that is killed while it writes a
//! snapshot.

use super::{Fault, all_names, pick, split};
use crate::{fleet::SimFleet, ports::DiskTrouble, random::Stream};

/// Killed, each down for its own time.
pub struct Crash {
    /// In a few words.
    pub what: &'static str,
    /// With the time each stays down, microseconds.
    pub who: Vec<(String, u64)>,
}

/// Machines that lose power, each for its own time: killed, and their boot-time clocks begin anew.
pub struct PowerLoss {
    /// With the time each stays down, microseconds.
    pub who: Vec<(String, u64)>,
}

/// Stands still from beginning to end.
pub struct Pause {
    /// Of the fault.
    pub number: u64,
    /// Whose every task.
    pub who: Vec<String>,
}

/// Killed as soon as it writes a snapshot, its own or one that it was sent.
pub struct CrashInSnapshot {
    number: u64,
    who: String,
    down_us: u64,
    writes_before: u64,
    was_killed: bool,
}

/// Killed as soon as it has applied an entry, while others wait for its answer and its log is not purged.
pub struct CrashInApply {
    number: u64,
    who: Vec<String>,
    down_us: u64,
    killed: Vec<String>,
}

/// Draws what happens to whom.
pub fn draw(number: u64, fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    let clusters = fleet.clusters();
    let down = |who: Vec<String>, random: &mut Stream, longest_us| {
        let with_time = |name| (name, random.between(200_000, longest_us));
        who.into_iter().map(with_time).collect::<Vec<_>>()
    };
    match random.between(0, 10) {
        0 | 1 => {
            let who = vec![pick(random, &all_names(fleet))];
            let who = down(who, random, 8_000_000);
            Box::new(Crash { what: "crash", who })
        }
        2 => {
            let cluster = pick(random, &clusters);
            let leader = fleet.leader(&cluster).unwrap_or_else(|| pick(random, &cluster));
            let who = down(vec![leader], random, 5_000_000);
            Box::new(Crash {
                what: "crash of the leader",
                who,
            })
        }
        3 => {
            let cluster = pick(random, &clusters);
            let who = down(cluster, random, 6_000_000);
            Box::new(Crash {
                what: "crash of a cluster",
                who,
            })
        }
        4 => {
            let who = down(fleet.validator_machines(), random, 6_000_000);
            Box::new(Crash {
                what: "crash of all validators",
                who,
            })
        }
        5 => {
            let who = down(all_names(fleet), random, 6_000_000);
            Box::new(PowerLoss { who })
        }
        6 | 7 => {
            let most = fleet.population.agents.div_ceil(2).max(1);
            let count = random.between(1, u64::from(most)) as usize;
            let (who, _) = split(random, &all_names(fleet), count);
            Box::new(Pause { number, who })
        }
        8 => {
            let cluster = pick(random, &clusters);
            let who = fleet.leader(&cluster).unwrap_or_else(|| pick(random, &cluster));
            Box::new(Pause { number, who: vec![who] })
        }
        9 => Box::new(CrashInApply::new(
            number,
            vec![pick(random, &fleet.agent_names())],
            random.between(100_000, 4_000_000),
        )),
        _ => {
            let who = pick(random, &fleet.agent_names());
            Box::new(CrashInSnapshot::new(number, who, random.between(100_000, 4_000_000)))
        }
    }
}

impl Fault for Crash {
    fn describe(&self) -> String {
        let names: Vec<&str> = self.who.iter().map(|(name, _)| name.as_str()).collect();
        format!("{}: {}", self.what, names.join(","))
    }

    fn begin(&mut self, fleet: &mut SimFleet, now_us: u64) {
        for (name, down_us) in &self.who {
            fleet.kill(name, now_us + down_us);
        }
    }

    fn end(&mut self, _fleet: &mut SimFleet, _now_us: u64) {}
}

impl Fault for PowerLoss {
    fn describe(&self) -> String {
        let names: Vec<&str> = self.who.iter().map(|(name, _)| name.as_str()).collect();
        format!("power loss: {}", names.join(","))
    }

    fn begin(&mut self, fleet: &mut SimFleet, now_us: u64) {
        for (name, down_us) in &self.who {
            fleet.cut_power(name, now_us + down_us);
        }
    }

    fn end(&mut self, _fleet: &mut SimFleet, _now_us: u64) {}
}

impl Fault for Pause {
    fn describe(&self) -> String {
        format!("pause: {}", self.who.join(","))
    }

    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.pause(self.number, name);
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.resume(self.number, name);
        }
    }
}

impl CrashInApply {
    /// Each of `who`, down for `down_us` afterwards, as the fault `number`.
    #[must_use]
    pub fn new(number: u64, who: Vec<String>, down_us: u64) -> Self {
        Self {
            number,
            who,
            down_us,
            killed: Vec::new(),
        }
    }
}

impl Fault for CrashInApply {
    fn describe(&self) -> String {
        format!(
            "crash in an apply: {} ({} met it)",
            self.who.join(","),
            self.killed.len()
        )
    }

    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        for name in &self.who {
            fleet.set_crash_at_apply(self.number, name, true);
        }
    }

    fn step(&mut self, fleet: &mut SimFleet, now_us: u64) {
        for name in &self.who {
            if !self.killed.contains(name) && fleet.has_died(name) {
                self.killed.push(name.clone());
                fleet.kill(name, now_us + self.down_us);
            }
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, now_us: u64) {
        self.step(fleet, now_us);
        for name in &self.who {
            fleet.set_crash_at_apply(self.number, name, false);
        }
    }
}

impl CrashInSnapshot {
    /// `who`, down for `down_us` afterwards, as the fault `number`.
    #[must_use]
    pub fn new(number: u64, who: String, down_us: u64) -> Self {
        Self {
            number,
            who,
            down_us,
            writes_before: 0,
            was_killed: false,
        }
    }

    fn begun(&self, fleet: &SimFleet) -> u64 {
        fleet.snapshots(&self.who).map_or(0, |snapshots| snapshots.begun())
    }
}

impl Fault for CrashInSnapshot {
    fn describe(&self) -> String {
        let met = if self.was_killed { "" } else { " (it wrote none)" };
        format!("crash in a snapshot: {}{met}", self.who)
    }

    /// Its disk is slow until then, so that the write lasts longer than a look.
    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        self.writes_before = self.begun(fleet);
        fleet.set_trouble(self.number, &self.who, DiskTrouble::Slow { times: 20 });
    }

    fn step(&mut self, fleet: &mut SimFleet, now_us: u64) {
        if !self.was_killed && self.begun(fleet) > self.writes_before {
            self.was_killed = true;
            fleet.kill(&self.who, now_us + self.down_us);
            fleet.set_trouble(self.number, &self.who, DiskTrouble::Healthy);
        }
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        if !self.was_killed {
            fleet.set_trouble(self.number, &self.who, DiskTrouble::Healthy);
        }
    }
}
