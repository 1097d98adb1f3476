//! The groups of a policy. A group may have other groups as its members. They are replaced by the selectors in them.

use std::collections::{BTreeMap, BTreeSet};

use toml::de::{DeTable, DeValue};

use super::document::{Errors, Word, kind_of};
use crate::model::Label;
use crate::policy::rules::{Group, Term};
use crate::policy::selector::Selector;

/// The maximum number of selectors in all groups together, after the groups in groups are resolved. Without it, a short text could have
/// millions of selectors, by groups in groups in groups.
const MAX_MEMBERS: usize = 65_536;

/// The most groups that a message about a circle names.
const MAX_NAMED: usize = 6;

/// The names of the groups, and the number of each.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<Label, usize>);

/// A group as it is written.
struct Written<'a> {
    at: usize,
    name: Label,
    members: Vec<Word<'a>>,
}

impl Names {
    /// The group or the selector that a text means.
    pub(super) fn term(&self, text: &str) -> Result<Term, String> {
        if let Ok(name) = Label::parse(text)
            && let Some(group) = self.0.get(&name)
        {
            return Ok(Term::Group(*group));
        }
        Selector::parse(text)
            .map(Term::One)
            .map_err(|error| error.to_string())
    }
}

/// Parses the table `groups`. A term has the number of a group in the list that is returned.
pub(super) fn parse(errors: &mut Errors<'_>, top: &DeTable<'_>) -> (Names, Vec<Group>) {
    let Some(value) = top.get("groups") else {
        return (Names::default(), Vec::new());
    };
    let DeValue::Table(table) = value.get_ref() else {
        let kind = kind_of(value.get_ref());
        let message = format!("`groups` is a table, not {kind}; write `[groups]`");
        errors.add(value.span().start, message);
        return (Names::default(), Vec::new());
    };
    let (names, written) = read(errors, table);
    let members = terms(errors, &names, &written);
    let resolved = resolve(errors, &written, members);
    let groups = written.into_iter().zip(resolved);
    let groups = groups.map(|(group, members)| Group {
        line: errors.line(group.at),
        name: group.name,
        members,
    });
    (names, groups.collect())
}

fn read<'t>(errors: &mut Errors<'_>, table: &'t DeTable<'t>) -> (Names, Vec<Written<'t>>) {
    let mut names = Names::default();
    let mut written: Vec<Written<'t>> = Vec::new();
    for (key, value) in table {
        let at = key.span().start;
        let name = match Label::parse(key.get_ref()) {
            Ok(name) => name,
            Err(error) => {
                errors.add(at, format!("the name of a group: {error}"));
                continue;
            }
        };
        if name.as_str() == "same-project" {
            errors.add(
                at,
                "`same-project` is a selector and no name for a group".to_owned(),
            );
            continue;
        }
        if names.0.contains_key(&name) {
            errors.add(
                at,
                format!("there are two groups `{name}`; names have no case"),
            );
            continue;
        }
        let members = errors.list(value.span().start, value.get_ref(), name.as_str());
        names.0.insert(name.clone(), written.len());
        written.push(Written { at, name, members });
    }
    (names, written)
}

/// The members of each group.
fn terms(errors: &mut Errors<'_>, names: &Names, written: &[Written<'_>]) -> Vec<Vec<Term>> {
    let mut all = Vec::new();
    for group in written {
        let mut members = Vec::new();
        for word in &group.members {
            match super::without_port(names, word.text) {
                Ok(Term::One(Selector::SameProject)) => errors.add(
                    word.at,
                    "`same-project` stands in `to`, and in no group".to_owned(),
                ),
                Ok(term) => members.push(term),
                Err(message) => errors.add(word.at, message),
            }
        }
        all.push(members);
    }
    all
}

/// Replaces the groups in groups by their members, the innermost groups first.
fn resolve(
    errors: &mut Errors<'_>,
    written: &[Written<'_>],
    members: Vec<Vec<Term>>,
) -> Vec<Vec<Selector>> {
    let inner = |terms: &[Term]| {
        let groups = terms.iter().filter_map(|term| match term {
            Term::Group(group) => Some(*group),
            Term::One(_) => None,
        });
        groups.collect::<BTreeSet<usize>>()
    };
    // How many groups in each group are not resolved yet, and the groups around each group.
    let mut open: Vec<BTreeSet<usize>> = members.iter().map(|terms| inner(terms)).collect();
    let mut around: Vec<Vec<usize>> = vec![Vec::new(); members.len()];
    for (group, inner) in open.iter().enumerate() {
        for inner in inner {
            if let Some(around) = around.get_mut(*inner) {
                around.push(group);
            }
        }
    }
    let mut resolved: Vec<Option<Vec<Selector>>> = vec![None; members.len()];
    let mut total = 0;
    let mut ready: Vec<usize> = (0..open.len()).filter(|g| open[*g].is_empty()).collect();
    while let Some(group) = ready.pop() {
        let selectors = flat(&members[group], &resolved);
        total += selectors.len();
        if total > MAX_MEMBERS {
            let at = written.get(group).map_or(0, |group| group.at);
            let message = format!("the groups have more than {MAX_MEMBERS} members together");
            errors.add(at, message);
            return Vec::new();
        }
        resolved[group] = Some(selectors);
        for outer in &around[group] {
            if open[*outer].remove(&group) && open[*outer].is_empty() {
                ready.push(*outer);
            }
        }
    }
    if let Some(first) = resolved.iter().position(Option::is_none) {
        report_circle(errors, written, &open, first);
    }
    resolved
        .into_iter()
        .map(Option::unwrap_or_default)
        .collect()
}

/// The selectors of `terms`, each once.
fn flat(terms: &[Term], resolved: &[Option<Vec<Selector>>]) -> Vec<Selector> {
    let mut selectors = BTreeSet::new();
    for term in terms {
        match term {
            Term::One(selector) => {
                selectors.insert(selector.clone());
            }
            Term::Group(group) => {
                let inner = resolved.get(*group).and_then(Option::as_ref);
                selectors.extend(inner.into_iter().flatten().cloned());
            }
        }
    }
    selectors.into_iter().collect()
}

/// Names the groups of one circle. Each group that is not resolved has another such group in it, so a walk from one to the next comes to
/// a group where it was before.
fn report_circle(
    errors: &mut Errors<'_>,
    written: &[Written<'_>],
    open: &[BTreeSet<usize>],
    first: usize,
) {
    let mut walked: Vec<usize> = Vec::new();
    let mut group = first;
    while !walked.contains(&group) {
        walked.push(group);
        match open.get(group).and_then(|inner| inner.first()) {
            Some(inner) => group = *inner,
            None => return,
        }
    }
    let circle = walked.iter().skip_while(|walked| **walked != group);
    let names: Vec<String> = circle
        .filter_map(|group| written.get(*group))
        .map(|group| format!("`{}`", group.name))
        .collect();
    let at = written.get(group).map_or(0, |group| group.at);
    let message = match names.as_slice() {
        [name] => format!(
            "the group {name} has itself as a member; a group and a service in it cannot have one name"
        ),
        names => {
            let named: Vec<&str> = names.iter().take(MAX_NAMED).map(String::as_str).collect();
            format!(
                "the groups {} are members of each other in a circle",
                named.join(", ")
            )
        }
    };
    errors.add(at, message);
}
