//! A tap between a process and its links: it sees what comes and goes, and may change it.
//!
//! # Rules
//! * Only a process in an enemy's hands has one. The shells know nothing of it.
//! * What a tap sends besides crosses the links like everything else, and is not tapped again.

use bytes::Bytes;
use common::{
    ids::NodeIdx,
    wire::frame::{FrameKind, Refusal},
};

/// A request that a tap sends in the name of its process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sending {
    /// To whom.
    pub to: NodeIdx,
    /// What it is.
    pub kind: FrameKind,
    /// Its bytes; any, up to the cap of the kind.
    pub body: Bytes,
    /// Microseconds from now.
    pub after_us: u64,
}

/// What becomes of a request that the process sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// This goes out in its place.
    As(Bytes),
    /// It goes out after so many microseconds.
    Late(u64),
    /// It is held back, and the process believes that it arrived.
    Never,
}

/// Stands between one process and its links.
pub trait Tap: Send {
    /// The process sends a request, or a frame of a lane.
    fn sends(&mut self, now_us: u64, to: NodeIdx, kind: FrameKind, body: &Bytes) -> Leaves;

    /// A request arrives. False hides it from the process, and its sender believes that it was taken.
    fn hears(&mut self, now_us: u64, from: NodeIdx, kind: FrameKind, body: &[u8]) -> bool;

    /// The process answers `request` of `to`.
    fn answers(
        &mut self,
        now_us: u64,
        to: NodeIdx,
        kind: FrameKind,
        request: &[u8],
        answer: Result<Bytes, Refusal>,
    ) -> Result<Bytes, Refusal>;

    /// The process is told the answer to its own request.
    fn is_told(&mut self, now_us: u64, from: NodeIdx, kind: FrameKind, answer: Bytes) -> Bytes;

    /// What it sends besides, because of what it has seen since the last time.
    fn besides(&mut self) -> Vec<Sending>;
}
