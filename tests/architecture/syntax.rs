//! Reads the source as syntax trees: how large its parts are, and which files of a folder use each other.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use super::{files, report, source};

/// The most fields of a struct.
const MAX_FIELDS: usize = 12;
/// The most methods of a type, in all its inherent `impl` blocks together.
const MAX_METHODS: usize = 25;
/// The most lines of code of a function, from its signature to its closing brace.
const MAX_FUNCTION_LINES: usize = 70;
/// The most lines of code of a file, without its tests.
const MAX_FILE_LINES: usize = 500;

/// The exceptions from the limits above, each with its reason. There may be ten at most.
const EXCEPTIONS: &[(&str, &str)] = &[];

/// A source file as it is compiled without tests.
struct Source {
    /// The path below `src`.
    path: String,
    lines: Lines,
    items: Vec<syn::Item>,
}

/// Which lines of a file hold code: no comment, and not only white space.
struct Lines(Vec<bool>);

impl Lines {
    /// Looks at each line by itself. A text of several lines that begins like a comment counts as one, which is harmless here.
    fn of(text: &str) -> Self {
        let is_code = |line: &str| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with("//") && !line.starts_with("#[doc")
        };
        Self(text.lines().map(is_code).collect())
    }

    /// How many of the lines of `node` hold code.
    fn count(&self, node: &impl syn::spanned::Spanned) -> usize {
        let (from, to) = (node.span().start().line, node.span().end().line);
        let lines = self.0.iter().skip(from.saturating_sub(1));
        let lines = lines.take(to + 1 - from.min(to));
        lines.filter(|is_code| **is_code).count()
    }
}

#[test]
fn no_struct_type_function_or_file_is_over_its_limit() {
    let sources = sources();
    let mut faults = Vec::new();
    faults.extend(structs_over_limit(&sources));
    faults.extend(types_over_limit(&sources));
    faults.extend(functions_over_limit(&sources));
    faults.extend(files_over_limit(&sources));
    let is_exception = |fault: &Fault| EXCEPTIONS.iter().any(|(name, _)| *name == fault.name);
    let idle = EXCEPTIONS
        .iter()
        .filter(|(name, _)| !faults.iter().any(|fault| fault.name == *name))
        .map(|(name, _)| format!("{name} keeps its limit: take it off the list of exceptions"));
    let mut lines: Vec<String> = idle.collect();
    lines.extend(
        faults
            .iter()
            .filter(|fault| !is_exception(fault))
            .map(Fault::to_string),
    );
    report(&lines);
}

#[test]
fn there_are_few_exceptions_and_each_has_a_reason() {
    assert!(
        EXCEPTIONS.len() <= 10,
        "there may be ten exceptions at most"
    );
    assert!(EXCEPTIONS.iter().all(|(_, reason)| reason.len() > 20));
}

#[test]
fn the_files_of_a_folder_do_not_use_each_other_in_a_circle() {
    report(&circles(&sources()));
}

/// Something over its limit.
struct Fault {
    /// Its name in the list of exceptions: the file, and the name inside the file unless the whole file is over its limit.
    name: String,
    has: usize,
    limit: usize,
    unit: &'static str,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            name,
            has,
            limit,
            unit,
        } = self;
        write!(f, "src/{name} has {has} {unit}; {limit} are the most")
    }
}

fn structs_over_limit(sources: &[Source]) -> Vec<Fault> {
    let mut faults = Vec::new();
    for source in sources {
        for item in all_items(&source.items) {
            let syn::Item::Struct(item) = item else {
                continue;
            };
            // A message or a configuration file has the fields that its format has.
            let is_format = item.attrs.iter().any(derives_serde_or_clap);
            if item.fields.len() > MAX_FIELDS && !is_format {
                faults.push(Fault {
                    name: format!("{}: {}", source.path, item.ident),
                    has: item.fields.len(),
                    limit: MAX_FIELDS,
                    unit: "fields",
                });
            }
        }
    }
    faults
}

/// Whether an attribute derives the parser of a message, of a file, or of a command line.
fn derives_serde_or_clap(attribute: &syn::Attribute) -> bool {
    if !attribute.path().is_ident("derive") {
        return false;
    }
    let syn::Meta::List(list) = &attribute.meta else {
        return false;
    };
    let tokens = list.tokens.to_string();
    ["Serialize", "Deserialize", "Parser", "Args"]
        .iter()
        .any(|derive| tokens.contains(derive))
}

