//! The links between the pages, and the table of contents.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use crate::page::Page;
use crate::{chapters, pages, repository};

/// Pages outside the book whose links are checked too.
const OTHERS: [&str; 4] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "fuzz/README.md",
];

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_exist() {
    let mut all = pages();
    all.extend(OTHERS.iter().map(|path| Page::read(path)));
    let faults = broken(&all);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let count: usize = all.iter().map(|page| page.links.len()).sum();
    assert!(count > 60, "the scan has lost some: {count}");
}

#[test]
fn links_to_nothing_are_found() {
    let text = "# A b\n[1](#a-b) [2](#c) [3](no.md) [4](threat-model.md#what-is-not-promised) [5](threat-model.md#no) [6](../README.md) [7](https://example.com)\n";
    let faults = broken(&[
        Page::new("docs/x.md", text.to_owned()),
        Page::read("docs/threat-model.md"),
    ]);
    assert_eq!(
        faults,
        [
            "docs/x.md:2: #c: there is no such heading",
            "docs/x.md:2: no.md: there is no such file",
            "docs/x.md:2: threat-model.md#no: there is no such heading",
            "docs/x.md:2: ../README.md: it is not in the book",
        ]
    );
}

fn broken(pages: &[Page]) -> Vec<String> {
    let anchors: BTreeMap<PathBuf, &Vec<String>> = pages
        .iter()
        .map(|page| (PathBuf::from(&page.path), &page.anchors))
        .collect();
    let mut faults = Vec::new();
    for page in pages {
        for link in &page.links {
            if link.target.starts_with("https://") || link.target.starts_with("http://") {
                continue;
            }
            if let Some(fault) = fault(page, &link.target, &anchors) {
                faults.push(format!(
                    "{}:{}: {}: {fault}",
                    page.path, link.line, link.target
                ));
            }
        }
    }
    faults
}

fn fault(
    page: &Page,
    target: &str,
    anchors: &BTreeMap<PathBuf, &Vec<String>>,
) -> Option<&'static str> {
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let from = Path::new(&page.path);
    let path = if file.is_empty() {
        from.to_owned()
    } else {
        normalized(&from.parent().unwrap_or(Path::new("")).join(file))
    };
    if !file.is_empty() && !repository(&path.to_string_lossy()).exists() {
        return Some("there is no such file");
    }
    // The pages of the book are also read where the rest of the repository is not.
    if from.starts_with("docs") && !path.starts_with("docs") {
        return Some("it is not in the book");
    }
    let has = |anchors: &&Vec<String>| anchors.iter().any(|known| known == anchor);
    (!anchor.is_empty() && !anchors.get(&path).is_some_and(has))
        .then_some("there is no such heading")
}

/// The path without `..`.
fn normalized(path: &Path) -> PathBuf {
    let mut parts = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                parts.pop();
            }
            Component::CurDir => {}
            part => parts.push(part),
        }
    }
    parts
}

#[test]
fn the_table_of_contents_has_every_chapter() {
    let summary = Page::read("docs/SUMMARY.md");
    let listed: BTreeSet<String> = summary
        .links
        .iter()
        .map(|link| format!("docs/{}", link.target))
        .collect();
    let there: BTreeSet<String> = chapters()
        .into_iter()
        .filter(|path| path != "docs/SUMMARY.md")
        .collect();
    assert_eq!(listed, there);
    assert_eq!(listed.len(), summary.links.len(), "none is listed twice");
}
