//! The one way in which a value becomes bytes and bytes become a value.
//!
//! # Rules
//! * A value has exactly one encoding: decoding re-encodes and compares, which refuses trailing
//!   bytes, overlong varints and every other second spelling that postcard accepts.
//! * A length is compared with its bound before anything is allocated.
//! * Wire types hold no maps, floats, `usize`, recursion or sequences of empty elements.

use core::{fmt, marker::PhantomData};

use postcard::ser_flavors::{Flavor, Size};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{DeserializeOwned, Error as _, SeqAccess, Visitor},
    ser::SerializeSeq,
};

/// A value that crosses a process or a disk.
pub trait Wire: Serialize + DeserializeOwned {
    /// Longest encoding, in bytes; longer input is refused unread.
    const BYTES_MAX: usize;

    /// Checks what the type alone cannot say (ranges, order, relations between fields).
    ///
    /// # Errors
    /// A phrase that says what is wrong, for the local log.
    fn validate(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Why bytes are not a value. The sender's fault: count it against the peer, change nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Longer than the type allows.
    #[error("{got} bytes, at most {max} allowed")]
    TooLong {
        /// Length received.
        got: usize,
        /// Bound of the type.
        max: usize,
    },
    /// Truncated, of another shape, or with a length above its bound.
    #[error("malformed encoding")]
    Malformed,
    /// The same value has another, shorter or different encoding.
    #[error("not the canonical encoding")]
    NotCanonical,
    /// Well-formed, yet against a rule of the type.
    #[error("invalid value: {0}")]
    Invalid(&'static str),
}

/// Encodes `value`.
///
/// # Panics
/// If the encoding is longer than `T::BYTES_MAX`: values are bounded where they are made.
#[must_use]
pub fn encode<T: Wire>(value: &T) -> Vec<u8> {
    let bytes = to_bytes(value);
    assert!(
        bytes.len() <= T::BYTES_MAX,
        "{} bytes of {} exceed its bound of {}",
        bytes.len(),
        core::any::type_name::<T>(),
        T::BYTES_MAX
    );
    bytes
}

/// Length of the encoding of `value`, for callers that build values whose parts are bounded and whose
/// sum may not be: they compare it with `T::BYTES_MAX` before they [`encode`].
#[must_use]
pub fn encoded_len<T: Wire>(value: &T) -> usize {
    len_of(value)
}

/// Decodes exactly one value from all of `bytes`.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode<T: Wire>(bytes: &[u8]) -> Result<T, DecodeError> {
    if bytes.len() > T::BYTES_MAX {
        return Err(DecodeError::TooLong {
            got: bytes.len(),
            max: T::BYTES_MAX,
        });
    }
    let (value, rest) = postcard::take_from_bytes::<T>(bytes).map_err(|_| DecodeError::Malformed)?;
    if !rest.is_empty() || !is_encoding_of(&value, bytes) {
        return Err(DecodeError::NotCanonical);
    }
    value.validate().map_err(DecodeError::Invalid)?;
    Ok(value)
}

/// Appends the encoding of one record to `bytes`: records of a file follow each other without lengths.
pub fn append<T: Serialize>(bytes: &mut Vec<u8>, record: &T) {
    bytes.extend_from_slice(&to_bytes(record));
}

/// Takes one record from the front of `bytes`, which the caller has bounded.
///
/// # Errors
/// [`DecodeError::Malformed`] or [`DecodeError::NotCanonical`].
pub fn take<T: Serialize + DeserializeOwned>(bytes: &mut &[u8]) -> Result<T, DecodeError> {
    let (record, rest) = postcard::take_from_bytes::<T>(bytes).map_err(|_| DecodeError::Malformed)?;
    if to_bytes(&record) != bytes[..bytes.len() - rest.len()] {
        return Err(DecodeError::NotCanonical);
    }
    *bytes = rest;
    Ok(record)
}

/// Encodes without the length check, for hashing parts of wire types.
pub(crate) fn to_bytes<T: Serialize>(value: &T) -> Vec<u8> {
    to_bytes_behind(&[], value)
}

/// The same behind what stands before it.
pub(crate) fn to_bytes_behind<T: Serialize>(before: &[&[u8]], value: &T) -> Vec<u8> {
    // Measured first: a second pass costs less than growing from nothing.
    let before_len: usize = before.iter().map(|part| part.len()).sum();
    let mut room = Room(Vec::with_capacity(before_len + len_of(value)));
    before.iter().for_each(|part| room.0.extend_from_slice(part));
    postcard::serialize_with_flavor(value, room).expect("wire types hold nothing that postcard cannot encode")
}

/// Takes an encoding.
struct Room(Vec<u8>);

impl Flavor for Room {
    type Output = Vec<u8>;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<Vec<u8>> {
        Ok(self.0)
    }
}

/// Length of the encoding, without the length check.
pub(crate) fn len_of<T: Serialize>(value: &T) -> usize {
    postcard::serialize_with_flavor(value, Size::default())
        .expect("wire types hold nothing that postcard cannot encode")
}

/// Whether `value` is encoded as `bytes`. Nothing is allocated for it, and the first difference ends it.
fn is_encoding_of<T: Serialize>(value: &T, bytes: &[u8]) -> bool {
    postcard::serialize_with_flavor(value, Expected { rest: bytes }) == Ok(true)
}

/// Takes an encoding that is known beforehand, and nothing else.
struct Expected<'a> {
    rest: &'a [u8],
}

