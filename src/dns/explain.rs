//! Explains the answers to a name: which instances it has, and which of them are answered. Pure.

use hickory_proto::rr::Name;

use super::answer::mesh_name;
use super::choice::find;
use super::zone::{Zone, ZoneInstance};

/// The part that an instance has in the answers to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// The instance is in every answer.
    Answered,
    /// The instance is in some answers, because the name has more instances than fit into one.
    InTurn,
    /// The name asks for the nearest instances only, and others are nearer.
    Farther,
    /// The instance is not usable. Its standing says why.
    Unusable,
}

/// Returns all instances of a name of the mesh, each with its part in the answers.
#[must_use]
pub fn explain<'a>(zone: &'a Zone, name: &Name) -> Vec<(&'a ZoneInstance, Part)> {
    let Some(relative) = mesh_name(zone, name) else {
        return Vec::new();
    };
    let Some(found) = find(zone, &relative) else {
        return Vec::new();
    };
    let answered = &found.entry.answered;
    let nearest = answered.first().map(|instance| instance.group);
    let is_meant = |i: &ZoneInstance| !found.nearest || Some(i.group) == nearest;
    let more = answered.iter().filter(|i| is_meant(i)).count() > zone.most_addresses;
    let all = found.entry.all().map(AsRef::as_ref);
    all.map(|instance: &ZoneInstance| {
        let is_answered = answered.iter().any(|i| std::ptr::eq(&**i, instance));
        let part = match (is_answered, is_meant(instance)) {
            (true, true) if more => Part::InTurn,
            (true, true) => Part::Answered,
            (true, false) => Part::Farther,
            (false, _) => Part::Unusable,
        };
        (instance, part)
    })
    .collect()
}
