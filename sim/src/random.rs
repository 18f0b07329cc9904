//! Random numbers from a seed: SplitMix64 (Steele, Lea & Flood 2014), small and splittable.

use std::time::Duration;

/// A stream of numbers that its seed determines.
#[derive(Clone, Debug)]
pub struct Stream(u64);

impl Stream {
    /// The stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A stream of its own for `purpose`, independent of how much is drawn from others.
    #[must_use]
    pub fn split(seed: u64, purpose: u64) -> Self {
        Self(mix(seed ^ mix(purpose)))
    }

    /// Where it stands: [`Stream::new`] of this goes on in the same way.
    #[must_use]
    pub fn state(&self) -> u64 {
        self.0
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number from `low` to `high`, both included.
    ///
    /// # Panics
    /// If `low > high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "{low} is above {high}");
        low + self.next_u64() % (high - low + 1)
    }

    /// A time around `usual`: from half of it to half as much again.
    pub fn around(&mut self, usual: Duration) -> Duration {
        let usual_us = u64::try_from(usual.as_micros()).map_or(u64::MAX / 3, |us| us.min(u64::MAX / 3));
        Duration::from_micros(self.between(usual_us / 2, usual_us * 3 / 2))
    }

    /// True in `parts` of a million cases.
    pub fn happens_ppm(&mut self, parts: u64) -> bool {
        self.next_u64() % 1_000_000 < parts
    }
}

fn mix(x: u64) -> u64 {
    let z = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_of_one_seed_are_equal_and_of_two_purposes_differ() {
        let draw = |mut s: Stream| (0..8).map(|_| s.next_u64()).collect::<Vec<_>>();
        assert_eq!(draw(Stream::split(7, 1)), draw(Stream::split(7, 1)));
        assert_ne!(draw(Stream::split(7, 1)), draw(Stream::split(7, 2)));
        assert_ne!(draw(Stream::split(7, 1)), draw(Stream::split(8, 1)));
    }

    #[test]
    fn both_ends_of_a_range_are_drawn() {
        let mut stream = Stream::new(1);
        let drawn: std::collections::BTreeSet<u64> = (0..200).map(|_| stream.between(3, 6)).collect();
        assert_eq!(drawn.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
    }
}
