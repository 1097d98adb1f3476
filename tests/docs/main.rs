//! The documentation: its command blocks run or are checked, its links lead somewhere, and its reference is that of the code.
//!
//! In the pages, HTML comments tell the tests what to do:
//!
//! | comment | before | meaning |
//! |---|---|---|
//! | `not run: REASON` | a block of commands | the block is only checked |
//! | `not compared: REASON` | a block of commands | the block runs, and its output is not compared |
//! | `on: HOST` | a block `sh` | root runs each line on this host |
//! | `file on: HOST, HOST` | a block whose first line names a file | the file is written to these hosts |
//! | `setup: SENTENCE` | | what has to be there for the blocks that follow; `setup.rs` has the sentences |
//!
//! `MESHD_UPDATE_DOCS=1 cargo nextest run --features etcd --test docs` writes the real outputs and the reference into the pages.

mod blocks;
mod book;
mod commands;
mod compare;
mod facts;
mod links;
mod page;
mod reference;
mod schema;
mod setup;
mod traffic;
mod walk;

/// Programs that are installed or unpacked, which the system tests look for as well.
#[path = "../system/tool.rs"]
mod tool;

use std::path::{Path, PathBuf};
use std::process::Command;

use page::Page;

/// The command that brings the pages up to date.
pub(crate) const UPDATE: &str = "MESHD_UPDATE_DOCS=1 cargo nextest run --features etcd --test docs";

/// Whether the pages are to be changed instead of compared.
pub(crate) fn is_update() -> bool {
    std::env::var_os("MESHD_UPDATE_DOCS").is_some()
}

/// A file of the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

pub(crate) fn read(path: &str) -> String {
    std::fs::read_to_string(repository(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The path of one of the three programs.
pub(crate) fn program_path(name: &str) -> &'static str {
    match name {
        "meshd" => env!("CARGO_BIN_EXE_meshd"),
        "mesh-coordinator" => env!("CARGO_BIN_EXE_mesh-coordinator"),
        "meshctl" => env!("CARGO_BIN_EXE_meshctl"),
        other => panic!("{other} is none of the programs"),
    }
}

/// One of the three programs, with nothing of the caller's environment.
pub(crate) fn program(name: &str) -> Command {
    let mut command = Command::new(program_path(name));
    command.env_clear();
    command
}

/// The paths of the book's chapters, in the order of their files.
pub(crate) fn chapters() -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec!["docs".to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(repository(&folder))
            .expect("a folder")
            .flatten()
        {
            let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
            if entry.path().is_dir() {
                folders.push(path);
            } else if path.ends_with(".md") {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// The README and all chapters.
pub(crate) fn pages() -> Vec<Page> {
    let mut paths = vec!["README.md".to_owned()];
    paths.extend(chapters());
    paths.iter().map(|path| Page::read(path)).collect()
}
