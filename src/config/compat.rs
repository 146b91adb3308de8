//! Switches that reproduce upstream behaviors that look like mistakes.

use serde_json::{Map, Value};

use super::{nearest::unknown_key, renamed};
use crate::engine::ops::pyramid::Reach;

/// Declares the switches once: the field, and its effect when true.
macro_rules! switches {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// Upstream behaviors, switched on one by one. `default` switches all off, `released` all on. The labels in
        /// brackets are those of `docs/upstream.md`.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Compat {
            $($(#[doc = $doc])+ pub $name: bool,)*
        }

        impl Compat {
            /// Every switch on.
            pub const RELEASED: Self = Self { $($name: true,)* };

            /// The name and effect of each switch, in order.
            pub(crate) const SWITCHES: &[(&str, &str)] = &[$((stringify!($name), concat!($($doc),+)),)*];

            /// Sets a switch by name; `false` if there is no such switch.
            fn set(&mut self, name: &str, on: bool) -> bool {
                match name {
                    $(stringify!($name) => self.$name = on,)*
                    _ => return false,
                }
                true
            }

            /// All switches and their values.
            pub(crate) fn to_map(self) -> Map<String, Value> {
                let mut map = Map::new();
                $(map.insert(stringify!($name).to_owned(), Value::Bool(self.$name));)*
                map
            }
        }
    };
}

switches! {
    /// every sample gets the cross-attention of the first sample in its batch (A1)
    cross_attention_first_sample,
    /// the weights are a softmax of a softmax of a sigmoid, which is nearly uniform; otherwise one softmax of the raw
    /// logits times the group score, at `rater_temperature` (A2)
    double_softmax,
    /// `rule` defaults to `loss`, the only rule in the released code (A4)
    loss_rule,
    /// the weighted loss is divided by the batch size a second time (A5)
    weighted_mean,
    /// the upper-level weight may decay below 0 (A7)
    unclamped_upper_level_weight,
    /// the rater reads the proxy's input, where each scale shows the reconstruction of the coarser ones, and so never
    /// reads the codes of the finest scale (A12)
    rater_without_finest_scale,
    /// the rater runs twice per step, with different drop-path masks (A8)
    two_rater_passes,
    /// weight decay also applies to a proxy frozen by `fixVar` (A10)
    frozen_proxy_decays,
    /// an epoch is one pass over the validation set instead of the training set (C6)
    validation_epoch,
    /// batches follow the order of the released sampler (C7)
    released_sampler,
    /// an empty caption is replaced by the text `empty caption` (D3)
    empty_caption_text,
    /// caption dropout skips captions of 20 characters or fewer (D3)
    caption_drop_length_rule,
    /// T5's pooled text vector averages over padding as well as tokens (D8)
    t5_mean_over_padding,
    /// `score` also drops 10% of the captions (D4)
    drop_captions_when_scoring,
    /// the alpha channel is dropped instead of composited over white (D2)
    drop_alpha,
    /// the EXIF orientation is ignored (D2)
    ignore_exif,
    /// 16-bit gray values are clipped at 255, which makes the image white (D2)
    clip_gray16,
}

impl Compat {
    /// Parses `"default"`, `"released"` or an object of switches.
    ///
    /// # Errors
    /// The key within `compat` (empty for `compat` itself) and the message.
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
                        let message = renamed::renamed(&format!("compat.{name}"))
                            .map_or_else(|| unknown_key(name, names), renamed::message);
                        return Err((name.clone(), message));
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

    /// The input that the rater reads at each scale.
    pub(crate) fn rater_reach(self) -> Reach {
        if self.rater_without_finest_scale { Reach::Before } else { Reach::Through }
    }

    /// The shortest JSON that [`from_json`](Self::from_json) parses to the same switches.
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
