//! What the tests share: the tolerance table, fixtures made by the released code, seeded inputs.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test binary uses its own part")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use alchemist_engine::{
    encode::TextStates,
    engine::{
        DType, Parameters, Purpose, Random, Tensor,
        cuda::{Device, DeviceChoice},
    },
};
use serde_json::Value;

/// The tolerances of comparisons with other code and with finite differences, but for those that belong to one type of number or
/// one fixture, which are next to it. Relative errors are against a tensor's largest magnitude.
pub mod tolerance {
    /// Forward values against the released code, f32.
    pub const PARITY_FORWARD: f64 = 1e-4;
    /// Gradients against the released code, f32.
    pub const PARITY_GRADIENT: f64 = 1e-3;
    /// Losses of training steps against the released code, relative.
    pub const PARITY_LOSS: f64 = 1e-4;
    /// Final weights: this many times the released code's own f32-against-f64 difference.
    pub const PARITY_FINAL_WEIGHTS: f64 = 5.0;
    /// Tensors of released checkpoints against their digests, whose numbers have nine or ten digits.
    pub const PARITY_WEIGHTS: f64 = 1e-7;
    /// Two codes are equally far from a vector if their squared distances differ by less, relative.
    pub const CODE_TIE: f64 = 1e-6;
    /// Central differences in f64.
    pub const FINITE_DIFFERENCE: f64 = 1e-6;
    /// Step of the central differences, as a share of the input's scale of about 1.
    pub const FINITE_DIFFERENCE_STEP: f64 = 1e-5;
    /// One f32 op against its own f64 run.
    pub const OP_F32: f64 = 1e-5;
    /// A whole network's gradients in f32 against its own f64 run: rounding adds up over its layers.
    pub const NETWORK_F32: f64 = 1e-4;
    /// Per-sample products and norms against one backward pass per sample, in f64, for each parameter.
    pub const GHOST_F64: f64 = 1e-10;
    /// The same in f32, against f64.
    pub const GHOST_F32: f64 = 1e-5;
    /// The same over all parameters on a device in bf16, against f64.
    pub const GHOST_BF16: f64 = 1e-2;
    /// The same against the released model, in all and for each parameter.
    pub const PARITY_GHOST: f64 = 1e-4;
}

/// A folder made by running the released code.
pub struct Fixture {
    pub folder: PathBuf,
    pub manifest: Value,
}

impl Fixture {
    pub fn open(folder: &Path) -> Self {
        let text = std::fs::read_to_string(folder.join("manifest.json")).expect("a fixture has a manifest");
        Self {
            folder: folder.to_path_buf(),
            manifest: serde_json::from_str(&text).expect("the manifest is JSON"),
        }
    }

    pub fn tensors(&self, file: &str) -> BTreeMap<String, Tensor> {
        read_tensors(&self.folder.join(file))
    }

    pub fn number(&self, key: &str) -> f64 {
        self.manifest["config"][key].as_f64().unwrap_or_else(|| panic!("the manifest lacks config.{key}"))
    }

    pub fn size(&self, key: &str) -> usize {
        self.number(key) as usize
    }

    pub fn patch_nums(&self) -> Vec<usize> {
        let list = self.manifest["config"]["patch_nums"].as_array().expect("config.patch_nums is a list");
        list.iter().map(|side| side.as_u64().expect("a side is a number") as usize).collect()
    }

    pub fn name(&self) -> String {
        self.folder.file_name().expect("a folder has a name").to_string_lossy().into_owned()
    }
}

/// Reads a safetensors file; integers become u32, every float is kept at its width.
pub fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a fixture is valid safetensors");
    file.tensors().into_iter().map(|(name, view)| (name, tensor(&view))).collect()
}

fn tensor(view: &safetensors::tensor::TensorView<'_>) -> Tensor {
    use safetensors::Dtype;
    let data = view.data();
    let shape = view.shape();
    match view.dtype() {
        Dtype::F32 => {
            Tensor::new(shape, data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
        }
        Dtype::F64 => {
            Tensor::new(shape, data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect())
        }
        Dtype::F16 => Tensor::new(
            shape,
            data.as_chunks::<2>().0.iter().map(|b| half::f16::from_le_bytes(*b).to_f32()).collect(),
        ),
        Dtype::I64 => Tensor::new(
            shape,
            data.as_chunks::<8>()
                .0
                .iter()
                .map(|b| u32::try_from(i64::from_le_bytes(*b)).unwrap_or(u32::MAX))
                .collect(),
        ),
        Dtype::U8 => Tensor::new(shape, data.iter().map(|&byte| u32::from(byte)).collect()),
        other => panic!("no fixture should hold {other:?}"),
    }
    .expect("a fixture's sizes fit")
}

/// The largest difference over the largest magnitude of `expected`.
pub fn relative_error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.len(), expected.len(), "{:?} instead of {:?}", found.shape(), expected.shape());
    let (found, expected) = (found.to_f64_vec().unwrap(), expected.to_f64_vec().unwrap());
    let scale = expected.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let error = found.iter().zip(&expected).fold(0.0f64, |most, (found, expected)| {
        let difference = (found - expected).abs();
        if difference.is_nan() { f64::INFINITY } else { most.max(difference) }
    });
    if scale > 0.0 { error / scale } else { error }
}

