//! A UDP relay between processes on one machine, whose links can be cut and impaired: for dev fleets and tests.
//!
//! In: datagrams of known ends, rules for links. Out: the same datagrams, or not. Built with the feature `relay` only; agents
//! and validators do not know it.
//!
//! ```text
//!   A (listens at a)                relay                  B (listens at b)
//!      a ------------> R_B: from a, so from A
//!                      R_A ------------------------------------> b
//!   A knows B as R_B                                   B knows A as R_A
//! ```
//!
//! # Rules
//! * Every process sees every other at its relay address, whoever dials, and that never changes: QUIC sees one path.
//!   This needs processes that dial from the address they listen at, as [`crate::quic`] does.
//! * A datagram from an address that is no end's is dropped and counted.
//! * When a method that changes rules returns, no datagram passes by the rules before.
//! * A process that dials the listen address itself, as an operator does, is not cut off by anything here.
//!
//! # Why
//! A process cannot tell this from a network that fails, and contains no switch that makes it fail. Datagrams are cut,
//! not connections: handshakes, keep-alives and resets fare as on a real link.

mod fate;
mod links;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, StreamExt as _, stream::FuturesUnordered};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UdpSocket,
    sync::Notify,
    time::{Instant, sleep, sleep_until},
};

use self::links::{LinkId, Links};
pub use self::{
    fate::{DELAY_US_MAX, Fate, PPM, Rule, RuleError, fate},
    links::{Counters, WAITING_BYTES_MAX},
};
use crate::ports::Spawner;

/// Longest UDP datagram.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// Datagrams of one socket that are handled before others have their turn.
const BURST: usize = 64;
/// After an error of the system that says nothing about a datagram.
const PAUSE: Duration = Duration::from_millis(20);

/// A process that speaks through the relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Its name.
    pub name: String,
    /// Where it listens, and from where it sends.
    pub listen: SocketAddr,
    /// Where the others shall send to reach it; port 0 takes a free one.
    pub relay: SocketAddr,
}

/// Why a relay did not start, or did not take a rule.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// A relay address cannot be bound.
    #[error("cannot bind the relay address {address} of {name}: {source}; end what listens there")]
    Bind {
        /// The end.
        name: String,
        /// Its relay address.
        address: SocketAddr,
        /// Error of the system.
        source: io::Error,
    },
    /// Two ends have one name or one listen address.
    #[error("{first} and {second} have the same name or listen address")]
    Twice {
        /// An end.
        first: String,
        /// Another.
        second: String,
    },
    /// A rule names an end that does not exist.
    #[error("{0:?} is no end of this relay")]
    UnknownEnd(String),
    /// A link needs two ends.
    #[error("{0} has no link to itself")]
    ToItself(String),
    /// A rule that cannot be followed.
    #[error(transparent)]
    Rule(#[from] RuleError),
}

/// A directed link and the rule in force on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuledLink {
    /// Who sends.
    pub from: String,
    /// Who should receive.
    pub to: String,
    /// How its datagrams fare.
    pub rule: Rule,
}

struct Socket {
    end: End,
    socket: UdpSocket,
}

struct Shared {
    sockets: Vec<Socket>,
    by_listen: BTreeMap<SocketAddr, usize>,
    by_name: BTreeMap<String, usize>,
    links: Mutex<Links>,
    /// Something waits that may be due before what waited first.
    has_waiting: Notify,
    has_ended: Notify,
}

/// A running relay. It ends with this value.
pub struct RelayHandle(Arc<Shared>);

impl std::fmt::Debug for RelayHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "relay of {:?}", self.0.by_name.keys().collect::<Vec<_>>())
    }
}

impl Drop for RelayHandle {
    fn drop(&mut self) {
        self.0.has_ended.notify_one();
    }
}

