//! Bad links everywhere for a while.

use super::Fault;
use crate::{fleet::SimFleet, ports::LinkConditions, random::Stream};

/// Other conditions of all links.
pub struct Quality {
    what: &'static str,
    conditions: LinkConditions,
}

/// Draws what is bad.
pub fn draw(fleet: &SimFleet, random: &mut Stream) -> Box<dyn Fault> {
    let usual = fleet.conditions.links;
    let (what, conditions) = match random.between(0, 4) {
        0 => (
            "loss",
            LinkConditions {
                loss_ppm: random.between(50_000, 250_000),
                ..usual
            },
        ),
        1 => (
            "spikes",
            LinkConditions {
                spike_ppm: random.between(20_000, 200_000),
                spike_us: random.between(50_000, 1_500_000),
                ..usual
            },
        ),
        2 => (
            "duplicates",
            LinkConditions {
                duplicate_ppm: random.between(50_000, 500_000),
                ..usual
            },
        ),
        3 => (
            "narrow",
            LinkConditions {
                bytes_per_second: random.between(16_000, 250_000),
                ..usual
            },
        ),
        _ => (
            "slow",
            LinkConditions {
                delay_us_min: usual.delay_us_min * 4,
                delay_us_max: usual.delay_us_max * random.between(2, 8),
                ..usual
            },
        ),
    };
    Box::new(Quality::new(what, conditions))
}

impl Quality {
    /// Links under `conditions`, which `what` puts in a word.
    #[must_use]
    pub fn new(what: &'static str, conditions: LinkConditions) -> Self {
        Self { what, conditions }
    }
}

impl Fault for Quality {
    fn describe(&self) -> String {
        format!("{} links: {:?}", self.what, self.conditions)
    }

    fn begin(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        fleet.network.set_conditions(self.conditions);
    }

    fn end(&mut self, fleet: &mut SimFleet, _now_us: u64) {
        fleet.network.set_conditions(fleet.conditions.links);
    }
}
