//! `configs/schema.json` says what the checks accept, and both say what the table of keys declares.

use std::fs;

use alchemist_engine::config::{Config, keys};
use serde_json::{Map, Value, json};

use crate::{parse, set, shipped};

const PATH: &str = "configs/schema.json";

fn schema() -> Value {
    serde_json::from_str(&keys::schema()).unwrap()
}

/// Dotted name and schema of every key.
fn properties() -> Vec<(String, Map<String, Value>)> {
    fn collect(prefix: &str, schema: &Value, found: &mut Vec<(String, Map<String, Value>)>) {
        for (name, property) in schema["properties"].as_object().unwrap() {
            let name = format!("{prefix}{name}");
            match property.get("properties") {
                Some(_) => collect(&format!("{name}."), property, found),
                None => found.push((name, property.as_object().unwrap().clone())),
            }
        }
    }
    let mut found = Vec::new();
    collect("", &schema(), &mut found);
    found
}

/// What is wrong with a value by the keywords that the schema uses; other keywords fail.
fn fault(schema: &Value, value: &Value, at: &str) -> Option<String> {
    let number = |bound: &Value| bound.as_f64().unwrap();
    for (keyword, wanted) in schema.as_object().unwrap() {
        let fits = match keyword.as_str() {
            "$schema" | "title" | "description" | "default" | "examples" | "additionalProperties" => true,
            "type" => {
                let all: Vec<&Value> = wanted.as_array().map_or(vec![wanted], |all| all.iter().collect());
                all.iter().any(|kind| match kind.as_str().unwrap() {
                    "null" => value.is_null(),
                    "boolean" => value.is_boolean(),
                    "integer" => value.is_i64(),
                    "number" => value.is_number(),
                    "string" => value.is_string(),
                    "array" => value.is_array(),
                    "object" => value.is_object(),
                    other => panic!("{at}: the type {other}"),
                })
            }
            "enum" => wanted.as_array().unwrap().contains(value),
            "anyOf" => wanted.as_array().unwrap().iter().any(|one| fault(one, value, at).is_none()),
            "minimum" => value.as_f64().is_none_or(|value| value >= number(wanted)),
            "maximum" => value.as_f64().is_none_or(|value| value <= number(wanted)),
            "exclusiveMinimum" => value.as_f64().is_none_or(|value| value > number(wanted)),
            "multipleOf" => value.as_i64().is_none_or(|value| value % wanted.as_i64().unwrap() == 0),
            "minLength" => value.as_str().is_none_or(|text| text.len() as u64 >= wanted.as_u64().unwrap()),
            "minItems" => value.as_array().is_none_or(|all| all.len() as u64 >= wanted.as_u64().unwrap()),
            "maxItems" => value.as_array().is_none_or(|all| all.len() as u64 <= wanted.as_u64().unwrap()),
            "items" => {
                let items = value.as_array().into_iter().flatten();
                match items.filter_map(|item| fault(wanted, item, at)).next() {
                    Some(fault) => return Some(fault),
                    None => true,
                }
            }
            "properties" => {
                for (name, value) in value.as_object().into_iter().flatten() {
                    let at = format!("{at}.{name}");
                    let Some(schema) = wanted.get(name) else {
                        return Some(format!("{at} is not in the schema"));
                    };
                    if let Some(fault) = fault(schema, value, &at) {
                        return Some(fault);
                    }
                }
                true
            }
            other => panic!("{at}: the keyword {other}"),
        };
        if !fits {
            return Some(format!("{at}: {value} against {keyword} {wanted}"));
        }
    }
    None
}

/// The refusal of one value of one key; `None` if it is accepted.
fn refusal(key: &str, value: &Value) -> Option<String> {
    Config::parse("test.json", "{}", &[format!("{key}={value}")]).err().map(|error| error.to_string())
}

#[test]
fn the_schema_is_current() {
    let schema = keys::schema();
    if std::env::var_os("ALCHEMIST_WRITE_DOCS").is_some() {
        fs::write(PATH, schema).unwrap();
        return;
    }
    assert!(
        fs::read_to_string(PATH).unwrap() == schema,
        "{PATH} is out of date; run ALCHEMIST_WRITE_DOCS=1 cargo test --release --test config"
    );
}

#[test]
fn shipped_and_effective_configurations_conform() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    let conforms = |name: &str, value: &Value| {
        if let Some(fault) = fault(&schema, value, name) {
            panic!("{fault}");
        }
    };
    for path in shipped() {
        let text = fs::read_to_string(&path).unwrap();
        let name = path.display().to_string();
        conforms(&name, &serde_json::from_str(&text).unwrap());
        conforms(&name, &Config::load(&path, &[]).unwrap().to_json());
    }
    for sets in
        [&["compat=released"][..], &["compat.weighted_mean=true", "instance_prompt=[\"a\"]"], &["pg=0.5"]]
    {
        conforms(&format!("{sets:?}"), &set(sets).to_json());
    }
    for (wrong, part) in [
        (json!({"dept": 3}), "dept is not in the schema"),
        (json!({"depth": 0}), "minimum"),
        (json!({"depth": 1.5}), "type"),
        (json!({"proxy_width": 100}), "multipleOf"),
        (json!({"opt": "sgd"}), "enum"),
        (json!({"patch_nums": [1, 300]}), "maximum"),
        (json!({"columns": {"id": ""}}), "minLength"),
        (json!({"compat": {"old": true}}), "anyOf"),
    ] {
        let fault = fault(&schema, &wrong, "test").unwrap_or_else(|| panic!("{wrong} conforms"));
        assert!(fault.contains(part), "{fault}");
    }
}

