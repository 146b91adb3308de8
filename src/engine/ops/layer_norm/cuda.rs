//! Launchers for `kernels/layer_norm.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Kernel, Launch, device::Factor},
        ops::{blocks, share_of, size},
    },
    error::{Error, Result},
};

/// Rows per block, one warp each.
const ROWS: usize = 8;
const THREADS: u32 = 256;

/// A scale and a shift per level, from one buffer of parts: row `s` of the scale starts at `s·stride + scale`.
#[derive(Clone, Copy, Debug)]
pub struct ModulationRows<'a> {
    /// `[S, stride]`, or `[B, S, stride]`
    pub parts: &'a Buffer<f32>,
    /// `B` if each sample has its own rows; `None` if all samples share them.
    pub samples: Option<usize>,
    /// Stride between levels, in elements.
    pub stride: usize,
    /// Offset of the scale in a row.
    pub scale: usize,
    /// Offset of the shift in a row.
    pub shift: usize,
    /// The level of each token, `[L]`, each below `S`.
    pub levels: &'a Buffer<u32>,
}

impl ModulationRows<'_> {
    /// Stride between samples, in elements; 0 if they share the rows.
    fn sample_stride(&self) -> usize {
        self.samples.map_or(0, |samples| self.parts.len() / samples.max(1))
    }
}

/// The input of a layer norm.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormInput<'a, T: Factor> {
    /// `[R, C]`
    pub x: &'a Buffer<T>,
    /// `C`
    pub channels: usize,
    /// `y = n·(1 + scale) + shift` by the level of each token; `None`: `y = n`. `R` is a multiple of the tokens.
    pub modulation: Option<ModulationRows<'a>>,
}

impl<T: Factor> LayerNormInput<'_, T> {
    fn rows(&self) -> Result<usize> {
        let (len, channels) = (self.x.len(), self.channels);
        if channels == 0 || !len.is_multiple_of(channels) {
            return Err(Error::shape("layer_norm", format!("{len} elements are not rows of {channels}")));
        }
        let rows = len / channels;
        if let Some(ModulationRows { parts, samples, stride, scale, shift, levels }) = self.modulation {
            let fits = stride > 0
                && scale.max(shift) + channels <= stride
                && parts.len().is_multiple_of(stride * samples.unwrap_or(1).max(1))
                && samples.is_none_or(|samples| rows == samples * levels.len());
            if !fits || levels.is_empty() || !rows.is_multiple_of(levels.len()) {
                return Err(Error::shape(
                    "layer_norm",
                    format!(
                        "{rows} rows of {channels} do not fit {} tokens and a modulation of {} elements of {}, rows of \
                         {stride} with the scale at {scale} and the shift at {shift}",
                        levels.len(),
                        parts.len(),
                        samples.map_or("all samples".to_owned(), |samples| format!("{samples} samples"))
                    ),
                ));
            }
        }
        Ok(rows)
    }

    /// Scale, shift and levels, and then the number of tokens and the strides of levels and samples.
    fn modulation_arguments(&self) -> Result<([Argument; 3], [Argument; 3])> {
        let Some(modulation) = self.modulation else {
            let null = Argument::null::<f32>();
            return Ok(([null, null, Argument::null::<u32>()], [1, 0, 0].map(Argument::U32)));
        };
        let at = |offset: usize| Argument::Read {
            address: modulation.parts.address() + (offset * size_of::<f32>()) as u64,
            letter: b'f',
        };
        Ok((
            [at(modulation.scale), at(modulation.shift), modulation.levels.read()],
            [
                Argument::U32(size("layer_norm", "tokens", modulation.levels.len())?),
                Argument::U32(size("layer_norm", "numbers", modulation.stride)?),
                Argument::U32(size("layer_norm", "numbers", modulation.sample_stride())?),
            ],
        ))
    }
}

