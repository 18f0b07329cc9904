//! Frames: `length u32 LE | kind u8 | body`. One request and one answer per stream, then its end; or,
//! for a kind with [`FrameKind::is_lane`], requests and their answers in order until either side ends it.
//!
//! The length counts the body and is compared with the cap of (protocol, kind) before anything is
//! allocated.

use serde::{Deserialize, Serialize};

use crate::{
    codec::{Label, Wire},
    ids::{ChainId, ClusterId, DeviceId, Founding},
    limits,
};

/// Bytes before the body.
pub const FRAME_HEADER_BYTES: usize = 5;

/// A protocol between two processes, chosen in the TLS handshake (ALPN, RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Members of one cluster: Raft.
    Raft,
    /// Members of one cluster: forwarded entries, linearizable positions, attestations.
    Cluster,
    /// Validators: proposals, votes, certificates, blocks and batches by digest.
    Bft,
    /// A cluster's member and a validator: batches up, blocks down.
    Feed,
    /// An operator and any process.
    Op,
}

impl Protocol {
    /// All protocols.
    pub const ALL: [Self; 5] = [Self::Raft, Self::Cluster, Self::Bft, Self::Feed, Self::Op];

    /// The name in the handshake.
    #[must_use]
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Raft => b"muster-raft/1",
            Self::Cluster => b"muster-cluster/1",
            Self::Bft => b"muster-bft/1",
            Self::Feed => b"muster-feed/1",
            Self::Op => b"muster-op/1",
        }
    }

    /// The protocol of a name.
    #[must_use]
    pub fn from_alpn(name: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.alpn() == name)
    }
}

