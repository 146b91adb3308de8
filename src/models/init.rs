//! Weight initialization (upstream.md, B10): normal with the upstream deviation, zero biases, two scaled-down
//! projections.

use rayon::prelude::*;

use crate::{
    engine::{DType, ParameterId, Parameters, Purpose, Random, Tensor},
    error::Result,
    models::BackboneConfig,
};

/// Declares parameters in order and initializes them together at the end, each from the random stream of its
/// declaration index.
pub(crate) struct Initializer<'a> {
    parameters: &'a mut Parameters,
    deviation: f64,
    position_deviation: f64,
    gate: f64,
    scale_shift: f64,
    head: f64,
    dtype: DType,
    /// `None`: random weights stay 0, to be loaded from a checkpoint.
    seed: Option<u64>,
    random_weights: Vec<RandomWeight>,
}

/// A randomly initialized parameter: its first `until` values have one standard deviation, the others another.
struct RandomWeight {
    id: ParameterId,
    stream: u64,
    first: f64,
    until: usize,
    rest: f64,
}

impl<'a> Initializer<'a> {
    /// An initializer for the network of `config`.
    pub(crate) fn new(
        parameters: &'a mut Parameters,
        config: &BackboneConfig,
        dtype: DType,
        seed: Option<u64>,
    ) -> Self {
        let automatic = (1.0 / (3.0 * config.width as f64)).sqrt();
        let start = config.initialization;
        Self {
            parameters,
            deviation: if start.std < 0.0 { automatic } else { start.std },
            position_deviation: automatic,
            gate: start.aln_gamma,
            scale_shift: start.aln,
            head: start.head,
            dtype,
            seed,
            random_weights: Vec::new(),
        }
    }

    fn normal(
        &mut self,
        name: &str,
        shape: &[usize],
        first: f64,
        until: usize,
        rest: f64,
    ) -> Result<ParameterId> {
        let stream = self.parameters.len() as u64;
        let id = self.parameters.push(name, Tensor::zeros(shape, self.dtype))?;
        self.random_weights.push(RandomWeight { id, stream, first, until, rest });
        Ok(id)
    }

    /// Initializes all weights, in parallel.
    ///
    /// # Errors
    /// Never: the shapes are those declared.
    pub(crate) fn finish(self) -> Result<()> {
        let Some(seed) = self.seed else { return Ok(()) };
        let (parameters, dtype) = (self.parameters, self.dtype);
        let draw = |weight: &RandomWeight| {
            let shape = parameters.value(weight.id).shape();
            let mut random = Random::new(seed, Purpose::Initialize, weight.stream);
            let deviation = |at: usize| if at < weight.until { weight.first } else { weight.rest };
            // PyTorch truncates at ±2. That is so many standard deviations away that it never happens; it is kept for
            // equivalence.
            let values: Vec<f64> = (0..shape.iter().product())
                .map(|at| (random.normal() * deviation(at)).clamp(-2.0, 2.0))
                .collect();
            Tensor::new(shape, values)?.cast(dtype)
        };
        let values = self.random_weights.par_iter().map(draw).collect::<Result<Vec<_>>>()?;
        for (weight, value) in self.random_weights.iter().zip(values) {
            *parameters.value_mut(weight.id).0 = value;
        }
        Ok(())
    }

    /// Declares a weight or an embedding, multiplied by `factor` after initialization.
    ///
    /// # Errors
    /// If the name is already declared.
    pub(crate) fn weight(&mut self, name: &str, shape: &[usize], factor: f64) -> Result<ParameterId> {
        let deviation = self.deviation * factor;
        self.normal(name, shape, deviation, usize::MAX, deviation)
    }

    /// Declares the proxy's head: a weight multiplied by the configured factor (`hd`).
    ///
    /// # Errors
    /// If the name is already declared.
    pub(crate) fn head(&mut self, name: &str, shape: &[usize]) -> Result<ParameterId> {
        let factor = self.head;
        self.weight(name, shape, factor)
    }

    /// Declares a position table: the automatic deviation whatever `ini` says, as in the upstream constructor.
    ///
    /// # Errors
    /// If the name is already declared.
    pub(crate) fn positions(&mut self, name: &str, shape: &[usize]) -> Result<ParameterId> {
        let deviation = self.position_deviation;
        self.normal(name, shape, deviation, usize::MAX, deviation)
    }

    /// Declares a block's modulation table `[1, 1, 6, C]`: gates scaled by `alng`, the rest by `aln`.
    ///
    /// # Errors
    /// If the name is already declared.
    pub(crate) fn modulation(&mut self, name: &str, width: usize) -> Result<ParameterId> {
        let (gate, rest) = (self.gate, self.scale_shift);
        let base = 1.0 / (width as f64).sqrt();
        self.normal(name, &[1, 1, 6, width], base * gate, 2 * width, base * rest)
    }

    /// Declares a tensor filled with one value.
    ///
    /// # Errors
    /// If the name is already declared.
    pub(crate) fn constant(&mut self, name: &str, shape: &[usize], value: f64) -> Result<ParameterId> {
        let values = vec![value; shape.iter().product()];
        self.parameters.push(name, Tensor::new(shape, values)?.cast(self.dtype)?)
    }

    /// Declares a tensor of zeros.
    ///
    /// # Errors
    /// If the name is already declared.
    pub(crate) fn zeros(&mut self, name: &str, shape: &[usize]) -> Result<ParameterId> {
        self.constant(name, shape, 0.0)
    }
}
/// Zeroes the cross-attention's output projections, for `from_scratch: false`.
///
/// # Errors
/// If the weights are not f32 on the host.
pub(crate) fn zero_cross_projections(parameters: &mut Parameters) -> Result<()> {
    let ids: Vec<_> = parameters
        .iter()
        .filter(|(_, name, _)| name.contains("cross_attn.proj."))
        .map(|(id, _, _)| id)
        .collect();
    for id in ids {
        parameters.value_mut(id).0.as_mut_slice::<f32>()?.fill(0.0);
    }
    Ok(())
}
