//! `configs/schema.json`: the keys as a JSON Schema, with which editors complete and check a configuration file.

use serde_json::{Map, Value, json};

use super::{
    field::{Allowed, ConfigKey, DefaultValue, Honored, KeyType, Kind, Setting},
    table::KEYS,
};
use crate::config::Compat;

/// The text of `configs/schema.json`.
pub fn schema() -> String {
    let mut properties = Map::new();
    for key in KEYS {
        match key.name.split_once('.') {
            Some((group, name)) => {
                let group = properties.entry(group).or_insert_with(
                    || json!({"type": ["object", "null"], "properties": {}, "additionalProperties": false}),
                );
                group["properties"][name] = property(key);
            }
            None => {
                properties.insert(key.name.to_owned(), property(key));
            }
        }
    }
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A configuration of alchemist-engine",
        "type": "object",
        "properties": properties,
        "additionalProperties": false,
    });
    format!("{schema:#}\n")
}

/// The schema of one key.
fn property(key: &ConfigKey) -> Value {
    let mut property = Map::new();
    let mut description = key.meaning();
    if let Some(narrower) = key.narrowed() {
        description.push_str(&format!("; {narrower}"));
    }
    match key.honored {
        Honored::Yes => {}
        Honored::Only(values) => description.push_str(&format!(" (only {values})")),
        Honored::NoEffect(reason) => description.push_str(&format!(" (no effect: {reason})")),
    }
    property.insert("description".to_owned(), Value::from(description));
    match &key.kind {
        Kind::Integer(setting) => describe(&mut property, &json!({"type": "integer"}), setting),
        Kind::Number(setting) => describe(&mut property, &json!({"type": "number"}), setting),
        Kind::Flag(setting) => describe(&mut property, &json!({"type": "boolean"}), setting),
        Kind::Text(setting) => describe(&mut property, &json!({"type": "string"}), setting),
        Kind::Integers(setting) => {
            describe(&mut property, &json!({"type": "array", "items": {"type": "integer"}}), setting);
        }
        Kind::Texts(setting) => {
            describe(&mut property, &json!({"type": "array", "items": {"type": "string"}}), setting);
        }
        Kind::Switches(setting) => describe(&mut property, &switches(), setting),
        Kind::Files(setting) => {
            let file = json!({"type": "string"});
            describe(&mut property, &json!({"anyOf": [file, {"type": "array", "items": file}]}), setting);
        }
    }
    Value::Object(property)
}

/// Adds the type of a key (or `null`), its accepted values and its default.
fn describe<T: KeyType>(property: &mut Map<String, Value>, schema: &Value, setting: &Setting<T>) {
    for (name, value) in schema.as_object().into_iter().flatten() {
        let value = match (name.as_str(), value) {
            ("type", kind) => json!([kind, "null"]),
            ("anyOf", Value::Array(kinds)) => {
                kinds.iter().cloned().chain([json!({"type": "null"})]).collect()
            }
            _ => value.clone(),
        };
        property.insert(name.clone(), value);
    }
    let value = |one: T| -> Value { one.into() };
    let accepted = match setting.allowed {
        Allowed::Any => json!({}),
        Allowed::AtLeast(least) => json!({"minimum": value(least)}),
        Allowed::Between(least, most) | Allowed::Within(least, most, _) => {
            json!({"minimum": value(least), "maximum": value(most)})
        }
        Allowed::Above(least, most) => json!({"exclusiveMinimum": value(least), "maximum": value(most)}),
        Allowed::Multiples(of, most) => {
            json!({"minimum": value(of), "maximum": value(most), "multipleOf": value(of)})
        }
        Allowed::OneOf(listed) => {
            let listed = listed.iter().copied().map(value);
            json!({"enum": listed.chain([Value::Null]).collect::<Value>()})
        }
        Allowed::SuchAs(examples) => {
            json!({"examples": examples.iter().copied().map(value).collect::<Value>()})
        }
        Allowed::NotEmpty => json!({"minLength": 1}),
        Allowed::Items { least, most, shortest, longest } => json!({
            "items": {"type": "integer", "minimum": least, "maximum": most},
            "minItems": shortest,
            "maxItems": longest,
        }),
    };
    let default = match setting.default {
        DefaultValue::Is(default) => json!({"default": value(default)}),
        DefaultValue::Null => json!({"default": null}),
        DefaultValue::Depends(_) => json!({}),
    };
    for (name, value) in [&accepted, &default].into_iter().filter_map(Value::as_object).flatten() {
        property.insert(name.clone(), value.clone());
    }
}

/// The schema of `compat`.
fn switches() -> Value {
    let switches: Map<String, Value> = Compat::SWITCHES
        .iter()
        .map(|(name, meaning)| {
            ((*name).to_owned(), json!({"description": meaning.trim(), "type": "boolean", "default": false}))
        })
        .collect();
    json!({"anyOf": [
        {"enum": ["default", "released"]},
        {"type": "object", "properties": switches, "additionalProperties": false},
    ]})
}
