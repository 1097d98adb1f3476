//! JSON documents that are read to the last field.
//!
//! The parsers of Docker's engine, of this program and of a filter between them differ in keys that stand there twice and in keys of
//! another case. So a key that stands there twice is an error here, each field is taken by its exact name, and a field that nobody took
//! must have a value that asks for nothing ([`Value::is_neutral`]).

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};

use super::refused::Refused;

/// The maximum size of a document, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// The maximum depth of objects and lists in each other. The documents of Docker's programs have five levels.
const MAX_DEPTH: usize = 16;

/// A value.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    List(Vec<Value>),
    Object(BTreeMap<String, Value>),
}

/// The fields of an object that nobody has taken yet.
#[derive(Debug)]
pub(super) struct Fields {
    /// The path of the object, with a dot at its end unless it is the document.
    path: String,
    left: BTreeMap<String, Value>,
}

impl Value {
    /// Whether the value asks for nothing: `null`, `false`, 0, an empty text, list or object. The programs that call Docker send many such
    /// fields. An object or a list with something in it never is neutral, since its keys or its length may have a meaning.
    pub(super) fn is_neutral(&self) -> bool {
        match self {
            Self::Null | Self::Bool(false) => true,
            Self::Bool(true) => false,
            Self::Number(number) => *number == 0.0,
            Self::Text(text) => text.is_empty(),
            Self::List(values) => values.is_empty(),
            Self::Object(fields) => fields.is_empty(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a truth value",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::List(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

impl Fields {
    /// Parses a document, which is an object.
    ///
    /// # Errors
    /// The text is longer than 64 KiB, is not JSON, is too deep, has a key twice, or is no object.
    pub(super) fn parse(body: &[u8]) -> Result<Self, Refused> {
        if body.len() > MAX_BODY {
            let text = format!("it has {} bytes; {MAX_BODY} are the most", body.len());
            return Err(Refused::Body(text));
        }
        let unreadable = |error: serde_json::Error| {
            Refused::Body(crate::model::text::message(&error.to_string()))
        };
        let mut parser = serde_json::Deserializer::from_slice(body);
        let value = Seed { depth: 0 }
            .deserialize(&mut parser)
            .map_err(unreadable)?;
        parser.end().map_err(unreadable)?;
        match value {
            Value::Object(left) => Ok(Self {
                path: String::new(),
                left,
            }),
            other => Err(Refused::Body(format!(
                "it is {}, and not an object",
                other.kind()
            ))),
        }
    }

    /// The path of a field of the object.
    pub(super) fn path_of(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    /// Refuses a field of the object.
    pub(super) fn refuse(&self, name: &str, right: impl Into<String>) -> Refused {
        Refused::field(&self.path_of(name), right)
    }

    /// Takes a field. None if it is absent or asks for nothing.
    pub(super) fn take(&mut self, name: &str) -> Option<Value> {
        self.left.remove(name).filter(|value| !value.is_neutral())
    }

    pub(super) fn flag(&mut self, name: &str) -> Result<bool, Refused> {
        match self.take(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.wrong(name, &other, "true or false")),
        }
    }

    pub(super) fn text(&mut self, name: &str) -> Result<Option<String>, Refused> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(name, &other, "a text")),
        }
    }

    pub(super) fn number(&mut self, name: &str) -> Result<Option<f64>, Refused> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Number(number)) => Ok(Some(number)),
            Some(other) => Err(self.wrong(name, &other, "a number")),
        }
    }

    /// Takes a list of texts.
    pub(super) fn texts(&mut self, name: &str) -> Result<Option<Vec<String>>, Refused> {
        let values = match self.take(name) {
            None => return Ok(None),
            Some(Value::List(values)) => values,
            Some(other) => return Err(self.wrong(name, &other, "a list of texts")),
        };
        let texts = values.into_iter().map(|value| match value {
            Value::Text(text) => Ok(text),
            other => Err(self.wrong(name, &other, "a list of texts")),
        });
        texts.collect::<Result<_, _>>().map(Some)
    }

    /// Takes a list of texts, or one text in its place, which Docker takes for a list of one.
    pub(super) fn words(&mut self, name: &str) -> Result<Option<Vec<String>>, Refused> {
        if let Some(Value::Text(_)) = self.left.get(name) {
            return Ok(self.text(name)?.map(|text| vec![text]));
        }
        self.texts(name)
    }

    /// Takes an object. It has no fields if it is absent.
    pub(super) fn object(&mut self, name: &str) -> Result<Self, Refused> {
        let left = match self.take(name) {
            None => BTreeMap::new(),
            Some(Value::Object(fields)) => fields,
            Some(other) => return Err(self.wrong(name, &other, "an object")),
        };
        let path = format!("{}.", self.path_of(name));
        Ok(Self { path, left })
    }

    /// Takes an object whose keys are names that the caller chose.
    pub(super) fn map(&mut self, name: &str) -> Result<BTreeMap<String, Value>, Refused> {
        self.object(name).map(|object| object.left)
    }

    /// The names of the fields that are left.
    pub(super) fn names(&self) -> Vec<String> {
        self.left.keys().cloned().collect()
    }

    /// Requires that each field that is left asks for nothing. `why` says why the others are refused.
    pub(super) fn finish(self, why: &str) -> Result<(), Refused> {
        let asking = self.left.iter().find(|(_, value)| !value.is_neutral());
        asking.map_or(Ok(()), |(name, _)| Err(self.refuse(name, why)))
    }

    fn wrong(&self, name: &str, value: &Value, expected: &str) -> Refused {
        self.refuse(name, format!("it is {}; write {expected}", value.kind()))
    }
}

