//! What comes in from other validators: checked here, then handed to the driver.
//!
//! # Rules
//! * Upon a proposal, vote or certificate: check every signature, then queue it for the core, in the sender's
//!   own inbox. A full one refuses, before any signature: the sender's core sends again what still matters.
//! * Upon a notice of a batch: check its certificate under the roster in force, then tell the core.
//! * Upon messages that do not verify: refuse them, with one line in the log for all of a bundle, and few for a peer.
//! * Upon a question: answer from the disk, or from what the core holds.
//!
//! # Why
//! Signatures are the cost of a validator. Checked here they run beside the driver, and a peer that
//! sends rubbish spends its own connection's share.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use common::{
    batch::BATCH_VERSION,
    block::{BatchRef, Proposal},
    codec::{Wire, decode, encode},
    crypto::preimage::{Tag, preimage},
    global_queue::GlobalQueue,
    ids::NodeIdx,
    quorum::attestation_quorum,
    wire::{
        bft::{BatchNotice, BftMessage, Bundle, SyncAnswer, SyncRequest},
        feed::FetchByDigest,
        frame::{FrameKind, Refusal, RefusalCode},
    },
};
use global_core::{CheckedMessage, Verifier, VerifyError};
use tokio::sync::oneshot;
use transport::log_limit::LogLimits;

use crate::{
    block_store::BlockStore,
    driver::{Event, Incoming, NotTaken},
    executed::ExecutedWatch,
    exit::Stop,
    halt::Halt,
    intake::Intake,
};

/// How long the driver has to answer a question.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
/// Room for everything in an answer but blocks.
const SYNC_OVERHEAD_BYTES: usize = 64;

/// The door of the other validators; clones share it.
#[derive(Clone)]
pub struct PeerDoor {
    /// Shared, so that a certificate is verified once, whoever sends it.
    verifier: Arc<Mutex<Verifier>>,
    incoming: Incoming,
    executed: ExecutedWatch,
    intake: Intake,
    blocks: BlockStore,
    halt: Halt,
    /// About whom how many lines were written.
    complaints: Arc<LogLimits<NodeIdx>>,
}

fn invalid(error: impl std::fmt::Display) -> Refusal {
    Refusal::new(RefusalCode::Invalid, &error.to_string())
}

fn no_room(error: NotTaken) -> Refusal {
    let code = match error {
        NotTaken::Full => RefusalCode::Busy,
        NotTaken::Closed => RefusalCode::NotNow,
    };
    Refusal::new(code, &error.to_string())
}

impl PeerDoor {
    /// The door to the driver behind `incoming` and to the stores.
    #[must_use]
    pub fn new(
        verifier: Verifier,
        incoming: Incoming,
        executed: ExecutedWatch,
        intake: Intake,
        blocks: BlockStore,
        halt: Halt,
    ) -> Self {
        Self {
            verifier: Arc::new(Mutex::new(verifier)),
            incoming,
            executed,
            intake,
            blocks,
            halt,
            complaints: Arc::default(),
        }
    }

    /// Answers one request of the validator `from`.
    ///
    /// # Errors
    /// What the peer is told.
    pub async fn handle(&self, from: NodeIdx, kind: FrameKind, body: Bytes) -> Result<Bytes, Refusal> {
        match kind {
            FrameKind::Proposal | FrameKind::Vote | FrameKind::Certificate | FrameKind::BatchNotice => {
                self.all_told(from, &[(kind, &body)])
            }
            FrameKind::Bundle => {
                let bundle: Bundle = decode(&body).map_err(invalid)?;
                let messages: Vec<_> = bundle
                    .messages
                    .iter()
                    .map(|message| (message.kind.frame_kind(), &message.body[..]))
                    .collect();
                self.all_told(from, &messages)
            }
            FrameKind::FetchBlock => self.block(from, decode(&body).map_err(invalid)?).await,
            FrameKind::FetchBatch => {
                let wanted: FetchByDigest = decode(&body).map_err(invalid)?;
                self.intake.batch_bytes(&wanted.digest)
            }
            FrameKind::Sync => self.sync(decode(&body).map_err(invalid)?),
            _ => Err(invalid("not a request of a validator")),
        }
    }

    /// Every message is taken that would be taken alone; the first refusal is the answer.
    fn all_told(&self, from: NodeIdx, messages: &[(FrameKind, &[u8])]) -> Result<Bytes, Refusal> {
        let told =
            |(kind, body): &(FrameKind, &[u8])| self.told(from, *kind, body).err().map(|refusal| (*kind, refusal));
        let refused: Vec<(FrameKind, Refusal)> = messages.iter().filter_map(told).collect();
        // A full inbox is logged by nobody, and a notice may come too late or too early without anybody's fault.
        let is_bad = |(kind, refusal): &&(FrameKind, Refusal)| {
            refusal.code == RefusalCode::Invalid && *kind != FrameKind::BatchNotice
        };
        let mut bad = refused.iter().filter(is_bad);
        if let Some((kind, first)) = bad.next()
            && let Some(not_logged) = self.complaints.admit(from)
        {
            let (count, of) = (1 + bad.count(), messages.len());
            let why = first.text.as_str();
            tracing::warn!(peer = %from, ?kind, why, count, of, not_logged, "messages refused");
        }
        refused
            .into_iter()
            .next()
            .map_or(Ok(Bytes::new()), |(_, first)| Err(first))
    }

