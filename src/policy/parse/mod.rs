//! Parses the text of a policy. Each word is parsed once, and all errors are reported together.

mod document;
mod groups;
mod target;

use toml::de::{DeTable, DeValue};

use self::document::{Entry, Errors, TOP, Word, kind_of, nearest};
use self::groups::Names;
use super::error::{PolicyError, printable};
use super::rules::{Group, Policy, Ports, Route, Rule, Serve, Target, Term, Test, Wanted};
use super::selector::Selector;
use crate::model::{Label, prefix};

/// The version of the language that this program speaks.
pub const LANGUAGE: u32 = 1;

/// The maximum size of a policy, in bytes: with its signature it must fit into a record.
pub const MAX_POLICY: usize = 60 * 1024;

/// The maximum number of `[[route]]` in a policy. Each node keeps a route of the kernel for each of them.
const MAX_ROUTES: usize = 256;

impl Policy {
    /// Parses a policy.
    ///
    /// # Errors
    /// Returns the first error in the text.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        Self::check(text).map_err(|errors| {
            let first = errors.into_iter().next();
            first.unwrap_or(PolicyError {
                line: 1,
                column: 1,
                message: "the text is no policy".to_owned(),
                newer: false,
            })
        })
    }

    /// Parses a policy, for a person who corrects it.
    ///
    /// # Errors
    /// Returns all errors in the text, up to a bound, in the order of the text. If the policy is in a later version of the language, this
    /// is the only error.
    pub fn check(text: &str) -> Result<Self, Vec<PolicyError>> {
        let mut errors = Errors::new(text);
        if text.len() > MAX_POLICY {
            let message = format!(
                "the policy has {} bytes; {MAX_POLICY} (60 KiB) are the most",
                text.len()
            );
            errors.add(0, message);
            return Err(errors.into_sorted());
        }
        let (document, syntax) = DeTable::parse_recoverable(text);
        let top = document.get_ref();
        // The version comes first: a later language may have another syntax.
        if !language(&mut errors, top, syntax.is_empty()) {
            return Err(errors.into_sorted());
        }
        if !syntax.is_empty() {
            errors.add_syntax(&syntax);
            return Err(errors.into_sorted());
        }
        let policy = policy(&mut errors, top, text);
        if errors.is_empty() {
            Ok(policy)
        } else {
            Err(errors.into_sorted())
        }
    }

    /// The version of the language in which the policy is written.
    #[must_use]
    pub fn language(&self) -> u32 {
        LANGUAGE
    }
}

/// Checks `language`. Returns whether the rest of the policy can be read.
fn language(errors: &mut Errors<'_>, top: &DeTable<'_>, is_toml: bool) -> bool {
    let Some(value) = top.get("language") else {
        if is_toml {
            errors.add(0, format!("`language = {LANGUAGE}` is missing at the top"));
        }
        return true;
    };
    let at = value.span().start;
    let number = match value.get_ref() {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    };
    match number {
        Some(number) if number == i64::from(LANGUAGE) => true,
        Some(number) if number > i64::from(LANGUAGE) => {
            errors.add_newer(
                at,
                format!(
                    "the policy is in language {number}; this version of meshd speaks language {LANGUAGE}"
                ),
            );
            false
        }
        _ => {
            errors.add(at, format!("`language` must be {LANGUAGE}"));
            true
        }
    }
}

fn policy(errors: &mut Errors<'_>, top: &DeTable<'_>, text: &str) -> Policy {
    let whole = Entry {
        at: 0,
        name: TOP,
        table: top,
    };
    errors.check_keys(
        whole,
        &[
            "language", "default", "strict", "groups", "serve", "allow", "relay", "route", "test",
        ],
    );
    let (names, groups) = groups::parse(errors, top);
    let mut reader = Reader {
        errors,
        names,
        groups: &groups,
    };
    let serve = reader.serve(top);
    let rules = reader.rules(top);
    let relay = reader.relay(top);
    let routes = reader.routes(top);
    let tests = reader.tests(top);
    Policy {
        text: text.to_owned(),
        default_allow: default_allow(errors, top),
        strict: strict(errors, top),
        groups,
        serve,
        rules,
        relay,
        routes,
        tests,
    }
}

/// The value of `default`: whether everything is allowed.
fn default_allow(errors: &mut Errors<'_>, top: &DeTable<'_>) -> bool {
    let Some(value) = top.get("default") else {
        return false;
    };
    match value.get_ref() {
        DeValue::String(word) if word == "allow" => true,
        DeValue::String(word) if word == "deny" => false,
        _ => {
            let message = "`default` is \"deny\" or \"allow\"".to_owned();
            errors.add(value.span().start, message);
            false
        }
    }
}

