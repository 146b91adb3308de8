//! The input embedding (multi-scale patch embedding): pooled text as first tokens, then the projected pyramid, plus
//! level and position embeddings.

pub(crate) mod cpu;
#[doc(hidden)]
pub mod cuda;

use std::sync::Arc;

use crate::{
    engine::{
        ParameterId, Parameters, RowOwner, Tape, Tensor, Var,
        autograd::{
            contributions::{Contribution, TableRows},
            tape::{Operation, Sink, Slot},
        },
        cuda::DeviceFloat,
        dispatch::{dispatch, with_float, with_number},
        ops::{expect_shape, last_dim, levels::Levels, three_dims},
    },
    error::{Error, Result},
};

/// The parameters of the input embedding (upstream.md, B6).
#[derive(Clone, Copy, Debug)]
pub struct PatchEmbedParameters {
    /// Projects the pyramid's rows, `[C, Cvae]` (`word_embed`).
    pub weight: ParameterId,
    /// Added to each projected row, `[C]`.
    pub bias: ParameterId,
    /// Added to the first scale's tokens, `[1, L₀, C]`.
    pub start: ParameterId,
    /// One vector per scale, `[S, C]`.
    pub level: Option<ParameterId>,
    /// One vector per token, `[1, L, C]`, unless positions are rotary.
    pub position: Option<ParameterId>,
}

/// Parameters and sizes of the input embedding.
#[derive(Clone, Debug)]
pub struct PatchEmbed {
    parameters: PatchEmbedParameters,
    levels: Arc<Levels>,
    first: usize,
    /// Which rows of the start, level and position tables are added to each token.
    rows: Arc<[TableRows; 3]>,
    /// The row of the position table for each token, unless it is the token's index.
    indices: Option<Arc<Vec<usize>>>,
    /// Rows of the position table.
    positions: usize,
}

impl PatchEmbed {
    /// Builds the embedding of all tokens from the scale of each.
    pub fn new(parameters: PatchEmbedParameters, levels: Arc<Levels>) -> Self {
        let positions = levels.tokens();
        Self::made(parameters, levels, None, positions)
    }

    /// The same embedding for a subset of the tokens: the scale of each, and its index among all.
    #[must_use]
    pub(crate) fn with_tokens(&self, levels: Arc<Levels>, indices: &Arc<Vec<usize>>) -> Self {
        let whole = indices.len() == self.positions;
        Self::made(self.parameters, levels, (!whole).then(|| Arc::clone(indices)), self.positions)
    }

    fn made(
        parameters: PatchEmbedParameters,
        levels: Arc<Levels>,
        indices: Option<Arc<Vec<usize>>>,
        positions: usize,
    ) -> Self {
        let (tokens, scales) = (levels.tokens(), levels.count());
        let first = levels.host().iter().filter(|&&level| level == 0).count();
        let number = |token: usize| u32::try_from(token).unwrap_or(u32::MAX);
        let start_of = |token: usize| if token < first { number(token) } else { u32::MAX };
        let index = |token: usize| indices.as_ref().map_or(token, |indices| indices[token]);
        let rows = Arc::new([
            TableRows::new((0..tokens).map(start_of).collect(), first),
            TableRows::new(levels.host().to_vec(), scales),
            TableRows::new((0..tokens).map(|token| number(index(token))).collect(), positions),
        ]);
        Self { parameters, levels, first, rows, indices, positions }
    }

    /// The scale of each token.
    pub(crate) fn levels(&self) -> &Arc<Levels> {
        &self.levels
    }
}

struct Operator {
    settings: PatchEmbed,
    rows: Tensor,
    shape: [usize; 3],
    slots: [Slot; 2],
    owner: RowOwner,
}

