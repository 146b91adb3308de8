//! Inception-v3 for the Fréchet Inception Distance: the network that TensorFlow's authors released in December 2015, in
//! the layout of pytorch-fid (`pt_inception-2015-12-05`). Unlike torchvision's, its average pools exclude the padding,
//! and the last block has a max pool instead. The features are the output of its last pool, 2048 values.

use std::path::Path;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::space::FeatureSpace;
use crate::{
    data::{ImageRef, Preprocess, load_full_image},
    encode::convolution::Convolution,
    engine::{
        Tensor,
        ops::convolution::cpu::{Border, Bordered, Into, Map},
    },
    error::{Error, Result},
    files::hexadecimal,
    weights::Weights,
};

const OP: &str = "Inception-v3";

/// Side in pixels of its input images.
const SIDE: usize = 299;

/// Dimensions of a feature.
const DIMENSIONS: usize = 2048;

/// ε of every batch norm.
const EPSILON: f64 = 1e-3;

/// A layer of the network.
#[derive(Debug)]
enum Step {
    /// A convolution with folded batch norm, and ReLU.
    Unit { convolution: Convolution, border: Border, halves: bool },
    /// 3×3 average pool, stride 1, padding excluded.
    Average,
    /// 3×3 max pool, stride 1, padded.
    Largest,
    /// 3×3 max pool, stride 2, without padding.
    LargestHalving,
    /// Parallel branches whose channels are concatenated.
    Branches(Vec<Vec<Step>>),
}

/// Computes FID's features of images, `[B, 2048]`.
#[derive(Debug)]
pub struct Inception {
    steps: Vec<Step>,
    decode: Preprocess,
    digest: String,
}

impl Inception {
    /// Reads the weights from a safetensors file or a PyTorch checkpoint with pytorch-fid's names. `decode` configures
    /// transparency and EXIF data.
    ///
    /// # Errors
    /// If the file cannot be read, or a tensor is missing, has the wrong shape or is not finite.
    pub fn open(path: &Path, decode: Preprocess) -> Result<Self> {
        let weights = Weights::open(path)?.network(&["Conv2d_1a_3x3.conv.weight"]);
        let mut reader = Reader { weights: &weights, hash: Sha256::new() };
        let steps = network(&mut reader)?;
        Ok(Self { steps, decode, digest: hexadecimal(&reader.hash.finalize()) })
    }
}

/// Reads layers by name, and hashes their weights.
struct Reader<'a> {
    weights: &'a Weights,
    hash: Sha256,
}

/// Padding and stride of a convolution.
#[derive(Clone, Copy)]
enum Padding {
    /// Same padding, stride 1.
    All,
    /// No padding, stride 1.
    Within,
    /// No padding, stride 2.
    Halving,
}

impl Reader<'_> {
    fn tensor(&mut self, name: String, shape: &[usize]) -> Result<Vec<f32>> {
        let damaged = |message| Error::Checkpoint { path: self.weights.path().to_path_buf(), message };
        let tensor = self.weights.read(&name).map_err(|error| match error {
            Error::Checkpoint { message, .. } => {
                damaged(format!("not FID's Inception-v3 with pytorch-fid's names: {message}"))
            }
            other => other,
        })?;
        if tensor.shape() != shape {
            return Err(damaged(format!(
                "{name} must be {shape:?} in FID's Inception-v3, but is {:?}",
                tensor.shape()
            )));
        }
        let values = tensor.as_slice::<f32>()?;
        if values.iter().any(|value| !value.is_finite()) {
            return Err(damaged(format!("{name} is not finite (NaN or Inf)")));
        }
        self.hash.update(format!("{name}{shape:?}"));
        self.hash.update(bytemuck::cast_slice::<f32, u8>(values));
        Ok(values.to_vec())
    }

    /// The convolution `name` with these input and output channels and kernel size.
    #[expect(clippy::cast_possible_truncation, reason = "weights are f32")]
    fn unit(
        &mut self,
        name: &str,
        inputs: usize,
        outputs: usize,
        size: [usize; 2],
        padding: Padding,
    ) -> Result<Step> {
        let shape = [outputs, inputs, size[0], size[1]];
        let mut weight = self.tensor(format!("{name}.conv.weight"), &shape)?;
        let mut of_norm = |part: &str| self.tensor(format!("{name}.bn.{part}"), &[outputs]);
        let (scale, shift) = (of_norm("weight")?, of_norm("bias")?);
        let (mean, variance) = (of_norm("running_mean")?, of_norm("running_var")?);
        let mut bias = Vec::with_capacity(outputs);
        for (output, filter) in weight.chunks_exact_mut(inputs * size[0] * size[1]).enumerate() {
            let factor = f64::from(scale[output]) / (f64::from(variance[output]) + EPSILON).sqrt();
            filter.iter_mut().for_each(|value| *value = (f64::from(*value) * factor) as f32);
            bias.push((f64::from(shift[output]) - f64::from(mean[output]) * factor) as f32);
        }
        let convolution =
            Convolution::new(name, &Tensor::new(&shape, weight)?, &Tensor::new(&[outputs], bias)?)?;
        let border = match padding {
            Padding::All => Border { rows: size[0] / 2, columns: size[1] / 2 },
            Padding::Within | Padding::Halving => Border::default(),
        };
        Ok(Step::Unit { convolution, border, halves: matches!(padding, Padding::Halving) })
    }

    /// Convolutions of a block in sequence: name, output channels, kernel size, padding and stride.
    fn chain(
        &mut self,
        block: &str,
        mut inputs: usize,
        units: &[(&str, usize, [usize; 2], Padding)],
    ) -> Result<Vec<Step>> {
        units
            .iter()
            .map(|&(name, outputs, size, padding)| {
                let step = self.unit(&format!("{block}.{name}"), inputs, outputs, size, padding);
                inputs = outputs;
                step
            })
            .collect()
    }

    /// A pool followed by a 1×1 convolution.
    fn pooled(&mut self, block: &str, pool: Step, inputs: usize, outputs: usize) -> Result<Vec<Step>> {
        Ok(vec![pool, self.unit(&format!("{block}.branch_pool"), inputs, outputs, POINT, Padding::All)?])
    }
}

