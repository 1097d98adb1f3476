//! The frame around the views: the heading, the list of views, the form for the token, and the place of the view.

use maud::{DOCTYPE, Markup, html};

/// A program that serves the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub sections: &'static [Section],
}

/// A view in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// The last part of the path of the view.
    pub name: &'static str,
    pub title: &'static str,
    /// Whether the view takes a filter.
    pub is_filtered: bool,
}

/// The page of a node.
pub const NODE: Program = Program {
    name: "meshd",
    sections: &[NODES, PATHS, SERVICES, PROBLEMS, POLICY, AUDIT, HISTORY],
};

/// The page of a coordinator.
pub const COORDINATOR: Program = Program {
    name: "mesh-coordinator",
    sections: &[NODES, SERVICES, PROBLEMS, TOKENS, POLICY, AUDIT, HISTORY],
};

const NODES: Section = section("nodes", "Nodes", true);
const PATHS: Section = section("paths", "All paths", true);
const SERVICES: Section = section("services", "Services", true);
const PROBLEMS: Section = section("problems", "Problems", false);
const TOKENS: Section = section("tokens", "Tokens", false);
const POLICY: Section = section("policy", "Policy", false);
const AUDIT: Section = section("audit", "Audit", false);
const HISTORY: Section = section("history", "Last hour", false);

const fn section(name: &'static str, title: &'static str, is_filtered: bool) -> Section {
    Section {
        name,
        title,
        is_filtered,
    }
}

/// The command that makes a token for the page.
const CREATE: &str = "meshctl api-token create --name page --ttl 1d --scope status:read --scope nodes:read --scope services:read --scope policy:read --scope audit:read --scope metrics:read";

/// The frame. It has no data of the mesh.
#[must_use]
pub fn frame(program: &Program) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (program.name) }
                link rel="stylesheet" href="/page/style.css";
                link rel="icon" href="/page/icon.svg";
                script src="/page/script.js" defer {}
            }
            body {
                a id="skip" href="#view" { "Skip to the view" }
                header {
                    h1 { (program.name) }
                    nav aria-label="Views" id="sections" hidden {
                        ul {
                            @for section in program.sections {
                                li {
                                    a href={ "#" (section.name) } data-filtered[section.is_filtered] { (section.title) }
                                }
                            }
                        }
                    }
                }
                main {
                    noscript { p { "This page needs its script, which this server sends." } }
                    (token_form())
                    (controls())
                    p id="failure" role="alert" {}
                    section id="view" aria-labelledby="title" tabindex="-1" hidden {}
                }
            }
        }
    }
}

/// The form for the token. Its field has no name, so no browser puts the token into a URL.
fn token_form() -> Markup {
    html! {
        form id="enter" {
            h2 { "API token" }
            p { "This page shows the mesh to whoever has an API token. Make one where the mesh key is:" }
            pre tabindex="0" { code { (CREATE) } }
            label for="token" { "Token" }
            input id="token" type="password" autocomplete="off" autocapitalize="off" spellcheck="false" required;
            button type="submit" { "Show the mesh" }
            p { "The token stays in the memory of this page, and is gone when you close or reload it." }
        }
    }
}

fn controls() -> Markup {
    html! {
        div id="controls" hidden {
            p id="state" role="status" {}
            div id="search" {
                label for="filter" { "Filter" }
                input id="filter" type="search" autocomplete="off" spellcheck="false" maxlength="100";
            }
            button id="forget" type="button" { "Forget the token" }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::calls;
    use crate::protocol::api_token::Scope;
    use crate::protocol::web::calls::{ApiCall, Found, find};

    fn has(calls: &'static [ApiCall], path: &str) -> bool {
        matches!(find(calls, "GET", path), Found::Call(_))
    }

    #[test]
    fn each_section_has_a_view_and_its_filter_if_it_takes_one() {
        let programs = [(NODE, calls::OF_NODE), (COORDINATOR, calls::OF_COORDINATOR)];
        for (program, views) in programs {
            for section in program.sections {
                let path = format!("/page/view/{}", section.name);
                assert!(has(views, &path), "{path}");
                let filtered = has(views, &format!("{path}/web"));
                assert_eq!(filtered, section.is_filtered, "{path}");
            }
            assert!(has(views, calls::CHANGES));
        }
    }

    #[test]
    fn the_command_makes_a_token_that_permits_each_view() {
        let scopes = CREATE.split(" --scope ").skip(1);
        let scopes: Vec<Scope> = scopes.map(|word| word.parse().expect("a scope")).collect();
        for view in calls::OF_NODE.iter().chain(calls::OF_COORDINATOR) {
            assert!(scopes.contains(&view.scope), "{}", view.path);
        }
    }

    #[test]
    fn the_frame_has_landmarks_labels_and_nothing_that_its_policy_forbids() {
        for program in [NODE, COORDINATOR] {
            let page = frame(&program).into_string();
            for part in [
                "<html lang=\"en\">",
                "<main>",
                "<nav aria-label=\"Views\"",
                "<label for=\"token\">",
                "<label for=\"filter\">",
                "role=\"alert\"",
                "role=\"status\"",
            ] {
                assert!(page.contains(part), "{part}: {page}");
            }
            assert_eq!(page.matches("<script").count(), 1, "{page}");
            assert!(page.contains("<script src=\"/page/script.js\" defer></script>"));
            for forbidden in ["style=", "onclick", "javascript:", "http://", "https://"] {
                assert!(!page.contains(forbidden), "{forbidden}: {page}");
            }
            assert!(!page.contains("name=\"token\""), "{page}");
        }
    }
}
