//! The shared modulation's kernels against the crate's CPU reference in f64, with parts that all samples share and with parts of
//! each sample's own, on the emulator and, where there is one, on a GPU.

use crate::device::{Number, close, noise, rounded, upload};
use alchemist_engine::engine::{
    Tensor,
    cuda::Device,
    ops::{
        add_to_all::cuda::add_to_all,
        modulation::{
            self, ModulationPart,
            cuda::{self as kernels, ModulationTable},
        },
    },
};

/// An op of the CPU reference: its result, and the gradients of `x` and of the parts.
fn reference(
    part: ModulationPart,
    x: &Tensor,
    parts: &Tensor,
    level_of: &[u32],
    d_output: Tensor,
) -> alchemist_engine::Result<[Tensor; 3]> {
    match part {
        ModulationPart::ScaleShift(scale, shift) => {
            let at = [scale, shift];
            let y = modulation::cpu::scale_shift::<f64>(x, parts, at, level_of)?;
            let (dx, d_parts) =
                modulation::cpu::scale_shift_backward::<f64>(x, parts, at, level_of, d_output)?;
            Ok([y, dx, d_parts])
        }
        ModulationPart::Gate(gate) => {
            let y = modulation::cpu::gate::<f64>(x, parts, gate, level_of)?;
            let [dx, d_parts] = modulation::cpu::gate_backward::<f64>(x, parts, gate, level_of, d_output)?;
            Ok([y, dx, d_parts])
        }
    }
}

fn modulation_case<T: Number>(device: &Device) {
    for (batch, counts, channels) in
        [(1, vec![1], 1), (3, vec![1, 4], 37), (2, vec![1, 4, 9], 64), (1, vec![2, 3], 264)]
    {
        for samples in [None, Some(batch)] {
            modulate_and_back::<T>(device, batch, &counts, channels, samples);
        }
        let levels = counts.len();
        let level_table = rounded::<T>(&noise(levels * channels, 5));
        let last = &level_table[(levels - 1) * channels..];
        let expected: Vec<f64> = level_table.chunks(channels).flat_map(|row| [row, last].concat()).collect();
        let level_table = upload::<T>(device, &level_table);
        for samples in [1, batch] {
            let mut pairs = device.uninitialized::<T>(samples * 2 * levels * channels).unwrap();
            kernels::level_pairs(&mut pairs, &level_table, channels).unwrap();
            close::<T>("pairs of levels", &pairs, &expected.repeat(samples), 0.0);
        }
    }
}

/// All parts of one size; with `samples` each has parts of its own.
fn modulate_and_back<T: Number>(
    device: &Device,
    batch: usize,
    counts: &[usize],
    channels: usize,
    samples: Option<usize>,
) {
    let (tokens, levels) = (counts.iter().sum::<usize>(), counts.len());
    let level_of: Vec<u32> =
        (0..levels).flat_map(|level| std::iter::repeat_n(level as u32, counts[level])).collect();
    let starts: Vec<u32> = (0..=levels).map(|level| counts[..level].iter().sum::<usize>() as u32).collect();
    let x = rounded::<T>(&noise(batch * tokens * channels, 1));
    let dy = rounded::<T>(&noise(batch * tokens * channels, 2));
    let numbers = samples.unwrap_or(1) * levels * 6 * channels;
    let condition = rounded::<f32>(&noise(numbers, 3));
    let own = rounded::<f32>(&noise(6 * channels, 4));
    let (x_here, dy_here) = (upload::<T>(device, &x), upload::<T>(device, &dy));
    let (levels_here, starts_here) = (device.upload(&level_of).unwrap(), device.upload(&starts).unwrap());
    let (condition_here, own_here) = (upload::<f32>(device, &condition), upload::<f32>(device, &own));
    let mut table = device.uninitialized(numbers).unwrap();
    add_to_all(&mut table, Some(&condition_here), &own_here).unwrap();
    let table = ModulationTable { table: &table, levels: &levels_here, starts: &starts_here, samples };
    let mut d_table = device.zeros::<f32>(numbers).unwrap();
    let mut expected_table = vec![0.0; numbers];
    let mut by_sample = device.uninitialized::<f32>(batch * levels * 2 * channels).unwrap();
    let shape = samples.map_or(vec![levels, 6 * channels], |samples| vec![samples, levels, 6 * channels]);
    let condition = Tensor::new(&shape, condition).unwrap();
    let own = Tensor::new(&[1, 1, 6, channels], own).unwrap();
    let parts = modulation::cpu::parts::<f64>(&condition, &own).unwrap();
    let [x, dy] = [x, dy].map(|values| Tensor::new(&[batch, tokens, channels], values).unwrap());
    for part in [ModulationPart::ScaleShift(2, 4), ModulationPart::Gate(0), ModulationPart::Gate(1)] {
        let [y, dx, d_parts] = reference(part, &x, &parts, &level_of, dy.clone())
            .unwrap()
            .map(|tensor| tensor.to_f64_vec().unwrap());
        for (sum, d) in expected_table.iter_mut().zip(&d_parts) {
            *sum += d;
        }
        let mut out = device.uninitialized::<T>(x.len()).unwrap();
        kernels::modulate_forward(&mut out, Some(&x_here), &table, part).unwrap();
        close::<T>("modulate", &out, &y, T::BOUND);
        kernels::modulate_backward(&mut out, Some(&dy_here), &table, part).unwrap();
        close::<T>("modulate's gradient", &out, &dx, T::BOUND);
        let (d_table, by_sample) = (&mut d_table, &mut by_sample);
        kernels::modulate_backward_table(d_table, by_sample, &dy_here, &x_here, &table, part).unwrap();
    }
    close::<f32>("the table's gradient", &d_table, &expected_table, 1e-5);
}

#[test]
fn modulation_matches_the_reference() {
    in_all_types!(modulation_case);
}

#[test]
fn launchers_refuse_sizes_that_do_not_fit() {
    let device = Device::emulated().unwrap();
    // Three samples of two tokens of two levels, a channel each.
    let (x, mut y) = (device.zeros::<f32>(6).unwrap(), device.zeros::<f32>(6).unwrap());
    let (levels, starts) = (device.upload(&[0u32, 1]).unwrap(), device.upload(&[0u32, 1, 2]).unwrap());
    let mut refused = |numbers: usize, samples: Option<usize>| {
        let table = device.zeros::<f32>(numbers).unwrap();
        let table = ModulationTable { table: &table, levels: &levels, starts: &starts, samples };
        kernels::modulate_forward(&mut y, Some(&x), &table, ModulationPart::Gate(0)).is_err()
    };
    assert!(!refused(12, None) && !refused(36, Some(3)));
    assert!(refused(13, None) && refused(36, Some(0)) && refused(24, Some(2)) && refused(35, Some(3)));
    let mut pairs = device.zeros::<f32>(13).unwrap();
    assert!(kernels::level_pairs(&mut pairs, &x, 1).is_err());
}
