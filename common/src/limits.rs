//! Bounds of everything that crosses a process or a disk. One place, so that sums can be checked.
//!
//! A bound that follows from others is derived here and asserted at compile time.

/// Encoded author-signed entry: header, payload and signature.
pub const ENTRY_BYTES_MAX: usize = 12 * 1024;
/// Payload of an entry (a task's content, a reason). The rest of [`ENTRY_BYTES_MAX`] is header and signature.
pub const PAYLOAD_BYTES_MAX: usize = ENTRY_BYTES_MAX - 1024;
/// Free-form bytes inside a task.
pub const TASK_PAYLOAD_BYTES_MAX: usize = 8 * 1024;
/// Labels, names, reasons for people, in bytes of UTF-8.
pub const LABEL_BYTES_MAX: usize = 64;
/// An author's own key of a task.
pub const TASK_KEY_BYTES_MAX: usize = 64;
/// Places a task visits.
pub const PLACES_PER_TASK_MAX: usize = 16;
/// Tasks that must be completed before a task.
pub const AFTER_PER_TASK_MAX: usize = 8;
/// Labels on a task, capabilities and zones it asks for.
pub const LABELS_PER_TASK_MAX: usize = 16;

/// Entries in a batch.
pub const ENTRIES_PER_BATCH_MAX: usize = 256;
/// Signed bytes in a batch; one larger entry stands alone.
pub const BATCH_ENTRY_BYTES_MAX: usize = 64 * 1024;
/// Encoded certified batch with header and attestations.
pub const BATCH_BYTES_MAX: usize = 96 * 1024;
/// Devices in a roster.
pub const ROSTER_MAX: usize = 64;

/// Numbers of a stream whose answers are remembered.
pub const NUMBER_WINDOW: u64 = 1_024;

/// Validators in a set.
pub const VALIDATORS_MAX: usize = 128;
/// References in a block.
pub const REFS_PER_BLOCK_MAX: usize = 256;
/// Encoded proposal with its certificates.
pub const PROPOSAL_BYTES_MAX: usize = 2 * 1024 * 1024;
/// Nullifications a proposal may carry; a longer gap is bridged by certificates sent before it.
pub const NULLIFICATIONS_PER_PROPOSAL_MAX: usize = 512;
/// Headers above a block in its proof of finality.
pub const HEADERS_PER_FINALITY_PROOF_MAX: usize = 512;
/// Heights between a block and the block that carries the roots of its state.
pub const ROOT_LAG: u64 = 2;

/// Devices in a genesis file.
pub const DEVICES_MAX: usize = 4_096;
/// Clusters in a genesis file.
pub const CLUSTERS_MAX: usize = 256;
/// Zones of a cluster.
pub const ZONES_PER_CLUSTER_MAX: usize = 16;
/// Encoded genesis file.
pub const GENESIS_BYTES_MAX: usize = 1024 * 1024;

/// One part of a finalized block on its way into a cluster's Raft log.
pub const ADVANCE_PART_BYTES_MAX: usize = 256 * 1024;
/// Parts of one finalized block.
pub const ADVANCE_PARTS_MAX: usize = 128;

/// One Raft append request.
pub const RAFT_APPEND_BYTES_MAX: usize = 1024 * 1024;
/// Encoded log entry of any kind.
pub const LOG_ENTRY_BYTES_MAX: usize = ADVANCE_PART_BYTES_MAX + 1024;

const _: () = assert!(BATCH_ENTRY_BYTES_MAX + ENTRY_BYTES_MAX < BATCH_BYTES_MAX);
const _: () = assert!(LOG_ENTRY_BYTES_MAX < RAFT_APPEND_BYTES_MAX);
const _: () = assert!(TASK_PAYLOAD_BYTES_MAX < PAYLOAD_BYTES_MAX);
const _: () = assert!(REFS_PER_BLOCK_MAX * BATCH_BYTES_MAX <= ADVANCE_PARTS_MAX * ADVANCE_PART_BYTES_MAX);
