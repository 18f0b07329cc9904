//! A bound on log lines that strangers can cause: a flood of refused handshakes must not fill the disk.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

const LINES_PER_SECOND: u32 = 20;

/// Lets [`LINES_PER_SECOND`] lines through in each second and counts the others.
#[derive(Debug)]
pub(crate) struct LogLimit(Mutex<Window>);

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Window {
            since: Instant::now(),
            lines: 0,
            suppressed: 0,
        }))
    }

    /// `None`: write nothing. Otherwise the number of lines that were not written before this one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if now.duration_since(window.since) >= Duration::from_secs(1) {
            (window.since, window.lines) = (now, 0);
        }
        if window.lines == LINES_PER_SECOND {
            window.suppressed += 1;
            return None;
        }
        window.lines += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flood_of_lines_is_cut_and_counted() {
        let (limit, now) = (LogLimit::new(), Instant::now());
        let admitted = (0..1_000).filter(|_| limit.admit(now).is_some()).count();
        assert_eq!(admitted, 20);
        let later = now + Duration::from_secs(2);
        assert_eq!(limit.admit(later), Some(980));
        assert_eq!(limit.admit(later), Some(0));
    }
}
