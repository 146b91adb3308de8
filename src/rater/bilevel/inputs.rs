//! The inputs of a step: the batches, and the random and scheduled values that the host computes.

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

/// One micro-batch: the training samples that the rater weighs, and the validation samples.
#[derive(Clone, Debug)]
pub struct MicroBatch {
    /// Training samples.
    pub train: Batch,
    /// Validation samples.
    pub validation: Batch,
    /// The running averages of the training samples, for the objective `regression`.
    pub prior: Option<Prior>,
}

/// The running averages of a batch's training samples, with the statistics of the whole corpus.
#[derive(Clone, Debug, PartialEq)]
pub struct Prior {
    /// Per sample: the earlier values' contribution to the new average, and the weight of the new value.
    pub averages: Vec<[f64; 2]>,
    /// The mean of the averages over the corpus.
    pub mean: f64,
    /// 1 / standard deviation of the averages over the corpus; 0 while there is none.
    pub inverse_deviation: f64,
}

impl MicroBatch {
    /// Refuses batches whose sizes do not match.
    pub(super) fn check(&self) -> Result<()> {
        let (train, validation) = (&self.train.codes, &self.validation.codes);
        for (what, codes) in [("training", train), ("validation", validation)] {
            if codes.shape().len() != 2 || codes.is_empty() {
                return Err(Error::invalid(format!(
                    "a {what} batch has codes of shape {:?}, but needs at least one sample and one token",
                    codes.shape()
                )));
            }
        }
        if train.dim(1) != validation.dim(1) {
            return Err(Error::invalid(format!(
                "training samples have {} tokens, but validation samples {}: both sets need the same tokenizer",
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

    /// Copies the micro-batch to a device, with floats in the dtype of the activations, concurrently with the work
    /// running there.
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

/// The forward passes of a step; each has its own drop-path mask.
#[derive(Clone, Copy)]
pub(super) enum Pass {
    Validation,
    Train,
    RaterForProxy,
    RaterForRater,
}

/// All inputs of a micro-batch.
#[derive(Clone, Debug)]
pub(super) struct StepInputs {
    pub(super) micro: MicroBatch,
    /// One mask per [`Pass`], in order.
    pub(super) drop_path: [DropPath; 4],
    pub(super) rater_loss: RaterLoss,
    /// The gradient of each validation sample's loss; `None` if the validation gradient is not needed.
    pub(super) validation_seeds: Option<Tensor>,
    /// Whether the weighted training loss is part of the proxy's loss.
    pub(super) train_counts: bool,
    /// The proxy's sample weights if the rater computes none.
    pub(super) equal_weights: Option<Tensor>,
    /// Set if per-sample gradients are needed.
    pub(super) per_sample: Option<PerSample>,
    /// The factor of the reference proxy's seeds, if there is one.
    pub(super) reference: Option<RaterLoss>,
    /// The regression targets of the rater's logits, for the objective `regression`.
    pub(super) targets: Option<RegressionTargets>,
    /// Whether the step belongs to the warm-up, in which the rater is not trained.
    pub(super) warm_up: bool,
}

/// Inputs of the per-sample gradient pass.
#[derive(Clone, Debug)]
pub(super) struct PerSample {
    /// The gradient of each training sample's loss, `[B]`, all equal.
    pub(super) seeds: Tensor,
    pub(super) products: bool,
    pub(super) norms: bool,
    /// `[1]` each: factors that remove the loss scale from products and squared norms.
    pub(super) unscale_product: Tensor,
    pub(super) unscale_norm: Tensor,
    /// `[1]`: the share of the validation gradient in the proxy's gradient, if it is positive.
    pub(super) validation_share: Option<Tensor>,
    /// `[2]`: see [`Preconditioner`](crate::engine::Preconditioner).
    pub(super) geometry: Option<Tensor>,
}

impl PerSample {
    fn values_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let Self { seeds, unscale_product, unscale_norm, validation_share, geometry, .. } = self;
        [seeds, unscale_product, unscale_norm].into_iter().chain(validation_share).chain(geometry)
    }
}

/// The form of a micro-batch's work: everything except the values. Work recorded for one micro-batch can be replayed
/// for any other of the same form.
#[derive(Debug, PartialEq)]
pub(super) struct Form {
    tensors: Vec<(Vec<usize>, DType)>,
    last_scale: [usize; 2],
    switches: [bool; 11],
}

impl StepInputs {
    /// The random and scheduled values: small tensors, one value per sample or a few.
    fn values_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        let drop_path = self.drop_path.iter_mut().flat_map(DropPath::tensors_mut);
        let targets = self.targets.iter_mut();
        drop_path
            .chain([self.rater_loss.factors_mut()])
            .chain(&mut self.validation_seeds)
            .chain(&mut self.equal_weights)
            .chain(self.per_sample.iter_mut().flat_map(PerSample::values_mut))
            .chain(self.reference.iter_mut().map(RaterLoss::factors_mut))
            .chain(targets.flat_map(|targets| [&mut targets.averages, &mut targets.corpus]))
    }

    /// See [`Form`].
    pub(super) fn form(&mut self) -> Form {
        let last_scale = [self.micro.train.last_scale, self.micro.validation.last_scale];
        let per_sample = self.per_sample.as_ref();
        let switches = [
            self.validation_seeds.is_some(),
            self.train_counts,
            self.equal_weights.is_some(),
            per_sample.is_some(),
            per_sample.is_some_and(|per_sample| per_sample.products),
            per_sample.is_some_and(|per_sample| per_sample.norms),
            per_sample.is_some_and(|per_sample| per_sample.validation_share.is_some()),
            per_sample.is_some_and(|per_sample| per_sample.geometry.is_some()),
            self.reference.is_some(),
            self.targets.is_some(),
            self.warm_up,
        ];
        let mut tensors: Vec<_> =
            self.micro.tensors_mut().map(|tensor| (tensor.shape().to_vec(), tensor.dtype())).collect();
        tensors.extend(self.values_mut().map(|tensor| (tensor.shape().to_vec(), tensor.dtype())));
        Form { tensors, last_scale, switches }
    }

    /// The random and scheduled values, concatenated, in f32 as a device uses them.
    fn packed(&mut self) -> Result<Tensor> {
        let mut packed = Vec::new();
        for tensor in self.values_mut() {
            packed.extend(tensor.to_f64_vec()?);
        }
        Tensor::new(&[packed.len()], packed)?.cast(DType::F32)
    }
}

/// A micro-batch's inputs on a device. Their addresses stay fixed, so that a recorded step reads the inputs of each
/// replay.
#[derive(Debug)]
pub(super) struct DeviceInputs {
    /// The batches, on the device. Only the shapes of the host's random and scheduled values are used.
    prepared: StepInputs,
    /// The values, concatenated, so that one copy uploads them.
    values: Tensor,
}

impl DeviceInputs {
    /// Uploads the inputs.
    pub(super) fn new(mut prepared: StepInputs, device: &Device) -> Result<Self> {
        for tensor in prepared.micro.tensors_mut() {
            // New buffers: the caller's must not be overwritten.
            *tensor = tensor.copied_to(device)?;
        }
        let values = prepared.packed()?.to_device(device)?;
        Ok(Self { prepared, values })
    }

    /// Overwrites the inputs with those of another step of the same form, without waiting for the device.
    pub(super) fn overwrite(&mut self, mut next: StepInputs) -> Result<()> {
        self.values.overwrite(&next.packed()?)?;
        for (current, next) in self.prepared.micro.tensors_mut().zip(next.micro.tensors_mut()) {
            current.overwrite(next)?;
        }
        Ok(())
    }

    /// The inputs that the kernels read, with activations of type `dtype`. This is itself device work: it splits the
    /// values into their tensors and turns codes into the networks' inputs.
    pub(super) fn unpacked(
        &self,
        device: &Device,
        reader: Option<&CodeReader>,
        rater: Reach,
        dtype: DType,
    ) -> Result<StepInputs> {
        let (mut prepared, mut at) = (self.prepared.clone(), 0);
        let values: &Buffer<f32> = self.values.buffer()?;
        for tensor in prepared.values_mut() {
            let range = at..at + tensor.len();
            at = range.end;
            *tensor = Tensor::written(device, tensor.shape(), |part| part.copy_range(0, values, range))?;
        }
        let MicroBatch { train, validation, .. } = &mut prepared.micro;
        for reach in [Reach::Before, rater] {
            train.read_codes(reader, dtype, reach)?;
        }
        validation.read_codes(reader, dtype, Reach::Before)?;
        Ok(prepared)
    }
}
