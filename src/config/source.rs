//! Parses a file and the `--set` arguments into a [`RawConfig`], and names the key or line that does not parse.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    sync::{Mutex, PoisonError},
};

use serde_json::{Map, Value};

use super::{
    Compat,
    keys::{self, RawConfig},
    nearest::unknown_key,
    renamed,
};
use crate::error::{Error, Result};

/// The name of `--set` in messages.
const SET: &str = "--set";

/// A configuration whose values are not checked yet.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// The values.
    pub(super) raw: RawConfig,
    /// The file name in messages.
    name: String,
    /// Keys set by `--set`.
    overridden: BTreeSet<String>,
}

impl Source {
    /// Reads a file and applies `--set` arguments in order.
    pub(super) fn read(path: &Path, sets: &[String]) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io("read", path))?;
        let name = path.display().to_string();
        let text = String::from_utf8(bytes).map_err(|error| Error::Config {
            source_name: name.clone(),
            key: String::new(),
            message: format!(
                "byte {} is not UTF-8; save the file as UTF-8",
                error.utf8_error().valid_up_to()
            ),
        })?;
        Self::parse(&name, &text, sets)
    }

    /// Parses the configuration stored by a run or a comparison. Former names of keys are accepted with a warning.
    pub(super) fn parse_kept(name: &str, text: &str) -> Result<Self> {
        let mut config = serde_json::from_str(text).unwrap_or(Value::Null);
        if !renamed::migrate(&mut config) {
            return Self::parse(name, text, &[]);
        }
        // A command may read the configuration of a run more than once.
        static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
        if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            tracing::warn!(
                "{name}: written by an earlier version; renamed keys are read under their new names"
            );
        }
        Self::parse(name, &config.to_string(), &[])
    }

    /// Reads a file's text and applies `--set` arguments in order.
    pub(super) fn parse(name: &str, text: &str, sets: &[String]) -> Result<Self> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let refusal =
            |key: String, message: String| Error::Config { source_name: name.to_owned(), key, message };
        // Serde would read an array as the values of the keys, in order.
        if !text.trim_start().starts_with('{') {
            let what = if text.trim().is_empty() { "is empty" } else { "is not a JSON object" };
            let message = format!("{what}; a configuration is keys and values, such as {{\"bs\": 32}}");
            return Err(refusal(String::new(), message));
        }
        let mut deserializer = serde_json::Deserializer::from_str(text);
        let read: Result<RawConfig, _> = serde_path_to_error::deserialize(&mut deserializer);
        let mut raw = match read {
            Ok(raw) => raw,
            Err(error) => {
                let (key, message) = explain(&error);
                return Err(refusal(key, message));
            }
        };
        if let Err(error) = deserializer.end() {
            return Err(refusal(String::new(), plain(&error)));
        }
        let mut overridden = BTreeSet::new();
        if !sets.is_empty() {
            let mut value: Value =
                serde_json::from_str(text).map_err(|error| refusal(String::new(), error.to_string()))?;
            for set in sets {
                let key = apply(&mut value, &mut raw, set)?;
                overridden.insert(key);
            }
        }
        Ok(Self { raw, name: name.to_owned(), overridden })
    }

    /// An [`Error::Config`] for a key; it names the file or `--set`, whichever set the key.
    pub(super) fn refuse(&self, key: &str, message: impl Into<String>) -> Error {
        let source_name = if self.overridden.contains(key) { SET } else { &self.name };
        Error::Config { source_name: source_name.to_owned(), key: key.to_owned(), message: message.into() }
    }
}

/// Applies one `key=value` to the JSON, parses it again, and returns the key.
fn apply(value: &mut Value, raw: &mut RawConfig, set: &str) -> Result<String> {
    let refuse = |key: &str, message: String| Error::Config {
        source_name: SET.to_owned(),
        key: key.to_owned(),
        message,
    };
    let Some((key, text)) = set.split_once('=') else {
        return Err(refuse(set, "has no value; pass --set key=value, with dots for nested keys".to_owned()));
    };
    let key = key.trim();
    let known: Vec<String> = keys::names();
    if let Some(now) = renamed::renamed(key) {
        return Err(refuse(key, renamed::message(now)));
    }
    if !known.iter().any(|name| name == key) {
        return Err(refuse(key, unknown_key(key, known.iter().map(String::as_str))));
    }
    // JSON if it parses, else a string: `--set sche=cos`. The second candidate is for paths that look like numbers.
    let parsed = serde_json::from_str(text).unwrap_or_else(|_| Value::from(text));
    let mut first_error = None;
    for candidate in [parsed, Value::from(text)] {
        let mut changed = value.clone();
        set_at(&mut changed, key, candidate);
        match serde_path_to_error::deserialize(&changed) {
            Ok(read) => {
                (*raw, *value) = (read, changed);
                return Ok(key.to_owned());
            }
            Err(error) => {
                first_error.get_or_insert_with(|| plain(error.inner()));
            }
        }
    }
    Err(refuse(key, first_error.unwrap_or_default()))
}