/// Normalizes the rows into `y` `[R, C]`, and writes mean and inverse deviation per row to `statistics` `[R, 2]`.
///
/// # Errors
/// If the sizes do not match or the device fails. A level out of range is not detected here: the kernel reads
/// another level's values, or past the end.
pub fn layer_norm_forward<T: Factor>(
    y: &mut Buffer<T>,
    statistics: &mut Buffer<f32>,
    input: &LayerNormInput<'_, T>,
    epsilon: f32,
) -> Result<()> {
    let rows = input.rows()?;
    y.expect_len("layer_norm", "the result", input.x.len())?;
    statistics.expect_len("layer_norm", "the statistics", 2 * rows)?;
    if rows == 0 {
        return Ok(());
    }
    let ([scale, shift, levels], [tokens, stride, sample_stride]) = input.modulation_arguments()?;
    let arguments = [
        y.write(),
        statistics.write(),
        input.x.read(),
        scale,
        shift,
        levels,
        Argument::U32(size("layer_norm", "rows", rows)?),
        Argument::U32(size("layer_norm", "channels", input.channels)?),
        tokens,
        stride,
        sample_stride,
        Argument::F32(epsilon),
    ];
    let launch = Launch::linear(blocks("layer_norm", rows, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; y and statistics are borrowed mutably; the sizes were compared above;
    // all buffers live, and are freed in stream order.
    unsafe {
        input.x.device().launch(&Kernel::of::<T>("layer_norm", "layer_norm_forward"), &launch, &arguments)
    }
}

/// The gradient of the input, `dx` `[R, C]`, from that of the result, `dy`, and the forward's statistics.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn layer_norm_backward<T: Factor>(
    dx: &mut Buffer<T>,
    dy: &Buffer<T>,
    input: &LayerNormInput<'_, T>,
    statistics: &Buffer<f32>,
) -> Result<()> {
    let rows = input.rows()?;
    dx.expect_len("layer_norm", "the gradient of the input", input.x.len())?;
    dy.expect_len("layer_norm", "the gradient of the result", input.x.len())?;
    statistics.expect_len("layer_norm", "the statistics", 2 * rows)?;
    if rows == 0 {
        return Ok(());
    }
    let ([scale, _, levels], [tokens, stride, sample_stride]) = input.modulation_arguments()?;
    let arguments = [
        dx.write(),
        dy.read(),
        input.x.read(),
        statistics.read(),
        scale,
        levels,
        Argument::U32(size("layer_norm", "rows", rows)?),
        Argument::U32(size("layer_norm", "channels", input.channels)?),
        tokens,
        stride,
        sample_stride,
    ];
    let launch = Launch::linear(blocks("layer_norm", rows, ROWS)?, THREADS);
    // SAFETY: arguments in the kernel's order; dx is borrowed mutably; the sizes were compared above; all buffers live,
    // and are freed in stream order.
    unsafe { dy.device().launch(&Kernel::of::<T>("layer_norm", "layer_norm_backward"), &launch, &arguments) }
}

/// A residual followed by a layer norm: `x = before + keep_i·branch` for sample `i`.
#[derive(Clone, Copy, Debug)]
pub struct ResidualBranch<'a, T: Factor> {
    /// The residual stream, `[R, C]`.
    pub before: &'a Buffer<T>,
    /// The branch, `[R, C]`.
    pub branch: &'a Buffer<T>,
    /// The drop-path factor per sample, `[B]`; `None`: 1.
    pub keep: Option<&'a Buffer<f32>>,
}

