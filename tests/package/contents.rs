//! The package, made by `packaging/build` of the programs under test: what is in it, and that other programs can use it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{program, read, repository};

#[test]
fn the_package_has_all_that_a_machine_needs_and_other_programs_can_read_it() {
    if !is_installed("dpkg-deb") || !is_installed("objcopy") {
        meshd::testbed::skip_test("there is no dpkg-deb or no objcopy");
        return;
    }
    let built = Package::build();
    let files = built.files();
    for expected in EXPECTED {
        assert!(files.contains(*expected), "{expected} in {files:#?}");
    }
    for file in &files {
        assert!(
            PLACES.iter().any(|place| file.starts_with(place)),
            "{file} is where no package puts a file"
        );
    }
    built.check_units();
    built.check_man_pages(&files);
    built.check_completions();
    built.check_scripts();
}

/// Files that must be in the package, besides the man pages of all commands.
const EXPECTED: &[&str] = &[
    "usr/bin/meshd",
    "usr/bin/mesh-coordinator",
    "usr/bin/meshctl",
    "usr/lib/systemd/system/meshd.service",
    "usr/lib/systemd/system/mesh-coordinator.service",
    "usr/lib/systemd/system/meshd-resolv-conf.path",
    "usr/lib/systemd/system/meshd-resolv-conf.service",
    "usr/lib/sysusers.d/meshd.conf",
    "usr/share/polkit-1/rules.d/50-meshd.rules",
    "usr/share/bash-completion/completions/meshctl",
    "usr/share/zsh/vendor-completions/_meshctl",
    "usr/share/fish/vendor_completions.d/meshctl.fish",
    "usr/share/man/man1/meshctl.1.gz",
    "usr/share/man/man1/meshctl-token-create.1.gz",
    "usr/share/man/man8/meshd.8.gz",
    "usr/share/man/man8/mesh-coordinator.8.gz",
    "usr/share/doc/meshd/copyright",
    "usr/share/doc/meshd/README.md",
    "usr/share/doc/meshd/examples/meshd.toml",
    "usr/share/doc/meshd/examples/coordinator.toml",
];

/// Where the package may put files.
const PLACES: &[&str] = &[
    "usr/bin/mesh",
    "usr/lib/systemd/system/mesh",
    "usr/lib/sysusers.d/meshd",
    "usr/share/polkit-1/rules.d/50-meshd",
    "usr/share/bash-completion/completions/mesh",
    "usr/share/zsh/vendor-completions/_mesh",
    "usr/share/fish/vendor_completions.d/mesh",
    "usr/share/man/man1/meshctl",
    "usr/share/man/man8/mesh",
    "usr/share/doc/meshd/",
];

/// A package, taken apart.
struct Package {
    _directory: tempfile::TempDir,
    /// Its files.
    root: PathBuf,
    /// Its control file and the scripts of the maintainer.
    control: PathBuf,
}

