//! What the operator of a validator says in `validator.toml`.
//! In: the file. Out: [`ValidConfig`], or every problem at once. Called by: `main`.
//!
//! # Rules
//! * Unknown keys are errors. Identity, keys and addresses have no default.
//! * Durations carry their unit. Relative paths count from the directory of the file.
//! * Every problem is listed, with key and value, not only the first.

mod units;

use std::{
    collections::BTreeSet,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use common::codec::Label;
use serde::Deserialize;

pub use units::{WithUnit, parse_duration};

/// Longest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;
/// Shortest listening before the first vote: below it nothing is heard even on loopback.
const CLONE_WATCH_MIN: Duration = Duration::from_millis(100);
/// Longest listening before the first vote.
const CLONE_WATCH_MAX: Duration = Duration::from_secs(600);
/// Listening before the first vote unless the file says otherwise.
const CLONE_WATCH_DEFAULT: Duration = Duration::from_secs(10);

/// `validator.toml` as it is written.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The fleet's genesis file.
    pub genesis: PathBuf,
    /// Name of this validator in the genesis file.
    pub label: String,
    /// Device key: PEM, PKCS#8, mode 0600.
    pub key: PathBuf,
    /// Certificate of that key: PEM.
    pub certificate: PathBuf,
    /// Consensus key: PEM, PKCS#8, mode 0600.
    pub consensus_key: PathBuf,
    /// Where everything durable goes; one process holds it.
    pub data_dir: PathBuf,
    /// UDP address to listen on.
    pub listen: String,
    /// Other validators.
    #[serde(default)]
    pub peer: Vec<PeerConfig>,
    /// How long to listen after a start before the first vote.
    pub clone_watch: Option<WithUnit>,
    /// Logging.
    #[serde(default)]
    pub log: LogConfig,
}

/// Where a peer listens.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerConfig {
    /// Name in the genesis file.
    pub label: String,
    /// UDP address.
    pub address: String,
}

/// `[log]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogConfig {
    /// For people or for machines.
    #[serde(default)]
    pub format: LogFormat,
}

/// Form of a log line on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A configuration without problems; paths are absolute or relative to the working directory.
#[derive(Clone, Debug)]
pub struct ValidConfig {
    /// The fleet's genesis file.
    pub genesis: PathBuf,
    /// Name of this validator.
    pub label: Label,
    /// Device key.
    pub key: PathBuf,
    /// Certificate of that key.
    pub certificate: PathBuf,
    /// Consensus key.
    pub consensus_key: PathBuf,
    /// Where everything durable goes.
    pub data_dir: PathBuf,
    /// Where to listen.
    pub listen: SocketAddr,
    /// Where other validators listen, by label.
    pub peers: Vec<(Label, SocketAddr)>,
    /// How long to listen before the first vote.
    pub clone_watch: Duration,
    /// Form of the log.
    pub log_format: LogFormat,
}

/// Why a configuration is not used. The operator corrects the file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Larger than any configuration.
    #[error("{path}: {got} bytes, at most {FILE_BYTES_MAX} allowed")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        got: u64,
    },
    /// Not TOML, an unknown key, a key of another type; with line and column.
    #[error("{path}: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// From the parser, with line and column.
        message: String,
    },
    /// Values that are wrong or do not fit together.
    #[error("{path}:{problems}")]
    Problems {
        /// The file.
        path: PathBuf,
        /// Each with key and value.
        problems: Problems,
    },
}

/// All problems of one file, one per line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`]: exit code 6.
    pub fn load(path: &Path) -> Result<ValidConfig, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable {
            path: path.to_owned(),
            source,
        };
        let got = std::fs::metadata(path).map_err(unreadable)?.len();
        if got > FILE_BYTES_MAX {
            return Err(ConfigError::TooLarge {
                path: path.to_owned(),
                got,
            });
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, path)
    }

    /// Checks the content `text` of the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<ValidConfig, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            message: error.to_string().trim_end().to_owned(),
        })?;
        let base = path.parent().unwrap_or(Path::new(""));
        config.validate(base).map_err(|problems| ConfigError::Problems {
            path: path.to_owned(),
            problems,
        })
    }

    /// Checks all values; paths count from `base`.
    ///
    /// # Errors
    /// Every problem.
    pub fn validate(self, base: &Path) -> Result<ValidConfig, Problems> {
        let mut problems = Vec::new();
        let label = checked_label("label", &self.label, &mut problems);
        let listen = checked_address("listen", &self.listen, &mut problems);
        let peers = self.checked_peers(&mut problems);
        let clone_watch = self.clone_watch.map_or(CLONE_WATCH_DEFAULT, |value| value.0);
        if !(CLONE_WATCH_MIN..=CLONE_WATCH_MAX).contains(&clone_watch) {
            problems.push(format!(
                "clone_watch {clone_watch:?} must be from {CLONE_WATCH_MIN:?} to {CLONE_WATCH_MAX:?}"
            ));
        }
        if self.key == self.consensus_key {
            problems.push(format!(
                "consensus_key {:?} must be another file than key {:?}",
                self.consensus_key, self.key
            ));
        }
        let (Some(label), Some(listen), true) = (label, listen, problems.is_empty()) else {
            return Err(Problems(problems));
        };
        Ok(ValidConfig {
            genesis: base.join(self.genesis),
            label,
            key: base.join(self.key),
            certificate: base.join(self.certificate),
            consensus_key: base.join(self.consensus_key),
            data_dir: base.join(self.data_dir),
            listen,
            peers,
            clone_watch,
            log_format: self.log.format,
        })
    }

    fn checked_peers(&self, problems: &mut Vec<String>) -> Vec<(Label, SocketAddr)> {
        let (mut peers, mut seen) = (Vec::new(), BTreeSet::new());
        for peer in &self.peer {
            let label = checked_label("peer.label", &peer.label, problems);
            let address = checked_address("peer.address", &peer.address, problems);
            if peer.label == self.label {
                problems.push(format!("peer.label {:?} is this validator's own label", peer.label));
            }
            if !seen.insert(&peer.label) {
                problems.push(format!("peer.label {:?} appears twice", peer.label));
            }
            if let (Some(label), Some(address)) = (label, address) {
                peers.push((label, address));
            }
        }
        peers
    }
}

