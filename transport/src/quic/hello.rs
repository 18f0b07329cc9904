//! The first words on a connection. In TLS 1.3 a client is done before the server has judged its
//! certificate, so a peer counts as connected only after its hello.
//!
//! # Rules
//! * The dialler opens the first stream and speaks first; the acceptor answers on the same stream.
//! * A hello names the version of the wire formats, the fleet, and the device of the TLS key.
//! * Peers that disagree part, with both ids in the local log and a bare code on the wire.

use common::{
    ids::{ChainId, ClusterId, DeviceId},
    registry::Member,
    wire::frame::Hello,
};

use super::code::CloseCode;

/// What a hello must agree with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HelloMismatch {
    /// Another version of the wire formats.
    #[error("the peer speaks version {got} of the wire formats, this process version {want}; update the older one")]
    Version {
        /// Theirs.
        got: u16,
        /// Ours.
        want: u16,
    },
    /// Another genesis file.
    #[error("the peer is of fleet {got}, this process of fleet {want}: their genesis files differ")]
    Chain {
        /// Theirs.
        got: ChainId,
        /// Ours.
        want: ChainId,
    },
    /// Not the device whose key TLS proved.
    #[error("the hello is of {got}, the TLS key of {want}")]
    Device {
        /// In the hello.
        got: DeviceId,
        /// Proven.
        want: DeviceId,
    },
    /// Not the cluster that the registry has for the device.
    #[error("the hello is of cluster {got}, the registry has {want:?}")]
    Cluster {
        /// In the hello.
        got: ClusterId,
        /// In the registry.
        want: Option<ClusterId>,
    },
}

impl HelloMismatch {
    pub(crate) fn close_code(&self) -> CloseCode {
        match self {
            Self::Version { .. } => CloseCode::Version,
            Self::Chain { .. } => CloseCode::OtherFleet,
            Self::Device { .. } | Self::Cluster { .. } => CloseCode::Hello,
        }
    }
}

/// Compares the hello of the device `member`, which TLS proved, with `ours`.
///
/// # Errors
/// [`HelloMismatch`].
pub fn check(theirs: &Hello, ours: &Hello, member: &Member) -> Result<(), HelloMismatch> {
    if theirs.version != ours.version {
        return Err(HelloMismatch::Version {
            got: theirs.version,
            want: ours.version,
        });
    }
    if theirs.chain != ours.chain {
        return Err(HelloMismatch::Chain {
            got: theirs.chain,
            want: ours.chain,
        });
    }
    if theirs.device != member.id {
        return Err(HelloMismatch::Device {
            got: theirs.device,
            want: member.id,
        });
    }
    match theirs.cluster {
        Some((got, _)) if member.cluster != Some(got) => Err(HelloMismatch::Cluster {
            got,
            want: member.cluster,
        }),
        _ => Ok(()),
    }
}
