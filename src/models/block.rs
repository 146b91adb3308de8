//! The transformer block, and the backbone that both networks share: the input embedding and the blocks
//! (upstream: `AttnBlock`, `VAR.forward`, `VARRater.forward`).

use std::sync::Arc;

use crate::{
    encode::TextStates,
    engine::{
        DType, ParameterId, Parameters, Purpose, Random, Tape, Tensor, Var,
        ops::{
            activation::{Activation, activate},
            add_to_all::add_to_all,
            attention::{AttentionSettings, RotaryTable, cached_attention, cross_attention, self_attention},
            first_sample::first_sample,
            layer_norm::{ScaleShift, layer_norm},
            linear::{Bias, linear},
            modulation::{self, gate, level_pairs},
            patch_embed::{PatchEmbed, PatchEmbedParameters, patch_embed},
            residual::residual,
        },
    },
    error::{Error, Result},
    models::{BackboneConfig, Layout, init::Initializer},
};

/// ε of every layer norm, as in the upstream code.
pub(crate) const EPSILON: f64 = 1e-6;

/// A linear layer's parameters.
#[derive(Clone, Debug)]
pub(crate) struct LinearLayer {
    weight: ParameterId,
    biases: Vec<Bias>,
}

impl LinearLayer {
    /// Declares `name.weight` `[O, I]` and `name.bias` `[O]`.
    ///
    /// # Errors
    /// If a name is already declared.
    pub(crate) fn new(init: &mut Initializer<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Self> {
        let weight = init.weight(&format!("{name}.weight"), &[outputs, inputs], 1.0)?;
        let bias = init.zeros(&format!("{name}.bias"), &[outputs])?;
        Ok(Self { weight, biases: vec![Bias { parameter: bias, column: 0 }] })
    }

    /// Applies the layer.
    ///
    /// # Errors
    /// If the sizes do not match.
    pub(crate) fn forward(&self, tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
        linear(tape, x, self.weight, &self.biases)
    }
}

#[derive(Clone, Debug)]
struct CrossAttention {
    query: LinearLayer,
    key_value: LinearLayer,
    projection: LinearLayer,
    settings: AttentionSettings,
}

#[derive(Debug)]
struct Block {
    modulation: Option<ParameterId>,
    query_key_value: LinearLayer,
    projection: LinearLayer,
    heads: usize,
    scale: Option<ParameterId>,
    cross: Option<CrossAttention>,
    cross_from_first_sample: bool,
    first: LinearLayer,
    second: LinearLayer,
    drop_path: f64,
}

/// Key-value cache of a block, for scale-by-scale sampling.
#[derive(Clone, Debug, Default)]
struct BlockCache {
    /// Queries, keys and values of the scales so far, `[B, L, 3C]`.
    tokens: Option<Tensor>,
    /// Keys and values of the text, `[B, T, 2C]`.
    text: Option<Tensor>,
}

/// Key-value cache of a network, for scale-by-scale sampling.
#[derive(Clone, Debug)]
pub struct Cache {
    blocks: Vec<BlockCache>,
    /// Number of scales so far.
    scales: usize,
}

/// Drop-path factors of one forward pass: one `[B]` tensor per block and branch, or `None` where nothing
/// is dropped.
#[derive(Clone, Debug, Default)]
pub struct DropPath(Vec<[Option<Tensor>; 2]>);

impl DropPath {
    /// The factors in order, so that they can be moved to a device.
    pub fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.0.iter_mut().flatten().flatten()
    }
}

/// Random choices of one forward pass: none in evaluation.
#[derive(Clone, Copy, Debug)]
pub enum Mode<'a> {
    /// No drop-path.
    Evaluate,
    /// Drop-path with these factors.
    Train(&'a DropPath),
}

/// A network without its head.
#[derive(Clone, Debug)]
pub(crate) struct Backbone {
    encoder_proj: LinearLayer,
    embed: PatchEmbed,
    modulation: Option<(ParameterId, LinearLayer, LinearLayer)>,
    blocks: Vec<Arc<Block>>,
    repeated: Vec<ParameterId>,
    layout: Layout,
}