/// The value of `strict`: whether no node may serve a name that no `[[serve]]` has.
fn strict(errors: &mut Errors<'_>, top: &DeTable<'_>) -> bool {
    let Some(value) = top.get("strict") else {
        return false;
    };
    match value.get_ref() {
        DeValue::Boolean(strict) => *strict,
        other => {
            let message = format!("`strict` is true or false, not {}", kind_of(other));
            errors.add(value.span().start, message);
            false
        }
    }
}

/// The group or the selector that a text means, which must have no port.
fn without_port(names: &Names, text: &str) -> Result<Term, String> {
    names.term(text).map_err(|error| {
        // A common error here is a port after a selector that is right.
        let (selector, ports) = target::split(text);
        match ports {
            Some(_) if names.term(selector).is_ok() => {
                format!("`{}` has a port; ports stand in `to` only", printable(text))
            }
            _ => error,
        }
    })
}

/// Reads the lists of rules.
struct Reader<'r, 'e> {
    errors: &'r mut Errors<'e>,
    names: Names,
    groups: &'r [Group],
}

impl Reader<'_, '_> {
    fn serve(&mut self, top: &DeTable<'_>) -> Vec<Serve> {
        let mut all = Vec::new();
        for entry in self.errors.entries(top, "serve", "[[serve]]") {
            self.errors.check_keys(entry, &["names", "by"]);
            let words = self.errors.words(entry, "names");
            let names = words.iter().filter_map(|word| self.served(word)).collect();
            let by = self.nodes(entry, "by");
            all.push(Serve { names, by });
        }
        all
    }

    fn rules(&mut self, top: &DeTable<'_>) -> Vec<Rule> {
        let mut all = Vec::new();
        for entry in self.errors.entries(top, "allow", "[[allow]]") {
            self.errors.check_keys(entry, &["from", "to"]);
            let words = self.errors.words(entry, "from");
            let from = words.iter().filter_map(|word| self.source(word)).collect();
            let words = self.errors.words(entry, "to");
            let to = words.iter().filter_map(|word| self.target(word)).collect();
            let line = self.errors.line(entry.at);
            all.push(Rule { line, from, to });
        }
        all
    }

    fn relay(&mut self, top: &DeTable<'_>) -> Vec<Vec<Term>> {
        let mut all = Vec::new();
        for entry in self.errors.entries(top, "relay", "[[relay]]") {
            self.errors.check_keys(entry, &["offer"]);
            all.push(self.nodes(entry, "offer"));
        }
        all
    }

    fn routes(&mut self, top: &DeTable<'_>) -> Vec<Route> {
        let mut all = Vec::new();
        for entry in self.errors.entries(top, "route", "[[route]]") {
            self.errors.check_keys(entry, &["node", "prefix"]);
            let node = self.errors.word(entry, "node");
            let node = node.and_then(|word| self.router(&word));
            let network = self.errors.word(entry, "prefix");
            let network = network.and_then(|word| match prefix::parse(word.text) {
                Ok(network) => Some(network),
                Err(error) => {
                    self.errors.add(word.at, error.to_string());
                    None
                }
            });
            if all.len() >= MAX_ROUTES {
                let message = format!(
                    "there are more than {MAX_ROUTES} `[[route]]`; write fewer and shorter prefixes"
                );
                self.errors.add(entry.at, message);
                break;
            }
            if let (Some(node), Some(prefix)) = (node, network) {
                all.push(Route { node, prefix });
            }
        }
        all
    }

    /// The name of a node that routes.
    fn router(&mut self, word: &Word<'_>) -> Option<Label> {
        let shown = printable(word.text);
        let message = match Label::parse(word.text) {
            Ok(name) => return Some(name),
            Err(_) if word.text == "*" => {
                "`*` names no node; write one `[[route]]` for each node".to_owned()
            }
            Err(error) => match word.text.strip_prefix("node:").map(Label::parse) {
                Some(Ok(name)) => format!("`{shown}` is a selector; write node = \"{name}\""),
                _ => format!("`node` is the name of a node: {error}"),
            },
        };
        self.errors.add(word.at, message);
        None
    }