const POINT: [usize; 2] = [1, 1];
const SQUARE: [usize; 2] = [3, 3];
const WIDE: [usize; 2] = [1, 7];
const HIGH: [usize; 2] = [7, 1];

fn network(reader: &mut Reader<'_>) -> Result<Vec<Step>> {
    use Padding::{All, Halving, Within};
    Ok(vec![
        reader.unit("Conv2d_1a_3x3", 3, 32, SQUARE, Halving)?,
        reader.unit("Conv2d_2a_3x3", 32, 32, SQUARE, Within)?,
        reader.unit("Conv2d_2b_3x3", 32, 64, SQUARE, All)?,
        Step::LargestHalving,
        reader.unit("Conv2d_3b_1x1", 64, 80, POINT, All)?,
        reader.unit("Conv2d_4a_3x3", 80, 192, SQUARE, Within)?,
        Step::LargestHalving,
        block_a(reader, "Mixed_5b", 192, 32)?,
        block_a(reader, "Mixed_5c", 256, 64)?,
        block_a(reader, "Mixed_5d", 288, 64)?,
        block_b(reader, "Mixed_6a", 288)?,
        block_c(reader, "Mixed_6b", 128)?,
        block_c(reader, "Mixed_6c", 160)?,
        block_c(reader, "Mixed_6d", 160)?,
        block_c(reader, "Mixed_6e", 192)?,
        block_d(reader, "Mixed_7a")?,
        block_e(reader, "Mixed_7b", 1280, Step::Average)?,
        block_e(reader, "Mixed_7c", 2048, Step::Largest)?,
    ])
}

fn block_a(reader: &mut Reader<'_>, name: &str, inputs: usize, pool: usize) -> Result<Step> {
    use Padding::All;
    Ok(Step::Branches(vec![
        reader.chain(name, inputs, &[("branch1x1", 64, POINT, All)])?,
        reader.chain(name, inputs, &[("branch5x5_1", 48, POINT, All), ("branch5x5_2", 64, [5, 5], All)])?,
        reader.chain(
            name,
            inputs,
            &[
                ("branch3x3dbl_1", 64, POINT, All),
                ("branch3x3dbl_2", 96, SQUARE, All),
                ("branch3x3dbl_3", 96, SQUARE, All),
            ],
        )?,
        reader.pooled(name, Step::Average, inputs, pool)?,
    ]))
}

fn block_b(reader: &mut Reader<'_>, name: &str, inputs: usize) -> Result<Step> {
    use Padding::{All, Halving};
    Ok(Step::Branches(vec![
        reader.chain(name, inputs, &[("branch3x3", 384, SQUARE, Halving)])?,
        reader.chain(
            name,
            inputs,
            &[
                ("branch3x3dbl_1", 64, POINT, All),
                ("branch3x3dbl_2", 96, SQUARE, All),
                ("branch3x3dbl_3", 96, SQUARE, Halving),
            ],
        )?,
        vec![Step::LargestHalving],
    ]))
}

