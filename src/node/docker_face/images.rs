//! The calls about images. A caller sees and downloads the images that its templates permit, and learns nothing of others.

use std::time::Duration;

use axum::response::Response;
use serde_json::{Value, json};
use tokio::time::timeout;

use super::answer::{self, Failure};
use super::documents::{self, Names};
use super::streams::{StreamPlace, body_of_texts};
use super::{Asked, PROGRAM};
use crate::containers::control::ImageFound;
use crate::node::spawn::{Call, Spawner};

/// How often a caller that waits for a download is told so. Clients give up after a minute without a word.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

/// Lists the permitted images that the engine has.
pub(super) async fn list(asked: &Asked) -> Result<Response, Failure> {
    let query = asked.query(&["all", "digests", "filters"])?;
    let filters = query.filters(&["reference"])?;
    let images = asked.engine().images().await?;
    let rows = images.iter().filter_map(|found| {
        let mut names = permitted(asked, found);
        names
            .tags
            .retain(|name| filters.passes("reference", |wanted| is_same(asked, name, wanted)));
        names
            .digests
            .retain(|name| filters.passes("reference", |wanted| is_same(asked, name, wanted)));
        (names != Names::default()).then(|| documents::image_row(found, &names))
    });
    Ok(answer::json(&Value::Array(rows.collect())))
}

/// The names of an image that the caller may use.
fn permitted(asked: &Asked, found: &ImageFound) -> Names {
    let is_permitted = |name: &&String| asked.spawner.permits_image(&asked.call, name).is_ok();
    let of = |names: &[String]| names.iter().filter(is_permitted).cloned().collect();
    Names {
        tags: of(&found.tags),
        digests: of(&found.digests),
    }
}

/// Whether two texts name the same image, which the caller may use.
fn is_same(asked: &Asked, one: &str, other: &str) -> bool {
    let named = |text: &str| asked.spawner.permits_image(&asked.call, text).ok();
    let one = named(one);
    one.is_some() && one == named(other)
}

/// Describes a permitted image that the engine has.
pub(super) async fn inspect(asked: &Asked, name: &str) -> Result<Response, Failure> {
    asked.query(&[])?;
    let image = asked.spawner.permits_image(&asked.call, name)?;
    let found = asked.engine().image(&image.to_string()).await?;
    let missing = || Failure::not_found(format!("No such image: {}", image.shown()));
    let found = found.ok_or_else(missing)?;
    let names = permitted(asked, &found);
    Ok(answer::json(&documents::image(PROGRAM, &found, &names)))
}

/// Downloads a permitted image, unless the engine has it.
pub(super) async fn pull(asked: Asked) -> Result<Response, Failure> {
    let query = asked.query(&["fromImage", "tag"])?;
    let Some(repository) = query.text("fromImage") else {
        let text = "the parameter fromImage is missing; send the name of an image";
        return Err(Failure::bad_request(text));
    };
    let name = reference(repository, query.text("tag"));
    // A caller learns at once that it may not use the image.
    let image = asked.spawner.permits_image(&asked.call, &name)?;
    let place = asked.stream()?;
    let download = Download {
        image: image.shown(),
        work: Box::pin(work(asked.spawner, asked.call, name)),
        step: Step::Begin,
        _place: place,
    };
    Ok(answer::json_stream(body_of_texts(download, progress)))
}

/// The name of an image from its repository, and its tag or digest.
fn reference(repository: &str, tag: Option<&str>) -> String {
    match tag {
        Some(digest) if digest.starts_with("sha256:") => format!("{repository}@{digest}"),
        Some(tag) => format!("{repository}:{tag}"),
        None => repository.to_owned(),
    }
}

async fn work(spawner: Spawner, call: Call, name: String) -> Result<ImageFound, Failure> {
    Ok(spawner.image(&call, &name).await?)
}

/// A download whose caller waits for it.
struct Download {
    image: String,
    work: std::pin::Pin<Box<dyn Future<Output = Result<ImageFound, Failure>> + Send>>,
    step: Step,
    _place: StreamPlace,
}

enum Step {
    Begin,
    Wait,
}

/// The next line about a download. After the last line there is no further state.
async fn progress(mut download: Download) -> Option<(String, Option<Download>)> {
    let image = &download.image;
    if matches!(download.step, Step::Begin) {
        let text = line(&json!({"status": format!("Pulling {image}")}));
        download.step = Step::Wait;
        return Some((text, Some(download)));
    }
    Some(match timeout(PROGRESS_INTERVAL, &mut download.work).await {
        Err(_) => (line(&json!({"status": "Downloading"})), Some(download)),
        Ok(Ok(found)) => {
            let status = format!("Status: {image} is there as {}", found.id);
            (line(&json!({"status": status})), None)
        }
        Ok(Err(failure)) => {
            let message = failure.message();
            let text = json!({"errorDetail": {"message": message}, "error": message});
            (line(&text), None)
        }
    })
}

fn line(document: &Value) -> String {
    format!("{document}\r\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_named_by_its_tag_or_its_digest() {
        assert_eq!(reference("alpine", None), "alpine");
        assert_eq!(reference("alpine", Some("3.20")), "alpine:3.20");
        assert_eq!(reference("a/b", Some("sha256:1")), "a/b@sha256:1");
    }
}
