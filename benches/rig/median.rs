//! One figure of several.

use meshd::testbed::paired::Spread;

/// The median of those `values` that are finite. NaN of none.
pub(crate) fn median(values: &[f64]) -> f64 {
    Spread::of(values.iter().copied()).map_or(f64::NAN, |spread| spread.median)
}
