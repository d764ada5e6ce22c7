//! The flat vector of parameters.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::kernel::product::Values;

/// The flat vector of parameters: a slice of f32 that products read where it lies.
///
/// A clone shares the values until one of the two is written to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(Arc<Values>);

impl Parameters {
    /// Returns the values as matrices share them.
    pub(super) fn shared(&self) -> Arc<Values> {
        self.0.clone()
    }
}

impl From<Vec<f32>> for Parameters {
    fn from(values: Vec<f32>) -> Self {
        Parameters(Arc::new(Values(values)))
    }
}

impl Deref for Parameters {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.0.0
    }
}

impl DerefMut for Parameters {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut Arc::make_mut(&mut self.0).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_copied_only_where_a_clone_would_see_a_change() {
        let mut params = Parameters::from(vec![1.0, 2.0]);
        let place = params.as_ptr();
        params[0] = 3.0;
        assert_eq!(params.as_ptr(), place);
        let before = params.clone();
        assert_eq!(before.as_ptr(), place);
        params[1] = 4.0;
        assert!(*before == [3.0, 2.0] && *params == [3.0, 4.0] && before.as_ptr() == place);
    }
}
