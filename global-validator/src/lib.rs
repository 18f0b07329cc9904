//! Tier 2, shell and binary: intake of batches, guard, write-ahead log, block store, peers.