/// Counts the methods of a type over all files of its part of the crate, so that a large type is not hidden in many files.
fn types_over_limit(sources: &[Source]) -> Vec<Fault> {
    let mut methods: BTreeMap<(String, String), (usize, String)> = BTreeMap::new();
    for source in sources {
        let part = super::part_of(&source.path).to_owned();
        for item in all_items(&source.items) {
            let syn::Item::Impl(block) = item else {
                continue;
            };
            if block.trait_.is_some() {
                continue;
            }
            let syn::Type::Path(of) = &*block.self_ty else {
                continue;
            };
            let Some(name) = of.path.segments.last() else {
                continue;
            };
            let count = block
                .items
                .iter()
                .filter(|item| matches!(item, syn::ImplItem::Fn(_)))
                .count();
            let key = (part.clone(), name.ident.to_string());
            let entry = methods.entry(key).or_insert((0, source.path.clone()));
            entry.0 += count;
        }
    }
    methods
        .into_iter()
        .filter(|(_, (count, _))| *count > MAX_METHODS)
        .map(|((_, name), (count, path))| Fault {
            name: format!("{path}: {name}"),
            has: count,
            limit: MAX_METHODS,
            unit: "methods",
        })
        .collect()
}

fn functions_over_limit(sources: &[Source]) -> Vec<Fault> {
    struct Functions<'a> {
        source: &'a Source,
        faults: Vec<Fault>,
    }
    impl Functions<'_> {
        fn look(&mut self, signature: &syn::Signature, block: &syn::Block) {
            let lines = self.source.lines.count(block) + self.source.lines.count(signature) - 1;
            if lines > MAX_FUNCTION_LINES {
                self.faults.push(Fault {
                    name: format!("{}: {}", self.source.path, signature.ident),
                    has: lines,
                    limit: MAX_FUNCTION_LINES,
                    unit: "lines",
                });
            }
        }
    }
    impl<'ast> Visit<'ast> for Functions<'_> {
        fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
            self.look(&item.sig, &item.block);
            visit::visit_item_fn(self, item);
        }
        fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
            self.look(&item.sig, &item.block);
            visit::visit_impl_item_fn(self, item);
        }
    }
    let mut faults = Vec::new();
    for source in sources {
        let mut functions = Functions {
            source,
            faults: Vec::new(),
        };
        for item in &source.items {
            functions.visit_item(item);
        }
        faults.append(&mut functions.faults);
    }
    faults
}

fn files_over_limit(sources: &[Source]) -> Vec<Fault> {
    let lines = |source: &Source| {
        let counts = source.items.iter().map(|item| source.lines.count(item));
        counts.sum::<usize>()
    };
    sources
        .iter()
        .map(|source| (source, lines(source)))
        .filter(|(_, lines)| *lines > MAX_FILE_LINES)
        .map(|(source, lines)| Fault {
            name: source.path.clone(),
            has: lines,
            limit: MAX_FILE_LINES,
            unit: "lines of code",
        })
        .collect()
}

/// The circles in which the modules of one folder use each other. A folder's own `mod.rs` counts as the folder, not as one of
/// its modules; what it re-exports counts as the module that has it.
fn circles(sources: &[Source]) -> Vec<String> {
    let mut uses: BTreeMap<String, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    let exports = exports(sources);
    for source in sources {
        let own = module_of(&source.path);
        let mut paths = Paths::default();
        for item in &source.items {
            paths.visit_item(item);
        }
        for path in paths.found {
            let Some(target) = resolve(&own, &path, &exports) else {
                continue;
            };
            // In each folder that has both, the modules in which they are.
            let shared = own.iter().zip(&target).take_while(|(a, b)| a == b).count();
            let (Some(from), Some(to)) = (own.get(shared), target.get(shared)) else {
                continue;
            };
            if shared == 0 {
                continue;
            }
            uses.entry(own[..shared].join("/"))
                .or_default()
                .entry(from.clone())
                .or_default()
                .insert(to.clone());
        }
    }
    let mut found = Vec::new();
    for (folder, edges) in &uses {
        for circle in strongly_connected(edges) {
            let edges: Vec<String> = circle
                .iter()
                .flat_map(|from| {
                    let to = edges.get(from).into_iter().flatten();
                    to.filter(|to| circle.contains(*to))
                        .map(move |to| format!("{from} -> {to}"))
                })
                .collect();
            found.push(format!("src/{folder}: {}", edges.join(", ")));
        }
    }
    found
}

