//! The door of a drone's own software: a Unix stream socket beside the agent's data, JSON lines.
//!
//! One request per line, one answer line each, in order. The agent signs what comes in here, so whoever
//! may open the socket (mode 0600) acts as the drone. `docs/operating/local-socket.md` is the same
//! contract for people who write on-board software.
//!
//! * [`spec`]: a task as JSON, shared by this socket and by files of tasks.
//! * [`message`]: requests and answers.
//! * [`client`], [`server`]: the two ends.
//!
//! # Rules
//! * A line has at most [`LINE_BYTES_MAX`] bytes; a longer one ends the connection.
//! * An unknown verb or field is refused by name; nothing is guessed.
//! * A connection has one request in hand; at most [`server::CONNECTIONS_MAX`] connections are open.

pub mod base64;
pub mod client;
pub mod fixed;
pub mod message;
pub mod server;
pub mod spec;

pub use client::{LocalCallError, LocalClient};
pub use message::{Answer, ErrorCode, FenceJson, LocalError, Reply, Request, TaskRow};
pub use spec::{Names, SpecError, TaskSpec};

/// Longest line in either direction, its newline included.
pub const LINE_BYTES_MAX: usize = 1024 * 1024;

/// Name of the socket in an agent's data directory.
pub const SOCKET_NAME: &str = "local.sock";
