//! Launchers for `kernels/attention_prepare.cu`, `attention_forward.cu`, `attention_backward_queries.cu`,
//! `attention_backward_keys.cu` and, for f32, `attention_f32.cu`.
#![expect(unsafe_code, reason = "kernels are launched here, after all sizes have been checked")]

use crate::{
    engine::cuda::{
        Argument, Buffer, Device, DeviceNumber, Kernel, Launch, device::Factor, driver::ProductNumber,
    },
    error::{Error, Result},
};

const OP: &str = "attention";
/// Keys per tile, and queries per tile in f32 and where keys stay resident.
const TILE: usize = 64;
/// Threads per block with tensor cores.
const THREADS: u32 = 128;
const THREADS_F32: u32 = 256;
/// Threads per block of the kernel that rotates and normalizes.
const PREPARING: u32 = 256;
/// Maximum head size of the kernels.
const WIDEST_HEAD: usize = 128;

/// Sizes and options of an attention on a device: see [`AttentionSettings`](super::AttentionSettings).
#[derive(Clone, Copy, Debug)]
pub struct DeviceAttention<'a> {
    /// Samples, `B`.
    pub batch: usize,
    /// Heads, `H`.
    pub heads: usize,
    /// Channels per head, `D`: a multiple of 4, at most 128. `C = H·D`.
    pub head_dim: usize,
    /// Queries per sample, `L`.
    pub queries: usize,
    /// Keys per sample: `L` or, in a forward pass with a cache, more if packed, else `T`.
    pub keys: usize,
    /// Whether queries, keys and values are in one source `[B, L, 3C]` (self-attention), or queries in `[B, L, C]` and
    /// keys and values in `[B, T, 2C]` (cross-attention). With more keys than queries there are two packed sources:
    /// that of the queries contains only the last tokens.
    pub packed: bool,
    /// The number of keys that each query attends to, from the first on, `[L]`; must be non-decreasing. `None`: all.
    pub visible: Option<&'a Buffer<u32>>,
    /// Key mask, `[B, T]`: 1 attends, anything else does not. `None`: all.
    pub mask: Option<&'a Buffer<u32>>,
    /// The logarithm of each head's scale, `[H]`: queries and keys are l2-normalized and the scale, clamped at 100,
    /// multiplies the logits. `None`: no normalization, and the fixed factor `0.25/√D`.
    pub log_scale: Option<&'a Buffer<f32>>,
    /// Cosines and sines of the rotary embedding, at least `[keys, D/2]` each; only if packed.
    pub rotary: Option<(&'a Buffer<f32>, &'a Buffer<f32>)>,
}

/// Destinations of the sources' gradients.
#[derive(Debug)]
pub enum SourceGradients<'a, T: Factor> {
    /// The gradient of the packed source, `[B, L, 3C]`.
    Packed(&'a mut Buffer<T>),
    /// The gradients of two sources.
    Separate {
        /// `[B, L, C]`
        d_q: &'a mut Buffer<T>,
        /// `[B, T, 2C]`
        d_kv: &'a mut Buffer<T>,
    },
}

/// A pointer to element `offset` of a buffer.
fn read_from<T: DeviceNumber>(buffer: &Buffer<T>, offset: usize) -> Argument {
    Argument::Read { address: buffer.address() + (offset * size_of::<T>()) as u64, letter: T::LETTER }
}

fn write_from<T: DeviceNumber>(buffer: &mut Buffer<T>, offset: usize) -> Argument {
    Argument::Write { address: buffer.address() + (offset * size_of::<T>()) as u64, letter: T::LETTER }
}

fn optional<T: DeviceNumber>(buffer: Option<&Buffer<T>>) -> Argument {
    buffer.map_or(Argument::null::<T>(), Buffer::read)
}

fn size(what: &str, value: usize) -> Result<u32> {
    u32::try_from(value).map_err(|_| Error::shape(OP, format!("{value} {what}: too many for a kernel")))
}

