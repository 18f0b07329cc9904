//! Seeded schedules against the whole core.

pub mod fixture;
