//! The query of a request of Docker's API. Pure.
//!
//! Clients send parameters that have no effect, such as `platform=`. So a parameter that a call does not have is accepted if its value
//! is empty or false, and refused otherwise: a caller learns that it would have no effect.

use std::collections::BTreeMap;

use crate::model::percent::decoded_of_query;
use crate::model::text::message;

/// The maximum number of parameters.
const MAX_PARAMETERS: usize = 32;
/// The maximum length of a query, in bytes.
const MAX_QUERY: usize = 8192;

/// Why a query is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadQuery {
    #[error(
        "the query is too long; {MAX_QUERY} bytes and {MAX_PARAMETERS} parameters are the most"
    )]
    TooLong,
    #[error("the query cannot be read; encode it with percent signs")]
    Encoding,
    #[error("the query has the parameter {} more than once; send it once", message(.0))]
    Twice(String),
    #[error("meshd does not support the parameter {}; leave it out", message(.0))]
    Unsupported(String),
    #[error("the parameter {} is {}; {}", .0, message(.2), .1)]
    Value(&'static str, &'static str, String),
    #[error("meshd does not support the filter {}; leave it out", message(.0))]
    Filter(String),
}

/// The parameters of a query that its call has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Query(BTreeMap<&'static str, String>);

impl Query {
    /// Reads a query. `known` are the parameters that the call has.
    pub(super) fn parse(query: Option<&str>, known: &[&'static str]) -> Result<Self, BadQuery> {
        let query = query.unwrap_or_default();
        if query.len() > MAX_QUERY {
            return Err(BadQuery::TooLong);
        }
        let mut values = BTreeMap::new();
        let parts = query.split('&').filter(|part| !part.is_empty());
        for (index, part) in parts.enumerate() {
            if index >= MAX_PARAMETERS {
                return Err(BadQuery::TooLong);
            }
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let name = decoded_of_query(name).ok_or(BadQuery::Encoding)?;
            let value = decoded_of_query(value).ok_or(BadQuery::Encoding)?;
            match known.iter().find(|known| **known == name) {
                Some(known) => {
                    if values.insert(*known, value).is_some() {
                        return Err(BadQuery::Twice(name));
                    }
                }
                None if has_no_effect(&value) => {}
                None => return Err(BadQuery::Unsupported(name)),
            }
        }
        Ok(Self(values))
    }

    /// The value of a parameter. None if it is missing or empty.
    pub(super) fn text(&self, name: &'static str) -> Option<&str> {
        let value = self.0.get(name)?.as_str();
        (!value.is_empty()).then_some(value)
    }

    /// Whether a parameter is set, as Docker reads it.
    pub(super) fn flag(&self, name: &'static str) -> bool {
        let value = self.0.get(name).map(|value| value.to_ascii_lowercase());
        value.is_some_and(|value| !matches!(value.as_str(), "" | "0" | "no" | "false" | "none"))
    }

    /// A number. None if it is missing.
    pub(super) fn number(&self, name: &'static str) -> Result<Option<i64>, BadQuery> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        let wrong = |_| BadQuery::Value(name, "send a whole number", value.to_owned());
        value.parse().map(Some).map_err(wrong)
    }

    /// A time in seconds since 1970, which may have a fraction. None if it is missing or 0.
    pub(super) fn time(&self, name: &'static str) -> Result<Option<u64>, BadQuery> {
        let Some(value) = self.text(name) else {
            return Ok(None);
        };
        let (seconds, fraction) = value.split_once('.').unwrap_or((value, "0"));
        let is_fraction = fraction.bytes().all(|c| c.is_ascii_digit());
        let seconds = seconds.parse::<u64>().ok();
        let seconds = seconds.filter(|_| is_fraction);
        let wrong = || {
            let ask = "send the seconds since 1970";
            BadQuery::Value(name, ask, value.to_owned())
        };
        let seconds = seconds.ok_or_else(wrong)?;
        Ok((seconds > 0).then_some(seconds))
    }

    /// The filters of a list: the values for each name. `known` are the names that the call has.
    pub(super) fn filters(&self, known: &[&'static str]) -> Result<Filters, BadQuery> {
        match self.text("filters") {
            None => Ok(Filters::default()),
            Some(text) => Filters::parse(text, known),
        }
    }
}

/// Whether a value has the same effect as no value.
fn has_no_effect(value: &str) -> bool {
    matches!(
        value,
        "" | "0" | "false" | "False" | "null" | "None" | "[]" | "{}"
    )
}

/// The filters of a list. Something passes if, for each name, it has one of the values; for labels, all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Filters(BTreeMap<&'static str, Vec<String>>);

impl Filters {
    /// Reads both forms: `{"name":["x"]}`, and the older `{"name":{"x":true}}`.
    fn parse(text: &str, known: &[&'static str]) -> Result<Self, BadQuery> {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        enum Values {
            List(Vec<String>),
            Map(BTreeMap<String, bool>),
        }
        let wrong = |_| {
            let ask = "send a JSON object whose values are lists of texts";
            BadQuery::Value("filters", ask, text.to_owned())
        };
        let raw: BTreeMap<String, Values> = serde_json::from_str(text).map_err(wrong)?;
        let mut filters = BTreeMap::new();
        for (name, values) in raw {
            let values: Vec<String> = match values {
                Values::List(values) => values,
                Values::Map(values) => {
                    let set = values.into_iter().filter(|(_, is_set)| *is_set);
                    set.map(|(value, _)| value).collect()
                }
            };
            match known.iter().find(|known| **known == name) {
                Some(known) => {
                    filters.insert(*known, values);
                }
                None if values.is_empty() => {}
                None => return Err(BadQuery::Filter(name)),
            }
        }
        Ok(Self(filters))
    }

    /// Whether something with this `name` passes that filter: one value matches, or there is none.
    pub(super) fn passes(&self, name: &'static str, matches: impl Fn(&str) -> bool) -> bool {
        match self.0.get(name) {
            None => true,
            Some(values) => values.is_empty() || values.iter().any(|value| matches(value)),
        }
    }

    /// Whether something with these labels passes the filter `label`, whose values are `key` or `key=value`.
    pub(super) fn passes_labels(&self, labels: &BTreeMap<String, String>) -> bool {
        let has = |wanted: &String| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|own| own == value),
            None => labels.contains_key(wanted),
        };
        self.0
            .get("label")
            .is_none_or(|wanted| wanted.iter().all(has))
    }

