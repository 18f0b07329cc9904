//! A private key on disk: one PEM block, PKCS#8 version 1, Ed25519, readable by its owner only.
//!
//! # Rules
//! * Version 1 of PKCS#8 (RFC 5208), without the public key: OpenSSL 3.0 cannot read version 2.
//! * Anything unusual is refused with its own message: a wrong file is found before it is used.
//! * A file is created complete or not at all, and never replaced.

use std::{
    fmt, fs,
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use common::{
    crypto::{ConsensusKey, DeviceKey},
    ids::to_hex,
};
use ed25519_dalek::pkcs8::{
    EncodePrivateKey as _, KeypairBytes, PrivateKeyInfoRef, SecretDocument, spki::der::pem::LineEnding,
};
use rand::TryRng as _;
use zeroize::Zeroizing;

/// Longest key file.
pub const KEY_FILE_BYTES_MAX: u64 = 4 * 1024;

/// Everything of the DER encoding but the 32-byte seed: version 0, OID 1.3.101.112, nested octet strings.
const PKCS8_V1_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];
const ED25519_OID: &str = "1.3.101.112";

/// Why a key file is not used. The text says what happened and what to do.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// No such file.
    #[error("there is no key file {0}; correct the path in the configuration file, or create the key with `fleet`")]
    Missing(PathBuf),
    /// The path is a symbolic link, which somebody else may point elsewhere.
    #[error("key file {0} is a symbolic link; name the file itself")]
    Symlink(PathBuf),
    /// A directory, pipe or device.
    #[error("key file {0} is not a regular file; name the file that holds the key")]
    NotAFile(PathBuf),
    /// Somebody else owns it and could replace it.
    #[error("key file {path} belongs to user {got}, this process runs as user {want}; run `chown {want} {path}`")]
    ForeignOwner {
        /// File.
        path: PathBuf,
        /// Its owner.
        got: u32,
        /// Our user.
        want: u32,
    },
    /// Group or others have some permission.
    #[error(
        "key file {path} has mode {mode:04o}, so others may have read it; run `chmod 600 {path}`, and make a new key if the machine is shared"
    )]
    Permissions {
        /// File.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Longer than any key file.
    #[error("key file {path} has {got} bytes, at most {KEY_FILE_BYTES_MAX} allowed; name the file that holds the key")]
    TooLong {
        /// File.
        path: PathBuf,
        /// Its length.
        got: u64,
    },
    /// Protected by a passphrase.
    #[error("key file {0} is encrypted; decrypt it with `openssl pkcs8 -in FILE -out NEW` into a file of mode 0600")]
    Encrypted(PathBuf),
    /// Not PEM, or another kind of PEM block.
    #[error("key file {path} {why}; it must hold one PEM block PRIVATE KEY (PKCS#8)")]
    Malformed {
        /// File.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// More than one PEM block.
    #[error(
        "key file {path} holds {got} PEM blocks; keep the one PRIVATE KEY and put the rest into files of their own"
    )]
    SeveralBlocks {
        /// File.
        path: PathBuf,
        /// Blocks found.
        got: usize,
    },
    /// Text before or after the block.
    #[error("key file {0} has text outside of its PEM block; remove it")]
    OutsideText(PathBuf),
    /// PKCS#8 version 2.
    #[error(
        "key file {0} is PKCS#8 version 2, which OpenSSL 3.0 cannot read; write it again as version 1 (without the public key)"
    )]
    Version2(PathBuf),
    /// RSA, ECDSA or something else.
    #[error(
        "key file {path} holds a key of algorithm {oid}, only Ed25519 ({ED25519_OID}) is used; make a new key with `fleet`"
    )]
    OtherAlgorithm {
        /// File.
        path: PathBuf,
        /// Object identifier found.
        oid: String,
    },
    /// There is a file already; keys are never overwritten.
    #[error("{0} exists already, and a key is never overwritten; choose another path, or move the old key away")]
    Exists(PathBuf),
    /// Of the file system.
    #[error("cannot {action} key file {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// File.
        path: PathBuf,
        /// Error of the system.
        source: io::Error,
    },
}