impl Backbone {
    /// Declares and initializes the parameters under their upstream names.
    ///
    /// # Errors
    /// If the sizes are inconsistent.
    pub(crate) fn new(init: &mut Initializer<'_>, config: &BackboneConfig) -> Result<Self> {
        let BackboneConfig { width, heads, depth, .. } = *config;
        if heads == 0 || width % heads != 0 || (width / heads) % 4 != 0 {
            return Err(Error::argument(format!(
                "a width of {width} does not split into {heads} heads of 4n channels"
            )));
        }
        let scales = config.patch_nums.len();
        let first = config.patch_nums.first().map_or(0, |side| side * side);
        let start = init.positions("pos_start", &[1, first, width])?;
        let word_embed = (
            init.weight("word_embed.weight", &[width, config.code_channels], 1.0)?,
            init.zeros("word_embed.bias", &[width])?,
        );
        let position = match config.rope {
            Some(_) => None,
            None => Some(init.positions("pos_1LC", &[1, config.tokens(), width])?),
        };
        let has_level = config.level_embedding || config.shared_aln;
        let level =
            if has_level { Some(init.weight("lvl_embed.weight", &[scales, width], 1.0)?) } else { None };
        let rotary = config
            .rope
            .map(|rope| RotaryTable::new(&config.patch_nums, width / heads, rope.theta, rope.norm));
        let modulation = match level {
            Some(level) if config.shared_aln => Some((
                level,
                LinearLayer::new(init, "lvl_embed_proj", width, 2 * width)?,
                LinearLayer::new(init, "lvl_embed_adaln.1", 6 * width, width)?,
            )),
            _ => None,
        };
        let layout = Layout::whole(&config.patch_nums, rotary, width / heads);
        let blocks =
            (0..depth).map(|at| Block::new(init, config, at).map(Arc::new)).collect::<Result<_>>()?;
        let encoder_proj = LinearLayer::new(init, "encoder_proj", width, config.text_channels)?;
        // The level embeddings are added to the tokens and also condition the modulation.
        let repeated = level.filter(|_| config.level_embedding && config.shared_aln).into_iter().collect();
        let level = if config.level_embedding { level } else { None };
        let (weight, bias) = word_embed;
        let embed = PatchEmbedParameters { weight, bias, start, level, position };
        let embed = PatchEmbed::new(embed, Arc::clone(&layout.levels));
        Ok(Self { encoder_proj, embed, modulation, blocks, repeated, layout })
    }

    /// The layout of all tokens of the pyramid, from which other layouts are derived.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The same network on a subset of the pyramid's tokens.
    #[must_use]
    pub(crate) fn with_layout(&self, layout: Layout) -> Self {
        let embed = self.embed.with_tokens(Arc::clone(&layout.levels), &layout.indices);
        Self { embed, layout, ..self.clone() }
    }

    /// An empty cache.
    pub(crate) fn cache(&self) -> Cache {
        Cache { blocks: vec![BlockCache::default(); self.blocks.len()], scales: 0 }
    }

    /// The parameters that a forward pass reads more than once.
    pub(crate) fn repeated(&self) -> &[ParameterId] {
        &self.repeated
    }

