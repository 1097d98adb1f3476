//! Reads the body of meshd's own call (`POST /v1/spawn`).

use super::image::ImageName;
use super::owner::Granted;
use super::refused::Refused;
use super::wanted::{Names, Wanted, check_name};
use crate::model::text;
use crate::protocol::spawn::SpawnRequest;

/// The fields of the body, for messages.
const NAMES: Names = Names {
    command: "command",
    entry_point: "command",
    environment: "environment",
    working_dir: "command",
    labels: "labels",
    volumes: "volumes",
};

/// What a body asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub granted: Granted,
    pub wanted: Wanted,
    pub name: Option<String>,
}

/// Reads a body for a caller that may use the templates `granted`.
///
/// # Errors
/// The body cannot be read, the template is none of the caller's, or it does not permit what the body asks for.
pub fn read(body: &[u8], granted: &[Granted]) -> Result<Asked, Refused> {
    let request: SpawnRequest = serde_json::from_slice(body)
        .map_err(|error| Refused::Body(text::message(&error.to_string())))?;
    let named = |granted: &&Granted| granted.template.name == request.template;
    let Some(granted) = granted.iter().find(named) else {
        let names = granted.iter().map(|granted| granted.template.name.clone());
        return Err(Refused::OtherTemplate(request.template, names.collect()));
    };
    let template = &granted.template;
    let image = ImageName::parse(&request.image)?;
    if !template.permits_image(&image) {
        let images = template.images.iter().map(ToString::to_string);
        return Err(Refused::OtherImage(image.shown(), images.collect()));
    }
    let mut wanted = Wanted::of(image);
    wanted.process.command = (!request.command.is_empty()).then_some(request.command);
    wanted.process.environment = request.environment;
    wanted.volumes = request.volumes.into_iter().collect();
    for label in request.labels {
        let Some((name, value)) = label.split_once('=') else {
            return Err(Refused::field("labels", "write labels as `name=value`"));
        };
        wanted.labels.insert(name.to_owned(), value.to_owned());
    }
    wanted.check(template, &NAMES)?;
    if let Some(name) = &request.name {
        check_name(name)?;
    }
    Ok(Asked {
        granted: granted.clone(),
        wanted,
        name: request.name,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::PublicKey;
    use crate::spawn::Owner;
    use crate::spawn::fixture::{strict, template};
    use crate::spawn::template::Template;
    use crate::testbed::records::label;

    fn granted(template: Template) -> Vec<Granted> {
        vec![Granted {
            template: Arc::new(template),
            owner: Owner::Token(PublicKey([7; 32])),
        }]
    }

    #[test]
    fn a_request_is_read_into_what_its_template_permits() {
        let body = r#"{"template":"job","image":"alpine:3.20","command":["sh","-c","true"],"environment":["A=1"],"name":"one","labels":["mesh.service=job"],"volumes":["/cache"]}"#;
        let asked = read(body.as_bytes(), &granted(template())).expect("it is permitted");
        assert_eq!(asked.name.as_deref(), Some("one"));
        let wanted = asked.wanted;
        assert_eq!(wanted.image.shown(), "alpine:3.20");
        let command = ["sh", "-c", "true"].map(str::to_owned).to_vec();
        assert_eq!(wanted.process.command, Some(command));
        assert_eq!(wanted.labels["mesh.service"], "job");
        assert!(wanted.volumes.contains("/cache"));
        let bare = br#"{"template":"job","image":"alpine:3.20"}"#;
        let asked = read(bare, &granted(strict())).expect("it asks for nothing");
        assert_eq!(asked.wanted, Wanted::of(asked.wanted.image.clone()));
    }

    #[test]
    fn a_request_for_more_than_its_template_permits_names_the_field() {
        let error = |template: Template, more: &str| {
            let body = format!("{{\"template\":\"job\",\"image\":\"alpine:3.20\"{more}}}");
            let refused = read(body.as_bytes(), &granted(template)).expect_err("refused");
            refused.to_string()
        };
        for (more, field) in [
            (r#","command":["sh"]"#, "command: "),
            (r#","environment":["A=1"]"#, "environment: "),
            (r#","labels":["mesh.service=job"]"#, "labels.mesh.service: "),
            (r#","volumes":["/cache"]"#, "volumes: "),
        ] {
            let text = error(strict(), more);
            assert!(text.starts_with(field), "{text}");
        }
        for (more, field) in [
            (r#","environment":["=1"]"#, "environment: "),
            (r#","labels":["mesh.service=db"]"#, "labels.mesh.service: "),
            (r#","labels":["mesh.service"]"#, "labels: "),
            (r#","volumes":["/proc"]"#, "volumes./proc: "),
            (r#","name":"a/b""#, "name: "),
            (r#","command":["a\u0000b"]"#, "command: "),
        ] {
            let text = error(template(), more);
            assert!(text.starts_with(field), "{text}");
        }
    }

    #[test]
    fn another_template_another_image_and_an_unknown_field_are_refused() {
        let granted = granted(template());
        let refused = |body: &str| read(body.as_bytes(), &granted).expect_err("refused");
        let other = refused(r#"{"template":"web","image":"alpine:3.20"}"#);
        let expected = Refused::OtherTemplate(label("web"), vec![label("job")]);
        assert_eq!(other, expected);
        let image = refused(r#"{"template":"job","image":"alpine:3.21"}"#);
        assert!(matches!(image, Refused::OtherImage(..)), "{image}");
        for body in [
            r#"{"template":"job","image":"alpine:3.20","privileged":false}"#,
            r#"{"template":"job","template":"job","image":"alpine:3.20"}"#,
            r#"{"template":"job"}"#,
            "[]",
            "",
        ] {
            assert!(matches!(refused(body), Refused::Body(_)), "{body}");
        }
    }
}
