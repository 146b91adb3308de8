//! Launches of `kernels/adamw.cu`.
#![expect(unsafe_code, reason = "kernels are launched with raw arguments, which the functions here check")]

use super::Factors;
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
/// Numbers that change from step to step, in the kernel's order.
const FACTORS: usize = 9;

/// One parameter with its gradient, its state and, if the network computes in `T`, the copy that it reads.
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
    /// The value rounded to `T`, renewed by each update.
    pub copy: Option<&'a mut Buffer<T>>,
    /// Whether weight decay applies.
    pub decays: bool,
}

impl<T: Factor> AdamWTensor<'_, T> {
    /// The row of the table.
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

/// What lets one launch update all parameters of a network: where they are, and how they are cut into chunks. It is made
/// once and renewed when a buffer is another one than before.
#[derive(Debug)]
pub struct AdamWTables {
    held: Vec<u64>,
    /// Whether the table on the device has yet to be told of `held`.
    late: bool,
    lengths: Vec<usize>,
    table: Buffer<u64>,
    chunks: Buffer<u32>,
    decays: Buffer<u32>,
    /// A part of the sum of squares for each chunk.
    squares: Buffer<f32>,
    /// The norm and the factor that clips to it.
    norm: Buffer<f32>,
    factors: Buffer<f32>,
}

impl AdamWTables {
    /// The tables for these tensors.
    ///
    /// # Errors
    /// If the buffers of a tensor differ in length, or there is nothing to update.
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

    /// Whether these are tables of tensors of these lengths.
    pub(crate) fn fit<T: Factor>(&self, tensors: &[AdamWTensor<'_, T>]) -> bool {
        tensors.iter().map(|tensor| tensor.value.len()).eq(self.lengths.iter().copied())
    }

    /// Sets the numbers of the next update; nothing waits for the device.
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

    /// Tells the device where the tensors of an update are that was recorded in a graph, before its first replay.
    ///
    /// # Errors
    /// If the device fails.
    pub(crate) fn settle(&mut self) -> Result<()> {
        if std::mem::take(&mut self.late) {
            self.table.device().upload_ahead(&self.held)?.copy_to(&mut self.table)?;
        }
        Ok(())
    }

    /// The global norm that the last update found. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn global_norm(&self) -> Result<f32> {
        Ok(self.norm.to_host()?[0])
    }
}

/// One update of all tensors with the numbers of the last [`AdamWTables::set`]; nothing waits for the device. Where the
/// gradients' norm is not finite, everything stays as it is. Where it is recorded, `AdamWTables::settle` has to follow.
///
/// # Errors
/// If the tensors are not those of the tables, or the device fails.
pub fn adamw<T: Factor>(tables: &mut AdamWTables, tensors: &mut [AdamWTensor<'_, T>]) -> Result<()> {
    for tensor in tensors.iter() {
        tensor.check()?;
    }
    if !tables.fit(tensors) {
        return Err(Error::invalid("the tables of the update are those of other tensors"));
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
    // SAFETY: arguments in the kernel's order; the chunks lie within the tensors, whose lengths are those that the tables
    // were made for and whose addresses the table has been given; what is written is borrowed mutably, and freed in the
    // order of the work.
    unsafe {
        device.launch(&Kernel::new("adamw", "adamw_squares"), &Launch::linear(parts, THREADS), &arguments)
    }?;
    let arguments = [norm.write(), squares.read(), Argument::U32(parts), factors.read()];
    // SAFETY: arguments in the kernel's order: the norm of 2 numbers, the squares of `parts`, the factors of 9; as above.
    unsafe { device.launch(&Kernel::new("adamw", "adamw_norm"), &Launch::linear(1, THREADS), &arguments) }?;
    let arguments = [table.read(), chunks.read(), decays.read(), norm.read(), factors.read()];
    // Without copies any 16-bit variant will do: it then reads no address of that type.
    let variant = if T::SUFFIX == "f16" { "f16" } else { "bf16" };
    let kernel = Kernel::new("adamw", &format!("adamw_update_{variant}"));
    // SAFETY: as above; the copies are of the variant's type, or there are none.
    unsafe { device.launch(&kernel, &Launch::linear(parts, THREADS), &arguments) }
}