/// The re-exports in the `mod.rs` of each folder: the module's path by folder and name.
type Exports = BTreeMap<(Vec<String>, String), Vec<String>>;

fn exports(sources: &[Source]) -> Exports {
    let mut exports = Exports::new();
    for source in sources {
        let own = module_of(&source.path);
        for item in all_items(&source.items) {
            let syn::Item::Use(item) = item else {
                continue;
            };
            if matches!(item.vis, syn::Visibility::Inherited) {
                continue;
            }
            let mut paths = Vec::new();
            leaves(&item.tree, &mut Vec::new(), &mut paths);
            for path in paths {
                let Some(name) = path.last().cloned() else {
                    continue;
                };
                if let Some(target) = absolute(&own, &path) {
                    exports.insert((own.clone(), name), target);
                }
            }
        }
    }
    exports
}

/// All paths of a use tree.
fn leaves(tree: &syn::UseTree, before: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    match tree {
        syn::UseTree::Path(path) => {
            before.push(path.ident.to_string());
            leaves(&path.tree, before, found);
            before.pop();
        }
        syn::UseTree::Group(group) => {
            for tree in &group.items {
                leaves(tree, before, found);
            }
        }
        syn::UseTree::Name(name) => {
            let mut path = before.clone();
            if name.ident != "self" {
                path.push(name.ident.to_string());
            }
            found.push(path);
        }
        syn::UseTree::Rename(name) => {
            let mut path = before.clone();
            path.push(name.ident.to_string());
            found.push(path);
        }
        syn::UseTree::Glob(_) => found.push(before.clone()),
    }
}

/// The paths that a file names, in `use` items and elsewhere.
#[derive(Default)]
struct Paths {
    found: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        leaves(&item.tree, &mut Vec::new(), &mut self.found);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments = path.segments.iter();
        self.found
            .push(segments.map(|segment| segment.ident.to_string()).collect());
        visit::visit_path(self, path);
    }

    fn visit_visibility(&mut self, _: &'ast syn::Visibility) {
        // `pub(in path)` uses nothing.
    }
}

/// A path as seen from the crate's root, if it begins there, with `self` or with `super`.
fn absolute(own: &[String], path: &[String]) -> Option<Vec<String>> {
    let mut base = own.to_vec();
    let mut rest = path;
    match path.first()?.as_str() {
        "crate" => {
            base.clear();
            rest = &path[1..];
        }
        "self" => rest = &path[1..],
        "super" => {
            while rest.first().is_some_and(|word| word == "super") {
                base.pop()?;
                rest = &rest[1..];
            }
        }
        // A module of the file's own, as in `pub use listing::Size`.
        first if first.starts_with(|c: char| c.is_ascii_lowercase()) => {}
        _ => return None,
    }
    base.extend(rest.iter().cloned());
    Some(base)
}

/// The module that `path`, found in the module `own`, leads to.
fn resolve(own: &[String], path: &[String], exports: &Exports) -> Option<Vec<String>> {
    let first = path.first()?.as_str();
    if !matches!(first, "crate" | "self" | "super") {
        return None;
    }
    let mut target = absolute(own, path)?;
    for _ in 0..4 {
        let through = (1..target.len()).find_map(|at| {
            let key = (target[..at].to_vec(), target[at].clone());
            let module = exports.get(&key)?;
            (*module != target[..=at]).then(|| (at, module.clone()))
        });
        let Some((at, module)) = through else {
            break;
        };
        let rest = target.split_off(at + 1);
        target = module;
        target.extend(rest);
    }
    Some(target)
}