/// Starts a relay between `ends`. Must be called inside of a tokio runtime.
///
/// `seed`: decides all chances ([`Rule`]).
///
/// # Errors
/// [`RelayError::Bind`], [`RelayError::Twice`].
pub fn start(seed: u64, ends: Vec<End>, spawner: &dyn Spawner) -> Result<RelayHandle, RelayError> {
    let (mut by_listen, mut by_name, mut sockets) = (BTreeMap::new(), BTreeMap::new(), Vec::<Socket>::new());
    for end in ends {
        let at = sockets.len();
        let same_address = by_listen.insert(end.listen, at);
        if let Some(before) = by_name.insert(end.name.clone(), at).or(same_address) {
            let first = sockets[before].end.name.clone();
            return Err(RelayError::Twice {
                first,
                second: end.name,
            });
        }
        sockets.push(bind(end)?);
    }
    let shared = Arc::new(Shared {
        sockets,
        by_listen,
        by_name,
        links: Mutex::new(Links::new(seed)),
        has_waiting: Notify::new(),
        has_ended: Notify::new(),
    });
    spawner.spawn("relay", run(shared.clone()).boxed());
    Ok(RelayHandle(shared))
}

fn bind(end: End) -> Result<Socket, RelayError> {
    let bound = std::net::UdpSocket::bind(end.relay).and_then(|socket| {
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    });
    match bound {
        Ok(socket) => Ok(Socket { end, socket }),
        Err(source) => Err(RelayError::Bind {
            name: end.name,
            address: end.relay,
            source,
        }),
    }
}

impl RelayHandle {
    /// Where the others send to reach `name`; `None` if it is no end.
    ///
    /// # Panics
    /// If the system forgot an open socket's address.
    #[must_use]
    pub fn address_of(&self, name: &str) -> Option<SocketAddr> {
        let at = *self.0.by_name.get(name)?;
        let address = self.0.sockets[at].socket.local_addr();
        Some(address.expect("an open socket has an address"))
    }

    /// Puts `rule` in force on directed links, each `(from, to)`; all or none. A rule that changes nothing heals them.
    ///
    /// # Errors
    /// An unknown end, a link of an end to itself, a rule out of range.
    pub fn set<'a>(&self, links: impl IntoIterator<Item = (&'a str, &'a str)>, rule: Rule) -> Result<(), RelayError> {
        rule.check()?;
        let ids: Result<Vec<LinkId>, RelayError> = links.into_iter().map(|(from, to)| self.id(from, to)).collect();
        let ids = ids?;
        let mut state = self.0.links();
        for id in ids {
            state.set(id, rule);
        }
        Ok(())
    }

    /// Cuts the link between two ends, both ways.
    ///
    /// # Errors
    /// An unknown end, or twice the same.
    pub fn cut(&self, one: &str, other: &str) -> Result<(), RelayError> {
        self.set([(one, other), (other, one)], Rule::CUT)
    }

    /// Cuts `name` from every other end, both ways.
    ///
    /// # Errors
    /// An unknown end.
    pub fn isolate(&self, name: &str) -> Result<(), RelayError> {
        let own = self.place(name)?;
        let mut state = self.0.links();
        for other in (0..self.0.sockets.len()).filter(|other| *other != own) {
            state.set((own, other), Rule::CUT);
            state.set((other, own), Rule::CUT);
        }
        Ok(())
    }

    /// Takes all rules away.
    pub fn heal(&self) {
        self.0.links().heal(|_| true);
    }

    /// Takes the rules of all links from or to any of `names` away.
    ///
    /// # Errors
    /// An unknown end; nothing is healed then.
    pub fn heal_ends<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> Result<(), RelayError> {
        let meant: Result<Vec<usize>, RelayError> = names.into_iter().map(|name| self.place(name)).collect();
        let meant = meant?;
        self.0
            .links()
            .heal(|(from, to)| meant.contains(&from) || meant.contains(&to));
        Ok(())
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Vec<RuledLink> {
        let name = |at: usize| self.0.sockets[at].end.name.clone();
        let state = self.0.links();
        let rules = state.rules().map(|((from, to), rule)| RuledLink {
            from: name(from),
            to: name(to),
            rule,
        });
        rules.collect()
    }

    /// What was done with datagrams since the start.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.0.links().counters
    }

    fn place(&self, name: &str) -> Result<usize, RelayError> {
        let at = self.0.by_name.get(name).copied();
        at.ok_or_else(|| RelayError::UnknownEnd(name.to_owned()))
    }

    fn id(&self, from: &str, to: &str) -> Result<LinkId, RelayError> {
        match (self.place(from)?, self.place(to)?) {
            (one, other) if one == other => Err(RelayError::ToItself(from.to_owned())),
            id => Ok(id),
        }
    }
}

