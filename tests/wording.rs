//! What the program says, as text to be reviewed: the help of every command, and its messages. After a change,
//! `INSTA_UPDATE=always cargo test --release --test wording` writes the new texts to `tests/snapshots`. Read the difference
//! before committing it.
#![cfg(unix)]

mod every_command;

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::{Command, Stdio},
};

use alchemist_engine::cli::Cli;
use clap::CommandFactory;
use every_command::Place;

/// The settings of all snapshots: one file each, in `tests/snapshots`, without the expression that made it.
fn settings(folder: &str) -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path(Path::new("snapshots").join(folder));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings
}

/// The names of all commands, nested ones with their parents.
fn commands(of: &clap::Command, parents: &[String], into: &mut Vec<Vec<String>>) {
    into.push(parents.to_vec());
    for command in of.get_subcommands().filter(|command| command.get_name() != "help") {
        commands(command, &[parents, &[command.get_name().to_owned()]].concat(), into);
    }
}

#[test]
fn the_help_of_every_command_is_as_reviewed() {
    let mut all = Vec::new();
    commands(&Cli::command(), &[], &mut all);
    assert!(all.len() > 15, "{all:?}");
    let mut files = BTreeSet::new();
    settings("help").bind(|| {
        for names in &all {
            let output = Command::new(env!("CARGO_BIN_EXE_alchemist-engine"))
                .args(names)
                .arg("--help")
                .stdin(Stdio::null())
                .output()
                .unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{names:?}");
            let file = [&["alchemist-engine".to_owned()][..], names].concat().join("-");
            insta::assert_snapshot!(file.as_str(), String::from_utf8(output.stdout).unwrap());
            files.insert(format!("{file}.snap"));
        }
    });
    let kept = fs::read_dir("tests/snapshots/help").unwrap();
    let kept = kept.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let kept: BTreeSet<String> = kept.filter(|name| name.ends_with(".snap")).collect();
    assert_eq!(kept, files, "a file for each command, and no other");
}

/// What a line of [`CASES`] is.
enum Line<'a> {
    Heading(&'a str),
    /// A shell command that prepares something.
    Prepare(&'a str),
    /// The arguments of the program, as typed in a shell.
    Run(&'a str),
}

const CASES: &str = include_str!("wording/cases.txt");

fn lines() -> impl Iterator<Item = Line<'static>> {
    let written = CASES.lines().filter(|line| !line.is_empty() && *line != "#" && !line.starts_with("# "));
    written.map(|line| match line.split_at_checked(2) {
        Some(("##", heading)) => Line::Heading(heading.trim()),
        Some(("% ", command)) => Line::Prepare(command),
        Some(("$ ", arguments)) => Line::Run(arguments),
        _ => panic!("cases.txt: neither a heading nor a command: {line}"),
    })
}

/// Makes `alchemist-engine` the program in a line of the shell.
fn with_program(line: &str) -> String {
    format!("program=$1; alchemist-engine() {{ \"$program\" \"$@\"; }}\n{line}")
}

#[test]
fn the_messages_are_as_reviewed() {
    let place = Place::new();
    let (mut text, mut silent) = (String::new(), Vec::new());
    let (mut named, mut distinct) = (BTreeSet::new(), BTreeSet::new());
    for line in lines() {
        match line {
            Line::Heading(heading) => text.push_str(&format!("## {heading}\n\n")),
            Line::Prepare(line) => {
                let output = place.shell::<&str>(&with_program(line), &[]).output().unwrap();
                assert!(output.status.success(), "{line}: {output:?}");
            }
            Line::Run(arguments) => {
                let line = format!("alchemist-engine {arguments}");
                let output = place.shell::<&str>(&with_program(&line), &[]).output().unwrap();
                let errors = String::from_utf8(output.stderr).expect("stderr is text");
                if errors.is_empty() {
                    silent.push(line.clone());
                }
                let code = output.status.code().unwrap_or_else(|| panic!("{line}: {:?}", output.status));
                text.push_str(&format!("$ {line}\n{errors}[{code}]\n\n"));
                named.extend(arguments.split(' ').next().map(str::to_owned));
                distinct.extend(errors.lines().filter(|line| line.starts_with("error: ")).map(str::to_owned));
                place.clear("out");
            }
        }
    }
    // What differs between machines and runs.
    let mut settings = settings("");
    let folder = place.path("");
    let folder = folder.to_str().unwrap();
    settings.add_filter(&regex::escape(folder), "[FOLDER]/");
    settings.add_filter(&regex::escape(folder.trim_end_matches('/')), "[FOLDER]");
    settings.add_filter(r"process \d+ on [^)]+", "process [ID] on [HOST]");
    settings.add_filter(r"error: cuda(:99)?: .*", "error: cuda:99: [THE REASON ON THIS MACHINE]");
    settings.bind(|| insta::assert_snapshot!("messages", text));
    assert!(silent.is_empty(), "no message:\n{}", silent.join("\n"));
    assert!(distinct.len() > 150, "{} messages", distinct.len());
    for command in Cli::command().get_subcommands().map(clap::Command::get_name) {
        assert!(command == "help" || named.contains(command), "cases.txt has no mistake with `{command}`");
    }
}
