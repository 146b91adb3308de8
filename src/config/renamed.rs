//! Renamed keys and values. A configuration file that uses a former name is refused with the new one; the stored
//! configuration of an earlier run is migrated.

use serde_json::Value;

/// Keys: former name, new name.
const KEYS: [(&str, &str); 2] =
    [("rater_teaching", "rater_objective"), ("compat.clip_grey16", "compat.clip_gray16")];

/// Values: key (by its new name), former value, new value.
const VALUES: [(&str, &str, &str); 3] = [
    ("rater_objective", "weights", "reweight"),
    ("rule_scaling", "centre", "center"),
    ("rule_scaling", "standardise", "standardize"),
];

/// The new name of a renamed key.
pub(super) fn renamed(key: &str) -> Option<&'static str> {
    KEYS.iter().find(|(before, _)| *before == key).map(|(_, now)| *now)
}

/// The message for a renamed key.
pub(super) fn message(now: &str) -> String {
    format!("was renamed to `{now}`")
}

/// Migrates a stored configuration to the current names; returns whether anything changed.
pub(super) fn migrate(config: &mut Value) -> bool {
    let mut changed = false;
    for (before, now) in KEYS {
        changed |= rename(config, before, now).is_some();
    }
    for (key, before, now) in VALUES {
        if config.get(key).is_some_and(|value| value == before) {
            config[key] = Value::from(now);
            changed = true;
        }
    }
    changed
}

/// The first former name or value in a stored configuration, with its current one.
pub(super) fn first_former(config: &Value) -> Option<String> {
    let at = |key: &str| key.split('.').try_fold(config, |at, part| at.get(part));
    let key = KEYS.iter().find(|(before, _)| at(before).is_some());
    let value = || VALUES.iter().find(|(key, before, _)| at(key).is_some_and(|value| value == before));
    key.map(|(before, now)| format!("{before} is now {now}"))
        .or_else(|| value().map(|(key, before, now)| format!("{key}={before} is now {key}={now}")))
}

/// Renames the last part of a dotted key if it exists.
fn rename(config: &mut Value, before: &str, now: &str) -> Option<()> {
    let (parents, before) = before.rsplit_once('.').unwrap_or(("", before));
    let now = now.rsplit('.').next().unwrap_or(now);
    let mut parents = parents.split('.').filter(|part| !part.is_empty());
    let parent = parents.try_fold(config, |at, part| at.get_mut(part))?;
    let value = parent.as_object_mut()?.remove(before)?;
    parent[now] = value;
    Some(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::Config;

    #[test]
    fn stored_configurations_are_migrated_and_others_are_refused() {
        let before = json!({
            "rule": "excess", "rater_teaching": "weights", "rule_scaling": "centre", "compat": {"clip_grey16": true}, "bs": 4
        });
        let text = before.to_string();
        assert_eq!(first_former(&before).unwrap(), "rater_teaching is now rater_objective");
        assert_eq!(
            first_former(&json!({"rule_scaling": "centre"})).unwrap(),
            "rule_scaling=centre is now rule_scaling=center"
        );
        assert_eq!(first_former(&json!({"rule_scaling": "center", "compat": "released"})), None);
        let config = Config::parse_kept("config.json", &text).unwrap().to_json();
        assert_eq!(config["rater_objective"], "reweight");
        assert_eq!(config["rule_scaling"], "center");
        assert_eq!(config["compat"]["clip_gray16"], true);
        assert_eq!(config["bs"], 4);
        let refused = Config::parse("config.json", &text, &[]).unwrap_err().to_string();
        assert!(refused.contains("rater_teaching: was renamed to `rater_objective`"), "{refused}");
        for (before, now) in KEYS {
            let refused = Config::parse("{}", "{}", &[format!("{before}=0")]).unwrap_err().to_string();
            assert!(refused.contains(&format!("`{now}`")), "{refused}");
        }
    }
}