/// Forwards until the handle is gone.
async fn run(shared: Arc<Shared>) {
    let mut pumps: FuturesUnordered<_> = (0..shared.sockets.len()).map(|at| pump(&shared, at)).collect();
    let pumping = async { while pumps.next().await.is_some() {} };
    let working = futures::future::join(pumping, deliver_late(&shared));
    let ended = std::pin::pin!(shared.has_ended.notified());
    futures::future::select(ended, std::pin::pin!(working)).await;
}

/// Forwards what arrives at one relay address.
async fn pump(shared: &Shared, to: usize) {
    let socket = &shared.sockets[to].socket;
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        if let Err(error) = shared.forward_burst(to, &mut buffer) {
            if error.kind() != io::ErrorKind::WouldBlock {
                tracing::warn!(%error, end = shared.sockets[to].end.name, "the relay cannot receive");
                sleep(PAUSE).await;
            }
        } else {
            tokio::task::yield_now().await;
        }
        if socket.readable().await.is_err() {
            return;
        }
    }
}

/// Sends late datagrams when they are due.
async fn deliver_late(shared: &Shared) {
    loop {
        let next = shared.send_due(Instant::now());
        let changed = std::pin::pin!(shared.has_waiting.notified());
        match next {
            Some(due) => {
                futures::future::select(changed, std::pin::pin!(sleep_until(due))).await;
            }
            None => changed.await,
        }
    }
}

impl Shared {
    fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forwards up to [`BURST`] datagrams that wait at the relay address of `to`. The rules are held meanwhile: who
    /// changed them knows that none passes by the old ones.
    ///
    /// # Errors
    /// `WouldBlock` when no more wait; else of the system.
    fn forward_burst(&self, to: usize, buffer: &mut [u8]) -> io::Result<()> {
        let mut links = self.links();
        for _ in 0..BURST {
            let (len, source) = self.sockets[to].socket.try_recv_from(buffer)?;
            let known = self.by_listen.get(&source).filter(|from| **from != to);
            let Some(from) = known.copied() else {
                links.counters.unknown += 1;
                continue;
            };
            let now = links.arrived((from, to), &buffer[..len], Instant::now());
            for _ in 0..now.copies {
                self.send(&mut links, (from, to), &buffer[..len]);
            }
            if now.has_waiting {
                self.has_waiting.notify_one();
            }
        }
        Ok(())
    }

    /// Sends what is due at `now`; returns when the next is.
    fn send_due(&self, now: Instant) -> Option<Instant> {
        let mut links = self.links();
        while let Some((link, bytes)) = links.due(now) {
            self.send(&mut links, link, &bytes);
        }
        links.next_due()
    }

    /// A datagram that the system does not take is lost, as on any link.
    fn send(&self, links: &mut Links, (from, to): LinkId, bytes: &[u8]) {
        let sent = self.sockets[from]
            .socket
            .try_send_to(bytes, self.sockets[to].end.listen);
        match sent {
            Ok(_) => links.counters.forwarded += 1,
            Err(_) => links.counters.overflowed += 1,
        }
    }
}
