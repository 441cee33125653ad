//! The facts as an OpenAPI document, for a program that makes requests up.

use serde_json::{Map, Value, json};

/// The file's own JSON; the rest of this folder reads only what it needs of it.
pub fn document(facts: &Value) -> Value {
    let mut paths = Map::new();
    for operation in facts["operations"].as_array().expect("a list") {
        let path = paths.entry(text(&operation["path"])).or_insert_with(|| json!({}));
        path[text(&operation["method"]).to_lowercase()] = described(operation);
    }
    let mut schemas = Map::new();
    for (name, fields) in facts["models"].as_object().expect("models") {
        schemas.insert(name.clone(), model(fields));
    }
    for (name, words) in facts["enums"].as_object().expect("enums") {
        // Clients take codes that they don't know.
        let schema =
            if name == "DaemonErrorCode" { json!({ "type": "string" }) } else { json!({ "enum": words }) };
        schemas.insert(name.clone(), schema);
    }
    json!({
        "openapi": "3.0.3",
        "info": { "title": "toolbox", "version": "0" },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn described(operation: &Value) -> Value {
    let parameters =
        fields_of(&operation["parameters"]).map(|(name, of, _)| parameter("path", name, of, true));
    let query =
        fields_of(&operation["query"]).map(|(name, of, required)| parameter("query", name, of, required));
    let answer = text(&operation["answer"]);
    let content = |of: &str| json!({ "application/json": { "schema": schema(of) } });
    let mut responses = Map::new();
    for status in operation["success"].as_array().expect("statuses") {
        let mut response = json!({ "description": answer });
        if !["empty", "bytes", "multipart", "websocket"].contains(&answer.as_str()) {
            response["content"] = content(&answer);
        }
        responses.insert(status.to_string(), response);
    }
    // Whose failures name files.
    if operation["operation"] != "upload_files" {
        responses.insert(
            "default".into(),
            json!({ "description": "a refusal", "content": content("ErrorResponse") }),
        );
    }
    let mut described = json!({
        "operationId": operation["operation"],
        "tags": [operation["group"]],
        "parameters": parameters.chain(query).collect::<Vec<_>>(),
        "responses": responses,
    });
    if let Some(body) = operation["body"].as_str() {
        described["requestBody"] = request_body(body);
    }
    described
}

fn request_body(of: &str) -> Value {
    if of == "multipart" {
        let file =
            json!({ "type": "object", "properties": { "file": { "type": "string", "format": "binary" } } });
        return json!({ "required": true, "content": { "multipart/form-data": { "schema": file } } });
    }
    let (of, required) = optional(of);
    json!({ "required": required, "content": { "application/json": { "schema": schema(of) } } })
}

fn parameter(place: &str, name: &str, of: &str, required: bool) -> Value {
    json!({ "in": place, "name": name, "required": required, "schema": schema(of) })
}

fn model(fields: &Value) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, of, is_required) in fields_of(fields) {
        let mut schema = schema(of);
        if is_required {
            required.push(name);
        } else {
            schema = json!({ "nullable": true, "allOf": [schema] });
        }
        properties.insert(name.to_owned(), schema);
    }
    let mut model = json!({ "type": "object", "properties": properties });
    if !required.is_empty() {
        model["required"] = json!(required);
    }
    model
}

fn schema(of: &str) -> Value {
    let between = |open, close| of.strip_prefix(open).and_then(|of: &str| of.strip_suffix(close));
    match of {
        "any" => json!({}),
        "string" | "integer" | "number" | "boolean" => json!({ "type": of }),
        _ => match (between('[', ']'), between('{', '}')) {
            (Some(item), _) => json!({ "type": "array", "items": schema(item) }),
            (_, Some(item)) => json!({ "type": "object", "additionalProperties": schema(item) }),
            _ => json!({ "$ref": format!("#/components/schemas/{of}") }),
        },
    }
}

/// Name, type, and whether it must be there.
fn fields_of(fields: &Value) -> impl Iterator<Item = (&str, &str, bool)> {
    fields.as_object().into_iter().flatten().map(|(name, of)| {
        let (name, required) = optional(name);
        (name, of.as_str().expect("a type"), required)
    })
}

fn optional(name: &str) -> (&str, bool) {
    name.strip_suffix('?').map_or((name, true), |name| (name, false))
}

fn text(value: &Value) -> String {
    value.as_str().expect("a text").to_owned()
}