fn block_c(reader: &mut Reader<'_>, name: &str, inner: usize) -> Result<Step> {
    use Padding::All;
    const INPUTS: usize = 768;
    Ok(Step::Branches(vec![
        reader.chain(name, INPUTS, &[("branch1x1", 192, POINT, All)])?,
        reader.chain(
            name,
            INPUTS,
            &[
                ("branch7x7_1", inner, POINT, All),
                ("branch7x7_2", inner, WIDE, All),
                ("branch7x7_3", 192, HIGH, All),
            ],
        )?,
        reader.chain(
            name,
            INPUTS,
            &[
                ("branch7x7dbl_1", inner, POINT, All),
                ("branch7x7dbl_2", inner, HIGH, All),
                ("branch7x7dbl_3", inner, WIDE, All),
                ("branch7x7dbl_4", inner, HIGH, All),
                ("branch7x7dbl_5", 192, WIDE, All),
            ],
        )?,
        reader.pooled(name, Step::Average, INPUTS, 192)?,
    ]))
}

fn block_d(reader: &mut Reader<'_>, name: &str) -> Result<Step> {
    use Padding::{All, Halving};
    const INPUTS: usize = 768;
    Ok(Step::Branches(vec![
        reader.chain(
            name,
            INPUTS,
            &[("branch3x3_1", 192, POINT, All), ("branch3x3_2", 320, SQUARE, Halving)],
        )?,
        reader.chain(
            name,
            INPUTS,
            &[
                ("branch7x7x3_1", 192, POINT, All),
                ("branch7x7x3_2", 192, WIDE, All),
                ("branch7x7x3_3", 192, HIGH, All),
                ("branch7x7x3_4", 192, SQUARE, Halving),
            ],
        )?,
        vec![Step::LargestHalving],
    ]))
}

fn block_e(reader: &mut Reader<'_>, name: &str, inputs: usize, pool: Step) -> Result<Step> {
    use Padding::All;
    const FORKED: usize = 384;
    let fork = |reader: &mut Reader<'_>, stem: &str, numbers: [&str; 2]| -> Result<Step> {
        let mut arm = |number: &str, size| -> Result<Vec<Step>> {
            reader.chain(name, FORKED, &[(&format!("{stem}_{number}"), FORKED, size, All)])
        };
        Ok(Step::Branches(vec![arm(numbers[0], [1, 3])?, arm(numbers[1], [3, 1])?]))
    };
    let point = reader.chain(name, inputs, &[("branch1x1", 320, POINT, All)])?;
    let mut single = reader.chain(name, inputs, &[("branch3x3_1", FORKED, POINT, All)])?;
    single.push(fork(reader, "branch3x3", ["2a", "2b"])?);
    let mut double = reader.chain(
        name,
        inputs,
        &[("branch3x3dbl_1", 448, POINT, All), ("branch3x3dbl_2", FORKED, SQUARE, All)],
    )?;
    double.push(fork(reader, "branch3x3dbl", ["3a", "3b"])?);
    Ok(Step::Branches(vec![point, single, double, reader.pooled(name, pool, inputs, 192)?]))
}

impl Step {
    fn apply(&self, input: &Map, space: &mut Bordered) -> Map {
        match self {
            Self::Unit { convolution, border, halves } => {
                let mut output = Map::default();
                if convolution.size() == POINT {
                    output.resize(input.side, convolution.outputs());
                    convolution.pointwise(&input.values, &mut output.values);
                } else {
                    space.copy_of(input, *border);
                    if *halves {
                        convolution.apply_every_other(space, &mut output);
                    } else {
                        convolution.apply(space, &mut output, Into::Overwrite);
                    }
                }
                output.values.iter_mut().for_each(|value| *value = value.max(0.0));
                output
            }
            Self::Average => pool(
                input,
                input.side,
                |at| at.saturating_sub(1)..(at + 2).min(input.side),
                |sums, count| {
                    sums.iter_mut().for_each(|sum| *sum /= count);
                },
                |sum, value| *sum += value,
            ),
            Self::Largest => largest(input, input.side, |at| at.saturating_sub(1)..(at + 2).min(input.side)),
            Self::LargestHalving => largest(input, (input.side - 1) / 2, |at| 2 * at..2 * at + 3),
            Self::Branches(branches) => {
                let parts: Vec<Map> = branches.iter().map(|steps| run(steps, input, space)).collect();
                concat_channels(&parts)
            }
        }
    }
}

fn run(steps: &[Step], input: &Map, space: &mut Bordered) -> Map {
    let mut map: Option<Map> = None;
    for step in steps {
        map = Some(step.apply(map.as_ref().unwrap_or(input), space));
    }
    map.unwrap_or_default()
}

