//! The fuzz targets, which the main workspace does not build.

use std::collections::BTreeSet;
use std::path::Path;

#[test]
fn every_fuzz_target_has_its_file_and_a_line_in_the_readme() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let read = |name| std::fs::read_to_string(root.join(name)).expect("it is in the repository");
    let manifest: toml::Table = read("Cargo.toml").parse().expect("a manifest");
    let readme = read("README.md");
    let mut paths = BTreeSet::new();
    for target in manifest["bin"].as_array().expect("targets") {
        let name = target["name"].as_str().expect("a name");
        paths.insert(root.join(target["path"].as_str().expect("a path")));
        assert!(readme.contains(&format!("| `{name}` |")), "{name}");
    }
    let files: BTreeSet<_> = std::fs::read_dir(root.join("fuzz_targets"))
        .expect("a folder")
        .map(|entry| entry.expect("readable").path())
        .collect();
    assert_eq!(paths, files);
}

#[test]
fn every_corpus_in_the_repository_belongs_to_a_target_and_has_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ignored =
        std::fs::read_to_string(root.join(".gitignore")).expect("it is in the repository");
    let kept = ignored
        .lines()
        .filter_map(|line| line.strip_prefix("!/fuzz/corpus/"));
    for target in kept {
        let path = root.join(format!("fuzz/fuzz_targets/{target}.rs"));
        assert!(path.is_file(), "{target}");
        let corpus = std::fs::read_dir(root.join("fuzz/corpus").join(target));
        assert!(corpus.expect("a folder").next().is_some(), "{target}");
    }
}
