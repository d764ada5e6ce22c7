//! Sums of what goes into a decoder's products.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Inputs, NotFinite, Observer, Site, SiteTensors};
use crate::kernel::Compute;
use crate::kernel::column_moments::add_column_moments;

/// Sums over the rows that were seen at one site.
#[derive(Clone, Debug, PartialEq)]
pub struct SiteSums {
    pub tensors: SiteTensors,
    /// Of the squared inputs, `[experts, columns]`.
    pub squares: Vec<f64>,
    /// Of the inputs, as many.
    pub values: Vec<f64>,
    /// Rows of each expert.
    pub counts: Vec<u64>,
}

impl SiteSums {
    /// Returns sums of nothing.
    fn of_none(tensors: SiteTensors) -> SiteSums {
        let n = tensors.columns * tensors.n_experts;
        let (squares, values, counts) = (vec![0.0; n], vec![0.0; n], vec![0; tensors.n_experts]);
        SiteSums { tensors, squares, values, counts }
    }
}

/// Sums what a decoder on the CPU multiplies.
pub struct InputSums {
    compute: Arc<Compute>,
    sites: BTreeMap<Site, SiteSums>,
}

impl InputSums {
    /// Returns one that has seen nothing of these sites, and sees no others.
    pub fn new(compute: Arc<Compute>, sites: Vec<SiteTensors>) -> Self {
        let sites = sites.into_iter().map(|tensors| (tensors.site, SiteSums::of_none(tensors)));
        InputSums { compute, sites: sites.collect() }
    }

    /// Returns the sums of every site, in their order.
    pub fn finish(self) -> Vec<SiteSums> {
        self.sites.into_values().collect()
    }
}

impl Observer for InputSums {
    fn inputs(&mut self, inputs: &Inputs<'_>) -> Result<(), NotFinite> {
        let Some(of_site) = self.sites.get_mut(&inputs.site) else { return Ok(()) };
        let columns = of_site.tensors.columns;
        let part = inputs.expert * columns..(inputs.expert + 1) * columns;
        let squares = &mut of_site.squares[part.clone()];
        add_column_moments(&self.compute, inputs.x, &mut of_site.values[part], squares);
        of_site.counts[inputs.expert] += (inputs.x.len() / columns) as u64;
        // files hold f32
        let Some(column) = squares.iter().position(|sum| !(*sum as f32).is_finite()) else { return Ok(()) };
        let row = first_beyond(inputs.x.iter().skip(column).step_by(columns).copied(), squares[column]);
        Err(NotFinite {
            tensor: of_site.tensors.names.first().cloned().unwrap_or_default(),
            row: inputs.rows.map_or(row, |rows| rows[row]),
            column,
            value: squares[column] as f32,
        })
    }
}

/// Returns which of the values first makes a sum of squares, which came to `sum`, no finite f32.
fn first_beyond(mut values: impl ExactSizeIterator<Item = f32> + Clone, sum: f64) -> usize {
    if let Some(at) = values.clone().position(|x| !x.is_finite()) {
        return at;
    }
    let square = |x: f32| f64::from(x) * f64::from(x);
    let mut so_far = sum - values.clone().map(square).sum::<f64>();
    let last = values.len().saturating_sub(1);
    let is_beyond = |x| {
        so_far += square(x);
        !(so_far as f32).is_finite()
    };
    values.position(is_beyond).unwrap_or(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_row_that_is_too_much_is_found() {
        let of = |values: &[f32], sum| first_beyond(values.iter().copied(), sum);
        assert_eq!(of(&[1.0, f32::INFINITY, f32::NAN], f64::NAN), 1);
        assert_eq!(of(&[1.0, 2.0, 3e19, 4.0], 9e38), 2);
        // what was there before counts
        assert_eq!(of(&[1.0, 1e19, 2.0], 3.35e38 + 1e38), 1);
    }
}
