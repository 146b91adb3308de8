//! The gate of a branch by the level of each token, its gradients, and the pairs of levels that form the condition.

use std::sync::Arc;

use alchemist_engine::{
    Result,
    engine::{
        Parameters,
        ops::{
            levels::{Levels, SequenceLevels},
            modulation::{
                ModulationPart,
                cuda::{
                    ModulationTable, level_pairs, modulate_backward, modulate_backward_table,
                    modulate_forward,
                },
                gate,
            },
        },
    },
};
use half::bf16;

use crate::{Bench, Floor, floats, halves, normal};

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let levels = Arc::new(Levels::new(&[1, 4, 9, 16, 36, 64]));
    let leaves = [normal(&[2, 130, 256], 1), normal(&[6, 6 * 256], 2)];
    bench.cpu("gate", &Parameters::default(), &leaves, &|tape, vars| {
        gate(tape, &vars[0], &vars[1], 0, &levels)
    });
    let Some(measured) = &bench.measured else { return Ok(()) };
    let patch_nums: &[usize] =
        if measured.rehearsal { &[1, 2, 3] } else { &[1, 2, 3, 4, 5, 6, 8, 10, 13, 16] };
    let (batch, channels) = (measured.size(64, 2), measured.size(1024, 48));
    let device = measured.device.clone();
    let counts: Vec<usize> = patch_nums.iter().map(|side| side * side).collect();
    let sequence = SequenceLevels::new(&device, &counts)?;
    let x = device.upload(&halves(batch * sequence.tokens() * channels))?;
    let parts = device.upload(&floats(counts.len() * 6 * channels))?;
    let table = ModulationTable {
        table: &parts,
        levels: sequence.levels(),
        starts: sequence.starts(),
        samples: None,
    };
    let part = ModulationPart::Gate(0);
    let floor = |passes: usize| Floor { bytes: passes * x.bytes(), flop: 0 };
    let mut y = device.zeros::<bf16>(x.len())?;
    bench.device("gate_forward", floor(2), || modulate_forward(&mut y, Some(&x), &table, part));
    let mut dx = device.uninitialized::<bf16>(x.len())?;
    bench.device("gate_backward", floor(2), || modulate_backward(&mut dx, Some(&y), &table, part));
    let mut by_sample = device.uninitialized::<f32>(batch * counts.len() * 2 * channels)?;
    let mut d_table = device.zeros::<f32>(parts.len())?;
    bench.device("gate_backward_table", floor(2), || {
        modulate_backward_table(&mut d_table, &mut by_sample, &y, &x, &table, part)
    });
    let level = device.upload(&halves(counts.len() * channels))?;
    let mut pairs = device.uninitialized::<bf16>(2 * level.len())?;
    let floor = Floor { bytes: level.bytes() + pairs.bytes(), flop: 0 };
    bench.device("level_pairs", floor, || level_pairs(&mut pairs, &level, channels));
    Ok(())
}
