//! How weights start (upstream.md, B10): normal with the released deviation, biases 0, two projections divided.

use crate::{
    engine::{DType, ParameterId, Parameters, Purpose, Random, Tensor},
    error::Result,
    models::BackboneConfig,
};

/// Declares parameters in order and draws their first values, each from a stream of its own name's place.
pub struct Initialiser<'a> {
    parameters: &'a mut Parameters,
    deviation: f64,
    position_deviation: f64,
    gate: f64,
    scale_shift: f64,
    head: f64,
    dtype: DType,
    seed: u64,
}

impl<'a> Initialiser<'a> {
    /// An initialiser for the network of `config`.
    pub fn new(parameters: &'a mut Parameters, config: &BackboneConfig, dtype: DType, seed: u64) -> Self {
        let automatic = (1.0 / (3.0 * config.width as f64)).sqrt();
        let start = config.initialisation;
        Self {
            parameters,
            deviation: if start.std < 0.0 { automatic } else { start.std },
            position_deviation: automatic,
            gate: start.aln_gamma,
            scale_shift: start.aln,
            head: start.head,
            dtype,
            seed,
        }
    }

    fn normal(
        &mut self,
        name: &str,
        shape: &[usize],
        deviation: impl Fn(usize) -> f64,
    ) -> Result<ParameterId> {
        let mut random = Random::new(self.seed, Purpose::Initialise, self.parameters.len() as u64);
        // PyTorch's truncation at ±2 lies so many deviations out that it never happens; it is kept all the same.
        let values: Vec<f64> = (0..shape.iter().product())
            .map(|at| (random.normal() * deviation(at)).clamp(-2.0, 2.0))
            .collect();
        self.parameters.push(name, Tensor::new(shape, values)?.cast(self.dtype)?)
    }

    /// A weight or an embedding, multiplied by `factor` after drawing.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn weight(&mut self, name: &str, shape: &[usize], factor: f64) -> Result<ParameterId> {
        let deviation = self.deviation * factor;
        self.normal(name, shape, |_| deviation)
    }

    /// The proxy's head: a weight multiplied by the configured factor (`hd`).
    ///
    /// # Errors
    /// If the name is taken.
    pub fn head(&mut self, name: &str, shape: &[usize]) -> Result<ParameterId> {
        let factor = self.head;
        self.weight(name, shape, factor)
    }

    /// A table of positions: the automatic deviation whatever `ini` says, as the released constructor does.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn positions(&mut self, name: &str, shape: &[usize]) -> Result<ParameterId> {
        let deviation = self.position_deviation;
        self.normal(name, shape, |_| deviation)
    }

    /// A block's modulation table `[1, 1, 6, C]`: gates scaled by `alng`, the rest by `aln`.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn modulation(&mut self, name: &str, width: usize) -> Result<ParameterId> {
        let (gate, rest) = (self.gate, self.scale_shift);
        let base = 1.0 / (width as f64).sqrt();
        self.normal(name, &[1, 1, 6, width], |at| base * if at < 2 * width { gate } else { rest })
    }

    /// A tensor of one value.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn constant(&mut self, name: &str, shape: &[usize], value: f64) -> Result<ParameterId> {
        let values = vec![value; shape.iter().product()];
        self.parameters.push(name, Tensor::new(shape, values)?.cast(self.dtype)?)
    }

    /// A tensor of zeros.
    ///
    /// # Errors
    /// If the name is taken.
    pub fn zeros(&mut self, name: &str, shape: &[usize]) -> Result<ParameterId> {
        self.constant(name, shape, 0.0)
    }
}
/// `from_scratch: false` starts the cross-attention's projections at zero.
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
