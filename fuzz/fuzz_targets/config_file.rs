//! `meshd.toml`: every fault in it is reported in one line.
#![no_main]

use clap::Parser as _;
use libfuzzer_sys::fuzz_target;
use meshd::node::config::{Arguments, Config};

fuzz_target!(|text: &[u8]| {
    let path = std::env::temp_dir().join(format!("meshd-fuzz-{}.toml", std::process::id()));
    std::fs::write(&path, text).expect("a folder for temporary files");
    let arguments =
        Arguments::try_parse_from(["meshd".as_ref(), "--config".as_ref(), path.as_os_str()])
            .expect("--config is an option");
    if let Err(error) = Config::load(&arguments) {
        assert_eq!(error.to_string().lines().count(), 1, "{error}");
    }
});
