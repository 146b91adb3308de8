//! The multi-scale residual quantizer: a feature map becomes token maps of increasing side, each of which quantizes the
//! residual of the coarser ones (`VectorQuantizer2` in the upstream `models/quant.py`).
//!
//! At every scale the residual is averaged down to the scale's side, each cell takes its nearest code, the
//! codes' vectors are resized bicubically to the full side, go through the scale's convolution φ if there is one,
//! and are subtracted. None of this is on the tape, because codes have no gradient; the CPU reference is
//! [`PyramidQuantizer`] itself.

#[doc(hidden)]
pub mod cpu;
#[doc(hidden)]
pub mod cuda;
mod layout;
mod reader;

pub use reader::CodeReader;

use std::collections::BTreeMap;

use rayon::prelude::*;

use crate::{
    engine::{
        DType, Tensor,
        ops::pyramid::cpu::{
            nearest::NearestCode,
            phi::phi_index,
            resample::{Area, Bicubic, ResidualConvolution},
        },
    },
    error::{Error, Result},
};

const OP: &str = "pyramid quantizer";

/// Quantizes feature maps `[B, Cvae, H, H]` into pyramids of codes `[B, L]`, `L = Σ pn²`, and back.
#[derive(Clone, Debug)]
pub struct PyramidQuantizer {
    patch_nums: Vec<usize>,
    tokens: usize,
    codebook: Tensor,
    nearest: NearestCode,
    convolutions: Vec<ResidualConvolution>,
    phi_index: Vec<usize>,
    scales: Vec<Scale>,
}

/// Precomputed tables of one scale.
#[derive(Clone, Debug)]
struct Scale {
    side: usize,
    /// From the full side to this scale's.
    down: Area,
    /// From this scale's side to the full one; `None` for the last scale.
    up: Option<Bicubic>,
}

/// The content of a scale's rows in a network's input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// The reconstruction from the coarser scales: for a network that predicts the scale's own codes.
    #[default]
    Before,
    /// The reconstruction up to the scale itself: for a network that judges the image. With
    /// [`Before`](Self::Before) the finest scale would not be part of its input (upstream.md, A12).
    Through,
}

/// Scratch space of one sample, reused by a thread from sample to sample.
#[derive(Debug, Default)]
struct Workspace {
    rows: Vec<f32>,
    padded: Vec<f32>,
    embedded: Vec<f32>,
    resized: Vec<f32>,
}

/// The quantization of one scale of one sample, for fitting a codebook.
pub(crate) struct ScaleCodes<'a> {
    /// The residual at this scale's side, `[pn², Cvae]`.
    pub(crate) rows: &'a [f32],
    /// The nearest code of each row.
    pub(crate) codes: &'a [u32],
    /// Its squared distance; at the last scale, the squared error of the reconstruction if there is no φ.
    pub(crate) distances: &'a [f32],
}

