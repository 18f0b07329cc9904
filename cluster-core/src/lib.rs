//! Tier 1, pure: admission, the cluster queue, batches, attestations, leases, freshness.
