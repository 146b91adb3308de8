//! The start of the sequence: the pooled text as first tokens, the projected pyramid after it, level and positions added.

pub mod cpu;

use crate::{
    engine::{
        ParameterId, RowOwner, Tape, Tensor, Var,
        ops::{expect_shape, joint_owner, three_dims},
        tape::{Operation, Sink, Slot},
        visitors::Contribution,
    },
    error::{Error, Result},
    with_float,
};

/// The parameters that are added to the sequence (upstream.md, B6).
#[derive(Clone, Debug)]
pub struct PatchEmbed {
    /// Added to the first scale's tokens, `[1, L₀, C]`.
    pub start: ParameterId,
    /// One vector a scale, `[S, C]`.
    pub level: Option<ParameterId>,
    /// One vector a token, `[1, L, C]`, where positions are not rotary.
    pub position: Option<ParameterId>,
    /// The scale of each token, `L` numbers.
    pub levels: std::sync::Arc<Vec<u32>>,
    /// Tokens of the first scale, `L₀`.
    pub first: usize,
}

struct Operator {
    settings: PatchEmbed,
    shape: [usize; 3],
    slots: [Slot; 2],
    owner: RowOwner,
}

/// `text` `[B, C]` (the projected pooled text) and `words` `[B, L − L₀, C]` (the projected pyramid) to `[B, L, C]`.
///
/// # Errors
/// If the sizes do not fit.
pub fn patch_embed(tape: &mut Tape<'_>, text: &Var, words: &Var, settings: &PatchEmbed) -> Result<Var> {
    let tokens = settings.levels.len();
    let [batch, given, channels] = three_dims("patch_embed", "the pyramid", words.value())?;
    if given + settings.first != tokens {
        let first = settings.first;
        return Err(Error::shape(
            "patch_embed",
            format!("{given} tokens after {first} do not make {tokens}"),
        ));
    }
    expect_shape("patch_embed", "the text", text.value(), &[batch, channels])?;
    let value = with_float!(words.value().dtype(), "patch_embed", T => {
        cpu::forward::<T>(tape.parameters(), text.value(), words.value(), settings)
    })?;
    let slots = [tape.slot(text), tape.slot(words)];
    let owner = match joint_owner(text.owner(), words.owner()) {
        RowOwner::Samples { .. } => RowOwner::Samples { rows_per_sample: tokens },
        RowOwner::Batch => RowOwner::Batch,
    };
    let settings = settings.clone();
    Ok(tape.push(value, owner, &slots, true, || Operator {
        settings,
        shape: [batch, tokens, channels],
        slots,
        owner,
    }))
}

impl Operation for Operator {
    fn name(&self) -> &'static str {
        "patch_embed"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let [batch, tokens, _] = self.shape;
        let first = self.settings.first;
        let mut gather = |id: ParameterId, row: &dyn Fn(usize) -> u32| {
            let index: Vec<u32> = (0..batch * tokens).map(|at| row(at % tokens)).collect();
            sink.parameter(id, self.owner, &Contribution::Gather { d_output: &d_output, index: &index })
        };
        let number = |token: usize| u32::try_from(token).unwrap_or(u32::MAX);
        gather(self.settings.start, &|token| if token < first { number(token) } else { u32::MAX })?;
        if let Some(level) = self.settings.level {
            gather(level, &|token| self.settings.levels[token])?;
        }
        if let Some(position) = self.settings.position {
            gather(position, &number)?;
        }
        let [d_text, d_words] =
            with_float!(d_output.dtype(), "patch_embed", T => cpu::split::<T>(&d_output, self.shape, first))?;
        sink.input(self.slots[0], d_text)?;
        sink.input(self.slots[1], d_words)
    }
}
