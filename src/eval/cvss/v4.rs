//! Scores of CVSS v4.0 (specification document, section 8): a table of MacroVectors, and the distance of a
//! vector from the severest vector of its MacroVector.

use super::v4_table::TENTHS;

/// A MacroVector: levels of EQ1, EQ2, EQ4 and EQ5, and the place of EQ3 and EQ6 in [`EQ36`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Macro {
    eq1: usize,
    eq2: usize,
    eq36: usize,
    eq4: usize,
    eq5: usize,
}

/// Levels of EQ3 and EQ6 that can be together.
const EQ36: [(usize, usize); 5] = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 1)];

/// Returns the score, 0.0 to 10.0; `given` is the value of a metric, `None` if it is not defined.
pub fn score(given: impl Fn(&str) -> Option<&'static str>) -> f64 {
    let vector = Effective::new(given);
    if ["VC", "VI", "VA", "SC", "SI", "SA"].iter().all(|metric| vector.value(metric) == "N") {
        return 0.0;
    }
    let at = vector.macro_vector();
    let value = at.score();
    let mut normalized = 0.0;
    let mut n_lower = 0;
    for (lower, part, depth) in at.parts() {
        if let Some(lower) = lower {
            n_lower += 1;
            // EQ5 has one metric: its severest vector is the vector
            let steps = part.map_or(0, |severest| vector.distance(severest));
            normalized += (value - lower) * f64::from(steps) / f64::from(depth);
        }
    }
    let mean = if n_lower == 0 { 0.0 } else { normalized / f64::from(n_lower) };
    // the specification's calculator adds 10^-6 before rounding half up, so that 1.4499999999999993 is 1.5
    (((value - mean).clamp(0.0, 10.0) + 1e-6) * 10.0 + 0.5).floor() / 10.0
}

/// What lies below a MacroVector in one equivalence class: score of the next lower MacroVector if there is one,
/// severest vectors of this level, steps between this level and the next.
type Part = (Option<f64>, Option<&'static [&'static [(&'static str, &'static str)]]>, u8);

impl Macro {
    fn score(self) -> f64 {
        f64::from(TENTHS[((self.eq1 * 2 + self.eq2) * 5 + self.eq36) * 9 + self.eq4 * 3 + self.eq5]) / 10.0
    }

    fn parts(self) -> [Part; 5] {
        let below = |is_there: bool, lower: Macro| is_there.then(|| lower.score());
        let eq1 = below(self.eq1 < 2, Macro { eq1: self.eq1 + 1, ..self });
        let eq2 = below(self.eq2 < 1, Macro { eq2: self.eq2 + 1, ..self });
        let eq4 = below(self.eq4 < 2, Macro { eq4: self.eq4 + 1, ..self });
        let eq5 = below(self.eq5 < 2, Macro { eq5: self.eq5 + 1, ..self });
        let eq36 = match EQ36[self.eq36] {
            // both neighbours are lower: the higher of them counts
            (0, 0) => Some(self.with_eq36(1).max(self.with_eq36(2))),
            (0, _) | (1, 0) => Some(self.with_eq36(3)),
            (1, _) => Some(self.with_eq36(4)),
            _ => None,
        };
        [
            (eq1, Some(SEVEREST_EQ1[self.eq1]), [1, 4, 5][self.eq1]),
            (eq2, Some(SEVEREST_EQ2[self.eq2]), [1, 2][self.eq2]),
            (eq36, Some(SEVEREST_EQ36[self.eq36]), [7, 6, 8, 8, 10][self.eq36]),
            (eq4, Some(SEVEREST_EQ4[self.eq4]), [6, 5, 4][self.eq4]),
            (eq5, None, 1),
        ]
    }

    fn with_eq36(self, eq36: usize) -> f64 {
        Macro { eq36, ..self }.score()
    }
}

type Severest = &'static [&'static [(&'static str, &'static str)]];

const SEVEREST_EQ1: [Severest; 3] = [
    &[&[("AV", "N"), ("PR", "N"), ("UI", "N")]],
    &[
        &[("AV", "A"), ("PR", "N"), ("UI", "N")],
        &[("AV", "N"), ("PR", "L"), ("UI", "N")],
        &[("AV", "N"), ("PR", "N"), ("UI", "P")],
    ],
    &[&[("AV", "P"), ("PR", "N"), ("UI", "N")], &[("AV", "A"), ("PR", "L"), ("UI", "P")]],
];

const SEVEREST_EQ2: [Severest; 2] =
    [&[&[("AC", "L"), ("AT", "N")]], &[&[("AC", "H"), ("AT", "N")], &[("AC", "L"), ("AT", "P")]]];

