//! Asks the processes of a fleet, as an operator.
//!
//! * [`context`], [`connect`]: whom for, whom to, and the connection.
//! * [`numbers`]: numbers of the operator's entries.
//! * [`author`]: signs entries and brings them in; `tries`: what their answers say together.
//! * [`tasks`]: finds tasks over all clusters.
//! * [`aged`]: how old an answer is when it is shown.
//!
//! # Rules
//! * Every request has a deadline. A process that does not answer is passed over for the next.
//! * What was asked for is never degraded: a stale answer is an error, not an answer.

pub mod aged;
pub mod author;
pub mod connect;
pub mod context;
pub mod numbers;
pub mod tasks;
#[cfg(test)]
pub(crate) mod testing;
mod tries;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use common::{
    codec::{decode, encode},
    ids::DeviceId,
    wire::{
        frame::{FrameKind, RefusalCode},
        op::{AgentStatus, OpAnswer, OpRequest, ValidatorStatus},
    },
};
use futures::{
    FutureExt, StreamExt,
    future::{Either, join_all, select},
    stream::FuturesUnordered,
};
use tokio::time::Instant;
use transport::ports::{BoxFuture, CallError, Transport};

use aged::{check_answer, too_stale};
pub use context::{Context, Peer};

use crate::exit::{Exit, Failure, Outcome};

/// How long leaving may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);

/// How long a process may take to answer a question.
pub const READ_DEADLINE: Duration = Duration::from_secs(4);

/// A connection to a fleet.
pub struct Client {
    /// Whom for, whom to.
    pub context: Context,
    transport: Arc<dyn Transport>,
    explain: Explain,
    close: Close,
}

/// Says for people why the last connection to a device failed.
type Explain = Arc<dyn Fn(&DeviceId) -> Option<String> + Send + Sync>;

/// How long a process may take to say how it is.
pub const STATUS_DEADLINE: Duration = Duration::from_millis(2_500);

/// How long one process is waited for before the next is asked too.
const PATIENCE: Duration = Duration::from_millis(500);

/// Closes the connections of a client.
type Close = Arc<dyn Fn() -> BoxFuture<()> + Send + Sync>;

/// Why a process gave no usable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The call failed.
    #[error("{0}")]
    Call(#[from] CallError),
    /// Its answer is malformed, or answers something else.
    #[error("the answer is malformed or answers something else")]
    Malformed,
}

impl AskError {
    /// As the end of a command that only read.
    #[must_use]
    pub fn into_failure(self, label: &str) -> Failure {
        let exit = match &self {
            Self::Call(CallError::Refused(refusal)) => match refusal.code {
                RefusalCode::Denied => Exit::Denied,
                RefusalCode::Invalid | RefusalCode::NotFound => Exit::Invalid,
                RefusalCode::Busy | RefusalCode::NotNow => Exit::NoQuorum,
            },
            Self::Call(_) => Exit::NoConnection,
            Self::Malformed => Exit::VerificationFailed,
        };
        Failure::new(exit, format!("{label}: {self}"))
    }
}

impl Client {
    /// A client over an open transport.
    #[must_use]
    pub fn new(context: Context, transport: Arc<dyn Transport>) -> Self {
        Self {
            context,
            transport,
            explain: Arc::new(|_| None),
            close: Arc::new(|| async {}.boxed()),
        }
    }

    /// The same client asking nobody but one agent.
    ///
    /// # Errors
    /// [`Exit::Invalid`]: the context has no such agent.
    pub fn pinned_to(&self, label: &str) -> Outcome<Self> {
        Ok(Self {
            context: self.context.pinned_to(label)?,
            transport: self.transport.clone(),
            explain: self.explain.clone(),
            close: self.close.clone(),
        })
    }

    /// The same client with a way to close its connections.
    #[must_use]
    pub fn closing(mut self, close: Close) -> Self {
        self.close = close;
        self
    }

    /// Tells every process that was connected that this one leaves.
    pub async fn close(&self) {
        // Who does not hear it notices by the silence.
        let _ = tokio::time::timeout(CLOSE_DEADLINE, (self.close)()).await;
    }

    /// The same client with reasons for connections that cannot be made.
    #[must_use]
    pub fn explaining(mut self, explain: Explain) -> Self {
        self.explain = explain;
        self
    }

    /// The end of a command that only asked `peer`.
    #[must_use]
    pub fn failure_of(&self, peer: &Peer, error: AskError) -> Failure {
        let reason = match &error {
            AskError::Call(CallError::Unreachable(_)) => (self.explain)(&peer.id),
            _ => None,
        };
        let mut failure = error.into_failure(&peer.label);
        if let Some(reason) = reason {
            failure.what = format!("{}: no connection to {}: {reason}", peer.label, peer.address);
        }
        failure
    }

