//! The JSON documents that `meshctl --json` prints: schemas and tables of their fields, from the types in the source.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use meshd::protocol::web::openapi;
use serde_json::{Map, Value, json};
use syn::{Attribute, Fields, Item, Type};

use crate::reference::{cell, check, head};
use crate::{read, repository, walk};

/// The commands, the types that they print, and the files of the schemas.
const DOCUMENTS: [(&str, &str, &str); 19] = [
    ("meshctl status --json", "Status", "status"),
    ("meshctl status --system --json", "SystemList", "system"),
    ("meshctl why web-1 --json", "Why", "why"),
    ("meshctl netcheck --json", "Netcheck", "netcheck"),
    ("meshctl service list --json", "ServiceList", "services"),
    ("meshctl node list --json", "NodeList", "nodes"),
    ("meshctl token list --json", "TokenList", "tokens"),
    ("meshctl token create --json", "Created", "token"),
    (
        "meshctl api-token list --json",
        "ApiTokenList",
        "api-tokens",
    ),
    (
        "meshctl api-token create --name ci --scope status:read --json",
        "CreatedApiToken",
        "api-token",
    ),
    ("meshctl guest list --json", "GuestList", "guests"),
    ("meshctl doctor --json", "Report", "doctor"),
    (
        "meshctl policy apply /run/shop.toml --json",
        "Applied",
        "policy-apply",
    ),
    (
        "meshctl policy check /run/shop.toml --json",
        "Checked",
        "policy-check",
    ),
    (
        "meshctl policy diff /run/shop.toml --json",
        "Differences",
        "policy-diff",
    ),
    ("meshctl policy show --json", "Shown", "policy-show"),
    (
        "meshctl policy explain web-1 db:5432 --json",
        "Explained",
        "policy-explain",
    ),
    (
        "meshctl policy denied --json",
        "DeniedList",
        "policy-denied",
    ),
    (
        "meshctl audit --verify --json",
        "VerifiedAudit",
        "audit-verify",
    ),
];
/// The types of requests and answers of the API over the network that no command prints, and the files of their schemas.
const MESSAGES: [(&str, &str); 12] = [
    ("AddService", "add-service"),
    ("OwnInstances", "own-instances"),
    ("PolicyCheckRequest", "policy-check-request"),
    ("Reserve", "reserve"),
    ("Reserved", "reserved"),
    ("Resolve", "resolve"),
    ("Resolved", "resolved"),
    ("ServiceChanged", "service-changed"),
    ("SpawnRequest", "spawn-request"),
    ("Spawned", "spawned"),
    ("SpawnedList", "spawned-list"),
    ("WhyRequest", "why-request"),
];
/// The files of the types.
const SOURCES: [&str; 23] = [
    "src/protocol/local.rs",
    "src/protocol/local/guests.rs",
    "src/protocol/local/instances.rs",
    "src/protocol/local/paths.rs",
    "src/protocol/local/policy.rs",
    "src/protocol/local/routes.rs",
    "src/protocol/admin.rs",
    "src/protocol/policy_check.rs",
    "src/protocol/spawn.rs",
    "src/records/kinds/services.rs",
    "src/model/protocol.rs",
    "src/cli/api_token/create.rs",
    "src/cli/api_token/list.rs",
    "src/cli/guest/list.rs",
    "src/cli/guest/row.rs",
    "src/cli/token/create.rs",
    "src/cli/doctor/mod.rs",
    "src/cli/doctor/explain.rs",
    "src/cli/policy/apply.rs",
    "src/cli/policy/diff.rs",
    "src/cli/policy/explain.rs",
    "src/cli/policy/show.rs",
    "src/cli/audit/findings.rs",
];
/// Types that are a JSON string.
const STRINGS: [&str; 19] = [
    "String",
    "Label",
    "PublicHost",
    "PublicKey",
    "WireGuardKey",
    "ServiceName",
    "ServerAddress",
    "HostName",
    "IpAddr",
    "Ipv4Addr",
    "Ipv6Addr",
    "Ipv4Net",
    "Ipv6Net",
    "SocketAddr",
    "CoordinatorUrl",
    "Protocol",
    "Tag",
    "Scope",
    "ContainerId",
];
const INTEGERS: [&str; 7] = ["u8", "u16", "u32", "u64", "i64", "usize", "UnixSeconds"];

/// A type of the source.
enum Known {
    Struct(Vec<Field>),
    Words(Vec<String>),
    /// Words, and objects with one field, whose name is a word as well.
    Choices(Vec<(String, Option<Type>)>),
}

struct Field {
    name: String,
    kind: Type,
    about: String,
    is_always_there: bool,
    /// Whether the fields of its type stand in its place.
    is_flat: bool,
}

