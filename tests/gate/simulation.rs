//! How often the gate is right about the suites that decide, where the truth is known. docs/gate.md has the same over
//! 2,000 gates.

use lctl::eval::gate::{Policy, Role};

#[path = "../examples/simulate_gates.rs"]
#[allow(dead_code, reason = "its main is for the example")]
mod simulate_gates;

use simulate_gates::{CORRELATIONS, Rates, Shape, World, deciding, pool, rates, shapes};

const GATES: usize = 100;
const FLIPS: f64 = 0.05;

fn shipped() -> Vec<Shape> {
    shapes(&deciding(), &Policy::default()).unwrap()
}

/// Returns what gates say where the tasks that `is_worse` picks lose `loss`.
fn simulated(is_worse: impl Fn(&Shape) -> bool, loss: f64, correlation: f64, seed: u64) -> Rates {
    let shapes = shipped();
    let losses: Vec<f64> = shapes.iter().map(|shape| if is_worse(shape) { loss } else { 0.0 }).collect();
    let world = World { flips: FLIPS, correlation, between: 0.5 };
    rates(&shapes, &losses, world, &Policy::default(), GATES, seed)
}

#[test]
fn an_equal_model_passes_and_seldom_fails() {
    for correlation in CORRELATIONS {
        let found = simulated(|_| false, 0.0, correlation, 1);
        assert!(found.fail <= 0.05 && found.pass >= 0.8, "{correlation}: {found:?}");
    }
}

#[test]
fn a_loss_of_twice_the_detectable_does_not_pass() {
    let policy = Policy::default();
    let loss = 2.0 * pool(&shipped(), &policy).detectable(FLIPS, &policy);
    let found = simulated(|shape| shape.role != Role::ZeroTolerance, loss, 0.1, 2);
    assert!(found.pass <= 0.05, "everywhere: {found:?}");
    for (seed, shape) in shipped().iter().enumerate().filter(|(_, shape)| shape.role != Role::ZeroTolerance) {
        let loss = 2.0 * shape.detectable(FLIPS, &policy);
        let found = simulated(|other| other.name == shape.name, loss, 0.1, seed as u64);
        assert!(found.pass <= 0.05 && found.fail >= 0.5, "{}: {found:?}", shape.name);
    }
}

#[test]
fn one_broken_canary_fails_every_time() {
    // of 240 items: none lost in 1 of 10,000 gates
    let found = simulated(|shape| shape.name == "inject-canary/canary", 0.05, 0.0, 4);
    assert!(found.fail >= 0.99, "{found:?}");
}
