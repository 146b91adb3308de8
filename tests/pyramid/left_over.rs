//! What the search for the nearest code sees, in plain loops.

use alchemist_engine::engine::{Tensor, ops::pyramid::PyramidQuantizer};

/// What each scale's search sees of one sample, if the scales before had `codes`: the features that are left, `[pn², C]`.
pub(crate) fn left_over(quantizer: &PyramidQuantizer, features: &[f32], codes: &[u32]) -> Vec<Vec<f64>> {
    let (channels, side) = (quantizer.channels(), quantizer.side());
    let tensor = Tensor::new(&[1, codes.len()], codes.to_vec()).unwrap();
    let reconstructions = quantizer.reconstruct_each(&tensor).unwrap();
    let scales = quantizer.patch_nums().iter().enumerate();
    scales
        .map(|(scale, &small)| {
            let before = scale.checked_sub(1).map(|at| reconstructions[at].to_f64_vec().unwrap());
            let rest = |at: usize| f64::from(features[at]) - before.as_ref().map_or(0.0, |map| map[at]);
            let mut rows = Vec::new();
            for cell in 0..small * small {
                let window = |at: usize| (at * side / small)..((at + 1) * side).div_ceil(small);
                for channel in 0..channels {
                    let (mut sum, mut count) = (0.0, 0.0);
                    for y in window(cell / small) {
                        for x in window(cell % small) {
                            sum += rest((channel * side + y) * side + x);
                            count += 1.0;
                        }
                    }
                    rows.push(sum / count);
                }
            }
            rows
        })
        .collect()
}
