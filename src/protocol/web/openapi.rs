//! The description of the calls for programs, in OpenAPI 3.1. It is computed from the table of calls, so it has no call that does not
//! exist, and none is missing.

use serde_json::{Map, Value, json};

use super::calls::{Answer, ApiCall, Document, OF_COORDINATOR, OF_NODE};
use super::problem;
use crate::protocol::api_token::Scope;

/// The path of the description of a node.
pub const PATH_OF_NODE: &str = "/v1/openapi.json";
/// The path of the description of a coordinator.
pub const PATH_OF_COORDINATOR: &str = "/v1/api/openapi.json";

/// The description of the API of a node.
#[must_use]
pub fn of_node() -> Value {
    describe("meshd", OF_NODE)
}

/// The description of the API of a coordinator.
#[must_use]
pub fn of_coordinator() -> Value {
    describe("mesh-coordinator", OF_COORDINATOR)
}

fn describe(program: &str, calls: &[ApiCall]) -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for call in calls {
        let path = paths.entry(call.path).or_insert_with(|| json!({}));
        if let Some(methods) = path.as_object_mut() {
            methods.insert(call.method.to_ascii_lowercase(), operation(call));
        }
    }
    json!({
        "openapi": "3.1.0",
        "info": {"title": format!("API of {program}"), "version": env!("CARGO_PKG_VERSION")},
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas(calls),
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "An API token, as `meshctl api-token create` prints it."
                }
            }
        }
    })
}

fn operation(call: &ApiCall) -> Value {
    let parameters = call.parameters().map(
        |name| json!({"name": name, "in": "path", "required": true, "schema": {"type": "string"}}),
    );
    let content = match &call.answer {
        Answer::Document(document) => {
            json!({"application/json": {"schema": reference(document.name)}})
        }
        Answer::Text => json!({"text/plain": {"schema": {"type": "string"}}}),
        Answer::Events => json!({"text/event-stream": {"schema": {"type": "string"}}}),
    };
    let kind = problem::CONTENT_TYPE;
    let failure = json!({
        "description": "A failure",
        "content": {kind: {"schema": reference("Problem")}}
    });
    let mut operation = json!({
        "operationId": id_of(call),
        "summary": call.about,
        "description": needs(call),
        "parameters": parameters.collect::<Vec<_>>(),
        "responses": {
            "200": {"description": "The answer", "content": content},
            "4XX": failure,
            "5XX": failure
        }
    });
    if let (Some(document), Some(fields)) = (&call.body, operation.as_object_mut()) {
        let content = json!({"application/json": {"schema": reference(document.name)}});
        let body = json!({"required": true, "content": content});
        fields.insert("requestBody".to_owned(), body);
    }
    operation
}

/// What a caller needs.
fn needs(call: &ApiCall) -> String {
    let scope = format!("The token needs the scope `{}`", call.scope);
    match call.scope {
        Scope::AnyTemplate => format!(
            "{scope}. A caller whose mesh address is in `from` of a template needs no token."
        ),
        _ => format!("{scope}."),
    }
}

/// The method and the path as one word, such as `post_services_name_drain`.
fn id_of(call: &ApiCall) -> String {
    let words = call.path.split(|c: char| !c.is_ascii_alphanumeric());
    let words = words.filter(|word| !matches!(*word, "" | "v1" | "api"));
    let mut id = call.method.to_ascii_lowercase();
    for word in words {
        id.push('_');
        id.push_str(word);
    }
    id
}

fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

fn schemas(calls: &[ApiCall]) -> Map<String, Value> {
    let documents = calls.iter().flat_map(ApiCall::documents);
    let mut schemas: Map<String, Value> = documents
        .map(|document| (document.name.to_owned(), schema_of(&document)))
        .collect();
    schemas.insert("Problem".to_owned(), problem_schema());
    schemas
}

/// The schema of a document. The file names its dialect, which is the one of OpenAPI 3.1, and the command that prints the document.
fn schema_of(document: &Document) -> Value {
    let mut schema: Value = serde_json::from_str(document.schema).unwrap_or_else(|_| json!({}));
    if let Some(fields) = schema.as_object_mut() {
        fields.remove("$schema");
        fields.remove("title");
    }
    schema
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "A failure, as RFC 9457 has it.",
        "properties": {
            "title": {"type": "string", "description": "The HTTP status, in words."},
            "status": {"type": "integer", "description": "The HTTP status."},
            "detail": {"type": "string", "description": "What happened, and what to do."},
            "code": {"type": "string", "description": "The kind of the failure."},
            "suggestion": {"type": "string", "description": "A free name, if a name is taken."}
        },
        "required": ["title", "status", "detail", "code"]
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_call_is_described_once_and_each_reference_leads_to_a_schema() {
        for (document, calls) in [(of_node(), OF_NODE), (of_coordinator(), OF_COORDINATOR)] {
            let mut ids = BTreeSet::new();
            for call in calls {
                let method = call.method.to_ascii_lowercase();
                let operation = &document["paths"][call.path][method.as_str()];
                assert_eq!(operation["summary"], call.about, "{}", call.path);
                assert!(ids.insert(operation["operationId"].to_string()));
            }
            let text = document.to_string();
            let references = text.split("#/components/schemas/").skip(1);
            for name in references.filter_map(|rest| rest.split('"').next()) {
                let schema = &document["components"]["schemas"][name];
                assert!(schema["properties"].is_object(), "{name}");
            }
        }
    }

    #[test]
    fn a_path_with_parameters_declares_them() {
        let document = of_node();
        let drain = &document["paths"]["/v1/services/{name}/drain"]["post"];
        assert_eq!(drain["operationId"], "post_services_name_drain");
        assert_eq!(drain["parameters"][0]["name"], "name");
        assert_eq!(drain["parameters"].as_array().map(Vec::len), Some(1));
        assert!(drain["requestBody"].is_null());
        let why = &document["paths"]["/v1/why"]["post"]["requestBody"]["content"];
        assert!(why["application/json"]["schema"]["$ref"].is_string());
    }
}