    /// Asks one process.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, peer: &Peer, request: &OpRequest, deadline: Duration) -> Result<OpAnswer, AskError> {
        let body = Bytes::from(encode(request));
        let answer = self.transport.call(peer.id, FrameKind::Operate, body, deadline).await?;
        decode(&answer).map_err(|_| AskError::Malformed)
    }

    /// Asks several processes at once; answers stand in the order of `peers`.
    pub async fn ask_all(&self, peers: &[&Peer], request: &OpRequest) -> Vec<Result<OpAnswer, AskError>> {
        self.ask_all_within(peers, request, STATUS_DEADLINE).await
    }

    /// The same with a deadline of the caller's.
    pub async fn ask_all_within(
        &self,
        peers: &[&Peer],
        request: &OpRequest,
        deadline: Duration,
    ) -> Vec<Result<OpAnswer, AskError>> {
        join_all(peers.iter().map(|peer| self.ask(peer, request, deadline))).await
    }

    /// Asks one after another until `accept` takes an answer, with when it was asked for. One that is slow is
    /// waited for while the next is asked.
    ///
    /// # Errors
    /// The most telling failure: a process that answered and could not says more than one that is silent.
    pub async fn ask_until<T>(
        &self,
        peers: &[&Peer],
        request: &OpRequest,
        mut accept: impl FnMut(&Peer, OpAnswer, Instant) -> Option<T>,
    ) -> Outcome<T> {
        let mut best: Option<Failure> = None;
        let mut waiting = peers.iter();
        let mut asked = FuturesUnordered::new();
        loop {
            if asked.is_empty() {
                let Some(peer) = waiting.next() else { break };
                asked.push(self.ask_one(peer, request));
            }
            let patience = tokio::time::sleep(PATIENCE);
            let (peer, sent, answer) = match select(asked.next(), std::pin::pin!(patience)).await {
                Either::Left((Some(answered), _)) => answered,
                Either::Left((None, _)) => continue,
                Either::Right(_) => {
                    asked.extend(waiting.next().map(|peer| self.ask_one(peer, request)));
                    continue;
                }
            };
            let failure = match answer {
                Ok(answer) => {
                    let is_usable = failure_of_answer(&peer.label, &answer).map_or(Ok(()), Err);
                    match is_usable.and_then(|()| check_answer(&peer.label, request, &answer, sent)) {
                        Err(failure) => failure,
                        Ok(()) => match accept(peer, answer, sent) {
                            Some(accepted) => return Ok(accepted),
                            None => self.failure_of(peer, AskError::Malformed),
                        },
                    }
                }
                Err(error) => self.failure_of(peer, error),
            };
            if best.as_ref().is_none_or(|best| best.exit == Exit::NoConnection) {
                best = Some(failure);
            }
        }
        Err(best.unwrap_or_else(|| Failure::new(Exit::NoConnection, "the context names no such process")))
    }

    async fn ask_one<'a>(
        &self,
        peer: &'a Peer,
        request: &OpRequest,
    ) -> (&'a Peer, Instant, Result<OpAnswer, AskError>) {
        let sent = Instant::now();
        (peer, sent, self.ask(peer, request, READ_DEADLINE).await)
    }

    /// Status of agents, in the order of `peers`, with ages as of when each of them answered; who shows them
    /// adds what passed since ([`aged::age`]).
    pub async fn agent_status(&self, peers: &[&Peer]) -> Vec<Result<AgentStatus, AskError>> {
        let answers = self.ask_all(peers, &OpRequest::Status).await;
        let take = |answer| match answer {
            Ok(OpAnswer::Agent(status)) => Ok(status),
            Ok(_) => Err(AskError::Malformed),
            Err(error) => Err(error),
        };
        answers.into_iter().map(take).collect()
    }

    /// Status of validators, in the order of `peers`.
    pub async fn validator_status(&self, peers: &[&Peer]) -> Vec<Result<ValidatorStatus, AskError>> {
        let answers = self.ask_all(peers, &OpRequest::Status).await;
        let take = |answer| match answer {
            Ok(OpAnswer::Validator(status)) => Ok(status),
            Ok(_) => Err(AskError::Malformed),
            Err(error) => Err(error),
        };
        answers.into_iter().map(take).collect()
    }
}

/// The failure that an answer of the kind "cannot" means.
#[must_use]
pub fn failure_of_answer(label: &str, answer: &OpAnswer) -> Option<Failure> {
    match answer {
        OpAnswer::TooStale { staleness_ms, mode } => Some(too_stale(label, *staleness_ms, *mode)),
        OpAnswer::NoQuorum { retry_after_ms, .. } => {
            let failure = Failure::new(Exit::NoQuorum, format!("{label}: its cluster has no majority"));
            Some(failure.means("no linearizable answer exists now").todo(format!(
                "try again in {retry_after_ms} ms, or ask with --consistency local"
            )))
        }
        OpAnswer::NotFound => {
            Some(Failure::new(Exit::Invalid, format!("{label}: not known here")).means("nothing changed"))
        }
        OpAnswer::NoLongerKept { state, ended, height } => {
            let (word, ended, height) = (state.word(), ended.0, height.0);
            let what = format!("{label}: the task is no longer kept: it ended as {word} at height {ended}");
            Some(
                Failure::new(Exit::Invalid, what)
                    .means(format!(
                        "ended tasks leave the queue after a while; the chain is at height {height}"
                    ))
                    .todo(format!(
                        "its history stands in the validators' blocks: `fleet block get {ended}`"
                    )),
            )
        }
        OpAnswer::Unsupported(what) => {
            Some(Failure::new(Exit::Invalid, format!("{label} does not answer this: {what}")).means("nothing changed"))
        }
        _ => None,
    }
}
