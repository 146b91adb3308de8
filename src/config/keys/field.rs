//! The parts of a key's declaration.

use std::{
    fmt,
    ops::{Deref, RangeInclusive},
};

use serde_json::Value;

use crate::config::rules::described;

/// How a key is honored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Honored {
    /// It works.
    Yes,
    /// Only these values are accepted; others would change results and are refused.
    Only(&'static str),
    /// Accepted without effect; the reason.
    NoEffect(&'static str),
}

/// Whether a key affects results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does: the key is part of the fingerprint, and a resumed run must have the same value.
    Results,
    /// It does; the fingerprint combines all keys of the group into one value.
    ResultsAsGroup,
    /// It does not: a resumed run may have another value.
    Harmless,
}

/// The value of a key that is absent or `null`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue<T> {
    /// This one.
    Is(T),
    /// None.
    Null,
    /// It depends on other keys, as described; the check computes it.
    Depends(&'static str),
}

/// The accepted values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowed<T: 'static> {
    /// All values of the type.
    Any,
    /// This value or greater.
    AtLeast(T),
    /// From the first to the second.
    Between(T, T),
    /// From the first to the second; other keys narrow the range as described, and the check passes the bound.
    Within(T, T, &'static str),
    /// Greater than the first, up to the second.
    Above(T, T),
    /// Multiples of the first, up to the second.
    Multiples(T, T),
    /// Only these.
    OneOf(&'static [T]),
    /// Every value that the check can parse; these are examples.
    SuchAs(&'static [T]),
    /// Any text that is not empty.
    NotEmpty,
    /// Arrays of integers, with bounds on the elements and on the length.
    Items {
        /// The smallest element.
        least: i64,
        /// The largest element.
        most: i64,
        /// The smallest length.
        shortest: usize,
        /// The largest length.
        longest: usize,
    },
}

/// Default and accepted values of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting<T: 'static> {
    /// The value of a key that is absent or `null`.
    pub default: DefaultValue<T>,
    /// The accepted values.
    pub allowed: Allowed<T>,
}

/// A type of defaults in the table, and its counterpart in the struct that a file is parsed into.
pub(crate) trait KeyType: Copy + Into<Value> + 'static {
    /// The type of the struct's field.
    type Raw;

    /// Converts the default to the type of the field.
    fn into_raw(self) -> Self::Raw;
}

/// Evaluates an expression for the setting of a [`Kind`], whatever its type.
macro_rules! match_kind {
    ($kind:expr, $setting:ident => $result:expr) => {
        match $kind {
            Kind::Integer($setting) => $result,
            Kind::Number($setting) => $result,
            Kind::Flag($setting) => $result,
            Kind::Text($setting) => $result,
            Kind::Integers($setting) => $result,
            Kind::Texts($setting) => $result,
            Kind::Switches($setting) => $result,
            Kind::Files($setting) => $result,
        }
    };
}

/// Declares the types of keys: name in the table, type of the default, type of the field.
macro_rules! types {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty, $raw:ty, $convert:expr;)*) => {
        $($(#[doc = $doc])+ pub(crate) type $name = $type;)*

        /// Type, default and accepted values of a key.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Kind {
            $($(#[doc = $doc])+ $name(Setting<$type>),)*
        }

        $(
            impl KeyType for $type {
                type Raw = $raw;

                fn into_raw(self) -> $raw {
                    let convert: fn($type) -> $raw = $convert;
                    convert(self)
                }
            }
        )*
    };
}

types! {
    /// An integer.
    Integer: i64, i64, |value| value;
    /// A float.
    Number: f64, f64, |value| value;
    /// A boolean.
    Flag: bool, bool, |value| value;
    /// A string.
    Text: &'static str, String, str::to_owned;
    /// An array of integers.
    Integers: &'static [i64], Vec<i64>, <[i64]>::to_vec;
    /// An array of strings.
    Texts: &'static [&'static str], Vec<String>, |texts| texts.iter().copied().map(str::to_owned).collect();
    /// The switches of `compat`: a name or an object.
    Switches: AllOff, Value, Value::from;
    /// A file or an array of files.
    Files: NoFiles, Value, Value::from;
}

/// The default of `compat`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AllOff;

impl From<AllOff> for Value {
    fn from(AllOff: AllOff) -> Self {
        Self::from("default")
    }
}

/// The default of a key that names files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoFiles;

impl From<NoFiles> for Value {
    fn from(NoFiles: NoFiles) -> Self {
        Self::Null
    }
}

/// One key of the configuration file.
#[derive(Clone, Copy, Debug)]
pub struct ConfigKey {
    /// The name, with dots where nested.
    pub name: &'static str,
    /// Type, default and accepted values.
    pub kind: Kind,
    /// How it is honored.
    pub honored: Honored,
    /// Whether it affects results.
    pub effect: Effect,
    /// The description as declared, with the comment's leading spaces. Placeholders in braces stand for rules of the
    /// table.
    pub(super) described: &'static str,
}

impl ConfigKey {
    /// The description, with its unit, and the dependencies of the default.
    pub(crate) fn meaning(&self) -> String {
        let meaning = self.described.trim();
        described(&match self.depends() {
            Some(text) => format!("{meaning}; null: {text}"),
            None => meaning.to_owned(),
        })
    }

    /// The dependencies of the default, if any.
    fn depends(&self) -> Option<&'static str> {
        match_kind!(&self.kind, setting => match setting.default {
            DefaultValue::Depends(text) => Some(text),
            DefaultValue::Is(_) | DefaultValue::Null => None,
        })
    }

    /// How other keys narrow the range, if they do.
    pub fn narrowed(&self) -> Option<&'static str> {
        match_kind!(&self.kind, setting => match setting.allowed {
            Allowed::Within(_, _, text) => Some(text),
            _ => None,
        })
    }
}

