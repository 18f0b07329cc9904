//! Four validators in one process, in virtual time.

mod chain;
mod hostile;
mod log_lines;
mod support;
mod withheld;
