//! Compares the tensors of a file with those that a model expects.

use std::{collections::BTreeMap, fmt};

use super::Weights;

/// Maximum number of differences of a kind that a message lists.
const LISTED: usize = 8;

/// Maximum number of pairs of names that are compared for hints: a wrong file with thousands of names needs none.
const PAIRS: usize = 1 << 20;

/// Minimum similarity of a suggested name.
const ALIKE: f64 = 0.8;

/// A name found on one side only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unmatched {
    /// The name.
    pub name: String,
    /// The most similar one of the unmatched names on the other side.
    pub nearest: Option<String>,
}

/// A name on both sides, with different shapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OtherShape {
    /// The name.
    pub name: String,
    /// The expected shape.
    pub expected: Vec<usize>,
    /// The shape in the file.
    pub found: Vec<usize>,
}

/// The differences between a file and the expected tensors; see [`Weights::compare`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Differences {
    /// Expected, but not in the file.
    pub missing: Vec<Unmatched>,
    /// In the file, but not expected.
    pub surplus: Vec<Unmatched>,
    /// In both, with different shapes.
    pub shapes: Vec<OtherShape>,
}

impl Differences {
    /// Whether there are no differences.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.surplus.is_empty() && self.shapes.is_empty()
    }

    pub(super) fn of(weights: &Weights, expected: impl IntoIterator<Item = (String, Vec<usize>)>) -> Self {
        let expected: BTreeMap<String, Vec<usize>> = expected.into_iter().collect();
        let mut shapes = Vec::new();
        let mut missing = Vec::new();
        for (name, shape) in &expected {
            match weights.entry(name) {
                None => missing.push(name.as_str()),
                Some(entry) if entry.shape != *shape => shapes.push(OtherShape {
                    name: name.clone(),
                    expected: shape.clone(),
                    found: entry.shape.clone(),
                }),
                Some(_) => {}
            }
        }
        let surplus: Vec<&str> = weights.names().filter(|name| !expected.contains_key(*name)).collect();
        let with_hints = |names: &[&str], others: &[&str]| {
            let hinted = PAIRS / others.len().max(1);
            let unmatched = |(at, name): (usize, &&str)| Unmatched {
                name: (*name).to_owned(),
                nearest: (at < hinted).then(|| nearest(name, others)).flatten(),
            };
            names.iter().enumerate().map(unmatched).collect()
        };
        Self { missing: with_hints(&missing, &surplus), surplus: with_hints(&surplus, &missing), shapes }
    }
}

fn nearest(name: &str, others: &[&str]) -> Option<String> {
    let likeness = |other: &&&str| strsim::jaro_winkler(name, other);
    let best = others.iter().max_by(|one, two| likeness(one).total_cmp(&likeness(two)))?;
    (likeness(&best) >= ALIKE).then(|| (*best).to_owned())
}

impl fmt::Display for Differences {
    /// One line: the number of differences of each kind, and the first of them.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fn sort(count: usize, what: &str, items: impl Iterator<Item = String>) -> Option<String> {
            let listed: Vec<String> = items.take(LISTED).collect();
            let more = if count > listed.len() { ", …" } else { "" };
            (count > 0).then(|| format!("{count} {what}: {}{more}", listed.join(", ")))
        }
        let unmatched = |one: &Unmatched| match &one.nearest {
            None => one.name.clone(),
            Some(nearest) => format!("{} (perhaps {nearest})", one.name),
        };
        let shape =
            |one: &OtherShape| format!("{} is {:?} instead of {:?}", one.name, one.found, one.expected);
        let parts: Vec<String> = [
            sort(self.missing.len(), "missing", self.missing.iter().map(unmatched)),
            sort(self.surplus.len(), "surplus", self.surplus.iter().map(unmatched)),
            sort(self.shapes.len(), "of another shape", self.shapes.iter().map(shape)),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() {
            return formatter.write_str("no difference");
        }
        formatter.write_str(&parts.join("; "))
    }
}
