//! Whose data directory this is, kept beside the database.
//!
//! # Rules
//! * A directory belongs to one fleet, one cluster, one device and one Raft id, for ever. Another
//!   identity is refused: the same id with an empty vote could vote twice in a term.
//! * A newer format is refused without a write.
//! * The marker says that something was acknowledged from here. An empty database beside its marker
//!   was lost: refuse, the member must join again under a new Raft id.
//! * Files appear whole: written beside, flushed, renamed, directory flushed.
//!
//! # Layout
//! `meta`, `initialised`, `log/` (of the kind that it was made with), `snapshots/`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use common::ids::{ChainId, ClusterId, DeviceId, RaftNodeId, from_hex, to_hex};
use serde::{Deserialize, Serialize};

use super::{
    StoreError,
    member_log::{LogOptions, MemberLog},
    snapshot::{FileSnapshots, write_durably},
};

/// Version of the directory's layout.
pub const DIRECTORY_FORMAT_VERSION: u32 = 1;

const META: &str = "meta";
const MARKER: &str = "initialised";
const META_BYTES_MAX: u64 = 4 * 1024;

/// Whose directory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberIdentity {
    /// Fleet.
    pub chain: ChainId,
    /// Cluster.
    pub cluster: ClusterId,
    /// Device.
    pub device: DeviceId,
    /// Raft id, of this directory alone.
    pub member: RaftNodeId,
}

/// An identity together with the number drawn when the directory was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryMeta {
    /// Whose directory it is.
    pub identity: MemberIdentity,
    /// Random; tells two directories of one device apart.
    pub directory: [u8; 16],
}

/// Why a data directory is not used. Nothing in it was changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Made by a newer release.
    #[error("directory format {got}, at most {max} known: use the newer release")]
    NewerFormat {
        /// Found.
        got: u32,
        /// Known here.
        max: u32,
    },
    /// `meta` is missing or damaged beside a database.
    #[error("{path}: {why}")]
    BadMeta {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// The directory is someone else's.
    #[error("the directory belongs to another {what}: {got}, expected {want}")]
    Foreign {
        /// Fleet, cluster, device or Raft id.
        what: &'static str,
        /// Found.
        got: String,
        /// Configured.
        want: String,
    },
    /// Something was acknowledged from here, and nothing is left.
    #[error(
        "the log in {dir} is empty, but it once was not: move the directory away and start on an empty one with the next \
         `incarnation` in the configuration file"
    )]
    LostData {
        /// The directory.
        dir: String,
    },
    /// The disk failed or the log is damaged.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl IdentityError {
    /// Exit code of the process, after `sysexits.h`: 78 where a restart cannot help, 74 for the disk.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(StoreError::Corrupt(_)) => 78,
            Self::Store(_) => 74,
            Self::NewerFormat { .. } | Self::BadMeta { .. } | Self::Foreign { .. } | Self::LostData { .. } => 78,
        }
    }
}

/// Writes `initialised` beside a database.
#[derive(Clone, Debug)]
pub struct Marker {
    dir: Option<PathBuf>,
}

impl Marker {
    /// The marker of the data directory `dir`.
    #[must_use]
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            dir: Some(dir.to_path_buf()),
        }
    }

    /// No marker, for a store that is not a member's.
    #[must_use]
    pub fn none() -> Self {
        Self { dir: None }
    }

    fn is_set(&self) -> bool {
        self.dir.as_ref().is_some_and(|dir| dir.join(MARKER).exists())
    }

    pub(super) fn set(&self) -> Result<(), StoreError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        if self.is_set() {
            Ok(())
        } else {
            write_durably(dir, MARKER, b"")
        }
    }
}

/// A member's opened disks.
pub struct MemberStores {
    /// The log.
    pub log: MemberLog,
    /// The snapshots.
    pub snapshots: FileSnapshots,
    /// Whose they are.
    pub meta: DirectoryMeta,
}

