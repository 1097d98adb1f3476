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
    Out,
    In,
}

/// The instances of all services. Those that are in no answer are first.
#[must_use]
pub fn view(list: &ServiceList, filter: &Filter, place: Place) -> Markup {
    let instances = list.services.iter().flat_map(|service| {
        let name = name_of(service);
        let instances = service.instances.iter();
        instances.map(move |instance| (name.clone(), instance))
    });
    let mut rows: Vec<(String, &InstanceRow, Part, &str)> = instances
        .map(|(name, instance)| {
            let (part, reason) = part_of(instance, place);
            (name, instance, part, reason)
        })
        .collect();
    let all = rows.len();
    let answered = rows.iter().filter(|row| row.2 == Part::In).count();
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
    let unanswered = without_answers(list, place);
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
            (list.services.len()) " services. " (answered) " of " (all) " ports of instances are in the answers."
        }
        @if !unanswered.is_empty() {
            p class="bad" {
                "No instance of these services is usable: " (text(&unanswered))
                ". The setting " code { "[dns] when_none_usable" } " of each node says what it answers."
            }
        }
        (table("Instances, those that are in no answer first", &columns, &shown))
        (left_out(rows.len()))
    }
}

/// The maximum number of services that one sentence names.
const MAX_NAMED: usize = 10;

fn without_answers(list: &ServiceList, place: Place) -> String {
    let has_none = |service: &&ServiceRow| {
        let mut instances = service.instances.iter();
        !service.instances.is_empty() && instances.all(|i| part_of(i, place).0 == Part::Out)
    };
    let names = list.services.iter().filter(has_none).map(name_of);
    crate::model::text::listed(names, MAX_NAMED)
}

fn name_of(service: &ServiceRow) -> String {
    match &service.project {
        Some(project) => format!("{}.{project}", service.name),
        None => service.name.to_string(),
    }
}

/// Whether an instance is in the answers, and why.
fn part_of(instance: &InstanceRow, place: Place) -> (Part, &'static str) {
    match (instance.reachable, instance.health) {
        (false, _) => match place {
            Place::Node => (Part::Out, "its node is not reached from this node"),
            Place::Coordinator => (Part::Out, "its node is not connected to this coordinator"),
        },
        (true, Health::Healthy) => (Part::In, "it passed its health check"),
        (true, Health::Unknown) => (Part::In, "it has no health check"),
        (true, Health::Unhealthy) => (Part::Out, "it failed its health check"),
        (true, Health::Starting) => (Part::Out, "it starts, and was not healthy yet"),
        (true, Health::Draining) => (Part::Out, "it is drained, and takes no new clients"),
    }
}

fn word_of(part: Part) -> &'static str {
    match part {
        Part::Out => "out",
        Part::In => "in",
    }
}

fn row(name: &str, instance: &InstanceRow, part: Part, reason: &str) -> Vec<Markup> {
    let tone = match part {
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
            page.contains("2 of 6 ports of instances are in the answers"),
            "{page}"
        );
        assert!(!page.contains("No instance of these services"), "{page}");
    }

    #[test]
    fn a_service_without_a_usable_instance_is_named() {
        let list = service_list("db", vec![instance_row("db-1", Health::Unhealthy)]);
        let page = view(&list, &Filter::default(), Place::Coordinator).into_string();
        assert!(page.contains("services is usable: db."), "{page}");
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
