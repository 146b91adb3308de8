//! `convert`: converts weights between file formats.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::{
    error::{Error, Result},
    interrupt::Interrupt,
    jobs::{Claim, output::Output},
    weights::{NumberKind, Payload, Value, Weights, write_safetensors, write_shards, write_torch},
};

/// The arguments of `convert`.
#[derive(Clone, Debug, Args)]
pub struct ConvertArguments {
    /// A safetensors file, PyTorch checkpoint, shard index, or a folder that contains one of them.
    #[arg(value_name = "IN")]
    pub input: PathBuf,
    /// The file to write: NAME.safetensors, or NAME.pth (.pt, .bin) for PyTorch.
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Only tensors with this prefix, which is removed from their names.
    #[arg(long, value_name = "PREFIX")]
    pub within: Option<String>,
    /// Strip prefixes that wrappers add to names: a leading `module.` (parallel training), `_orig_mod.`
    /// (torch.compile).
    #[arg(long)]
    pub without_module: bool,
    /// Data type of floats in the output.
    #[arg(long, value_name = "KIND")]
    pub dtype: Option<FloatKind>,
    /// Split safetensors into files of at most this size, with an index: 2GB, 500MB, 1GiB, or bytes.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub shard_size: Option<usize>,
    /// Nest the tensors of a PyTorch file in dicts of these names, such as trainer.varRater_wo_ddp.
    #[arg(long, value_name = "NAMES", conflicts_with = "shard_size")]
    pub under: Option<String>,
    /// Replace existing outputs.
    #[arg(long)]
    pub overwrite: bool,
}

/// Data types of floats.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum FloatKind {
    /// 32-bit.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatKind {
    fn kind(self) -> NumberKind {
        match self {
            Self::F32 => NumberKind::F32,
            Self::F16 => NumberKind::F16,
            Self::Bf16 => NumberKind::Bf16,
        }
    }
}

/// Parses a number of bytes with an optional unit.
fn size(text: &str) -> Result<usize, String> {
    let digits = text.trim().trim_end_matches(|character: char| !character.is_ascii_digit());
    let unit = match text.trim()[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(format!("unknown unit in `{text}`; expected one of B, kB, MB, GB, KiB, MiB, GiB")),
    };
    let count: usize = digits.parse().map_err(|_| "not an integer with a unit, such as 2GB".to_owned())?;
    count
        .checked_mul(unit)
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| "the size must be at least 1 byte".to_owned())
}

/// Runs the command.
///
/// # Errors
/// If the input cannot be read or is refused, the output's extension is unknown, or it cannot be written;
/// [`Error::Interrupted`] if the user interrupts.
pub(super) fn run(arguments: &ConvertArguments, interrupt: &Interrupt) -> Result<()> {
    let output = &arguments.output;
    let extension = output.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let to_torch = match extension {
        "safetensors" => false,
        "pth" | "pt" | "bin" => true,
        _ => {
            return Err(Error::argument(format!(
                "{}: the name must end in .safetensors, .pth, .pt or .bin",
                output.display()
            )));
        }
    };
    // The names of shards differ from that of the output, and are known only once the shards are written.
    let companions: &[&str] = if arguments.shard_size.is_some() { &[".safetensors.index.json"] } else { &[] };
    let inputs = [arguments.input.clone()];
    let claim = Claim { command: "convert", inputs: &inputs, overwrite: arguments.overwrite };
    let claimed = Output::fresh(&claim, output, companions)?;
    let written = claimed.write(|claimed| write(arguments, &claimed.staged(), to_torch, interrupt))?;
    for path in written {
        super::say(&format!(
            "wrote {}",
            output.with_file_name(path.file_name().unwrap_or_default()).display()
        ))?;
    }
    Ok(())
}

/// Writes the output; returns the files written.
fn write(
    arguments: &ConvertArguments,
    output: &Path,
    to_torch: bool,
    interrupt: &Interrupt,
) -> Result<Vec<PathBuf>> {
    let mut weights = interrupt.while_reading("nothing was written", || Weights::open(&arguments.input))?;
    weights = weights.within(arguments.within.as_deref().unwrap_or_default());
    if arguments.without_module {
        weights = weights.without_module();
    }
    if weights.is_empty() {
        return Err(Error::input(
            &arguments.input,
            format!(
                "{}: contains no tensors{}; `inspect` lists all tensors",
                arguments.input.display(),
                arguments
                    .within
                    .as_ref()
                    .map_or(String::new(), |prefix| format!(" with the prefix `{prefix}`"))
            ),
        ));
    }
    let payloads = weights.payloads()?.into_iter();
    let mut tensors: Vec<_> =
        payloads.map(|(name, payload)| (name, payload.stopping_at(interrupt))).collect();
    if let Some(kind) = arguments.dtype {
        let as_kind = |(name, payload): (String, Payload)| Ok((name, payload.as_float(kind.kind())?));
        tensors = tensors.into_iter().map(as_kind).collect::<Result<_>>()?;
    }
    if to_torch {
        to_checkpoint(output, tensors, arguments)
    } else {
        to_safetensors(output, &weights, &tensors, arguments)
    }
}

fn to_checkpoint(
    output: &Path,
    tensors: Vec<(String, Payload)>,
    arguments: &ConvertArguments,
) -> Result<Vec<PathBuf>> {
    if arguments.shard_size.is_some() {
        return Err(Error::argument("--shard-size splits safetensors only; a PyTorch file is not split"));
    }
    let tensors = tensors.into_iter().map(|(name, payload)| (name, Value::Tensor(payload))).collect();
    let names = arguments.under.iter().flat_map(|names| names.rsplit('.'));
    let nested =
        names.fold(Value::Ordered(tensors), |inner, name| Value::Dict(vec![(name.to_owned(), inner)]));
    write_torch(output, &nested)?;
    Ok(vec![output.to_path_buf()])
}

fn to_safetensors(
    output: &Path,
    weights: &Weights,
    tensors: &[(String, Payload)],
    arguments: &ConvertArguments,
) -> Result<Vec<PathBuf>> {
    if arguments.under.is_some() {
        return Err(Error::argument("--under makes dicts in a PyTorch file; safetensors has none"));
    }
    // Safetensors stores strings only; numbers are formatted like Python's.
    let text = |value: &Value| match value {
        Value::Text(text) => text.to_string(),
        other => other.to_string(),
    };
    let remarks: Vec<_> = weights.values().map(|(name, value)| (name.to_owned(), text(value))).collect();
    match arguments.shard_size {
        Some(bytes) => write_shards(output, tensors, &remarks, bytes),
        None => {
            write_safetensors(output, tensors, &remarks)?;
            Ok(vec![output.to_path_buf()])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units() {
        assert_eq!(size("2GB"), Ok(2_000_000_000));
        assert_eq!(size("1 GiB"), Ok(1 << 30));
        assert_eq!(size("500"), Ok(500));
        assert!(size("0").is_err() && size("GB").is_err() && size("1.5GB").is_err() && size("2TB").is_err());
    }
}
