//! Who this validator is: genesis file, device key with certificate, consensus key, all fitting together.
//! In: paths of a valid configuration. Out: [`Loaded`], or the one thing that is wrong. Called by: `main`.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{
    codec::{DecodeError, Label, decode},
    crypto::ConsensusKey,
    genesis::{Genesis, Kind},
    ids::{NodeIdx, to_hex},
    limits::GENESIS_BYTES_MAX,
    registry::Registry,
};
use transport::identity::{Identity, IdentityError as DeviceIdentityError, KeyFile, KeyFileError};

use crate::{
    config::ValidConfig,
    exit::{EXIT_INVALID_INPUT, EXIT_REFUSED_FOR_SAFETY},
};

/// Why identity files are not used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The genesis file cannot be read.
    #[error("genesis file {path}: {source}")]
    GenesisUnreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The genesis file is none.
    #[error("genesis file {path}: {source}")]
    GenesisMalformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The label is not a validator of this fleet.
    #[error("label {label:?} is not a validator in the genesis file of fleet {fleet:?}")]
    NotAValidator {
        /// Configured.
        label: Label,
        /// Of the genesis file.
        fleet: Label,
    },
    /// A peer's label is not a validator of this fleet.
    #[error("peer {label:?} is not a validator in the genesis file of fleet {fleet:?}")]
    PeerNotAValidator {
        /// Configured.
        label: Label,
        /// Of the genesis file.
        fleet: Label,
    },
    /// Device key and certificate.
    #[error("{0}")]
    Device(#[from] DeviceIdentityError),
    /// Consensus key file.
    #[error("{0}")]
    ConsensusKey(#[from] KeyFileError),
    /// A key is not the one that the genesis file has for this label.
    #[error(
        "{what} key {got} is not the key {want} that the genesis file has for {label:?}: genesis file and keys are of different fleets, or the label is another's"
    )]
    OtherKey {
        /// `device` or `consensus`.
        what: &'static str,
        /// Public key of the file.
        got: String,
        /// In the genesis file.
        want: String,
        /// Configured.
        label: Label,
    },
}

impl IdentityError {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::OtherKey { .. } => EXIT_REFUSED_FOR_SAFETY,
            _ => EXIT_INVALID_INPUT,
        }
    }
}

/// Reads the genesis file at `path`: its canonical bytes.
///
/// # Errors
/// [`IdentityError::GenesisUnreadable`], [`IdentityError::GenesisMalformed`].
pub fn load_genesis(path: &Path) -> Result<Genesis, IdentityError> {
    use io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(GENESIS_BYTES_MAX as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| IdentityError::GenesisUnreadable {
            path: path.to_owned(),
            source,
        })?;
    decode(&bytes).map_err(|source| IdentityError::GenesisMalformed {
        path: path.to_owned(),
        source,
    })
}

/// Everything that says who this validator is.
pub struct Loaded {
    /// The fleet.
    pub genesis: Genesis,
    /// Its devices.
    pub registry: Arc<Registry>,
    /// This validator's number.
    pub me: NodeIdx,
    /// Device key and certificate.
    pub identity: Identity,
    /// Consensus key.
    pub consensus_key: ConsensusKey,
}

impl Loaded {
    /// Reads all files that `config` names and checks that they belong together.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load(config: &ValidConfig) -> Result<Self, IdentityError> {
        let genesis = load_genesis(&config.genesis)?;
        let registry = Registry::from_genesis(&genesis);
        let validator = |label: &Label| {
            registry
                .by_label(label.as_str())
                .filter(|member| member.kind == Kind::Validator)
        };
        let member = validator(&config.label).ok_or_else(|| IdentityError::NotAValidator {
            label: config.label.clone(),
            fleet: genesis.fleet.clone(),
        })?;
        if let Some((label, _)) = config.peers.iter().find(|(label, _)| validator(label).is_none()) {
            return Err(IdentityError::PeerNotAValidator {
                label: label.clone(),
                fleet: genesis.fleet.clone(),
            });
        }
        let identity = Identity::load(&config.key, &config.certificate)?;
        let consensus_key = KeyFile::load(&config.consensus_key)?.consensus_key();
        let check = |what, got: [u8; 32], want: Option<[u8; 32]>| {
            if Some(got) == want {
                return Ok(());
            }
            Err(IdentityError::OtherKey {
                what,
                got: to_hex(&got),
                want: want.map_or_else(|| "(none)".into(), |key| to_hex(&key)),
                label: config.label.clone(),
            })
        };
        check(
            "device",
            identity.public(),
            member.keys.last().map(|key| key.to_bytes()),
        )?;
        check(
            "consensus",
            consensus_key.public(),
            member.consensus_key.map(|key| key.to_bytes()),
        )?;
        let me = member.idx;
        Ok(Self {
            genesis,
            registry: Arc::new(registry),
            me,
            identity,
            consensus_key,
        })
    }
}
