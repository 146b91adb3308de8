//! The order of samples: this project's sampler, and an exact reproduction of the released one.

use crate::{
    engine::random::{Purpose, Random},
    error::{Error, Result},
};

/// An endless sequence of batches over `0..n`: a new permutation per epoch, cut into batches of equal size.
///
/// A batch depends only on (`n`, `batch`, `seed`, step), so the step is all a run needs to resume. The last batch of
/// an epoch is filled from the head of the same permutation.
#[derive(Clone, Debug)]
pub struct BatchSampler {
    samples: u32,
    batch: usize,
    seed: u64,
    epoch: Option<u64>,
    permutation: Vec<u32>,
}

impl BatchSampler {
    /// A sampler of `n` samples in batches of `batch`. Independent samplers need different seeds.
    ///
    /// # Errors
    /// If `batch` is 0 or larger than `n`, or `n` exceeds 2³² - 1.
    pub fn new(n: usize, batch: usize, seed: u64) -> Result<Self> {
        if batch == 0 {
            return Err(Error::argument("the batch size must be at least 1"));
        }
        if n < batch {
            return Err(Error::not_enough_data(format!(
                "there are {n} usable samples, fewer than one batch of {batch}; lower the batch size or add samples"
            )));
        }
        let samples = u32::try_from(n)
            .map_err(|_| Error::argument(format!("{n} samples exceed the limit of {}", u32::MAX)))?;
        Ok(Self { samples, batch, seed, epoch: None, permutation: Vec::new() })
    }

    /// Steps in an epoch.
    pub fn steps_per_epoch(&self) -> usize {
        (self.samples as usize).div_ceil(self.batch)
    }

    /// The samples of a step, counted from 0 over all epochs. The permutation of the current epoch is cached.
    #[expect(clippy::cast_possible_truncation, reason = "a step within an epoch fits usize")]
    pub fn batch(&mut self, step: u64) -> Vec<usize> {
        let steps = self.steps_per_epoch() as u64;
        let epoch = step / steps;
        if self.epoch != Some(epoch) {
            self.permutation.clear();
            self.permutation.extend(0..self.samples);
            Random::new(self.seed, Purpose::Shuffle, epoch).shuffle(&mut self.permutation);
            self.epoch = Some(epoch);
        }
        let start = (step % steps) as usize * self.batch;
        let tail = &self.permutation[start..self.permutation.len().min(start + self.batch)];
        let head = &self.permutation[..self.batch - tail.len()];
        tail.iter().chain(head).map(|&sample| sample as usize).collect()
    }
}

/// The parameters of the released sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReleasedOrder {
    /// Samples in the data set.
    pub dataset_len: usize,
    /// Samples per step over all ranks (`glb_batch_size`).
    pub global_batch: usize,
    /// The number of processes.
    pub world_size: usize,
    /// The rank of this process.
    pub rank: usize,
    /// Added to the epoch to seed the generator (`same_seed_for_all_ranks`).
    pub seed: u64,
    /// The epoch at which training starts or resumes (`start_ep`).
    pub start_epoch: u64,
    /// Whether the end of an epoch is filled from its head (`fill_last`; training sets it).
    pub fill_last: bool,
    /// Whether the order is shuffled.
    pub shuffle: bool,
}

/// `DistInfiniteBatchSampler` of the released code (`utils/data_sampler.py`), index for index.
///
/// Each rank takes one contiguous piece of the epoch's permutation. `start_it` is omitted because it has no effect
/// there. An epoch with fewer samples than one global batch is filled once only, and so can stay short.
#[derive(Clone, Debug)]
pub struct ReleasedSampler {
    order: ReleasedOrder,
    pass: Option<u64>,
    local: Vec<usize>,
}

impl ReleasedSampler {
    /// The sampler of one rank.
    ///
    /// # Errors
    /// If there is no sample, the rank does not exist, or the ranks cannot share the batch evenly.
    pub fn new(order: ReleasedOrder) -> Result<Self> {
        if order.dataset_len == 0 {
            return Err(Error::not_enough_data("there are no samples"));
        }
        if order.rank >= order.world_size {
            return Err(Error::argument(format!(
                "rank {} does not exist among {} processes",
                order.rank, order.world_size
            )));
        }
        if order.global_batch == 0 || !order.global_batch.is_multiple_of(order.world_size) {
            return Err(Error::argument(format!(
                "a global batch of {} cannot be shared evenly by {} processes",
                order.global_batch, order.world_size
            )));
        }
        if order.shuffle {
            check_randperm(order.dataset_len)?;
        }
        Ok(Self { order, pass: None, local: Vec::new() })
    }

    /// Steps in an epoch as the released code counts them (`iters_per_ep`).
    pub fn steps_per_epoch(&self) -> usize {
        self.order.dataset_len.div_ceil(self.order.global_batch)
    }

