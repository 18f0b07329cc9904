//! Merkle trees over SHA-256 as in RFC 6962 §2.1: root, audit path, verification.
//!
//! # Why
//! Leaves and inner hashes carry different prefixes, so no leaf can pose as an inner hash; the split
//! at the largest power of two below `n` gives every list exactly one tree.

use serde::{Deserialize, Serialize};

use crate::{codec::BoundedVec, crypto::sha256, ids::Digest};

/// Longest audit path: trees of up to 2^32 leaves.
pub const PATH_MAX: usize = 32;

/// Digest of a leaf: `SHA-256(0x00 || data)`.
#[must_use]
pub fn leaf(data: &[u8]) -> Digest {
    sha256(&[&[0], data])
}

fn inner(left: &Digest, right: &Digest) -> Digest {
    sha256(&[&[1], &left.0, &right.0])
}

/// Root over leaf digests; the root of no leaves is `SHA-256("")`.
#[must_use]
pub fn root(leaves: &[Digest]) -> Digest {
    match leaves {
        [] => sha256(&[]),
        [leaf] => *leaf,
        _ => {
            let (left, right) = leaves.split_at(split(leaves.len()));
            inner(&root(left), &root(right))
        }
    }
}

/// Largest power of two below `n` (n > 1).
fn split(n: usize) -> usize {
    (n / 2 + n % 2).next_power_of_two()
}

/// Shows that a leaf stands at a place in a tree of a size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Path {
    /// Position of the leaf, from 0.
    pub index: u32,
    /// Leaves in the tree.
    pub size: u32,
    /// Sibling digests from the leaf to the root.
    pub siblings: BoundedVec<Digest, PATH_MAX>,
}

/// The audit path of `leaves[index]`, or `None` if there is no such leaf.
#[must_use]
pub fn path(leaves: &[Digest], index: usize) -> Option<Path> {
    if index >= leaves.len() {
        return None;
    }
    let mut siblings = Vec::new();
    collect(leaves, index, &mut siblings);
    Some(Path {
        index: u32::try_from(index).ok()?,
        size: u32::try_from(leaves.len()).ok()?,
        siblings: siblings.try_into().ok()?,
    })
}

fn collect(leaves: &[Digest], index: usize, siblings: &mut Vec<Digest>) {
    if leaves.len() == 1 {
        return;
    }
    let at = split(leaves.len());
    let (left, right) = leaves.split_at(at);
    if index < at {
        collect(left, index, siblings);
        siblings.push(root(right));
    } else {
        collect(right, index - at, siblings);
        siblings.push(root(left));
    }
}

impl Path {
    /// The root that this path gives for a leaf digest, or `None` if the path does not fit its size.
    #[must_use]
    pub fn root_from(&self, leaf: Digest) -> Option<Digest> {
        if self.index >= self.size {
            return None;
        }
        let mut siblings = self.siblings.iter();
        let root = climb(self.index as usize, self.size as usize, leaf, &mut siblings)?;
        siblings.next().is_none().then_some(root)
    }
}

/// A sibling on the way from a leaf to the root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Whether the sibling stands left of what was climbed so far.
    pub is_left: bool,
    /// Its digest.
    pub sibling: Digest,
}

/// A path without position and size: it shows that a leaf is in a tree, and every bit of it counts.
///
/// A [`Path`] has several (index, size) that give one root; where the position is said by the leaf
/// itself, this form leaves nothing that could be changed unseen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Climb {
    /// From the leaf to the root.
    pub steps: BoundedVec<Step, PATH_MAX>,
}

impl Climb {
    /// The climb from `leaves[index]`, or `None` if there is no such leaf.
    #[must_use]
    pub fn from_leaf(leaves: &[Digest], index: usize) -> Option<Self> {
        let path = path(leaves, index)?;
        let mut sides = Vec::new();
        collect_sides(index, leaves.len(), &mut sides);
        let steps: Vec<Step> = sides
            .into_iter()
            .zip(&path.siblings)
            .map(|(is_left, sibling)| Step {
                is_left,
                sibling: *sibling,
            })
            .collect();
        Some(Self {
            steps: steps.try_into().ok()?,
        })
    }