/// Embeds `text` `[B, C]` (the projected pooled text) and `rows` `[B, L − L₀, Cvae]` (the pyramid) as `[B, L, C]`. The
/// rows may also be `[B, L, Cvae]` with zeros for the first scale, which saves a copy on a device.
///
/// # Errors
/// If the sizes do not match.
pub fn patch_embed(tape: &mut Tape<'_>, text: &Var, rows: &Var, settings: &PatchEmbed) -> Result<Var> {
    let (tokens, first) = (settings.levels.tokens(), settings.first);
    let (parameters, input, pooled) = (tape.parameters(), rows.value(), text.value());
    let [batch, given, code_channels] = three_dims("patch_embed", "the pyramid", input)?;
    if given != tokens && given + first != tokens {
        return Err(Error::shape(
            "patch_embed",
            format!("{given} tokens after the first {first} do not add up to {tokens}"),
        ));
    }
    let channels = last_dim("patch_embed", pooled)?;
    expect_shape("patch_embed", "the text", pooled, &[batch, channels])?;
    let weight = parameters.value(settings.parameters.weight);
    expect_shape("patch_embed", "the weight", weight, &[channels, code_channels])?;
    let value = dispatch!("patch_embed", input,
        cpu T => cpu::forward::<T>(parameters, pooled, input, settings),
        cuda T => forward_on_device::<T>(parameters, pooled, input, settings),
    )?;
    let slots = [tape.slot(text), tape.slot(rows)];
    let owner = match text.owner().joint(rows.owner()) {
        RowOwner::Samples { .. } => RowOwner::Samples { rows_per_sample: tokens },
        RowOwner::Batch => RowOwner::Batch,
    };
    let (settings, rows) = (settings.clone(), input.clone());
    Ok(tape.push(value, owner, &slots, true, || Operator {
        settings,
        rows,
        shape: [batch, tokens, channels],
        slots,
        owner,
    }))
}

fn forward_on_device<T: DeviceFloat>(
    parameters: &Parameters,
    text: &Tensor,
    rows: &Tensor,
    settings: &PatchEmbed,
) -> Result<Tensor> {
    let from = rows.buffer::<T>()?;
    let (channels, tokens) = (text.dim(1), settings.levels.tokens());
    let wide = |id: ParameterId| parameters.value(id).buffer::<f32>();
    let PatchEmbedParameters { weight, bias, start, level, position } = settings.parameters;
    let positions = match (position, &settings.indices) {
        (Some(id), Some(indices)) => Some(rows_of(parameters.value(id), indices, channels)?),
        _ => None,
    };
    let parameters = cuda::DevicePatchEmbedParameters {
        weight: parameters.value_as(weight, T::DTYPE)?.buffer::<T>()?,
        bias: wide(bias)?,
        start: wide(start)?,
        level: level.map(wide).transpose()?,
        position: match &positions {
            Some(rows) => Some(rows.buffer::<f32>()?),
            None => position.map(wide).transpose()?,
        },
    };
    let (text, sequence) = (text.buffer::<T>()?, settings.levels.on(from.device())?);
    Tensor::written(from.device(), &[rows.dim(0), tokens, channels], |x| {
        cuda::patch_embed_forward(x, text, from, &parameters, sequence)
    })
}

/// Gathers rows of a table `[1, L, C]` on a device.
fn rows_of(table: &Tensor, indices: &[usize], channels: usize) -> Result<Tensor> {
    let from = table.buffer::<f32>()?;
    Tensor::written::<f32>(from.device(), &[indices.len(), channels], |rows| {
        let mut to = 0;
        // Adjacent rows are copied together: there are few gaps.
        for run in indices.chunk_by(|index, next| index + 1 == *next) {
            rows.copy_range(to * channels, from, run[0] * channels..(run[0] + run.len()) * channels)?;
            to += run.len();
        }
        Ok(())
    })
}

