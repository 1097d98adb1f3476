//! Names of images, in the form in which they have only one meaning.
//!
//! The engine reads `alpine` as `docker.io/library/alpine:latest`, and takes some texts for the ids of images. Here each name is
//! completed first, so that two names of one image are equal and none is an id.

use std::fmt;

/// The registry of names that have none.
const DEFAULT_REGISTRY: &str = "docker.io";
/// The folder of names that have neither registry nor folder.
const DEFAULT_FOLDER: &str = "library";
/// The tag of names that have neither tag nor digest.
const DEFAULT_TAG: &str = "latest";
/// The beginning of a digest, and the number of hexadecimal digits after it.
const DIGEST_PREFIX: &str = "sha256:";
const DIGEST_DIGITS: usize = 64;
/// The maximum length of a repository and of a tag, in bytes. Registries and engines have the same limits.
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;
/// The end of a pattern that permits each digest of a repository.
const ANY_DIGEST: &str = "@sha256:*";

/// The name of one image.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageName {
    /// With the registry, such as `docker.io/library/alpine`.
    repository: String,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Version {
    Tag(String),
    /// With its prefix.
    Digest(String),
}

/// The images that a template permits: one image, or each digest of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePattern {
    repository: String,
    /// None permits each digest, and no tag.
    version: Option<Version>,
}

/// The reason why a text is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    #[error("an image cannot be empty")]
    Empty,
    #[error("`{0}` is no name of an image; write it as `registry.example.com/folder/name:tag`")]
    Repository(String),
    #[error("`{0}` has the tag `{1}`, which no image can have")]
    Tag(String, String),
    #[error("`{0}` has no digest after its `@`; one is `sha256:` and 64 hexadecimal digits")]
    Digest(String),
    #[error(
        "`{0}` does not say which version is permitted; write a tag, such as `{0}:1.0`, or `{0}@sha256:*` for each digest"
    )]
    NoVersion(String),
    #[error("`{0}` has a `*` in it; only `@sha256:*` at the end has one, for each digest")]
    Wild(String),
}

impl ImageName {
    /// Parses the name of an image, and completes it as the engine does. A tag before a digest is left out, since the digest decides.
    ///
    /// # Errors
    /// The text is no name of an image. The id of an image is none.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        let (repository, version) = split(text)?;
        let latest = || Version::Tag(DEFAULT_TAG.to_owned());
        Ok(Self {
            repository,
            version: version.unwrap_or_else(latest),
        })
    }

    /// The name as people write it: `alpine:3.20`.
    #[must_use]
    pub fn shown(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }

    /// Whether the name has a digest, so that it always is the same image.
    #[must_use]
    pub fn is_fixed(&self) -> bool {
        matches!(self.version, Version::Digest(_))
    }
}

impl ImagePattern {
    /// Parses the images that a template permits.
    ///
    /// # Errors
    /// The error says what to write in the place of the text.
    pub fn parse(text: &str) -> Result<Self, ImageError> {
        if let Some(name) = text.strip_suffix(ANY_DIGEST) {
            return match split(name)? {
                (repository, None) => Ok(Self {
                    repository,
                    version: None,
                }),
                _ => Err(ImageError::Wild(shown(text))),
            };
        }
        if text.contains('*') {
            return Err(ImageError::Wild(shown(text)));
        }
        match split(text)? {
            (repository, Some(version)) => Ok(Self {
                repository,
                version: Some(version),
            }),
            (_, None) => Err(ImageError::NoVersion(shown(text))),
        }
    }

    #[must_use]
    pub fn permits(&self, image: &ImageName) -> bool {
        self.repository == image.repository
            && match &self.version {
                Some(version) => *version == image.version,
                None => image.is_fixed(),
            }
    }
}

/// Splits a name into its completed repository and its version, if it has one.
fn split(text: &str) -> Result<(String, Option<Version>), ImageError> {
    if text.is_empty() {
        return Err(ImageError::Empty);
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) if is_digest(digest) => (name, Some(digest)),
        Some(_) => return Err(ImageError::Digest(shown(text))),
        None => (text, None),
    };
    // The port of a registry is before a slash.
    let (repository, tag) = match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    };
    if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
        return Err(ImageError::Tag(shown(text), shown(tag)));
    }
    let repository = completed(repository).ok_or_else(|| ImageError::Repository(shown(text)))?;
    let digest = digest.map(|digest| Version::Digest(digest.to_owned()));
    let tag = tag.map(|tag| Version::Tag(tag.to_owned()));
    Ok((repository, digest.or(tag)))
}

/// The repository with its registry and its folder. None if it is no repository.
fn completed(text: &str) -> Option<String> {
    let first = text.split_once('/');
    let (registry, path) = match first {
        Some((first, rest)) if is_registry(first) => (first, rest),
        _ => (DEFAULT_REGISTRY, text),
    };
    let path = match registry == DEFAULT_REGISTRY && !path.contains('/') {
        true => format!("{DEFAULT_FOLDER}/{path}"),
        false => path.to_owned(),
    };
    let bare_id = first.is_none() && text.len() == DIGEST_DIGITS && text.bytes().all(is_hex);
    let fits = registry.len() + path.len() < MAX_REPOSITORY;
    let is_valid = fits && !bare_id && path.split('/').all(is_component);
    is_valid.then(|| format!("{registry}/{path}"))
}

