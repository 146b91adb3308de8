//! One transformer block and the backbone that both networks share: the start of the sequence and the blocks
//! (released: `AttnBlock`, `VAR.forward`, `VARRater.forward`).

use std::sync::Arc;

use crate::{
    encode::TextStates,
    engine::{
        DType, ParameterId, Parameters, Purpose, Random, Tape, Tensor, Var,
        ops::{
            activation::{Activation, activate},
            attention::{AttentionSettings, RotaryTable, cross_attention, self_attention, visible_keys},
            layer_norm::layer_norm,
            linear::{Bias, linear},
            modulation::{Part, level_pairs, modulate},
            patch_embed::{PatchEmbed, patch_embed},
            residual::{add_to_all, first_sample, residual},
        },
    },
    error::{Error, Result},
    models::{BackboneConfig, init::Initialiser},
};

/// Released ε of every layer norm.
pub const EPSILON: f64 = 1e-6;

/// A linear layer's parameters.
#[derive(Clone, Debug)]
pub struct LinearLayer {
    weight: ParameterId,
    biases: Vec<Bias>,
}

impl LinearLayer {
    /// Declares `name.weight` `[O, I]` and `name.bias` `[O]`.
    ///
    /// # Errors
    /// If a name is taken.
    pub fn new(init: &mut Initialiser<'_>, name: &str, outputs: usize, inputs: usize) -> Result<Self> {
        let weight = init.weight(&format!("{name}.weight"), &[outputs, inputs], 1.0)?;
        let bias = init.zeros(&format!("{name}.bias"), &[outputs])?;
        Ok(Self { weight, biases: vec![Bias { parameter: bias, column: 0 }] })
    }

    /// Applies the layer.
    ///
    /// # Errors
    /// If the sizes do not fit.
    pub fn forward(&self, tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
        linear(tape, x, self.weight, &self.biases)
    }

    /// The weight.
    pub fn weight(&self) -> ParameterId {
        self.weight
    }
}

#[derive(Clone, Debug)]
struct CrossAttention {
    query: LinearLayer,
    key_value: LinearLayer,
    projection: LinearLayer,
    settings: AttentionSettings,
}

#[derive(Clone, Debug)]
struct Block {
    modulation: Option<ParameterId>,
    query_key_value: LinearLayer,
    projection: LinearLayer,
    attention: AttentionSettings,
    cross: Option<CrossAttention>,
    first: LinearLayer,
    second: LinearLayer,
    drop_path: f64,
}

/// The batch's random choices in one forward pass: none for evaluation.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// No drop-path.
    Evaluate,
    /// Drop-path masks drawn from this seed and stream (a step, and which forward pass of it).
    Train {
        /// The run's seed.
        seed: u64,
        /// Different for every forward pass of a run.
        stream: u64,
    },
}

/// Everything of a network below its head.
#[derive(Clone, Debug)]
pub struct Backbone {
    config: BackboneConfig,
    encoder_proj: LinearLayer,
    word_embed: LinearLayer,
    embed: PatchEmbed,
    modulation: Option<(ParameterId, LinearLayer, LinearLayer)>,
    blocks: Vec<Block>,
    visible: Arc<Vec<usize>>,
}

