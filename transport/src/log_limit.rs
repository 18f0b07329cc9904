//! Bounds on log lines that others can cause: a flood of refused handshakes or messages must not fill the disk.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// So many lines in so much time.
#[derive(Clone, Copy, Debug)]
struct Rate {
    lines: u32,
    within: Duration,
}

/// Of all strangers together.
const OF_STRANGERS: Rate = Rate {
    lines: 20,
    within: Duration::from_secs(1),
};
/// Of each peer that proved who it is.
const OF_A_PEER: Rate = Rate {
    lines: 10,
    within: Duration::from_secs(10),
};

#[derive(Debug)]
struct Window {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            lines: 0,
            suppressed: 0,
        }
    }

    fn admit(&mut self, now: Instant, rate: Rate) -> Option<u64> {
        if now.duration_since(self.since) >= rate.within {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines == rate.lines {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

/// Lets the first lines of strangers through in each second and counts the others.
#[derive(Debug)]
pub(crate) struct LogLimit(Mutex<Window>);

impl LogLimit {
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Window::new(Instant::now())))
    }

    /// `None`: write nothing. Otherwise the number of lines that were not written before this one.
    pub(crate) fn admit(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        window.admit(now, OF_STRANGERS)
    }
}

/// The same for peers that proved who they are, each by itself: ten lines in ten seconds. As many are remembered as
/// there are keys, which the registry bounds.
#[derive(Debug)]
pub struct LogLimits<K>(Mutex<BTreeMap<K, Window>>);

impl<K> Default for LogLimits<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord> LogLimits<K> {
    /// Asked before a line about `peer`. `None`: write nothing. Otherwise the number of lines about it that were not
    /// written before this one.
    pub fn admit(&self, peer: K) -> Option<u64> {
        self.admit_at(Instant::now(), peer)
    }

    fn admit_at(&self, now: Instant, peer: K) -> Option<u64> {
        let mut windows = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let window = windows.entry(peer).or_insert_with(|| Window::new(now));
        window.admit(now, OF_A_PEER)
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

    #[test]
    fn each_peer_has_lines_of_its_own() {
        let (limits, now) = (LogLimits::default(), Instant::now());
        let admitted = |peer: u8| (0..100).filter(|_| limits.admit_at(now, peer).is_some()).count();
        assert_eq!((admitted(1), admitted(2), admitted(1)), (10, 10, 0));
        let later = now + OF_A_PEER.within;
        assert_eq!(limits.admit_at(later, 1), Some(190));
        assert_eq!(limits.admit_at(later, 1), Some(0));
        assert_eq!(limits.admit_at(later, 3), Some(0));
    }
}