fn checked_label(key: &str, text: &str, problems: &mut Vec<String>) -> Option<Label> {
    match Label::new(text) {
        Ok(label) if !text.is_empty() => Some(label),
        Ok(_) => {
            problems.push(format!("{key} is empty"));
            None
        }
        Err(error) => {
            problems.push(format!("{key} {text:?}: {error}"));
            None
        }
    }
}

fn checked_address(key: &str, text: &str, problems: &mut Vec<String>) -> Option<SocketAddr> {
    let address = text.parse().ok();
    if address.is_none() {
        problems.push(format!(
            "{key} {text:?} is not an IP address and a port, such as \"127.0.0.1:41001\""
        ));
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
genesis = "genesis.bin"
label = "v1"
key = "v1/device.key"
certificate = "v1/device.crt"
consensus_key = "v1/consensus.key"
data_dir = "/var/lib/muster/v1"
listen = "127.0.0.1:41001"
clone_watch = "1s"

[[peer]]
label = "v2"
address = "127.0.0.1:41002"

[log]
format = "json"
"#;

    fn parse(text: &str) -> Result<ValidConfig, ConfigError> {
        Config::parse(text, Path::new("/etc/muster/validator.toml"))
    }

    fn problem(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    #[test]
    fn example_that_operators_copy_is_taken() {
        let config = parse(include_str!("../../../configs/validator.toml")).unwrap();
        assert_eq!(config.clone_watch, CLONE_WATCH_DEFAULT);
        assert_eq!(config.peers.len(), 3);
    }

    #[test]
    fn good_file_is_taken_and_relative_paths_count_from_it() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.genesis, Path::new("/etc/muster/genesis.bin"));
        assert_eq!(config.data_dir, Path::new("/var/lib/muster/v1"));
        assert_eq!(config.clone_watch, Duration::from_secs(1));
        assert_eq!(config.log_format, LogFormat::Json);
        assert_eq!(config.peers.len(), 1);
    }

    #[test]
    fn unknown_key_is_refused_with_its_line() {
        let message = problem(&GOOD.replace("clone_watch", "clone_wacth"));
        assert!(
            message.contains("clone_wacth") && message.contains("line 9"),
            "{message}"
        );
        assert!(problem(&GOOD.replace("format =", "formats =")).contains("formats"));
    }

    #[test]
    fn duplicate_key_is_refused() {
        assert!(problem(&format!("label = \"v9\"\n{GOOD}")).contains("duplicate"));
    }

    #[test]
    fn wrong_unit_is_refused_with_the_value() {
        let message = problem(&GOOD.replace("\"1s\"", "\"1sec\""));
        assert!(message.contains("1sec") && message.contains("250ms"), "{message}");
        assert!(problem(&GOOD.replace("\"1s\"", "1")).contains("string"));
    }

    #[test]
    fn missing_identity_has_no_default() {
        for key in [
            "genesis",
            "label",
            "key",
            "certificate",
            "consensus_key",
            "data_dir",
            "listen",
        ] {
            let without: String = GOOD
                .lines()
                .filter(|line| !line.starts_with(&format!("{key} =")) || line.contains("v2"))
                .map(|line| format!("{line}\n"))
                .collect();
            let message = problem(&without);
            assert!(message.contains(&format!("missing field `{key}`")), "{key}: {message}");
        }
    }

    #[test]
    fn all_problems_are_listed_at_once_with_key_and_value() {
        let bad = GOOD
            .replace("127.0.0.1:41001", "localhost")
            .replace("\"1s\"", "\"1ms\"")
            .replace("label = \"v2\"", "label = \"v1\"")
            .replace("v1/consensus.key", "v1/device.key");
        let message = problem(&bad);
        for part in [
            "listen \"localhost\"",
            "clone_watch 1ms",
            "peer.label \"v1\" is this validator's own",
            "consensus_key",
        ] {
            assert!(message.contains(part), "{part} is missing in {message}");
        }
    }
}