impl Backbone {
    /// Declares and initialises the parameters under their released names.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn new(init: &mut Initialiser<'_>, config: &BackboneConfig) -> Result<Self> {
        let BackboneConfig { width, heads, depth, .. } = *config;
        if heads == 0 || width % heads != 0 || (width / heads) % 4 != 0 {
            return Err(Error::invalid(format!(
                "a width of {width} does not split into {heads} heads of 4n channels"
            )));
        }
        let scales = config.patch_nums.len();
        let first = config.patch_nums.first().map_or(0, |side| side * side);
        let start = init.positions("pos_start", &[1, first, width])?;
        let word_embed = LinearLayer::new(init, "word_embed", width, config.code_channels)?;
        let position = match config.rope {
            Some(_) => None,
            None => Some(init.positions("pos_1LC", &[1, config.tokens(), width])?),
        };
        let has_level = config.level_embedding || config.shared_aln;
        let level =
            if has_level { Some(init.weight("lvl_embed.weight", &[scales, width], 1.0)?) } else { None };
        let rotary = config
            .rope
            .map(|rope| Arc::new(RotaryTable::new(&config.patch_nums, width / heads, rope.theta, rope.norm)));
        let modulation = match level {
            Some(level) if config.shared_aln => Some((
                level,
                LinearLayer::new(init, "lvl_embed_proj", width, 2 * width)?,
                LinearLayer::new(init, "lvl_embed_adaln.1", 6 * width, width)?,
            )),
            _ => None,
        };
        let blocks =
            (0..depth).map(|at| Block::new(init, config, at, rotary.as_ref())).collect::<Result<_>>()?;
        let encoder_proj = LinearLayer::new(init, "encoder_proj", width, config.text_channels)?;
        let sides = config.patch_nums.iter().enumerate();
        #[expect(clippy::cast_possible_truncation, reason = "a pyramid has a handful of scales")]
        let levels = sides.flat_map(|(scale, side)| std::iter::repeat_n(scale as u32, side * side)).collect();
        Ok(Self {
            config: config.clone(),
            encoder_proj,
            word_embed,
            embed: PatchEmbed {
                start,
                level: if config.level_embedding { level } else { None },
                position,
                levels: Arc::new(levels),
                first,
            },
            modulation,
            blocks,
            visible: Arc::new(visible_keys(&config.patch_nums)),
        })
    }

    /// The pyramid `[B, L − L₀, Cvae]` and the text to the last block's residual stream `[B, L, C]`.
    ///
    /// # Errors
    /// If the sizes do not fit.
    pub fn forward(&self, tape: &mut Tape<'_>, input: &Tensor, text: &TextStates, mode: Mode) -> Result<Var> {
        let dtype = tape.dtype();
        let pooled = tape.constant(text.pooled.cast(dtype));
        let sos = self.encoder_proj.forward(tape, &pooled)?;
        let input = tape.constant(input.cast(dtype));
        let words = self.word_embed.forward(tape, &input)?;
        let mut x = patch_embed(tape, &sos, &words, &self.embed)?;
        drop((sos, words));
        let condition = match &self.modulation {
            None => None,
            Some((level, first, second)) => {
                let pairs = level_pairs(tape, *level)?;
                let hidden = first.forward(tape, &pairs)?;
                let hidden = activate(tape, &hidden, Activation::Silu)?;
                Some(second.forward(tape, &hidden)?)
            }
        };
        let states = tape.constant(text.states.cast(dtype));
        for (at, block) in self.blocks.iter().enumerate() {
            x = self.block(tape, block, at, x, condition.as_ref(), (&states, &text.mask), mode)?;
        }
        Ok(x)
    }

    #[expect(clippy::too_many_arguments, reason = "the released block takes as many")]
    fn block(
        &self,
        tape: &mut Tape<'_>,
        block: &Block,
        at: usize,
        x: Var,
        condition: Option<&Var>,
        text: (&Var, &Tensor),
        mode: Mode,
    ) -> Result<Var> {
        let batch = x.value().dim(0);
        let levels = &self.embed.levels;
        let condition = condition.zip(block.modulation);
        let change = |tape: &mut Tape<'_>, x: Var, part: Part| match condition {
            Some((condition, table)) => modulate(tape, &x, condition, table, part, levels),
            None => Ok(x),
        };
        let normed = layer_norm(tape, &x, EPSILON)?;
        let normed = change(tape, normed, Part::ScaleShift(2, 4))?;
        let qkv = block.query_key_value.forward(tape, &normed)?;
        drop(normed);
        let attended = self_attention(tape, &qkv, &block.attention, &self.visible)?;
        drop(qkv);
        let branch = block.projection.forward(tape, &attended)?;
        let branch = change(tape, branch, Part::Gate(0))?;
        let mut x = residual(tape, &x, &branch, keep(block.drop_path, batch, 2 * at as u64, mode))?;
        if let Some(cross) = &block.cross {
            let normed = layer_norm(tape, &x, EPSILON)?;
            x = if self.config.cross_from_first_sample {
                let (states, mask) = (first_sample(tape, text.0)?, first_row(text.1)?);
                let normed = first_sample(tape, &normed)?;
                let branch = cross.forward(tape, &normed, &states, &mask)?;
                add_to_all(tape, &x, &branch)?
            } else {
                let branch = cross.forward(tape, &normed, text.0, text.1)?;
                residual(tape, &x, &branch, None)?
            };
        }
        let normed = layer_norm(tape, &x, EPSILON)?;
        let normed = change(tape, normed, Part::ScaleShift(3, 5))?;
        let hidden = block.first.forward(tape, &normed)?;
        drop(normed);
        let hidden = activate(tape, &hidden, Activation::GeluTanh)?;
        let branch = block.second.forward(tape, &hidden)?;
        let branch = change(tape, branch, Part::Gate(1))?;
        residual(tape, &x, &branch, keep(block.drop_path, batch, 2 * at as u64 + 1, mode))
    }
}

