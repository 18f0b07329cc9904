//! The trace hash: one digest over everything that crossed a boundary in a run.
//!
//! # Rules
//! It is over, in order: virtual time, kind, the two ends, length and the bytes, for
//! * every frame delivered and every frame dropped,
//! * every disk sync,
//! * the digest of a state at each look at it after it moved; entries that are applied in one go are one look,
//! * every start and end of a process.
//!
//! One byte flipped or one sync left out changes it. The counts behind it are printed beside it.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use common::{crypto::Hashing, ids::Digest, wire::frame::FRAME_HEADER_BYTES};

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A frame reached the other end.
    Delivered,
    /// A frame was lost or cut off.
    Dropped,
    /// Bytes became durable.
    Synced,
    /// A state machine was found to have moved.
    Applied,
    /// A process started.
    Started,
    /// A process was killed.
    Killed,
}

const EVENTS: usize = 6;
/// Time, event, both ends, length.
const HEAD_BYTES: usize = 25;

/// How many of each [`Event`], in the order of its variants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts(pub [u64; EVENTS]);

impl Counts {
    /// How often `event` happened.
    #[must_use]
    pub fn of(&self, event: Event) -> u64 {
        self.0[event as usize]
    }
}

/// How much of a kind was delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// Frames.
    pub frames: u64,
    /// Bytes in them, headers included.
    pub bytes: u64,
}

struct Chain {
    hashing: Hashing,
    counts: Counts,
    delivered: BTreeMap<u8, Volume>,
}

/// Shared by all ports of one run.
#[derive(Clone)]
pub struct Trace {
    chain: Arc<Mutex<Chain>>,
    began: tokio::time::Instant,
}

impl Trace {
    /// An empty trace that begins now. Call it inside the paused runtime.
    #[must_use]
    pub fn begin() -> Self {
        let chain = Chain {
            hashing: Hashing::default(),
            counts: Counts::default(),
            delivered: BTreeMap::new(),
        };
        Self {
            chain: Arc::new(Mutex::new(chain)),
            began: tokio::time::Instant::now(),
        }
    }

    /// Virtual microseconds since the run began.
    #[must_use]
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).expect("a run is far shorter than 500,000 years")
    }

    /// Chains one event between the processes `from` and `to` (numbers of the run; equal for local ones). Its bytes are
    /// `parts` one after another; a frame's header is a part of its own.
    pub fn record(&self, event: Event, from: u32, to: u32, parts: &[&[u8]]) {
        let now = self.now_us().to_be_bytes();
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        let mut chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.counts.0[event as usize] += 1;
        if event == Event::Delivered
            && let Some(kind) = parts.first().and_then(|header| header.get(FRAME_HEADER_BYTES - 1))
        {
            let of_kind = chain.delivered.entry(*kind).or_default();
            of_kind.frames += 1;
            of_kind.bytes += bytes;
        }
        // Each event begins with a head of one length that says how many bytes follow: no two runs of events are one stream.
        let mut head = [0; HEAD_BYTES];
        head[..8].copy_from_slice(&now);
        head[8] = event as u8;
        head[9..13].copy_from_slice(&from.to_be_bytes());
        head[13..17].copy_from_slice(&to.to_be_bytes());
        head[17..].copy_from_slice(&bytes.to_be_bytes());
        chain.hashing.update(&head);
        parts.iter().for_each(|part| chain.hashing.update(part));
    }

    /// Hash and counts so far.
    #[must_use]
    pub fn summary(&self) -> (Digest, Counts) {
        let chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        (chain.hashing.clone().digest(), chain.counts)
    }
}

impl Trace {
    /// Frames delivered so far, by the kind byte of their header.
    #[must_use]
    pub fn delivered(&self) -> BTreeMap<u8, Volume> {
        let chain = self.chain.lock().unwrap_or_else(PoisonError::into_inner);
        chain.delivered.clone()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hash, counts) = self.summary();
        write!(f, "trace {hash} after {counts:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash_of(events: &[(Event, u32, u32, &[u8])]) -> Digest {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let trace = Trace::begin();
            for (event, from, to, bytes) in events {
                trace.record(*event, *from, *to, &[bytes]);
            }
            trace.summary().0
        })
    }

    #[test]
    fn one_byte_flipped_or_one_sync_left_out_changes_the_hash() {
        let whole: &[(Event, u32, u32, &[u8])] = &[
            (Event::Delivered, 1, 2, b"frame"),
            (Event::Synced, 2, 2, b""),
            (Event::Applied, 2, 2, b"d"),
        ];
        assert_eq!(hash_of(whole), hash_of(whole));
        let mut flipped = whole.to_vec();
        flipped[0].3 = b"frbme";
        assert_ne!(hash_of(&flipped), hash_of(whole));
        assert_ne!(hash_of(&[whole[0], whole[2]]), hash_of(whole));
        let mut elsewhere = whole.to_vec();
        elsewhere[0].2 = 3;
        assert_ne!(hash_of(&elsewhere), hash_of(whole));
    }
}
