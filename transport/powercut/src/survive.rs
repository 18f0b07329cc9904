//! What is on the disk after a power cut.
//!
//! # Rules
//! * A name that is durable stands for the durable bytes of its file; a file that was never synced is empty.
//! * In a mix, each name that was changed and not synced is the old or the new one; each page that was written
//!   and not synced is there or not; a size lies somewhere from the old one to the new one. A page that is missing
//!   below the size reads as zeros.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use crate::Rng;

/// A power cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing survives that was not synced.
    Drop,
    /// Of what was not synced, a random part survives.
    Mix {
        /// Repeats it.
        seed: u64,
    },
}

/// Bytes that survive together: what a device writes at once, or a page of the cache.
const PIECES_BYTES: [usize; 2] = [512, 4096];

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    is_dir: bool,
    inode: u64,
}

type Names = BTreeMap<String, Entry>;

fn durable_names(shadow: &Path, inode: u64) -> io::Result<Names> {
    let text = match fs::read_to_string(shadow.join("dirs").join(inode.to_string())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let names = text.lines().map(|line| {
        let mut parts = line.splitn(3, ' ');
        let (kind, inode, name) = (parts.next(), parts.next(), parts.next());
        let inode = inode
            .and_then(|inode| inode.parse().ok())
            .expect("the shim writes numbers");
        let is_dir = kind == Some("d");
        (name.expect("the shim writes names").to_owned(), Entry { is_dir, inode })
    });
    Ok(names.collect())
}

fn current_names(dir: &Path) -> io::Result<Names> {
    let mut names = Names::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let meta = entry.metadata()?;
        if meta.is_file() || meta.is_dir() {
            let name = entry.file_name().into_string().expect("names are texts here");
            let (is_dir, inode) = (meta.is_dir(), meta.ino());
            names.insert(name, Entry { is_dir, inode });
        }
    }
    Ok(names)
}

fn read_or_empty(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other,
    }
}

struct Builder<'a> {
    shadow: &'a Path,
    /// `None`: nothing but what is durable.
    rng: Option<(Rng, usize)>,
}

/// Builds in `out` what survives `cut` of the directory `data` with this shadow.
pub(crate) fn build(shadow: &Path, data: &Path, out: &Path, cut: Cut) -> io::Result<()> {
    let rng = match cut {
        Cut::Drop => None,
        Cut::Mix { seed } => {
            let mut rng = Rng::new(seed);
            let piece = PIECES_BYTES[rng.below(PIECES_BYTES.len() as u64) as usize];
            Some((rng, piece))
        }
    };
    let root = fs::metadata(data)?.ino();
    Builder { shadow, rng }.directory(root, Some(data), out)
}

impl Builder<'_> {
    /// `current`: where the directory is now, if it has a name.
    fn directory(&mut self, inode: u64, current: Option<&Path>, out: &Path) -> io::Result<()> {
        fs::create_dir(out)?;
        let durable = durable_names(self.shadow, inode)?;
        let now = match (&self.rng, current) {
            (Some(_), Some(dir)) => current_names(dir)?,
            _ => durable.clone(),
        };
        let names: BTreeSet<&String> = durable.keys().chain(now.keys()).collect();
        for name in names {
            let (old, new) = (durable.get(name), now.get(name));
            let Some(entry) = (if old != new && self.is_kept() { new } else { old }) else {
                continue;
            };
            let here = current.map(|dir| dir.join(name));
            let here = here.filter(|path| fs::metadata(path).is_ok_and(|meta| meta.ino() == entry.inode));
            if entry.is_dir {
                self.directory(entry.inode, here.as_deref(), &out.join(name))?;
            } else {
                fs::write(out.join(name), self.file(entry.inode, here)?)?;
            }
        }
        Ok(())
    }

    /// Whether a change that was not synced survives.
    fn is_kept(&mut self) -> bool {
        self.rng.as_mut().is_some_and(|(rng, _)| rng.once_in(2))
    }

    fn file(&mut self, inode: u64, here: Option<PathBuf>) -> io::Result<Vec<u8>> {
        let inode = inode.to_string();
        let durable = read_or_empty(&self.shadow.join("files").join(&inode))?;
        let Some((rng, piece)) = &mut self.rng else {
            return Ok(durable);
        };
        let kept = self.shadow.join("keep").join(&inode);
        let now = read_or_empty(&here.unwrap_or(kept))?;
        Ok(mix(&durable, &now, *piece, rng))
    }
}

/// A size between those of `old` and `new`, and each piece that differs from one of them.
fn mix(old: &[u8], new: &[u8], piece: usize, rng: &mut Rng) -> Vec<u8> {
    let (short, long) = (old.len().min(new.len()), old.len().max(new.len()));
    let len = match rng.below(3) {
        0 => old.len(),
        1 => new.len(),
        _ => short + rng.below((long - short) as u64 + 1) as usize,
    };
    let mut mixed = vec![0; len];
    for from in (0..len).step_by(piece) {
        let to = (from + piece).min(len);
        let part_of = |bytes: &[u8]| {
            bytes
                .get(from.min(bytes.len())..to.min(bytes.len()))
                .map(<[u8]>::to_vec)
        };
        let (old, new) = (part_of(old).unwrap_or_default(), part_of(new).unwrap_or_default());
        let part = if old != new && rng.once_in(2) { new } else { old };
        mixed[from..from + part.len()].copy_from_slice(&part);
    }
    mixed
}

/// Makes `shadow` say that all of `data` is durable.
pub(crate) fn adopt(shadow: &Path, data: &Path) -> io::Result<()> {
    for kind in ["files", "dirs", "keep"] {
        fs::create_dir_all(shadow.join(kind))?;
    }
    let mut directories = vec![data.to_path_buf()];
    while let Some(dir) = directories.pop() {
        let mut lines = String::new();
        for (name, Entry { is_dir, inode }) in current_names(&dir)? {
            let path = dir.join(&name);
            lines += &format!("{} {inode} {name}\n", if is_dir { 'd' } else { 'f' });
            if is_dir {
                directories.push(path);
            } else {
                fs::copy(&path, shadow.join("files").join(inode.to_string()))?;
                fs::hard_link(&path, shadow.join("keep").join(inode.to_string()))?;
            }
        }
        let inode = fs::metadata(&dir)?.ino();
        fs::write(shadow.join("dirs").join(inode.to_string()), lines)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mix_takes_each_piece_from_one_side_and_reaches_both() {
        let (old, new) = (vec![1; 10_000], vec![2; 30_000]);
        let mut seen = BTreeSet::new();
        for seed in 0..200 {
            let mixed = mix(&old, &new, 512, &mut Rng::new(seed));
            assert!((old.len()..=new.len()).contains(&mixed.len()));
            for (at, piece) in mixed.chunks(512).enumerate() {
                // The piece over the old end may be old up to there and nothing behind.
                let is_over_end = at == old.len() / 512;
                assert!(
                    is_over_end || piece.iter().all(|byte| *byte == piece[0]),
                    "torn within a piece"
                );
                seen.insert((piece[0], (at + 1) * 512 <= old.len()));
            }
        }
        let want = [(0, false), (1, false), (1, true), (2, false), (2, true)];
        assert!(seen.is_superset(&want.into_iter().collect()), "{seen:?}");
        assert!(!seen.contains(&(0, true)), "what was durable is never lost");
    }

    #[test]
    fn mix_of_equal_files_is_the_file() {
        let bytes = Rng::new(1).bytes(5_000);
        assert_eq!(mix(&bytes, &bytes, 512, &mut Rng::new(9)), bytes);
    }
}
