//! Signs an operator's entries and brings them into a cluster's log.
//!
//! # Rules
//! * A number is used up on the disk before it is signed (see [`super::numbers`]).
//! * A retry sends the same signed bytes to the same cluster, never a new signature.
//! * A write ends as committed with a decision, refused with a reason, or unknown with an id; the
//!   signed bytes of an unknown one are kept so that the same command line can send them again.

use std::{path::PathBuf, time::Duration};

use common::{
    codec::{decode, encode},
    crypto::DeviceKey,
    entry::{Action, EntryDraft, Payload, SignedEntry},
    ids::{ClusterId, EntryId, EntryNumber, Height, KeyVersion, LogIndex, RaftNodeId},
    task::{Scope, Task},
    verdict::{Reason, Verdict},
    wire::op::{AgentStatus, BufferedState, Mode, OpAnswer, OpRequest, WriteRefusal},
};
use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::{Instant, sleep};
use transport::identity::KeyFile;

use super::{
    Client, Peer, STATUS_DEADLINE,
    numbers::NumberFile,
    tries::{Done, Tries},
};
use crate::{
    exit::{Exit, Failure, Outcome, failure_of_reason, failure_of_refusal},
    files,
};

/// An entry may enter its log for this many blocks: weeks at the idle rate, and hours at the highest.
const HEIGHTS_TO_ENTER: u64 = 1_000_000;

/// One agent gets this long to answer a write before the next is tried.
const WRITE_CALL_DEADLINE: Duration = Duration::from_secs(6);

/// Pause between two rounds over a cluster's agents.
const ROUND_PAUSE: Duration = Duration::from_millis(150);

/// An entry that stands in its cluster's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entered {
    /// Its identity.
    pub id: EntryId,
    /// Through which cluster.
    pub cluster: ClusterId,
    /// Where it stands.
    pub index: LogIndex,
    /// What was decided there.
    pub verdict: Verdict,
    /// Label of the agent that said so.
    pub via: String,
    /// Mode of that agent.
    pub mode: Mode,
}

/// How a write ended that may wait for a majority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It stands in the log.
    Entered(Entered),
    /// An agent keeps it: it is in no log yet.
    Buffered {
        /// Its identity.
        id: EntryId,
        /// Label of the agent.
        via: String,
        /// Mode of that agent.
        mode: Mode,
    },
}

/// Agents to bring entries in by, best first, and the height they know.
#[derive(Clone, Debug)]
pub struct Route {
    /// The cluster.
    pub cluster: ClusterId,
    /// Its agents; the leader first.
    pub agents: Vec<Peer>,
    /// Highest global height that one of them reports.
    pub height: Height,
}

/// Signs for the operator of a client.
pub struct Author<'a> {
    client: &'a Client,
    key: DeviceKey,
    numbers: NumberFile,
    version: KeyVersion,
}

impl<'a> Author<'a> {
    /// The operator of `client`'s context.
    ///
    /// # Errors
    /// [`Exit::Invalid`]: its key file.
    pub fn open(client: &'a Client) -> Outcome<Self> {
        let context = &client.context;
        let key = KeyFile::load(&context.key)
            .map_err(|e| Failure::new(Exit::Invalid, e))?
            .device_key();
        Ok(Self {
            client,
            key,
            numbers: NumberFile::new(&context.data_dir, context.chain),
            version: KeyVersion(0),
        })
    }