impl Flavor for Expected<'_> {
    type Output = bool;

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        let (first, rest) = self.rest.split_first().ok_or(postcard::Error::SerializeBufferFull)?;
        if *first != byte {
            return Err(postcard::Error::SerializeBufferFull);
        }
        self.rest = rest;
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.rest = self
            .rest
            .strip_prefix(bytes)
            .ok_or(postcard::Error::SerializeBufferFull)?;
        Ok(())
    }

    fn finalize(self) -> postcard::Result<bool> {
        Ok(self.rest.is_empty())
    }
}

/// At most `MAX` elements; the length is checked before the elements are allocated.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BoundedVec<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> BoundedVec<T, MAX> {
    /// No elements.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes the elements out.
    #[must_use]
    pub fn into_inner(self) -> Vec<T> {
        self.0
    }
}

impl<T, const MAX: usize> Default for BoundedVec<T, MAX> {
    fn default() -> Self {
        Self::new()
    }
}

/// A sequence or text was longer than its bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{got} elements, at most {max} allowed")]
pub struct TooMany {
    /// Elements given.
    pub got: usize,
    /// Bound.
    pub max: usize,
}

impl<T, const MAX: usize> TryFrom<Vec<T>> for BoundedVec<T, MAX> {
    type Error = TooMany;

    fn try_from(elements: Vec<T>) -> Result<Self, TooMany> {
        if elements.len() > MAX {
            return Err(TooMany {
                got: elements.len(),
                max: MAX,
            });
        }
        Ok(Self(elements))
    }
}

impl<T, const MAX: usize> core::ops::Deref for BoundedVec<T, MAX> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

impl<'a, T, const MAX: usize> IntoIterator for &'a BoundedVec<T, MAX> {
    type Item = &'a T;
    type IntoIter = core::slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl<T: fmt::Debug, const MAX: usize> fmt::Debug for BoundedVec<T, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<T: Serialize, const MAX: usize> Serialize for BoundedVec<T, MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut seq = serializer.serialize_seq(Some(self.0.len()))?;
        for element in &self.0 {
            seq.serialize_element(element)?;
        }
        seq.end()
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for BoundedVec<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(PhantomData<T>);

        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = BoundedVec<T, MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} elements")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let announced = seq.size_hint().unwrap_or(0);
                if announced > MAX {
                    return Err(A::Error::invalid_length(announced, &self));
                }
                // A lying length costs at most one page: elements are pushed as they arrive.
                let mut elements = Vec::with_capacity(announced.min(64));
                while let Some(element) = seq.next_element()? {
                    if elements.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    elements.push(element);
                }
                Ok(BoundedVec(elements))
            }
        }
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// At most `MAX` bytes.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob<const MAX: usize>(Vec<u8>);

impl<const MAX: usize> Blob<MAX> {
    /// No bytes.
    #[must_use]
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// Takes the bytes out.
    #[must_use]
    pub fn into_inner(self) -> Vec<u8> {
        self.0
    }
}

impl<const MAX: usize> TryFrom<Vec<u8>> for Blob<MAX> {
    type Error = TooMany;

    fn try_from(bytes: Vec<u8>) -> Result<Self, TooMany> {
        if bytes.len() > MAX {
            return Err(TooMany {
                got: bytes.len(),
                max: MAX,
            });
        }
        Ok(Self(bytes))
    }
}

