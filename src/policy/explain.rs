//! Explains why a packet passes or does not pass.

use std::fmt;

use super::interpret::{Verdict, has, is_target, refusing_service, rule_allows, target_allows};
use super::ports::Asked;
use super::rules::{Policy, Rule};
use super::subject::Subject;

/// The reason of a verdict. It is printed as one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The verdict.
    pub verdict: Verdict,
    /// The line of the rule that allows the packet, or of the rule that comes nearest to that; none if there is no such rule.
    pub line: Option<usize>,
    /// The reason, for a person.
    pub reason: String,
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

/// Names the rule that allows a packet. If there is none, names the rule that comes nearest to that, and what this rule lacks.
#[must_use]
pub fn explain(policy: Option<&Policy>, from: &Subject, to: &Subject, asked: Asked) -> Explanation {
    let (line, by_policy) = allowed_by(policy, from, to, asked);
    let (verdict, line, reason) = match (by_policy, refusing_service(from, to, asked)) {
        (Some(by_policy), None) => (Verdict::Allow, line, by_policy),
        (Some(by_policy), Some(service)) => {
            let names: Vec<String> = service.allow.iter().map(ToString::to_string).collect();
            let reason = format!(
                "{by_policy}, but `mesh.allow` of {} lets only {} pass, and {from} is none of them",
                service.service,
                names.join(", ")
            );
            (Verdict::Deny, line, reason)
        }
        (None, _) => {
            let (line, reason) = nearest(policy, from, to, asked);
            (Verdict::Deny, line, reason)
        }
    };
    Explanation {
        verdict,
        line,
        reason,
    }
}

/// The line of the rule by which the policy allows a packet, and the reason; no reason if the policy does not allow it.
fn allowed_by(
    policy: Option<&Policy>,
    from: &Subject,
    to: &Subject,
    asked: Asked,
) -> (Option<usize>, Option<String>) {
    let Some(policy) = policy else {
        let reason = "there is no policy, so everything is allowed";
        return (None, Some(reason.to_owned()));
    };
    let mut rules = policy.rules.iter();
    if let Some(rule) = rules.find(|rule| rule_allows(policy, rule, from, to, asked)) {
        let reason = format!(
            "the rule in line {} allows {from} to reach {asked} of {to}",
            rule.line
        );
        return (Some(rule.line), Some(reason));
    }
    let reason = "`default = \"allow\"` of the policy allows everything";
    (None, policy.default_allow.then(|| reason.to_owned()))
}

/// The line of the rule that lacks least to allow a packet, and the reason why the packet does not pass.
fn nearest(
    policy: Option<&Policy>,
    from: &Subject,
    to: &Subject,
    asked: Asked,
) -> (Option<usize>, String) {
    let rules = policy.into_iter().flat_map(|policy| {
        let rules = policy.rules.iter();
        rules.filter_map(move |rule| Some((lack(policy, rule, from, to, asked)?, rule)))
    });
    // Of equally near rules the first one is named.
    let Some((lack, rule)) = rules.min_by_key(|(lack, _)| *lack) else {
        let reason =
            format!("no rule allows it: none has {from} as its source, or {to} as its destination");
        return (None, reason);
    };
    let line = rule.line;
    let reason = match lack {
        Lack::Port => format!(
            "no rule allows it; the rule in line {line} allows {from} to reach {to}, but not at {asked}"
        ),
        Lack::Source => format!(
            "no rule allows it; the rule in line {line} opens {asked} of {to}, but not to {from}"
        ),
        Lack::SourceAndPort => format!(
            "no rule allows it; the rule in line {line} is about {to}, but neither about {from} nor about {asked}"
        ),
        Lack::Destination => format!(
            "no rule allows it; the rule in line {line} is about {from}, but not about {to}"
        ),
    };
    (Some(line), reason)
}

/// What a rule lacks to allow a packet, the least first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lack {
    Port,
    Source,
    Destination,
    SourceAndPort,
}

fn lack(policy: &Policy, rule: &Rule, from: &Subject, to: &Subject, asked: Asked) -> Option<Lack> {
    let has_source = has(policy, &rule.from, from);
    let mut targets = rule.to.iter();
    let has_port = targets.any(|target| target_allows(policy, target, from, to, asked));
    let mut targets = rule.to.iter();
    let has_destination = targets.any(|target| is_target(policy, target, from, to));
    match (has_source, has_destination, has_port) {
        (true, true, _) => Some(Lack::Port),
        (false, _, true) => Some(Lack::Source),
        (false, true, false) => Some(Lack::SourceAndPort),
        (true, false, _) => Some(Lack::Destination),
        (false, false, false) => None,
    }
}
