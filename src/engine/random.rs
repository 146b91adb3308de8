//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11), the generator that GPU kernels use too.
//!
//! A value depends only on (seed, stream, counter), so a run resumes bit-identically without saved state, and a kernel
//! can generate the same values as the CPU.

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block of Philox4x32-10: four random words for a 128-bit counter and a 64-bit key.
pub(crate) fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let mut state = counter;
    let mut key = key;
    for _ in 0..10 {
        let left = u64::from(MULTIPLIER[0]) * u64::from(state[0]);
        let right = u64::from(MULTIPLIER[1]) * u64::from(state[2]);
        #[expect(clippy::cast_possible_truncation, reason = "the low and high halves of a product")]
        let next = [
            (right >> 32) as u32 ^ state[1] ^ key[0],
            right as u32,
            (left >> 32) as u32 ^ state[3] ^ key[1],
            left as u32,
        ];
        state = next;
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    state
}

/// The purpose of a random stream; part of the counter, so that no two purposes share values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights.
    Initialize = 1,
    /// Drop-path masks.
    DropPath = 2,
    /// Caption dropping for guidance.
    CaptionDrop = 3,
    /// Order of the samples.
    Shuffle = 4,
    /// Choosing a subset.
    Select = 5,
    /// The synthetic data set and its flaws.
    Draw = 6,
    /// Fitting an encoder.
    Fit = 7,
    /// Hashed word vectors.
    Words = 8,
    /// Tests and benches.
    Test = 9,
    /// Tokens dropped in a training step.
    TokenDrop = 10,
    /// Codes of sampled images.
    Sample = 11,
}

/// A stream of random numbers, fixed by a seed, a purpose and an index within the purpose (a step, a layer, a row).
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    purpose: u32,
    index: u64,
    block: u32,
    buffer: [u32; 4],
    used: usize,
}

impl Random {
    /// The stream of (`seed`, `purpose`, `index`), from its start.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the seed")]
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        Self {
            key: [seed as u32, (seed >> 32) as u32],
            purpose: purpose as u32,
            index,
            block: 0,
            buffer: [0; 4],
            used: 4,
        }
    }

    /// The next 32 random bits.
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the index")]
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            let counter = [self.block, self.purpose, self.index as u32, (self.index >> 32) as u32];
            self.buffer = philox4x32(counter, self.key);
            self.block = self.block.wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.buffer[self.used - 1]
    }

    /// The next 64 random bits.
    pub(crate) fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// A uniform value in [0, 1) with 53 random bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit")]
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A uniform integer in [0, `bound`), without bias (Lemire's method).
    ///
    /// # Panics
    /// If `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        assert!(bound > 0, "the bound must be positive");
        loop {
            let product = u128::from(self.next_u64()) * u128::from(bound);
            #[expect(clippy::cast_possible_truncation, reason = "the two halves of a product")]
            let (low, high) = (product as u64, (product >> 64) as u64);
            if low >= bound || low >= bound.wrapping_neg() % bound {
                return high;
            }
        }
    }

    /// A standard normal value (Box-Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles in place (Fisher-Yates).
    #[expect(clippy::cast_possible_truncation, reason = "an index fits usize")]
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the reference implementation (Random123, `kat_vectors`).
    #[test]
    fn philox_gives_the_reference_words() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut random = Random::new(7, Purpose::Test, 0);
        let mut counts = [0u32; 7];
        for _ in 0..70_000 {
            counts[random.below(7) as usize] += 1;
        }
        assert!(counts.iter().all(|&count| (9_500..10_500).contains(&count)), "{counts:?}");
    }
}
