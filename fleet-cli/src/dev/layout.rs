//! Where everything of a dev fleet lies.

use std::path::{Path, PathBuf};

/// Longest path of a Unix socket (`sun_path` of Linux, with its zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The name of the relay among the processes.
pub const RELAY: &str = "relay";

/// The directory of a dev fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Absolute.
    pub dir: PathBuf,
}

impl Layout {
    /// The fleet in `dir` (made absolute).
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self {
            dir: std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned()),
        }
    }

    /// The genesis file.
    #[must_use]
    pub fn genesis(&self) -> PathBuf {
        self.dir.join("genesis.bin")
    }

    /// The operator's context file.
    #[must_use]
    pub fn context(&self) -> PathBuf {
        self.dir.join("fleet.toml")
    }

    /// Written last: the fleet is complete.
    #[must_use]
    pub fn plan(&self) -> PathBuf {
        self.dir.join("plan.json")
    }

    /// Process ids.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }

    /// Held by a command that changes processes.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    /// The authority's key and certificate.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.dir.join("ca")
    }

    /// Key, certificate, numbers of the operator.
    #[must_use]
    pub fn operator(&self) -> PathBuf {
        self.dir.join("operator")
    }

    /// Files of one process.
    #[must_use]
    pub fn process(&self, name: &str) -> PathBuf {
        if name == RELAY {
            return self.dir.join(RELAY);
        }
        let kind = if is_validator(name) { "validators" } else { "agents" };
        self.dir.join(kind).join(name)
    }

    /// Its configuration; the relay's is the plan.
    #[must_use]
    pub fn config(&self, name: &str) -> PathBuf {
        if name == RELAY {
            return self.plan();
        }
        let file = if is_validator(name) {
            "validator.toml"
        } else {
            "agent.toml"
        };
        self.process(name).join(file)
    }

    /// Its log.
    #[must_use]
    pub fn log(&self, name: &str) -> PathBuf {
        self.process(name).join("log.txt")
    }

    /// Its data.
    #[must_use]
    pub fn data(&self, name: &str) -> PathBuf {
        self.process(name).join("data")
    }

    /// The socket by which commands reach the relay.
    #[must_use]
    pub fn relay_socket(&self) -> PathBuf {
        self.process(RELAY).join("control.sock")
    }

    /// An agent's local socket.
    #[must_use]
    pub fn socket(&self, name: &str) -> PathBuf {
        self.data(name).join(transport::local::SOCKET_NAME)
    }
}

/// Whether a process of this name is a validator: `v1`, not `c1-1`.
#[must_use]
pub fn is_validator(name: &str) -> bool {
    name.starts_with('v')
}
