//! Finds selectors that select nobody in a mesh, which are probably errors in writing.

use std::collections::BTreeSet;
use std::fmt;

use super::interpret::selects;
use super::rules::{Policy, Term};
use super::selector::Selector;
use super::subject::Subject;
use crate::model::text;

/// A selector that selects nobody.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Unmatched {
    /// The line of the first rule or group that has it.
    pub line: usize,
    /// The selector.
    pub selector: Selector,
    /// The most similar group or selector of something in the mesh, if one is similar. Only the first 64 selectors have one.
    pub nearest: Option<String>,
}

impl fmt::Display for Unmatched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, selector, .. } = self;
        write!(f, "line {line}: `{selector}` selects nobody in the mesh")?;
        match &self.nearest {
            Some(nearest) => write!(f, "; did you mean `{nearest}`?"),
            None => Ok(()),
        }
    }
}

/// The selectors in groups and rules that select nobody, each at its first line. This is no error, since a service may start later.
#[must_use]
pub fn unmatched(policy: &Policy, subjects: &[Subject]) -> Vec<Unmatched> {
    let mut written: BTreeSet<(usize, &Selector)> = BTreeSet::new();
    for group in &policy.groups {
        written.extend(group.members.iter().map(|member| (group.line, member)));
    }
    for rule in &policy.rules {
        let targets = rule.to.iter().map(|target| &target.term);
        let terms = rule.from.iter().chain(targets);
        written.extend(terms.filter_map(|term| match term {
            Term::One(selector) => Some((rule.line, selector)),
            Term::Group(_) => None,
        }));
    }
    let names = names(policy, subjects);
    let is_unmatched = |selector: &Selector| {
        let is_known = *selector == Selector::SameProject || names.contains(&selector.to_string());
        !is_known && !subjects.iter().any(|subject| selects(selector, subject))
    };
    let mut selectors: BTreeSet<&Selector> = written.iter().map(|(_, s)| *s).collect();
    selectors.retain(|selector| is_unmatched(selector));
    // Each is listed at its first line.
    let unmatched = written.iter().filter(|(_, s)| selectors.remove(*s));
    unmatched
        .enumerate()
        .map(|(n, (line, selector))| Unmatched {
            line: *line,
            selector: (*selector).clone(),
            nearest: (n < MAX_COMPARED)
                .then(|| text::nearest(&selector.to_string(), &names, SIMILAR).cloned())
                .flatten(),
        })
        .collect()
}

/// The groups, and all selectors without `*` that select somebody.
fn names(policy: &Policy, subjects: &[Subject]) -> BTreeSet<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for subject in subjects {
        names.extend(subject.tags.iter().map(|tag| format!("tag:{tag}")));
        names.extend(subject.guest.iter().map(|guest| format!("guest:{guest}")));
        let gateways = subject.network.iter().flat_map(|network| &network.gateways);
        names.extend(gateways.map(|gateway| format!("route:{gateway}")));
        if subject.is_node {
            names.insert(format!("node:{}", subject.node));
        }
        for offered in &subject.services {
            let name = &offered.service.name;
            match &offered.service.project {
                Some(project) => {
                    names.extend([format!("{project}/{name}"), format!("project:{project}")])
                }
                None => names.extend([name.to_string()]),
            }
        }
    }
    // The similar word may be the name of a group. No selector here has exactly this name: it would have been read as the group.
    names.extend(policy.groups.iter().map(|group| group.name.to_string()));
    names
}

/// The maximum number of selectors that are compared with all names of the mesh. The comparison takes long for thousands of them.
const MAX_COMPARED: usize = 64;
/// How similar a name must be to be the one that was probably meant.
const SIMILAR: f64 = 0.85;
