//! What a task says about itself to `lctl gate`.

use serde::{Deserialize, Serialize};

use crate::yaml::Fields;

/// How much a task counts when a candidate is compared with its baseline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GateKeys {
    /// The task has to be shown to be within its margin by itself.
    pub critical: bool,
    /// How much worse counts as no worse, in the metric's own unit (0.02 is 2 points); `None` leaves it to the policy.
    pub margin: Option<f64>,
    /// One document that was right and is wrong fails the candidate.
    pub zero_tolerance: bool,
}

/// Reads `critical`, `margin` and `zero_tolerance`.
pub fn parse(fields: &Fields) -> GateKeys {
    let flag = |key| fields.optional(key).is_some_and(|node| node.flag());
    let keys = GateKeys {
        critical: flag("critical"),
        margin: fields.optional("margin").map(|node| {
            let margin = node.number();
            if node.is_number() && margin <= 0.0 {
                node.note(format!(
                    "`margin` must be above 0, not {margin}; `zero_tolerance: true` allows no loss"
                ));
            }
            margin
        }),
        zero_tolerance: flag("zero_tolerance"),
    };
    if let Some(node) = fields.optional("margin").filter(|_| keys.zero_tolerance) {
        node.note("a task with `zero_tolerance` has no margin");
    }
    keys
}
