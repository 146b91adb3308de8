//! The tables of `docs/config.md`.

use serde_json::Value;

use super::{
    field::{Allowed, ConfigKey, Honored, KeyType, Kind},
    table::KEYS,
};
use crate::{
    config::{Compat, Config},
    error::Result,
};

/// The two tables of `docs/config.md`: the keys, and the switches of `compat`.
///
/// # Errors
/// If the default configuration does not pass the checks.
pub fn tables() -> Result<String> {
    let defaults = Config::parse("defaults", "{}", &[])?.to_json();
    let mut text =
        String::from("| key | values | default | meaning | honored |\n| --- | --- | --- | --- | --- |\n");
    for key in KEYS {
        let ConfigKey { name, honored, .. } = key;
        let default = name.split('.').try_fold(&defaults, |at, part| at.get(part)).unwrap_or(&Value::Null);
        let honored = match honored {
            Honored::Yes => "yes".to_owned(),
            Honored::Only(values) => format!("only {values}"),
            Honored::NoEffect(reason) => format!("no effect: {reason}"),
        };
        let (values, meaning) = (values(&key.kind), key.meaning());
        text.push_str(&format!("| `{name}` | {values} | `{default}` | {meaning} | {honored} |\n"));
    }
    text.push_str("\n| switch of `compat` | when true |\n| --- | --- |\n");
    for (name, meaning) in Compat::SWITCHES {
        text.push_str(&format!("| `{name}` | {} |\n", meaning.trim()));
    }
    Ok(text)
}

/// Type and accepted values of a key.
fn values(kind: &Kind) -> String {
    match kind {
        Kind::Integer(setting) => accepted("integer", &setting.allowed),
        Kind::Number(setting) => accepted("number", &setting.allowed),
        Kind::Flag(setting) => accepted("boolean", &setting.allowed),
        Kind::Text(setting) => accepted("string", &setting.allowed),
        Kind::Integers(setting) => accepted("array of integers", &setting.allowed),
        Kind::Texts(setting) => accepted("array of strings", &setting.allowed),
        Kind::Switches(setting) => accepted("string or object", &setting.allowed),
        Kind::Files(setting) => accepted("string or array of strings", &setting.allowed),
    }
}

fn accepted<T: KeyType>(name: &str, allowed: &Allowed<T>) -> String {
    let shown = |value: T| match value.into() {
        // JSON writes an integral float with `.0`, which the tables omit.
        Value::Number(number) if number.is_f64() => number.as_f64().unwrap_or_default().to_string(),
        Value::String(text) => text,
        other => other.to_string(),
    };
    match *allowed {
        Allowed::Any | Allowed::SuchAs(_) => name.to_owned(),
        Allowed::AtLeast(least) => format!("{name}, {} or more", shown(least)),
        Allowed::Between(least, most) => format!("{name}, {} to {}", shown(least), shown(most)),
        Allowed::Within(least, most, narrower) => {
            format!("{name}, {} to {}, {narrower}", shown(least), shown(most))
        }
        Allowed::Above(least, most) => format!("{name}, above {} and at most {}", shown(least), shown(most)),
        Allowed::Multiples(of, most) => format!("{name}, multiples of {} to {}", shown(of), shown(most)),
        Allowed::OneOf(listed) => {
            let listed: Vec<String> = listed.iter().map(|&value| format!("`{}`", shown(value))).collect();
            format!("{name}: {}", listed.join(", "))
        }
        Allowed::NotEmpty => format!("{name}, not empty"),
        Allowed::Items { least, most, shortest, longest } => {
            format!("{name}, {shortest} to {longest} of {least} to {most}")
        }
    }
}
