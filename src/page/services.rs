//! The view of services: each instance, whether it is in the answers to its name, and why.

use maud::{Markup, html};

use super::table::{Filter, MAX_ROWS, Tone, heading, left_out, mark, table, text};
use crate::model::PublicHost;
use crate::protocol::local::{InstanceRow, ServiceList, ServiceRow};
use crate::records::kinds::Health;

/// The program that shows the services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Node,
    Coordinator,
}

/// Whether an instance is in the answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    /// It is, unless `[dns] when_none_usable` says otherwise, because no instance of its service is usable.
    LastResort,
    Out,
    In,
}

/// The instances of all services. Those that are not usable are first.
#[must_use]
pub fn view(list: &ServiceList, filter: &Filter, place: Place) -> Markup {
    let instances = list.services.iter().flat_map(|service| {
        let name = name_of(service);
        let has_usable = has_usable(service);
        let instances = service.instances.iter();
        instances.map(move |instance| {
            let (part, reason) = part_of(instance, has_usable, place);
            (name.clone(), instance, part, reason)
        })
    });
    let mut rows: Vec<(String, &InstanceRow, Part, &str)> = instances.collect();
    let all = rows.len();
    let usable = rows.iter().filter(|row| row.2 == Part::In).count();
    rows.retain(|(name, instance, part, reason)| {
        filter.passes(&format!(
            "{name} {} {} {} {}/{} {} {reason}",
            instance.id,
            instance.node,
            instance.address,
            instance.port,
            instance.protocol.as_str(),
            word_of(*part),
        ))
    });
    rows.sort_by(|a, b| (a.2, &a.0, &a.1.id, a.1.port).cmp(&(b.2, &b.0, &b.1.id, b.1.port)));
    let shown: Vec<Vec<Markup>> = rows
        .iter()
        .take(MAX_ROWS)
        .map(|(name, instance, part, reason)| row(name, instance, *part, reason))
        .collect();
    let unusable = without_usable(list);
    let columns = [
        "Service",
        "In answers",
        "Reason",
        "Instance",
        "Node",
        "Address",
    ];
    html! {
        (heading("Services"))
        p {
            (list.services.len()) " services. " (usable) " of " (all) " ports of instances are usable."
        }
        @if !unusable.is_empty() {
            p class="bad" {
                "No instance of these services is usable: " (text(&unusable))
                ". Those that are a last resort are answered all the same, unless " code { "[dns] when_none_usable" }
                " of the node that answers is " code { "none" } "."
            }
        }
        (table("Instances, those that are not usable first", &columns, &shown))
        (left_out(rows.len()))
    }
}

/// The maximum number of services that one sentence names.
const MAX_NAMED: usize = 10;

fn has_usable(service: &ServiceRow) -> bool {
    let mut instances = service.instances.iter();
    instances.any(|instance| instance.reachable && instance.health.is_usable())
}

fn without_usable(list: &ServiceList) -> String {
    let has_none = |service: &&ServiceRow| !service.instances.is_empty() && !has_usable(service);
    let names = list.services.iter().filter(has_none).map(name_of);
    crate::model::text::listed(names, MAX_NAMED)
}

fn name_of(service: &ServiceRow) -> String {
    match &service.project {
        Some(project) => format!("{}.{project}", service.name),
        None => service.name.to_string(),
    }
}

/// Whether an instance is in the answers, and why. The zone decides in the same order (`dns/zone.rs`).
fn part_of(instance: &InstanceRow, has_usable: bool, place: Place) -> (Part, &'static str) {
    let unusable = if has_usable {
        Part::Out
    } else {
        Part::LastResort
    };
    match (instance.health, instance.reachable) {
        (Health::Draining, _) => (Part::Out, "it is drained, and takes no new clients"),
        (Health::Starting, _) => (Part::Out, "it starts, and was not healthy yet"),
        (Health::Unhealthy, _) => (unusable, "it failed its health check"),
        (Health::Healthy | Health::Unknown, false) => match place {
            Place::Node => (unusable, "its node is not reached from this node"),
            Place::Coordinator => (unusable, "its node is not connected to this coordinator"),
        },
        (Health::Healthy, true) => (Part::In, "it passed its health check"),
        (Health::Unknown, true) => (Part::In, "it has no health check"),
    }
}

