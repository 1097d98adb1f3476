//! The lines that a bench prints, of which its arguments may name some.

use std::process::ExitCode;

use meshd::testbed::as_root;

/// The name of a line, and what prints it.
pub(crate) type Line<S> = (&'static str, fn(&S));

/// Measures, as root, those of `lines` that are `named`, or all if none is.
pub(crate) fn print<S>(settings: &S, named: &[String], lines: &[Line<S>]) -> ExitCode {
    let measured = as_root(|| {
        for (name, measure) in lines {
            if named.is_empty() || named.iter().any(|line| line == name) {
                measure(settings);
            }
        }
        0
    });
    match measured {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
