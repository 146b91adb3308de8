//! `inspect`: lists the contents of a weights file, without running anything in it.

use std::{fmt::Write, path::PathBuf};

use clap::{Args, ValueEnum};

use crate::{
    config::Config,
    error::Result,
    interrupt::Interrupt,
    report::text_table::TextTable,
    training::released::{PROXY, RATER, differences_from},
    weights::{Differences, Unmatched, Weights},
};

/// The arguments of `inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArguments {
    /// A safetensors file, PyTorch checkpoint, shard index, or a folder that contains one of them.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Only names with this prefix, such as trainer.varRater_wo_ddp.
    #[arg(long, value_name = "PREFIX")]
    pub within: Option<String>,
    /// Compare names and shapes with those of another file.
    #[arg(long, value_name = "OTHER")]
    pub against: Option<PathBuf>,
    /// Only names with this prefix in the other file.
    #[arg(long, value_name = "PREFIX", requires = "against")]
    pub against_within: Option<String>,
    /// Compare names and shapes with what a network of this configuration expects.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["against", "within"])]
    pub config: Option<PathBuf>,
    /// Which of the configuration's networks.
    #[arg(long, value_name = "NETWORK", requires = "config", default_value = "rater")]
    pub network: Network,
    /// Set a key of the configuration.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    pub set: Vec<String>,
}

/// The networks of a configuration.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Network {
    /// The rater.
    Rater,
    /// The proxy, or the model of `fit`.
    Proxy,
}

/// Runs the command.
///
/// # Errors
/// If a file cannot be read or is refused, or stdout cannot be written to;
/// [`Error::Interrupted`](crate::Error::Interrupted) if the user interrupts.
pub(super) fn run(arguments: &InspectArguments, interrupt: &Interrupt) -> Result<()> {
    super::say(&interrupt.while_reading("nothing was written", || shown(arguments))?)
}

/// The text to print.
fn shown(arguments: &InspectArguments) -> Result<String> {
    if let Some(config) = &arguments.config {
        let config = Config::load(config, &arguments.set)?;
        let prefix = match arguments.network {
            Network::Rater => RATER,
            Network::Proxy => PROXY,
        };
        return Ok(compared(&differences_from(&arguments.file, prefix, &config)?));
    }
    let open = |file: &PathBuf, within: &Option<String>| {
        let Some(prefix) = within else { return Weights::open(file) };
        let weights = Weights::open(file)?.within(prefix);
        if weights.is_empty() && weights.values().next().is_none() {
            let message = format!(
                "{}: contains no tensors with the prefix `{prefix}`; omit it to list all tensors",
                file.display()
            );
            return Err(crate::Error::input(file, message));
        }
        Ok(weights)
    };
    let weights = open(&arguments.file, &arguments.within)?;
    let Some(other) = &arguments.against else { return Ok(described(&weights)) };
    let other = open(other, &arguments.against_within)?;
    let expected = other.entries().map(|(name, entry)| (name.to_owned(), entry.shape.clone()));
    Ok(compared(&weights.compare(expected)))
}

/// A table of the tensors, their totals, and the other values.
fn described(weights: &Weights) -> String {
    let mut table = TextTable::new(["tensor", "kind", "shape", "bytes"]);
    let (mut numbers, mut bytes) = (0usize, 0usize);
    for (name, entry) in weights.entries() {
        numbers = numbers.saturating_add(entry.len());
        bytes = bytes.saturating_add(entry.bytes());
        table.row([
            name.to_owned(),
            entry.kind.to_string(),
            format!("{:?}", entry.shape),
            entry.bytes().to_string(),
        ]);
    }
    let mut text = String::new();
    if !weights.is_empty() {
        text = format!("{table}\n\n");
    }
    let _ = write!(text, "{} tensors, {numbers} values, {bytes} bytes", weights.len());
    if weights.values().next().is_some() {
        let mut values = TextTable::new(["value", "is"]);
        for (name, value) in weights.values() {
            values.row([name.to_owned(), value.to_string()]);
        }
        let _ = write!(text, "\n\n{values}");
    }
    text
}

/// One line per difference.
fn compared(differences: &Differences) -> String {
    if differences.is_empty() {
        return "names and shapes match".to_owned();
    }
    let mut table = TextTable::new(["difference", "tensor", "remark"]);
    let hint = |one: &Unmatched| one.nearest.as_ref().map_or(String::new(), |name| format!("perhaps {name}"));
    for one in &differences.missing {
        table.row(["missing".to_owned(), one.name.clone(), hint(one)]);
    }
    for one in &differences.surplus {
        table.row(["surplus".to_owned(), one.name.clone(), hint(one)]);
    }
    for one in &differences.shapes {
        table.row([
            "shape".to_owned(),
            one.name.clone(),
            format!("{:?} instead of {:?}", one.found, one.expected),
        ]);
    }
    let Differences { missing, surplus, shapes } = differences;
    format!(
        "{table}\n\n{} missing, {} surplus, {} of another shape",
        missing.len(),
        surplus.len(),
        shapes.len()
    )
}
