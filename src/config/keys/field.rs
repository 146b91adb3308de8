//! What the declaration of a key consists of.

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
    /// Only the values named are accepted; others are refused, because they would change results.
    Only(&'static str),
    /// Accepted, with no effect here; the reason.
    NoEffect(&'static str),
}

/// Whether a key's value changes results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does: it is part of the fingerprint, and a resumed run must have the same value.
    Results,
    /// It does; the fingerprint has all keys of its group as one value.
    ResultsAsGroup,
    /// It does not: a resumed run may have another value.
    Harmless,
}

/// The value where the key is absent or `null`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DefaultValue<T> {
    /// This one.
    Is(T),
    /// None.
    Null,
    /// It depends on other keys, as described; the check passes it.
    Depends(&'static str),
}

/// The values that are accepted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Allowed<T: 'static> {
    /// All of the type.
    Any,
    /// This and above.
    AtLeast(T),
    /// From the first to the second.
    Between(T, T),
    /// From the first to the second; other keys may narrow that further, as described. The check passes the bound.
    Within(T, T, &'static str),
    /// Above the first, to the second.
    Above(T, T),
    /// The multiples of the first, to the second.
    Multiples(T, T),
    /// These only.
    OneOf(&'static [T]),
    /// What the check can parse; examples.
    SuchAs(&'static [T]),
    /// Texts but the empty one.
    NotEmpty,
    /// Arrays of integers, with the bounds of each and of their number.
    Items {
        /// The least integer.
        least: i64,
        /// The greatest integer.
        most: i64,
        /// The least number of them.
        shortest: usize,
        /// The greatest number of them.
        longest: usize,
    },
}

/// Default and accepted values of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting<T: 'static> {
    /// The value where the key is absent or `null`.
    pub default: DefaultValue<T>,
    /// The values that are accepted.
    pub allowed: Allowed<T>,
}

/// A type as the table declares a default of it, and as the struct that a file is read into holds it.
pub(crate) trait KeyType: Copy + Into<Value> + 'static {
    /// The type of the field.
    type Raw;

    /// The default as the field holds it.
    fn held(self) -> Self::Raw;
}

/// The same of a setting, whatever its type.
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

/// Declares the types of keys: name in the table, type of defaults, type of the field.
macro_rules! types {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty, $held:ty, $convert:expr;)*) => {
        $($(#[doc = $doc])+ pub(crate) type $name = $type;)*

        /// Type, default and accepted values of a key.
        #[derive(Clone, Copy, Debug, PartialEq)]
        pub enum Kind {
            $($(#[doc = $doc])+ $name(Setting<$type>),)*
        }

        $(
            impl KeyType for $type {
                type Raw = $held;

                fn held(self) -> $held {
                    let convert: fn($type) -> $held = $convert;
                    convert(self)
                }
            }
        )*
    };
}

types! {
    /// A whole number.
    Integer: i64, i64, |value| value;
    /// A number.
    Number: f64, f64, |value| value;
    /// True or false.
    Flag: bool, bool, |value| value;
    /// A text.
    Text: &'static str, String, str::to_owned;
    /// An array of whole numbers.
    Integers: &'static [i64], Vec<i64>, <[i64]>::to_vec;
    /// An array of texts.
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
    /// The name, dotted when nested.
    pub name: &'static str,
    /// Type, default and accepted values.
    pub kind: Kind,
    /// How it is honored.
    pub honored: Honored,
    /// Whether it changes results.
    pub effect: Effect,
    /// As it is declared, with the spaces of the comment. Names of rules in braces stand for those of their table.
    pub(super) described: &'static str,
}

impl ConfigKey {
    /// What it means, with its unit, and what the default depends on.
    pub(crate) fn meaning(&self) -> String {
        let meaning = self.described.trim();
        described(&match self.depends() {
            Some(text) => format!("{meaning}; null: {text}"),
            None => meaning.to_owned(),
        })
    }

    /// What the default depends on, if it does.
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

/// A key, its type, and where the struct `R`, which a file is read into, holds it: by this the checks ask for a key.
pub(crate) struct Field<R, T: KeyType> {
    pub(super) key: ConfigKey,
    pub(super) setting: Setting<T>,
    pub(super) held: fn(&mut R) -> &mut Option<T::Raw>,
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
        (self.held)(raw)
    }

    /// The field, with the default in it where it was empty and there is a default.
    pub(crate) fn filled<'raw>(&self, raw: &'raw mut R) -> &'raw mut Option<T::Raw> {
        let held = self.of(raw);
        if let (None, DefaultValue::Is(default)) = (&held, self.setting.default) {
            *held = Some(default.held());
        }
        held
    }

    /// The values that are accepted, where they are listed.
    pub(crate) fn listed(&self) -> &'static [T] {
        match self.setting.allowed {
            Allowed::OneOf(listed) => listed,
            _ => &[],
        }
    }
}

/// A type with a least and a greatest value.
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
    /// The least and the greatest value.
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

    /// The range, narrowed from below.
    pub(crate) fn from(&self, least: T) -> RangeInclusive<T> {
        least..=*self.range().end()
    }

    /// The range, narrowed from above.
    pub(crate) fn up_to(&self, most: T) -> RangeInclusive<T> {
        *self.range().start()..=most
    }
}

impl<R> Field<R, Integers> {
    /// The bounds of each integer and of their number.
    pub(crate) fn items(&self) -> (RangeInclusive<i64>, RangeInclusive<usize>) {
        match self.setting.allowed {
            Allowed::Items { least, most, shortest, longest } => (least..=most, shortest..=longest),
            _ => (i64::MIN..=i64::MAX, 0..=usize::MAX),
        }
    }
}
