//! Bounds of what is kept of the past: as the program says or, on a thread that plays a fleet, a fraction of it.
//! The fraction stands behind the cargo feature `recall`, in no default; without it every bound is the program's.
//!
//! # Rules
//! * A state takes its bounds when it begins or is restored, so a thread sets its fraction before both.
//! * No bound is below 1: what is due leaves, and never before it ended.
//!
//! # Why
//! A closed task stays for hours, and among tens of thousands, so no simulated fleet would ever live to see one
//! leave. With a fraction it does within seconds; the rules are the same.
//! `docs/decisions/0041-simulated-fleets-forget-sooner.md` weighs it.

/// `bound` of the program, as it is in force on this thread.
#[must_use]
pub fn scaled(bound: u64) -> u64 {
    #[cfg(feature = "recall")]
    return (bound / thread::divisor()).max(1);
    #[cfg(not(feature = "recall"))]
    bound
}

/// The same for a count.
#[must_use]
pub fn scaled_count(bound: usize) -> usize {
    // Both are 64 bits wide wherever this is built, and a fraction is no longer than its whole.
    usize::try_from(scaled(bound as u64)).unwrap_or(bound)
}

#[cfg(feature = "recall")]
pub use thread::Shortened;

#[cfg(feature = "recall")]
mod thread {
    use std::{cell::Cell, marker::PhantomData, num::NonZeroU64};

    const WHOLE: NonZeroU64 = NonZeroU64::MIN;

    std::thread_local! {
        static DIVISOR: Cell<NonZeroU64> = const { Cell::new(WHOLE) };
    }

    pub(super) fn divisor() -> NonZeroU64 {
        DIVISOR.get()
    }

    /// While it lives, states that begin on this thread keep a fraction. Not to be sent to another thread.
    #[derive(Debug)]
    pub struct Shortened(PhantomData<*const ()>);

    impl Shortened {
        /// From now on `divisor` times less is kept.
        #[must_use]
        pub fn by(divisor: NonZeroU64) -> Self {
            DIVISOR.set(divisor);
            Self(PhantomData)
        }
    }

    impl Drop for Shortened {
        fn drop(&mut self) {
            DIVISOR.set(WHOLE);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::{super::*, *};

        #[test]
        fn bounds_are_the_programs_before_and_after_and_never_below_one() {
            assert_eq!(scaled(262_144), 262_144);
            let shortened = Shortened::by(NonZeroU64::new(1_024).unwrap());
            assert_eq!((scaled(262_144), scaled_count(65_536), scaled(7)), (256, 64, 1));
            drop(shortened);
            assert_eq!((scaled(262_144), scaled_count(65_536)), (262_144, 65_536));
        }
    }
}
