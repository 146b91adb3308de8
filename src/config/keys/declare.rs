//! The macro that turns the table of keys into structs and lists.

/// Declares every key: blocks of top-level keys, with groups of nested ones between them.
macro_rules! keys {
    ($(
        keys {$(
            $(#[doc = $doc:literal])+
            $(#[serde($serde:meta)])?
            $field:ident $(as $rename:literal)?: $type:ident =
                $default:expr, $allowed:expr, $honored:expr, $effect:ident;
        )*}
        $(
            $(#[doc = $group_doc:literal])+
            group $group:ident: $raw_group:ident, $group_keys:ident {$(
                $(#[doc = $inner_doc:literal])+
                $inner:ident: $inner_type:ident =
                    $inner_default:expr, $inner_allowed:expr, $inner_honored:expr, $inner_effect:ident;
            )*}
        )*
    )+) => {
        /// The keys of a file; only their types are checked. Absent and `null` mean the default.
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub(crate) struct RawConfig {$(
            $(
                $(#[doc = $doc])+
                $(#[serde(rename = $rename)])?
                $(#[serde($serde)])?
                pub(crate) $field: Option<<$type as KeyType>::Raw>,
            )*
            $($(#[doc = $group_doc])+ pub(crate) $group: Option<$raw_group>,)*
        )+}

        $($(
            $(#[doc = $group_doc])+
            #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
            #[serde(deny_unknown_fields, default)]
            pub(crate) struct $raw_group {
                $($(#[doc = $inner_doc])+ pub(crate) $inner: Option<<$inner_type as KeyType>::Raw>,)*
            }

            $(#[doc = $group_doc])+
            pub(crate) struct $group_keys {
                $($(#[doc = $inner_doc])+ pub(crate) $inner: Field<RawConfig, $inner_type>,)*
            }
        )*)+

        /// All keys, with the fields of [`RawConfig`].
        pub(crate) struct ConfigKeys {$(
            $($(#[doc = $doc])+ pub(crate) $field: Field<RawConfig, $type>,)*
            $($(#[doc = $group_doc])+ pub(crate) $group: $group_keys,)*
        )+}

        /// The keys, for the checks.
        pub(crate) static KEY: ConfigKeys = ConfigKeys {$(
            $(
                $field: keys!(@field
                    $type, keys!(@name $field $($rename)?), concat!($($doc),+),
                    $default, $allowed, $honored, $effect, |raw| &mut raw.$field
                ),
            )*
            $(
                $group: $group_keys {$(
                    $inner: keys!(@field
                        $inner_type, concat!(stringify!($group), ".", stringify!($inner)), concat!($($inner_doc),+),
                        $inner_default, $inner_allowed, $inner_honored, $inner_effect,
                        |raw| &mut raw.$group.get_or_insert_default().$inner
                    ),
                )*},
            )*
        )+};

        /// Every key except the switches of `compat`, in the order of the file.
        pub static KEYS: &[&ConfigKey] = &[$(
            $(&KEY.$field.key,)*
            $($(&KEY.$group.$inner.key,)*)*
        )+];
    };
    (@name $field:ident) => { stringify!($field) };
    (@name $field:ident $rename:literal) => { $rename };
    (@field $type:ident, $name:expr, $doc:expr, $default:expr, $allowed:expr, $honored:expr, $effect:ident, $slot:expr) => {{
        const SETTING: Setting<$type> = Setting { default: $default, allowed: $allowed };
        Field {
            key: ConfigKey {
                name: $name,
                kind: Kind::$type(SETTING),
                honored: $honored,
                effect: Effect::$effect,
                described: $doc,
            },
            setting: SETTING,
            slot: $slot,
        }
    }};
}

pub(super) use keys;