macro_rules! frame_kinds {
    ($($(#[$doc:meta])* $name:ident = $byte:literal, $protocol:ident, $request:expr, $answer:expr;)*) => {
        /// What a request frame holds.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum FrameKind { $($(#[$doc])* $name,)* }

        impl FrameKind {
            /// All kinds.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The byte on the wire.
            #[must_use]
            pub const fn byte(self) -> u8 {
                match self { $(Self::$name => $byte,)* }
            }

            /// The protocol it belongs to.
            #[must_use]
            pub const fn protocol(self) -> Protocol {
                match self { $(Self::$name => Protocol::$protocol,)* }
            }

            /// Longest request body.
            #[must_use]
            pub const fn request_bytes_max(self) -> usize {
                match self { $(Self::$name => $request,)* }
            }

            /// Longest answer body.
            #[must_use]
            pub const fn answer_bytes_max(self) -> usize {
                match self { $(Self::$name => $answer,)* }
            }
        }
    };
}

const KIB: usize = 1024;

frame_kinds! {
    /// Append entries to a follower's log.
    RaftAppend = 0x01, Raft, limits::RAFT_APPEND_BYTES_MAX, KIB;
    /// Ask for a vote, or for a pre-vote.
    RaftVote = 0x02, Raft, KIB, KIB;
    /// A piece of a snapshot.
    RaftSnapshot = 0x03, Raft, 260 * KIB, KIB;
    /// Hand leadership over.
    RaftTransfer = 0x04, Raft, KIB, KIB;
    /// Append entries, one request after another on one stream, sent before the last one is answered.
    RaftLane = 0x05, Raft, limits::RAFT_APPEND_BYTES_MAX, KIB;

    /// An entry on its one hop to the leader.
    Forward = 0x10, Cluster, 16 * KIB, KIB;
    /// Ask the leader for a linearizable position.
    Linearize = 0x11, Cluster, KIB, KIB;
    /// A member's attestation of a batch.
    Attest = 0x12, Cluster, KIB, KIB;
    /// A member whose log is empty, or who hears of nobody, asks the others about its id.
    Join = 0x13, Cluster, KIB, KIB;

    /// A leader's proposal.
    Proposal = 0x20, Bft, limits::PROPOSAL_BYTES_MAX, KIB;
    /// A vote.
    Vote = 0x21, Bft, 512, KIB;
    /// A notarization, nullification or finalization.
    Certificate = 0x22, Bft, 20 * KIB, KIB;
    /// A certified header that is next somewhere.
    BatchNotice = 0x23, Bft, 16 * KIB, KIB;
    /// A block by digest.
    FetchBlock = 0x24, Bft, KIB, limits::PROPOSAL_BYTES_MAX;
    /// A batch by digest.
    FetchBatch = 0x25, Bft, KIB, 128 * KIB;
    /// Finalized blocks from a height.
    Sync = 0x26, Bft, KIB, 1024 * KIB;
    /// Proposals, votes, certificates and notices that waited together.
    Bundle = 0x27, Bft, 65 * KIB, KIB;

    /// A certified batch on its way up.
    SubmitBatch = 0x30, Feed, 128 * KIB, KIB;
    /// Finalized blocks on their way down, from a height.
    Follow = 0x31, Feed, KIB, 1024 * KIB;
    /// A batch by digest, on its way down.
    FeedBatch = 0x32, Feed, KIB, 128 * KIB;

    /// An operator's request.
    Operate = 0x40, Op, 64 * KIB, 4 * 1024 * KIB;
}

impl FrameKind {
    /// Whether a stream of this kind carries many requests: each frame has this kind, answers come in
    /// the order of the requests, a refusal is the last answer.
    #[must_use]
    pub const fn is_lane(self) -> bool {
        matches!(self, Self::RaftLane)
    }
}

/// Kind byte of the first frame each side sends on a connection.
pub const HELLO_KIND: u8 = 0xf0;
/// Kind byte of an answer.
pub const ANSWER_KIND: u8 = 0xf1;
/// Kind byte of a refusal.
pub const REFUSAL_KIND: u8 = 0xf2;

/// Why a frame is refused before its body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Unknown kind, or a kind of another protocol.
    #[error("frame kind {0:#04x} is not of this protocol")]
    UnknownKind(u8),
    /// Longer than its kind allows.
    #[error("frame of {got} bytes, at most {max} allowed")]
    Oversized {
        /// Announced.
        got: usize,
        /// Cap of the kind.
        max: usize,
    },
}

/// Header bytes of a frame of `body_len` bytes.
#[must_use]
pub fn frame_header(kind: u8, body_len: usize) -> [u8; FRAME_HEADER_BYTES] {
    let len = u32::try_from(body_len)
        .expect("bodies are capped far below 4 GiB")
        .to_le_bytes();
    [len[0], len[1], len[2], len[3], kind]
}

/// Reads the header of a request frame of `protocol`: its kind and the length of its body.
///
/// # Errors
/// [`FrameError`]: close the stream, count it against the peer.
pub fn read_request_header(
    protocol: Protocol,
    header: &[u8; FRAME_HEADER_BYTES],
) -> Result<(FrameKind, usize), FrameError> {
    let (byte, len) = (header[4], body_len(header));
    let kind = FrameKind::ALL
        .iter()
        .copied()
        .find(|kind| kind.byte() == byte && kind.protocol() == protocol)
        .ok_or(FrameError::UnknownKind(byte))?;
    check_cap(len, kind.request_bytes_max())?;
    Ok((kind, len))
}

/// Reads the header of an answer to a request of `kind`: whether it is an answer (or a refusal), and its length.
///
/// # Errors
/// [`FrameError`].
pub fn read_answer_header(kind: FrameKind, header: &[u8; FRAME_HEADER_BYTES]) -> Result<(bool, usize), FrameError> {
    let len = body_len(header);
    match header[4] {
        ANSWER_KIND => check_cap(len, kind.answer_bytes_max()).map(|()| (true, len)),
        REFUSAL_KIND => check_cap(len, Refusal::BYTES_MAX).map(|()| (false, len)),
        other => Err(FrameError::UnknownKind(other)),
    }
}

/// Reads the header of a hello frame: the length of its body.
///
/// # Errors
/// [`FrameError`].
pub fn read_hello_header(header: &[u8; FRAME_HEADER_BYTES]) -> Result<usize, FrameError> {
    if header[4] != HELLO_KIND {
        return Err(FrameError::UnknownKind(header[4]));
    }
    let len = body_len(header);
    check_cap(len, Hello::BYTES_MAX).map(|()| len)
}

fn body_len(header: &[u8; FRAME_HEADER_BYTES]) -> usize {
    u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize
}

fn check_cap(got: usize, max: usize) -> Result<(), FrameError> {
    if got > max {
        Err(FrameError::Oversized { got, max })
    } else {
        Ok(())
    }
}

/// First frame from both sides: only after it counts a peer as up, since in TLS 1.3 a client may
/// finish before the server has judged its certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Version of the wire formats.
    pub version: u16,
    /// The fleet; peers of another fleet part here, with both ids in the local log.
    pub chain: ChainId,
    /// Who speaks; must be the device of the TLS key.
    pub device: DeviceId,
    /// Cluster and founding of an agent.
    pub cluster: Option<(ClusterId, Founding)>,
    /// Raft member id of an agent, 0 otherwise.
    pub raft: u64,
}