const SEVEREST_EQ36: [Severest; 5] = [
    &[&[("VC", "H"), ("VI", "H"), ("VA", "H"), ("CR", "H"), ("IR", "H"), ("AR", "H")]],
    &[
        &[("VC", "H"), ("VI", "H"), ("VA", "L"), ("CR", "M"), ("IR", "M"), ("AR", "H")],
        &[("VC", "H"), ("VI", "H"), ("VA", "H"), ("CR", "M"), ("IR", "M"), ("AR", "M")],
    ],
    &[
        &[("VC", "L"), ("VI", "H"), ("VA", "H"), ("CR", "H"), ("IR", "H"), ("AR", "H")],
        &[("VC", "H"), ("VI", "L"), ("VA", "H"), ("CR", "H"), ("IR", "H"), ("AR", "H")],
    ],
    &[
        &[("VC", "L"), ("VI", "H"), ("VA", "L"), ("CR", "H"), ("IR", "M"), ("AR", "H")],
        &[("VC", "L"), ("VI", "H"), ("VA", "H"), ("CR", "H"), ("IR", "M"), ("AR", "M")],
        &[("VC", "H"), ("VI", "L"), ("VA", "H"), ("CR", "M"), ("IR", "H"), ("AR", "M")],
        &[("VC", "H"), ("VI", "L"), ("VA", "L"), ("CR", "M"), ("IR", "H"), ("AR", "H")],
        &[("VC", "L"), ("VI", "L"), ("VA", "H"), ("CR", "H"), ("IR", "H"), ("AR", "M")],
    ],
    &[&[("VC", "L"), ("VI", "L"), ("VA", "L"), ("CR", "H"), ("IR", "H"), ("AR", "H")]],
];

const SEVEREST_EQ4: [Severest; 3] = [
    &[&[("SC", "H"), ("SI", "S"), ("SA", "S")]],
    &[&[("SC", "H"), ("SI", "H"), ("SA", "H")]],
    &[&[("SC", "L"), ("SI", "L"), ("SA", "L")]],
];

/// Values that count towards the score, from the severest down; the same metrics for every vector.
const LEVELS: &[(&str, &[&str])] = &[
    ("AV", &["N", "A", "L", "P"]),
    ("AC", &["L", "H"]),
    ("AT", &["N", "P"]),
    ("PR", &["N", "L", "H"]),
    ("UI", &["N", "P", "A"]),
    ("VC", &["H", "L", "N"]),
    ("VI", &["H", "L", "N"]),
    ("VA", &["H", "L", "N"]),
    ("SC", &["S", "H", "L", "N"]),
    ("SI", &["S", "H", "L", "N"]),
    ("SA", &["S", "H", "L", "N"]),
    ("E", &["A", "P", "U"]),
    ("CR", &["H", "M", "L"]),
    ("IR", &["H", "M", "L"]),
    ("AR", &["H", "M", "L"]),
];

/// The values that count: a modified metric in place of its base metric, the worst case for what is not defined.
struct Effective {
    /// Level per metric of [`LEVELS`], 0 the severest.
    levels: [usize; LEVELS.len()],
}

fn place_of(metric: &str) -> usize {
    LEVELS.iter().position(|(name, _)| *name == metric).expect("the metrics named in this file are in LEVELS")
}

fn level_of(metric: &str, value: &str) -> usize {
    let (_, values) = LEVELS[place_of(metric)];
    values.iter().position(|known| *known == value).expect("parsing refuses other values")
}

impl Effective {
    fn new(given: impl Fn(&str) -> Option<&'static str>) -> Self {
        let level = |(metric, values): &(&'static str, &[&str])| {
            let value = given(&format!("M{metric}")).or_else(|| given(metric));
            level_of(metric, value.unwrap_or(values[0]))
        };
        let mut levels = [0; LEVELS.len()];
        for (place, row) in levels.iter_mut().zip(LEVELS) {
            *place = level(row);
        }
        Effective { levels }
    }

    fn value(&self, metric: &str) -> &'static str {
        let place = place_of(metric);
        LEVELS[place].1[self.levels[place]]
    }

    fn is(&self, metric: &str, value: &str) -> bool {
        self.value(metric) == value
    }

    /// Tables 24 to 29 of the specification.
    fn macro_vector(&self) -> Macro {
        let n_reach = [("AV", "N"), ("PR", "N"), ("UI", "N")].iter().filter(|(m, v)| self.is(m, v)).count();
        let eq1 = match n_reach {
            3 => 0,
            1 | 2 if !self.is("AV", "P") => 1,
            _ => 2,
        };
        let eq2 = usize::from(!(self.is("AC", "L") && self.is("AT", "N")));
        let eq3 = match (self.is("VC", "H"), self.is("VI", "H"), self.is("VA", "H")) {
            (true, true, _) => 0,
            (false, false, false) => 2,
            _ => 1,
        };
        let eq4 = if self.is("SI", "S") || self.is("SA", "S") {
            0
        } else if self.is("SC", "H") || self.is("SI", "H") || self.is("SA", "H") {
            1
        } else {
            2
        };
        let is_required = [("CR", "VC"), ("IR", "VI"), ("AR", "VA")]
            .iter()
            .any(|(requirement, impact)| self.is(requirement, "H") && self.is(impact, "H"));
        let eq6 = usize::from(!is_required);
        let eq36 = EQ36.iter().position(|known| *known == (eq3, eq6));
        Macro {
            eq1,
            eq2,
            eq36: eq36.expect("without a high impact (EQ3 level 2) no requirement counts (EQ6 level 1)"),
            eq4,
            eq5: level_of("E", self.value("E")),
        }
    }

    /// Returns the steps from the first severest vector that is at least as severe in every metric.
    fn distance(&self, severest: Severest) -> u8 {
        let steps = |vector: &&'static [(&str, &str)]| {
            let step = |(metric, value): &(&str, &str)| {
                self.levels[place_of(metric)].checked_sub(level_of(metric, value))
            };
            vector.iter().map(step).sum::<Option<usize>>()
        };
        severest.iter().find_map(steps).expect("every vector lies below a severest one of its MacroVector")
            as u8
    }
}
