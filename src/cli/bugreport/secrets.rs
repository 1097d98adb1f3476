//! Removes secrets from text: those that are known from the files of this machine, and what has the form of a secret.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use crate::protocol::JoinToken;
use crate::protocol::api_token;
use crate::protocol::token::PREFIX;

/// What is in the place of a secret.
const REMOVED: &str = "(removed)";
/// The maximum size of a file with secrets, in bytes.
const MAX_FILE: u64 = 256 * 1024;
/// Shorter texts are not removed as known secrets: they could be part of any word.
const MIN_SECRET: usize = 6;

/// The secrets of this machine, as far as this user can read them.
#[derive(Default)]
pub(super) struct Secrets(BTreeSet<String>);

impl Secrets {
    /// Reads the secrets of the files that the configurations name, and of the mesh key.
    pub(super) fn collect(configs: &[&Path], mesh_key: &Path) -> Self {
        let mut secrets = Self::default();
        secrets.add_file(mesh_key);
        let mut directories: Vec<PathBuf> =
            vec!["/var/lib/meshd".into(), "/var/lib/mesh-coordinator".into()];
        for config in configs {
            let table: toml::Table = read(config).parse().unwrap_or_default();
            directories.extend(secrets.add_config(&table));
        }
        for directory in directories {
            for name in ["identity.json", "pending.json"] {
                let document = serde_json::from_str(&read(&directory.join(name)));
                secrets.add_seeds(&document.unwrap_or_default());
            }
            secrets.add_file(&directory.join("tls.key"));
        }
        secrets
    }

    /// Adds what a configuration has or names, and returns the directory of the state.
    fn add_config(&mut self, table: &toml::Table) -> Option<PathBuf> {
        for (key, value) in table {
            match value {
                toml::Value::Table(section) => drop(self.add_config(section)),
                // A certificate is no secret.
                toml::Value::String(_) if key == "ca_file" || key == "certificate_file" => {}
                toml::Value::String(path) if key.ends_with("_file") => {
                    self.add_file(Path::new(path));
                }
                toml::Value::String(text) if is_secret_key(key) => self.add(text),
                toml::Value::String(url) if is_proxy_key(key) => self.add_credentials(url),
                _ => {}
            }
        }
        let directory = table.get("state_dir").and_then(toml::Value::as_str);
        directory.map(PathBuf::from)
    }

    /// Adds the user and the password in the URL of a proxy, which may have any characters.
    fn add_credentials(&mut self, url: &str) {
        let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
        if let Some((credentials, _)) = rest.rsplit_once('@') {
            self.add(credentials);
        }
    }

    /// Adds each line of a file, for example of a private key in PEM.
    fn add_file(&mut self, path: &Path) {
        for line in read(path).lines().filter(|line| !line.starts_with("-----")) {
            self.add(line.trim());
        }
    }

    /// Adds the seeds and the secret keys in a document of the state.
    fn add_seeds(&mut self, document: &serde_json::Value) {
        match document {
            serde_json::Value::Object(fields) => {
                for (key, value) in fields {
                    match value.as_str() {
                        Some(text) if key.contains("seed") || key.contains("secret") => {
                            self.add(text);
                        }
                        _ => self.add_seeds(value),
                    }
                }
            }
            serde_json::Value::Array(values) => values.iter().for_each(|v| self.add_seeds(v)),
            _ => {}
        }
    }

    /// Adds a secret, and the other forms that it may have in a text.
    fn add(&mut self, secret: &str) {
        if secret.len() < MIN_SECRET {
            return;
        }
        if let Ok(token) = JoinToken::parse(secret) {
            self.add_bytes(token.key.seed().as_slice());
        }
        if let Ok(key) = secret.parse::<crate::model::PublicKey>() {
            // A seed is written as a public key is.
            self.add_bytes(&key.0);
        }
        self.0.insert(secret.to_owned());
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.0.insert(hex.to_ascii_uppercase());
        self.0.insert(hex);
        self.0.insert(STANDARD.encode(bytes));
        self.0.insert(URL_SAFE_NO_PAD.encode(bytes));
    }

    /// `text` without secrets.
    pub(super) fn remove_from(&self, text: &str) -> String {
        let mut text = text.to_owned();
        // The longest first: a secret may have another one in it.
        let mut secrets: Vec<&String> = self.0.iter().collect();
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        for secret in secrets {
            if text.contains(secret.as_str()) {
                text = text.replace(secret.as_str(), REMOVED);
            }
        }
        let mut in_key = false;
        let mut lines: Vec<String> = Vec::new();
        for line in text.lines() {
            let begins = line.contains("-----BEGIN") && line.contains("PRIVATE KEY");
            in_key |= begins;
            if !in_key {
                lines.push(without_tokens(&without_password(&without_setting(line))));
            } else if begins {
                lines.push(REMOVED.to_owned());
            }
            in_key &= !line.contains("-----END");
        }
        let mut text = lines.join("\n");
        text.push('\n');
        text
    }
}

/// Whether a key of a configuration names a secret.
fn is_secret_key(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let words = [
        "password",
        "passphrase",
        "secret",
        "token",
        "private",
        "seed",
    ];
    !key.ends_with("_file") && words.iter().any(|word| key.contains(word))
}

/// Whether a key of a configuration names the URL of a proxy, which may have no scheme.
fn is_proxy_key(key: &str) -> bool {
    key.to_ascii_lowercase().ends_with("proxy")
}

