//! What a story must show beside breaking no promise: that it came about at all.

use serde::Deserialize;

use super::islands::Shown;
use crate::{run::Report, trace::Event, witness::Violation};

/// Least figures of a run; none of these is asked for unless the story says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// Processes that lost their power or ended.
    #[serde(default)]
    pub killed_min: u64,
    /// Writes and reads that were refused for want of a majority.
    #[serde(default)]
    pub refused_min: u64,
    /// Frames that cuts and bad links swallowed.
    #[serde(default)]
    pub dropped_min: u64,
    /// What each enemy did of its own.
    #[serde(default)]
    pub deeds_min: u64,
    /// How long a cluster was an island, virtual milliseconds: behind another by ten seconds in what it knows of the
    /// common history.
    #[serde(default)]
    pub island_ms_min: u64,
    /// Tasks that clusters acknowledged meanwhile.
    #[serde(default)]
    pub island_tasks_min: u64,
}

impl Expectation {
    /// Makes a story that did not come about a violation, unless another broke the run. Whatever it expects, each of
    /// its enemies must have got hold of a process.
    pub(super) fn judge(&self, report: &mut Report, islands: Shown) {
        let deeds = |enemy: &crate::byzantine::EnemyReport| enemy.deeds.values().sum();
        let placed = report.enemies.len() as u64;
        let shown = [
            (
                "enemies with a process in their hands",
                report.plan.enemies.iter().count() as u64,
                placed,
            ),
            ("processes killed", self.killed_min, report.counts.of(Event::Killed)),
            ("refusals for want of a majority", self.refused_min, report.no_quorum),
            ("frames dropped", self.dropped_min, report.counts.of(Event::Dropped)),
            (
                "deeds of the laziest enemy",
                self.deeds_min,
                report.enemies.iter().map(deeds).min().unwrap_or(0),
            ),
            (
                "milliseconds as an island",
                self.island_ms_min,
                islands.longest_us / 1_000,
            ),
            ("tasks acknowledged by islands", self.island_tasks_min, islands.tasks),
        ];
        let missing = shown.into_iter().find(|(_, least, got)| got < least);
        if let (Some((what, least, got)), None) = (missing, &report.violation) {
            report.violation = Some(Violation {
                checker: "expectation",
                at_ms: report.virtual_ms,
                what: format!("the story did not come about: {what}: {got}, at least {least} expected"),
            });
        }
    }
}
