//! The endpoint described for programs, as `OpenAPI` 3.1 at `/openapi.json`.
//!
//! Made from the lists that requests are answered by, so that it says of no path more or less than there is. What a
//! schema refuses is refused; what it lets pass may still be refused for what it means, such as a config with a
//! mistake.

use super::changes::{CHANGES, Change};
use super::fields::{Field, Kind};
use super::shown::{Parameter, SHOWN, Shown, Type};
use crate::config::limits::MAX_NAME;
use crate::config::plan::Becomes;
use serde_json::{Map, Value, json};

/// The whole description.
pub fn describe() -> Value {
    let mut paths = Map::new();
    for shown in SHOWN {
        paths.insert(shown.path.to_owned(), json!({ "get": read(shown) }));
    }
    for change in CHANGES {
        paths.insert(change.path.to_owned(), json!({ "parameters": names(change.path), "post": write(change) }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tidegate",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "The admin endpoint of a layer-4 load balancer. Reading is open on loopback addresses and \
                            unix sockets, and needs the token elsewhere, but for /livez and /readyz; changing needs \
                            the token, or a unix socket and a user who may.",
        },
        "servers": [{ "url": "/" }],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": { "Done": done(), "Planned": planned(), "Refused": refused(), "Page": page() },
        },
    })
}

fn read(shown: &Shown) -> Value {
    let body = |schema: Value| json!({ (shown.content_type): { "schema": schema } });
    let ok = match shown.path {
        "/connections" => body(json!({ "$ref": "#/components/schemas/Page" })),
        _ if shown.content_type.starts_with("application/json") => body(json!({ "type": "object" })),
        _ => body(json!({ "type": "string" })),
    };
    let mut responses = Map::new();
    responses.insert("200".to_owned(), json!({ "description": shown.says, "content": ok }));
    let refusals = [
        ("400", "The request is unclear, or a parameter makes no sense."),
        ("401", "The token is missing or wrong."),
        ("411", "A body without a length."),
        ("413", "The body is too large."),
        ("421", "The name in the request isn't ours."),
        ("429", "Too many requests without the right token."),
    ];
    let not_ready = [("503", "Traffic should not come; a line for each reason.")];
    let more: &[_] = if shown.path == "/readyz" { &not_ready } else { &[] };
    for (status, says) in refusals.iter().chain(more) {
        let content = json!({ "text/plain": { "schema": { "type": "string" } } });
        responses.insert((*status).to_owned(), json!({ "description": says, "content": content }));
    }
    let parameters: Vec<Value> = shown.parameters.iter().map(parameter).collect();
    json!({ "summary": shown.says, "parameters": parameters, "responses": responses })
}