#[test]
fn every_default_of_the_schema_is_the_one_that_holds() {
    let effective = parse("{}").to_json();
    let mut defaults = 0;
    for (name, property) in properties().iter().filter(|(name, _)| name != "$schema") {
        let held = name.split('.').try_fold(&effective, |at, part| at.get(part)).unwrap();
        match property.get("default") {
            Some(default) => assert_eq!(default, held, "{name}"),
            None => assert!(property["description"].as_str().unwrap().contains("; null: "), "{name}"),
        }
        defaults += usize::from(property.contains_key("default"));
        assert_eq!(refusal(name, &Value::Null), None, "{name}");
    }
    assert!(defaults > 80, "{defaults}");
}

#[test]
fn every_range_of_the_schema_is_the_one_that_is_checked() {
    let mut bounds = 0;
    let mut refused = |name: &str, value: Value| {
        let error = refusal(name, &value).unwrap_or_else(|| panic!("{name}={value} is accepted"));
        assert!(error.starts_with(&format!("--set: {name}: ")), "{name}={value}: {error}");
        bounds += 1;
    };
    // Another key may contradict a value, but the value lies in the range.
    let within = |name: &str, value: &Value| {
        let error = refusal(name, value).unwrap_or_default();
        for part in ["must be between", "must be above", "or more"] {
            let of_range = error.starts_with(&format!("--set: {name}: ")) && error.contains(part);
            assert!(!of_range, "{name}={value}: {error}");
        }
    };
    for (name, property) in properties() {
        let whole = property.get("type").is_some_and(|kinds| kinds[0] == "integer");
        let narrowed = keys::KEYS.iter().any(|key| key.name == name && key.narrowed().is_some());
        let beyond = |bound: &Value, step: f64| match bound.as_i64() {
            Some(bound) if whole => json!(bound + step as i64),
            _ => {
                let bound = bound.as_f64().unwrap();
                json!(bound + step * 1e-9 * bound.abs().max(1.0))
            }
        };
        if let Some(least) = property.get("minimum") {
            refused(&name, beyond(least, -1.0));
            within(&name, least);
        }
        if let Some(above) = property.get("exclusiveMinimum") {
            refused(&name, above.clone());
            within(&name, &beyond(above, 1.0));
        }
        if let Some(most) = property.get("maximum") {
            refused(&name, beyond(most, 1.0));
            // Other keys set a lower limit, which a narrowed key's own text names.
            if !narrowed {
                within(&name, most);
            }
        }
        if let Some(of) = property.get("multipleOf") {
            refused(&name, json!(of.as_i64().unwrap() + 1));
        }
        if let Some(default) = property.get("default") {
            within(&name, default);
        }
    }
    assert!(bounds > 90, "{bounds}");
}

#[test]
fn every_name_of_the_schema_is_one_that_is_checked() {
    let mut names = 0;
    for (name, property) in properties() {
        for example in property.get("examples").and_then(Value::as_array).into_iter().flatten() {
            assert_eq!(refusal(&name, example), None, "{name}={example}");
        }
        let Some(listed) = property.get("enum").and_then(Value::as_array) else { continue };
        let kinds = &property["type"];
        for value in listed.iter().filter(|value| !value.is_null()) {
            let error = refusal(&name, value).unwrap_or_default();
            assert!(!error.contains("must be"), "{name}={value}: {error}");
            names += 1;
        }
        let other = match kinds[0].as_str().unwrap() {
            "boolean" => json!(!listed[0].as_bool().unwrap()),
            "array" => json!(["other"]),
            _ => json!("other"),
        };
        let error = refusal(&name, &other).unwrap_or_else(|| panic!("{name}={other} is accepted"));
        assert!(error.starts_with(&format!("--set: {name}: ")), "{error}");
        if kinds[0] == "string" {
            for value in listed.iter().filter(|value| !value.is_null()) {
                assert!(error.contains(&value.to_string()), "{name}: {value} is not in: {error}");
            }
        }
    }
    assert!(names > 20, "{names}");
}

#[test]
fn a_configuration_may_name_the_schema() {
    let named = parse(r#"{"$schema": "../configs/schema.json", "ep": 3}"#);
    let plain = parse(r#"{"ep": 3}"#);
    assert_eq!((named.fingerprint(), named.to_json()), (plain.fingerprint(), plain.to_json()));
    assert_eq!(named, plain);
    assert_eq!(named.to_json().get("$schema"), None);
}
