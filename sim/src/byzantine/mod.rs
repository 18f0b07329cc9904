//! Processes in an enemy's hands: real ones, with their keys, whose messages are rewritten on the way out.
//!
//! In: a [`Plan`](crate::run::Plan)'s enemies. Out: taps ([`crate::ports::Tap`]) between these processes
//! and their links, and the list of what nobody may hold the fleet to ([`suspects`]). One file per actor.
//!
//! # Rules
//! * The real code stays in the path: an actor only changes, signs anew with its own key, holds back, delays,
//!   repeats and adds messages.
//! * What it signed in secret is hidden from its own process ([`mask`]), which would stop otherwise.
//! * At most f of 3f+1 validators and a minority of a cluster are in an enemy's hands, but for the run that
//!   shows that the checkers notice more.
//! * They never heal. Checkers judge honest processes only.

pub mod amnesiac;
pub mod copyist;
pub mod double_voter;
pub mod equivocator;
pub mod forger;
mod hand;
pub mod lying_leader;
pub mod mask;
pub mod packer;
pub mod poisoner;
pub mod replayer;
pub mod root_forger;
pub mod selective;
pub mod spammer;
pub mod suspects;
pub mod twins;
pub mod withholder;

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use common::{
    ids::{ClusterId, NodeIdx},
    wire::frame::{FrameKind, Refusal},
};
use serde::{Deserialize, Serialize};

pub use hand::Hand;
use mask::Mask;

use crate::{
    fleet::Population,
    ports::{Leaves, Sending, Tap},
    random::Stream,
};

/// What an enemy does with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// Proposes two blocks in one view, and votes for both.
    Equivocator,
    /// Votes for everything that anybody votes for, and against it.
    DoubleVoter,
    /// Holds back votes, certificates, notices or batches.
    Withholder,
    /// Invents batches, rows and references.
    Forger,
    /// Hands out other copies of certified batches, with the digest of the good one.
    Copyist,
    /// Proposes blocks with roots that nobody computed.
    RootForger,
    /// Sends again what was sent before, by anybody.
    Replayer,
    /// Speaks to some and not to others.
    Selective,
    /// Runs on a backup of its disk, and votes again.
    Amnesiac,
    /// Leads a cluster, and lies about what is committed and what is in a batch.
    LyingLeader,
    /// Answers with damaged blocks, proofs, batches and snapshots.
    Poisoner,
    /// Sends more than anybody asked for.
    Spammer,
    /// Packs bundles that nobody should send.
    Packer,
    /// Runs twice, on two hosts with one key.
    Twins,
}

impl ActorKind {
    /// In the order of the variants.
    pub const ALL: [Self; 14] = [
        Self::Equivocator,
        Self::DoubleVoter,
        Self::Withholder,
        Self::Forger,
        Self::Copyist,
        Self::RootForger,
        Self::Replayer,
        Self::Selective,
        Self::Amnesiac,
        Self::LyingLeader,
        Self::Poisoner,
        Self::Spammer,
        Self::Packer,
        Self::Twins,
    ];

    /// The word in files and reports.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Equivocator => "equivocator",
            Self::DoubleVoter => "double_voter",
            Self::Withholder => "withholder",
            Self::Forger => "forger",
            Self::Copyist => "copyist",
            Self::RootForger => "root_forger",
            Self::Replayer => "replayer",
            Self::Selective => "selective",
            Self::Amnesiac => "amnesiac",
            Self::LyingLeader => "lying_leader",
            Self::Poisoner => "poisoner",
            Self::Spammer => "spammer",
            Self::Packer => "packer",
            Self::Twins => "twins",
        }
    }

    /// Whether it makes something of a validator.
    #[must_use]
    pub fn is_for_validators(self) -> bool {
        self != Self::LyingLeader
    }

    /// Whether it makes something of a member of a cluster.
    #[must_use]
    pub fn is_for_members(self) -> bool {
        matches!(
            self,
            Self::Withholder
                | Self::Forger
                | Self::Copyist
                | Self::Replayer
                | Self::Selective
                | Self::LyingLeader
                | Self::Poisoner
                | Self::Spammer
        )
    }

    fn make(self) -> Box<dyn Actor> {
        match self {
            Self::Equivocator => Box::<equivocator::Equivocator>::default(),
            Self::DoubleVoter => Box::<double_voter::DoubleVoter>::default(),
            Self::Withholder => Box::<withholder::Withholder>::default(),
            Self::Forger => Box::<forger::Forger>::default(),
            Self::Copyist => Box::<copyist::Copyist>::default(),
            Self::RootForger => Box::<root_forger::RootForger>::default(),
            Self::Replayer => Box::<replayer::Replayer>::default(),
            Self::Selective => Box::<selective::Selective>::default(),
            Self::Amnesiac => Box::<amnesiac::Amnesiac>::default(),
            Self::LyingLeader => Box::<lying_leader::LyingLeader>::default(),
            Self::Poisoner => Box::<poisoner::Poisoner>::default(),
            Self::Spammer => Box::<spammer::Spammer>::default(),
            Self::Packer => Box::<packer::Packer>::default(),
            Self::Twins => Box::<twins::Twin>::default(),
        }
    }
}

