//! Launches of `kernels/adamw.cu`.
#![expect(unsafe_code, reason = "kernels are launched here")]

use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::size,
    },
    error::{Error, Result},
};

const THREADS: u32 = 256;
/// Numbers a block: enough for its start to cost little, few enough that a small network fills a card.
const CHUNK: usize = 8192;
/// Addresses that the table holds of each tensor.
const FIELDS: usize = 5;

/// One parameter with its gradient, its state and, if the network computes in `T`, the copy that it reads.
#[derive(Debug)]
pub struct AdamWTensor<T: Factor> {
    /// Master weights.
    pub value: Buffer<f32>,
    /// Gradient.
    pub gradient: Buffer<f32>,
    /// First moment.
    pub first: Buffer<f32>,
    /// Second moment.
    pub second: Buffer<f32>,
    /// The value rounded to `T`, renewed by each update.
    pub copy: Option<Buffer<T>>,
    /// Whether weight decay applies.
    pub decays: bool,
}

/// All parameters of a network, with the tables that let one launch update them.
#[derive(Debug)]
pub struct AdamWTensors<T: Factor> {
    tensors: Vec<AdamWTensor<T>>,
    table: Buffer<u64>,
    chunks: Buffer<u32>,
    decays: Buffer<u32>,
    /// A part of the sum of squares for each chunk.
    squares: Buffer<f32>,
    /// The norm and the factor that clips to it.
    norm: Buffer<f32>,
}

impl<T: Factor> AdamWTensors<T> {
    /// Takes the tensors and builds the tables.
    ///
    /// # Errors
    /// If the buffers of a tensor differ in length, or there is nothing to update.
    pub fn new(device: &Device, tensors: Vec<AdamWTensor<T>>) -> Result<Self> {
        let (mut table, mut chunks) = (Vec::with_capacity(tensors.len() * FIELDS), Vec::new());
        for (number, tensor) in tensors.iter().enumerate() {
            let len = tensor.value.len();
            for (what, buffer) in [
                ("a gradient", &tensor.gradient),
                ("a first moment", &tensor.first),
                ("a second moment", &tensor.second),
            ] {
                buffer.expect_len("adamw", what, len)?;
            }
            if let Some(copy) = &tensor.copy {
                copy.expect_len("adamw", "a copy", len)?;
            }
            let AdamWTensor { value, gradient, first, second, copy, .. } = tensor;
            let copy = copy.as_ref().map_or(0, Buffer::address);
            table.extend([value.address(), gradient.address(), first.address(), second.address(), copy]);
            let (number, whole) = (size("adamw", "tensors", number)?, size("adamw", "numbers", len)?);
            for begin in (0..whole).step_by(CHUNK) {
                chunks.extend([number, begin, (whole - begin).min(size("adamw", "numbers", CHUNK)?)]);
            }
        }
        if chunks.is_empty() {
            return Err(Error::invalid("there is no parameter to update"));
        }
        let decays: Vec<u32> = tensors.iter().map(|tensor| u32::from(tensor.decays)).collect();
        Ok(Self {
            table: device.upload(&table)?,
            squares: device.uninitialised(chunks.len() / 3)?,
            chunks: device.upload(&chunks)?,
            decays: device.upload(&decays)?,
            norm: device.uninitialised(2)?,
            tensors,
        })
    }

    /// The tensors, in the order given.
    pub fn tensors(&self) -> &[AdamWTensor<T>] {
        &self.tensors
    }

    /// The tensors, to write gradients into. Their buffers must stay the same ones: the tables hold their addresses.
    pub fn gradients_mut(&mut self) -> impl Iterator<Item = &mut Buffer<f32>> {
        self.tensors.iter_mut().map(|tensor| &mut tensor.gradient)
    }

    /// The global norm of the last [`adamw_norm`]. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn global_norm(&self) -> Result<f32> {
        Ok(self.norm.to_host()?[0])
    }
}

/// The settings of one update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate.
    pub learning_rate: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Which update this is, from 1.
    pub step: u64,
}

/// Computes the global norm of the gradients and the factor that clips to `clip`; nothing waits for the device.
///
/// # Errors
/// If the device fails.
pub fn adamw_norm<T: Factor>(tensors: &mut AdamWTensors<T>, clip: Option<f32>) -> Result<()> {
    let parts = size("adamw", "chunks", tensors.squares.len())?;
    let device = tensors.table.device().clone();
    let arguments = [tensors.squares.write(), tensors.table.read(), tensors.chunks.read()];
    // SAFETY: arguments in the kernel's order; the chunks lie within the tensors that the table points to, all owned by
    // `tensors`, which is borrowed mutably, and freed in the order of the work.
    unsafe {
        device.launch(&Kernel::new("adamw", "adamw_squares"), &Launch::linear(parts, THREADS), &arguments)
    }?;
    let arguments = [
        tensors.norm.write(),
        tensors.squares.read(),
        Argument::U32(parts),
        Argument::F32(clip.unwrap_or(0.0)),
    ];
    // SAFETY: arguments in the kernel's order, the norm of 2 numbers and the squares of `parts`; as above.
    unsafe { device.launch(&Kernel::new("adamw", "adamw_norm"), &Launch::linear(1, THREADS), &arguments) }
}

/// One update of all tensors with the clip factor of the last [`adamw_norm`].
///
/// # Errors
/// If the device fails.
#[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
pub fn adamw_update<T: Factor>(tensors: &mut AdamWTensors<T>, step: &AdamWStep) -> Result<()> {
    let exponent = i32::try_from(step.step).unwrap_or(i32::MAX);
    let factors = [
        1.0 - step.learning_rate * step.weight_decay,
        step.learning_rate / (1.0 - step.beta1.powi(exponent)),
        1.0 - step.beta1,
        step.beta2,
        1.0 - step.beta2,
        (1.0 - step.beta2.powi(exponent)).sqrt(),
        step.epsilon,
    ]
    .map(|factor| Argument::F32(factor as f32));
    let mut arguments =
        vec![tensors.table.read(), tensors.chunks.read(), tensors.decays.read(), tensors.norm.read()];
    arguments.extend(factors);
    let launch = Launch::linear(size("adamw", "chunks", tensors.squares.len())?, THREADS);
    // Without copies any 16-bit variant will do: it then reads no address of that type.
    let kernel =
        Kernel::new("adamw", &format!("adamw_update_{}", if T::SUFFIX == "f16" { "f16" } else { "bf16" }));
    if T::SUFFIX == "f32" && tensors.tensors.iter().any(|tensor| tensor.copy.is_some()) {
        return Err(Error::invalid("a copy of the weights in f32 would be the weights themselves"));
    }
    // SAFETY: arguments in the kernel's order; the chunks lie within the tensors that the table points to, all owned by
    // `tensors`, which is borrowed mutably, and freed in the order of the work.
    unsafe { tensors.table.device().launch(&kernel, &launch, &arguments) }
}
