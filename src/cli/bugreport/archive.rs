//! The file of a report.

use crate::model::time::UnixSeconds;

/// A file in the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) text: String,
}

impl Part {
    pub(super) fn new(name: &str, text: String) -> Self {
        Self {
            name: name.to_owned(),
            text,
        }
    }
}

/// A tar archive of `parts`, below one directory.
pub(super) fn tar(parts: &[Part], now: UnixSeconds) -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for part in parts {
        let mut header = tar::Header::new_gnu();
        header.set_size(part.text.len() as u64);
        header.set_mode(0o600);
        header.set_mtime(now.0);
        let path = format!("meshd-bugreport/{}", part.name);
        archive.append_data(&mut header, path, part.text.as_bytes())?;
    }
    archive.into_inner()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_parts_are_files_of_one_directory() {
        let parts = [
            Part::new("a.txt", "one\n".into()),
            Part::new("b.txt", "x".repeat(70_000)),
        ];
        let bytes = tar(&parts, UnixSeconds(1_800_000_000)).expect("memory has room");
        let mut archive = tar::Archive::new(bytes.as_slice());
        let found: Vec<Part> = archive
            .entries()
            .expect("an archive")
            .map(|entry| {
                let mut entry = entry.expect("an entry");
                let name = entry.path().expect("a path").display().to_string();
                let mut text = String::new();
                entry.read_to_string(&mut text).expect("text");
                Part { name, text }
            })
            .collect();
        let expected = parts.map(|part| Part {
            name: format!("meshd-bugreport/{}", part.name),
            ..part
        });
        assert_eq!(found, expected);
    }
}
