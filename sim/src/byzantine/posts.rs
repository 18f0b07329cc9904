//! Which processes are in enemies' hands: their posts, how they are drawn, and how many there may be.

use std::{collections::BTreeMap, fmt};

use common::ids::ClusterId;

use super::ActorKind;
use crate::{fleet::Population, random::Stream};

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