fn parameter(Parameter { name, kind, is_required, says }: &Parameter) -> Value {
    let text = json!({ "type": "string" });
    let schema = match kind {
        Type::Text => text,
        Type::Texts => json!({ "type": "array", "items": text }),
        Type::Word(words) => json!({ "type": "string", "enum": words }),
        Type::Number(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        Type::Pattern(pattern) => json!({ "type": "string", "pattern": pattern }),
    };
    json!({ "name": name, "in": "query", "required": is_required, "description": says, "schema": schema })
}

/// The parts of a path that are names.
fn names(path: &str) -> Vec<Value> {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let schema = |name: &str| match name {
        "id" => json!({ "type": "string", "pattern": "^[0-9]{1,5}-[0-9]{1,15}$" }),
        _ => json!({ "type": "string", "minLength": 1, "maxLength": MAX_NAME }),
    };
    names.map(|name| json!({ "name": name, "in": "path", "required": true, "schema": schema(name) })).collect()
}

fn write(change: &Change) -> Value {
    let mut responses = Map::new();
    let json_of = |schema: &str| {
        let schema = json!({ "$ref": format!("#/components/schemas/{schema}") });
        json!({ "application/json": { "schema": schema } })
    };
    let good = if change.path == "/plan" { "Planned" } else { "Done" };
    responses.insert("200".to_owned(), json!({ "description": "It is so.", "content": json_of(good) }));
    for (status, says) in [
        ("400", "The request is unclear, or its body no JSON."),
        ("401", "The token is missing or wrong."),
        ("403", "Who asks may not change anything."),
        ("404", "There is no such thing."),
        ("408", "The body has not come in time."),
        ("409", "It can't be done as things are."),
        ("411", "A body without a length."),
        ("413", "The body is too large."),
        ("415", "The body is not said to be JSON."),
        ("421", "The name in the request isn't ours."),
        ("422", "What is asked for makes no sense; a line for each mistake."),
        ("429", "Too many requests without the right token."),
        ("503", "Too many changes wait."),
    ] {
        responses.insert(status.to_owned(), json!({ "description": says, "content": json_of("Refused") }));
    }
    let required: Vec<&str> = change.fields.iter().filter(|field| field.is_required).map(|field| field.name).collect();
    let properties: Map<String, Value> =
        change.fields.iter().map(|field| (field.name.to_owned(), property(field))).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    json!({
        "summary": change.says,
        "security": [{ "token": [] }],
        "requestBody": {
            "required": !required.is_empty(),
            "content": { "application/json": { "schema": schema } },
        },
        "responses": responses,
    })
}

fn property(field: &Field) -> Value {
    let mut schema = match field.kind {
        Kind::Text => json!({ "type": "string" }),
        Kind::Name => json!({ "type": "string", "minLength": 1, "maxLength": MAX_NAME }),
        Kind::Address => json!({ "type": "string", "pattern": ":", "examples": ["10.0.0.1:80"] }),
        Kind::Deadline => json!({ "type": "string", "pattern": "[0-9]", "maxLength": 64, "examples": ["30s"] }),
        Kind::Word(words) => json!({ "type": "string", "enum": words }),
        Kind::Number(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
    };
    schema["description"] = json!(field.says);
    schema
}

fn done() -> Value {
    json!({
        "type": "object",
        "properties": {
            "ok": { "const": true },
            "changed": { "type": "boolean", "description": "False if all was so already." },
            "summary": { "type": "string" },
            "details": { "description": "What there is depends on the change." },
        },
        "required": ["ok", "changed", "summary"],
        "additionalProperties": false,
    })
}

/// What `/plan` answers.
fn planned() -> Value {
    let text = json!({ "type": "string" });
    let things = json!({
        "type": "array",
        "items": {
            "type": "object",
            "properties": { "kind": text, "name": text, "of": text },
            "required": ["kind", "name"],
        },
    });
    let adjustment = json!({
        "type": "object",
        "properties": {
            "kind": text,
            "name": text,
            "of": { "type": "string", "description": "The pool of a backend." },
            "becomes": {
                "enum": Becomes::WORDS,
                "description": "stays: it hides what the config changes; rests: what it is about goes, and it is kept; \
                                applies: what it is about comes, or is another one; taken_over: the config has the \
                                added backend itself; left_out: the added backend can't stand beside it.",
            },
            "says": text,
        },
        "required": ["kind", "name", "becomes", "says"],
    });
    let mut planned = done();
    planned["properties"]["details"] = json!({
        "type": "object",
        "properties": {
            "severity": { "enum": ["nothing", "changes", "disruptive"] },
            "added": things,
            "removed": things,
            "changed": things,
            "restarted": things,
            "adjustments": {
                "type": "array",
                "items": adjustment,
                "description": "What was changed at run time, where that and the config make a difference to each other.",
            },
        },
        "required": ["severity", "added", "removed", "changed", "restarted", "adjustments"],
    });
    planned["required"] = json!(["ok", "changed", "summary", "details"]);
    planned
}

fn refused() -> Value {
    json!({
        "type": "object",
        "properties": {
            "ok": { "const": false },
            "error": { "type": "string", "description": "A line for each mistake." },
        },
        "required": ["ok", "error"],
        "additionalProperties": false,
    })
}

fn page() -> Value {
    let text = json!({ "type": "string" });
    let text_if_any = json!({ "type": ["string", "null"] });
    let count = json!({ "type": "integer", "minimum": 0 });
    let bytes = json!({
        "type": "object",
        "properties": { "to_backend": count, "to_client": count },
        "required": ["to_backend", "to_client"],
    });
    let row = json!({
        "type": "object",
        "properties": {
            "id": text, "client": text, "listener": text, "rule": text_if_any, "pool": text_if_any,
            "backend": text_if_any, "backend_address": text_if_any, "phase": text, "age_ms": count, "idle_ms": count,
            "bytes": bytes,
        },
        "required": ["id", "client", "listener", "pool", "backend", "phase", "age_ms", "idle_ms", "bytes"],
    });
    json!({
        "type": "object",
        "properties": {
            "connections": { "type": "array", "items": row },
            "next": text_if_any,
            "silent_workers": { "type": "array", "items": count },
        },
        "required": ["connections", "next", "silent_workers"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_is_described_with_its_method_and_no_other_is() {
        let description = describe();
        let paths = description["paths"].as_object().unwrap();
        assert_eq!(paths.len(), SHOWN.len() + CHANGES.len());
        for shown in SHOWN {
            let methods: Vec<&String> = paths[shown.path].as_object().unwrap().keys().collect();
            assert_eq!(methods, ["get"], "{}", shown.path);
        }
        for change in CHANGES {
            let path = &paths[change.path];
            let parameters: Vec<String> = path["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .map(|one| format!("{{{}}}", one["name"].as_str().unwrap()))
                .collect();
            let wanted: Vec<&str> = change.path.split('/').filter(|part| part.starts_with('{')).collect();
            assert_eq!(parameters, wanted, "{}", change.path);
            let schema = &path["post"]["requestBody"]["content"]["application/json"]["schema"];
            let keys: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
            let mut names: Vec<&str> = change.fields.iter().map(|field| field.name).collect();
            names.sort_unstable();
            assert_eq!(keys, names, "{}", change.path);
            assert_eq!(path["post"]["security"], json!([{ "token": [] }]), "{}", change.path);
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        let description = describe();
        let text = description.to_string();
        let references: Vec<&str> =
            text.split("\"$ref\":\"#").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        assert!(references.len() > CHANGES.len());
        for reference in references {
            assert!(description.pointer(reference).is_some(), "{reference}");
        }
    }
}
