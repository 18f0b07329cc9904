//! The fleet simulator's command line.
#![forbid(unsafe_code)]

fn main() {}
