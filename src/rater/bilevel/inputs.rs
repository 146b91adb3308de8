//! What a step is told: the batches, and the numbers that the host draws and schedules.

use crate::{
    engine::{
        DType, Tensor,
        cuda::{Buffer, Device},
        ops::{
            pyramid::{CodeReader, Reach},
            rater_loss::{RaterLoss, RegressionTargets},
        },
    },
    error::{Error, Result},
    models::DropPath,
    tokens::batch::Batch,
};

/// One micro-batch: what the rater weighs, and what the proxy is judged by.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Training samples.
    pub train: Batch,
    /// Validation samples.
    pub validation: Batch,
    /// What is known of the training samples beforehand, where the rater is taught by running averages.
    pub prior: Option<Prior>,
}

/// The running averages of a batch's training samples, and those of the whole corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct Prior {
    /// Of each sample: what is there of its average, and the share of a new number in it.
    pub averages: Vec<[f64; 2]>,
    /// The mean over the corpus.
    pub mean: f64,
    /// 1 over the standard deviation over the corpus; 0 where there is none yet.
    pub inverse_deviation: f64,
}

impl MicroBatch {
    /// Refuses batches that cannot be compared.
    pub(super) fn check(&self) -> Result<()> {
        let (train, validation) = (&self.train.codes, &self.validation.codes);
        for (what, codes) in [("training", train), ("validation", validation)] {
            if codes.shape().len() != 2 || codes.is_empty() {
                return Err(Error::invalid(format!(
                    "a {what} batch has codes of the shape {:?}; it needs at least one sample of at least one token",
                    codes.shape()
                )));
            }
        }
        if train.dim(1) != validation.dim(1) {
            return Err(Error::invalid(format!(
                "a training sample has {} tokens, but a validation sample {}: both sets need one tokenizer",
                train.dim(1),
                validation.dim(1)
            )));
        }
        match &self.prior {
            Some(prior) if prior.averages.len() != train.dim(0) => Err(Error::invalid(format!(
                "{} running averages for {} training samples",
                prior.averages.len(),
                train.dim(0)
            ))),
            _ => Ok(()),
        }
    }

    /// See [`Batch::to_device`].
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub fn to_device(&self, device: &Device, dtype: DType) -> Result<Self> {
        Ok(Self {
            train: self.train.to_device(device, dtype)?,
            validation: self.validation.to_device(device, dtype)?,
            prior: self.prior.clone(),
        })
    }

    /// The same on a device, floats in the type of the activations, copied beside the work that goes on there.
    ///
    /// # Errors
    /// If there is not enough memory or the device fails.
    pub(super) fn ahead_to(&self, device: &Device, dtype: DType) -> Result<Self> {
        let mut micro = self.narrowed(dtype)?;
        for tensor in micro.tensors_mut() {
            *tensor = tensor.ahead_to(device)?;
        }
        Ok(micro)
    }

    /// See [`Batch::narrowed`].
    pub(super) fn narrowed(&self, dtype: DType) -> Result<Self> {
        Ok(Self {
            train: self.train.narrowed(dtype)?,
            validation: self.validation.narrowed(dtype)?,
            prior: self.prior.clone(),
        })
    }

    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.train.tensors_mut().chain(self.validation.tensors_mut())
    }
}

/// Which forward pass of a step draws a drop-path mask.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    Validation,
    Train,
    RaterForProxy,
    RaterForRater,
}

/// All that has to be known before a micro-batch begins.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) micro: MicroBatch,
    /// One for each [`Pass`], in order.
    pub(super) drop_path: [DropPath; 4],
    pub(super) rater_loss: RaterLoss,
    /// The gradient of each validation sample's loss; `None` if nobody asks for the validation gradient.
    pub(super) validation_seeds: Option<Tensor>,
    /// Whether the weighted training loss counts.
    pub(super) train_counts: bool,
    /// The proxy's weights of the samples where the rater gives none.
    pub(super) equal_weights: Option<Tensor>,
    /// Where the samples' gradients are taken apart.
    pub(super) apart: Option<Apart>,
    /// The factor of the reference proxy's seeds, where there is one.
    pub(super) reference: Option<RaterLoss>,
    /// What the rater's logits are regressed on, where it is taught so.
    pub(super) targets: Option<RegressionTargets>,
    /// The rater is left alone.
    pub(super) warm_up: bool,
}

/// How samples' gradients are taken apart.
#[derive(Clone, Debug)]
pub(super) struct Apart {
    /// The gradient of each training sample's loss, `[B]`, the same for all.
    pub(super) seeds: Tensor,
    pub(super) products: bool,
    pub(super) norms: bool,
    /// `[1]` each: what takes the scale of losses out of products and squared norms.
    pub(super) unscale_product: Tensor,
    pub(super) unscale_norm: Tensor,
    /// `[1]`: the share of the validation gradient in the proxy's, if it has any.
    pub(super) validation_share: Option<Tensor>,
    /// `[2]`: see [`Preconditioner`](crate::engine::Preconditioner).
    pub(super) geometry: Option<Tensor>,
}

