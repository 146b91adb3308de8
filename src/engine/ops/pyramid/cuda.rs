//! Launchers for `kernels/pyramid.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::size,
    },
    error::{Error, Result},
};

const OP: &str = "pyramid";
const THREADS: u32 = 256;
/// Codes per block of the packed codebook.
const CODES: usize = 64;
/// Values that the search keeps per row.
const SEARCH: usize = 17;

/// A 3×3 convolution φ(h) = (1 − r)·h + r·(conv(h) + bias), zero-padded.
#[derive(Clone, Debug)]
pub struct PyramidConvolution {
    /// `[9, C in, C out]`, window in row-major order.
    pub weight: Vec<f32>,
    /// `[C]`
    pub bias: Vec<f32>,
    /// r
    pub ratio: f32,
}

/// The data from which the tables are built.
#[derive(Debug)]
pub struct PyramidSource<'a> {
    /// The side of each scale, increasing; the last is the full side `H`.
    pub patch_nums: &'a [usize],
    /// `[V, C]`
    pub codebook: &'a [f32],
    /// `C`
    pub channels: usize,
    /// For each scale but the last and each position of the full side: four positions on the scale's map and their
    /// weights.
    pub taps: Vec<[(usize, f32); 4]>,
    /// The convolutions; if empty, φ is the identity.
    pub convolutions: Vec<PyramidConvolution>,
    /// Which convolution each scale uses.
    pub phi_index: &'a [usize],
}

/// Lookup tables of the kernels, on a device.
#[derive(Debug)]
pub struct PyramidTables {
    codebook: Buffer<f32>,
    packed: Buffer<f32>,
    norms: Buffer<f32>,
    sides: Buffer<u32>,
    tap_index: Buffer<u32>,
    tap_weight: Buffer<f32>,
    convolutions: Buffer<f32>,
    biases: Buffer<f32>,
    ratios: Buffer<f32>,
    phi: Buffer<u32>,
    sizes: Sizes,
    /// Scratch space of `most_samples` blocks, if it does not fit into shared memory.
    workspace: Option<Buffer<f32>>,
}

#[derive(Clone, Copy, Debug)]
struct Sizes {
    scales: usize,
    side: usize,
    channels: usize,
    vocabulary: usize,
    convolutions: usize,
    tokens: usize,
    first: usize,
    /// Elements that a block needs for half-resized rows or for the search.
    rows: usize,
    /// Elements of a block's scratch space.
    space: usize,
}