    /// Whether there is a filter of this name.
    pub(super) fn has(&self, name: &'static str) -> bool {
        self.0.get(name).is_some_and(|values| !values.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(query: &str) -> Result<Query, BadQuery> {
        Query::parse(Some(query), &["all", "filters", "limit", "since"])
    }

    #[test]
    fn parameters_are_read_as_docker_reads_them() {
        for (value, is_set) in [
            ("1", true),
            ("true", true),
            ("True", true),
            ("x", true),
            ("0", false),
            ("", false),
            ("no", false),
            ("false", false),
            ("None", false),
        ] {
            let query = parse(&format!("all={value}")).expect("a query");
            assert_eq!(query.flag("all"), is_set, "{value}");
        }
        assert!(!parse("").expect("a query").flag("all"));
        let query = parse("limit=-1&since=1136073600.000000001").expect("a query");
        assert_eq!(query.number("limit"), Ok(Some(-1)));
        assert_eq!(query.time("since"), Ok(Some(1_136_073_600)));
        let query = parse("limit=x&since=2006-01-02T15:04:05").expect("a query");
        assert!(query.number("limit").is_err());
        assert!(query.time("since").is_err());
        assert_eq!(parse("since=0").expect("a query").time("since"), Ok(None));
    }

    #[test]
    fn a_parameter_that_a_call_does_not_have_may_be_there_if_it_says_nothing() {
        assert_eq!(
            parse("platform=&size=0&trunc_cmd=false"),
            Ok(Query::default())
        );
        let refused = parse("platform=linux%2Farm64").expect_err("a value");
        assert_eq!(
            refused.to_string(),
            "meshd does not support the parameter platform; leave it out"
        );
        assert_eq!(parse("all=0&all=1"), Err(BadQuery::Twice("all".to_owned())));
        assert_eq!(parse("all=%zz"), Err(BadQuery::Encoding));
        let many = "a=&".repeat(MAX_PARAMETERS + 1);
        assert_eq!(parse(&many), Err(BadQuery::TooLong));
        assert_eq!(parse(&"a".repeat(MAX_QUERY + 1)), Err(BadQuery::TooLong));
    }

    #[test]
    fn filters_are_read_in_both_forms() {
        let labels = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        for text in [
            r#"{"label":["a=b","a"]}"#,
            r#"{"label":{"a=b":true,"a":true,"c":false}}"#,
        ] {
            let filters = Filters::parse(text, &["label"]).expect("filters");
            assert!(filters.passes_labels(&labels), "{text}");
            assert!(!filters.passes_labels(&BTreeMap::new()), "{text}");
        }
        let filters = Filters::parse(r#"{"name":["x","y"]}"#, &["name"]).expect("filters");
        assert!(filters.passes("name", |value| value == "y"));
        assert!(!filters.passes("name", |value| value == "z"));
        assert!(filters.passes("id", |_| false));
        let unknown = Filters::parse(r#"{"network":["x"]}"#, &["name"]);
        assert_eq!(unknown, Err(BadQuery::Filter("network".to_owned())));
        assert!(Filters::parse(r#"{"network":[]}"#, &["name"]).is_ok());
        for wrong in ["[]", "x", r#"{"name":"x"}"#, r#"{"name":[1]}"#] {
            assert!(Filters::parse(wrong, &["name"]).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn no_query_ends_in_a_panic(query in ".{0,80}") {
            if let Ok(query) = parse(&query) {
                let _ = (query.number("limit"), query.time("since"), query.filters(&["label"]));
            }
        }
    }
}
