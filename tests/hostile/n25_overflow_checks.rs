//! Number 25: a sum over numbers from the network that overflows ends in a panic, and never in a wrong packet or answer. The release
//! profile decides that, so these tests read it.

use toml::Table;

/// The profiles in which the programs and the fuzz targets are built, and whether each one checks for overflows.
fn profiles(manifest: &str) -> Vec<(String, Option<bool>)> {
    let manifest: Table = manifest.parse().expect("a manifest is TOML");
    let profiles = manifest.get("profile").and_then(|found| found.as_table());
    profiles
        .into_iter()
        .flatten()
        .filter_map(|(name, profile)| Some((name.clone(), profile.as_table()?)))
        .map(|(name, profile)| {
            let checks = profile.get("overflow-checks");
            (name, checks.and_then(toml::Value::as_bool))
        })
        .collect()
}

/// The packages that a profile excludes from its checks.
fn exceptions(manifest: &str) -> Vec<String> {
    let manifest: Table = manifest.parse().expect("a manifest is TOML");
    let profiles = manifest.get("profile").and_then(|found| found.as_table());
    let packages = profiles
        .into_iter()
        .flatten()
        .filter_map(|(_, profile)| profile.get("package")?.as_table());
    packages
        .flatten()
        .filter(|(_, package)| package.get("overflow-checks") == Some(&toml::Value::Boolean(false)))
        .map(|(name, _)| name.clone())
        .collect()
}

const MANIFEST: &str = include_str!("../../Cargo.toml");

#[test]
fn release_programs_check_for_overflows() {
    let release = profiles(MANIFEST)
        .into_iter()
        .find(|(name, _)| name == "release");
    assert_eq!(release, Some(("release".to_owned(), Some(true))));
    assert_eq!(exceptions(MANIFEST), Vec::<String>::new());
}

#[test]
fn no_profile_and_no_package_switches_the_checks_off() {
    let off = |manifest: &str| {
        let mut off: Vec<String> = profiles(manifest)
            .into_iter()
            .filter(|(_, checks)| *checks == Some(false))
            .map(|(name, _)| name)
            .collect();
        off.extend(exceptions(manifest));
        off
    };
    assert_eq!(off(MANIFEST), Vec::<String>::new());
    assert_eq!(
        off(include_str!("../../fuzz/Cargo.toml")),
        Vec::<String>::new()
    );
    let planted = "[profile.dev]\noverflow-checks = false\n[profile.release.package.meshd]\noverflow-checks = false\n";
    assert_eq!(off(planted), ["dev", "meshd"]);
}