    /// Samples the drop-path factors of a batch: 0 with the block's rate as probability, otherwise `1 / (1 − rate)`
    /// (B11). `stream` identifies the step and the forward pass within it. Factors are sampled on the host, in f64;
    /// devices use f32.
    ///
    /// # Errors
    /// Never: there is one factor per sample.
    pub(crate) fn draw(&self, seed: u64, stream: u64, batch: usize) -> Result<DropPath> {
        let branch = |rate: f64, branch: u64| -> Result<Option<Tensor>> {
            if rate <= 0.0 {
                return Ok(None);
            }
            let mut random = Random::new(seed, Purpose::DropPath, stream << 16 | branch);
            let keep = |_| if random.uniform() < rate { 0.0 } else { 1.0 / (1.0 - rate) };
            Ok(Some(Tensor::new(&[batch], (0..batch).map(keep).collect::<Vec<f64>>())?))
        };
        let block = |(at, block): (usize, &Arc<Block>)| {
            Ok([branch(block.drop_path, 2 * at as u64)?, branch(block.drop_path, 2 * at as u64 + 1)?])
        };
        Ok(DropPath(self.blocks.iter().enumerate().map(block).collect::<Result<_>>()?))
    }

    /// Maps the pyramid `[B, L − L₀, Cvae]` and the text to the last block's residual stream `[B, L, C]`.
    ///
    /// # Errors
    /// If the sizes do not match.
    pub(crate) fn forward(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        mode: Mode<'_>,
    ) -> Result<Var> {
        let (mut x, rest) = self.start(tape, input, text)?;
        for (at, block) in self.blocks.iter().enumerate() {
            let keep = match mode {
                Mode::Evaluate => [None, None],
                Mode::Train(DropPath(keep)) => keep.get(at).cloned().unwrap_or_default(),
            };
            let inputs = [vec![x], rest.clone()].concat();
            let (block, layout, mask) = (Arc::clone(block), self.layout.clone(), text.mask.clone());
            x = tape.segment(&inputs, move |tape, inputs| {
                block.forward(tape, inputs, &layout, &mask, &keep, None)
            })?;
        }
        Ok(x)
    }

    /// Computes the tokens of the next scale while sampling: `input` `[B, pn², Cvae]` (first scale: `[B, 0, Cvae]`) to
    /// `[B, pn², C]`. Equal to a full forward pass at these tokens, since coarser scales do not attend to finer ones.
    ///
    /// # Errors
    /// If the pyramid already has all its scales, or the sizes do not match.
    pub(crate) fn forward_scale(
        &self,
        tape: &mut Tape<'_>,
        input: &Tensor,
        text: &TextStates,
        cache: &mut Cache,
    ) -> Result<Var> {
        let part = self.with_layout(self.layout.scale(cache.scales)?);
        let (mut x, rest) = part.start(tape, input, text)?;
        for (block, cache) in part.blocks.iter().zip(&mut cache.blocks) {
            let inputs = [vec![x], rest.clone()].concat();
            x = block.forward(tape, &inputs, &part.layout, &text.mask, &[None, None], Some(cache))?;
        }
        cache.scales += 1;
        Ok(x)
    }

    /// The first block's input (the residual stream), and the other inputs shared by all blocks.
    fn start(&self, tape: &mut Tape<'_>, input: &Tensor, text: &TextStates) -> Result<(Var, Vec<Var>)> {
        let dtype = tape.dtype();
        let pooled = tape.constant(text.pooled.cast(dtype)?);
        let sos = self.encoder_proj.forward(tape, &pooled)?;
        let input = tape.constant(input.cast(dtype)?);
        let x = patch_embed(tape, &sos, &input, &self.embed)?;
        // Every block takes the stream, the text and, with a modulation, its condition.
        let mut rest = vec![tape.constant(text.states.cast(dtype)?)];
        if let Some((level, first, second)) = &self.modulation {
            let pairs = level_pairs(tape, *level, self.embed.levels(), x.value().dim(0))?;
            let hidden = first.forward(tape, &pairs)?;
            let hidden = activate(tape, &hidden, Activation::Silu)?;
            rest.push(second.forward(tape, &hidden)?);
        }
        Ok((x, rest))
    }
}