    /// Agents of the first cluster, in the order of `clusters`, that takes writes now; else of the first
    /// that answers at all.
    ///
    /// # Errors
    /// [`Exit::NoConnection`].
    pub async fn route(&self, clusters: &[ClusterId]) -> Outcome<Route> {
        let context = &self.client.context;
        let mut fallback = None;
        for cluster in clusters {
            let agents = context.agents(Some(*cluster));
            let statuses = self.statuses(&agents).await;
            let mut ranked: Vec<(u8, Peer)> = Vec::new();
            let (mut height, mut is_writable) = (Height(0), false);
            for (peer, status) in agents.iter().zip(&statuses) {
                let rank = match status {
                    Some(status) if status.is_leader => 1,
                    Some(status) if matches!(status.context.mode, Mode::Normal | Mode::Island) => 2,
                    Some(_) => 3,
                    None => 4,
                };
                if let Some(status) = status {
                    height = height.max(status.context.global_height);
                    is_writable |= matches!(status.context.mode, Mode::Normal | Mode::Island);
                }
                ranked.push((rank, (*peer).clone()));
            }
            let answered = statuses.iter().any(Option::is_some);
            ranked.sort_by_key(|(rank, _)| *rank);
            let route = Route {
                cluster: *cluster,
                agents: ranked.into_iter().map(|(_, peer)| peer).collect(),
                height,
            };
            if is_writable {
                return Ok(route);
            }
            if answered && fallback.is_none() {
                fallback = Some(route);
            }
        }
        fallback.ok_or_else(|| Failure::new(Exit::NoConnection, "no agent of the clusters asked answers"))
    }

    /// Status of the agents of one cluster; those that are slower than its leader are not waited for.
    async fn statuses(&self, agents: &[&Peer]) -> Vec<Option<AgentStatus>> {
        let mut statuses: Vec<Option<AgentStatus>> = vec![None; agents.len()];
        let ask = |(at, peer)| async move { (at, self.client.ask(peer, &OpRequest::Status, STATUS_DEADLINE).await) };
        let mut asked: FuturesUnordered<_> = agents.iter().copied().enumerate().map(ask).collect();
        while let Some((at, answer)) = asked.next().await {
            if let Ok(OpAnswer::Agent(status)) = answer {
                let is_leader = status.is_leader;
                statuses[at] = Some(status);
                if is_leader {
                    break;
                }
            }
        }
        statuses
    }

    /// Marks `count` numbers of the stream through `route` as used and returns the first.
    ///
    /// # Errors
    /// Of the number file; [`Exit::NoConnection`] if it is missing and no agent answers.
    pub async fn reserve(&self, route: &Route, count: u64) -> Outcome<EntryNumber> {
        let highest = if self.numbers.is_known(self.version, route.cluster)? {
            None
        } else {
            let request = OpRequest::HighestNumber {
                author: self.client.context.operator,
                key_version: self.version,
                cluster: route.cluster,
            };
            let agents: Vec<&Peer> = route.agents.iter().collect();
            let number = self.client.ask_until(&agents, &request, |_, answer, _| match answer {
                OpAnswer::HighestNumber(number) => Some(number),
                _ => None,
            });
            Some(
                number
                    .await
                    .map_err(|failure| failure.means("the numbers used before are not known; nothing was sent"))?,
            )
        };
        self.numbers.reserve(self.version, route.cluster, count, highest)
    }

    /// Signs one entry. `number` was reserved.
    #[must_use]
    pub fn sign(
        &self,
        route: &Route,
        number: EntryNumber,
        scope: Scope,
        action: Action,
        payload: Payload,
    ) -> SignedEntry {
        self.sign_until(route.cluster, number, not_after(route.height), scope, action, payload)
    }

    /// Signs one entry with a given last height: the same arguments give the same bytes.
    #[must_use]
    pub fn sign_until(
        &self,
        cluster: ClusterId,
        number: EntryNumber,
        not_after_height: Height,
        scope: Scope,
        action: Action,
        payload: Payload,
    ) -> SignedEntry {
        let draft = EntryDraft {
            author: self.client.context.operator,
            key_version: self.version,
            cluster,
            number,
            not_after_height,
            scope,
            action,
        };
        SignedEntry::sign(&self.key, &self.client.context.chain, draft, payload)
    }