/// A typed key and its field in the struct `R` that a file is parsed into; the checks access keys through it.
pub(crate) struct Field<R, T: KeyType> {
    pub(super) key: ConfigKey,
    pub(super) setting: Setting<T>,
    pub(super) slot: fn(&mut R) -> &mut Option<T::Raw>,
}

impl<R, T: KeyType> Deref for Field<R, T> {
    type Target = ConfigKey;

    fn deref(&self) -> &ConfigKey {
        &self.key
    }
}

impl<R, T: KeyType> Field<R, T> {
    /// The field itself.
    pub(crate) fn of<'raw>(&self, raw: &'raw mut R) -> &'raw mut Option<T::Raw> {
        (self.slot)(raw)
    }

    /// The field, set to its default if it was empty and has one.
    pub(crate) fn filled<'raw>(&self, raw: &'raw mut R) -> &'raw mut Option<T::Raw> {
        let slot = self.of(raw);
        if let (None, DefaultValue::Is(default)) = (&slot, self.setting.default) {
            *slot = Some(default.into_raw());
        }
        slot
    }

    /// The accepted values, if they are listed.
    pub(crate) fn listed(&self) -> &'static [T] {
        match self.setting.allowed {
            Allowed::OneOf(listed) => listed,
            _ => &[],
        }
    }
}

/// A type with a range.
pub(crate) trait Ranged: KeyType<Raw = Self> + PartialOrd + fmt::Display {
    /// The least value.
    const LEAST: Self;
    /// The greatest value.
    const MOST: Self;
}

impl Ranged for i64 {
    const LEAST: Self = Self::MIN;
    const MOST: Self = Self::MAX;
}

impl Ranged for f64 {
    const LEAST: Self = Self::MIN;
    const MOST: Self = Self::MAX;
}

impl<R, T: Ranged> Field<R, T> {
    /// The range of the key.
    pub(crate) fn range(&self) -> RangeInclusive<T> {
        match self.setting.allowed {
            Allowed::AtLeast(least) => least..=T::MOST,
            Allowed::Between(least, most)
            | Allowed::Within(least, most, _)
            | Allowed::Above(least, most)
            | Allowed::Multiples(least, most) => least..=most,
            _ => T::LEAST..=T::MOST,
        }
    }

    /// The range with another lower bound.
    pub(crate) fn from(&self, least: T) -> RangeInclusive<T> {
        least..=*self.range().end()
    }

    /// The range with another upper bound.
    pub(crate) fn up_to(&self, most: T) -> RangeInclusive<T> {
        *self.range().start()..=most
    }
}

impl<R> Field<R, Integers> {
    /// The bounds of each element and of the length.
    pub(crate) fn items(&self) -> (RangeInclusive<i64>, RangeInclusive<usize>) {
        match self.setting.allowed {
            Allowed::Items { least, most, shortest, longest } => (least..=most, shortest..=longest),
            _ => (i64::MIN..=i64::MAX, 0..=usize::MAX),
        }
    }
}
