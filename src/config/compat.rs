//! Where the released code does something that looks like a mistake, a switch says whether to do it too.

use serde_json::{Map, Value};

use crate::engine::ops::pyramid::Reach;

/// Declares the switches once: field, and what it does when true.
macro_rules! switches {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// The released behaviors that can be switched on one by one; all off is the default, all on is `released`.
        /// The numbers in brackets are those of the notes on the released code in `docs/config.md`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Compat {
            $($(#[doc = $doc])+ pub $name: bool,)*
        }

        impl Compat {
            /// Everything as released.
            pub const RELEASED: Self = Self { $($name: true,)* };

            /// The switches' names with what each does, in order.
            pub(crate) const SWITCHES: &[(&str, &str)] = &[$((stringify!($name), concat!($($doc),+)),)*];

            /// Sets a switch by name; `false` if there is none of that name.
            fn set(&mut self, name: &str, on: bool) -> bool {
                match name {
                    $(stringify!($name) => self.$name = on,)*
                    _ => return false,
                }
                true
            }

            /// Every switch with its setting.
            pub(crate) fn to_map(self) -> Map<String, Value> {
                let mut map = Map::new();
                $(map.insert(stringify!($name).to_owned(), Value::Bool(self.$name));)*
                map
            }
        }
    };
}

switches! {
    /// The first sample's cross-attention is given to the whole batch (A1).
    cross_attention_first_sample,
    /// Weights are a softmax of a softmax of a sigmoid, and so nearly uniform; otherwise one softmax of the raw
    /// logits times the group score, at `rater_temperature` (A2).
    double_softmax,
    /// The rule is `loss` where the key `rule` is not given, the only one that the released code has (A4).
    loss_rule,
    /// The weighted loss is divided by the batch size once more (A5).
    weighted_mean,
    /// The upper-level weight is not stopped at 0 when its decay carries it below (A7).
    unclamped_upper_level_weight,
    /// The rater sees the proxy's input, in which a scale shows what the coarser ones make of it: never the finest one's codes
    /// (A12).
    rater_without_finest_scale,
    /// The rater runs twice a step, with different drop-path masks (A8).
    two_rater_passes,
    /// A proxy frozen by `fixVar` still decays (A10).
    frozen_proxy_decays,
    /// An epoch is one pass over the validation set, not the training set (C6).
    validation_epoch,
    /// Batches come in the order of the released sampler (C7).
    released_sampler,
    /// The released literal `empty caption` stands for an empty caption (D3).
    empty_caption_text,
    /// Only captions of more than 20 characters are dropped for guidance (D3).
    caption_drop_length_rule,
    /// The vector of a caption under T5 is the mean over padding, too, not over its tokens only (D8).
    t5_mean_over_padding,
    /// A tenth of the captions is dropped when scoring, too (D4).
    drop_captions_when_scoring,
    /// Transparency is dropped instead of being laid over white (D2).
    drop_alpha,
    /// The turning that EXIF data asks for is ignored (D2).
    ignore_exif,
    /// 16-bit gray is cut off at 255, which turns it white (D2).
    clip_gray16,
}

impl Compat {
    /// Reads `"default"`, `"released"` or an object of switches.
    ///
    /// # Errors
    /// The key within `compat` (empty for `compat` itself) and what is wrong.
    pub(crate) fn from_json(value: &Value) -> Result<Self, (String, String)> {
        match value {
            Value::Null => Ok(Self::default()),
            Value::String(name) if name == "default" => Ok(Self::default()),
            Value::String(name) if name == "released" => Ok(Self::RELEASED),
            Value::Object(map) => {
                let mut compat = Self::default();
                for (name, on) in map {
                    let Value::Bool(on) = on else {
                        return Err((name.clone(), format!("must be true or false, but is {on}")));
                    };
                    if !compat.set(name, *on) {
                        let names = Self::SWITCHES.iter().map(|(name, _)| *name);
                        return Err((name.clone(), super::nearest::no_such_key(name, names)));
                    }
                }
                Ok(compat)
            }
            other => Err((
                String::new(),
                format!("must be \"default\", \"released\" or an object of switches, but is {other}"),
            )),
        }
    }

    /// What the rater sees of each scale.
    pub(crate) fn rater_reach(self) -> Reach {
        if self.rater_without_finest_scale { Reach::Before } else { Reach::Through }
    }

    /// The shortest way to write it that [`from_json`](Self::from_json) reads back.
    pub(crate) fn to_json(self) -> Value {
        if self == Self::default() {
            Value::from("default")
        } else if self == Self::RELEASED {
            Value::from("released")
        } else {
            Value::Object(self.to_map())
        }
    }
}