    /// Brings a signed entry in, trying the route's agents in turn with the same bytes until `deadline`.
    ///
    /// # Errors
    /// Refusals and unknown outcomes by their exit codes; the id is named.
    pub async fn enter(&self, route: &Route, entry: &SignedEntry, deadline: Duration) -> Outcome<Entered> {
        self.enter_after(Tries::default(), route, entry, deadline).await
    }

    /// Brings an entry in, of which `tries` are known already.
    async fn enter_after(
        &self,
        mut tries: Tries,
        route: &Route,
        entry: &SignedEntry,
        deadline: Duration,
    ) -> Outcome<Entered> {
        let id = entry.id(&self.client.context.chain);
        let end = Instant::now() + deadline;
        let request = OpRequest::Enter(entry.clone());
        loop {
            for peer in &route.agents {
                let left = end.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(tries.failure(&id));
                }
                let answer = self.client.ask(peer, &request, left.min(WRITE_CALL_DEADLINE)).await;
                if let Some(outcome) = tries.take(&self.name_of(), peer, answer) {
                    return outcome.map(|done| done.entered(id, route, peer));
                }
            }
            // Who names one agent wants to hear what it says, not to wait until it says something else.
            if self.client.context.pinned.is_some() && tries.is_without_quorum {
                return Err(tries.failure(&id));
            }
            sleep(ROUND_PAUSE.min(end.saturating_duration_since(Instant::now()))).await;
        }
    }

    /// Brings a submission in; where no agent of the route has a majority, the first that answers keeps it.
    ///
    /// # Errors
    /// As [`enter_or_keep`](Self::enter_or_keep).
    pub async fn enter_or_buffer(&self, route: &Route, entry: &SignedEntry, deadline: Duration) -> Outcome<Ended> {
        self.keep(entry)?;
        let outcome = self.try_or_buffer(route, entry, deadline).await;
        self.keep_if_unknown(entry, outcome)
    }

    async fn try_or_buffer(&self, route: &Route, entry: &SignedEntry, deadline: Duration) -> Outcome<Ended> {
        let id = entry.id(&self.client.context.chain);
        let end = Instant::now() + deadline;
        let mut tries = Tries::default();
        // Once around without it: another agent may be on the better side of the cut.
        let rounds = if self.client.context.pinned.is_some() { 1 } else { 2 };
        for round in 1..=rounds {
            for peer in &route.agents {
                let request = if round == rounds {
                    OpRequest::EnterOrBuffer(entry.clone())
                } else {
                    OpRequest::Enter(entry.clone())
                };
                let left = end.saturating_duration_since(Instant::now()).min(WRITE_CALL_DEADLINE);
                let answer = self.client.ask(peer, &request, left).await;
                if let Ok(OpAnswer::Buffered { id, state, mode }) = answer {
                    return self.ended_of(route, peer, id, state, mode);
                }
                if let Some(outcome) = tries.take(&self.name_of(), peer, answer) {
                    return outcome.map(|done| Ended::Entered(done.entered(id, route, peer)));
                }
            }
        }
        Err(tries.failure(&id))
    }

    fn name_of(&self) -> impl Fn(RaftNodeId) -> String + '_ {
        |id| self.client.context.raft_label(id)
    }

    fn ended_of(&self, route: &Route, peer: &Peer, id: EntryId, state: BufferedState, mode: Mode) -> Outcome<Ended> {
        let via = peer.label.clone();
        match state {
            BufferedState::Waiting => Ok(Ended::Buffered { id, via, mode }),
            BufferedState::Committed(answer) => Ok(Ended::Entered(Done { answer, mode }.entered(id, route, peer))),
            BufferedState::Refused { verdict, detail } => {
                let refusal = WriteRefusal::Rejected { verdict, detail };
                Err(failure_of_refusal(&refusal, &self.name_of()).id(id.to_hex()))
            }
        }
    }

    /// Brings an entry in; if its outcome stays unknown, keeps its bytes for [`resend`](Self::resend).
    ///
    /// # Errors
    /// As [`enter`](Self::enter).
    pub async fn enter_or_keep(&self, route: &Route, entry: &SignedEntry, deadline: Duration) -> Outcome<Entered> {
        self.keep(entry)?;
        let outcome = self.enter(route, entry, deadline).await;
        self.keep_if_unknown(entry, outcome)
    }

    /// Keeps the signed bytes before they are sent, so that a command which is interrupted can be repeated.
    fn keep(&self, entry: &SignedEntry) -> Outcome {
        let path = self.pending_path(&entry.id(&self.client.context.chain));
        files::private_dir(path.parent().unwrap_or(&self.client.context.data_dir))?;
        files::replace(&path, &encode(entry))
    }

    /// Forgets the bytes once it is certain how the write ended.
    fn keep_if_unknown<T>(&self, entry: &SignedEntry, outcome: Outcome<T>) -> Outcome<T> {
        let id = entry.id(&self.client.context.chain);
        let path = self.pending_path(&id);
        match &outcome {
            Err(failure) if failure.exit == Exit::OutcomeUnknown => {
                return Err(failure.clone().todo(format!(
                    "send the same signed bytes again with `fleet task submit --resend {}`",
                    id.to_hex()
                )));
            }
            _ => match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Failure::io(format!("cannot remove {}", path.display()))(e));
                }
                _ => {}
            },
        }
        outcome
    }

    /// Sends the kept bytes of an entry whose outcome was unknown.
    ///
    /// # Errors
    /// [`Exit::Invalid`] if none are kept under `id`; else as [`enter`](Self::enter).
    pub async fn resend(&self, id: &EntryId, deadline: Duration) -> Outcome<(SignedEntry, Entered)> {
        let bytes =
            files::read_bounded(&self.pending_path(id), common::limits::ENTRY_BYTES_MAX as u64).map_err(|e| {
                Failure::new(
                    Exit::Invalid,
                    format!("no entry {} waits here: {}", id.to_hex(), e.what),
                )
            })?;
        let entry: SignedEntry = decode(&bytes).map_err(|e| Failure::new(Exit::Invalid, e))?;
        let route = self.route(&[entry.header.cluster]).await?;
        // What refuses it now says nothing about the first time.
        let outcome = self.enter_after(Tries::of_a_resend(), &route, &entry, deadline).await;
        let entered = self.keep_if_unknown(&entry, outcome)?;
        Ok((entry, entered))
    }

    fn pending_path(&self, id: &EntryId) -> PathBuf {
        self.client
            .context
            .data_dir
            .join("pending")
            .join(format!("{}.entry", id.to_hex()))
    }
}