/// Which process is in an enemy's hands. Numbers begin at 1, as in the names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Post {
    /// A validator.
    Validator(u32),
    /// A member of a cluster.
    Member {
        /// Of which cluster.
        cluster: u32,
        /// Which.
        agent: u32,
    },
    /// Whoever leads a cluster when the fleet has worked for a while.
    Leader {
        /// Which cluster.
        cluster: u32,
    },
}

impl Post {
    /// Reads `v2`, `c1-3` or `leader c1`.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        if let Some(cluster) = word.strip_prefix("leader c") {
            return Some(Self::Leader {
                cluster: cluster.parse().ok()?,
            });
        }
        if let Some(number) = word.strip_prefix('v') {
            return Some(Self::Validator(number.parse().ok()?));
        }
        let (cluster, agent) = word.strip_prefix('c')?.split_once('-')?;
        Some(Self::Member {
            cluster: cluster.parse().ok()?,
            agent: agent.parse().ok()?,
        })
    }

    /// The cluster that has an enemy among its members.
    #[must_use]
    pub fn cluster(self) -> Option<ClusterId> {
        match self {
            Self::Validator(_) => None,
            Self::Member { cluster, .. } | Self::Leader { cluster } => Some(ClusterId(cluster.saturating_sub(1))),
        }
    }

    fn is_in(self, population: Population) -> bool {
        match self {
            Self::Validator(number) => (1..=population.validators).contains(&number),
            Self::Leader { cluster } => (1..=population.clusters).contains(&cluster),
            Self::Member { cluster, agent } => {
                (1..=population.clusters).contains(&cluster) && (1..=population.agents).contains(&agent)
            }
        }
    }
}

impl fmt::Display for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Validator(number) => write!(f, "v{number}"),
            Self::Member { cluster, agent } => write!(f, "c{cluster}-{agent}"),
            Self::Leader { cluster } => write!(f, "leader c{cluster}"),
        }
    }
}

/// One process in an enemy's hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enemy {
    /// Which.
    pub post: Post,
    /// What is done with it.
    pub actor: ActorKind,
}

/// Enemies of one run, at most [`Enemies::MAX`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enemies([Option<Enemy>; Enemies::MAX]);

impl Enemies {
    /// At most so many.
    pub const MAX: usize = 3;

    /// These.
    ///
    /// # Panics
    /// Above [`Enemies::MAX`].
    #[must_use]
    pub fn of(enemies: &[Enemy]) -> Self {
        assert!(enemies.len() <= Self::MAX, "{} enemies", enemies.len());
        let mut list = Self::default();
        for (place, enemy) in list.0.iter_mut().zip(enemies) {
            *place = Some(*enemy);
        }
        list
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = Enemy> + '_ {
        self.0.iter().flatten().copied()
    }