    fn told(&self, from: NodeIdx, kind: FrameKind, body: &[u8]) -> Result<Bytes, Refusal> {
        let bytes = body.len();
        match kind {
            FrameKind::Proposal => {
                let proposal: Proposal = decode(body).map_err(invalid)?;
                let message = BftMessage::Proposal(Box::new(proposal));
                self.push(from, bytes, |verifier| verifier.message(message))
            }
            FrameKind::Vote => {
                let message = BftMessage::Vote(decode(body).map_err(invalid)?);
                self.push(from, bytes, |verifier| verifier.message(message))
            }
            FrameKind::Certificate => {
                let certificate = decode(body).map_err(invalid)?;
                self.push(from, bytes, |verifier| {
                    let checked = verifier.certificate_of(certificate, body)?;
                    Ok(CheckedMessage::Certificate(checked))
                })
            }
            FrameKind::BatchNotice => self.notice(from, &decode(body).map_err(invalid)?, bytes),
            _ => Err(invalid("not what a validator tells")),
        }
    }

    fn push(
        &self,
        from: NodeIdx,
        bytes: usize,
        check: impl FnOnce(&mut Verifier) -> Result<CheckedMessage, VerifyError>,
    ) -> Result<Bytes, Refusal> {
        self.incoming.check_room(from, bytes).map_err(no_room)?;
        let checked = {
            let mut verifier = self.verifier.lock().unwrap_or_else(PoisonError::into_inner);
            check(&mut verifier)
        };
        let message = checked.map_err(invalid)?;
        self.queue(from, Event::Message { from, message }, bytes)
    }

    fn queue(&self, from: NodeIdx, event: Event, bytes: usize) -> Result<Bytes, Refusal> {
        self.incoming.push(from, event, bytes).map_err(no_room)?;
        Ok(Bytes::new())
    }

    fn notice(&self, from: NodeIdx, notice: &BatchNotice, bytes: usize) -> Result<Bytes, Refusal> {
        self.incoming.check_room(from, bytes).map_err(no_room)?;
        let executed = self.executed.get();
        check_notice(&executed.queue, notice).map_err(|error| {
            tracing::debug!(peer = %from, "notice refused: {error}");
            invalid(error)
        })?;
        let header = &notice.header;
        let batch = BatchRef {
            cluster: header.cluster,
            founding: header.founding,
            seq: header.seq,
            digest: header.digest(executed.queue.registry().chain()),
        };
        self.queue(from, Event::Noticed { from, batch }, bytes)
    }

    async fn block(&self, from: NodeIdx, wanted: FetchByDigest) -> Result<Bytes, Refusal> {
        if let Some(held) = self
            .blocks
            .by_digest(&wanted.digest)
            .map_err(|stop| self.failed(stop))?
        {
            return Ok(encode(&held.block).into());
        }
        let (answer, asked) = oneshot::channel();
        let asked_for = Event::AskedForBlock {
            digest: wanted.digest,
            answer,
        };
        self.queue(from, asked_for, 0)?;
        match tokio::time::timeout(ASK_DEADLINE, asked).await {
            Ok(Ok(Some(block))) => Ok(encode(block.as_ref()).into()),
            Ok(Ok(None)) => Err(Refusal::new(RefusalCode::NotFound, "no such block")),
            _ => Err(Refusal::new(RefusalCode::Busy, "no answer in time")),
        }
    }

    fn failed(&self, stop: Stop) -> Refusal {
        self.halt.stop(stop);
        Refusal::new(RefusalCode::NotNow, "stopping")
    }

    fn sync(&self, request: SyncRequest) -> Result<Bytes, Refusal> {
        let room = SyncAnswer::BYTES_MAX - SYNC_OVERHEAD_BYTES;
        let blocks = self
            .blocks
            .range(request.from, 64, room)
            .map_err(|stop| self.failed(stop))?;
        let answer = SyncAnswer {
            blocks: blocks.try_into().expect("at most 64 were asked for"),
        };
        Ok(encode(&answer).into())
    }
}

/// Whether a quorum of the roster in force attested the header of `notice`.
fn check_notice(queue: &GlobalQueue, notice: &BatchNotice) -> Result<(), String> {
    let header = &notice.header;
    let cursor = queue.cursor(header.cluster).ok_or("no such cluster")?;
    let is_current = header.version == BATCH_VERSION
        && header.founding == cursor.founding
        && header.seq >= cursor.next_seq
        && header.roster == cursor.roster_digest;
    if !is_current {
        return Err("executed before, or of another founding or roster".into());
    }
    let registry = queue.registry();
    let keys: Vec<_> = cursor
        .roster
        .members
        .iter()
        .map(|member| {
            let device = registry.by_idx(member.raft.idx())?;
            device.keys.get(member.key_version.0 as usize)
        })
        .collect();
    let model = queue.genesis_file().clusters[header.cluster.0 as usize].fault_model;
    let message = preimage(Tag::Batch, registry.chain(), header);
    let signed = notice
        .attestations
        .verify(&message, &keys)
        .map_err(|error| error.to_string())?;
    let needed = attestation_quorum(keys.len(), model);
    if signed.len() < needed {
        return Err(format!("{} attestations of {needed} needed", signed.len()));
    }
    Ok(())
}