/// Reads a value at a depth.
struct Seed {
    depth: usize,
}

impl Seed {
    fn below<E: Error>(&self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format!(
                "more than {MAX_DEPTH} objects and lists are in each other"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element_seed(self.below::<A::Error>()?)? {
            list.push(value);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = BTreeMap::new();
        while let Some(name) = fields.next_key::<String>()? {
            let value = fields.next_value_seed(self.below::<A::Error>()?)?;
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!(
                    "the key {name} stands there twice"
                )));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Fields, Refused> {
        Fields::parse(text.as_bytes())
    }

    #[test]
    fn a_document_that_two_parsers_could_read_differently_is_refused() {
        for text in [
            "",
            "null",
            "[]",
            "{",
            "{} {}",
            "{}x",
            r#"{"a":1,"a":1}"#,
            r#"{"b":{"a":1,"a":null}}"#,
            r#"{"b":[{"a":1,"\u0061":2}]}"#,
            r#"{"a":NaN}"#,
            "{\"a\":\"\u{1}\"}",
        ] {
            let refused = parse(text).expect_err("it is refused");
            assert!(matches!(refused, Refused::Body(_)), "{text}");
        }
        assert!(Fields::parse(b"{\"a\":\"\xff\"}").is_err());
    }

    #[test]
    fn a_document_has_a_bound_for_its_size_and_its_depth() {
        let padded = |length: usize| format!("{{}}{}", " ".repeat(length - 2));
        assert!(parse(&padded(MAX_BODY)).is_ok());
        assert!(parse(&padded(MAX_BODY + 1)).is_err());
        let nested = |depth: usize| format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse(&nested(MAX_DEPTH - 1)).is_ok());
        assert!(parse(&nested(MAX_DEPTH + 1)).is_err());
        assert!(parse(&nested(10_000)).is_err());
    }

    #[test]
    fn what_nobody_took_must_ask_for_nothing() {
        let finish = |text: &str| parse(text).and_then(|fields| fields.finish("no"));
        let neutral = r#"{"a":null,"b":false,"c":0,"d":"","e":[],"f":{},"g":0.0,"h":-0}"#;
        assert_eq!(finish(neutral), Ok(()));
        for text in [
            r#"{"a":true}"#,
            r#"{"a":-1}"#,
            r#"{"a":1e-9}"#,
            r#"{"a":" "}"#,
            r#"{"a":[null]}"#,
            r#"{"a":[""]}"#,
            r#"{"a":{"host":null}}"#,
        ] {
            let refused = Refused::Field("a".to_owned(), "no".to_owned());
            assert_eq!(finish(text), Err(refused), "{text}");
        }
    }

    #[test]
    fn a_field_of_another_type_is_named_with_its_path() {
        let mut fields = parse(r#"{"HostConfig":{"Privileged":"yes","Dns":[1]}}"#).expect("JSON");
        let mut host = fields.object("HostConfig").expect("an object");
        let refused = host.flag("Privileged").expect_err("a text");
        assert_eq!(
            refused.to_string(),
            "HostConfig.Privileged: it is a text; write true or false"
        );
        let refused = host.texts("Dns").expect_err("a number");
        assert_eq!(
            refused.to_string(),
            "HostConfig.Dns: it is a number; write a list of texts"
        );
    }
}