impl PyramidTables {
    /// Builds the tables. `most_samples` is the largest batch: if shared memory is too small, scratch space is
    /// allocated now.
    ///
    /// # Errors
    /// If the sizes are inconsistent, or there is not enough memory.
    pub(crate) fn new(device: &Device, source: &PyramidSource<'_>, most_samples: usize) -> Result<Self> {
        let PyramidSource { patch_nums, codebook, channels, ref taps, ref convolutions, phi_index } = *source;
        let (scales, vocabulary) = (patch_nums.len(), codebook.len().checked_div(channels).unwrap_or(0));
        let side = patch_nums.last().copied().unwrap_or(0);
        let fits = side > 0
            && patch_nums[0] > 0
            && patch_nums.is_sorted()
            && vocabulary > 0
            && codebook.len() == vocabulary * channels
            && taps.len() == (scales - 1) * side
            && phi_index.len() == scales
            && convolutions.iter().all(|convolution| {
                convolution.weight.len() == 9 * channels * channels && convolution.bias.len() == channels
            })
            && (convolutions.is_empty() || phi_index.iter().all(|&which| which < convolutions.len()));
        if !fits {
            return Err(Error::shape(
                OP,
                format!("the tables of {scales} scales up to {side} are inconsistent"),
            ));
        }
        let inside = taps
            .chunks(side)
            .zip(patch_nums)
            .all(|(taps, &side)| taps.iter().flatten().all(|&(position, _)| position < side));
        if !inside {
            return Err(Error::shape(OP, "a resampling tap is out of range"));
        }
        let width = channels.div_ceil(4) * 4;
        let (packed, norms) = pack_codebook(codebook, channels, vocabulary);
        let mut weights = Vec::new();
        let (mut biases, mut ratios) = (Vec::new(), Vec::new());
        let padded = |row: &[f32], to: &mut Vec<f32>| {
            to.extend_from_slice(row);
            to.extend(std::iter::repeat_n(0.0, width - channels));
        };
        for convolution in convolutions {
            convolution.weight.chunks(channels).for_each(|row| padded(row, &mut weights));
            padded(&convolution.bias, &mut biases);
            ratios.push(convolution.ratio);
        }
        let whole = |values: Vec<usize>| -> Result<Vec<u32>> {
            values.into_iter().map(|value| size(OP, "places", value)).collect()
        };
        let largest_resized = patch_nums.iter().rev().nth(1).copied().unwrap_or(0);
        let round = |count: usize| count.div_ceil(4) * 4;
        let rows = round((largest_resized * side * channels).max(SEARCH * side * side));
        let space = round(side * side * channels) + round(side * side * (width + 1)) + rows + side * side;
        let fits = space * size_of::<f32>() <= device.facts().shared_bytes as usize;
        Ok(Self {
            codebook: device.upload(codebook)?,
            packed: device.upload(&packed)?,
            norms: device.upload(&norms)?,
            sides: device.upload(&whole(patch_nums.to_vec())?)?,
            tap_index: device.upload(&whole(taps.iter().flatten().map(|tap| tap.0).collect())?)?,
            tap_weight: device.upload(&taps.iter().flatten().map(|tap| tap.1).collect::<Vec<_>>())?,
            convolutions: device.upload(&weights)?,
            biases: device.upload(&biases)?,
            ratios: device.upload(&ratios)?,
            phi: device.upload(&whole(phi_index.to_vec())?)?,
            workspace: if fits { None } else { Some(device.uninitialized(most_samples * round(space))?) },
            sizes: Sizes {
                scales,
                side,
                channels,
                vocabulary,
                convolutions: convolutions.len(),
                tokens: patch_nums.iter().map(|side| side * side).sum(),
                first: patch_nums[0] * patch_nums[0],
                rows,
                space: round(space),
            },
        })
    }

    /// Whether blocks use shared memory for scratch space.
    pub fn in_shared_memory(&self) -> bool {
        self.workspace.is_none()
    }

    fn launch(&self, samples: usize) -> Result<Launch> {
        let shared_bytes = if self.workspace.is_none() {
            size(OP, "bytes", self.sizes.space * size_of::<f32>())?
        } else {
            0
        };
        Ok(Launch { grid: [size(OP, "samples", samples)?, 1, 1], block: [THREADS, 1, 1], shared_bytes })
    }

    fn workspace_argument(&mut self, samples: usize) -> Result<Argument> {
        let Some(workspace) = &mut self.workspace else { return Ok(Argument::null::<f32>()) };
        let most = workspace.len() / self.sizes.space;
        if samples > most {
            return Err(Error::shape(OP, format!("{samples} samples with working space for {most}")));
        }
        Ok(workspace.write())
    }

    fn arguments(&self) -> Result<Vec<Argument>> {
        let Sizes { scales, side, channels, vocabulary, convolutions, .. } = self.sizes;
        let mut arguments = vec![
            self.codebook.read(),
            self.sides.read(),
            self.tap_index.read(),
            self.tap_weight.read(),
            self.convolutions.read(),
            self.biases.read(),
            self.ratios.read(),
            self.phi.read(),
        ];
        for value in [scales, side, channels, vocabulary, convolutions] {
            arguments.push(Argument::U32(size(OP, "numbers", value)?));
        }
        Ok(arguments)
    }
}

/// Packs the codebook `[V, C]` for the search, `[blocks, C rounded up to 4, 64]`, and computes |e|² of each code,
/// infinite for the padding of the last block.
fn pack_codebook(codebook: &[f32], channels: usize, vocabulary: usize) -> (Vec<f32>, Vec<f32>) {
    let (width, blocks) = (channels.div_ceil(4) * 4, vocabulary.div_ceil(CODES));
    let (mut packed, mut norms) = (vec![0.0; blocks * width * CODES], vec![f32::INFINITY; blocks * CODES]);
    for (code, values) in codebook.chunks_exact(channels).enumerate() {
        norms[code] = values.iter().map(|value| value * value).sum();
        for (channel, &value) in values.iter().enumerate() {
            packed[(code / CODES * width + channel) * CODES + code % CODES] = value;
        }
    }
    (packed, norms)
}