/// `sum = before + keep_i·branch` `[R, C]` and its layer norm `y` `[R, C]` with statistics `[R, 2]`, in one pass. The
/// sum is normalized as stored (rounded). Where `keep_i = 0`, the contents of the branch do not matter.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn residual_layer_norm_forward<T: Factor>(
    sum: &mut Buffer<T>,
    y: &mut Buffer<T>,
    statistics: &mut Buffer<f32>,
    residual: &ResidualBranch<'_, T>,
    channels: usize,
    modulation: Option<ModulationRows<'_>>,
    epsilon: f32,
) -> Result<()> {
    let op = "residual_layer_norm";
    let ResidualBranch { before, branch, keep } = *residual;
    let input = LayerNormInput { x: before, channels, modulation };
    let rows = input.rows()?;
    let rows_a_sample = share_of(op, rows, keep.map_or(1, Buffer::len))?;
    branch.expect_len(op, "the branch", before.len())?;
    sum.expect_len(op, "the sum", before.len())?;
    y.expect_len(op, "the result", before.len())?;
    statistics.expect_len(op, "the statistics", 2 * rows)?;
    if rows == 0 {
        return Ok(());
    }
    let ([scale, shift, levels], [tokens, stride, sample_stride]) = input.modulation_arguments()?;
    let arguments = [
        sum.write(),
        y.write(),
        statistics.write(),
        before.read(),
        branch.read(),
        keep.map_or(Argument::null::<f32>(), Buffer::read),
        scale,
        shift,
        levels,
        Argument::U32(size(op, "rows", rows)?),
        Argument::U32(size(op, "rows", rows_a_sample)?),
        Argument::U32(size(op, "channels", channels)?),
        tokens,
        stride,
        sample_stride,
        Argument::F32(epsilon),
    ];
    let launch = Launch::linear(blocks(op, rows, ROWS)?, THREADS);
    let kernel = Kernel::of::<T>("layer_norm", "residual_layer_norm_forward");
    // SAFETY: arguments in the kernel's order; sum, y and statistics are borrowed mutably; the sizes were compared
    // above; all buffers live, and are freed in stream order.
    unsafe { before.device().launch(&kernel, &launch, &arguments) }
}

/// The gradients computed by [`residual_layer_norm_backward`].
#[derive(Debug)]
pub struct ResidualGradients<'a, T: Factor> {
    /// Gradient of `before`, `[R, C]`: the norm's plus the residual's.
    pub dx: &'a mut Buffer<T>,
    /// Gradient of the sum from its other uses, `[R, C]`; if `None`, `dx` already contains it.
    pub d_residual: Option<&'a Buffer<T>>,
    /// Gradient of the branch, `keep_i·dx`, `[R, C]`; without a `keep` it equals `dx` and may be omitted.
    pub d_branch: Option<&'a mut Buffer<T>>,
}

/// The backward of [`residual_layer_norm_forward`] in one pass: `input.x` is its `sum`, `dy` `[R, C]` the gradient of
/// `y`.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn residual_layer_norm_backward<T: Factor>(
    gradients: ResidualGradients<'_, T>,
    dy: &Buffer<T>,
    input: &LayerNormInput<'_, T>,
    statistics: &Buffer<f32>,
    keep: Option<&Buffer<f32>>,
) -> Result<()> {
    let op = "residual_layer_norm";
    let ResidualGradients { dx, d_residual, d_branch } = gradients;
    let rows = input.rows()?;
    let rows_a_sample = share_of(op, rows, keep.map_or(1, Buffer::len))?;
    dx.expect_len(op, "the gradient of the input", input.x.len())?;
    dy.expect_len(op, "the gradient of the result", input.x.len())?;
    if let Some(d_residual) = d_residual {
        d_residual.expect_len(op, "the gradient of the residual", input.x.len())?;
    }
    if let Some(d_branch) = &d_branch {
        d_branch.expect_len(op, "the gradient of the branch", input.x.len())?;
    }
    statistics.expect_len(op, "the statistics", 2 * rows)?;
    if rows == 0 {
        return Ok(());
    }
    let ([scale, _, levels], [tokens, stride, sample_stride]) = input.modulation_arguments()?;
    let arguments = [
        dx.write(),
        d_branch.map_or(Argument::null::<T>(), Buffer::write),
        d_residual.map_or_else(|| dx.read(), Buffer::read),
        dy.read(),
        input.x.read(),
        keep.map_or(Argument::null::<f32>(), Buffer::read),
        statistics.read(),
        scale,
        levels,
        Argument::U32(size(op, "rows", rows)?),
        Argument::U32(size(op, "rows", rows_a_sample)?),
        Argument::U32(size(op, "channels", input.channels)?),
        tokens,
        stride,
        sample_stride,
    ];
    let launch = Launch::linear(blocks(op, rows, ROWS)?, THREADS);
    let kernel = Kernel::of::<T>("layer_norm", "residual_layer_norm_backward");
    // SAFETY: arguments in the kernel's order; dx and d_branch are borrowed mutably, and each element of dx is read
    // only by the thread that writes it; the sizes were compared above; all buffers live, and are freed in stream
    // order.
    unsafe { dy.device().launch(&kernel, &launch, &arguments) }
}
