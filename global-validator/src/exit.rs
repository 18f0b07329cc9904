//! With which code the process ends, and why it did not start.

use std::{io, path::PathBuf};

use common::{codec::Label, crypto::known_answers::KnownAnswerFailed};

use crate::{config::ConfigError, guard::Refusal, identity::IdentityError};

/// Exit code: ended as asked.
pub const EXIT_OK: u8 = 0;
/// Exit code: a file of the configuration is wrong. Correct it.
pub const EXIT_INVALID_INPUT: u8 = 6;
/// Exit code: an assumption of this program broke while it ran, or its files are damaged. Keep the directory.
pub const EXIT_FATAL: u8 = 70;
/// Exit code: the disk failed or is full. Nothing that was promised is lost; start again once it works.
pub const EXIT_DISK: u8 = 74;
/// Exit code: starting could make this validator contradict what it signed before. Read the message.
pub const EXIT_REFUSED_FOR_SAFETY: u8 = 78;

/// Why a validator does not start, or stopped by itself.
#[derive(Debug, thiserror::Error)]
pub enum Stop {
    /// The configuration file is wrong.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The genesis file, a key or a certificate is wrong.
    #[error("{0}")]
    Identity(#[from] IdentityError),
    /// The configured label is no device of the fleet.
    #[error("{0:?} is not in the genesis file")]
    NotInGenesis(Label),
    /// The genesis file asks for something that this version does not do.
    #[error("genesis file: {0}")]
    Unserved(#[from] global_core::ConfigError),
    /// This build computes signatures or hashes wrongly.
    #[error("{0}")]
    KnownAnswer(#[from] KnownAnswerFailed),
    /// What is on the disk does not fit this start.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The transport does not start: the address is taken, or peers would refuse this device.
    #[error("{0}")]
    Transport(#[from] transport::quic::StartError),
    /// Another process holds the data directory, or it cannot be opened.
    #[error("data_dir {path}: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A read, a write or an fsync failed. Never retried: what is on the disk is unknown now.
    #[error("storage: {what}: {source}")]
    Storage {
        /// While doing what.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A quorum of validators computed another state than this one.
    #[error("{0}. This validator is wrong and stops; keep its data directory for examination")]
    Diverged(String),
}

impl Stop {
    /// A failure of the disk while doing `what`.
    pub fn storage(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Storage { what, source }
    }

    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::NotInGenesis(_) | Self::Unserved(_) | Self::Transport(_) => EXIT_INVALID_INPUT,
            // Another process holds the directory: a mistake in a configuration.
            Self::DataDir { source, .. } if source.kind() == io::ErrorKind::WouldBlock => EXIT_INVALID_INPUT,
            Self::Identity(error) => error.exit_code(),
            Self::Refused(_) | Self::KnownAnswer(_) => EXIT_REFUSED_FOR_SAFETY,
            Self::Storage { source, .. } if source.kind() == io::ErrorKind::InvalidData => EXIT_FATAL,
            Self::DataDir { .. } | Self::Storage { .. } => EXIT_DISK,
            Self::Diverged(_) => EXIT_FATAL,
        }
    }
}