/// Pools a map; `window` maps an output row (or column) to its range of input rows (or columns).
fn pool(
    input: &Map,
    side: usize,
    window: impl Fn(usize) -> std::ops::Range<usize> + Sync,
    finish: impl Fn(&mut [f32], f32) + Sync,
    fold: impl Fn(&mut f32, f32) + Sync,
) -> Map {
    let channels = input.channels;
    let mut output = Map::default();
    output.resize(side, channels);
    output.values.par_chunks_exact_mut(side * channels).enumerate().for_each(|(y, row)| {
        for (x, output) in row.chunks_exact_mut(channels).enumerate() {
            let mut count = 0.0;
            for (at, column) in window(y).flat_map(|row| window(x).map(move |column| (row, column))) {
                let pixel = &input.values[(at * input.side + column) * channels..][..channels];
                if count == 0.0 {
                    output.copy_from_slice(pixel);
                } else {
                    output.iter_mut().zip(pixel).for_each(|(output, &value)| fold(output, value));
                }
                count += 1.0;
            }
            finish(output, count);
        }
    });
    output
}

fn largest(input: &Map, side: usize, window: impl Fn(usize) -> std::ops::Range<usize> + Sync) -> Map {
    pool(input, side, window, |_, _| (), |most, value| *most = most.max(value))
}

/// Concatenates maps of one size along the channels.
fn concat_channels(parts: &[Map]) -> Map {
    let channels: usize = parts.iter().map(|part| part.channels).sum();
    let side = parts.first().map_or(0, |part| part.side);
    let mut output = Map::default();
    output.resize(side, channels);
    for (pixel, output) in output.values.chunks_exact_mut(channels).enumerate() {
        let mut rest = output;
        for part in parts {
            let (own, after) = rest.split_at_mut(part.channels);
            own.copy_from_slice(&part.values[pixel * part.channels..][..part.channels]);
            rest = after;
        }
    }
    output
}

impl FeatureSpace for Inception {
    fn name(&self) -> String {
        "Inception-v3 pool3, 2048 dimensions".to_owned()
    }

    fn distance_name(&self) -> String {
        "FID (Fréchet distance of Inception-v3 pool3, 2048 dimensions)".to_owned()
    }

    fn identity(&self) -> String {
        format!("{} {:?} {}", self.name(), self.decode, self.digest)
    }

    fn dimensions(&self) -> usize {
        DIMENSIONS
    }

    /// The image's center square, resized bilinearly without antialiasing like in pytorch-fid, in [-1, 1].
    fn read(&self, image: &ImageRef) -> Result<Tensor> {
        let full = load_full_image(image, &self.decode)?;
        let side = full.width.min(full.height);
        Tensor::new(&[3, SIDE, SIDE], bilinear(&full.middle(side, side).rgb, side))
    }

    #[expect(clippy::cast_precision_loss, reason = "an 8×8 map")]
    fn features(&self, images: &Tensor) -> Result<Tensor> {
        if !matches!(*images.shape(), [_, 3, SIDE, SIDE]) {
            return Err(Error::shape(
                OP,
                format!("expected images [B, 3, {SIDE}, {SIDE}], got {:?}", images.shape()),
            ));
        }
        let plane = SIDE * SIDE;
        let each: Vec<Vec<f32>> = images
            .as_slice::<f32>()?
            .par_chunks_exact(3 * plane)
            .map_init(Bordered::default, |space, image| {
                let values = (0..3 * plane).map(|at| image[at % 3 * plane + at / 3]).collect();
                let map = run(&self.steps, &Map { side: SIDE, channels: 3, values }, space);
                let mut feature = vec![0.0; map.channels];
                for pixel in map.values.chunks_exact(map.channels) {
                    feature.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
                }
                feature.iter_mut().for_each(|sum| *sum /= (map.side * map.side) as f32);
                feature
            })
            .collect();
        Tensor::new(&[each.len(), DIMENSIONS], each.concat())
    }
}

/// Resizes a square `[side, side, 3]` of bytes to `[3, 299, 299]` in [-1, 1] by bilinear interpolation between pixel
/// centers (PyTorch's `interpolate` without `align_corners`).
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "positions in an image, in f32 like PyTorch"
)]
fn bilinear(rgb: &[u8], side: usize) -> Vec<f32> {
    let scale = side as f32 / SIDE as f32;
    let samples: Vec<(usize, usize, f32)> = (0..SIDE)
        .map(|at| {
            let position = (scale * (at as f32 + 0.5) - 0.5).max(0.0);
            let first = (position as usize).min(side - 1);
            (first, (first + 1).min(side - 1), position - first as f32)
        })
        .collect();
    let mut values = Vec::with_capacity(3 * SIDE * SIDE);
    for channel in 0..3 {
        let level = |row: usize, column: usize| f32::from(rgb[(row * side + column) * 3 + channel]) / 255.0;
        for &(top, bottom, down) in &samples {
            values.extend(samples.iter().map(|&(left, right, across)| {
                let along = |row: usize| (1.0 - across) * level(row, left) + across * level(row, right);
                2.0 * ((1.0 - down) * along(top) + down * along(bottom)) - 1.0
            }));
        }
    }
    values
}