/// The weight of number `at` in a digest's inner product.
fn digest_pattern(at: u64) -> f64 {
    (at.wrapping_mul(40_503) % 65_536) as f64 / 32_768.0 - 1.0
}

/// The place of a digest's sample `at` among `count` numbers.
fn digest_place(at: u64, count: u64) -> usize {
    ((at * 2_654_435_761 + 12_345) % count) as usize
}

/// A tensor's digest, as each manifest defines it.
pub fn digest(tensor: &Tensor) -> Value {
    let values = tensor.to_f64_vec().unwrap();
    let count = values.len() as u64;
    let dot: f64 = values.iter().enumerate().map(|(at, value)| value * digest_pattern(at as u64)).sum();
    serde_json::json!({
        "numel": count,
        "sum": values.iter().sum::<f64>(),
        "sumsq": values.iter().map(|value| value * value).sum::<f64>(),
        "dot": dot,
        "val": (0..count.min(16)).map(|at| values[digest_place(at, count)]).collect::<Vec<_>>(),
    })
}

/// The error of a tensor against its digest (definition in each manifest): the worst of the sampled values, against
/// the digest's largest magnitude, and of sum, sum of squares and inner product, against their natural scales.
pub fn digest_error(found: &Tensor, digest: &Value) -> f64 {
    let values = found.to_f64_vec().unwrap();
    let count = values.len() as u64;
    let number = |key: &str| digest[key].as_f64().unwrap_or_else(|| panic!("the digest lacks {key}"));
    assert_eq!(Some(count), digest["numel"].as_u64(), "the digest is of another size");
    let square: f64 = values.iter().map(|value| value * value).sum();
    let dot: f64 = values.iter().enumerate().map(|(at, value)| value * digest_pattern(at as u64)).sum();
    let length = number("sumsq").sqrt().max(1e-300);
    let root = (count as f64).sqrt();
    let mut worst = (values.iter().sum::<f64>() - number("sum")).abs() / (length * root);
    worst = worst.max((dot - number("dot")).abs() / (length * root));
    worst = worst.max((square - number("sumsq")).abs() / (length * length));
    let samples = digest["val"].as_array().expect("the digest has samples");
    let scale = values.iter().fold(0.0f64, |most, value| most.max(value.abs())).max(1e-300);
    for (at, expected) in samples.iter().enumerate() {
        let difference =
            values[digest_place(at as u64, count)] - expected.as_f64().expect("a sample is a number");
        worst = worst.max(difference.abs() / scale);
    }
    if worst.is_nan() { f64::INFINITY } else { worst }
}

/// Seeded standard normal values.
pub fn normal(shape: &[usize], stream: u64, dtype: DType) -> Tensor {
    let mut random = Random::new(11, Purpose::Test, stream);
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| random.normal()).collect();
    Tensor::new(shape, values).expect("the values fill the shape").cast(dtype).unwrap()
}

/// The device that `ALCHEMIST_DEVICE` names (`cpu` unless given), opened anew.
pub fn open_device() -> Option<Device> {
    let name = std::env::var("ALCHEMIST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let choice: DeviceChoice = name.parse().unwrap_or_else(|error| panic!("ALCHEMIST_DEVICE: {error}"));
    choice.open().unwrap_or_else(|error| panic!("ALCHEMIST_DEVICE: {error}"))
}

/// The same, opened once.
pub fn device() -> Option<&'static Device> {
    static OPENED: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
    OPENED.get_or_init(open_device).as_ref()
}

/// A tensor where `ALCHEMIST_DEVICE` says.
pub fn near(tensor: &Tensor) -> Tensor {
    match device() {
        None => tensor.clone(),
        Some(device) => tensor.to_device(device).expect("the device takes it"),
    }
}

/// A network's weights there, activations in f32.
pub fn parameters_near(parameters: Parameters) -> Parameters {
    match device() {
        None => parameters,
        Some(device) => parameters.to_device(device, DType::F32).expect("the device takes them"),
    }
}

/// Captions there.
pub fn text_near(text: &TextStates) -> TextStates {
    TextStates { states: near(&text.states), mask: near(&text.mask), pooled: near(&text.pooled) }
}