    /// Draws one validator, and in half of the seeds a member of the first cluster beside it: whoever leads it after a while,
    /// in a third of these seeds a drawn one, who may lead or follow.
    #[must_use]
    pub fn draw(seed: u64, population: Population) -> Self {
        let mut random = Stream::split(seed, 0x656e_656d);
        let mut pick = |fits: fn(ActorKind) -> bool| {
            let fitting: Vec<ActorKind> = ActorKind::ALL.into_iter().filter(|actor| fits(*actor)).collect();
            fitting[random.between(0, fitting.len() as u64 - 1) as usize]
        };
        let (of_validator, of_member) = (pick(ActorKind::is_for_validators), pick(ActorKind::is_for_members));
        let validator = random.between(1, u64::from(population.validators)) as u32;
        let mut enemies = vec![Enemy {
            post: Post::Validator(validator),
            actor: of_validator,
        }];
        if random.between(0, 1) == 1 {
            let mut posts = Stream::split(seed, 0x706f_7374);
            let post = match posts.between(0, 2) {
                0 => Post::Member {
                    cluster: 1,
                    agent: posts.between(1, u64::from(population.agents)) as u32,
                },
                _ => Post::Leader { cluster: 1 },
            };
            enemies.push(Enemy { post, actor: of_member });
        }
        Self::of(&enemies)
    }

    /// Whether each has a process, a fitting actor, and they stay below a third of the validators and
    /// below half of each cluster.
    ///
    /// # Errors
    /// What is wrong.
    pub fn check(&self, population: Population) -> Result<(), String> {
        for enemy in self.iter() {
            let fits = match enemy.post {
                Post::Validator(_) => enemy.actor.is_for_validators(),
                Post::Member { .. } | Post::Leader { .. } => enemy.actor.is_for_members(),
            };
            if !enemy.post.is_in(population) {
                return Err(format!("{} is no process of this fleet", enemy.post));
            }
            if !fits {
                return Err(format!("{} cannot be a {}", enemy.post, enemy.actor.word()));
            }
        }
        let mut by_group: BTreeMap<Option<ClusterId>, u32> = BTreeMap::new();
        for enemy in self.iter() {
            *by_group.entry(enemy.post.cluster()).or_default() += 1;
        }
        let is_too_many = |(cluster, count): (&Option<ClusterId>, &u32)| match cluster {
            None => 3 * count >= population.validators,
            Some(_) => 2 * count >= population.agents,
        };
        if by_group.iter().any(is_too_many) {
            return Err("a third of the validators or half of a cluster is in an enemy's hands".into());
        }
        Ok(())
    }
}

/// What an actor did, for the report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnemyReport {
    /// Which process.
    pub who: String,
    /// What was done with it.
    pub actor: ActorKind,
    /// What it did, and how often.
    pub deeds: BTreeMap<&'static str, u64>,
}

impl fmt::Display for EnemyReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let deeds: Vec<String> = self
            .deeds
            .iter()
            .map(|(deed, times)| format!("{times} x {deed}"))
            .collect();
        write!(f, "{} is a {}: {}", self.who, self.actor.word(), deeds.join(", "))
    }
}

/// What an enemy does with the messages of its process. The default is nothing.
pub trait Actor: Send {
    /// The process sends a request.
    fn sends(&mut self, _hand: &mut Hand, _to: NodeIdx, _kind: FrameKind, body: &Bytes) -> Leaves {
        Leaves::As(body.clone())
    }

    /// A request reached the process.
    fn hears(&mut self, _hand: &mut Hand, _from: NodeIdx, _kind: FrameKind, _body: &[u8]) {}

    /// The process answers a request of `to`.
    fn answers(
        &mut self,
        _hand: &mut Hand,
        _to: NodeIdx,
        _kind: FrameKind,
        _request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        answer
    }

    /// Its disk was set back to an earlier time; `forgotten` are its votes since.
    fn forgot(&mut self, _hand: &mut Hand, _forgotten: &[common::certificate::Vote]) {}
}

/// A process in an enemy's hands: the tap on its links.
pub struct Hacked {
    hand: Hand,
    mask: Mask,
    actor: Box<dyn Actor>,
    backup: Option<Mask>,
}

