//! Where results and remarks go.
//!
//! # Rules
//! * Whoever reads may have read enough, as `head` has: the rest is left out quietly, and the exit code is what it would be.
//! * A result that is lost for another reason is a failure.

use std::io::{self, ErrorKind, Write};

/// Prints a result, with the end of its last line. False if it is lost, which is said on stderr.
pub(super) fn say(text: &str) -> bool {
    let mut stdout = io::stdout().lock();
    let printed = writeln!(stdout, "{}", text.trim_end_matches('\n')).and_then(|()| stdout.flush());
    match printed {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            note(&format!("the result cannot be printed: {error}"));
            false
        }
        _ => true,
    }
}

/// Remarks on stderr. Nobody could be told that it does not arrive.
pub(super) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "sim: {text}");
}