impl Operation for Operator {
    fn name(&self) -> &'static str {
        "patch_embed"
    }

    fn backward(self: Box<Self>, d_output: Tensor, sink: &mut Sink<'_>) -> Result<()> {
        if d_output.device().is_some() {
            return with_number!(d_output.dtype(), "patch_embed", T => {
                self.backward_on_device::<T>(&d_output, sink)
            });
        }
        let (tokens, first) = (self.settings.levels.tokens(), self.settings.first);
        let PatchEmbedParameters { weight, bias, start, level, position } = self.settings.parameters;
        for (id, rows) in [Some(start), level, position].into_iter().zip(self.settings.rows.iter()) {
            if let Some(id) = id {
                sink.parameter(id, self.owner, &Contribution::Gather { d_output: &d_output, rows })?;
            }
        }
        let [d_text, d_words] =
            with_float!(d_output.dtype(), "patch_embed", T => cpu::split::<T>(&d_output, self.shape, first))?;
        let rows = with_float!(d_output.dtype(), "patch_embed", T => cpu::after_first::<T>(&self.rows, tokens, first))?;
        let owner = match self.owner {
            RowOwner::Samples { .. } => RowOwner::Samples { rows_per_sample: tokens - first },
            RowOwner::Batch => RowOwner::Batch,
        };
        let product = Contribution::Product { input: &rows, d_output: &d_words };
        sink.parameter(weight, owner, &product)?;
        sink.parameter(bias, owner, &Contribution::Sum { d_output: &d_words, column: 0 })?;
        sink.input(self.slots[0], d_text)?;
        if self.slots[1].wanted() {
            let weight = sink.parameters().value(weight);
            let d_rows = with_float!(d_output.dtype(), "patch_embed", T => {
                cpu::d_rows::<T>(&d_words, weight, self.rows.shape())
            })?;
            sink.input(self.slots[1], d_rows)?;
        }
        Ok(())
    }
}

impl Operator {
    fn backward_on_device<T: DeviceFloat>(&self, d_output: &Tensor, sink: &mut Sink<'_>) -> Result<()> {
        let [batch, tokens, channels] = self.shape;
        let PatchEmbedParameters { weight, bias, start, level, position } = self.settings.parameters;
        let levels = &self.settings.levels;
        let d_x = d_output.buffer::<T>()?;
        let device = d_x.device();
        let scales = levels.count();
        let mut sums = device.uninitialized::<f32>(batch * scales * channels)?;
        let sequence = levels.on(device)?;
        let d_text = Tensor::written::<T>(device, &[batch, channels], |d_text| {
            cuda::patch_embed_backward(&mut sums, Some(d_text), d_x, sequence, [batch, channels])
        })?;
        let d_bias = Tensor::written::<f32>(device, &[batch, channels], |d_bias| {
            cuda::patch_embed_backward_bias(d_bias, &sums, sequence, [batch, channels])
        })?;
        sink.parameter(bias, self.owner, &Contribution::PerSample { d_value: &d_bias })?;
        if let Some(level) = level {
            let sums = Tensor::from_buffer(&[batch, scales * channels], sums)?;
            sink.parameter(level, self.owner, &Contribution::PerSample { d_value: &sums })?;
        }
        match (position, &self.settings.indices) {
            (Some(position), None) => {
                let d_value = d_output.reshape(&[batch, tokens * channels])?;
                sink.parameter(position, self.owner, &Contribution::PerSample { d_value: &d_value })?;
            }
            (Some(position), Some(_)) => {
                let gather = Contribution::Gather { d_output, rows: &self.settings.rows[2] };
                sink.parameter(position, self.owner, &gather)?;
            }
            (None, _) => (),
        }
        let gather = Contribution::Gather { d_output, rows: &self.settings.rows[0] };
        sink.parameter(start, self.owner, &gather)?;
        let rows = self.whole_rows::<T>()?;
        sink.parameter(weight, self.owner, &Contribution::Product { input: &rows, d_output })?;
        if self.slots[1].wanted() {
            return Err(Error::invalid("the pyramid has no gradient on a device"));
        }
        sink.input(self.slots[0], d_text)
    }

    /// The pyramid padded with zeros for the first scale, so that its rows match those of the gradient.
    fn whole_rows<T: DeviceFloat>(&self) -> Result<Tensor> {
        let [batch, given, width] = three_dims("patch_embed", "the pyramid", &self.rows)?;
        let tokens = self.settings.levels.tokens();
        if given == tokens {
            return Ok(self.rows.clone());
        }
        let from = self.rows.buffer::<T>()?;
        let mut whole = from.device().zeros::<T>(batch * tokens * width)?;
        for sample in 0..batch {
            let to = (sample * tokens + self.settings.first) * width;
            whole.copy_range(to, from, sample * given * width..(sample + 1) * given * width)?;
        }
        Tensor::from_buffer(&[batch, tokens, width], whole)
    }
}
