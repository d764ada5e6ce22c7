//! Where marks stand in the diagrams; units are those of the drawings' view boxes.

use serde::Serialize;

use crate::eval::report::calibration::{BINS, Calibration};
use crate::eval::stats::Interval;

/// Left and right end of a row's axis.
const LEFT: f64 = 8.0;
const RIGHT: f64 = 232.0;

/// A value with its interval on a horizontal axis.
#[derive(Debug, Serialize)]
pub struct Mark {
    pub x: String,
    pub lower: Option<String>,
    pub upper: Option<String>,
    pub y: u32,
    /// 0 is the baseline, 1 the candidate or the only one.
    pub side: usize,
}

/// A row of marks.
#[derive(Debug, Serialize)]
pub struct Plot {
    pub height: u32,
    /// Vertical lines.
    pub grid: Vec<String>,
    pub marks: Vec<Mark>,
    /// Where guessing would be.
    pub chance: Option<String>,
    /// The margin's line, of differences.
    pub margin: Option<String>,
}

fn at(x: f64) -> String {
    format!("{x:.1}")
}

/// Returns shares on an axis from 0 to 1; a side without a value has no mark.
pub fn shares(sides: &[Option<(f64, Option<Interval>)>], chance: Option<f64>) -> Plot {
    let x = |share: f64| at(LEFT + (RIGHT - LEFT) * share.clamp(0.0, 1.0));
    let mark = |(side, found): (usize, &Option<(f64, Option<Interval>)>)| {
        let (value, interval) = (*found)?;
        Some(Mark {
            x: x(value),
            lower: interval.map(|interval| x(interval.lower)),
            upper: interval.map(|interval| x(interval.upper)),
            y: 11 + 14 * side as u32,
            side: if sides.len() == 1 { 1 } else { side },
        })
    };
    Plot {
        height: 8 + 14 * sides.len() as u32,
        grid: [0.0, 0.25, 0.5, 0.75, 1.0].map(x).to_vec(),
        marks: sides.iter().enumerate().filter_map(mark).collect(),
        chance: chance.map(x),
        margin: None,
    }
}

/// Returns a difference with its interval on an axis from `-reach` to `reach`.
pub fn difference(value: f64, interval: Interval, margin: Option<f64>, reach: f64) -> Plot {
    let x = |value: f64| at(0.5 * (LEFT + RIGHT) + 0.5 * (RIGHT - LEFT) * (value / reach).clamp(-1.0, 1.0));
    Plot {
        height: 22,
        grid: vec![x(0.0)],
        marks: vec![Mark {
            x: x(value),
            lower: Some(x(interval.lower)),
            upper: Some(x(interval.upper)),
            y: 11,
            side: 1,
        }],
        chance: None,
        margin: margin.map(|margin| x(-margin)),
    }
}

/// A bin of a reliability diagram.
#[derive(Debug, Serialize)]
pub struct Bar {
    pub x: String,
    /// Mean confidence and accuracy.
    pub dot_x: String,
    pub dot_y: String,
    pub lower: Option<String>,
    pub upper: Option<String>,
    /// Documents, as a bar under the diagram.
    pub count_y: String,
    pub count_height: String,
    pub width: String,
}

/// The side of the square, its margins, and the height of the bars under it.
const SQUARE: f64 = 200.0;
const MARGIN: f64 = 36.0;
const TOP: f64 = 8.0;
const COUNTS: f64 = 40.0;

/// Returns the bins of a reliability diagram: accuracy over confidence, and how many documents there are.
pub fn reliability(found: &Calibration) -> Vec<Bar> {
    let most = found.bins.iter().flatten().map(|bin| bin.n).max().unwrap_or(1) as f64;
    let width = SQUARE / BINS as f64;
    let y = |share: f64| at(TOP + SQUARE * (1.0 - share));
    let bars = found.bins.iter().enumerate().filter_map(|(index, bin)| {
        let bin = bin.as_ref()?;
        let height = COUNTS * bin.n as f64 / most;
        Some(Bar {
            x: at(MARGIN + width * index as f64 + 1.0),
            dot_x: at(MARGIN + SQUARE * bin.confidence),
            dot_y: y(bin.accuracy),
            lower: bin.interval.map(|interval| y(interval.lower)),
            upper: bin.interval.map(|interval| y(interval.upper)),
            count_y: at(TOP + SQUARE + COUNTS + 4.0 - height),
            count_height: at(height),
            width: at(width - 2.0),
        })
    });
    bars.collect()
}
