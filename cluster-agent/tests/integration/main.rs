//! What agents promise to those outside of them, in one executable: it is built once.

mod in_process;
mod processes;