/// Version of the wire formats.
pub const WIRE_VERSION: u16 = 1;

impl Wire for Hello {
    const BYTES_MAX: usize = 1024;
}

/// Why a request was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The body is malformed or breaks a rule that does not depend on time.
    Invalid,
    /// The peer's role does not allow it.
    Denied,
    /// Too much work in hand; try later.
    Busy,
    /// Not known here.
    NotFound,
    /// Not now (starting, not the leader, another founding).
    NotNow,
}

/// A refusal frame's body. The text is for the peer's log: it holds nothing secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why.
    pub code: RefusalCode,
    /// In words.
    pub text: Label,
}

impl Refusal {
    /// A refusal with a text, cut at the bound of a label.
    #[must_use]
    pub fn new(code: RefusalCode, text: &str) -> Self {
        let clean: String = text.chars().filter(|c| !c.is_control()).collect();
        let mut end = clean.len().min(limits::LABEL_BYTES_MAX);
        while !clean.is_char_boundary(end) {
            end -= 1;
        }
        Self {
            code,
            text: Label::new(&clean[..end]).expect("cut at the bound, without control characters"),
        }
    }
}

impl Wire for Refusal {
    const BYTES_MAX: usize = 128;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kind_bytes_are_unique() {
        let mut bytes: Vec<u8> = FrameKind::ALL.iter().map(|kind| kind.byte()).collect();
        bytes.extend([HELLO_KIND, ANSWER_KIND, REFUSAL_KIND]);
        let count = bytes.len();
        bytes.sort_unstable();
        bytes.dedup();
        assert_eq!(bytes.len(), count);
    }

    #[test]
    fn oversized_frame_and_frame_of_another_protocol_are_refused_by_their_header() {
        let header = frame_header(FrameKind::Vote.byte(), 513);
        assert_eq!(
            read_request_header(Protocol::Bft, &header),
            Err(FrameError::Oversized { got: 513, max: 512 })
        );
        assert_eq!(
            read_request_header(Protocol::Raft, &header),
            Err(FrameError::UnknownKind(FrameKind::Vote.byte()))
        );
        let huge = [0xff, 0xff, 0xff, 0xff, FrameKind::Vote.byte()];
        assert!(matches!(
            read_request_header(Protocol::Bft, &huge),
            Err(FrameError::Oversized { .. })
        ));
    }

    #[test]
    fn refusal_text_is_cut_and_cleaned() {
        let refusal = Refusal::new(RefusalCode::Invalid, &format!("\u{1b}{}", "é".repeat(60)));
        assert!(refusal.text.as_str().len() <= limits::LABEL_BYTES_MAX);
    }
}