/// The content of a key file. What the key is for follows from which method is called.
pub struct KeyFile(Zeroizing<[u8; 32]>);

impl fmt::Debug for KeyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private key of {}", to_hex(&self.public()[..6]))
    }
}

impl KeyFile {
    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyFileError`]: the process must not start.
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let pem = read_private(path)?;
        parse_pem(path, &pem)
    }

    /// Creates a key file with a new key from the system's entropy.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`], [`KeyFileError::Io`].
    pub fn create(path: &Path) -> Result<Self, KeyFileError> {
        let mut seed = Zeroizing::new([0; 32]);
        rand::rngs::SysRng
            .try_fill_bytes(&mut *seed)
            .map_err(|error| KeyFileError::Io {
                action: "draw entropy for",
                path: path.to_owned(),
                source: io::Error::other(error),
            })?;
        let key = Self(seed);
        key.write_new(path)?;
        Ok(key)
    }

    /// A key from the 32-byte seed of RFC 8032. For tests and for keys that exist elsewhere.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Zeroizing::new(*seed))
    }

    /// Writes the key to a new file of mode 0600: complete and durable, or not at all.
    ///
    /// # Errors
    /// [`KeyFileError::Exists`], [`KeyFileError::Io`].
    pub fn write_new(&self, path: &Path) -> Result<(), KeyFileError> {
        let error = |action| {
            move |source| KeyFileError::Io {
                action,
                path: path.to_owned(),
                source,
            }
        };
        let name = path
            .file_name()
            .ok_or_else(|| KeyFileError::NotAFile(path.to_owned()))?;
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let mut temporary_name = std::ffi::OsString::from(".new-");
        temporary_name.push(name);
        temporary_name.push(format!("-{}", std::process::id()));
        let temporary = directory.join(temporary_name);
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(error("create"))?;
        let pem = self.to_pem();
        let outcome = file
            .write_all(pem.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(error("write"))
            // A link fails where a rename would overwrite.
            .and_then(|()| {
                fs::hard_link(&temporary, path).map_err(|source| match source.kind() {
                    io::ErrorKind::AlreadyExists => KeyFileError::Exists(path.to_owned()),
                    _ => error("create")(source),
                })
            });
        let removed = fs::remove_file(&temporary).map_err(error("create"));
        outcome?;
        removed?;
        fs::File::open(&directory)
            .and_then(|dir| dir.sync_all())
            .map_err(error("make durable"))
    }

    /// The public key.
    #[must_use]
    pub fn public(&self) -> [u8; 32] {
        self.device_key().public()
    }

    /// As a device's key.
    #[must_use]
    pub fn device_key(&self) -> DeviceKey {
        DeviceKey::from_seed(&self.0)
    }

    /// As a validator's consensus key.
    #[must_use]
    pub fn consensus_key(&self) -> ConsensusKey {
        ConsensusKey::from_seed(&self.0)
    }

    /// The text of the file.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.keypair()
            .to_pkcs8_pem(LineEnding::LF)
            .expect("a 32-byte seed has a PKCS#8 encoding")
    }

    pub(crate) fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let document = self
            .keypair()
            .to_pkcs8_der()
            .expect("a 32-byte seed has a PKCS#8 encoding");
        Zeroizing::new(document.as_bytes().to_vec())
    }

    pub(crate) fn seed(&self) -> &[u8; 32] {
        &self.0
    }

    fn keypair(&self) -> KeypairBytes {
        KeypairBytes {
            secret_key: *self.0,
            public_key: None,
        }
    }
}

