//! A hundred calls in a row that the host does not wait for.

use fewsync::comm::Shape;
use fewsync::comm::gpu::Tuning;
use fewsync::driver::Schedule;

use crate::scenario::{Home, Scenario};
use crate::schedules::{attempt, keep_loaded, shipped};
use crate::seeds::search;

const CALLS: usize = 100;

/// Kinds, types, sizes and with them grids alternate on two buffers and streams, over the wrap of the number.
#[test]
fn a_hundred_calls_follow_each_other() {
    let _loaded = keep_loaded(&[shipped("sm_80"), shipped("sm_90a")]);
    let shapes = [(1, 2), (2, 2), (1, 3), (3, 1)];
    let runs = shapes.len() * Schedule::ALL.len();
    let (failure, _) = search(0, runs as u64, |run| {
        let (schedule, shape) =
            (Schedule::ALL[run as usize / shapes.len()], shapes[run as usize % shapes.len()]);
        let mut scenario =
            Scenario::of_many_calls(run, Shape { nodes: shape.0, gpus_per_node: shape.1 }, CALLS);
        scenario.machine.schedule = schedule;
        scenario.home = Home::Loopback { gpus: scenario.shape.world() };
        scenario.machine.devices = scenario.shape.world() as u32;
        let grids = scenario.options.tuning.unwrap_or_default();
        scenario.options.tuning = Some(Tuning { blocks: None, workers: Some(32), ..grids });
        attempt(&scenario, shipped(scenario.arch)).err().map(|reason| format!("{reason}\n{scenario}"))
    });
    assert_eq!(failure, None);
}