    fn tests(&mut self, top: &DeTable<'_>) -> Vec<Test> {
        let mut all = Vec::new();
        for entry in self.errors.entries(top, "test", "[[test]]") {
            self.errors.check_keys(entry, &["from", "to", "is"]);
            let from = self.errors.word(entry, "from");
            let from = from.and_then(|word| self.source(&word));
            let to_word = self.errors.word(entry, "to");
            let to = to_word.and_then(|word| self.target(&word));
            if let (Some(word), Some(target)) = (to_word, &to)
                && target.term == Term::One(Selector::SameProject)
            {
                let message = "`same-project` is no destination of a test; write a service, a project or a node in its place";
                self.errors.add(word.at, message.to_owned());
            }
            let is = self.errors.word(entry, "is");
            let wanted = is.and_then(|word| self.wanted(&word));
            let line = self.errors.line(entry.at);
            if let (Some(from), Some(to), Some(wanted)) = (from, to, wanted) {
                all.push(Test {
                    line,
                    from,
                    to,
                    wanted,
                });
            }
        }
        all
    }

    fn wanted(&mut self, word: &Word<'_>) -> Option<Wanted> {
        match word.text {
            "allow" => Some(Wanted::Allow),
            "deny" => Some(Wanted::Deny),
            other => {
                let known = ["allow", "deny"];
                let shown = printable(other);
                let remedy = match nearest(other, &known) {
                    Some(nearest) => format!("did you mean \"{nearest}\"?"),
                    None => "it is \"allow\" or \"deny\"".to_owned(),
                };
                let message = format!("`is` cannot be \"{shown}\"; {remedy}");
                self.errors.add(word.at, message);
                None
            }
        }
    }

    /// A source: a group, or a selector other than `same-project`, which depends on a destination.
    fn source(&mut self, word: &Word<'_>) -> Option<Term> {
        match without_port(&self.names, word.text) {
            Ok(Term::One(Selector::SameProject)) => {
                let message = "`same-project` stands in `to`; write from = [\"project:*\"], to = [\"same-project\"]";
                self.errors.add(word.at, message.to_owned());
                None
            }
            Ok(term) => Some(term),
            Err(message) => {
                self.errors.add(word.at, message);
                None
            }
        }
    }

    /// A destination with its ports.
    fn target(&mut self, word: &Word<'_>) -> Option<Target> {
        let (selector, ports) = target::split(word.text);
        let term = self.names.term(selector);
        let ports = ports.map_or(Ok(Ports::Declared), target::ports);
        match (term, ports) {
            (Ok(term), Ok(ports)) => Some(Target { term, ports }),
            (Err(message), _) | (_, Err(message)) => {
                self.errors.add(word.at, message);
                None
            }
        }
    }

    /// A name that is served.
    fn served(&mut self, word: &Word<'_>) -> Option<Selector> {
        let message = match Selector::parse(word.text) {
            Ok(
                selector @ (Selector::Any
                | Selector::Service(_)
                | Selector::InProject(..)
                | Selector::Project(_)),
            ) => return Some(selector),
            Ok(_) => format!(
                "`{}` is no name of a service; names are `name`, `project/name`, `project/*` or `*`",
                printable(word.text)
            ),
            Err(error) => match target::split(word.text) {
                (name, Some(_)) if Selector::parse(name).is_ok() => {
                    format!("`{}` has a port; names have none", printable(word.text))
                }
                _ => error.to_string(),
            },
        };
        self.errors.add(word.at, message);
        None
    }

    /// A list of nodes.
    fn nodes(&mut self, entry: Entry<'_>, key: &str) -> Vec<Term> {
        let mut all = Vec::new();
        for word in self.errors.words(entry, key) {
            match self.node(&word, key) {
                Ok(term) => all.push(term),
                Err(message) => self.errors.add(word.at, message),
            }
        }
        all
    }

    /// A selector of nodes, or a group of such selectors.
    fn node(&self, word: &Word<'_>, key: &str) -> Result<Term, String> {
        let term = without_port(&self.names, word.text)?;
        let is_node =
            |s: &Selector| matches!(s, Selector::Any | Selector::Tag(_) | Selector::Node(_));
        let mut selectors = term.selectors(self.groups).iter();
        let Some(wrong) = selectors.find(|selector| !is_node(selector)) else {
            return Ok(term);
        };
        let shown = printable(word.text);
        let fault = match &term {
            Term::One(_) => format!("`{shown}` does not"),
            Term::Group(_) => format!("the group `{shown}` has `{wrong}` in it"),
        };
        Err(format!(
            "`{key}` names nodes, and {fault}; write `tag:TAG`, `node:NAME` or `*`"
        ))
    }
}

#[cfg(test)]
mod tests;