/// Sets the value of a dotted key and creates the objects on the way. A name under `compat` is expanded to its
/// switches first, so that one of them can be overridden.
fn set_at(value: &mut Value, key: &str, new: Value) {
    let mut at = value;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        if !at.is_object() {
            *at = Compat::from_json(at)
                .map_or_else(|_| Value::Object(Map::new()), |compat| compat.to_map().into());
        }
        let Value::Object(map) = at else { return };
        at = map.entry(part).or_insert(Value::Null);
        if parts.peek().is_some() && at.is_null() {
            *at = Value::Object(Map::new());
        }
    }
    *at = new;
}

/// The key and message of a serde error.
fn explain(error: &serde_path_to_error::Error<serde_json::Error>) -> (String, String) {
    let path = error.path().to_string();
    let path = if path == "." { String::new() } else { path };
    let text = error.inner().to_string();
    if let Some(rest) = text.strip_prefix("unknown field `")
        && let Some((name, _)) = rest.split_once('`')
    {
        let (line, column) = (error.inner().line(), error.inner().column());
        let (parent, key) = match path.strip_suffix(name).map(|parent| parent.trim_end_matches('.')) {
            Some(parent) => (parent.to_owned(), path.clone()),
            None if path.is_empty() => (String::new(), name.to_owned()),
            None => (path.clone(), format!("{path}.{name}")),
        };
        let prefix = if parent.is_empty() { parent } else { format!("{parent}.") };
        let known = keys::names();
        let siblings = known.iter().filter_map(|known| known.strip_prefix(prefix.as_str()));
        let message = match renamed::renamed(&format!("{prefix}{name}")) {
            Some(now) => renamed::message(now),
            None => unknown_key(name, siblings),
        };
        return (key, format!("{message} (line {line}, column {column})"));
    }
    if let Some(key) = text.strip_prefix("duplicate field `").and_then(|rest| Some(rest.split_once('`')?.0)) {
        let key = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        return (key, format!("duplicate key{}", position(error.inner())));
    }
    // The path of a syntax error within a value ends in `?`.
    let path = if path == "?" { String::new() } else { path };
    (path, plain(error.inner()))
}

/// Where in the text an error is, if it comes from text.
fn position(error: &serde_json::Error) -> String {
    match (error.line(), error.column()) {
        (0, _) => String::new(),
        (line, column) => format!(" (line {line}, column {column})"),
    }
}

/// A serde error, worded like the other messages.
fn plain(error: &serde_json::Error) -> String {
    let (text, position) = (error.to_string(), position(error));
    let text = text.rsplit_once(" at line ").map_or(text.as_str(), |(text, _)| text);
    if error.is_syntax() || error.is_eof() {
        return format!("not valid JSON: {text}{position}");
    }
    let Some((found, expected)) =
        text.strip_prefix("invalid type: ").and_then(|rest| rest.split_once(", expected "))
    else {
        return format!("{text}{position}");
    };
    let expected = match expected {
        "i64" | "u64" | "usize" => "an integer",
        "f64" => "a number",
        "a boolean" => "true or false",
        "a map" => "an object",
        "a sequence" => "an array",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    let found = match found.split_once(' ') {
        Some(("string", text)) => text,
        Some(("integer" | "boolean", value)) => value.trim_matches('`'),
        Some(("floating", rest)) => rest.trim_start_matches("point ").trim_matches('`'),
        _ if found == "sequence" => "an array",
        _ if found == "map" => "an object",
        _ => found,
    };
    format!("must be {expected}, but is {found}{position}")
}
