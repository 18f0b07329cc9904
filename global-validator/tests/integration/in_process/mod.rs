//! Four validators in one process, in virtual time.

mod chain;
mod hostile;
mod support;
mod withheld;
