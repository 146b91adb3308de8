//! The command line: one file a command, which parses and calls. Only this module prints.
//!
//! Exit codes: 0 done, 1 an error (one sentence on stderr), 2 wrong usage, 130 stopped by Ctrl-C or SIGTERM.

pub mod attribute;
pub mod compare;
pub mod convert;
pub mod demo;
pub mod devices;
pub mod encode;
pub mod export;
pub mod fit;
pub mod inspect;
pub mod measure;
pub mod pack;
pub mod plant;
pub mod report;
pub mod sample;
pub mod score;
pub mod select;
pub mod train;
pub mod watch;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
};

use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::{
    error::{Error, Result},
    interrupt::{EXIT_CODE as EXIT_INTERRUPTED, Interrupt},
};

/// Decides which text-image pairs are worth training on: meta-gradient rating and Shift-Gsample pruning.
#[derive(Debug, Parser)]
#[command(name = "alchemist-engine", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// Threads to compute with; as many as there are cores unless given. Results do not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// Say more on stderr; twice for all there is to say.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the whole loop on a built-in data set with known flaws.
    Demo(demo::DemoArguments),
    /// Train a rater beside a proxy.
    Train(train::TrainArguments),
    /// Keep a corpus' tokens and text states, so that they are made once.
    Encode(encode::EncodeArguments),
    /// Rate every pair of a corpus.
    Score(score::ScoreArguments),
    /// Attribute the proxy's validation loss to single pairs: gradient norms, inner products, cosines, TracIn.
    Attribute(attribute::AttributeArguments),
    /// Choose a subset by its ratings.
    Select(select::SelectArguments),
    /// Write a chosen subset in the form that another trainer reads.
    Pack(pack::PackArguments),
    /// Train a text-to-image model on a data set or a chosen subset.
    Fit(fit::FitArguments),
    /// Draw pictures from captions with a model that `fit` trained, or a released one.
    Sample(sample::SampleArguments),
    /// Measure drawn pictures: Fréchet distances to held-out ones, and how well they fit their captions.
    Measure(measure::MeasureArguments),
    /// Train the same model on what each rating and sampler chooses, beside the controls, with several seeds.
    Compare(compare::CompareArguments),
    /// Make one page of a run or a comparison: tables, charts and pairs by rating.
    Report(report::ReportArguments),
    /// Write a run's networks as a checkpoint that the released code loads.
    Export(export::ExportArguments),
    /// Show what a file of weights holds: tensors, numbers and texts. Nothing in it is run.
    Inspect(inspect::InspectArguments),
    /// Turn weights into safetensors or a PyTorch checkpoint.
    Convert(convert::ConvertArguments),
    /// Copy a corpus with known flaws planted in it, so that a rating can be judged.
    Plant(plant::PlantArguments),
    /// List what there is to run on, and why something is not.
    Devices(devices::DevicesArguments),
}

/// Reads the command line, runs the command and gives the exit code.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = exit_code(&error);
            let prefix = if code == EXIT_INTERRUPTED { "" } else { "error: " };
            // Where stderr is closed there is nobody to tell.
            let _ = writeln!(std::io::stderr(), "{prefix}{error:#}");
            ExitCode::from(code)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    report_to_stderr(cli.verbose);
    if let Some(threads) = cli.threads {
        rayon::ThreadPoolBuilder::new()
            .num_threads(usize::from(threads))
            .build_global()
            .map_err(|error| Error::invalid(format!("cannot start {threads} threads: {error}")))?;
    }
    match cli.command {
        Command::Demo(arguments) => demo::run(&arguments, &Interrupt::from_signals()?)?,
        Command::Train(arguments) => train::run(arguments, &Interrupt::from_signals()?)?,
        Command::Encode(arguments) => encode::run(arguments, &Interrupt::from_signals()?)?,
        Command::Score(arguments) => score::run(arguments, &Interrupt::from_signals()?)?,
        Command::Attribute(arguments) => attribute::run(arguments, &Interrupt::from_signals()?)?,
        Command::Select(arguments) => select::run(arguments, &Interrupt::from_signals()?)?,
        Command::Export(arguments) => export::run(&arguments)?,
        Command::Inspect(arguments) => inspect::run(&arguments)?,
        Command::Convert(arguments) => convert::run(&arguments)?,
        Command::Fit(arguments) => fit::run(arguments, &Interrupt::from_signals()?)?,
        Command::Sample(arguments) => sample::run(arguments, &Interrupt::from_signals()?)?,
        Command::Measure(arguments) => measure::run(&arguments, &Interrupt::from_signals()?)?,
        Command::Compare(arguments) => compare::run(arguments, &Interrupt::from_signals()?)?,
        Command::Report(arguments) => report::run(arguments)?,
        Command::Pack(arguments) => pack::run(arguments, &Interrupt::from_signals()?)?,
        Command::Plant(arguments) => plant::run(arguments, &Interrupt::from_signals()?)?,
        Command::Devices(arguments) => devices::run(&arguments)?,
    }
    Ok(())
}

/// The exit code of an error.
fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::Interrupted { .. }) => EXIT_INTERRUPTED,
        _ => 1,
    }
}

/// Warnings, and with `-v` what goes on, as plain lines on stderr.
fn report_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    // Fails only where a program that embeds the library has set up its own reports; those then serve.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .try_init();
}

/// Prints a line on stdout.
///
/// # Errors
/// If stdout cannot be written to; a reader that went away (`| head`) is no error.
pub(crate) fn say(line: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Error::io("write", "stdout")(error))
        }
        _ => Ok(()),
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