impl CrossAttention {
    fn forward(
        &self,
        tape: &mut Tape<'_>,
        x: &Var,
        states: &Var,
        mask: &Tensor,
        cache: Option<&mut Option<Tensor>>,
    ) -> Result<Var> {
        let q = self.query.forward(tape, x)?;
        let kv = match cache {
            Some(Some(kept)) => tape.constant(kept.clone()),
            Some(empty) => {
                let kv = self.key_value.forward(tape, states)?;
                *empty = Some(kv.value().clone());
                kv
            }
            None => self.key_value.forward(tape, states)?,
        };
        let attended = cross_attention(tape, &q, &kv, mask, &self.settings)?;
        self.projection.forward(tape, &attended)
    }
}

impl Block {
    /// `inputs`: the stream `[B, L, C]`, the text states and, with a modulation, its condition. With a cache, the
    /// tokens follow those in the cache.
    fn forward(
        &self,
        tape: &mut Tape<'_>,
        inputs: &[Var],
        layout: &Layout,
        mask: &Tensor,
        keep: &[Option<Tensor>; 2],
        mut cache: Option<&mut BlockCache>,
    ) -> Result<Var> {
        let (x, states, levels) = (&inputs[0], &inputs[1], &layout.levels);
        let parts = match (inputs.get(2), self.modulation) {
            (Some(condition), Some(table)) => Some(modulation::parts(tape, condition, table)?),
            _ => None,
        };
        let norm = |tape: &mut Tape<'_>, x: &Var, [scale, shift]: [usize; 2]| {
            layer_norm(
                tape,
                x,
                EPSILON,
                parts.as_ref().map(|parts| ScaleShift { parts, scale, shift, levels }),
            )
        };
        let gated = |tape: &mut Tape<'_>, branch: Var, part: usize| match &parts {
            Some(parts) => gate(tape, &branch, parts, part, levels),
            None => Ok(branch),
        };
        let normed = norm(tape, x, [2, 4])?;
        let qkv = self.query_key_value.forward(tape, &normed)?;
        drop(normed);
        let attention =
            AttentionSettings { heads: self.heads, scale: self.scale, rotary: layout.rotary.clone() };
        let attended = match &mut cache {
            Some(cache) => cached_attention(tape, &qkv, &attention, &mut cache.tokens)?,
            None => self_attention(tape, &qkv, &attention, &layout.visible)?,
        };
        drop(qkv);
        let branch = self.projection.forward(tape, &attended)?;
        let branch = gated(tape, branch, 0)?;
        let mut x = residual(tape, x, &branch, keep[0].clone())?;
        if let Some(cross) = &self.cross {
            let normed = layer_norm(tape, &x, EPSILON, None)?;
            let text = cache.map(|cache| &mut cache.text);
            x = if self.cross_from_first_sample {
                let (states, mask) = (first_sample(tape, states)?, first_row(mask)?);
                let normed = first_sample(tape, &normed)?;
                let branch = cross.forward(tape, &normed, &states, &mask, text)?;
                add_to_all(tape, &x, &branch)?
            } else {
                let branch = cross.forward(tape, &normed, states, mask, text)?;
                residual(tape, &x, &branch, None)?
            };
        }
        let normed = norm(tape, &x, [3, 5])?;
        let hidden = self.first.forward(tape, &normed)?;
        drop(normed);
        let hidden = activate(tape, &hidden, Activation::GeluTanh)?;
        let branch = self.second.forward(tape, &hidden)?;
        let branch = gated(tape, branch, 1)?;
        residual(tape, &x, &branch, keep[1].clone())
    }

    fn new(init: &mut Initializer<'_>, config: &BackboneConfig, at: usize) -> Result<Self> {
        let BackboneConfig { width, heads, depth, .. } = *config;
        let name = format!("blocks.{at}");
        let modulation = match config.shared_aln {
            true => Some(init.modulation(&format!("{name}.ada_gss"), width)?),
            false => None,
        };
        let scale = |init: &mut Initializer<'_>, name: &str| match config.attention_l2_norm {
            true => init.constant(&format!("{name}.scale_mul_1H11"), &[1, heads, 1, 1], 4f64.ln()).map(Some),
            false => Ok(None),
        };
        // The upstream code divides these two by √(2·depth), but not the cross-attention's output projection (B10).
        let quiet = 1.0 / (2.0 * depth as f64).sqrt();
        let projection =
            |init: &mut Initializer<'_>, name: &str, inputs: usize, factor: f64| -> Result<LinearLayer> {
                let weight = init.weight(&format!("{name}.weight"), &[width, inputs], factor)?;
                let bias = init.zeros(&format!("{name}.bias"), &[width])?;
                Ok(LinearLayer { weight, biases: vec![Bias { parameter: bias, column: 0 }] })
            };
        let attn = format!("{name}.attn");
        let own_scale = scale(init, &attn)?;
        let q_bias = init.zeros(&format!("{attn}.q_bias"), &[width])?;
        let v_bias = init.zeros(&format!("{attn}.v_bias"), &[width])?;
        let weight = init.weight(&format!("{attn}.mat_qkv.weight"), &[3 * width, width], 1.0)?;
        let query_key_value = LinearLayer {
            weight,
            biases: vec![
                Bias { parameter: q_bias, column: 0 },
                Bias { parameter: v_bias, column: 2 * width },
            ],
        };
        let own_projection = projection(init, &format!("{attn}.proj"), width, quiet)?;
        let cross = if config.cross_attention {
            let cross = format!("{name}.cross_attn");
            let scale = scale(init, &cross)?;
            let q_bias = init.zeros(&format!("{cross}.q_bias"), &[width])?;
            let v_bias = init.zeros(&format!("{cross}.v_bias"), &[width])?;
            let kv =
                init.weight(&format!("{cross}.mat_kv.weight"), &[2 * width, config.text_channels], 1.0)?;
            let query = init.weight(&format!("{cross}.mat_q.weight"), &[width, width], 1.0)?;
            Some(CrossAttention {
                query: LinearLayer { weight: query, biases: vec![Bias { parameter: q_bias, column: 0 }] },
                key_value: LinearLayer {
                    weight: kv,
                    biases: vec![Bias { parameter: v_bias, column: width }],
                },
                projection: projection(init, &format!("{cross}.proj"), width, 1.0)?,
                settings: AttentionSettings { heads, scale, rotary: None },
            })
        } else {
            None
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive width")]
        let hidden = (width as f64 * config.mlp_ratio).round() as usize;
        let first = LinearLayer::new(init, &format!("{name}.ffn.fc1"), hidden, width)?;
        let second = projection(init, &format!("{name}.ffn.fc2"), hidden, quiet)?;
        let share = if depth > 1 { at as f64 / (depth - 1) as f64 } else { 0.0 };
        Ok(Self {
            modulation,
            query_key_value,
            projection: own_projection,
            heads,
            scale: own_scale,
            cross,
            cross_from_first_sample: config.cross_from_first_sample,
            first,
            second,
            drop_path: config.drop_path * share,
        })
    }
}

fn first_row(mask: &Tensor) -> Result<Tensor> {
    let tokens = mask.dim(1);
    match mask.device() {
        None => Tensor::new(&[1, tokens], mask.as_slice::<u32>()?[..tokens].to_vec()),
        Some(device) => {
            Tensor::written::<u32>(device, &[1, tokens], |row| row.copy_range(0, mask.buffer()?, 0..tokens))
        }
    }
}

/// Builds a network's parameters: `build` declares them through an [`Initializer`]. Without a seed, random weights stay
/// 0.
///
/// # Errors
/// If `build` fails.
pub(crate) fn declare<N>(
    config: &BackboneConfig,
    dtype: DType,
    seed: Option<u64>,
    build: impl FnOnce(&mut Initializer<'_>) -> Result<N>,
) -> Result<(N, Parameters)> {
    let mut parameters = Parameters::default();
    let mut initializer = Initializer::new(&mut parameters, config, dtype, seed);
    let network = build(&mut initializer)?;
    initializer.finish()?;
    Ok((network, parameters))
}
