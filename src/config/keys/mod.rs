//! The keys of the configuration file, and the documents generated from them.

mod declare;
mod document;
mod field;
mod schema;
mod table;

pub use document::tables;
pub use field::{AllOff, Allowed, ConfigKey, DefaultValue, Effect, Honored, Kind, NoFiles, Setting};
pub use schema::schema;
pub use table::KEYS;

pub(super) use field::{Flag, Number, Ranged, Text};
pub(super) use table::{KEY, RawConfig};

use crate::config::Compat;

/// A typed key, for the checks.
pub(super) type Field<T> = field::Field<RawConfig, T>;

/// Every name that `--set` accepts: the keys, the switches of `compat`, and the objects that contain keys.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = KEYS.iter().map(|key| key.name.to_owned()).collect();
    names.extend(Compat::SWITCHES.iter().map(|(name, _)| format!("compat.{name}")));
    let mut parents: Vec<String> =
        KEYS.iter().filter_map(|key| key.name.split_once('.')).map(|(parent, _)| parent.to_owned()).collect();
    parents.dedup();
    names.extend(parents);
    names
}