#[test]
fn the_reference_of_json_is_that_of_the_types() {
    let types = types();
    let mut page = head("JSON output", "the types of the programs");
    page.push_str(
        "\nA command with `--json` prints one document on stdout. Fields may be added to a document; the number in `schema` changes if one is\nremoved or changes its meaning. So ignore fields that you do not know. A command that fails prints no document;\none that answers no, with the exit status 2, prints it.\n",
    );
    for (command, name, file) in DOCUMENTS {
        let _ = write!(
            page,
            "\n## {command}\n\nSchema: [{file}.json](schemas/{file}.json)\n"
        );
        add_fields(&mut page, &types, name, "");
        check_schema(file, command, schema_of(&types, name));
    }
    check("docs/reference/json.md", &page);
}

#[test]
fn the_schemas_of_the_api_are_those_of_the_types() {
    let types = types();
    for (name, file) in MESSAGES {
        check_schema(file, name, schema_of(&types, name));
    }
}

#[test]
fn the_descriptions_of_the_api_are_those_of_its_calls() {
    for (program, description) in [
        ("meshd", openapi::of_node()),
        ("mesh-coordinator", openapi::of_coordinator()),
    ] {
        let text = serde_json::to_string_pretty(&description).expect("a document") + "\n";
        check(&format!("docs/reference/openapi/{program}.json"), &text);
    }
}

/// Gives a schema its title, and compares it with its file or writes the file.
fn check_schema(file: &str, title: &str, mut schema: Value) {
    let object = schema.as_object_mut().expect("a document is an object");
    object.insert("title".into(), json!(title));
    object.insert(
        "$schema".into(),
        json!("https://json-schema.org/draft/2020-12/schema"),
    );
    let text = serde_json::to_string_pretty(&schema).expect("a document") + "\n";
    check(&format!("docs/reference/schemas/{file}.json"), &text);
}

#[test]
fn real_documents_have_the_fields_of_the_schemas() {
    let Some(mesh) = walk::running_mesh() else {
        return;
    };
    let types = types();
    for (command, name, _) in DOCUMENTS {
        let text = &mesh.documents[command];
        let value: Value = serde_json::from_str(text).expect("a document");
        let faults = differences(&schema_of(&types, name), &value, command);
        assert!(faults.is_empty(), "{}\n{text}", faults.join("\n"));
    }
}

/// The documents of [`DOCUMENTS`] that [`walk::running_mesh`] asks for.
pub(crate) fn commands() -> impl Iterator<Item = &'static str> {
    DOCUMENTS.into_iter().map(|(command, ..)| command)
}

/// The fields of a type as they stand in the document.
fn fields<'a>(types: &'a BTreeMap<String, Known>, name: &str) -> Vec<&'a Field> {
    let Some(Known::Struct(own)) = types.get(name) else {
        return Vec::new();
    };
    let fields = own.iter().flat_map(|field| {
        if field.is_flat {
            self::fields(types, &inner_type(&field.kind))
        } else {
            vec![field]
        }
    });
    fields.collect()
}

/// The last name of a type, inside `Option` and `Vec`.
pub(crate) fn inner_type(kind: &Type) -> String {
    match wrapped(kind) {
        (_, Some(inner)) => inner_type(inner),
        (name, None) => name,
    }
}

/// The name of a type, and the type inside it if it is an `Option` or a `Vec`.
fn wrapped(kind: &Type) -> (String, Option<&Type>) {
    let Type::Path(path) = kind else {
        return ("?".into(), None);
    };
    let Some(last) = path.path.segments.last() else {
        return ("?".into(), None);
    };
    let name = last.ident.to_string();
    if let syn::PathArguments::AngleBracketed(arguments) = &last.arguments
        && ["Option", "Vec"].contains(&name.as_str())
        && let Some(syn::GenericArgument::Type(inner)) = arguments.args.first()
    {
        return (name, Some(inner));
    }
    (name, None)
}

fn types() -> BTreeMap<String, Known> {
    let mut types = BTreeMap::new();
    for path in SOURCES {
        assert!(repository(path).exists(), "{path}");
        for item in syn::parse_file(&read(path)).expect("it compiles").items {
            match item {
                Item::Struct(item) => {
                    if let Fields::Named(fields) = item.fields {
                        let fields = fields.named.into_iter().map(field).collect();
                        types.insert(item.ident.to_string(), Known::Struct(fields));
                    }
                }
                Item::Enum(item) if item.variants.iter().all(|v| v.fields.is_empty()) => {
                    let style = serde(&item.attrs, "rename_all");
                    let own = item
                        .variants
                        .iter()
                        .filter(|v| !has_serde(&v.attrs, "other"));
                    let words = own.map(|variant| {
                        serde(&variant.attrs, "rename").unwrap_or_else(|| {
                            renamed(&variant.ident.to_string(), style.as_deref())
                        })
                    });
                    types.insert(item.ident.to_string(), Known::Words(words.collect()));
                }
                Item::Enum(item) => {
                    let name = item.ident.to_string();
                    if let Some(choices) = choices_of(item) {
                        types.entry(name).or_insert(Known::Choices(choices));
                    }
                }
                _ => {}
            }
        }
    }
    types
}

