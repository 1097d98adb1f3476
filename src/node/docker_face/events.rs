//! The events of the caller's containers.

use std::collections::HashMap;
use std::io;

use axum::body::{Body, Bytes};
use axum::response::Response;
use futures_util::stream;

use super::answer::{self, Failure};
use super::documents::{self, Shown};
use super::query::Filters;
use super::streams::StreamPlace;
use super::{Asked, holds, shown};
use crate::containers::control::{ContainerEvent, Events};
use crate::model::ContainerId;
use crate::node::spawn::{Call, Spawner};

/// The maximum number of containers whose removal is still reported to their caller.
const MAX_REMEMBERED: usize = 1024;

/// A stream of events that has not ended.
struct Followed {
    events: Events,
    filters: Filters,
    spawner: Spawner,
    call: Call,
    /// Containers of the caller. The event of a removal may arrive when the container is not known any more.
    remembered: HashMap<ContainerId, Shown>,
    _place: StreamPlace,
}

/// Sends the events of the caller's containers, as they happen.
pub(super) async fn follow(asked: Asked) -> Result<Response, Failure> {
    let query = asked.query(&["since", "until", "filters"])?;
    let filters = query.filters(&["type", "container", "event"])?;
    let (since, until) = (query.time("since")?, query.time("until")?);
    let place = asked.stream()?;
    let events = asked.engine().events(since, until).await?;
    let mut followed = Followed {
        events,
        filters,
        remembered: HashMap::new(),
        spawner: asked.spawner,
        call: asked.call,
        _place: place,
    };
    followed.remember();
    let parts = stream::unfold(Some(followed), |followed| async move {
        let mut followed = followed?;
        match followed.next().await {
            Ok(Some(text)) => Some((Ok(Bytes::from(text)), Some(followed))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(answer::json_stream(Body::from_stream(parts)))
}

impl Followed {
    /// The texts of the next events of the caller's containers. None at the end.
    async fn next(&mut self) -> io::Result<Option<String>> {
        while let Some(events) = self.events.next().await.map_err(io::Error::other)? {
            let mut text = String::new();
            for event in &events {
                let Some(shown) = self.own(event) else {
                    continue;
                };
                if passes(&self.filters, event, &shown) {
                    text.push_str(&documents::event(event, &shown).to_string());
                    text.push('\n');
                }
            }
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        Ok(None)
    }

    /// The container of an event, if it is one of the caller.
    fn own(&mut self, event: &ContainerEvent) -> Option<Shown> {
        if let Some(entry) = holds(&self.spawner, &self.call, &event.id) {
            let shown = shown(&entry);
            if self.remembered.len() >= MAX_REMEMBERED {
                self.remembered.clear();
            }
            self.remembered.insert(event.id.clone(), shown.clone());
            return Some(shown);
        }
        match event.action.as_str() {
            "destroy" | "remove" => self.remembered.remove(&event.id),
            _ => self.remembered.get(&event.id).cloned(),
        }
    }

    /// Remembers the containers that exist.
    fn remember(&mut self) {
        let owned = self.spawner.owned(&self.call).unwrap_or_default();
        let owned = owned.into_iter().take(MAX_REMEMBERED);
        self.remembered.extend(owned.filter_map(|entry| {
            let shown = shown(&entry);
            Some((entry.container?, shown))
        }));
    }
}

fn passes(filters: &Filters, event: &ContainerEvent, shown: &Shown) -> bool {
    // The action of a command has the command behind a colon.
    let action = event.action.split(':').next().unwrap_or_default();
    filters.passes("type", |kind| kind == "container")
        && filters.passes("event", |wanted| wanted == action)
        && filters.passes("container", |wanted| {
            let is_id = !wanted.is_empty() && event.id.as_str().starts_with(wanted);
            is_id || shown.name == wanted
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::docker_face::query::Query;

    #[test]
    fn events_are_filtered_by_their_container_and_their_action() {
        let event = ContainerEvent {
            id: ContainerId::parse(&"a".repeat(64)).expect("hexadecimal digits"),
            action: "exec_start: ls".into(),
            exit_code: None,
            signal: None,
            time: 0,
        };
        let shown = Shown {
            name: "job".into(),
            image: "alpine:3.20".into(),
        };
        for (filters, expected) in [
            ("", true),
            (r#"{"type":["container"]}"#, true),
            (r#"{"type":["network"]}"#, false),
            (r#"{"event":["exec_start"],"container":["job"]}"#, true),
            (r#"{"event":["die"]}"#, false),
            (r#"{"container":["aaaaaaaaaaaa"]}"#, true),
            (r#"{"container":["other"]}"#, false),
        ] {
            let text = crate::model::percent::encoded(filters);
            let query = Query::parse(Some(&format!("filters={text}")), &["filters"]);
            let filters = query.expect("a query");
            let filters = filters.filters(&["type", "container", "event"]);
            let filters = filters.expect("filters");
            assert_eq!(passes(&filters, &event, &shown), expected, "{text}");
        }
    }
}
