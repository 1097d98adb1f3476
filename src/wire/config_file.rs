//! Configuration files: TOML, read strictly. A key that is not known is an error that names it, its file and line,
//! and the nearest key there is.

use std::path::Path;

use serde::de::DeserializeOwned;

/// Octets of a configuration file at most.
const MAX_FILE: u64 = 1024 * 1024;

/// A file that cannot be used, in one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub String);

/// Reads `path`. Nothing if it is not there and nobody asked for it by name.
///
/// # Errors
/// It cannot be read or parsed.
pub fn read<T: DeserializeOwned + Default>(path: &Path, required: bool) -> Result<T, ConfigError> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !required => {
            return Ok(T::default());
        }
        Err(error) => {
            return Err(ConfigError(format!(
                "cannot read {}: {error}",
                path.display()
            )));
        }
    };
    file.take(MAX_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|error| ConfigError(format!("cannot read {}: {error}", path.display())))?;
    if text.len() as u64 > MAX_FILE {
        return Err(ConfigError(format!(
            "{} is larger than 1 MiB; is it the right file?",
            path.display()
        )));
    }
    parse(&text, path)
}

/// Parses the text of `path`.
///
/// # Errors
/// Names the line, and for a key that is not known the nearest one.
pub fn parse<T: DeserializeOwned>(text: &str, path: &Path) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text.get(..span.start)
                .unwrap_or_default()
                .matches('\n')
                .count()
                + 1
        });
        ConfigError(format!(
            "{}, line {line}: {}",
            path.display(),
            explain(error.message())
        ))
    })
}

/// Adds the nearest key to a message about one that is not known.
fn explain(message: &str) -> String {
    let message = message.replace('\n', " ");
    let Some(rest) = message.strip_prefix("unknown field `") else {
        return message;
    };
    let mut names = rest.split('`').step_by(2);
    let Some(unknown) = names.next() else {
        return message;
    };
    let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
    let nearest = known.iter().max_by(|a, b| {
        strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b))
    });
    match nearest {
        Some(nearest) => format!("unknown key `{unknown}`; the nearest known key is `{nearest}`"),
        None => format!("unknown key `{unknown}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Example {
        listen: String,
        state_dir: String,
    }

    fn error(text: &str) -> String {
        parse::<Example>(text, Path::new("x.toml"))
            .expect_err("wrong on purpose")
            .to_string()
    }

    #[test]
    fn an_unknown_key_is_named_with_file_line_and_the_nearest_key() {
        assert_eq!(
            error("listen = \"a\"\n\nstatedir = \"b\"\n"),
            "x.toml, line 3: unknown key `statedir`; the nearest known key is `state_dir`"
        );
    }

    #[test]
    fn a_wrong_type_names_the_line() {
        assert!(
            error("\nlisten = 3").starts_with("x.toml, line 2: invalid type"),
            "{}",
            error("\nlisten = 3")
        );
        assert!(error("listen").starts_with("x.toml, line 1: "));
    }

    #[test]
    fn a_file_that_is_not_there_is_an_error_only_if_it_was_asked_for() {
        let missing = Path::new("/nonexistent/x.toml");
        assert_eq!(read::<Example>(missing, false), Ok(Example::default()));
        assert!(read::<Example>(missing, true).is_err());
    }
}