/// Opens the data directory `dir` of `identity`, or makes it if nothing is there.
///
/// `new_directory`: random, used only when the directory is made.
///
/// # Errors
/// [`IdentityError`]; exit with [`exit_code`](IdentityError::exit_code).
pub fn open_member(
    dir: &Path,
    identity: MemberIdentity,
    new_directory: [u8; 16],
    options: LogOptions,
) -> Result<MemberStores, IdentityError> {
    let meta = match read_meta(dir)? {
        Some(meta) => check(meta, identity)?,
        None => {
            let meta = DirectoryMeta {
                identity,
                directory: new_directory,
            };
            fs::create_dir_all(dir).map_err(|error| io_error(dir, &error))?;
            write_durably(dir, META, &encode(&meta))?;
            if let Some(parent) = dir.parent() {
                super::snapshot::sync_dir(parent)?;
            }
            meta
        }
    };
    let marker = Marker::in_dir(dir);
    let log_dir = dir.join("log");
    // Decided before the database is opened, which would create it.
    if marker.is_set() && !MemberLog::is_in(&log_dir) {
        return Err(IdentityError::LostData {
            dir: log_dir.display().to_string(),
        });
    }
    let log = MemberLog::open(&log_dir, meta.directory, options, marker.clone())?;
    let is_new = log.is_new()?;
    if is_new && marker.is_set() {
        return Err(IdentityError::LostData {
            dir: log_dir.display().to_string(),
        });
    }
    if !is_new {
        marker.set()?;
    }
    let snapshots = FileSnapshots::open(dir.join("snapshots"))?;
    Ok(MemberStores { log, snapshots, meta })
}

fn check(meta: DirectoryMeta, want: MemberIdentity) -> Result<DirectoryMeta, IdentityError> {
    let got = meta.identity;
    let foreign = |what, got: &dyn ToString, want: &dyn ToString| {
        Err(IdentityError::Foreign {
            what,
            got: got.to_string(),
            want: want.to_string(),
        })
    };
    if got.chain != want.chain {
        return foreign("fleet", &got.chain, &want.chain);
    }
    if got.cluster != want.cluster {
        return foreign("cluster", &got.cluster, &want.cluster);
    }
    if got.device != want.device {
        return foreign("device", &got.device, &want.device);
    }
    if got.member != want.member {
        return foreign("raft id", &got.member, &want.member);
    }
    Ok(meta)
}

/// The file, as people can read it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct MetaFile {
    format_version: u32,
    chain: String,
    cluster: u32,
    device: String,
    raft_id: u64,
    directory: String,
}

#[derive(Deserialize)]
struct VersionOnly {
    format_version: u32,
}

fn encode(meta: &DirectoryMeta) -> Vec<u8> {
    let file = MetaFile {
        format_version: DIRECTORY_FORMAT_VERSION,
        chain: meta.identity.chain.to_hex(),
        cluster: meta.identity.cluster.0,
        device: meta.identity.device.to_hex(),
        raft_id: meta.identity.member.0,
        directory: to_hex(&meta.directory),
    };
    let mut text = serde_json::to_vec_pretty(&file).expect("numbers and texts are JSON");
    text.push(b'\n');
    text
}

/// Reads the identity of the data directory `dir`; `None` if there is no directory of a member.
///
/// # Errors
/// [`IdentityError`].
pub fn read_meta(dir: &Path) -> Result<Option<DirectoryMeta>, IdentityError> {
    let path = dir.join(META);
    let bad = |why: String| IdentityError::BadMeta {
        path: path.display().to_string(),
        why,
    };
    let bytes = match fs::metadata(&path) {
        Ok(found) if found.len() > META_BYTES_MAX => return Err(bad(format!("{} bytes", found.len()))),
        Ok(_) => fs::read(&path).map_err(|error| io_error(&path, &error))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let has_data = [MARKER, "log", "snapshots"].iter().any(|name| dir.join(name).exists());
            return if has_data {
                Err(bad("missing beside a database".into()))
            } else {
                Ok(None)
            };
        }
        Err(error) => return Err(io_error(&path, &error).into()),
    };
    let version: VersionOnly = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    if version.format_version > DIRECTORY_FORMAT_VERSION {
        return Err(IdentityError::NewerFormat {
            got: version.format_version,
            max: DIRECTORY_FORMAT_VERSION,
        });
    }
    let file: MetaFile = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
    let mut directory = [0; 16];
    if !from_hex(&file.directory, &mut directory) {
        return Err(bad("directory is not 32 hexadecimal digits".into()));
    }
    let identity = MemberIdentity {
        chain: ChainId::from_hex(&file.chain).ok_or_else(|| bad("chain is not 64 hexadecimal digits".into()))?,
        cluster: ClusterId(file.cluster),
        device: DeviceId::from_hex(&file.device).ok_or_else(|| bad("device is not 64 hexadecimal digits".into()))?,
        member: RaftNodeId(file.raft_id),
    };
    Ok(Some(DirectoryMeta { identity, directory }))
}

fn io_error(path: &Path, error: &io::Error) -> StoreError {
    StoreError::Io(transport::machine::disk_error("use", path, error).to_string())
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
