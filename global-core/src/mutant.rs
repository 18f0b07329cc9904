//! Deliberate faults of the core, for tests that show that the checkers see them.
//!
//! Outside of this crate's own tests there is one value, a mutant without a fault, and every
//! question about it is answered with a constant `false`: by [`common::bug::active`] for those faults that the
//! simulator seeds in whole fleets as well.

#[cfg(test)]
pub(crate) use with_faults::{Fault, Mutant};
#[cfg(not(test))]
pub(crate) use without_faults::Mutant;

/// True if the mutant has this fault: never, outside of tests.
macro_rules! has_fault {
    ($mutant:expr, $fault:ident) => {{
        #[cfg(test)]
        {
            $mutant.0 == Some($crate::mutant::Fault::$fault)
        }
        #[cfg(not(test))]
        {
            let _ = &$mutant;
            $crate::mutant::is_seeded!($fault)
        }
    }};
}
pub(crate) use has_fault;

/// Whether the simulator has seeded this fault.
#[cfg(not(test))]
macro_rules! is_seeded {
    (FinalizeAfterNullify) => {
        common::bug::active(common::bug::Bug::FinalizeAfterNullify)
    };
    (NullifyAfterFinalize) => {
        common::bug::active(common::bug::Bug::NullifyAfterFinalize)
    };
    (NoFetch) => {
        common::bug::active(common::bug::Bug::NoFetch)
    };
    (NoResend) => {
        common::bug::active(common::bug::Bug::NoResend)
    };
    (BatchesUnchecked) => {
        common::bug::active(common::bug::Bug::BatchesUnchecked)
    };
    (RootsUnchecked) => {
        common::bug::active(common::bug::Bug::WrongRoots)
    };
    ($other:ident) => {
        false
    };
}
#[cfg(not(test))]
pub(crate) use is_seeded;

#[cfg(not(test))]
mod without_faults {
    /// A core without a fault.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Mutant;

    impl Mutant {
        /// The only value.
        pub const NONE: Self = Self;
    }
}

#[cfg(test)]
mod with_faults {
    /// One rule that is not kept.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    pub enum Fault {
        /// Notarizes every proposal of a view.
        DoubleNotarize,
        /// Votes without the parent's notarization.
        ParentUnchecked,
        /// Votes without the nullifications between parent and proposal.
        NullificationsUnchecked,
        /// Finalizes a view that it nullified.
        FinalizeAfterNullify,
        /// Nullifies a view that it finalized.
        NullifyAfterFinalize,
        /// Half of the weight is enough.
        QuorumOfHalf,
        /// Own votes are forgotten in a restart.
        VotesNotPersisted,
        /// Starts again at the view of its own votes, below its certificates.
        RestartAtOldView,
        /// Certificates are forgotten in a restart.
        CertificatesNotPersisted,
        /// Proposes nothing at the depth cap.
        SilentAtDepthCap,
        /// Votes for a block whose batches it does not hold.
        BatchesUnchecked,
        /// Takes any root in a proposal.
        RootsUnchecked,
        /// Never asks for a missing block.
        NoFetch,
        /// Never sends anything twice.
        NoResend,
    }

    /// A core with at most one fault.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
    pub struct Mutant(pub Option<Fault>);

    impl Mutant {
        /// Keeps every rule.
        pub const NONE: Self = Self(None);
    }
}
