//! The start of the sequence: the pooled text as first tokens, the projected pyramid after it, level and positions added.

pub mod cuda;

use rayon::prelude::*;

use crate::{
    engine::{
        Float, ParameterId, RowOwner, Tape, Tensor, Var,
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
        forward::<T>(tape, text.value(), words.value(), settings)
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

fn forward<T: Float>(
    tape: &Tape<'_>,
    text: &Tensor,
    words: &Tensor,
    settings: &PatchEmbed,
) -> Result<Tensor> {
    let [batch, given, channels] = three_dims("patch_embed", "the pyramid", words)?;
    let (first, tokens) = (settings.first, settings.levels.len());
    let parameters = tape.parameters();
    // What every sample gets: level, position and start in one table.
    let mut table = vec![T::ZERO; tokens * channels];
    if let Some(level) = settings.level {
        let level = parameters.value(level).as_slice::<T>()?;
        for (row, &at) in table.chunks_mut(channels).zip(settings.levels.iter()) {
            row.copy_from_slice(&level[at as usize * channels..][..channels]);
        }
    }
    for (id, rows) in [(settings.position, tokens), (Some(settings.start), first)] {
        if let Some(id) = id {
            let values = parameters.value(id).as_slice::<T>()?;
            for (sum, value) in table[..rows * channels].iter_mut().zip(values) {
                *sum += *value;
            }
        }
    }
    let (text, words) = (text.as_slice::<T>()?, words.as_slice::<T>()?);
    let mut x = table.repeat(batch);
    x.par_chunks_mut(tokens * channels).enumerate().for_each(|(sample, x)| {
        let (head, tail) = x.split_at_mut(first * channels);
        for row in head.chunks_mut(channels) {
            for (x, text) in row.iter_mut().zip(&text[sample * channels..]) {
                *x += *text;
            }
        }
        for (x, word) in tail.iter_mut().zip(&words[sample * given * channels..]) {
            *x += *word;
        }
    });
    Tensor::new(&[batch, tokens, channels], x)
}

impl Operation for Operator {
    fn name(&self) -> &'static str {
        "patch_embed"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        fn split<T: Float>(d: &Tensor, shape: [usize; 3], first: usize) -> Result<[Tensor; 2]> {
            let [batch, tokens, channels] = shape;
            let (mut d_text, mut d_words) = (vec![T::ZERO; batch * channels], Vec::new());
            d_words.reserve_exact(batch * (tokens - first) * channels);
            for (d, d_text) in d.as_slice::<T>()?.chunks(tokens * channels).zip(d_text.chunks_mut(channels)) {
                let (head, tail) = d.split_at(first * channels);
                for row in head.chunks(channels) {
                    for (sum, value) in d_text.iter_mut().zip(row) {
                        *sum += *value;
                    }
                }
                d_words.extend_from_slice(tail);
            }
            Ok([
                Tensor::new(&[batch, channels], d_text)?,
                Tensor::new(&[batch, tokens - first, channels], d_words)?,
            ])
        }
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
            with_float!(d_output.dtype(), "patch_embed", T => split::<T>(&d_output, self.shape, first))?;
        sink.input(self.slots[0], d_text)?;
        sink.input(self.slots[1], d_words)
    }
}