/// A line of a configuration without the value of a secret key and without the password for a proxy, also if it is a comment.
fn without_setting(line: &str) -> String {
    let Some((key, value)) = line.split_once('=') else {
        return line.to_owned();
    };
    let name = key.trim().trim_start_matches(['#', ' ']).trim_matches('"');
    let is_key = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_key && is_secret_key(name) {
        return format!("{key}= \"{REMOVED}\"");
    }
    match value.rsplit_once('@') {
        Some((_, host)) if is_key && is_proxy_key(name) && !value.contains("://") => {
            format!("{key}= \"{REMOVED}@{host}")
        }
        _ => line.to_owned(),
    }
}

/// A line without the user and the password of URLs.
fn without_password(line: &str) -> String {
    let mut rest = line;
    let mut text = String::new();
    while let Some((before, after)) = rest.split_once("://") {
        text.push_str(before);
        text.push_str("://");
        let end = after
            .find(['/', ' ', '"', '\'', '?', '#'])
            .unwrap_or(after.len());
        rest = match after.get(..end).and_then(|authority| authority.rfind('@')) {
            Some(at) => {
                text.push_str(REMOVED);
                after.get(at..).unwrap_or_default()
            }
            None => after,
        };
    }
    text.push_str(rest);
    text
}

/// A line without join tokens and API tokens.
fn without_tokens(line: &str) -> String {
    let line = without_token(line, PREFIX);
    without_token(&line, api_token::PREFIX)
}

/// A line without tokens that begin with `prefix`.
fn without_token(line: &str, prefix: &str) -> String {
    let mut parts = line.split(prefix);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        let end = part.find(|c| !is_part(c)).unwrap_or(part.len());
        text.push_str(prefix);
        if end > 0 {
            text.push_str(REMOVED);
        }
        text.push_str(part.get(end..).unwrap_or_default());
    }
    text
}

fn read(path: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path);
    let read = file.and_then(|file| file.take(MAX_FILE).read_to_end(&mut bytes));
    // What this user cannot read is not in the report either.
    match read {
        Ok(_) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_the_form_of_a_secret_is_removed_wherever_it_stands() {
        let secrets = Secrets::default();
        for (text, expected) in [
            (
                "token mesh1_AbC-_9 refused",
                "token mesh1_(removed) refused\n",
            ),
            (
                "Authorization: Bearer mesha1_AbC-_9",
                "Authorization: Bearer mesha1_(removed)\n",
            ),
            ("begins with `mesh1_`", "begins with `mesh1_`\n"),
            (
                "proxy = \"http://user:p@ss@proxy:3128/x\"",
                "proxy = \"http://(removed)@proxy:3128/x\"\n",
            ),
            (
                "# proxy = \"user:pass@proxy:3128\"",
                "# proxy = \"(removed)@proxy:3128\"\n",
            ),
            ("proxy = \"proxy:3128\"", "proxy = \"proxy:3128\"\n"),
            (
                "url = \"https://coord:7443\"",
                "url = \"https://coord:7443\"\n",
            ),
            ("password = \"hunter2\"", "password = \"(removed)\"\n"),
            ("# join_token = \"x\"", "# join_token = \"(removed)\"\n"),
            ("token_file = \"/etc/t\"", "token_file = \"/etc/t\"\n"),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nMIG\n-----END EC PRIVATE KEY-----\nb",
                "a\n(removed)\nb\n",
            ),
        ] {
            assert_eq!(secrets.remove_from(text), expected, "{text}");
        }
    }

    #[test]
    fn a_known_seed_is_removed_in_each_form() {
        let mut secrets = Secrets::default();
        let seed = "01ab".repeat(16);
        let document = serde_json::json!({"keys": {"identity_seed": seed, "identity": "public"}});
        secrets.add_seeds(&document);
        let bytes = [1u8, 0xab].repeat(16);
        let text = format!(
            "{seed} {} {} {} public",
            seed.to_ascii_uppercase(),
            STANDARD.encode(&bytes),
            URL_SAFE_NO_PAD.encode(&bytes)
        );
        let removed = secrets.remove_from(&text);
        // The form without padding begins the one with it, which is longer and is replaced first.
        assert_eq!(removed, "(removed) (removed) (removed) (removed) public\n");
    }

    #[test]
    fn the_password_for_a_proxy_is_removed_whatever_characters_it_has() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("meshd.toml");
        for url in ["http://user:p/s#s@proxy:3128", "user:p/s#s@proxy:3128"] {
            let config = format!("relay = {{ proxy = \"{url}\" }}\n");
            std::fs::write(&path, &config).expect("writable");
            let secrets = Secrets::collect(&[&path], &directory.path().join("mesh.key"));
            let removed = secrets.remove_from(&config);
            assert_eq!(removed, config.replace("user:p/s#s", REMOVED), "{url}");
        }
    }

    #[test]
    fn secrets_are_found_in_the_files_that_a_configuration_names() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| directory.path().join(name);
        let write = |name: &str, text: &str| std::fs::write(path(name), text).expect("writable");
        write("password", "correct horse\n");
        write("mesh.key", &format!("{}\n", "07".repeat(32)));
        write(
            "tls.key",
            "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMG\n-----END PRIVATE KEY-----\n",
        );
        write(
            "identity.json",
            &format!(
                "{{\"keys\":{{\"wireguard_secret\":\"{}\"}}}}",
                "09".repeat(32)
            ),
        );
        let config = format!(
            "state_dir = \"{}\"\n[store]\npassword_file = \"{}\"\n",
            directory.path().display(),
            path("password").display()
        );
        write("coordinator.toml", &config);
        let secrets = Secrets::collect(&[&path("coordinator.toml")], &path("mesh.key"));
        let text = format!(
            "correct horse {} MIGHAgEAMBMG {}",
            "07".repeat(32),
            "09".repeat(32)
        );
        assert_eq!(
            secrets.remove_from(&text),
            "(removed) (removed) (removed) (removed)\n"
        );
    }
}