impl CrossAttention {
    fn forward(&self, tape: &mut Tape<'_>, x: &Var, states: &Var, mask: &Tensor) -> Result<Var> {
        let q = self.query.forward(tape, x)?;
        let kv = self.key_value.forward(tape, states)?;
        let attended = cross_attention(tape, &q, &kv, mask, &self.settings)?;
        self.projection.forward(tape, &attended)
    }
}

impl Block {
    fn new(
        init: &mut Initialiser<'_>,
        config: &BackboneConfig,
        at: usize,
        rotary: Option<&Arc<RotaryTable>>,
    ) -> Result<Self> {
        let BackboneConfig { width, heads, depth, .. } = *config;
        let name = format!("blocks.{at}");
        let modulation = match config.shared_aln {
            true => Some(init.modulation(&format!("{name}.ada_gss"), width)?),
            false => None,
        };
        let scale = |init: &mut Initialiser<'_>, name: &str| match config.attention_l2_norm {
            true => init.constant(&format!("{name}.scale_mul_1H11"), &[1, heads, 1, 1], 4f64.ln()).map(Some),
            false => Ok(None),
        };
        // The released code divides these two by √(2·depth), and leaves the cross-attention's projection alone (B10).
        let quiet = 1.0 / (2.0 * depth as f64).sqrt();
        let projection =
            |init: &mut Initialiser<'_>, name: &str, inputs: usize, factor: f64| -> Result<LinearLayer> {
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
            attention: AttentionSettings { heads, scale: own_scale, rotary: rotary.cloned() },
            cross,
            first,
            second,
            drop_path: config.drop_path * share,
        })
    }
}

/// The drop-path factor of each sample: 0 with the rate's probability, else what keeps the mean (B11).
fn keep(rate: f64, batch: usize, branch: u64, mode: Mode) -> Option<Vec<f64>> {
    let Mode::Train { seed, stream } = mode else { return None };
    if rate <= 0.0 {
        return None;
    }
    let mut random = Random::new(seed, Purpose::DropPath, stream << 16 | branch);
    Some((0..batch).map(|_| if random.uniform() < rate { 0.0 } else { 1.0 / (1.0 - rate) }).collect())
}

fn first_row(mask: &Tensor) -> Result<Tensor> {
    Tensor::new(&[1, mask.dim(1)], mask.as_slice::<u32>()?[..mask.dim(1)].to_vec())
}

/// Builds a network's parameters: `build` declares them through an [`Initialiser`].
///
/// # Errors
/// If `build` fails.
pub(crate) fn declare<N>(
    config: &BackboneConfig,
    dtype: DType,
    seed: u64,
    build: impl FnOnce(&mut Initialiser<'_>) -> Result<N>,
) -> Result<(N, Parameters)> {
    let mut parameters = Parameters::default();
    let network = build(&mut Initialiser::new(&mut parameters, config, dtype, seed))?;
    Ok((network, parameters))
}