impl PyramidQuantizer {
    /// Builds a quantizer from the side lengths of the token maps, coarsest first, a codebook `[V, Cvae]` of any float
    /// type, and the shared convolutions φ (none: φ is the identity).
    ///
    /// Convolutions are assigned to scales as numpy does it in the upstream code (see `phi_index`).
    ///
    /// # Errors
    /// If `patch_nums` is empty, contains 0 or is not strictly increasing, the shapes are inconsistent, or the
    /// codebook has a value that is not finite.
    pub fn new(
        patch_nums: &[usize],
        codebook: &Tensor,
        convolutions: Vec<ResidualConvolution>,
    ) -> Result<Self> {
        let Some(&full) = patch_nums.last() else {
            return Err(Error::argument("patch_nums is empty; give at least one side, such as [1, 2, 3, 4]"));
        };
        if patch_nums[0] == 0 || patch_nums.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::argument(format!(
                "patch_nums {patch_nums:?} must be positive and strictly increasing"
            )));
        }
        let &[vocabulary, channels] = codebook.shape() else {
            return Err(Error::shape(
                OP,
                format!("expected a codebook [V, Cvae], got {:?}", codebook.shape()),
            ));
        };
        if vocabulary == 0
            || channels == 0
            || u32::try_from(vocabulary).is_err()
            || codebook.dtype() == DType::U32
        {
            return Err(Error::shape(
                OP,
                format!(
                    "expected a float codebook of 1 to 2³² codes, got {vocabulary} codes of {channels} channels ({:?})",
                    codebook.dtype()
                ),
            ));
        }
        if let Some(other) =
            convolutions.iter().map(ResidualConvolution::channels).find(|&other| other != channels)
        {
            return Err(Error::shape(
                OP,
                format!("the codes have {channels} channels, but a convolution has {other}"),
            ));
        }
        let codebook = codebook.cast(DType::F32)?;
        let values = codebook.as_slice::<f32>()?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Err(Error::not_finite(format!("code {} of the codebook is not finite", at / channels)));
        }
        let scales = patch_nums
            .iter()
            .map(|&side| Scale {
                side,
                down: Area::new(full, side),
                up: (side != full).then(|| Bicubic::new(side, full)),
            })
            .collect();
        Ok(Self {
            tokens: patch_nums.iter().map(|side| side * side).sum(),
            patch_nums: patch_nums.to_vec(),
            nearest: NearestCode::new(values, channels),
            phi_index: phi_index(patch_nums.len(), convolutions.len()),
            codebook,
            convolutions,
            scales,
        })
    }

    /// Builds a quantizer from tensors named as in the upstream VQ-VAE: `{prefix}embedding.weight` `[V, Cvae]` and the
    /// convolutions `{prefix}quant_resi.qresi_ls.{k}.weight|bias` (partially shared, the upstream default), or
    /// `quant_resi.qresi.…` (one for all scales), or `quant_resi.{k}.…` (one per scale). `prefix` is `quantize.` in a
    /// VQ-VAE's checkpoint; `quant_resi` is the share r of the convolution in φ, 0.5 upstream.
    ///
    /// # Errors
    /// If a tensor is missing or its shape does not match.
    pub fn from_tensors(
        patch_nums: &[usize],
        tensors: &BTreeMap<String, Tensor>,
        prefix: &str,
        quant_resi: f32,
    ) -> Result<Self> {
        let named = |name: &str| {
            tensors.get(name).ok_or_else(|| Error::invalid(format!("the weights have no tensor {name}")))
        };
        let codebook = named(&format!("{prefix}embedding.weight"))?;
        let mut stems = Vec::new();
        for form in ["quant_resi.qresi_ls.", "quant_resi."] {
            let numbered = (0..).map(|number| format!("{prefix}{form}{number}"));
            stems.extend(numbered.take_while(|stem| tensors.contains_key(&format!("{stem}.weight"))));
            if !stems.is_empty() {
                break;
            }
        }
        let single = format!("{prefix}quant_resi.qresi");
        if stems.is_empty() && tensors.contains_key(&format!("{single}.weight")) {
            stems.push(single);
        }
        // The upstream code omits φ if the ratio is nearly 0.
        if quant_resi.abs() <= 1e-6 {
            stems.clear();
        }
        let convolutions = stems
            .iter()
            .map(|stem| {
                let (weight, bias) = (named(&format!("{stem}.weight"))?, named(&format!("{stem}.bias"))?);
                ResidualConvolution::new(weight, bias, quant_resi.abs())
            })
            .collect::<Result<Vec<_>>>()?;
        Self::new(patch_nums, codebook, convolutions)
    }

    /// Side lengths of the token maps, coarsest first.
    pub fn patch_nums(&self) -> &[usize] {
        &self.patch_nums
    }

    /// Number of tokens in a pyramid, `L = Σ pn²`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Vocabulary size, `V`.
    pub fn vocabulary(&self) -> usize {
        self.codebook.dim(0)
    }

    /// Channels per code, `Cvae`.
    pub fn channels(&self) -> usize {
        self.codebook.dim(1)
    }

    /// Side of the feature maps, `H`, which is that of the last scale.
    pub fn side(&self) -> usize {
        self.patch_nums[self.patch_nums.len() - 1]
    }

    /// The codebook, `[V, Cvae]` f32.
    pub fn codebook(&self) -> &Tensor {
        &self.codebook
    }

    /// The convolution that each scale uses; all 0 if there is none.
    pub fn phi_index(&self) -> &[usize] {
        &self.phi_index
    }

    /// Quantizes features `[B, Cvae, H, H]` (f32) to codes `[B, L]` (u32), coarsest scale first, each map in row-major
    /// order. A sample's codes do not depend on the rest of the batch.
    ///
    /// # Errors
    /// If the shape does not match or a feature is not finite.
    pub fn encode(&self, features: &Tensor) -> Result<Tensor> {
        let maps = self.channels_last(features)?;
        self.encode_maps(&maps)
    }

    /// As [`encode`](Self::encode), with the running reconstruction f̂ after every scale, each `[B, Cvae, H, H]`.
    ///
    /// # Errors
    /// If the shape does not match or a feature is not finite.
    pub fn encode_with_reconstructions(&self, features: &Tensor) -> Result<(Tensor, Vec<Tensor>)> {
        let codes = self.encode(features)?;
        let reconstructions = self.reconstruct_each(&codes)?;
        Ok((codes, reconstructions))
    }

    /// The proxy's input for every scale but the first (`idxBl_to_var_input`): codes `[B, L]` to
    /// `[B, L - L₀, Cvae]`, where `L₀ = patch_nums[0]²`. Scale k's rows are the reconstruction from all scales
    /// before k, averaged down to the side of scale k.
    ///
    /// # Errors
    /// If the shape does not match or a code is out of range.
    pub fn input(&self, codes: &Tensor) -> Result<Tensor> {
        self.input_reaching(codes, Reach::Before)
    }

    /// As [`input`](Self::input), with the content of the rows given by `reach`.
    ///
    /// # Errors
    /// If the shape does not match or a code is out of range.
    pub fn input_reaching(&self, codes: &Tensor, reach: Reach) -> Result<Tensor> {
        let (batch, codes) = self.checked_codes(codes)?;
        let channels = self.channels();
        let rows = self.tokens - self.patch_nums[0] * self.patch_nums[0];
        // A scale's rows use the reconstruction after the scale this many positions before it.
        let (scales, before) = match reach {
            Reach::Before => (self.scales.len() - 1, 1),
            Reach::Through => (self.scales.len(), 0),
        };
        let mut input = vec![0.0; batch * rows * channels];
        if rows > 0 {
            input
                .par_chunks_exact_mut(rows * channels)
                .zip(codes.par_chunks_exact(self.tokens))
                .for_each_init(Workspace::default, |work, (input, codes)| {
                    let mut rest = input;
                    let mut map = vec![0.0; self.map_length()];
                    self.accumulate(codes, scales, &mut map, work, |scale, map| {
                        if scale + before == 0 {
                            return;
                        }
                        let next = &self.scales[scale + before];
                        let (rows, after) =
                            std::mem::take(&mut rest).split_at_mut(next.side * next.side * channels);
                        next.down.pool(map, channels, rows);
                        rest = after;
                    });
                });
        }
        Tensor::new(&[batch, rows, channels], input)
    }

    /// Decodes codes `[B, L]` to features `[B, Cvae, H, H]`: f̂ after all scales.
    ///
    /// # Errors
    /// If the shape does not match or a code is out of range.
    pub fn reconstruct(&self, codes: &Tensor) -> Result<Tensor> {
        let batch = codes.shape().first().copied().unwrap_or(0);
        self.channels_first(batch, &self.reconstruct_maps(codes)?)
    }

    /// The running reconstruction f̂ after every scale, each `[B, Cvae, H, H]` (`embed_to_fhat`).
    ///
    /// # Errors
    /// If the shape does not match or a code is out of range.
    pub fn reconstruct_each(&self, codes: &Tensor) -> Result<Vec<Tensor>> {
        let (batch, codes) = self.checked_codes(codes)?;
        let length = self.map_length();
        let mut each: Vec<Vec<f32>> =
            self.scales.iter().map(|_| Vec::with_capacity(batch * length)).collect();
        let mut work = Workspace::default();
        for codes in codes.chunks_exact(self.tokens) {
            let mut map = vec![0.0; length];
            self.accumulate(codes, self.scales.len(), &mut map, &mut work, |scale, map| {
                each[scale].extend_from_slice(map);
            });
        }
        each.iter().map(|maps| self.channels_first(batch, maps)).collect()
    }

    /// [`encode`](Self::encode) for channels-last maps `[B, H², Cvae]` that are known to be finite.
    pub(crate) fn encode_maps(&self, maps: &[f32]) -> Result<Tensor> {
        let batch = maps.len() / self.map_length();
        let mut codes = vec![0u32; batch * self.tokens];
        codes.par_chunks_exact_mut(self.tokens).zip(maps.par_chunks_exact(self.map_length())).for_each_init(
            Workspace::default,
            |work, (codes, map)| {
                let mut rest = codes;
                self.walk(map, work, |scale| {
                    let (head, tail) = std::mem::take(&mut rest).split_at_mut(scale.codes.len());
                    head.copy_from_slice(scale.codes);
                    rest = tail;
                });
            },
        );
        Tensor::new(&[batch, self.tokens], codes)
    }

    /// [`reconstruct`](Self::reconstruct) to channels-last maps `[B, H², Cvae]`.
    pub(crate) fn reconstruct_maps(&self, codes: &Tensor) -> Result<Vec<f32>> {
        let (batch, codes) = self.checked_codes(codes)?;
        let mut maps = vec![0.0; batch * self.map_length()];
        maps.par_chunks_exact_mut(self.map_length())
            .zip(codes.par_chunks_exact(self.tokens))
            .for_each_init(Workspace::default, |work, (map, codes)| {
                self.accumulate(codes, self.scales.len(), map, work, |_, _| {})
            });
        Ok(maps)
    }

    /// Quantizes one channels-last map `[H², Cvae]` and calls `visit` for every scale.
    pub(crate) fn observe(&self, map: &[f32], visit: impl FnMut(ScaleCodes<'_>)) {
        self.walk(map, &mut Workspace::default(), visit);
    }

    /// The greedy descent through the scales.
    fn walk(&self, map: &[f32], work: &mut Workspace, mut visit: impl FnMut(ScaleCodes<'_>)) {
        let channels = self.channels();
        let mut rest = map.to_vec();
        let largest = self.side() * self.side();
        let (mut pooled, mut codes, mut distances) =
            (vec![0.0; largest * channels], vec![0; largest], vec![0.0; largest]);
        for (at, scale) in self.scales.iter().enumerate() {
            let cells = scale.side * scale.side;
            let rows = &mut pooled[..cells * channels];
            scale.down.pool(&rest, channels, rows);
            let (codes, distances) = (&mut codes[..cells], &mut distances[..cells]);
            self.nearest.search(rows, codes, distances);
            visit(ScaleCodes { rows, codes, distances });
            if at + 1 < self.scales.len() {
                self.look_up(codes, work);
                self.resize(at, work);
                for (rest, value) in rest.iter_mut().zip(&work.resized) {
                    *rest -= value;
                }
            }
        }
    }

    /// Adds the vectors of the codes of the first `scales` scales to `map`, and calls `visit` after each.
    fn accumulate(
        &self,
        codes: &[u32],
        scales: usize,
        map: &mut [f32],
        work: &mut Workspace,
        mut visit: impl FnMut(usize, &[f32]),
    ) {
        let mut start = 0;
        for (at, scale) in self.scales[..scales].iter().enumerate() {
            let cells = scale.side * scale.side;
            self.look_up(&codes[start..start + cells], work);
            self.resize(at, work);
            add(map, &work.resized);
            visit(at, map);
            start += cells;
        }
    }

    /// Looks up the vectors of codes, into `work.embedded` `[pn², Cvae]`.
    fn look_up(&self, codes: &[u32], work: &mut Workspace) {
        let Ok(codebook) = self.codebook.as_slice::<f32>() else {
            unreachable!("the codebook was cast to f32 when the quantizer was made")
        };
        let channels = self.channels();
        work.embedded.clear();
        for &code in codes {
            work.embedded.extend_from_slice(&codebook[code as usize * channels..][..channels]);
        }
    }

    /// Resizes and convolves `work.embedded` `[pn², Cvae]` of a scale, into `work.resized` `[H², Cvae]`.
    fn resize(&self, scale: usize, work: &mut Workspace) {
        let Workspace { rows, padded, embedded, resized } = work;
        resized.resize(self.map_length(), 0.0);
        match &self.scales[scale].up {
            Some(up) => up.resize(embedded, self.channels(), rows, resized),
            None => resized.copy_from_slice(embedded),
        }
        if let Some(convolution) = self.convolutions.get(self.phi_index[scale]) {
            convolution.apply(resized, self.side(), padded);
        }
    }

    fn map_length(&self) -> usize {
        self.side() * self.side() * self.channels()
    }
}

fn add(map: &mut [f32], values: &[f32]) {
    for (sum, value) in map.iter_mut().zip(values) {
        *sum += value;
    }
}