impl Hacked {
    /// `hand` under an actor of this kind.
    #[must_use]
    pub fn new(hand: Hand, actor: ActorKind) -> Self {
        Self {
            mask: Mask::new(hand.me, hand.set.clone()),
            hand,
            actor: actor.make(),
            backup: None,
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn deeds(&self) -> BTreeMap<&'static str, u64> {
        self.hand.deeds()
    }

    /// Its disk is copied now.
    pub fn back_up(&mut self) {
        self.backup = Some(self.mask.clone());
    }

    /// Its disk is as it was at the last copy. False if there is none.
    pub fn restore(&mut self) -> bool {
        let Some(before) = self.backup.clone() else {
            return false;
        };
        let forgotten = self.mask.votes_beyond(&before);
        self.mask = before;
        self.hand.did("lives on a backup");
        self.actor.forgot(&mut self.hand, &forgotten);
        true
    }
}

impl Tap for Hacked {
    fn sends(&mut self, now_us: u64, to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves {
        self.hand.now_us = now_us;
        self.mask.note(kind, body);
        self.actor.sends(&mut self.hand, to, kind, body)
    }

    fn hears(&mut self, now_us: u64, from: NodeIdx, kind: FrameKind, body: &[u8]) -> bool {
        self.hand.now_us = now_us;
        self.actor.hears(&mut self.hand, from, kind, body);
        !self.mask.hides(kind, body)
    }

    fn answers(
        &mut self,
        now_us: u64,
        to: NodeIdx,
        kind: FrameKind,
        request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal> {
        self.hand.now_us = now_us;
        self.actor.answers(&mut self.hand, to, kind, request, answer)
    }

    fn is_told(&mut self, _now_us: u64, _from: NodeIdx, kind: FrameKind, answer: Bytes) -> Bytes {
        self.mask.clean(kind, answer)
    }

    fn besides(&mut self) -> Vec<Sending> {
        self.hand.take_besides()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLEET: Population = Population {
        clusters: 2,
        agents: 3,
        validators: 4,
    };

    fn enemy(post: &str, actor: ActorKind) -> Enemy {
        let post = Post::parse(post).unwrap();
        Enemy { post, actor }
    }

    #[test]
    fn too_many_enemies_and_unfit_ones_are_refused() {
        let check = |enemies: &[Enemy]| Enemies::of(enemies).check(FLEET);
        let liar = ActorKind::LyingLeader;
        assert_eq!(
            check(&[enemy("v1", ActorKind::Twins), enemy("leader c2", liar)]),
            Ok(())
        );
        assert!(check(&[enemy("v1", ActorKind::Twins), enemy("v2", ActorKind::Forger)]).is_err());
        assert!(check(&[enemy("c1-1", ActorKind::Forger), enemy("leader c1", liar)]).is_err());
        assert!(check(&[enemy("v1", liar)]).is_err());
        assert!(check(&[enemy("c1-1", ActorKind::Equivocator)]).is_err());
        assert!(check(&[enemy("v5", ActorKind::Twins)]).is_err());
        assert!(check(&[enemy("c3-1", ActorKind::Forger)]).is_err());
    }

    #[test]
    fn seeds_draw_every_actor_within_the_bounds() {
        let mut drawn = std::collections::BTreeSet::new();
        let (mut leaders, mut members) = (0, std::collections::BTreeSet::new());
        for seed in 0..600 {
            let enemies = Enemies::draw(seed, FLEET);
            assert_eq!(enemies.check(FLEET), Ok(()), "seed {seed}");
            drawn.extend(enemies.iter().map(|enemy| enemy.actor));
            for enemy in enemies.iter() {
                match enemy.post {
                    Post::Validator(_) => {}
                    Post::Leader { .. } => leaders += 1,
                    Post::Member { agent, .. } => {
                        members.insert((seed, agent, enemy.actor.word()));
                    }
                }
            }
        }
        assert_eq!(drawn.len(), ActorKind::ALL.len());
        let hacked = leaders + members.len();
        assert!((200..400).contains(&hacked) && (hacked / 4..hacked / 2).contains(&members.len()));
        for agent in 1..=FLEET.agents {
            assert!(
                members.iter().any(|member| member.1 == agent),
                "c1-{agent} is never hacked"
            );
        }
        let actors: std::collections::BTreeSet<_> = members.iter().map(|member| member.2).collect();
        assert_eq!(
            actors.len(),
            ActorKind::ALL.iter().filter(|actor| actor.is_for_members()).count()
        );
    }

    #[test]
    fn posts_are_read_as_they_are_written() {
        for word in ["v3", "c2-1", "leader c1"] {
            assert_eq!(Post::parse(word).unwrap().to_string(), word);
        }
        assert_eq!(Post::parse("op1"), None);
        assert_eq!(Post::parse("c1"), None);
    }
}