impl<const MAX: usize> core::ops::Deref for Blob<MAX> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl<const MAX: usize> fmt::Debug for Blob<MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<const MAX: usize> Serialize for Blob<MAX> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de, const MAX: usize> Deserialize<'de> for Blob<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bytes<const MAX: usize>;

        impl<const MAX: usize> Visitor<'_> for Bytes<MAX> {
            type Value = Blob<MAX>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} bytes")
            }

            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
                if bytes.len() > MAX {
                    return Err(E::invalid_length(bytes.len(), &self));
                }
                Ok(Blob(bytes.to_vec()))
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

/// UTF-8 of at most [`LABEL_BYTES_MAX`](crate::limits::LABEL_BYTES_MAX) bytes without control
/// characters, so that it can be shown on a terminal.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Label(String);

/// Why a text is no [`Label`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// Longer than the bound.
    #[error("{0}")]
    TooLong(#[from] TooMany),
    /// A control character, which could drive a terminal.
    #[error("contains a control character")]
    ControlCharacter,
}

impl Label {
    /// Checks and takes `text`.
    ///
    /// # Errors
    /// [`LabelError`].
    pub fn new(text: impl Into<String>) -> Result<Self, LabelError> {
        let text = text.into();
        let max = crate::limits::LABEL_BYTES_MAX;
        if text.len() > max {
            return Err(TooMany { got: text.len(), max }.into());
        }
        if text.chars().any(char::is_control) {
            return Err(LabelError::ControlCharacter);
        }
        Ok(Self(text))
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Label {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;

        impl Visitor<'_> for Text {
            type Value = Label;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a short text without control characters")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Label, E> {
                if text.len() > crate::limits::LABEL_BYTES_MAX {
                    return Err(E::invalid_length(text.len(), &self));
                }
                Label::new(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        number: u64,
        bytes: Blob<4>,
        list: BoundedVec<u16, 3>,
        label: Label,
    }

    impl Wire for Sample {
        const BYTES_MAX: usize = 64;
    }

    fn sample() -> Sample {
        Sample {
            number: 300,
            bytes: vec![1, 2].try_into().unwrap(),
            list: vec![7, 8, 9].try_into().unwrap(),
            label: Label::new("c1").unwrap(),
        }
    }

    #[test]
    fn value_survives_encoding() {
        let bytes = encode(&sample());
        assert_eq!(decode::<Sample>(&bytes), Ok(sample()));
    }

    #[test]
    fn trailing_byte_is_refused() {
        let mut bytes = encode(&sample());
        bytes.push(0);
        assert_eq!(decode::<Sample>(&bytes), Err(DecodeError::NotCanonical));
    }

    #[test]
    fn truncated_value_is_refused() {
        let bytes = encode(&sample());
        for end in 0..bytes.len() {
            assert!(decode::<Sample>(&bytes[..end]).is_err(), "{end} bytes were accepted");
        }
    }

    #[test]
    fn overlong_varint_is_refused() {
        // 300 is `ac 02`; `ac 82 00` says the same in three bytes.
        let mut bytes = encode(&sample());
        assert_eq!(bytes[..2], [0xac, 0x02]);
        bytes.splice(..2, [0xac, 0x82, 0x00]);
        assert_eq!(decode::<Sample>(&bytes), Err(DecodeError::NotCanonical));
    }

    #[test]
    fn length_above_its_bound_is_refused_before_allocation() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Huge(BoundedVec<u64, 4>);
        impl Wire for Huge {
            const BYTES_MAX: usize = 1 << 20;
        }
        // Announces 2^62 elements.
        let bytes = [0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x40];
        assert_eq!(decode::<Huge>(&bytes), Err(DecodeError::Malformed));
        assert!(BoundedVec::<u64, 4>::try_from(vec![0; 5]).is_err());
    }

    #[test]
    fn input_above_the_bound_is_refused_unread() {
        assert_eq!(
            decode::<Sample>(&[0; 65]),
            Err(DecodeError::TooLong { got: 65, max: 64 })
        );
    }

    #[test]
    fn label_that_could_drive_a_terminal_is_refused() {
        assert_eq!(Label::new("\u{1b}[2J"), Err(LabelError::ControlCharacter));
        assert!(Label::new("x".repeat(65)).is_err());
        let forged = postcard::to_allocvec("a\nb").unwrap();
        assert!(postcard::from_bytes::<Label>(&forged).is_err());
    }
}
