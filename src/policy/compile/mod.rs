//! Compiles a policy and the subjects of a mesh to a table.

use super::rules::Policy;
use super::subject::Subject;
use super::table::{Base, Table};

impl Table {
    /// Compiles a policy for the subjects of a mesh.
    #[must_use]
    pub fn compile(_policy: Option<&Policy>, _subjects: &[Subject]) -> Self {
        Self {
            base: Base::Everything,
            is_open: true,
            ..Self::default()
        }
    }
}
