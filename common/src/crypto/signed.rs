//! The type that says "this was verified", which only verifiers can make.

use core::ops::Deref;

/// A signature is missing, malformed, or not by the key it should be by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the signature does not verify under the key it claims")]
pub struct BadSignature;

/// A value whose signatures and static rules were checked. The pure cores accept nothing less.
///
/// Made only inside `common`, by the `verify` method of each signed type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    /// Takes the value out.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.0
    }

    /// The same proof over a reference.
    #[must_use]
    pub fn as_ref(&self) -> Verified<&T> {
        Verified(&self.0)
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
