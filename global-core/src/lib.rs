//! Tier 2, pure: the BFT core, block building, execution with lagging roots, sync.