fn word_of(part: Part) -> &'static str {
    match part {
        Part::LastResort => "last resort",
        Part::Out => "out",
        Part::In => "in",
    }
}

fn row(name: &str, instance: &InstanceRow, part: Part, reason: &str) -> Vec<Markup> {
    let tone = match part {
        Part::LastResort => Tone::Warning,
        Part::Out => Tone::Bad,
        Part::In => Tone::Good,
    };
    let public: Vec<&str> = instance.public.iter().map(PublicHost::as_str).collect();
    vec![
        html! {
            (text(&name))
            @if !public.is_empty() { span class="reason" { "public as " (text(&public.join(", "))) } }
        },
        mark(tone, word_of(part)),
        html! { (reason) },
        text(&instance.id),
        text(&instance.node),
        html! {
            (text(&instance.address)) " port " (instance.port) "/" (instance.protocol.as_str())
            @if let Some(port) = &instance.port_name { " (" (text(port)) ")" }
        },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::tests::{instance_row, service_list};

    #[test]
    fn each_instance_has_the_reason_why_it_is_in_the_answers_or_not() {
        let health = [
            Health::Healthy,
            Health::Unhealthy,
            Health::Starting,
            Health::Draining,
            Health::Unknown,
        ];
        let mut instances: Vec<InstanceRow> = health
            .into_iter()
            .enumerate()
            .map(|(n, health)| instance_row(&format!("i{n}"), health))
            .collect();
        let mut away = instance_row("away", Health::Healthy);
        away.reachable = false;
        instances.push(away);
        let page = view(
            &service_list("web", instances),
            &Filter::default(),
            Place::Node,
        );
        let page = page.into_string();
        for reason in [
            "it passed its health check",
            "it failed its health check",
            "it starts, and was not healthy yet",
            "it is drained, and takes no new clients",
            "it has no health check",
            "its node is not reached from this node",
        ] {
            assert!(page.contains(reason), "{reason}: {page}");
        }
        assert!(
            page.contains("2 of 6 ports of instances are usable"),
            "{page}"
        );
        assert!(!page.contains("No instance of these services"), "{page}");
        assert!(!page.contains(">last resort<"), "{page}");
    }

    #[test]
    fn a_service_without_a_usable_instance_is_named() {
        let list = service_list("db", vec![instance_row("db-1", Health::Unhealthy)]);
        let page = view(&list, &Filter::default(), Place::Coordinator).into_string();
        assert!(page.contains("services is usable: db."), "{page}");
    }

    #[test]
    fn where_no_instance_is_usable_those_that_are_answered_all_the_same_are_a_last_resort() {
        let mut away = instance_row("away", Health::Healthy);
        away.reachable = false;
        let mut drained = instance_row("drained", Health::Draining);
        drained.reachable = false;
        let instances = [
            away,
            drained,
            instance_row("failed", Health::Unhealthy),
            instance_row("new", Health::Starting),
        ];
        let parts = instances.each_ref().map(|instance| {
            let (part, reason) = part_of(instance, false, Place::Node);
            (part, reason.starts_with("it is drained"))
        });
        let expected = [
            (Part::LastResort, false),
            (Part::Out, true),
            (Part::LastResort, false),
            (Part::Out, false),
        ];
        assert_eq!(parts, expected);
        let list = service_list("db", instances.to_vec());
        let page = view(&list, &Filter::default(), Place::Node).into_string();
        assert_eq!(page.matches(">last resort<").count(), 2, "{page}");
        assert!(page.contains("0 of 4 ports of instances are usable"));
    }

    #[test]
    fn the_words_of_a_filter_are_those_of_a_row() {
        let instances = vec![
            instance_row("one", Health::Healthy),
            instance_row("two", Health::Draining),
        ];
        let list = service_list("web", instances);
        let rows = |words: &str| {
            let page = view(&list, &Filter::parse(words), Place::Node).into_string();
            page.matches("rowheader").count()
        };
        assert_eq!([rows(""), rows("web drained"), rows("nothing")], [2, 1, 0]);
    }
}