/// The variants of an enum with their values, as serde writes them. None if a variant has several values or fields with names.
fn choices_of(item: syn::ItemEnum) -> Option<Vec<(String, Option<Type>)>> {
    let style = serde(&item.attrs, "rename_all");
    let choices = item.variants.into_iter().map(|variant| {
        let name = renamed(&variant.ident.to_string(), style.as_deref());
        match variant.fields {
            Fields::Unit => Some((name, None)),
            Fields::Unnamed(fields) => {
                let mut kinds = fields.unnamed.into_iter().map(|field| field.ty);
                match (kinds.next(), kinds.next()) {
                    (Some(kind), None) => Some((name, Some(kind))),
                    _ => None,
                }
            }
            Fields::Named(_) => None,
        }
    });
    choices.collect()
}

fn field(field: syn::Field) -> Field {
    let about: Vec<String> = field.attrs.iter().filter_map(doc_line).collect();
    Field {
        name: serde(&field.attrs, "rename")
            .unwrap_or_else(|| field.ident.expect("a named field").to_string()),
        kind: field.ty,
        about: about.join(" ").trim().replace(['[', ']'], ""),
        is_always_there: !has_serde(&field.attrs, "skip_serializing_if"),
        is_flat: has_serde(&field.attrs, "flatten"),
    }
}

fn doc_line(attribute: &Attribute) -> Option<String> {
    let syn::Meta::NameValue(pair) = &attribute.meta else {
        return None;
    };
    let syn::Expr::Lit(literal) = &pair.value else {
        return None;
    };
    match &literal.lit {
        syn::Lit::Str(text) if pair.path.is_ident("doc") => Some(text.value().trim().to_owned()),
        _ => None,
    }
}

/// The text of `#[serde(key = "text")]`.
pub(crate) fn serde(attributes: &[Attribute], key: &str) -> Option<String> {
    let mut found = None;
    for attribute in attributes.iter().filter(|a| a.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            let is_it = meta.path.is_ident(key);
            if let Ok(value) = meta.value() {
                let text: syn::Lit = value.parse()?;
                if let (true, syn::Lit::Str(text)) = (is_it, text) {
                    found = Some(text.value());
                }
            }
            Ok(())
        });
    }
    found
}

fn has_serde(attributes: &[Attribute], key: &str) -> bool {
    let mut found = false;
    for attribute in attributes.iter().filter(|a| a.path().is_ident("serde")) {
        let _ = attribute.parse_nested_meta(|meta| {
            found |= meta.path.is_ident(key);
            if let Ok(value) = meta.value() {
                value.parse::<syn::Lit>()?;
            }
            Ok(())
        });
    }
    found
}

fn renamed(variant: &str, style: Option<&str>) -> String {
    match style {
        Some("snake_case") => {
            let mut text = String::new();
            for c in variant.chars() {
                if c.is_ascii_uppercase() && !text.is_empty() {
                    text.push('_');
                }
                text.push(c.to_ascii_lowercase());
            }
            text
        }
        Some("lowercase") => variant.to_ascii_lowercase(),
        _ => variant.to_owned(),
    }
}

fn schema_of(types: &BTreeMap<String, Known>, name: &str) -> Value {
    match types.get(name) {
        Some(Known::Words(words)) => json!({"enum": words}),
        Some(Known::Choices(choices)) => {
            let words = choices.iter().filter(|(_, kind)| kind.is_none());
            let words: Vec<&String> = words.map(|(word, _)| word).collect();
            let objects = choices.iter().filter_map(|(word, kind)| {
                let schema = schema_of_type(types, kind.as_ref()?);
                Some(json!({"type": "object", "properties": {word: schema}, "required": [word]}))
            });
            let all: Vec<Value> = std::iter::once(json!({"enum": words}))
                .chain(objects)
                .collect();
            json!({"anyOf": all})
        }
        Some(Known::Struct(_)) => {
            let fields = fields(types, name);
            let mut properties = Map::new();
            for field in &fields {
                let mut schema = schema_of_type(types, &field.kind);
                if let (Some(object), false) = (schema.as_object_mut(), field.about.is_empty()) {
                    object.insert("description".into(), json!(field.about));
                }
                properties.insert(field.name.clone(), schema);
            }
            let required = fields.iter().filter(|field| field.is_always_there);
            let required: Vec<&str> = required.map(|field| field.name.as_str()).collect();
            json!({"type": "object", "properties": properties, "required": required})
        }
        None if name == "bool" => json!({"type": "boolean"}),
        None if name == "f64" => json!({"type": "number"}),
        None if INTEGERS.contains(&name) => json!({"type": "integer"}),
        None if STRINGS.contains(&name) => json!({"type": "string"}),
        None => panic!("add the type {name} to tests/docs/schema.rs"),
    }
}

