//! Launchers for `kernels/adamw.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, checked by the functions here")]

use super::Factors;
use crate::{
    engine::{
        cuda::{Argument, Buffer, Device, Kernel, Launch, device::Factor},
        ops::size,
    },
    error::{Error, Result},
};

const THREADS: u32 = 256;
/// Elements per block: enough to amortize its start, few enough that a small network fills the GPU.
const CHUNK: usize = 8192;
/// Number of scalars that change from step to step, in the kernel's order.
const FACTORS: usize = 9;

/// A parameter with its gradient, its optimizer state and, if the network computes in `T`, its copy in `T`.
#[derive(Debug)]
pub struct AdamWTensor<'a, T: Factor> {
    /// Master weights.
    pub value: &'a mut Buffer<f32>,
    /// Gradient.
    pub gradient: &'a Buffer<f32>,
    /// First moment.
    pub first: &'a mut Buffer<f32>,
    /// Second moment.
    pub second: &'a mut Buffer<f32>,
    /// The value rounded to `T`, refreshed by each update.
    pub copy: Option<&'a mut Buffer<T>>,
    /// Whether weight decay applies.
    pub decays: bool,
}

impl<T: Factor> AdamWTensor<'_, T> {
    /// The row of the address table.
    fn addresses(&self) -> [u64; 5] {
        let Self { value, gradient, first, second, copy, .. } = self;
        let copy = copy.as_ref().map_or(0, |copy| copy.address());
        [value.address(), gradient.address(), first.address(), second.address(), copy]
    }

    fn check(&self) -> Result<()> {
        let len = self.value.len();
        self.gradient.expect_len("adamw", "a gradient", len)?;
        self.first.expect_len("adamw", "a first moment", len)?;
        self.second.expect_len("adamw", "a second moment", len)?;
        match &self.copy {
            Some(_) if T::SUFFIX == "f32" => {
                Err(Error::invalid("a copy of the weights in f32 would be the weights themselves"))
            }
            Some(copy) => copy.expect_len("adamw", "a copy", len),
            None => Ok(()),
        }
    }
}

/// Tables for updating all parameters of a network in one launch: addresses and chunks. They are built once, and
/// refreshed when a buffer changes.
#[derive(Debug)]
pub struct AdamWTables {
    held: Vec<u64>,
    /// Whether the table on the device is older than `held`.
    late: bool,
    lengths: Vec<usize>,
    table: Buffer<u64>,
    chunks: Buffer<u32>,
    decays: Buffer<u32>,
    /// Partial sum of squares per chunk.
    squares: Buffer<f32>,
    /// The norm and the clipping factor.
    norm: Buffer<f32>,
    factors: Buffer<f32>,
}