impl Apart {
    fn numbers_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let Self { seeds, unscale_product, unscale_norm, validation_share, geometry, .. } = self;
        [seeds, unscale_product, unscale_norm].into_iter().chain(validation_share).chain(geometry)
    }
}

/// What makes the work on a micro-batch the same as on another: everything but the numbers themselves.
#[derive(Debug, PartialEq)]
pub(super) struct Form {
    tensors: Vec<(Vec<usize>, DType)>,
    last_scale: [usize; 2],
    switches: [bool; 11],
}

impl Prepared {
    /// The numbers drawn and scheduled: one a sample, or a few.
    fn numbers_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let drop_path = self.drop_path.iter_mut().flat_map(DropPath::tensors_mut);
        let targets = self.targets.iter_mut();
        drop_path
            .chain([self.rater_loss.factors_mut()])
            .chain(&mut self.validation_seeds)
            .chain(&mut self.equal_weights)
            .chain(self.apart.iter_mut().flat_map(Apart::numbers_mut))
            .chain(self.reference.iter_mut().map(RaterLoss::factors_mut))
            .chain(targets.flat_map(|targets| [&mut targets.averages, &mut targets.corpus]))
    }

    /// See [`Form`].
    pub(super) fn form(&mut self) -> Form {
        let last_scale = [self.micro.train.last_scale, self.micro.validation.last_scale];
        let apart = self.apart.as_ref();
        let switches = [
            self.validation_seeds.is_some(),
            self.train_counts,
            self.equal_weights.is_some(),
            apart.is_some(),
            apart.is_some_and(|apart| apart.products),
            apart.is_some_and(|apart| apart.norms),
            apart.is_some_and(|apart| apart.validation_share.is_some()),
            apart.is_some_and(|apart| apart.geometry.is_some()),
            self.reference.is_some(),
            self.targets.is_some(),
            self.warm_up,
        ];
        let mut tensors: Vec<_> =
            self.micro.tensors_mut().map(|tensor| (tensor.shape().to_vec(), tensor.dtype())).collect();
        tensors.extend(self.numbers_mut().map(|tensor| (tensor.shape().to_vec(), tensor.dtype())));
        Form { tensors, last_scale, switches }
    }

    /// The drawn and scheduled numbers one after the other, as a device computes with them.
    fn packed(&mut self) -> Result<Tensor> {
        let mut packed = Vec::new();
        for tensor in self.numbers_mut() {
            packed.extend(tensor.to_f64_vec()?);
        }
        Tensor::new(&[packed.len()], packed)?.cast(DType::F32)
    }
}

/// A micro-batch's inputs on a device. They stay where they are, so that recorded work finds those of each step.
#[derive(Debug)]
pub(super) struct OnDevice {
    /// The batches on the device; the numbers on the host, of which only the shapes are used.
    prepared: Prepared,
    /// The numbers one after the other, so that one copy takes them to the device.
    numbers: Tensor,
}

impl OnDevice {
    /// Takes them to a device.
    pub(super) fn new(mut prepared: Prepared, device: &Device) -> Result<Self> {
        for tensor in prepared.micro.tensors_mut() {
            // Buffers of its own: those of the caller are not to be written.
            *tensor = tensor.copied_to(device)?;
        }
        let numbers = prepared.packed()?.to_device(device)?;
        Ok(Self { prepared, numbers })
    }

    /// Overwrites them with those of another step of the same form; nothing waits for the device.
    pub(super) fn overwrite(&mut self, mut next: Prepared) -> Result<()> {
        self.numbers.overwrite(&next.packed()?)?;
        for (held, next) in self.prepared.micro.tensors_mut().zip(next.micro.tensors_mut()) {
            held.overwrite(next)?;
        }
        Ok(())
    }

    /// What the work reads, the input in the type `dtype`. It is itself work of the device: each tensor of numbers
    /// gets its part, and codes become the networks' input.
    pub(super) fn unpacked(
        &self,
        device: &Device,
        reader: Option<&CodeReader>,
        rater: Reach,
        dtype: DType,
    ) -> Result<Prepared> {
        let (mut prepared, mut at) = (self.prepared.clone(), 0);
        let numbers: &Buffer<f32> = self.numbers.buffer()?;
        for tensor in prepared.numbers_mut() {
            let range = at..at + tensor.len();
            at = range.end;
            *tensor = Tensor::written(device, tensor.shape(), |part| part.copy_range(0, numbers, range))?;
        }
        let MicroBatch { train, validation, .. } = &mut prepared.micro;
        for reach in [Reach::Before, rater] {
            train.read_codes(reader, dtype, reach)?;
        }
        validation.read_codes(reader, dtype, Reach::Before)?;
        Ok(prepared)
    }
}
