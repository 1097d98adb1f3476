//! Compiles a policy and the subjects of a mesh to a table.
//!
//! Subjects with equal facts get one class, rules become blocks of classes that reach each other, and the blocks are packed into layers.
//! No step looks at each pair of classes.

mod blocks;
mod facts;
mod index;
mod layers;
mod narrowing;
mod opened;
mod sets;

use self::blocks::{Blocks, Builder};
pub use self::facts::MAX_KINDS;
pub(super) use self::facts::{Kinds, Owners};
use self::index::Index;
pub(super) use self::opened::opened;
use self::sets::Sets;
use super::rules::Policy;
use super::subject::Subject;
use super::table::{Base, Table};

impl Table {
    /// Compiles a policy for the subjects of a mesh. Without a policy, only `mesh.allow` of a destination denies something.
    #[must_use]
    pub fn compile(policy: Option<&Policy>, subjects: &[Subject]) -> Self {
        let owners = Owners::of(subjects);
        let kinds = Kinds::of(subjects, &owners);
        Self::of_kinds(policy, &kinds, &owners)
    }

    /// Compiles a policy for subjects whose classes are known.
    pub(super) fn of_kinds(policy: Option<&Policy>, kinds: &Kinds<'_>, owners: &Owners) -> Self {
        Self::with_pairs(policy, kinds, owners, layers::MAX_PAIRS)
    }

    /// Compiles a policy to layers of at most `most_pairs` pairs.
    pub(super) fn with_pairs(
        policy: Option<&Policy>,
        kinds: &Kinds<'_>,
        owners: &Owners,
        most_pairs: usize,
    ) -> Self {
        let index = Index::of(&kinds.examples);
        let mut sets = Sets::default();
        let rules = policy.filter(|policy| !policy.default_allow);
        let blocks = match rules {
            Some(policy) => Builder::new(policy, &index, &mut sets).build(),
            None => Blocks::default(),
        };
        let layers = layers::pack(&blocks, index.len(), most_pairs, &mut sets);
        let narrowing = narrowing::narrowing(&index, &mut sets);
        let base = match rules {
            Some(_) => Base::Rules,
            None => Base::Everything,
        };
        Self {
            base,
            is_open: base == Base::Everything && narrowing.of_class.is_empty(),
            classes: kinds.classes(owners),
            layers: layers.into(),
            narrowing: narrowing.into(),
            sets: sets.into_sets().into(),
        }
    }
}
