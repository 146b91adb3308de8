//! Networks in the format of the released code: reading them, and writing ones that it loads.

use std::path::Path;

use crate::{
    config::Config,
    engine::{DType, Parameters, Tensor},
    error::{Error, Result},
    interrupt::Interrupt,
    models::{Proxy, Rater},
    tokens::encoders::Encoders,
    training::checkpoint::Tensors,
    weights::{Differences, Payload, Value, Weights, write_torch},
};

/// The prefix of the proxy's or a model's weights in a released checkpoint.
pub const PROXY: &str = "trainer.var_wo_ddp";
/// The prefix of the rater's weights.
pub const RATER: &str = "trainer.varRater_wo_ddp";

/// Whether a tensor of a released checkpoint is never read: the class embedding, and the key biases, which are fixed
/// at 0 (upstream.md, B2 and B6).
pub(crate) fn is_unused(name: &str) -> bool {
    name == "class_emb.weight" || name.ends_with(".zero_k_bias")
}

/// Tensors that every such network has, used to find it in a file.
const MARKS: [&str; 2] = ["pos_start", "word_embed.weight"];

/// The tensors of a network in a file: below `prefix` in a released checkpoint, otherwise where [`Weights::network`]
/// finds them. Prefixes added by wrappers are stripped.
///
/// # Errors
/// If the file cannot be read, or is a checkpoint without this network.
pub fn open(path: &Path, prefix: &str) -> Result<Weights> {
    let file = Weights::open(path)?;
    if !file.names().any(|name| name.starts_with("trainer.")) {
        return Ok(file.network(&MARKS));
    }
    let below = file.within(prefix);
    if below.names().next().is_none() {
        return Err(Error::Checkpoint {
            path: path.to_path_buf(),
            message: format!("is a released checkpoint without {prefix}"),
        });
    }
    Ok(below.network(&MARKS))
}

/// Reads all weights of a network.
///
/// # Errors
/// Those of [`open`]; or if tensors are missing, unexpected or of another shape, the first of which are named.
pub fn load(path: &Path, prefix: &str, parameters: &mut Parameters) -> Result<()> {
    let weights = open(path, prefix)?;
    let differences = differences(&weights, parameters);
    if !differences.is_empty() {
        return Err(Error::Checkpoint {
            path: path.to_path_buf(),
            message: format!(
                "does not fit the network of this configuration: {differences} (`inspect --config` lists all)"
            ),
        });
    }
    let names: Vec<String> = parameters.iter().map(|(_, name, _)| name.to_owned()).collect();
    for name in &names {
        parameters.set(name, &weights.read(name)?)?;
    }
    Ok(())
}

/// How a file's tensors differ from those of a network; tensors that are never read may be present.
fn differences(weights: &Weights, parameters: &Parameters) -> Differences {
    let expected = parameters.iter().map(|(_, name, value)| (name.to_owned(), value.shape().to_vec()));
    let unused = weights
        .names()
        .filter(|name| is_unused(name))
        .filter_map(|name| Some((name.to_owned(), weights.entry(name)?.shape.clone())));
    weights.compare(expected.chain(unused))
}

/// How a file differs from the network of a configuration, below `prefix` ([`PROXY`] or [`RATER`]); sizes come from
/// the encoders of the configuration.
///
/// # Errors
/// Those of [`open`], or if an encoder cannot be read.
pub(crate) fn differences_from(path: &Path, prefix: &str, config: &Config) -> Result<Differences> {
    let weights = open(path, prefix)?;
    let (vocabulary, code_channels, text_channels) = Encoders::named(config, &Interrupt::default())?.sizes();
    let parameters = if prefix == RATER {
        Rater::uninitialized(&config.rater_backbone(vocabulary, code_channels, text_channels), DType::F32)?.1
    } else {
        Proxy::uninitialized(&config.proxy_backbone(vocabulary, code_channels, text_channels), DType::F32)?.1
    };
    Ok(differences(&weights, &parameters))
}

/// Whether a file is a checkpoint of the released code with the network at `prefix`.
///
/// # Errors
/// If it cannot be read.
pub fn contains(path: &Path, prefix: &str) -> Result<bool> {
    Ok(!Weights::open(path)?.within(prefix).is_empty())
}

/// Rows of the unused class embedding: the classes, and one for no class.
const CLASSES: usize = 1001;

/// The tensors of a network as the released code expects them: ours, and those that are never read.
fn state(weights: &Tensors) -> Result<Value> {
    let width = weights.get("pos_start").map_or(0, |start| start.dim(2));
    let mut items: Vec<(String, Value)> = Vec::with_capacity(weights.len());
    let zeros = |shape: &[usize]| Payload::from_tensor(&Tensor::zeros(shape, DType::F32)).map(Value::Tensor);
    items.push(("class_emb.weight".to_owned(), zeros(&[CLASSES, width])?));
    for (name, tensor) in weights {
        if let Some(attention) = name.strip_suffix(".q_bias") {
            items.push((format!("{attention}.zero_k_bias"), zeros(&[width])?));
        }
        items.push((name.clone(), Value::Tensor(Payload::from_tensor(tensor)?)));
    }
    Ok(Value::Ordered(items))
}

/// Writes a checkpoint in the released layout, `{"epoch", "iter", "trainer": {"config", "var_wo_ddp",
/// "varRater_wo_ddp"}}`, with the given networks, named by the last part of [`PROXY`] and [`RATER`]. Tensors that the
/// released code has but never reads are zeros.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn export(path: &Path, config: &Config, epoch: u64, networks: &[(&str, &Tensors)]) -> Result<()> {
    let networks_config = &config.networks;
    let whole = |numbers: &mut dyn Iterator<Item = usize>| {
        Value::Tuple(numbers.map(|number| Value::Int(i64::try_from(number).unwrap_or(i64::MAX))).collect())
    };
    let sides = &networks_config.patch_nums;
    let settings = Value::Dict(vec![
        ("patch_nums".to_owned(), whole(&mut sides.iter().copied())),
        ("resos".to_owned(), whole(&mut sides.iter().map(|side| side * networks_config.patch_size))),
        ("label_smooth".to_owned(), Value::Float(config.training.label_smoothing)),
        ("prog_it".to_owned(), Value::Int(0)),
        ("last_prog_si".to_owned(), Value::Int(-1)),
        ("first_prog".to_owned(), Value::Bool(true)),
    ]);
    let mut trainer = vec![("config".to_owned(), settings)];
    for (prefix, tensors) in networks {
        let name = prefix.rsplit('.').next().unwrap_or(prefix);
        trainer.push((name.to_owned(), state(tensors)?));
    }
    let checkpoint = Value::Dict(vec![
        ("epoch".to_owned(), Value::Int(i64::try_from(epoch).unwrap_or(i64::MAX))),
        ("iter".to_owned(), Value::Int(0)),
        ("trainer".to_owned(), Value::Dict(trainer)),
    ]);
    write_torch(path, &checkpoint)
}