/// Whether the first part of a name is a registry: a host name with a dot, one with a port, or `localhost`.
fn is_registry(text: &str) -> bool {
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (text, None),
    };
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-' || c == b'.';
    let has_parts = host
        .split('.')
        .all(|part| !part.is_empty() && !part.starts_with('-') && !part.ends_with('-'));
    let has_port = port.is_none_or(|port| port.parse::<std::num::NonZeroU16>().is_ok());
    let is_named = host.contains('.') || port.is_some() || host == "localhost";
    host.bytes().all(plain) && has_parts && has_port && is_named
}

/// Whether a text is one part of the path of a repository: groups of lower-case letters and digits, with one separator between two.
fn is_component(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separators = text.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let mut inner = separators.filter(|separator| !separator.is_empty());
    let is_separator =
        |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|c| c == b'-');
    text.bytes().next().is_some_and(plain)
        && text.bytes().last().is_some_and(plain)
        && inner.all(is_separator)
}

fn is_tag(text: &str) -> bool {
    let word = |c: u8| c.is_ascii_alphanumeric() || c == b'_';
    (1..=MAX_TAG).contains(&text.len())
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|c| word(c) || matches!(c, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix(DIGEST_PREFIX);
    digits.is_some_and(|digits| digits.len() == DIGEST_DIGITS && digits.bytes().all(is_hex))
}

fn is_hex(c: u8) -> bool {
    c.is_ascii_digit() || matches!(c, b'a'..=b'f')
}

fn shown(text: &str) -> String {
    crate::model::text::printable(text, MAX_REPOSITORY)
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.repository, self.version)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => write!(f, ":{tag}"),
            Self::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Some(version) => write!(f, "{}{version}", self.repository),
            None => write!(f, "{}{ANY_DIGEST}", self.repository),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(text: &str) -> String {
        let name = ImageName::parse(text);
        name.map_or_else(|error| error.to_string(), |name| name.to_string())
    }

    fn digest() -> String {
        format!("sha256:{}", "0a".repeat(32))
    }

    #[test]
    fn a_name_is_completed_as_the_engine_completes_it() {
        for (text, completed) in [
            ("alpine", "docker.io/library/alpine:latest"),
            ("alpine:3.20", "docker.io/library/alpine:3.20"),
            ("acme/ci", "docker.io/acme/ci:latest"),
            ("docker.io/alpine", "docker.io/library/alpine:latest"),
            ("localhost/ci", "localhost/ci:latest"),
            ("localhost:5000/ci:1", "localhost:5000/ci:1"),
            (
                "registry.example.com/a/b__c:x",
                "registry.example.com/a/b__c:x",
            ),
        ] {
            assert_eq!(full(text), completed);
        }
        let pinned = format!("alpine:3.20@{}", digest());
        let expected = format!("docker.io/library/alpine@{}", digest());
        assert_eq!(full(&pinned), expected);
        // The engine would take the second part for the id of an image.
        assert_eq!(full("sha256:0a0a"), "docker.io/library/sha256:0a0a");
        let name = ImageName::parse("alpine:3.20").expect("a name");
        assert_eq!(name.shown(), "alpine:3.20");
    }

    #[test]
    fn a_text_that_is_no_name_or_an_id_is_refused() {
        let id = "0a".repeat(32);
        let long = "a".repeat(300);
        for text in [
            "",
            ":1",
            "a:",
            "/a",
            "a/",
            "a//b",
            "A",
            "a b",
            "-a",
            "a-",
            "a..b",
            "a:b:c",
            "a@",
            "a@sha256:12",
            "a@md5:00",
            "../a",
            "a/../b",
            "a\n",
            "a?x=1",
            "http://a/b",
            "a:5000x/b",
            "\u{e4}",
            "x.example:0/a",
            "-x.example/a",
            &id,
            &long,
        ] {
            assert!(ImageName::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_pattern_permits_one_tag_one_digest_or_each_digest() {
        let permits = |pattern: &str, image: &str| {
            let pattern = ImagePattern::parse(pattern).expect("a pattern");
            pattern.permits(&ImageName::parse(image).expect("a name"))
        };
        let pinned = format!("alpine@{}", digest());
        assert!(permits("alpine:3.20", "docker.io/library/alpine:3.20"));
        assert!(!permits("alpine:3.20", "alpine"));
        assert!(!permits("alpine:3.20", &pinned));
        assert!(!permits("alpine:3.20", "evil/alpine:3.20"));
        assert!(permits("alpine@sha256:*", &pinned));
        assert!(permits(
            "alpine@sha256:*",
            &format!("alpine:3.20@{}", digest())
        ));
        assert!(!permits("alpine@sha256:*", "alpine:3.20"));
        assert!(permits(&pinned, &pinned));
        let other = format!("alpine@sha256:{}", "0b".repeat(32));
        assert!(!permits(&pinned, &other));
    }

    #[test]
    fn a_pattern_without_a_version_says_what_to_write() {
        let error = |text: &str| ImagePattern::parse(text).expect_err("wrong").to_string();
        assert_eq!(
            error("alpine"),
            "`alpine` does not say which version is permitted; write a tag, such as `alpine:1.0`, or `alpine@sha256:*` for each digest"
        );
        for text in [
            "alpine:*",
            "*",
            "*/ci:1",
            "alpine:3@sha256:*",
            "a*@sha256:*",
        ] {
            assert!(error(text).contains('*'), "{text}");
        }
    }
}