    /// The samples of this rank in a step, counted from 0 at `start_epoch`.
    ///
    /// # Errors
    /// If this rank's piece is empty, which can happen with fewer samples than ranks.
    #[expect(clippy::cast_possible_truncation, reason = "a step within an epoch fits usize")]
    pub fn batch(&mut self, step: u64) -> Result<Vec<usize>> {
        if self.pass.is_none() {
            self.enter(0)?;
        }
        if self.local.is_empty() {
            return Err(Error::not_enough_data(format!(
                "rank {} gets none of the {} samples; use fewer processes",
                self.order.rank, self.order.dataset_len
            )));
        }
        let batch = self.order.global_batch / self.order.world_size;
        // All passes have the same length, so the first one determines the steps per pass.
        let steps = self.local.len().div_ceil(batch) as u64;
        self.enter(step / steps)?;
        let start = (step % steps) as usize * batch;
        Ok(self.local[start..self.local.len().min(start + batch)].to_vec())
    }

    /// Computes the order of pass `pass`, whose generator is seeded with `start_epoch + pass + seed`.
    fn enter(&mut self, pass: u64) -> Result<()> {
        if self.pass == Some(pass) {
            return Ok(());
        }
        let order = &self.order;
        let seed = order.start_epoch.wrapping_add(pass).wrapping_add(order.seed);
        let mut global = if order.shuffle {
            torch_randperm(order.dataset_len, seed)?
        } else {
            (0..order.dataset_len).collect()
        };
        if order.fill_last {
            let missing = self.steps_per_epoch() * order.global_batch - global.len();
            let head = missing.min(global.len());
            global.extend_from_within(..head);
        }
        let (start, end) = (
            piece_bound(global.len(), order.world_size, order.rank),
            piece_bound(global.len(), order.world_size, order.rank + 1),
        );
        self.local = global[start..end].to_vec();
        self.pass = Some(pass);
        Ok(())
    }
}

/// Entry `index` of `torch.linspace(0, length, pieces + 1, dtype=torch.int)`: computed in f64 from the nearer end.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "truncating as the C++ code does"
)]
fn piece_bound(length: usize, pieces: usize, index: usize) -> usize {
    let step = length as f64 / pieces as f64;
    let bound = if index < pieces.div_ceil(2) {
        step * index as f64
    } else {
        length as f64 - step * (pieces - index) as f64
    };
    bound as usize
}

/// From this size on, PyTorch uses another algorithm (`randperm_cpu` in `TensorFactories.cpp`).
const RANDPERM_LIMIT: usize = (u32::MAX / 20) as usize;

fn check_randperm(n: usize) -> Result<()> {
    if n >= RANDPERM_LIMIT {
        return Err(Error::argument(format!(
            "compat.released_sampler supports fewer than {RANDPERM_LIMIT} samples, not {n}"
        )));
    }
    Ok(())
}

/// `torch.randperm(n, generator=torch.Generator().manual_seed(seed))` on the CPU.
///
/// # Errors
/// If `n` is 214,748,364 or more, where PyTorch uses another algorithm.
pub(crate) fn torch_randperm(n: usize, seed: u64) -> Result<Vec<usize>> {
    check_randperm(n)?;
    let mut generator = MersenneTwister::new(seed);
    let mut permutation: Vec<usize> = (0..n).collect();
    for index in 0..n.saturating_sub(1) {
        let offset = generator.next_u32() as usize % (n - index);
        permutation.swap(index, index + offset);
    }
    Ok(permutation)
}

/// MT19937 (Matsumoto and Nishimura, 1998), seeded with the low 32 bits as PyTorch does.
struct MersenneTwister {
    state: [u32; 624],
    used: usize,
}

impl MersenneTwister {
    #[expect(clippy::cast_possible_truncation, reason = "PyTorch takes the low half of the seed")]
    fn new(seed: u64) -> Self {
        let mut state = [0; 624];
        state[0] = seed as u32;
        for index in 1..624 {
            let last: u32 = state[index - 1];
            state[index] = 1_812_433_253u32.wrapping_mul(last ^ last >> 30).wrapping_add(index as u32);
        }
        Self { state, used: 624 }
    }

    fn next_u32(&mut self) -> u32 {
        if self.used == 624 {
            for index in 0..624 {
                let mixed = self.state[index] & 0x8000_0000 | self.state[(index + 1) % 624] & 0x7FFF_FFFF;
                let twist = if mixed & 1 == 0 { 0 } else { 0x9908_B0DF };
                self.state[index] = self.state[(index + 397) % 624] ^ mixed >> 1 ^ twist;
            }
            self.used = 0;
        }
        let mut word = self.state[self.used];
        self.used += 1;
        word ^= word >> 11;
        word ^= word << 7 & 0x9D2C_5680;
        word ^= word << 15 & 0xEFC6_0000;
        word ^ word >> 18
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The C++ standard fixes the 10,000th output of a default-seeded `std::mt19937`.
    #[test]
    fn mt19937_matches_the_cpp_standard() {
        let mut generator = MersenneTwister::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn pieces_are_cut_where_torch_cuts_them() {
        let bounds =
            |length, pieces| (0..=pieces).map(|i| piece_bound(length, pieces, i)).collect::<Vec<_>>();
        assert_eq!(bounds(10, 4), [0, 2, 5, 7, 10]);
        assert_eq!(bounds(10, 3), [0, 3, 6, 10]);
        assert_eq!(bounds(7, 1), [0, 7]);
    }
}