impl Package {
    fn build() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let output = directory.path().join("packages");
        let programs = Path::new(env!("CARGO_BIN_EXE_meshd")).parent();
        succeeds(
            Command::new(repository("packaging/build"))
                .arg("--programs")
                .arg(programs.expect("a file is in a directory"))
                .args(["--version", "0.0.1~test"])
                .arg(&output),
        );
        let entries = std::fs::read_dir(&output).expect("it was made");
        let deb = entries
            .map(|entry| entry.expect("readable").path())
            .find(|path| path.to_string_lossy().contains("/meshd_0.0.1~test_"))
            .expect("the package of the programs");
        let (root, control) = (
            directory.path().join("root"),
            directory.path().join("control"),
        );
        succeeds(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&root));
        succeeds(Command::new("dpkg-deb").arg("-e").arg(&deb).arg(&control));
        Self {
            _directory: directory,
            root,
            control,
        }
    }

    /// The paths of all files, from the root of the machine.
    fn files(&self) -> BTreeSet<String> {
        let mut found = BTreeSet::new();
        let mut waiting = vec![self.root.clone()];
        while let Some(directory) = waiting.pop() {
            for entry in std::fs::read_dir(directory).expect("readable") {
                let path = entry.expect("readable").path();
                if path.is_dir() {
                    waiting.push(path);
                } else {
                    let below = path.strip_prefix(&self.root).expect("it is below");
                    found.insert(below.to_str().expect("a plain path").to_owned());
                }
            }
        }
        found
    }

    /// The units differ from those of the sources only in the place of the programs, which are there.
    fn check_units(&self) {
        let units = self.root.join("usr/lib/systemd/system");
        for entry in std::fs::read_dir(units).expect("readable") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("a name").to_string_lossy();
            let text = std::fs::read_to_string(&path).expect("readable");
            let source = read(&format!("systemd/{name}"));
            assert_eq!(text, source.replace("/usr/local/", "/usr/"), "{name}");
            let words = text.split([' ', '=', '\n']);
            let words = words.map(|word| word.trim_start_matches(['-', '+']));
            let words = words.map(|word| word.trim_start_matches("file://"));
            for word in words.filter(|word| word.starts_with("/usr/")) {
                let file = self.root.join(&word[1..]);
                assert!(file.is_file(), "{name}: there is no {word}");
            }
        }
    }

    /// Each command has a page, and the pages of all of them are shown without a warning.
    fn check_man_pages(&self, files: &BTreeSet<String>) {
        let pages: Vec<&String> = files.iter().filter(|file| file.contains("/man/")).collect();
        let help = program("meshctl").arg("--help").output().expect("it runs");
        let help = String::from_utf8_lossy(&help.stdout).into_owned();
        for command in ["join", "status", "resolve", "rotate-key"] {
            assert!(help.contains(command), "{help}");
            let page = format!("usr/share/man/man1/meshctl-{command}.1.gz");
            assert!(files.contains(&page), "{page}");
        }
        for page in pages {
            let path = self.root.join(page);
            if is_installed("man") {
                let output = succeeds(
                    Command::new("man")
                        .args(["--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z"])
                        .arg(&path)
                        .envs([("LC_ALL", "C.UTF-8"), ("MANWIDTH", "80")]),
                );
                assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{page}");
            }
            if is_installed("mandoc") {
                succeeds(
                    Command::new("mandoc")
                        .args(["-T", "lint", "-W", "warning"])
                        .arg(&path),
                );
            }
        }
    }

    fn check_completions(&self) {
        for name in ["meshd", "mesh-coordinator", "meshctl"] {
            for (shell, arguments, file) in [
                (
                    "bash",
                    ["-n"].as_slice(),
                    format!("bash-completion/completions/{name}"),
                ),
                ("zsh", &["-n"], format!("zsh/vendor-completions/_{name}")),
                (
                    "fish",
                    &["--no-execute"],
                    format!("fish/vendor_completions.d/{name}.fish"),
                ),
            ] {
                let path = self.root.join("usr/share").join(file);
                assert!(
                    path.metadata().is_ok_and(|found| found.len() > 0),
                    "{path:?}"
                );
                if is_installed(shell) {
                    succeeds(Command::new(shell).args(arguments).arg(path));
                }
            }
        }
    }

    fn check_scripts(&self) {
        for name in ["postinst", "prerm", "postrm"] {
            let path = self.control.join(name);
            succeeds(Command::new("sh").arg("-n").arg(&path));
            let text = std::fs::read_to_string(path).expect("readable");
            assert!(!text.contains("#DOCKER_GROUP#"), "{name}");
        }
        let control = std::fs::read_to_string(self.control.join("control")).expect("readable");
        assert!(control.contains("\nVersion: 0.0.1~test\n"), "{control}");
        assert!(control.contains("\nDepends: libc6 (>= 2."), "{control}");
    }
}

#[test]
fn the_package_gives_meshd_the_group_docker_once_and_only_where_it_exists() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let given = directory.path().join("given");
    let script = read("packaging/docker-group.sh").replace(
        "/var/lib/misc/meshd-docker-group",
        given.to_str().expect("a plain path"),
    );
    // The group exists if $1 says so, and what is done with users is printed.
    let run = |group_exists: bool| {
        let shell = format!(
            "set -e\nmkdir() {{ :; }}\ngetent() {{ {group_exists}; }}\nusermod() {{ echo \"usermod $*\"; }}\n{script}\ngive_docker_group || echo nothing\n"
        );
        let output = succeeds(Command::new("sh").arg("-c").arg(shell));
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .next()
            .expect("a line")
            .to_owned()
    };
    assert_eq!(run(false), "nothing");
    assert_eq!(run(true), "usermod -aG docker meshd");
    // The administrator may have taken the user out of the group since.
    assert_eq!(run(true), "nothing");
}

fn is_installed(name: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|path| path.join(name).is_file())
}

fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("it is installed");
    assert!(
        output.status.success(),
        "{command:?}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
