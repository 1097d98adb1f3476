//! The view of the policy: its text, whether its tests hold in the present mesh, and what it denied.

use maud::{Markup, html};

use super::table::{MAX_ROWS, Tone, cut, date, heading, mark, table, text};
use crate::model::ServiceName;
use crate::model::text::printable;
use crate::policy::{MAX_POLICY, Policy, Subject, run_tests};
use crate::protocol::local::{DeniedDirection, DeniedEnd, DeniedList, DeniedRow};
use crate::records::netmap::Rules;

/// What the view is made of.
#[derive(Debug, Clone, Default)]
pub struct PolicyFacts {
    /// The version of the policy. None if there is no policy.
    pub version: Option<u64>,
    pub rules: Rules,
    /// Whether another policy is tried beside it.
    pub is_trying: bool,
    /// The nodes and instances of the mesh, against which its tests run.
    pub subjects: Vec<Subject>,
    /// What this node refused. A coordinator sees no packets, and has none.
    pub denied: Option<DeniedList>,
}

/// The policy. This runs its tests, which may take a while.
#[must_use]
pub fn view(facts: &PolicyFacts) -> Markup {
    html! {
        (heading("Policy"))
        @match &facts.rules {
            Rules::Open => {
                p { "There is no policy: every node may serve every name, and reach all that is exposed." }
            }
            Rules::Closed => {
                p class="bad" {
                    "This version of meshd does not understand the policy of the mesh, so nothing passes. Install the version with which it was applied."
                }
            }
            Rules::Policy(policy) => { (in_force(policy, facts)) }
        }
        @if facts.is_trying {
            p class="warning" { "Another policy is tried beside it. Nothing is denied by that one." }
        }
        @match &facts.denied {
            Some(list) => { (denied(list)) }
            None => {
                p { "A coordinator sees no packets. The page of a node shows what the policy denied there." }
            }
        }
    }
}

fn in_force(policy: &Policy, facts: &PolicyFacts) -> Markup {
    let failures = run_tests(policy, &facts.subjects);
    let tests = policy.test_count();
    // Each line by itself, because a line break is no printable character.
    let lines = policy
        .text()
        .lines()
        .map(|line| printable(line, MAX_POLICY));
    let lines: Vec<String> = lines.collect();
    html! {
        h3 { "Tests" }
        @if tests == 0 {
            p { "The policy has no tests." }
        } @else if failures.is_empty() {
            p class="good" { "All " (tests) " tests of the policy hold in the present mesh." }
        } @else {
            p class="bad" { (failures.len()) " of " (tests) " tests do not hold in the present mesh." }
            ul {
                @for failure in failures.iter().take(MAX_ROWS) { li { (text(failure)) } }
            }
            (cut(failures.len()))
        }
        h3 { "Text" }
        @if let Some(version) = facts.version { p { "This is version " (version) "." } }
        pre tabindex="0" { code { (lines.join("\n")) } }
    }
}

fn denied(list: &DeniedList) -> Markup {
    let rows: Vec<Vec<Markup>> = list.denied.iter().take(MAX_ROWS).map(row).collect();
    let columns = ["From", "To", "Asked for", "Result", "Packets", "Last"];
    html! {
        h3 { "Denials" }
        @if rows.is_empty() {
            p { "This node denied nothing lately." }
        } @else {
            (table("What this node denied, the latest first", &columns, &rows))
            (cut(list.denied.len()))
        }
    }
}

fn row(denied: &DeniedRow) -> Vec<Markup> {
    let direction = match denied.direction {
        DeniedDirection::Outgoing => "sent by this node",
        DeniedDirection::Incoming => "received",
        DeniedDirection::Other => "other",
    };
    let (tone, result) = if denied.passed {
        (Tone::Warning, "passed, the tried policy would deny it")
    } else {
        (Tone::Bad, "denied")
    };
    vec![
        end(&denied.from),
        end(&denied.to),
        html! { (text(&denied.asked)) ", " (direction) },
        mark(tone, result),
        html! { (denied.count) },
        text(&date(denied.last_at)),
    ]
}

fn end(end: &DeniedEnd) -> Markup {
    let services: Vec<String> = end.services.iter().map(ServiceName::to_string).collect();
    html! {
        (text(&end.address))
        @if let Some(node) = &end.node { " on " (text(node)) }
        @if let Some(guest) = &end.guest { " (the guest " (text(guest)) ")" }
        @if !services.is_empty() { " (" (text(&services.join(", "))) ")" }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::page::tests::denied_row;

    fn facts(text: &str) -> PolicyFacts {
        PolicyFacts {
            version: Some(7),
            rules: Rules::Policy(Arc::new(Policy::parse(text).expect("a policy"))),
            ..PolicyFacts::default()
        }
    }

    #[test]
    fn the_tests_of_the_policy_run_and_those_that_fail_are_listed() {
        let rule = "language = 1\n[[allow]]\nfrom = [\"tag:web\"]\nto = [\"db:5432\"]\n";
        let test = |wanted: &str| {
            format!("{rule}[[test]]\nfrom = \"tag:web\"\nto = \"db:5432\"\nis = \"{wanted}\"\n")
        };
        let page = view(&facts(&test("allow"))).into_string();
        assert!(page.contains("All 1 tests of the policy hold"), "{page}");
        assert!(page.contains("to = [&quot;db:5432&quot;]"), "{page}");
        let page = view(&facts(&test("deny"))).into_string();
        assert!(page.contains("1 of 1 tests do not hold"), "{page}");
        assert!(page.contains("<li>line "), "{page}");
    }

    #[test]
    fn what_was_denied_is_shown_with_both_ends() {
        let facts = PolicyFacts {
            denied: Some(DeniedList {
                schema: 1,
                policy: Some(7),
                denied: vec![denied_row("web-1", "db")],
            }),
            ..PolicyFacts::default()
        };
        let page = view(&facts).into_string();
        assert!(page.contains("10.210.1.9 on web-1"), "{page}");
        assert!(page.contains("10.210.2.9 (db)"), "{page}");
        assert!(page.contains("5432/tcp"), "{page}");
        let of_coordinator = view(&PolicyFacts::default()).into_string();
        assert!(of_coordinator.contains("A coordinator sees no packets"));
    }
}
