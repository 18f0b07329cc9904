//! Who may ask this agent what, and how it calls the members of its cluster.
//!
//! In: frames of authenticated peers. Out: answers, or a refusal that names no detail.
//!
//! # Rules
//! * Upon a Raft or cluster frame: the peer is a registered member of this cluster, its hello names this
//!   cluster and founding, and its Raft id is one of its own device. Else: denied.
//! * Upon a Raft frame for another member: refused. A device's address outlives its data directory, and what was
//!   asked of the lost one's vote or log the new one must not answer.
//! * Upon any frame before the agent has started, and upon a Raft frame before an empty log has asked about itself: "not
//!   now". A peer tries again.
//! * Status in the registry is looked up for each request, so that a connection which outlives a
//!   revocation carries nothing. For the requests of a lane the transport does it.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use common::{
    bug::{self, Bug},
    genesis::RoleSet,
    ids::{ClusterId, Founding, RaftNodeId},
    registry::{Registry, Status},
    wire::frame::{FrameKind, Protocol, Refusal, RefusalCode},
};
use futures::FutureExt;

use crate::{
    ports::{BoxFuture, Lane, Peer, Service, Transport},
    raft::{LinkError, RaftLink, RaftRpc, RpcRefusal, decode_answer, encode_answer},
};

/// What the agent answers once it runs. The door has checked who asks.
pub trait Requests: Send + Sync + 'static {
    /// A Raft request of the member `from`.
    fn raft(&self, from: RaftNodeId, kind: RaftRpc, body: Bytes) -> BoxFuture<Result<Vec<u8>, RpcRefusal>>;
    /// A lane of Raft requests that the member `from` opened.
    fn raft_lane(&self, from: RaftNodeId, lane: Lane) -> BoxFuture<()>;
    /// A request of the member `from` beside Raft.
    fn cluster(&self, from: RaftNodeId, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>>;
    /// A request of an operator, gateway or other reader.
    fn operate(&self, peer: Peer, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>>;
}

/// Who the members of this cluster are.
#[derive(Clone)]
pub struct Membership {
    /// All devices.
    pub registry: Arc<Registry>,
    /// This cluster.
    pub cluster: ClusterId,
    /// Its founding.
    pub founding: Founding,
    /// This member.
    pub me: RaftNodeId,
    /// Requests of Raft are let in: an empty log asks about itself first.
    pub has_begun: Arc<AtomicBool>,
}

impl Membership {
    /// The Raft id of an authenticated member of this cluster.
    fn member(&self, peer: &Peer) -> Option<RaftNodeId> {
        let device = self.registry.by_idx(peer.idx)?;
        let raft = RaftNodeId(peer.hello.raft);
        let is_mine = device.cluster == Some(self.cluster) && device.may(RoleSet::CLUSTER_VOTE);
        let names_mine = peer.hello.cluster == Some((self.cluster, self.founding));
        let is_of_device = raft.idx() == peer.idx && (1..=RaftNodeId::INCARNATION_MAX).contains(&raft.incarnation());
        (is_mine && names_mine && is_of_device).then_some(raft)
    }

    fn may_operate(&self, peer: &Peer) -> bool {
        self.registry
            .by_idx(peer.idx)
            .is_some_and(|device| device.status == Status::Active)
    }
}

struct Opened {
    membership: Membership,
    requests: Arc<dyn Requests>,
}

/// The one [`Service`] of an agent. It exists before the agent does, since the transport needs it first.
#[derive(Clone, Default)]
pub struct Door(Arc<OnceLock<Opened>>);

impl Door {
    /// Lets requests in.
    ///
    /// # Panics
    /// If it was opened before: an agent is started once.
    pub fn open(&self, membership: Membership, requests: Arc<dyn Requests>) {
        let opened = self.0.set(Opened { membership, requests });
        assert!(opened.is_ok(), "a door is opened once");
    }
}

impl Service for Door {
    fn handle(&self, peer: Peer, kind: FrameKind, body: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
        let Some(opened) = self.0.get() else {
            return refused(RefusalCode::NotNow, "starting");
        };
        match kind.protocol() {
            Protocol::Raft | Protocol::Cluster => {
                let Some(from) = opened.membership.member(&peer) else {
                    return refused(RefusalCode::Denied, "not a member of this cluster and founding");
                };
                if kind.protocol() == Protocol::Cluster {
                    return opened.requests.cluster(from, kind, body);
                }
                if !opened.membership.has_begun.load(Ordering::Acquire) {
                    return refused(RefusalCode::NotNow, "starting");
                }
                let Some((to, rpc, body)) = unwrap_request(kind, body) else {
                    return refused(RefusalCode::Invalid, "malformed request");
                };
                if to != opened.membership.me && !bug::active(Bug::LostIdAnswered) {
                    tracing::debug!(%from, %to, "a request for another data directory of this device");
                    return async { Ok(encode_answer(Err(RpcRefusal::OtherMember))) }.boxed();
                }
                let answer = opened.requests.raft(from, rpc, body);
                async move { Ok(encode_answer(answer.await)) }.boxed()
            }
            Protocol::Op => {
                if !opened.membership.may_operate(&peer) {
                    return refused(RefusalCode::Denied, "not active");
                }
                opened.requests.operate(peer, body)
            }
            Protocol::Bft | Protocol::Feed => refused(RefusalCode::Denied, "an agent does not serve this"),
        }
    }

    fn lane(&self, peer: Peer, kind: FrameKind, mut lane: Lane) -> BoxFuture<()> {
        let refusal = match self.0.get() {
            None => Refusal::new(RefusalCode::NotNow, "starting"),
            Some(_) if kind != FrameKind::RaftLane => Refusal::new(RefusalCode::Denied, "not a lane of this agent"),
            Some(opened) if !opened.membership.has_begun.load(Ordering::Acquire) => {
                Refusal::new(RefusalCode::NotNow, "starting")
            }
            Some(opened) => match opened.membership.member(&peer) {
                Some(from) => return serve_lane(opened, from, lane),
                None => Refusal::new(RefusalCode::Denied, "not a member of this cluster and founding"),
            },
        };
        async move { lane.sender.end(Some(refusal)).await }.boxed()
    }
}

/// The first frame of a lane names the member it is for; all others are requests.
fn serve_lane(opened: &Opened, from: RaftNodeId, mut lane: Lane) -> BoxFuture<()> {
    let (me, requests) = (opened.membership.me, opened.requests.clone());
    async move {
        let first = tokio::time::timeout(OPENING_DEADLINE, lane.receiver.recv()).await;
        let first = first.ok().and_then(Result::ok).flatten();
        let first = first.filter(|first| first.len() == MEMBER_BYTES);
        let to = first.and_then(|mut first| split_member(&mut first));
        if to == Some(me) || to.is_some() && bug::active(Bug::LostIdAnswered) {
            return requests.raft_lane(from, lane).await;
        }
        let refusal = Refusal::new(RefusalCode::Denied, "for another member");
        lane.sender.end(Some(refusal)).await;
    }
    .boxed()
}

fn refused(code: RefusalCode, text: &str) -> BoxFuture<Result<Bytes, Refusal>> {
    let refusal = Refusal::new(code, text);
    async move { Err(refusal) }.boxed()
}

/// Frame kind of a request. Votes and pre-votes share one, so that both stay ahead of bulk traffic.
fn frame_kind(kind: RaftRpc) -> FrameKind {
    match kind {
        RaftRpc::Append => FrameKind::RaftAppend,
        RaftRpc::Vote | RaftRpc::PreVote => FrameKind::RaftVote,
        RaftRpc::Snapshot => FrameKind::RaftSnapshot,
        RaftRpc::TransferLeader => FrameKind::RaftTransfer,
    }
}

/// The first frame of a lane follows its opening at once; who sends none for so long takes a place from others.
const OPENING_DEADLINE: Duration = Duration::from_secs(10);
/// Bytes before each request: the member it is for, big-endian.
pub const MEMBER_BYTES: usize = 8;

/// `member u64 | body`, with `kind of request u8` between them in a vote frame.
fn wrap_request(to: RaftNodeId, kind: RaftRpc, body: &Bytes) -> Bytes {
    let mut framed = Vec::with_capacity(MEMBER_BYTES + 1 + body.len());
    framed.extend_from_slice(&to.0.to_be_bytes());
    if frame_kind(kind) == FrameKind::RaftVote {
        framed.push(kind.code());
    }
    framed.extend_from_slice(body);
    framed.into()
}

/// Takes the member off the front of `body`.
fn split_member(body: &mut Bytes) -> Option<RaftNodeId> {
    let member = *body.first_chunk::<MEMBER_BYTES>()?;
    let _ = body.split_to(MEMBER_BYTES);
    Some(RaftNodeId(u64::from_be_bytes(member)))
}

fn unwrap_request(kind: FrameKind, mut body: Bytes) -> Option<(RaftNodeId, RaftRpc, Bytes)> {
    let to = split_member(&mut body)?;
    let rpc = match kind {
        FrameKind::RaftAppend => RaftRpc::Append,
        FrameKind::RaftSnapshot => RaftRpc::Snapshot,
        FrameKind::RaftTransfer => RaftRpc::TransferLeader,
        FrameKind::RaftVote => {
            let code = body.first().copied()?;
            let rpc = RaftRpc::from_code(code).filter(|rpc| frame_kind(*rpc) == FrameKind::RaftVote)?;
            let _ = body.split_to(1);
            rpc
        }
        _ => return None,
    };
    (body.len() <= rpc.request_bytes_max()).then_some((to, rpc, body))
}

/// Raft's way to the other members.
pub struct PeerLink {
    registry: Arc<Registry>,
    transport: Arc<dyn Transport>,
}

impl PeerLink {
    /// Over `transport`, to the devices of `registry`.
    #[must_use]
    pub fn new(registry: Arc<Registry>, transport: Arc<dyn Transport>) -> Self {
        Self { registry, transport }
    }
}

impl RaftLink for PeerLink {
    fn call(
        &self,
        to: RaftNodeId,
        kind: RaftRpc,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<Result<Bytes, LinkError>> {
        let Some(member) = self.registry.by_idx(to.idx()) else {
            return async move { Err(LinkError::Unreachable(format!("{to} is not registered"))) }.boxed();
        };
        let (frame, body) = (frame_kind(kind), wrap_request(to, kind, &body));
        if body.len() > frame.request_bytes_max() {
            let problem = format!(
                "a request of {} bytes, at most {} fit",
                body.len(),
                frame.request_bytes_max()
            );
            return async move { Err(LinkError::Network(problem)) }.boxed();
        }
        let call = self.transport.call(member.id, frame, body, deadline);
        async move { decode_answer(call.await?) }.boxed()
    }

    fn open_lane(&self, to: RaftNodeId, deadline: Duration) -> BoxFuture<Result<Lane, LinkError>> {
        let Some(member) = self.registry.by_idx(to.idx()) else {
            return async move { Err(LinkError::Unreachable(format!("{to} is not registered"))) }.boxed();
        };
        let opening = self.transport.open_lane(member.id, FrameKind::RaftLane, deadline);
        async move {
            let mut lane = opening.await?;
            lane.sender.send(Bytes::copy_from_slice(&to.0.to_be_bytes())).await?;
            Ok(lane)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use common::{
        testing::Fleet,
        wire::frame::{Hello, WIRE_VERSION},
    };
    use transport::memory::{Fate, lane_pair};

    use super::*;
    use crate::ports::CallError;

    /// Notes who came through the door.
    #[derive(Default)]
    struct Through(Mutex<Vec<RaftNodeId>>);

    impl Through {
        fn note(&self, from: RaftNodeId) {
            self.0.lock().unwrap().push(from);
        }

        fn count(&self) -> usize {
            self.0.lock().unwrap().len()
        }
    }

    impl Requests for Through {
        fn raft(&self, from: RaftNodeId, _: RaftRpc, _: Bytes) -> BoxFuture<Result<Vec<u8>, RpcRefusal>> {
            self.note(from);
            async { Ok(vec![7]) }.boxed()
        }

        fn raft_lane(&self, from: RaftNodeId, mut lane: Lane) -> BoxFuture<()> {
            self.note(from);
            async move { lane.sender.end(None).await }.boxed()
        }

        fn cluster(&self, from: RaftNodeId, _: FrameKind, _: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
            self.note(from);
            async { Ok(Bytes::new()) }.boxed()
        }

        fn operate(&self, _: Peer, _: Bytes) -> BoxFuture<Result<Bytes, Refusal>> {
            async { Ok(Bytes::new()) }.boxed()
        }
    }

    fn me(fleet: &Fleet) -> RaftNodeId {
        RaftNodeId::new(fleet.idx("c1-1"), 2)
    }

    /// A request of this kind for `to`, with nothing in it.
    fn request(to: RaftNodeId, rpc: RaftRpc) -> Bytes {
        wrap_request(to, rpc, &Bytes::new())
    }

    fn open_door(fleet: &Fleet, founding: Founding) -> (Door, Arc<Through>) {
        let (door, through) = (Door::default(), Arc::new(Through::default()));
        let membership = Membership {
            registry: Arc::new(fleet.registry.clone()),
            cluster: ClusterId(0),
            founding,
            me: me(fleet),
            has_begun: Arc::new(true.into()),
        };
        door.open(membership, through.clone());
        (door, through)
    }

    /// `label` as a Raft member that says it is of `cluster` and `founding`.
    fn peer(fleet: &Fleet, label: &str, cluster: ClusterId, founding: Founding) -> Peer {
        let (device, idx) = (fleet.id(label), fleet.idx(label));
        Peer {
            device,
            idx,
            protocol: Protocol::Raft,
            hello: Hello {
                version: WIRE_VERSION,
                chain: fleet.chain,
                device,
                cluster: Some((cluster, founding)),
                raft: RaftNodeId::new(idx, 1).0,
            },
        }
    }

    /// How a lane of `peer` ends.
    async fn lane_end(door: &Door, peer: Peer, to: RaftNodeId) -> Result<Option<Bytes>, CallError> {
        let (mut ours, theirs) = lane_pair(1_024, 1_024, Arc::new(|_| Fate::Arrives));
        let opening = Bytes::copy_from_slice(&to.0.to_be_bytes());
        ours.sender.send(opening).await.unwrap();
        door.lane(peer, FrameKind::RaftLane, theirs).await;
        ours.receiver.recv().await
    }

    #[tokio::test]
    async fn member_of_another_cluster_or_of_an_old_founding_is_denied_calls_and_lanes() {
        let fleet = Fleet::dev();
        let now = Founding(1);
        let (door, through) = open_door(&fleet, now);
        let mut other_raft_id = peer(&fleet, "c1-2", ClusterId(0), now);
        other_raft_id.hello.raft = RaftNodeId::new(fleet.idx("c1-3"), 1).0;
        let mut beyond = peer(&fleet, "c1-2", ClusterId(0), now);
        beyond.hello.raft = RaftNodeId::new(fleet.idx("c1-2"), RaftNodeId::INCARNATION_MAX + 1).0;
        let mut silent = peer(&fleet, "c1-2", ClusterId(0), now);
        silent.hello.cluster = None;
        let strangers = [
            ("of another cluster", peer(&fleet, "c2-1", ClusterId(1), now)),
            ("of another cluster, and lies", peer(&fleet, "c2-1", ClusterId(0), now)),
            ("names another cluster", peer(&fleet, "c1-2", ClusterId(1), now)),
            ("of an old founding", peer(&fleet, "c1-2", ClusterId(0), Founding(0))),
            ("of a founding to come", peer(&fleet, "c1-2", ClusterId(0), Founding(2))),
            ("names none", silent),
            ("with another's Raft id", other_raft_id),
            ("with an incarnation that cannot be", beyond),
            ("a validator", peer(&fleet, "v1", ClusterId(0), now)),
        ];
        let member = peer(&fleet, "c1-2", ClusterId(0), now);
        for (who, stranger) in strangers {
            for kind in [
                FrameKind::RaftAppend,
                FrameKind::RaftVote,
                FrameKind::RaftSnapshot,
                FrameKind::RaftTransfer,
                FrameKind::Forward,
                FrameKind::Linearize,
                FrameKind::Attest,
            ] {
                let refused = door.handle(stranger.clone(), kind, Bytes::from_static(&[1])).await;
                assert_eq!(refused.unwrap_err().code, RefusalCode::Denied, "{who}: {kind:?}");
            }
            let ended = lane_end(&door, stranger, me(&fleet)).await;
            assert!(
                matches!(&ended, Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Denied),
                "{who}: {ended:?}"
            );
        }
        assert_eq!(through.count(), 0, "nothing reached the agent");
        let append = request(me(&fleet), RaftRpc::Append);
        let served = door.handle(member.clone(), FrameKind::RaftAppend, append).await;
        assert_eq!(served, Ok(encode_answer(Ok(vec![7]))));
        assert_eq!(lane_end(&door, member, me(&fleet)).await, Ok(None));
        assert_eq!(*through.0.lock().unwrap(), [RaftNodeId::new(fleet.idx("c1-2"), 1); 2]);
    }

    #[test]
    fn vote_and_pre_vote_stay_apart_in_one_frame_kind() {
        for rpc in RaftRpc::ALL {
            let body = Bytes::from_static(b"body");
            let framed = wrap_request(RaftNodeId(7), rpc, &body);
            assert_eq!(
                unwrap_request(frame_kind(rpc), framed),
                Some((RaftNodeId(7), rpc, body))
            );
        }
        for short in 0..=MEMBER_BYTES {
            assert_eq!(unwrap_request(FrameKind::RaftVote, vec![0; short].into()), None);
        }
        let append_as_vote = [[0; MEMBER_BYTES].as_slice(), &[RaftRpc::Append.code(), 1]].concat();
        assert_eq!(unwrap_request(FrameKind::RaftVote, append_as_vote.into()), None);
    }

    #[tokio::test]
    async fn member_that_has_not_begun_answers_questions_and_takes_no_part() {
        let fleet = Fleet::dev();
        let (door, through) = (Door::default(), Arc::new(Through::default()));
        let has_begun = Arc::new(AtomicBool::new(false));
        let membership = Membership {
            registry: Arc::new(fleet.registry.clone()),
            cluster: ClusterId(0),
            founding: Founding(0),
            me: me(&fleet),
            has_begun: has_begun.clone(),
        };
        door.open(membership, through.clone());
        let mate = peer(&fleet, "c1-2", ClusterId(0), Founding(0));
        for rpc in RaftRpc::ALL {
            let answer = door
                .handle(mate.clone(), frame_kind(rpc), request(me(&fleet), rpc))
                .await;
            assert_eq!(answer.unwrap_err().code, RefusalCode::NotNow, "{rpc:?}");
        }
        assert!(lane_end(&door, mate.clone(), me(&fleet)).await.is_err());
        assert_eq!(through.count(), 0);
        assert!(door.handle(mate.clone(), FrameKind::Join, Bytes::new()).await.is_ok());
        has_begun.store(true, Ordering::Release);
        assert_eq!(lane_end(&door, mate, me(&fleet)).await, Ok(None));
        assert_eq!(through.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn lane_that_does_not_say_for_whom_it_is_ends() {
        let fleet = Fleet::dev();
        let (door, through) = open_door(&fleet, Founding(0));
        let member = peer(&fleet, "c1-2", ClusterId(0), Founding(0));
        let longer = [me(&fleet).0.to_be_bytes().as_slice(), &[1]].concat();
        for first in [None, Some(Bytes::new()), Some(longer.into())] {
            let (mut ours, theirs) = lane_pair(1_024, 1_024, Arc::new(|_| Fate::Arrives));
            if let Some(first) = first.clone() {
                ours.sender.send(first).await.unwrap();
            }
            door.lane(member.clone(), FrameKind::RaftLane, theirs).await;
            let ended = ours.receiver.recv().await;
            assert!(matches!(ended, Err(CallError::Refused(_))), "{first:?}: {ended:?}");
        }
        assert_eq!(through.count(), 0);
    }

    #[tokio::test]
    async fn what_is_asked_of_a_lost_data_directory_is_not_answered_by_the_next() {
        let fleet = Fleet::dev();
        let (door, through) = open_door(&fleet, Founding(0));
        let member = peer(&fleet, "c1-2", ClusterId(0), Founding(0));
        let lost = RaftNodeId::new(fleet.idx("c1-1"), 1);
        for rpc in RaftRpc::ALL {
            let answer = door.handle(member.clone(), frame_kind(rpc), request(lost, rpc)).await;
            assert_eq!(answer, Ok(encode_answer(Err(RpcRefusal::OtherMember))), "{rpc:?}");
        }
        let ended = lane_end(&door, member, lost).await;
        assert!(
            matches!(&ended, Err(CallError::Refused(refusal)) if refusal.code == RefusalCode::Denied),
            "{ended:?}"
        );
        assert_eq!(through.count(), 0);
    }

    #[test]
    fn refusal_of_a_peer_arrives_as_what_it_is() {
        assert_eq!(decode_answer(encode_answer(Ok(vec![7]))), Ok(Bytes::from_static(&[7])));
        let refusal = RpcRefusal::ForkedLog;
        assert_eq!(
            decode_answer(encode_answer(Err(refusal))),
            Err(LinkError::Refused(refusal))
        );
        assert!(matches!(decode_answer(Bytes::new()), Err(LinkError::Network(_))));
        assert!(matches!(
            decode_answer(Bytes::from_static(&[250])),
            Err(LinkError::Network(_))
        ));
    }
}
