//! Processes of a run that fall into an enemy's hands, and what is done to them beside their messages.

use std::sync::{Arc, Mutex, PoisonError};

use super::{Machine, SimFleet};
use crate::{
    byzantine::{ActorKind, Enemies, EnemyReport, Hacked, Hand, Post, twins},
    ports::{Host, SimClock, SimDisk},
    random::Stream,
    runtime::ProcessId,
};

/// A process in an enemy's hands.
pub(super) struct Placed {
    pub(super) who: String,
    actor: ActorKind,
    tap: Arc<Mutex<Hacked>>,
    /// When an amnesiac makes or uses its next backup.
    next_us: u64,
    has_backup: bool,
    random: Stream,
}

/// When enemies begin with what needs a fleet at work.
const AMNESIA_US: u64 = 3_000_000;

impl SimFleet {
    /// Puts processes into enemies' hands: named ones before anything runs, leaders when there are some.
    pub fn hack(&mut self, enemies: Enemies) {
        for enemy in enemies.iter() {
            if let Some(cluster) = enemy.post.cluster() {
                self.witness.suspect(|suspects| suspects.add_cluster(cluster));
            }
            match enemy.post {
                Post::Leader { .. } => self.waiting.push(enemy),
                post => self.place(&post.to_string(), enemy.actor),
            }
        }
    }

    fn place(&mut self, name: &str, actor: ActorKind) {
        let random = Stream::new(self.seeds.next_u64());
        let tap = self.set_tap(name, actor);
        if actor == ActorKind::Twins {
            self.add_twin(name);
        }
        self.placed.push(Placed {
            who: name.to_owned(),
            actor,
            tap,
            next_us: AMNESIA_US,
            has_backup: false,
            random,
        });
    }

    fn set_tap(&mut self, name: &str, actor: ActorKind) -> Arc<Mutex<Hacked>> {
        let label = name.trim_end_matches(twins::SUFFIX);
        let hand = Hand::of(&self.fleet, label, Stream::new(self.seeds.next_u64()));
        let tap = Arc::new(Mutex::new(Hacked::new(hand, actor)));
        let machine = self.machine(name);
        self.network.set_tap(&machine.device, machine.host, tap.clone());
        self.witness.suspect(|suspects| suspects.add_process(name));
        tap
    }

    /// A second host with the key of the validator `name`, and an empty disk.
    fn add_twin(&mut self, name: &str) {
        let member = self.fleet.registry.by_idx(self.machine(name).idx);
        let member = member.expect("a validator of this fleet");
        let (id, device) = (ProcessId(twins::FIRST_ID + member.idx.0), member.id);
        let seed = self.seeds.next_u64();
        let disk = SimDisk::new(id.0, seed, self.conditions.disks, self.trace.clone());
        let clock = SimClock::new(self.trace.clone(), 30_000_000, 0);
        let twin = Machine::new(id, member, Host::Second, disk, clock);
        let twin_name = format!("{name}{}", twins::SUFFIX);
        self.network.enroll_twin(&device, id, twins::sides(seed));
        self.machines.insert(twin_name.clone(), twin);
        self.validators.insert(twin_name.clone(), None);
        self.set_tap(&twin_name, ActorKind::Twins);
    }

    /// What enemies do to processes themselves, now and then.
    pub fn step_enemies(&mut self, now_us: u64) {
        if now_us >= AMNESIA_US {
            for enemy in std::mem::take(&mut self.waiting) {
                let cluster = enemy.post.cluster().map_or(0, |cluster| cluster.0 as usize);
                match self.clusters().get(cluster).and_then(|members| self.leader(members)) {
                    Some(leader) => self.place(&leader, enemy.actor),
                    None => self.waiting.push(enemy),
                }
            }
        }
        let mut placed = std::mem::take(&mut self.placed);
        for enemy in placed.iter_mut().filter(|enemy| enemy.actor == ActorKind::Amnesiac) {
            self.forget(enemy, now_us);
        }
        self.placed = placed;
    }

    /// An amnesiac copies its disk, and lives on the copy a little later.
    fn forget(&mut self, enemy: &mut Placed, now_us: u64) {
        if now_us < enemy.next_us {
            return;
        }
        let mut tap = enemy.tap.lock().unwrap_or_else(PoisonError::into_inner);
        if !enemy.has_backup {
            self.machine(&enemy.who).disk.back_up();
            tap.back_up();
            enemy.next_us = now_us + enemy.random.between(50_000, 1_000_000);
        } else {
            self.kill(&enemy.who, now_us);
            self.machine(&enemy.who).disk.restore();
            tap.restore();
            enemy.next_us = now_us + enemy.random.between(1_000_000, 6_000_000);
        }
        enemy.has_backup = !enemy.has_backup;
    }

    /// What enemies did so far.
    #[must_use]
    pub fn enemies(&self) -> Vec<EnemyReport> {
        let report = |enemy: &Placed| EnemyReport {
            who: enemy.who.clone(),
            actor: enemy.actor,
            deeds: enemy.tap.lock().unwrap_or_else(PoisonError::into_inner).deeds(),
        };
        self.placed.iter().map(report).collect()
    }
}