impl AdamWTables {
    /// Builds the tables for these tensors.
    ///
    /// # Errors
    /// If the buffers of a tensor differ in length, or there are no tensors.
    pub fn new<T: Factor>(device: &Device, tensors: &[AdamWTensor<'_, T>]) -> Result<Self> {
        let mut chunks = Vec::new();
        for (number, tensor) in tensors.iter().enumerate() {
            tensor.check()?;
            let (number, whole) =
                (size("adamw", "tensors", number)?, size("adamw", "numbers", tensor.value.len())?);
            let most = size("adamw", "numbers", CHUNK)?;
            for begin in (0..whole).step_by(CHUNK) {
                chunks.extend([number, begin, (whole - begin).min(most)]);
            }
        }
        if chunks.is_empty() {
            return Err(Error::invalid("there is no parameter to update"));
        }
        let held: Vec<u64> = tensors.iter().flat_map(AdamWTensor::addresses).collect();
        let decays: Vec<u32> = tensors.iter().map(|tensor| u32::from(tensor.decays)).collect();
        Ok(Self {
            table: device.upload(&held)?,
            held,
            late: false,
            lengths: tensors.iter().map(|tensor| tensor.value.len()).collect(),
            squares: device.uninitialized(chunks.len() / 3)?,
            chunks: device.upload(&chunks)?,
            decays: device.upload(&decays)?,
            norm: device.zeros(2)?,
            factors: device.zeros(FACTORS)?,
        })
    }

    /// Whether the tables were built for tensors of these lengths.
    pub(crate) fn fit<T: Factor>(&self, tensors: &[AdamWTensor<'_, T>]) -> bool {
        tensors.iter().map(|tensor| tensor.value.len()).eq(self.lengths.iter().copied())
    }

    /// Sets the factors of the next update, without waiting for the device.
    ///
    /// # Errors
    /// If the device fails.
    #[expect(clippy::cast_possible_truncation, reason = "the device computes in f32")]
    pub fn set(&mut self, factors: &Factors) -> Result<()> {
        let Factors { inverse_scale, most, keep, rate, rest1, beta2, root2, epsilon } = *factors;
        let in_order: [f64; FACTORS] =
            [inverse_scale, most.unwrap_or(0.0), keep, rate, rest1, beta2, 1.0 - beta2, root2, epsilon];
        let device = self.factors.device();
        device.upload_ahead(&in_order.map(|factor| factor as f32))?.copy_to(&mut self.factors)
    }

    /// Uploads the addresses for an update that was captured in a graph, before its first replay.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if std::mem::take(&mut self.late) {
            self.table.device().upload_ahead(&self.held)?.copy_to(&mut self.table)?;
        }
        Ok(())
    }

    /// The global norm of the last update. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn global_norm(&self) -> Result<f32> {
        Ok(self.norm.to_host()?[0])
    }
}

/// Updates all tensors with the factors of the last [`AdamWTables::set`], without waiting for the device. If the global
/// norm of the gradients is not finite, nothing changes. In a capture, `AdamWTables::settle` must follow.
///
/// # Errors
/// If the tensors do not match the tables, or the device fails.
pub fn adamw<T: Factor>(tables: &mut AdamWTables, tensors: &mut [AdamWTensor<'_, T>]) -> Result<()> {
    for tensor in tensors.iter() {
        tensor.check()?;
    }
    if !tables.fit(tensors) {
        return Err(Error::invalid("the tables of the update were built for other tensors"));
    }
    let now: Vec<u64> = tensors.iter().flat_map(AdamWTensor::addresses).collect();
    if now != tables.held {
        (tables.held, tables.late) = (now, true);
    }
    if !tables.table.device().is_recording() {
        tables.settle()?;
    }
    let AdamWTables { table, chunks, decays, squares, norm, factors, .. } = tables;
    let parts = size("adamw", "chunks", squares.len())?;
    let device = table.device();
    let arguments = [squares.write(), table.read(), chunks.read()];
    // SAFETY: arguments in the kernel's order; the chunks lie within the tensors, whose lengths the tables were built
    // for and whose addresses are in the table; what is written is borrowed mutably, and freed in stream order.
    unsafe {
        device.launch(&Kernel::new("adamw", "adamw_squares"), &Launch::linear(parts, THREADS), &arguments)
    }?;
    let arguments = [norm.write(), squares.read(), Argument::U32(parts), factors.read()];
    // SAFETY: arguments in the kernel's order: the norm has 2 elements, the squares `parts`, the factors 9; as above.
    unsafe { device.launch(&Kernel::new("adamw", "adamw_norm"), &Launch::linear(1, THREADS), &arguments) }?;
    let arguments = [table.read(), chunks.read(), decays.read(), norm.read(), factors.read()];
    // Without copies any 16-bit variant works: it then dereferences no address of that type.
    let variant = if T::SUFFIX == "f16" { "f16" } else { "bf16" };
    let kernel = Kernel::new("adamw", &format!("adamw_update_{variant}"));
    // SAFETY: as above; the copies have the variant's type, or there are none.
    unsafe { device.launch(&kernel, &Launch::linear(parts, THREADS), &arguments) }
}
