//! The programs of an earlier commit.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The programs, built from a commit.
pub(crate) struct Earlier {
    /// The commit's abbreviated hash and its subject.
    pub(crate) title: String,
    /// The directory of the programs.
    pub(crate) programs: PathBuf,
}

/// The directory of the programs that were built with this one.
pub(crate) fn own_programs() -> &'static Path {
    let meshd = Path::new(env!("CARGO_BIN_EXE_meshd"));
    meshd.parent().expect("a program is in a directory")
}

/// Builds the programs of a commit, or finds them built.
pub(crate) fn build(commit: &str) -> Result<Earlier, String> {
    let commit = format!("{commit}^{{commit}}");
    let hash = git(&["rev-parse", "--verify", "--end-of-options", &commit])?;
    let title = git(&["log", "-1", "--format=%h %s", &hash])?;
    let source = own_programs().with_file_name("compare").join(&hash);
    if !source.join("Cargo.toml").exists() {
        // With `--force`, git forgets a worktree that somebody removed together with `target`.
        let place = source.to_string_lossy();
        git(&["worktree", "add", "--force", "--detach", &place, &hash])?;
    }
    let target = source.join("target");
    eprintln!("building {title} in {}", source.display());
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--release", "--locked", "--bins"])
        .args(features(&source)?)
        .current_dir(&source)
        .env("CARGO_TARGET_DIR", &target);
    let status = command.status();
    let status = status.map_err(|error| format!("cargo does not start: {error}"))?;
    if !status.success() {
        return Err(format!("{title} cannot be built: {status}"));
    }
    Ok(Earlier {
        title,
        programs: target.join("release"),
    })
}

/// The features of this build that there were at the commit.
fn features(source: &Path) -> Result<&'static [&'static str], String> {
    if !cfg!(feature = "etcd") {
        return Ok(&[]);
    }
    let manifest = std::fs::read_to_string(source.join("Cargo.toml"));
    let manifest = manifest.map_err(|error| format!("the commit has no Cargo.toml: {error}"))?;
    if manifest.lines().any(|line| line.starts_with("etcd = [")) {
        return Ok(&["--features", "etcd"]);
    }
    Ok(&[])
}

/// Runs git in the repository; gives what it prints.
fn git(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("git does not start: {error}"))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("git {}: {}", arguments.join(" "), why.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
