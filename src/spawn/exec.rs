//! Reads the body with which Docker's programs prepare a further process in a container (`POST /containers/ID/exec`), and writes the
//! one for the engine.

use serde_json::{Value, json};

use super::document::Fields;
use super::refused::Refused;
use super::template::Template;
use super::wanted::{Attach, check_environment, check_words, is_path};

/// Why other fields are refused.
const NOT_OURS: &str = "no template permits this field; leave it out";

/// A further process, in values that the template permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecWanted {
    pub command: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    pub working_dir: Option<String>,
    pub attach: Attach,
    pub tty: bool,
    /// The user of the template. None leaves it to the image.
    user: Option<String>,
}

/// Reads a body.
///
/// # Errors
/// The body cannot be read, or a field asks for more than the template permits.
pub fn read(body: &[u8], template: &Template) -> Result<ExecWanted, Refused> {
    let mut fields = Fields::parse(body)?;
    if !template.may.command {
        let right = format!(
            "the template {} does not permit to choose a command; its owner decides that with `command` in [[spawn]]",
            template.name
        );
        return Err(Refused::field("Cmd", right));
    }
    let user = template.user.map(|user| user.to_string());
    if let Some(asked) = fields.text("User")?
        && user.as_ref() != Some(&asked)
    {
        let right = "the template decides, or else the image; leave it out";
        return Err(fields.refuse("User", right));
    }
    let wanted = ExecWanted {
        command: fields.words("Cmd")?.unwrap_or_default(),
        environment: fields.texts("Env")?.unwrap_or_default(),
        working_dir: fields.text("WorkingDir")?,
        attach: Attach {
            stdin: fields.flag("AttachStdin")?,
            stdout: fields.flag("AttachStdout")?,
            stderr: fields.flag("AttachStderr")?,
        },
        tty: fields.flag("Tty")?,
        user,
    };
    // The path of the call names the container. Docker's library for Python names it here again.
    fields.text("Container")?;
    // Whether the caller waits for the process, the keys with which it detaches and the size of its terminal give it no rights.
    fields.flag("Detach")?;
    fields.text("DetachKeys")?;
    fields.take("ConsoleSize");
    fields.finish(NOT_OURS)?;
    if wanted.command.is_empty() {
        return Err(Refused::field("Cmd", "write the words of a command"));
    }
    check_words("Cmd", &wanted.command)?;
    check_environment(&wanted.environment, template, "Env")?;
    if !wanted.working_dir.as_ref().is_none_or(|path| is_path(path)) {
        return Err(Refused::field("WorkingDir", "write a path such as /tmp"));
    }
    Ok(wanted)
}

impl ExecWanted {
    /// The body for the engine.
    #[must_use]
    pub fn body(&self) -> Value {
        json!({
            "AttachStdin": self.attach.stdin,
            "AttachStdout": self.attach.stdout,
            "AttachStderr": self.attach.stderr,
            "Tty": self.tty,
            "Privileged": false,
            "Cmd": self.command,
            "Env": self.environment,
            "WorkingDir": self.working_dir.as_deref().unwrap_or_default(),
            "User": self.user.as_deref().unwrap_or_default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spawn::fixture::{strict, template};

    #[test]
    fn a_further_process_has_the_rights_of_its_container_and_no_others() {
        let body = r#"{"Container":"x","Cmd":["sh"],"Env":["A=1"],"AttachStdout":true,"Privileged":false,"User":"","DetachKeys":"ctrl-p","ConsoleSize":[40,120]}"#;
        let wanted = read(body.as_bytes(), &template()).expect("it is permitted");
        assert_eq!(
            wanted.body(),
            json!({
                "AttachStdin": false, "AttachStdout": true, "AttachStderr": false, "Tty": false,
                "Privileged": false, "Cmd": ["sh"], "Env": ["A=1"], "WorkingDir": "", "User": "1000:1000"
            })
        );
        let refused = read(body.as_bytes(), &strict()).expect_err("no command");
        assert!(refused.to_string().starts_with("Cmd: the template job"));
        for (field, body) in [
            ("Privileged", r#"{"Cmd":["sh"],"Privileged":true}"#),
            ("User", r#"{"Cmd":["sh"],"User":"0"}"#),
            ("Env", r#"{"Cmd":["sh"],"Env":["A"]}"#),
            ("Cmd", r#"{"Cmd":[]}"#),
            ("WorkingDir", r#"{"Cmd":["sh"],"WorkingDir":"../x"}"#),
            ("Later", r#"{"Cmd":["sh"],"Later":{"a":0}}"#),
        ] {
            let refused = read(body.as_bytes(), &template()).expect_err("it is refused");
            let named = format!("{field}: ");
            assert!(refused.to_string().starts_with(&named), "{refused}");
        }
    }
}