impl DeviceAttention<'_> {
    /// Length of the forward's and backward's `rows`: for each sample, head and query the shift of its
    /// logits, the mean of their gradients and, in f32, the inverse of its sum; and for each tile of queries a partial
    /// gradient of the scale. The forward writes shifts and sums, the backward the others.
    pub fn rows_len<T: Factor>(&self) -> usize {
        let planes = if is_f32::<T>() { 3 } else { 2 };
        let tiles = self.queries.div_ceil(self.query_tile::<T>());
        self.batch * self.heads * (planes * self.queries + tiles)
    }

    fn channels(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Row strides of the query source and of the key-value source.
    fn strides(&self) -> [usize; 2] {
        let channels = self.channels();
        if self.packed { [3 * channels; 2] } else { [channels, 2 * channels] }
    }

    /// Offsets of the keys and values of head 0 in their source.
    fn key_offsets(&self) -> [usize; 2] {
        let channels = self.channels();
        if self.packed { [channels, 2 * channels] } else { [0, channels] }
    }

    /// The head size, rounded up to one that the kernels support. The 16-bit kernels for 64 read 8 elements at a time.
    fn padded<T: Factor>(&self) -> usize {
        let made: &[usize] = match (is_f32::<T>(), self.is_wide()) {
            (true, _) => &[64, 128],
            (false, true) => &[16, 32, 64, 128],
            (false, false) => &[16, 32, 128],
        };
        made.iter().copied().find(|&made| self.head_dim <= made).unwrap_or(WIDEST_HEAD)
    }

    /// Whether 16-bit rows of a head consist of complete 16-byte packs: allocations are aligned to 256 bytes.
    fn is_wide(&self) -> bool {
        self.head_dim.is_multiple_of(8)
    }

    /// Queries per block where queries stay resident.
    fn query_tile<T: Factor>(&self) -> usize {
        if is_f32::<T>() || self.padded::<T>() > 64 { TILE } else { 2 * TILE }
    }

    fn check<T: Factor>(&self, q_source: &Buffer<T>, kv_source: &Buffer<T>) -> Result<()> {
        let Self { batch, heads, head_dim, queries, keys, .. } = *self;
        if [batch, heads, head_dim, queries, keys].contains(&0) {
            return Err(Error::shape(
                OP,
                format!(
                    "{batch} samples, {heads} heads of {head_dim}, {queries} queries and {keys} keys: none may be 0"
                ),
            ));
        }
        if !head_dim.is_multiple_of(4) || head_dim > WIDEST_HEAD {
            return Err(Error::shape(
                OP,
                format!("a head of {head_dim} channels: kernels take multiples of 4 up to {WIDEST_HEAD}"),
            ));
        }
        if self.packed && keys < queries {
            return Err(Error::shape(OP, format!("{queries} queries are not the last of {keys} tokens")));
        }
        if self.rotary.is_some() && !self.packed {
            return Err(Error::shape(
                OP,
                "rotary positions apply to the pyramid only, not to the text".to_owned(),
            ));
        }
        let [q_stride, kv_stride] = self.strides();
        q_source.expect_len(OP, "the source of queries", batch * queries * q_stride)?;
        kv_source.expect_len(OP, "the source of keys and values", batch * keys * kv_stride)?;
        if let Some(visible) = self.visible {
            visible.expect_len(OP, "the number of visible keys", queries)?;
        }
        if let Some(mask) = self.mask {
            mask.expect_len(OP, "the mask", batch * keys)?;
        }
        if let Some(log_scale) = self.log_scale {
            log_scale.expect_len(OP, "the logarithm of the scale", heads)?;
        }
        if let Some((cosine, sine)) = self.rotary {
            let angles = keys * head_dim / 2;
            if cosine.len() < angles || sine.len() < angles {
                return Err(Error::shape(
                    OP,
                    format!(
                        "{keys} keys need {angles} cosines and sines, but there are {} and {}",
                        cosine.len(),
                        sine.len()
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Queries, keys and values as pointers into their sources.
    fn sources<T: Factor>(&self, q_source: &Buffer<T>, kv_source: &Buffer<T>) -> [Argument; 3] {
        let [keys, values] = self.key_offsets();
        [q_source.read(), read_from(kv_source, keys), read_from(kv_source, values)]
    }

    /// Visible keys, mask and scale.
    fn mask_and_scale(&self) -> [Argument; 3] {
        [optional(self.visible), optional(self.mask), optional(self.log_scale)]
    }

    /// Cosines and sines.
    fn angles(&self) -> [Argument; 2] {
        [optional(self.rotary.map(|(cosine, _)| cosine)), optional(self.rotary.map(|(_, sine)| sine))]
    }

    /// Heads, queries, keys and channels per head, then row strides.
    fn sizes(&self, strides: &[usize]) -> Result<Vec<Argument>> {
        let sizes = [
            ("heads", self.heads),
            ("queries", self.queries),
            ("keys", self.keys),
            ("channels", self.head_dim),
        ];
        let strides = strides.iter().map(|&stride| ("channels", stride));
        sizes.into_iter().chain(strides).map(|(what, value)| Ok(Argument::U32(size(what, value)?))).collect()
    }

    /// The fixed factor and, for 16-bit kernels, whether they may read 16 bytes at a time.
    fn last<T: Factor>(&self) -> Vec<Argument> {
        let mut arguments = vec![Argument::F32((0.25 / (self.head_dim as f64).sqrt()) as f32)];
        if !is_f32::<T>() {
            arguments.push(Argument::U32(u32::from(self.is_wide())));
        }
        arguments
    }

    /// The kernel of this name, in the file of this name or in that for f32, and a launch of one block per sample,
    /// head and `tile` rows with shared memory for `tiles` tiles of 64 rows.
    fn kernel<T: Factor>(
        &self,
        name: &'static str,
        rows: usize,
        tile: usize,
        tiles: usize,
    ) -> Result<(Kernel, Launch)> {
        let padded = self.padded::<T>();
        let blocks = self.batch * self.heads * rows.div_ceil(tile);
        if i32::try_from(blocks).is_err() {
            return Err(Error::shape(OP, format!("{blocks} blocks are more than a launch may have")));
        }
        let (file, threads, bytes) = if is_f32::<T>() {
            // Rows are padded by 4 elements, and there is one tile of weights.
            ("attention_f32", THREADS_F32, 4 * TILE * (tiles * (padded + 4) + TILE + 4))
        } else {
            (name, THREADS, 2 * TILE * tiles * padded)
        };
        let mut launch = Launch::linear(size("blocks", blocks)?, threads);
        launch.shared_bytes = size("bytes", bytes)?;
        Ok((Kernel::of::<T>(file, &format!("{name}_{padded}")), launch))
    }
}

fn is_f32<T: Factor>() -> bool {
    T::NUMBER == ProductNumber::F32
}

/// Inputs of the kernels. Those for 16 bits take rotated and normalized queries and keys; the buffers made for
/// this live as long as this value.
struct KernelInputs<T: Factor> {
    sources: [Argument; 3],
    /// Row strides of queries, keys and values.
    row: [usize; 3],
    /// The inverse lengths of queries and of keys before normalization, and the stride between tokens.
    lengths: [Argument; 2],
    length_stride: usize,
    _made: Vec<(Buffer<T>, Option<Buffer<f32>>)>,
}

impl<T: Factor> KernelInputs<T> {
    fn of(
        shape: &DeviceAttention<'_>,
        q_source: &Buffer<T>,
        kv_source: &Buffer<T>,
        with_lengths: bool,
    ) -> Result<Self> {
        let ([q_stride, kv_stride], none) = (shape.strides(), Argument::null::<f32>());
        let mut taken = Self {
            sources: shape.sources(q_source, kv_source),
            row: [q_stride, kv_stride, kv_stride],
            lengths: [none, none],
            length_stride: 0,
            _made: Vec::new(),
        };
        if is_f32::<T>() || (shape.log_scale.is_none() && shape.rotary.is_none()) {
            return Ok(taken);
        }
        let (channels, heads) = (shape.channels(), shape.heads);
        let with_lengths = with_lengths && shape.log_scale.is_some();
        let length = |lengths: &Option<Buffer<f32>>, first| {
            lengths.as_ref().map_or(none, |lengths| read_from(lengths, first))
        };
        if shape.packed && shape.keys == shape.queries {
            // A row's queries and keys are adjacent, as if there were twice the heads.
            let rows = Rows { source: q_source, offset: 0, stride: q_stride, tokens: shape.keys, first: 0 };
            let (hats, lengths) = rows.prepare(shape, 2 * heads, with_lengths)?;
            taken.sources[0] = hats.read();
            taken.sources[1] = read_from(&hats, channels);
            taken.row = [2 * channels, 2 * channels, kv_stride];
            taken.lengths = [length(&lengths, 0), length(&lengths, heads)];
            taken.length_stride = 2 * heads;
            taken._made.push((hats, lengths));
            return Ok(taken);
        }
        let [keys, _] = shape.key_offsets();
        let first = if shape.packed { shape.keys - shape.queries } else { 0 };
        let both = [
            Rows { source: q_source, offset: 0, stride: q_stride, tokens: shape.queries, first },
            Rows { source: kv_source, offset: keys, stride: kv_stride, tokens: shape.keys, first: 0 },
        ];
        for (at, rows) in both.into_iter().enumerate() {
            let (hats, lengths) = rows.prepare(shape, heads, with_lengths)?;
            taken.sources[at] = hats.read();
            taken.row[at] = channels;
            taken.lengths[at] = length(&lengths, 0);
            taken._made.push((hats, lengths));
        }
        taken.length_stride = heads;
        Ok(taken)
    }

    /// Strides as the kernels take them: the f32 kernels have one for keys and values, which share a source.
    fn strides<N: Factor>(&self) -> &[usize] {
        if is_f32::<N>() { &self.row[..2] } else { &self.row }
    }
}

/// The rows of queries or keys in their source.
struct Rows<'a, T: Factor> {
    source: &'a Buffer<T>,
    offset: usize,
    stride: usize,
    tokens: usize,
    /// Position of the first token.
    first: usize,
}

impl<T: Factor> Rows<'_, T> {
    /// Rotates and normalizes, `[B, tokens, heads, D]`, and optionally returns the inverse lengths
    /// `[B, tokens, heads]`.
    fn prepare(
        &self,
        shape: &DeviceAttention<'_>,
        heads: usize,
        with_lengths: bool,
    ) -> Result<(Buffer<T>, Option<Buffer<f32>>)> {
        let (device, padded) = (self.source.device(), shape.padded::<T>());
        let rows = shape.batch * self.tokens * heads;
        let mut hats = device.uninitialized::<T>(rows * shape.head_dim)?;
        let mut lengths = if with_lengths { Some(device.uninitialized::<f32>(rows)?) } else { None };
        let mut arguments = vec![
            hats.write(),
            lengths.as_mut().map_or(Argument::Write { address: 0, letter: f32::LETTER }, Buffer::write),
            read_from(self.source, self.offset),
        ];
        arguments.extend(shape.angles());
        arguments.push(Argument::U32(u32::from(shape.log_scale.is_some())));
        for (what, value) in [
            ("rows", rows),
            ("tokens", self.tokens),
            ("tokens", self.first),
            ("heads", heads),
            ("channels", shape.head_dim),
            ("channels", self.stride),
        ] {
            arguments.push(Argument::U32(size(what, value)?));
        }
        arguments.push(Argument::U32(u32::from(shape.is_wide())));
        let blocks = rows.div_ceil(PREPARING as usize / (padded / 8));
        let launch = Launch::linear(size("blocks", blocks)?, PREPARING);
        let kernel = Kernel::of::<T>("attention_prepare", &format!("attention_prepare_{padded}"));
        // SAFETY: arguments in the kernel's order; it writes the two buffers allocated here, of matching sizes; it
        // reads the heads of the source's rows, whose sizes `check` has compared, and angles of as many positions as
        // there are keys.
        unsafe { device.launch(&kernel, &launch, &arguments) }?;
        Ok((hats, lengths))
    }
}

/// Attention of every sample and head: `out` `[B, L, C]`. A query with no visible key yields zeros. `rows`, of
/// [`DeviceAttention::rows_len`] elements, keeps what the backward pass needs. For a packed source, `q_source` and
/// `kv_source` are the same buffer. Accumulates in f32, in a fixed order that does not depend on the batch.
///
/// Source: upstream.md, B3 to B5; the statistics are derived in `kernels/attention.cuh`.
///
/// # Errors
/// If the sizes do not match or the device fails. `visible` is not checked here: if it decreases, keys are skipped.
pub fn forward<T: Factor>(
    out: &mut Buffer<T>,
    rows: &mut Buffer<f32>,
    shape: &DeviceAttention<'_>,
    q_source: &Buffer<T>,
    kv_source: &Buffer<T>,
) -> Result<()> {
    shape.check(q_source, kv_source)?;
    out.expect_len(OP, "the result", shape.batch * shape.queries * shape.channels())?;
    rows.expect_len(OP, "the rows' statistics", shape.rows_len::<T>())?;
    let taken = KernelInputs::of(shape, q_source, kv_source, false)?;
    let mut arguments = vec![out.write(), rows.write()];
    arguments.extend(taken.sources);
    arguments.extend(shape.mask_and_scale());
    if is_f32::<T>() {
        arguments.extend(shape.angles());
    }
    arguments.extend(shape.sizes(taken.strides::<T>())?);
    arguments.extend(shape.last::<T>());
    let tile = shape.query_tile::<T>();
    let tiles = if is_f32::<T>() { 3 } else { 4 };
    let (kernel, launch) = shape.kernel::<T>("attention_forward", shape.queries, tile, tiles)?;
    // SAFETY: arguments in the kernel's order; what it writes is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe { device(out).launch(&kernel, &launch, &arguments) }
}

/// The gradients of the sources, and of the logarithm of the scale per sample and head, `d_log_scale` `[B, H]`
/// (present if and only if the scale is learned; zero where it is clamped). `rows` is the forward's; the means
/// of the logits' gradients are written to it. No float atomics: bit-identical on every run and in any batch.
///
/// # Errors
/// If the sizes do not match, gradients and sources have different layouts, or the device fails.
#[expect(clippy::too_many_arguments, reason = "the forward's inputs, its output and the gradients")]
pub fn backward<T: Factor>(
    gradients: SourceGradients<'_, T>,
    d_log_scale: Option<&mut Buffer<f32>>,
    rows: &mut Buffer<f32>,
    shape: &DeviceAttention<'_>,
    q_source: &Buffer<T>,
    kv_source: &Buffer<T>,
    out: &Buffer<T>,
    d_out: &Buffer<T>,
) -> Result<()> {
    shape.check(q_source, kv_source)?;
    out.expect_len(OP, "the result", shape.batch * shape.queries * shape.channels())?;
    d_out.expect_len(OP, "the gradient of the result", out.len())?;
    rows.expect_len(OP, "the rows' statistics", shape.rows_len::<T>())?;
    if d_log_scale.is_some() != shape.log_scale.is_some() {
        return Err(Error::shape(
            OP,
            "the gradient of the scale is requested if and only if the scale is learned".to_owned(),
        ));
    }
    let d_log_scale = match d_log_scale {
        None => Argument::Write { address: 0, letter: f32::LETTER },
        Some(gradient) => {
            gradient.expect_len(OP, "the gradient of the scale", shape.batch * shape.heads)?;
            gradient.write()
        }
    };
    let [keys, values] = shape.key_offsets();
    let [d_q, d_k, d_v] = match gradients {
        SourceGradients::Packed(gradient) if shape.packed && shape.keys == shape.queries => {
            gradient.expect_len(OP, "the gradient of the source", q_source.len())?;
            [gradient.write(), write_from(gradient, keys), write_from(gradient, values)]
        }
        SourceGradients::Separate { d_q, d_kv } if !shape.packed => {
            d_q.expect_len(OP, "the gradient of the queries", q_source.len())?;
            d_kv.expect_len(OP, "the gradient of keys and values", kv_source.len())?;
            [d_q.write(), write_from(d_kv, keys), write_from(d_kv, values)]
        }
        _ => {
            return Err(Error::shape(OP, "the layouts of gradients and sources differ".to_owned()));
        }
    };
    let taken = KernelInputs::of(shape, q_source, kv_source, true)?;
    let [q, k, v] = taken.sources;
    let [q_lengths, k_lengths] = taken.lengths;
    let [q_stride, kv_stride] = shape.strides();
    let more = |lengths: Argument, d_stride: usize| -> Result<Vec<Argument>> {
        let mut more = Vec::new();
        if !is_f32::<T>() {
            more.push(lengths);
        }
        more.extend(shape.mask_and_scale());
        more.extend(shape.angles());
        let mut strides = taken.strides::<T>().to_vec();
        if !is_f32::<T>() {
            strides.extend([taken.length_stride, d_stride]);
        }
        more.extend(shape.sizes(&strides)?);
        more.extend(shape.last::<T>());
        Ok(more)
    };
    let mut arguments = vec![d_q, rows.write(), q, k, v, out.read(), d_out.read()];
    arguments.extend(more(q_lengths, q_stride)?);
    let tile = shape.query_tile::<T>();
    let tiles = if is_f32::<T>() { 4 } else { 4 + 2 * tile / TILE };
    let (kernel, launch) = shape.kernel::<T>("attention_backward_queries", shape.queries, tile, tiles)?;
    // SAFETY: arguments in the kernel's order; what it writes is borrowed mutably; the sizes were compared above; all
    // buffers live, and are freed in stream order.
    unsafe { device(out).launch(&kernel, &launch, &arguments) }?;

    let mut arguments = vec![d_k, d_v, d_log_scale, rows.read(), q, k, v, d_out.read()];
    arguments.extend(more(k_lengths, kv_stride)?);
    let (kernel, launch) = shape.kernel::<T>("attention_backward_keys", shape.keys, TILE, 4)?;
    // SAFETY: as above; this launch reads the rows that the previous one has written, in stream order.
    unsafe { device(out).launch(&kernel, &launch, &arguments) }
}

fn device<T: Factor>(buffer: &Buffer<T>) -> &Device {
    buffer.device()
}
