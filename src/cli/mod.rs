//! The command line: one file per command, which parses and calls. Only this module prints.
//!
//! Exit codes: 0 success, 1 an error (one line on stderr), 2 wrong usage, 130 stopped by Ctrl-C, SIGTERM or SIGHUP.

mod attribute;
mod compare;
mod convert;
mod demo;
mod devices;
mod encode;
mod export;
mod fit;
mod flaws;
mod inspect;
mod measure;
mod pack;
mod plant;
mod report;
mod sample;
mod score;
mod select;
mod terminal;
mod train;
pub mod watch;

use std::{io::ErrorKind, process::ExitCode};

use clap::{ArgAction, Parser, Subcommand};

pub(crate) use self::terminal::say;
use crate::{
    error::{Error, Result},
    interrupt::{EXIT_CODE as EXIT_INTERRUPTED, Interrupt, exit_on_failed_allocation},
    report::visible::visible_lines,
};

/// Decides which text-image pairs are worth training on: rates every pair of a corpus and selects a subset.
#[derive(Debug, Parser)]
#[command(name = "alchemist-engine", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Number of threads [default: the number of cores]. Results do not depend on it.
    // After the options of the command, before --help.
    #[arg(long, global = true, display_order = 900, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Log more to stderr (-v: info, -vv: debug).
    #[arg(short, long, global = true, display_order = 901, action = ArgAction::Count)]
    pub verbose: u8,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole pipeline on synthetic data with known flaws.
    Demo(demo::DemoArguments),
    /// Train the models that rate the pairs of a corpus.
    Train(train::TrainArguments),
    /// Cache the tokens and text embeddings of a corpus.
    Encode(encode::EncodeArguments),
    /// Rate every pair of a corpus.
    Score(score::ScoreArguments),
    /// Attribute the proxy's validation loss to individual pairs: gradient norms, inner products, cosines, TracIn.
    Attribute(attribute::AttributeArguments),
    /// Select a subset by ratings.
    Select(select::SelectArguments),
    /// Write a selected subset in the format that another trainer reads.
    Pack(pack::PackArguments),
    /// Train a text-to-image model on a data set or a selected subset.
    Fit(fit::FitArguments),
    /// Generate images from captions with a model that `fit` trained, or a released one.
    Sample(sample::SampleArguments),
    /// Measure generated images: Fréchet distances to held-out ones, and CLIP-Score.
    Measure(measure::MeasureArguments),
    /// Train the same model on the subset that each rating and sampler selects, and on controls, with several seeds.
    Compare(compare::CompareArguments),
    /// Write an HTML page of a run or a comparison: tables, charts and pairs by rating.
    Report(report::ReportArguments),
    /// Write a run's networks as a checkpoint that the released code loads.
    Export(export::ExportArguments),
    /// List the contents of a weights file: tensors, scalars and strings. No code in the file is executed.
    Inspect(inspect::InspectArguments),
    /// Convert weights to safetensors or a PyTorch checkpoint.
    Convert(convert::ConvertArguments),
    /// Copy a corpus and plant known flaws in it, to test a rating.
    Plant(plant::PlantArguments),
    /// List compute devices, and why any of them is unavailable.
    Devices(devices::DevicesArguments),
}

/// Parses the command line, runs the command and returns the exit code.
pub fn main() -> ExitCode {
    exit_on_failed_allocation();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => return explain(&refused),
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// Prints help, the version, or a usage error.
fn explain(refused: &clap::Error) -> ExitCode {
    let text = refused.to_string();
    if refused.use_stderr() && visible_lines(&text) != text {
        // clap prints arguments unescaped.
        for line in text.lines() {
            terminal::tell(line);
        }
    } else if let Err(error) = refused.print()
        && error.kind() != ErrorKind::BrokenPipe
        && !refused.use_stderr()
    {
        return fail(&Error::io("write", "stdout")(error).into());
    }
    ExitCode::from(u8::try_from(refused.exit_code()).unwrap_or(2))
}

/// Prints an error and returns its exit code.
fn fail(error: &anyhow::Error) -> ExitCode {
    let code = exit_code(error);
    let prefix = if code == EXIT_INTERRUPTED { "" } else { "error: " };
    terminal::tell(&format!("{prefix}{}", terminal::sentence(error)));
    ExitCode::from(code)
}

fn run(cli: Cli) -> anyhow::Result<()> {
    terminal::report_to_stderr(cli.verbose);
    let interrupt = &Interrupt::from_signals(terminal::tell_on_new_line)?;
    fail_at_size_limits()?;
    // If the threads were started lazily, a failure to start them would panic.
    rayon::ThreadPoolBuilder::new().num_threads(cli.threads.map_or(0, usize::from)).build_global().map_err(
        |error| Error::invalid(format!("cannot start threads: {error}; pass --threads N for fewer")),
    )?;
    match cli.command {
        Command::Demo(arguments) => demo::run(&arguments, interrupt)?,
        Command::Train(arguments) => train::run(arguments, interrupt)?,
        Command::Encode(arguments) => encode::run(arguments, interrupt)?,
        Command::Score(arguments) => score::run(arguments, interrupt)?,
        Command::Attribute(arguments) => attribute::run(arguments, interrupt)?,
        Command::Select(arguments) => select::run(arguments, interrupt)?,
        Command::Export(arguments) => export::run(&arguments, interrupt)?,
        Command::Inspect(arguments) => inspect::run(&arguments, interrupt)?,
        Command::Convert(arguments) => convert::run(&arguments, interrupt)?,
        Command::Fit(arguments) => fit::run(arguments, interrupt)?,
        Command::Sample(arguments) => sample::run(arguments, interrupt)?,
        Command::Measure(arguments) => measure::run(&arguments, interrupt)?,
        Command::Compare(arguments) => compare::run(arguments, interrupt)?,
        Command::Report(arguments) => report::run(arguments, interrupt)?,
        Command::Pack(arguments) => pack::run(arguments, interrupt)?,
        Command::Plant(arguments) => plant::run(arguments, interrupt)?,
        Command::Devices(arguments) => devices::run(&arguments, interrupt)?,
    }
    Ok(())
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail with an error; otherwise the signal ends the program
/// without a message.
#[cfg(unix)]
fn fail_at_size_limits() -> Result<()> {
    // If the signal is handled, the write itself returns the error.
    let handled = std::sync::Arc::default();
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, handled)
        .map(drop)
        .map_err(|error| Error::invalid(format!("cannot handle SIGXFSZ: {error}")))
}

#[cfg(not(unix))]
fn fail_at_size_limits() -> Result<()> {
    Ok(())
}

/// The exit code of an error.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { .. }) => EXIT_INTERRUPTED,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn stopping_has_its_own_exit_code() {
        let stopped = Error::Interrupted { saved: "all is saved".to_owned() };
        assert_eq!(exit_code(&stopped.into()), 130);
        assert_eq!(exit_code(&Error::invalid("no").into()), 1);
    }
}