fn schema_of_type(types: &BTreeMap<String, Known>, kind: &Type) -> Value {
    if let Type::Tuple(tuple) = kind
        && let Some(first) = tuple.elems.first()
    {
        let (items, count) = (schema_of_type(types, first), tuple.elems.len());
        return json!({"type": "array", "items": items, "minItems": count, "maxItems": count});
    }
    match wrapped(kind) {
        (name, Some(inner)) if name == "Vec" => {
            json!({"type": "array", "items": schema_of_type(types, inner)})
        }
        (_, Some(inner)) => json!({"anyOf": [schema_of_type(types, inner), {"type": "null"}]}),
        (name, None) => schema_of(types, &name),
    }
}

/// Adds a table of the fields of a type, and one for each type inside it.
fn add_fields(page: &mut String, types: &BTreeMap<String, Known>, name: &str, at: &str) {
    let fields = fields(types, name);
    if fields.is_empty() {
        return;
    }
    if !at.is_empty() {
        let _ = write!(page, "\nIn `{at}`:\n");
    }
    page.push_str("\n| field | value | meaning |\n|---|---|---|\n");
    for field in &fields {
        let value = value_of(types, &field.kind);
        let about = cell(&field.about);
        let _ = writeln!(page, "| `{}` | {value} | {about} |", field.name);
    }
    for field in fields {
        let inner = inner_type(&field.kind);
        let list = matches!(wrapped(&field.kind), (name, Some(_)) if name == "Vec");
        let dot = if at.is_empty() { "" } else { "." };
        let brackets = if list { "[]" } else { "" };
        let below = format!("{at}{dot}{}{brackets}", field.name);
        add_fields(page, types, &inner, &below);
    }
}

/// The kind of a value, in words.
fn value_of(types: &BTreeMap<String, Known>, kind: &Type) -> String {
    match wrapped(kind) {
        (name, Some(inner)) if name == "Vec" => format!("list of {}", value_of(types, inner)),
        (_, Some(inner)) => format!("{} or null", value_of(types, inner)),
        (name, None) => match types.get(&name) {
            Some(Known::Struct(_)) => "object".into(),
            Some(Known::Words(words)) => {
                let words: Vec<String> = words.iter().map(|word| format!("`{word}`")).collect();
                words.join(", ")
            }
            Some(Known::Choices(_)) => "text or object".into(),
            None if name == "bool" => "true or false".into(),
            None if name == "f64" || INTEGERS.contains(&name.as_str()) => "number".into(),
            None => "text".into(),
        },
    }
}

/// Where a value does not have the form of a schema. A field that the schema does not have is a difference too.
fn differences(schema: &Value, value: &Value, at: &str) -> Vec<String> {
    if let Some(choices) = schema["anyOf"].as_array() {
        let all = choices.iter().map(|choice| differences(choice, value, at));
        return all.min_by_key(Vec::len).unwrap_or_default();
    }
    if let Some(words) = schema["enum"].as_array() {
        let fault = format!("{at}: {value} is none of {words:?}");
        return Vec::from_iter((!words.contains(value)).then_some(fault));
    }
    let has_type = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => value.is_null(),
    };
    if !has_type {
        return vec![format!("{at}: {value} is no {}", schema["type"])];
    }
    let mut faults = Vec::new();
    for item in value.as_array().into_iter().flatten() {
        faults.extend(differences(&schema["items"], item, &format!("{at}[]")));
    }
    for (key, field) in value.as_object().into_iter().flatten() {
        match schema["properties"].get(key) {
            Some(schema) => faults.extend(differences(schema, field, &format!("{at}.{key}"))),
            None => faults.push(format!("{at}.{key} is not in the schema")),
        }
    }
    for key in schema["required"].as_array().into_iter().flatten() {
        if value.get(key.as_str().unwrap_or_default()).is_none() {
            faults.push(format!("{at}.{key} is missing"));
        }
    }
    faults
}

#[test]
fn a_document_that_differs_from_its_schema_is_found() {
    let types = types();
    let schema = schema_of(&types, "SystemList");
    let good = json!({"schema": 1, "entries": [{"kind": "link", "what": "mesh0", "why": "x"}]});
    assert_eq!(differences(&schema, &good, "x"), [""; 0]);
    let bad = json!({"schema": "1", "entries": [{"kind": "link", "why": "x", "more": 2}]});
    let faults = differences(&schema, &bad, "x");
    assert_eq!(faults.len(), 3, "{faults:?}");
}
