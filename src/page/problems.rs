//! The view of problems, each with its reason and its remedy.

use maud::{Markup, html};

use super::table::{MAX_ROWS, cut, heading, text};
use crate::protocol::admin::{NodeRow, UrlProblem};
use crate::protocol::local::Problem;

/// The problems of a program.
#[must_use]
pub fn view(problems: &[Problem]) -> Markup {
    html! {
        (heading("Problems"))
        @if problems.is_empty() {
            p class="good" { "There is no problem." }
        }
        @for problem in problems.iter().take(MAX_ROWS) {
            article {
                h3 { (text(&problem.what)) }
                dl {
                    dt { "Why" } dd { (text(&problem.why)) }
                    dt { "What to do" } dd { (text(&problem.fix)) }
                }
            }
        }
        (cut(problems.len()))
    }
}

/// The problems of a coordinator: its URLs, and the nodes that are not connected to it.
#[must_use]
pub fn of_coordinator(urls: &[UrlProblem], nodes: &[NodeRow]) -> Vec<Problem> {
    let urls = urls.iter().map(|problem| Problem {
        what: format!("{} does not lead to this coordinator", problem.url),
        why: problem.why.clone(),
        fix: problem.fix.clone(),
    });
    let away = nodes.iter().filter(|node| !node.connected);
    let away = away.map(|node| Problem {
        what: format!("{} is not connected to this coordinator", node.name),
        why:
            "it has no control stream: meshd does not run there, or does not reach this coordinator"
                .to_owned(),
        fix: format!(
            "run `meshctl status` on {0}; if it is gone for good, run `meshctl node remove {0}`",
            node.name
        ),
    });
    urls.chain(away).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::node_list;

    #[test]
    fn each_problem_has_its_reason_and_its_remedy() {
        let problem = Problem {
            what: "names are not answered".to_owned(),
            why: "port 53 is taken".to_owned(),
            fix: "stop the other program".to_owned(),
        };
        let page = view(&[problem]).into_string();
        assert!(page.contains("<h3>names are not answered</h3>"), "{page}");
        assert!(page.contains("<dd>port 53 is taken</dd>"), "{page}");
        assert!(page.contains("<dd>stop the other program</dd>"), "{page}");
        assert!(!page.contains("There is no problem"), "{page}");
        assert!(view(&[]).into_string().contains("There is no problem"));
    }

    #[test]
    fn a_node_without_a_connection_is_a_problem_of_a_coordinator() {
        let nodes = node_list(&["a", "b", "c"]).nodes;
        let problems = of_coordinator(&[], &nodes);
        let what: Vec<&str> = problems
            .iter()
            .map(|problem| problem.what.as_str())
            .collect();
        assert_eq!(what, ["b is not connected to this coordinator"]);
    }
}
