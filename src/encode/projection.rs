//! Affine maps of rows, y = x·M + o, for the PCA tokenizer's patches.

use pulp::{Arch, Simd, WithSimd};

const LANES: usize = 16;
const ROWS: usize = 4;

/// An affine map from rows of `inputs` values to rows of `outputs` values. Each row is mapped independently.
#[derive(Clone, Debug)]
pub(super) struct Projection {
    inputs: usize,
    outputs: usize,
    /// Outputs in groups of [`LANES`], `[groups, inputs, LANES]`.
    packed: Vec<[f32; LANES]>,
    offset: Vec<[f32; LANES]>,
}

impl Projection {
    /// Takes the matrix as `entry(input, output)`, and the offset of each output.
    pub(super) fn new(inputs: usize, offset: &[f32], entry: impl Fn(usize, usize) -> f32) -> Self {
        let outputs = offset.len();
        let groups = outputs.div_ceil(LANES);
        let mut packed = vec![[0.0; LANES]; groups * inputs];
        let mut packed_offset = vec![[0.0; LANES]; groups];
        for (output, &value) in offset.iter().enumerate() {
            let (group, lane) = (output / LANES, output % LANES);
            packed_offset[group][lane] = value;
            for input in 0..inputs {
                packed[group * inputs + input][lane] = entry(input, output);
            }
        }
        Self { inputs, outputs, packed, offset: packed_offset }
    }

    /// Maps `rows` `[N, inputs]` to `mapped` `[N, outputs]`.
    pub(super) fn apply(&self, rows: &[f32], mapped: &mut [f32]) {
        assert_eq!(rows.len() * self.outputs, mapped.len() * self.inputs, "one result per row");
        Arch::new().dispatch(Project { projection: self, rows, mapped });
    }
}

struct Project<'a> {
    projection: &'a Projection,
    rows: &'a [f32],
    mapped: &'a mut [f32],
}

impl WithSimd for Project<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, _simd: S) {
        let Self { projection, rows, mapped } = self;
        let count = rows.len() / projection.inputs;
        let mut at = 0;
        while at + ROWS <= count {
            project::<ROWS>(projection, at, rows, mapped);
            at += ROWS;
        }
        for at in at..count {
            project::<1>(projection, at, rows, mapped);
        }
    }
}

#[inline(always)]
fn project<const N: usize>(projection: &Projection, at: usize, rows: &[f32], mapped: &mut [f32]) {
    let (inputs, outputs) = (projection.inputs, projection.outputs);
    let rows: [&[f32]; N] = std::array::from_fn(|row| &rows[(at + row) * inputs..][..inputs]);
    for (group, (matrix, offset)) in
        projection.packed.chunks_exact(inputs).zip(&projection.offset).enumerate()
    {
        let mut sums = [*offset; N];
        for (input, weights) in matrix.iter().enumerate() {
            for row in 0..N {
                let value = rows[row][input];
                for lane in 0..LANES {
                    sums[row][lane] += value * weights[lane];
                }
            }
        }
        let used = LANES.min(outputs - group * LANES);
        for (row, sums) in sums.iter().enumerate() {
            mapped[(at + row) * outputs + group * LANES..][..used].copy_from_slice(&sums[..used]);
        }
    }
}
