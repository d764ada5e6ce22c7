//! Base scores of CVSS v3.0 and v3.1 (specification documents, section 7.1 and appendix A).
//!
//! The weights have two decimals, so all but one power is exact in integers; the real-number equations and not
//! their floating-point approximation decide what is rounded up.

use super::{Vector, Version};

/// Units of 10^-12 in 0.1.
const TENTH: i64 = 100_000_000_000;

/// Returns the base score of a v3 vector.
pub fn base_score(vector: &Vector) -> f64 {
    let is_changed = vector.base("S") == "C";
    let impact = impact(vector, is_changed);
    if impact <= 0 {
        return 0.0;
    }
    let sum = impact + exploitability(vector, is_changed);
    // in 10^-12
    let total = if is_changed { 108 * sum } else { 100 * sum };
    let tenths = match vector.version {
        Version::V3_0 => ceil_div(total, TENTH),
        _ => round_up(total),
    };
    tenths.min(100) as f64 / 10.0
}

/// Roundup of v3.1, appendix A: what is within half of 10^-5 of a tenth is that tenth.
fn round_up(total: i64) -> i64 {
    let hundred_thousandths = (total + TENTH / 20_000) / (TENTH / 10_000);
    ceil_div(hundred_thousandths, 10_000)
}

fn ceil_div(value: i64, by: i64) -> i64 {
    (value + by - 1) / by
}

/// Impact in 10^-10.
fn impact(vector: &Vector, is_changed: bool) -> i64 {
    let remaining = |metric| match vector.base(metric) {
        "H" => 100 - 56,
        "L" => 100 - 22,
        _ => 100,
    };
    // ISS in 10^-6
    let iss: i64 = 1_000_000 - remaining("C") * remaining("I") * remaining("A");
    if !is_changed {
        return 642 * iss * 100;
    }
    let base = (iss - 20_000) as f64 / 1e6;
    let power = (0..15).fold(1.0, |product, _| product * base);
    // 7.52 (ISS - 0.029) - 3.25 (ISS - 0.02)^15
    752 * (iss - 29_000) * 100 - (3.25e10 * power).round() as i64
}

/// Exploitability in 10^-10.
fn exploitability(vector: &Vector, is_changed: bool) -> i64 {
    let attack_vector = match vector.base("AV") {
        "N" => 85,
        "A" => 62,
        "L" => 55,
        _ => 20,
    };
    let attack_complexity = if vector.base("AC") == "L" { 77 } else { 44 };
    let privileges = match (vector.base("PR"), is_changed) {
        ("N", _) => 85,
        ("L", false) => 62,
        ("L", true) => 68,
        (_, false) => 27,
        (_, true) => 50,
    };
    let interaction = if vector.base("UI") == "N" { 85 } else { 62 };
    822 * attack_vector * attack_complexity * privileges * interaction
}
