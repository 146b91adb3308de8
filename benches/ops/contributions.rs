//! Reductions of parameter gradients, and elementwise arithmetic.

use alchemist_engine::{
    Result,
    engine::autograd::contributions::cuda::{
        Columns, GatherIndex, add_scaled, column_sum, fill, gather_sum, scale_samples, sum_samples,
    },
};
use half::bf16;

use crate::{Bench, Floor, floats, halves};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let Some(measured) = &bench.measured else { return Ok(()) };
    let (batch, channels) = (measured.size(64, 2), measured.size(1024, 48));
    let patch_nums: &[usize] =
        if measured.rehearsal { &[1, 2, 3] } else { &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16] };
    let device = measured.device.clone();
    let level_of = |(level, side): (usize, &usize)| {
        std::iter::repeat_n(u32::try_from(level).unwrap_or(u32::MAX), side * side)
    };
    let index: Vec<u32> = patch_nums.iter().enumerate().flat_map(level_of).collect();
    let index = GatherIndex::new(&device, &index, patch_nums.len())?;
    let share = index.tokens() * channels;
    let d = device.upload(&halves(batch * share))?;

    let mut sums = device.zeros::<f32>(channels)?;
    let floor = Floor { bytes: d.bytes() + sums.bytes(), flop: 0 };
    let columns = Columns { width: channels, first: 0 };
    bench.device("column_sum", floor, || column_sum(&mut sums, &d, columns, false));
    let mut table = device.zeros::<f32>(index.rows() * channels)?;
    let floor = Floor { bytes: d.bytes() + 2 * table.bytes(), flop: 0 };
    bench.device("gather_sum", floor, || gather_sum(&mut table, &d, &index));

    let weights = device.upload(&floats(batch))?;
    let mut sum = device.zeros::<f32>(share)?;
    let floor = Floor { bytes: d.bytes() + sum.bytes(), flop: 0 };
    bench.device("sum_samples", floor, || sum_samples(&mut sum, &d, Some(&weights), share, false));
    let mut y = device.uninitialized::<bf16>(d.len())?;
    let floor = |passes: usize| Floor { bytes: passes * d.bytes(), flop: 0 };
    bench.device("scale_samples", floor(2), || scale_samples(&mut y, Some(&d), &weights));
    bench.device("fill", floor(1), || fill(&mut y, 0.5));
    let mut wide = device.zeros::<f32>(d.len())?;
    let floor = Floor { bytes: d.bytes() + 2 * wide.bytes(), flop: 0 };
    bench.device("add_scaled", floor, || add_scaled(&mut wide, &d, 0.5));
    Ok(())
}