    /// The root that this climb gives for a leaf digest.
    #[must_use]
    pub fn root_from(&self, leaf: Digest) -> Digest {
        self.steps.iter().fold(leaf, |below, step| {
            if step.is_left {
                inner(&step.sibling, &below)
            } else {
                inner(&below, &step.sibling)
            }
        })
    }
}

/// Whether each sibling of a path stands left, from the leaf to the root.
fn collect_sides(index: usize, size: usize, sides: &mut Vec<bool>) {
    if size == 1 {
        return;
    }
    let at = split(size);
    if index < at {
        collect_sides(index, at, sides);
        sides.push(false);
    } else {
        collect_sides(index - at, size - at, sides);
        sides.push(true);
    }
}

fn climb<'a>(
    index: usize,
    size: usize,
    leaf: Digest,
    siblings: &mut impl Iterator<Item = &'a Digest>,
) -> Option<Digest> {
    if size == 1 {
        return Some(leaf);
    }
    let at = split(size);
    if index < at {
        let left = climb(index, at, leaf, siblings)?;
        Some(inner(&left, siblings.next()?))
    } else {
        let right = climb(index - at, size - at, leaf, siblings)?;
        Some(inner(siblings.next()?, &right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(n: usize) -> Vec<Digest> {
        (0..n).map(|i| leaf(&(i as u32).to_be_bytes())).collect()
    }

    #[test]
    fn empty_root_is_the_one_of_rfc_6962() {
        assert_eq!(
            root(&[]).to_hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn every_leaf_has_a_path_and_no_other_leaf_fits_it() {
        for n in 1..40 {
            let leaves = leaves(n);
            let root = root(&leaves);
            for i in 0..n {
                let path = path(&leaves, i).unwrap();
                assert_eq!(path.root_from(leaves[i]), Some(root), "leaf {i} of {n}");
                if n > 1 {
                    assert_ne!(path.root_from(leaves[(i + 1) % n]), Some(root));
                }
            }
            assert!(path(&leaves, n).is_none());
        }
    }

    #[test]
    fn climb_leads_to_the_root_and_every_bit_of_it_counts() {
        for n in 1..20 {
            let leaves = leaves(n);
            for i in 0..n {
                let climb = Climb::from_leaf(&leaves, i).unwrap();
                assert_eq!(climb.root_from(leaves[i]), root(&leaves), "leaf {i} of {n}");
                for at in 0..climb.steps.len() {
                    let mut steps = climb.steps.to_vec();
                    steps[at].is_left ^= true;
                    let turned = Climb {
                        steps: steps.try_into().unwrap(),
                    };
                    assert_ne!(turned.root_from(leaves[i]), root(&leaves));
                }
            }
            assert!(Climb::from_leaf(&leaves, n).is_none());
        }
    }

    #[test]
    fn path_with_a_sibling_too_many_or_too_few_is_refused() {
        let leaves = leaves(6);
        let path = path(&leaves, 2).unwrap();
        let mut longer = path.clone();
        let mut siblings = longer.siblings.clone().into_inner();
        siblings.push(leaves[0]);
        longer.siblings = siblings.try_into().unwrap();
        assert_eq!(longer.root_from(leaves[2]), None);
        let mut shorter = path.clone();
        shorter.siblings = path.siblings[..1].to_vec().try_into().unwrap();
        assert_eq!(shorter.root_from(leaves[2]), None);
        let outside = Path { index: 6, ..path };
        assert_eq!(outside.root_from(leaves[2]), None);
    }

    #[test]
    fn order_and_size_of_the_leaves_change_the_root() {
        let mut swapped = leaves(5);
        swapped.swap(0, 4);
        assert_ne!(root(&swapped), root(&leaves(5)));
        assert_ne!(root(&leaves(5)), root(&leaves(6)));
    }
}