/// Reads a file that only its owner can read.
fn read_private(path: &Path) -> Result<Zeroizing<String>, KeyFileError> {
    let owned = || path.to_owned();
    let no_follow = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(no_follow.bits().cast_signed())
        .open(path)
        .map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                KeyFileError::Missing(owned())
            } else if source.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) {
                KeyFileError::Symlink(owned())
            } else {
                KeyFileError::Io {
                    action: "open",
                    path: owned(),
                    source,
                }
            }
        })?;
    let io_error = |source| KeyFileError::Io {
        action: "read",
        path: owned(),
        source,
    };
    let metadata = file.metadata().map_err(io_error)?;
    if !metadata.is_file() {
        return Err(KeyFileError::NotAFile(owned()));
    }
    let user = rustix::process::geteuid().as_raw();
    if metadata.uid() != user {
        return Err(KeyFileError::ForeignOwner {
            path: owned(),
            got: metadata.uid(),
            want: user,
        });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyFileError::Permissions {
            path: owned(),
            mode: metadata.mode() & 0o7777,
        });
    }
    if metadata.len() > KEY_FILE_BYTES_MAX {
        return Err(KeyFileError::TooLong {
            path: owned(),
            got: metadata.len(),
        });
    }
    // Room for the whole file at once: no piece of a secret is left behind by growing.
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize + 1));
    file.take(KEY_FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| match source.kind() {
            io::ErrorKind::InvalidData => KeyFileError::Malformed {
                path: owned(),
                why: "is not text".into(),
            },
            _ => io_error(source),
        })?;
    Ok(text)
}

fn parse_pem(path: &Path, text: &str) -> Result<KeyFile, KeyFileError> {
    let malformed = |why: &str| KeyFileError::Malformed {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let blocks = text.matches("-----BEGIN ").count();
    if blocks > 1 {
        return Err(KeyFileError::SeveralBlocks {
            path: path.to_owned(),
            got: blocks,
        });
    }
    let (before, rest) = text.split_once("-----BEGIN ").ok_or_else(|| malformed("is not PEM"))?;
    let (label, _) = rest.split_once("-----").ok_or_else(|| malformed("is not PEM"))?;
    match label {
        "PRIVATE KEY" => {}
        "ENCRYPTED PRIVATE KEY" => return Err(KeyFileError::Encrypted(path.to_owned())),
        other => {
            let shown: String = other.chars().filter(|c| !c.is_control()).take(40).collect();
            return Err(malformed(&format!("holds a PEM block {shown}")));
        }
    }
    let (_, after) = rest
        .split_once("-----END PRIVATE KEY-----")
        .ok_or_else(|| malformed("is truncated"))?;
    if !before.is_empty() || !after.trim_matches(['\r', '\n']).is_empty() {
        return Err(KeyFileError::OutsideText(path.to_owned()));
    }
    let (_, document) = SecretDocument::from_pem(text.trim_end_matches(['\r', '\n']))
        .map_err(|_| malformed("holds a damaged PEM block"))?;
    parse_der(path, document.as_bytes())
}

fn parse_der(path: &Path, der: &[u8]) -> Result<KeyFile, KeyFileError> {
    let malformed = |why: &str| KeyFileError::Malformed {
        path: path.to_owned(),
        why: why.to_owned(),
    };
    let info = PrivateKeyInfoRef::try_from(der).map_err(|_| malformed("holds no PKCS#8 structure"))?;
    let oid = info.algorithm.oid.to_string();
    if oid != ED25519_OID {
        return Err(KeyFileError::OtherAlgorithm {
            path: path.to_owned(),
            oid,
        });
    }
    if info.public_key.is_some() {
        return Err(KeyFileError::Version2(path.to_owned()));
    }
    let seed = der
        .strip_prefix(&PKCS8_V1_PREFIX)
        .and_then(|seed| <&[u8; 32]>::try_from(seed).ok())
        .ok_or_else(|| malformed("holds a PKCS#8 structure of unusual form"))?;
    Ok(KeyFile::from_seed(seed))
}
