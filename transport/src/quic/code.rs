//! Numbers that say why a connection or a stream ended. The reason text beside them is always the
//! same: detail stays in the local log.

use quinn::VarInt;

/// Why a connection was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CloseCode {
    /// The process ends in good order.
    Done = 0,
    /// The role does not allow the protocol.
    Role = 1,
    /// The hello was malformed, late, or not about the device of the TLS key.
    Hello = 2,
    /// The hello named another fleet.
    OtherFleet = 3,
    /// The hello named another version of the wire formats.
    Version = 4,
    /// The device is no longer accepted.
    Revoked = 5,
    /// A newer connection of the same device took this one's place.
    Replaced = 6,
    /// No room for more connections.
    Busy = 7,
}

impl CloseCode {
    pub(crate) fn wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// Why a stream was broken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamCode {
    /// The frame was malformed.
    Malformed = 16,
    /// The deadline passed.
    Deadline = 17,
    /// The sender gave the lane up.
    GivenUp = 18,
}

impl StreamCode {
    pub(crate) fn wire(self) -> VarInt {
        VarInt::from_u32(self as u32)
    }
}

/// The text beside every [`CloseCode`] but [`CloseCode::Done`].
pub(crate) const REFUSED: &[u8] = b"refused";
