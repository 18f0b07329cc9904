use std::{sync::Arc, time::Duration};

use super::*;
use crate::{run::Plan, workload};

/// A soak plays one fleet after the other in one process: what stayed of each would add up.
#[test]
fn fleet_that_is_dropped_leaves_nothing_behind() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime with a timer only needs memory");
    let weak = runtime.block_on(async {
        let plan = Plan::byzantine(1);
        let trace = Trace::begin();
        let make = |fleet: &Fleet| Witness::new(trace.clone(), Arc::new(fleet.genesis.clone()), Vec::new());
        let mut fleet = SimFleet::new(plan.seed, plan.population, plan.conditions, trace.clone(), make);
        fleet.hack(plan.enemies);
        fleet.supervise().await;
        let desk = workload::start(&fleet, plan.load, plan.seed);
        let works = async {
            while desk.journal().acknowledged.len() < 5 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let worked = tokio::time::timeout(Duration::from_secs(30), works).await;
        assert_eq!(worked, Ok(()), "nothing is acknowledged");
        assert!(fleet.kill("c1-1", 0));
        fleet.supervise().await;
        // Every process has a share of it.
        Arc::downgrade(&fleet.genesis)
    });
    drop(runtime);
    assert_eq!(weak.strong_count(), 0);
}