/// Latest height for entries signed while `height` is the newest known.
#[must_use]
pub fn not_after(height: Height) -> Height {
    Height(height.0.saturating_add(HEIGHTS_TO_ENTER))
}

/// The payload that carries `task`.
#[must_use]
pub fn task_payload(task: &Task) -> Payload {
    encode(task)
        .try_into()
        .expect("a resolved task is within the payload's bound")
}

/// A note for people as a payload.
///
/// # Errors
/// [`Exit::Invalid`]: too long.
pub fn note_payload(note: &str) -> Outcome<Payload> {
    if note.len() > 256 {
        return Err(Failure::new(
            Exit::Invalid,
            format!("--reason has {} bytes, at most 256 allowed", note.len()),
        ));
    }
    note.as_bytes()
        .to_vec()
        .try_into()
        .map_err(|e| Failure::new(Exit::Invalid, e))
}

/// A granted or late decision, or the failure that a rejection means. A duplicate of the author's own
/// task is success: that task is the one.
///
/// # Errors
/// By the reason of the rejection.
pub fn accepted(verdict: Verdict) -> Outcome<&'static str> {
    match verdict {
        Verdict::Granted => Ok("granted"),
        Verdict::Late => Ok("late"),
        Verdict::Rejected(Reason::DuplicateOf(_)) => Ok("duplicate"),
        Verdict::Rejected(reason) => Err(failure_of_reason(reason)),
    }
}
