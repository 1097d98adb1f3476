//! Programs that tests start, installed or unpacked.

use std::path::PathBuf;

/// The path of a program that is installed, or that `tests/run` has unpacked.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = concat!(env!("CARGO_MANIFEST_DIR"), "/target/tools/usr");
    let unpacked = ["bin", "sbin"].map(|folder| PathBuf::from(tools).join(folder));
    let folders = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .chain(unpacked);
    let mut found = folders.map(|folder| folder.join(name));
    found.find(|program| program.is_file())
}