/// The sets of more than one module in which each leads to each other.
fn strongly_connected(edges: &BTreeMap<String, BTreeSet<String>>) -> Vec<BTreeSet<String>> {
    let reachable = |from: &String| {
        let mut seen: BTreeSet<String> = BTreeSet::new();
        let mut todo = vec![from.clone()];
        while let Some(at) = todo.pop() {
            for next in edges.get(&at).into_iter().flatten() {
                if seen.insert(next.clone()) {
                    todo.push(next.clone());
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&String, BTreeSet<String>> =
        edges.keys().map(|from| (from, reachable(from))).collect();
    let mut found: Vec<BTreeSet<String>> = Vec::new();
    for (from, to) in &reach {
        let circle: BTreeSet<String> = to
            .iter()
            .filter(|other| reach.get(other).is_some_and(|back| back.contains(*from)))
            .cloned()
            .collect();
        if circle.len() > 1 && !found.contains(&circle) {
            found.push(circle);
        }
    }
    found
}

/// The module of a file: `["dns", "zone"]` for `dns/zone.rs` and for `dns/zone/mod.rs`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_owned).collect()
}

/// All items of a file that are compiled without tests, those in modules of the file included.
fn all_items(items: &[syn::Item]) -> Vec<&syn::Item> {
    let mut found = Vec::new();
    for item in items {
        found.push(item);
        if let syn::Item::Mod(module) = item
            && let Some((_, items)) = &module.content
        {
            found.extend(all_items(items));
        }
    }
    found
}

fn sources() -> Vec<Source> {
    let paths = files();
    let paths = paths.iter().filter(|path| !super::is_test(path));
    paths
        .map(|path| {
            let text = std::fs::read_to_string(source().join(path)).expect("src is readable");
            parsed(path, &text)
        })
        .collect()
}

fn parsed(path: &str, text: &str) -> Source {
    let file = syn::parse_file(text).unwrap_or_else(|error| panic!("src/{path}: {error}"));
    Source {
        path: path.to_owned(),
        lines: Lines::of(text),
        items: file
            .items
            .into_iter()
            .filter(|item| !is_for_tests(item))
            .collect(),
    }
}

fn is_for_tests(item: &syn::Item) -> bool {
    let attributes = match item {
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        _ => return false,
    };
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, syn::Meta::List(list) if list.tokens.to_string().contains("test"))
    })
}

#[test]
fn planted_sizes_are_found() {
    let fields = "x: u8, ".repeat(13);
    let fields: String = fields
        .split(", ")
        .enumerate()
        .filter(|(_, field)| !field.is_empty())
        .map(|(i, _)| format!("x{i}: u8,"))
        .collect();
    let methods = |from: usize, to: usize| -> String {
        (from..to)
            .map(|i| format!("fn m{i}(&self) {{}}\n"))
            .collect()
    };
    let body = "    f();\n\n    // A comment is no code.\n".repeat(70);
    let large = parsed(
        "dns/x.rs",
        &format!(
            "struct S {{ {fields} }}\nfn f() {{\n{body}}}\nimpl S {{ {} }}",
            methods(0, 20)
        ),
    );
    let more = parsed(
        "dns/y.rs",
        &format!("impl super::x::S {{ {} }}", methods(20, 26)),
    );
    let long = parsed("dns/z.rs", &"fn f() {\n}\n".repeat(251));
    let sources = [large, more, long];
    let lines = |faults: Vec<Fault>| faults.iter().map(Fault::to_string).collect::<Vec<_>>();
    assert_eq!(
        lines(structs_over_limit(&sources)),
        ["src/dns/x.rs: S has 13 fields; 12 are the most"]
    );
    assert_eq!(
        lines(types_over_limit(&sources)),
        ["src/dns/x.rs: S has 26 methods; 25 are the most"]
    );
    assert_eq!(
        lines(functions_over_limit(&sources)),
        ["src/dns/x.rs: f has 72 lines; 70 are the most"]
    );
    assert_eq!(
        lines(files_over_limit(&sources)),
        ["src/dns/z.rs has 502 lines of code; 500 are the most"]
    );
    let test = parsed(
        "dns/t.rs",
        &format!("#[cfg(test)]\nmod tests {{ fn f() {{\n{body}}} }}"),
    );
    assert!(functions_over_limit(&[test]).is_empty());
}

#[test]
fn a_planted_circle_is_found() {
    let found = |files: &[(&str, &str)]| {
        let sources: Vec<Source> = files
            .iter()
            .map(|(path, text)| parsed(path, text))
            .collect();
        circles(&sources)
    };
    assert_eq!(
        found(&[
            ("dns/a.rs", "use super::b::B;"),
            ("dns/b.rs", "fn f() { crate::dns::a::g(); }"),
        ]),
        ["src/dns: a -> b, b -> a"]
    );
    // The folder's re-export stands for the module that has the name.
    assert_eq!(
        found(&[
            ("dns/mod.rs", "mod a;\nmod b;\npub use a::A;"),
            ("dns/a.rs", "use super::b::B;"),
            ("dns/b.rs", "use super::A;"),
        ]),
        ["src/dns: a -> b, b -> a"]
    );
    assert_eq!(
        found(&[
            ("dns/a.rs", "use super::b::B;\nuse crate::model::Label;"),
            ("dns/b.rs", "use super::c::C;"),
            ("dns/c.rs", "use crate::model::PublicKey;"),
        ]),
        Vec::<String>::new()
    );
}
