//! Networks as the released code keeps them: read into ours, and ours written so that it loads them.

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

/// Where a released checkpoint keeps the proxy's or a model's weights.
pub const PROXY: &str = "trainer.var_wo_ddp";
/// Where it keeps the rater's.
pub const RATER: &str = "trainer.varRater_wo_ddp";

/// Whether a tensor of a released checkpoint is one that nothing reads: the classes' embedding, and the biases of keys, which
/// are fixed at 0 (upstream.md, B2 and B6).
pub(crate) fn is_unused(name: &str) -> bool {
    name == "class_emb.weight" || name.ends_with(".zero_k_bias")
}

/// Tensors that every network of this kind has, by which it is found in a file.
const MARKS: [&str; 2] = ["pos_start", "word_embed.weight"];

/// The tensors of a network in a file: below `prefix` where the file is a released checkpoint, else wherever
/// [`Weights::network`] finds them; without what wrappers add to their names.
///
/// # Errors
/// If the file cannot be read, or is a checkpoint that lacks this network.
pub fn open(path: &Path, prefix: &str) -> Result<Weights> {
    let file = Weights::open(path)?;
    if !file.names().any(|name| name.starts_with("trainer.")) {
        return Ok(file.network(&MARKS));
    }
    let below = file.within(prefix);
    if below.names().next().is_none() {
        return Err(Error::Checkpoint {
            path: path.to_path_buf(),
            message: format!("is a checkpoint of the released code without {prefix}"),
        });
    }
    Ok(below.network(&MARKS))
}

/// Reads all weights of a network.
///
/// # Errors
/// As for [`open`]; or if tensors are missing, surplus or of another shape, of which the first are named.
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

/// How a file's tensors differ from those that a network has; what nothing reads may be there.
fn differences(weights: &Weights, parameters: &Parameters) -> Differences {
    let expected = parameters.iter().map(|(_, name, value)| (name.to_owned(), value.shape().to_vec()));
    let unused = weights
        .names()
        .filter(|name| is_unused(name))
        .filter_map(|name| Some((name.to_owned(), weights.entry(name)?.shape.clone())));
    weights.compare(expected.chain(unused))
}

/// How a file differs from what a configuration's network expects, the one below `prefix` ([`PROXY`] or [`RATER`]); sizes
/// come from the encoders that the configuration names.
///
/// # Errors
/// As for [`open`], or if an encoder cannot be read.
pub(crate) fn differences_from(path: &Path, prefix: &str, config: &Config) -> Result<Differences> {
    let weights = open(path, prefix)?;
    let (vocabulary, code_channels, text_channels) = Encoders::named(config, &Interrupt::default())?.sizes();
    let parameters = if prefix == RATER {
        Rater::undrawn(&config.rater_backbone(vocabulary, code_channels, text_channels), DType::F32)?.1
    } else {
        Proxy::undrawn(&config.proxy_backbone(vocabulary, code_channels, text_channels), DType::F32)?.1
    };
    Ok(differences(&weights, &parameters))
}

/// Whether a file is a checkpoint of the released code that holds the network at `prefix`.
///
/// # Errors
/// If it cannot be read.
pub fn holds(path: &Path, prefix: &str) -> Result<bool> {
    Ok(!Weights::open(path)?.within(prefix).is_empty())
}

/// Classes of the embedding that nothing reads, and one for none.
const CLASSES: usize = 1001;

/// The tensors of a network as the released code expects them: ours, and those that nothing reads.
fn state(weights: &Tensors) -> Result<Value> {
    let width = weights.get("pos_start").map_or(0, |start| start.dim(2));
    let mut items: Vec<(String, Value)> = Vec::with_capacity(weights.len());
    let zeros = |shape: &[usize]| Payload::held(&Tensor::zeros(shape, DType::F32)).map(Value::Tensor);
    items.push(("class_emb.weight".to_owned(), zeros(&[CLASSES, width])?));
    for (name, tensor) in weights {
        if let Some(attention) = name.strip_suffix(".q_bias") {
            items.push((format!("{attention}.zero_k_bias"), zeros(&[width])?));
        }
        items.push((name.clone(), Value::Tensor(Payload::held(tensor)?)));
    }
    Ok(Value::Ordered(items))
}

/// Writes a checkpoint in the released layout, `{"epoch", "iter", "trainer": {"config", "var_wo_ddp", "varRater_wo_ddp"}}`:
/// the networks that are given, by the names that [`PROXY`] and [`RATER`] end in. Tensors that the released code has and
/// never reads are zeros.
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
