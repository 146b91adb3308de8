//! Suggestions for unknown keys.

/// The message for an unknown key, with the most similar existing one.
pub(super) fn unknown_key<'a>(key: &str, known: impl Iterator<Item = &'a str>) -> String {
    let lowercase = key.to_lowercase();
    let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_lowercase();
    let likeness = |name: &str| {
        let whole = strsim::jaro_winkler(&lowercase, &name.to_lowercase());
        whole.max(strsim::jaro_winkler(&last(&lowercase), &last(name)) - 0.01)
    };
    match known.map(|name| (likeness(name), name)).max_by(|left, right| left.0.total_cmp(&right.0)) {
        Some((likeness, name)) if likeness > 0.7 => format!("unknown key; did you mean `{name}`?"),
        _ => "unknown key; docs/config.md lists them".to_owned(),
    }
}
