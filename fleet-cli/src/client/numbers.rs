//! The numbers of an operator's entries: each is used once, whatever crashes.
//!
//! # Rules
//! * A number is on the disk as used before an entry is signed with it.
//! * One process at a time, by a lock file.
//! * Without the file, numbers go on above the highest that the cluster knows, by a whole window:
//!   entries that were signed and never answered may still arrive.
//!
//! # Why
//! The same number with other content is a conflict, and one of two tasks is lost.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use common::{
    ids::{ChainId, ClusterId, EntryNumber, KeyVersion},
    limits::NUMBER_WINDOW,
    number_stream::NUMBER_MAX,
};
use serde::{Deserialize, Serialize};

use crate::{
    exit::{Exit, Failure, Outcome},
    files::{self, Lock},
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// The fleet whose streams these are.
    chain: String,
    /// Highest number used, by `key version/cluster`.
    streams: BTreeMap<String, u64>,
}

/// The number file of one operator key.
#[derive(Debug)]
pub struct NumberFile {
    dir: PathBuf,
    chain: ChainId,
}

impl NumberFile {
    /// The file in the operator's data directory `dir`.
    #[must_use]
    pub fn new(dir: &Path, chain: ChainId) -> Self {
        Self {
            dir: dir.to_owned(),
            chain,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.join("numbers.json")
    }

    fn read(&self) -> Outcome<BTreeMap<String, u64>> {
        let path = self.path();
        if !path.exists() {
            return Ok(BTreeMap::new());
        }
        let bytes = files::read_bounded(&path, 1024 * 1024)?;
        let refused = |e: &dyn std::fmt::Display| {
            Failure::new(Exit::RefusedForSafety, format!("{}: {e}", path.display()))
                .means("signing with a number that was used before could lose a task; nothing was sent")
                .todo("restore the file; or remove it, and the numbers go on above what the clusters know")
        };
        let stored: Stored = serde_json::from_slice(&bytes).map_err(|e| refused(&e))?;
        if stored.chain != self.chain.to_hex() {
            return Err(refused(&format!("is of another fleet, {}", stored.chain)));
        }
        Ok(stored.streams)
    }

    /// Whether the stream has a number on this disk.
    ///
    /// # Errors
    /// A damaged file.
    pub fn is_known(&self, version: KeyVersion, cluster: ClusterId) -> Outcome<bool> {
        Ok(self.read()?.contains_key(&stream_key(version, cluster)))
    }

    /// Marks `count` numbers as used, durably, and returns the first. `highest_known` is what the cluster
    /// said, asked for only if the stream is not [known](Self::is_known).
    ///
    /// # Errors
    /// A damaged file, the file system, or the end of the stream.
    pub fn reserve(
        &self,
        version: KeyVersion,
        cluster: ClusterId,
        count: u64,
        highest_known: Option<EntryNumber>,
    ) -> Outcome<EntryNumber> {
        files::private_dir(&self.dir)?;
        let _lock = Lock::wait(&self.dir.join("numbers.lock"))?;
        let mut streams = self.read()?;
        let key = stream_key(version, cluster);
        let used = match (streams.get(&key), highest_known) {
            (Some(used), _) => *used,
            (None, Some(highest)) => highest.0.saturating_add(NUMBER_WINDOW),
            (None, None) => {
                return Err(
                    Failure::new(Exit::NoConnection, "no agent says which numbers were used before")
                        .todo("check that agents of the cluster run"),
                );
            }
        };
        let last = used
            .checked_add(count)
            .filter(|last| *last <= NUMBER_MAX.0)
            .ok_or_else(|| {
                Failure::new(Exit::RefusedForSafety, "the numbers of this key are used up").todo("rotate the key")
            })?;
        streams.insert(key, last);
        let stored = Stored {
            chain: self.chain.to_hex(),
            streams,
        };
        let text = serde_json::to_vec_pretty(&stored).map_err(|e| Failure::new(Exit::Failed, e))?;
        files::replace(&self.path(), &text)?;
        Ok(EntryNumber(used + 1))
    }
}

fn stream_key(version: KeyVersion, cluster: ClusterId) -> String {
    format!("{version}/{cluster}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const V0: KeyVersion = KeyVersion(0);
    const C1: ClusterId = ClusterId(0);

    fn file(dir: &Path) -> NumberFile {
        NumberFile::new(dir, ChainId([1; 32]))
    }

    #[test]
    fn number_is_on_the_disk_before_it_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let first = file(dir.path()).reserve(V0, C1, 3, Some(EntryNumber(0))).unwrap();
        assert_eq!(first, EntryNumber(NUMBER_WINDOW + 1));
        // A process that died right after goes on behind them, whatever the cluster says now.
        let next = file(dir.path()).reserve(V0, C1, 1, Some(EntryNumber(5))).unwrap();
        assert_eq!(next, EntryNumber(NUMBER_WINDOW + 4));
        assert!(file(dir.path()).is_known(V0, C1).unwrap());
        assert!(!file(dir.path()).is_known(V0, ClusterId(1)).unwrap());
    }

    #[test]
    fn lost_file_goes_on_a_window_above_what_the_cluster_knows() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            file(dir.path()).reserve(V0, C1, 1, None).unwrap_err().exit,
            Exit::NoConnection
        );
        let first = file(dir.path()).reserve(V0, C1, 1, Some(EntryNumber(77))).unwrap();
        assert_eq!(first, EntryNumber(77 + NUMBER_WINDOW + 1));
        let last = Some(NUMBER_MAX);
        assert_eq!(
            file(dir.path()).reserve(V0, ClusterId(2), 1, last).unwrap_err().exit,
            Exit::RefusedForSafety
        );
    }

    #[test]
    fn damaged_file_and_one_of_another_fleet_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        file(dir.path()).reserve(V0, C1, 1, Some(EntryNumber(0))).unwrap();
        let other = NumberFile::new(dir.path(), ChainId([2; 32]));
        assert_eq!(
            other.reserve(V0, C1, 1, Some(EntryNumber(0))).unwrap_err().exit,
            Exit::RefusedForSafety
        );
        std::fs::write(dir.path().join("numbers.json"), b"{").unwrap();
        let again = file(dir.path()).reserve(V0, C1, 1, Some(EntryNumber(0)));
        assert_eq!(again.unwrap_err().exit, Exit::RefusedForSafety);
    }

    #[test]
    fn two_processes_never_get_one_number() {
        let dir = tempfile::tempdir().unwrap();
        let take = |path: PathBuf| {
            std::thread::spawn(move || -> Vec<u64> {
                (0..20)
                    .map(|_| file(&path).reserve(V0, C1, 1, Some(EntryNumber(0))).unwrap().0)
                    .collect()
            })
        };
        let threads = [take(dir.path().to_owned()), take(dir.path().to_owned())];
        let mut all: Vec<u64> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40);
    }
}
