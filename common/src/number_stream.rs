//! Numbers of author-signed entries: what makes a retry harmless and a replay impossible.
//!
//! One stream per (author, key version, cluster). Both tiers keep the same structure and feed it the
//! same entries in the same order.
//!
//! # Rules
//! * Every statically good entry uses up its number, whatever else is decided about it.
//! * Same number, same content: the same answer. Other content: a conflict; nothing changes.
//! * A number above the highest moves the window, however far (below 2^63).
//! * What falls below the window is refused.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    bug::{self, Bug},
    ids::{Digest, EntryNumber},
    limits::NUMBER_WINDOW,
    verdict::Answer,
};

/// Largest number a stream accepts.
pub const NUMBER_MAX: EntryNumber = EntryNumber((1 << 63) - 1);

/// The first 8 bytes of an entry's digest: enough to tell a retry from other content of one author.
pub type ContentTag = u64;

/// The tag of an entry's content.
#[must_use]
pub fn content_tag(digest: &Digest) -> ContentTag {
    ContentTag::from_be_bytes(digest.0[..8].try_into().expect("a digest has 32 bytes"))
}

/// What a stream says about a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// Not seen: the entry may be decided and recorded.
    Fresh,
    /// Seen with the same content.
    Repeated(Answer),
    /// Seen with other content.
    Conflict,
    /// Below the window, or above [`NUMBER_MAX`].
    OutsideWindow,
}

/// The highest number and the answers of the window below it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NumberStream {
    highest: EntryNumber,
    /// Ascending by number; at most [`NUMBER_WINDOW`]. Grows at one end and shrinks at the other.
    recent: VecDeque<(EntryNumber, ContentTag, Answer)>,
}

impl NumberStream {
    /// The highest number used, 0 if none.
    #[must_use]
    pub fn highest(&self) -> EntryNumber {
        self.highest
    }

    /// How many answers are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.recent.len()
    }

    /// Looks a number up.
    #[must_use]
    pub fn lookup(&self, number: EntryNumber, content: ContentTag) -> Lookup {
        if number > NUMBER_MAX {
            return Lookup::OutsideWindow;
        }
        // The common case, before any search: numbers ascend.
        if number > self.highest {
            return Lookup::Fresh;
        }
        match self.recent.binary_search_by_key(&number, |row| row.0) {
            Ok(_) if bug::active(Bug::DedupOff) => Lookup::Fresh,
            Ok(at) if self.recent[at].1 == content => Lookup::Repeated(self.recent[at].2),
            Ok(_) => Lookup::Conflict,
            Err(_) if self.is_below_window(number) => Lookup::OutsideWindow,
            Err(_) => Lookup::Fresh,
        }
    }

    /// Uses a number up.
    ///
    /// # Panics
    /// If the number is not [`Lookup::Fresh`]: the caller looks it up first.
    pub fn record(&mut self, number: EntryNumber, content: ContentTag, answer: Answer) {
        assert_eq!(
            self.lookup(number, content),
            Lookup::Fresh,
            "number {number} is used up twice"
        );
        if number > self.highest {
            self.recent.push_back((number, content, answer));
            self.highest = number;
        } else {
            let at = self.recent.partition_point(|row| row.0 < number);
            self.recent.insert(at, (number, content, answer));
        }
        while self.recent.front().is_some_and(|row| self.is_below_window(row.0)) {
            self.recent.pop_front();
        }
        if bug::active(Bug::WindowEdgeEarly) && self.recent.len() > 4 {
            self.recent.pop_front();
        }
    }

    /// The same stream without its answers.
    #[cfg(feature = "seeded-bugs")]
    #[must_use]
    pub fn without_answers(&self) -> Self {
        Self {
            highest: self.highest,
            recent: VecDeque::new(),
        }
    }

    fn is_below_window(&self, number: EntryNumber) -> bool {
        self.highest.0 >= NUMBER_WINDOW && number.0 <= self.highest.0 - NUMBER_WINDOW
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ids::LogIndex, verdict::Verdict};

    fn answer(index: u64) -> Answer {
        Answer {
            index: LogIndex(index),
            verdict: Verdict::Granted,
        }
    }

    #[test]
    fn retry_gets_the_same_answer_and_other_content_a_conflict() {
        let mut stream = NumberStream::default();
        stream.record(EntryNumber(5), 77, answer(9));
        assert_eq!(stream.lookup(EntryNumber(5), 77), Lookup::Repeated(answer(9)));
        assert_eq!(stream.lookup(EntryNumber(5), 78), Lookup::Conflict);
        assert_eq!(stream.lookup(EntryNumber(4), 1), Lookup::Fresh);
    }

    #[test]
    fn window_moves_with_the_highest_number_and_stays_bounded() {
        let mut stream = NumberStream::default();
        for n in 1..=3 * NUMBER_WINDOW {
            stream.record(EntryNumber(n), n, answer(n));
            assert!(stream.recent.len() as u64 <= NUMBER_WINDOW);
        }
        assert_eq!(stream.lookup(EntryNumber(2 * NUMBER_WINDOW), 0), Lookup::OutsideWindow);
        assert_eq!(stream.lookup(EntryNumber(2 * NUMBER_WINDOW + 1), 0), Lookup::Conflict);
        stream.record(NUMBER_MAX, 1, answer(1));
        assert_eq!(stream.recent.len(), 1);
        assert_eq!(stream.lookup(EntryNumber(NUMBER_MAX.0 + 1), 0), Lookup::OutsideWindow);
    }
}