/// Outputs of [`pyramid_input`], in f32, in `T`, or both: `[B, L − L₀, Cvae]`, or with `padded` `[B, L, Cvae]`, where
/// the rows of the first tokens are zeros.
#[derive(Debug)]
pub struct PyramidRows<'a, T: Factor> {
    /// In f32.
    pub wide: Option<&'a mut Buffer<f32>>,
    /// In `T`.
    pub rows: Option<&'a mut Buffer<T>>,
    /// Whether the first tokens have rows.
    pub padded: bool,
    /// Whether a scale's rows are the reconstruction up to the scale itself, instead of that from the scales before it.
    pub through: bool,
}

/// The networks' input: `codes` `[B, L]` to the rows of every scale but the first, each the reconstruction from all
/// scales before it (or up to it), averaged down to its side. A code out of range stops the kernel with an error.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn pyramid_input<T: Factor>(
    output: PyramidRows<'_, T>,
    codes: &Buffer<u32>,
    tables: &mut PyramidTables,
) -> Result<()> {
    let PyramidRows { wide, rows, padded, through } = output;
    let Sizes { tokens, first, channels, .. } = tables.sizes;
    if !codes.len().is_multiple_of(tokens) {
        return Err(Error::shape(OP, format!("{} codes are not pyramids of {tokens}", codes.len())));
    }
    let samples = codes.len() / tokens;
    let head = if padded { first } else { 0 };
    let numbers = samples * (head + tokens - first) * channels;
    if let Some(wide) = &wide {
        wide.expect_len(OP, "the rows", numbers)?;
    }
    if let Some(rows) = &rows {
        rows.expect_len(OP, "the rows", numbers)?;
    }
    if samples == 0 {
        return Ok(());
    }
    let mut arguments = vec![
        wide.map_or(Argument::null::<f32>(), Buffer::write),
        rows.map_or(Argument::null::<T>(), Buffer::write),
        tables.workspace_argument(samples)?,
        codes.read(),
    ];
    arguments.extend(tables.arguments()?);
    for value in [tokens, head, usize::from(through), tables.sizes.rows, tables.sizes.space] {
        arguments.push(Argument::U32(size(OP, "numbers", value)?));
    }
    // SAFETY: arguments in the kernel's order; the results and the working space are borrowed mutably; the sizes were
    // compared above and when the tables were made; all buffers live, and are freed in stream order.
    unsafe {
        codes.device().launch(&Kernel::of::<T>(OP, "pyramid_input"), &tables.launch(samples)?, &arguments)
    }
}

/// Quantizes `features` `[B, Cvae, H, H]` to `codes` `[B, L]`: at every scale the residual is averaged down, each cell
/// takes its nearest code (the first on ties), and the codes' vectors are subtracted. A feature that is not finite
/// stops the kernel with an error.
///
/// # Errors
/// If the sizes do not match or the device fails.
pub fn pyramid_quantize(
    codes: &mut Buffer<u32>,
    features: &Buffer<f32>,
    tables: &mut PyramidTables,
) -> Result<()> {
    let Sizes { tokens, side, channels, .. } = tables.sizes;
    let map = side * side * channels;
    if !features.len().is_multiple_of(map) {
        return Err(Error::shape(OP, format!("{} features are not maps of {map}", features.len())));
    }
    let samples = features.len() / map;
    codes.expect_len(OP, "the codes", samples * tokens)?;
    if samples == 0 {
        return Ok(());
    }
    let mut arguments = vec![
        codes.write(),
        tables.workspace_argument(samples)?,
        features.read(),
        tables.packed.read(),
        tables.norms.read(),
    ];
    arguments.extend(tables.arguments()?);
    for value in [tokens, tables.sizes.rows, tables.sizes.space] {
        arguments.push(Argument::U32(size(OP, "numbers", value)?));
    }
    // SAFETY: arguments in the kernel's order; the codes and the working space are borrowed mutably; the sizes were
    // compared above and when the tables were made; all buffers live, and are freed in stream order.
    unsafe {
        features.device().launch(&Kernel::new(OP, "pyramid_quantize"), &tables.launch(samples)?, &arguments)
    }
}
