//! The hash of a digest or signature, for tables: eight bytes of it, as good as any others.

use core::hash::Hasher;

/// For bounded `HashMap`s whose keys have at least eight bytes: digests, and signatures that were found good.
#[derive(Default)]
pub struct FirstBytes(u64);

impl Hasher for FirstBytes {
    fn write(&mut self, bytes: &[u8]) {
        if let Some((first, _)) = bytes.split_first_chunk() {
            self.0 = u64::from_be_bytes(*first);
        }
    }

    fn write_usize(&mut self, _length: usize) {}

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use core::hash::{BuildHasher, BuildHasherDefault};

    use super::*;
    use crate::ids::Digest;

    #[test]
    fn digest_is_its_own_hash() {
        let hash = |digest| BuildHasherDefault::<FirstBytes>::default().hash_one(digest);
        let mut bytes = [0; 32];
        bytes[7] = 5;
        assert_eq!(hash(Digest(bytes)), 5);
        assert_ne!(hash(Digest([1; 32])), hash(Digest([2; 32])));
    }
}
