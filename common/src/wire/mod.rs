//! What crosses a process: frames, and the messages of each protocol in a file of its own.

pub mod bft;
pub mod cluster;
pub mod feed;
pub mod frame;
pub mod op;
