//! Terminal output: results on stdout; errors, warnings and log lines on stderr. All text is escaped here, so that
//! nothing in a file or a name controls the terminal; a broken pipe is not an error.

use std::{
    fmt::{self, Write as _},
    io::{self, ErrorKind, IsTerminal, Write as _},
};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    filter::LevelFilter,
    fmt::{
        FmtContext,
        format::{FormatEvent, FormatFields, Writer},
    },
    registry::LookupSpan,
};

use crate::{
    error::{Error, Result},
    report::visible::{visible_line, visible_lines},
};

/// Prints lines on stdout.
///
/// # Errors
/// If stdout cannot be written to; a broken pipe (`| head`) is not an error.
pub(crate) fn say(lines: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    let written = writeln!(stdout, "{}", visible_lines(lines)).and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::io("write", "stdout")(error)),
        _ => Ok(()),
    }
}

/// Prints a line on stderr; ignores errors, because there is nowhere to report them.
pub(super) fn tell(line: &str) {
    let _nobody = writeln!(io::stderr(), "{}", visible_line(line));
}

/// Like [`tell`], on a new line if a progress bar may occupy the current one.
pub(super) fn tell_on_new_line(line: &str) {
    let line_break = if io::stderr().is_terminal() { "\n" } else { "" };
    let _nobody = writeln!(io::stderr(), "{line_break}{}", visible_line(line));
}

/// An error and its causes on one line. A cause that the text already includes is not repeated.
pub(super) fn sentence(error: &anyhow::Error) -> String {
    let mut sentence = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if sentence.is_empty() {
            sentence = cause;
        } else if !sentence.contains(&cause) {
            let _infallible = write!(sentence, ": {cause}");
        }
    }
    sentence
}

/// Prints warnings, and log lines with `-v`, as plain lines on stderr.
pub(super) fn report_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::INFO,
        _ => LevelFilter::DEBUG,
    };
    // Fails only if a program that embeds the library has set a subscriber, which is then used.
    let _ = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(Stderr::default)
        .with_ansi(io::stderr().is_terminal())
        .event_format(Lines)
        .try_init();
}

/// Stderr that ignores broken pipes.
#[derive(Default)]
struct Stderr;

impl io::Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let _nobody = io::stderr().write_all(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line per event, its level first.
struct Lines;

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        let color = match level {
            Level::ERROR => "31",
            Level::WARN => "33",
            Level::INFO => "32",
            _ => "34",
        };
        if writer.has_ansi_escapes() {
            write!(writer, "\u{1b}[{color}m{level:>5}\u{1b}[0m ")?;
        } else {
            write!(writer, "{level:>5} ")?;
        }
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(writer, "{}", visible_line(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_named_once() {
        let missing = || io::Error::new(ErrorKind::NotFound, "no such file");
        let error = anyhow::Error::from(Error::io("read", "a.csv")(missing()));
        assert_eq!(sentence(&error), "cannot read a.csv: no such file");
        let wrapped = anyhow::Error::from(missing()).context("cannot start");
        assert_eq!(sentence(&wrapped), "cannot start: no such file");
    }
}
