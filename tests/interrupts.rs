//! Ctrl-C, SIGTERM and SIGHUP: every command acknowledges them wherever it is, ends with what it keeps, leaves nothing half written,
//! and given again comes to what it comes to undisturbed.
#![cfg(unix)]

mod every_command;

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    process::{Child, ChildStderr, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread::{sleep, spawn},
    time::{Duration, Instant},
};

use every_command::{COMMANDS, Given, Place};

/// Moments of a command's run at which it is interrupted.
const MOMENTS: u32 = 10;
/// Two seconds are promised; a busy machine may take longer, but not as long as the work would.
const PATIENCE: Duration = Duration::from_secs(30);

fn send(signal: &str, child: &Child) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The lines of stderr as they come.
fn lines(stderr: ChildStderr) -> Receiver<String> {
    let (give, take) = channel();
    spawn(move || {
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            let _nobody_listens = give.send(line);
        }
    });
    take
}

/// How a program ended that was sent a signal.
struct Ended {
    code: Option<i32>,
    /// What it said on stderr.
    said: Vec<String>,
}

impl Ended {
    fn acknowledged(&self) -> bool {
        self.said.iter().any(|line| line.starts_with("interrupted"))
    }
}

/// Runs a command and sends it a signal after `wait`.
fn interrupted(mut command: Command, signal: &str, wait: Duration) -> Ended {
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let stderr = lines(child.stderr.take().unwrap());
    sleep(wait);
    if child.try_wait().unwrap().is_none() {
        send(signal, &child);
    }
    let (begun, mut said) = (Instant::now(), Vec::new());
    // The acknowledgment, or the end.
    while let Ok(line) = stderr.recv_timeout(PATIENCE.saturating_sub(begun.elapsed())) {
        said.push(line);
        if said.last().is_some_and(|line| line.starts_with("interrupted")) {
            break;
        }
    }
    assert!(begun.elapsed() < PATIENCE, "no acknowledgment: {said:?}");
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < 4 * PATIENCE, "it goes on after {signal}: {said:?}");
        sleep(Duration::from_millis(2));
    }
    said.extend(stderr.iter());
    Ended { code: child.wait().unwrap().code(), said }
}

fn check(place: &Place, given: &Given) -> u32 {
    let Given { name, same, .. } = *given;
    let whole = format!("{name}-whole");
    let begun = Instant::now();
    place.succeed(&given.to(&whole));
    let length = begun.elapsed();
    let expected = place.written(&whole, same);
    let mut stopped = 0;
    for moment in 0..MOMENTS {
        let out = format!("{name}-{moment}");
        let signal = ["-INT", "-TERM", "-HUP"][moment as usize % 3];
        let ended = interrupted(place.program(&given.to(&out)), signal, length * moment / MOMENTS);
        match ended.code {
            Some(0) => assert_eq!(place.written(&out, same), expected, "{name}, finished before {signal}"),
            Some(130) => {
                assert!(ended.acknowledged(), "{name}: {:?}", ended.said);
                stopped += 1;
            }
            // Before the program listens, a signal is the end.
            None => assert!(ended.said.is_empty(), "{name}: {:?}", ended.said),
            Some(code) => panic!("{name} ends with {code} after {signal}: {:?}", ended.said),
        }
        assert_eq!(place.leftovers(), [""; 0].map(std::path::PathBuf::from), "{name} after {signal}");
        if ended.code != Some(0) && moment % 3 == 1 {
            let again = given.again(&out).unwrap_or_else(|| {
                place.clear(&out);
                given.to(&out)
            });
            place.succeed(&again);
            assert_eq!(
                place.written(&out, same).keys().collect::<Vec<_>>(),
                expected.keys().collect::<Vec<_>>()
            );
            assert!(place.written(&out, same) == expected, "{name} gives other bytes when it is given again");
        }
        place.clear(&out);
    }
    stopped
}

#[test]
fn every_command_can_be_interrupted_at_every_moment() {
    let place = Place::new();
    let mut stopped = 0;
    for given in COMMANDS {
        stopped += check(&place, given);
    }
    assert!(stopped > 0, "no signal came in time");
}

/// `nohup` starts a program with SIGHUP ignored, so that it outlives its terminal.
#[cfg(target_os = "linux")]
#[test]
fn a_job_that_was_started_to_outlive_its_terminal_does() {
    let place = Place::untrained();
    let train = |out: &'static str| ["train", "--config", "config.json", "--set", "ep=60", "--out", out];
    // The same signal at the same moment stops a run that does not ignore it, so it does come while the run is under way.
    let heard = place.shell("trap - HUP; exec \"$@\"", &train("heard"));
    let ended = interrupted(heard, "-HUP", Duration::from_millis(400));
    let started_to_ignore = ended.code == Some(0) && !ended.acknowledged();
    assert!(started_to_ignore || ended.code == Some(130), "{:?}", ended.said);
    let ignoring = place.shell("trap '' HUP; exec \"$@\"", &train("out"));
    let ended = interrupted(ignoring, "-HUP", Duration::from_millis(400));
    assert_eq!(ended.code, Some(0), "{:?}", ended.said);
    assert!(!ended.acknowledged() && place.path("out/checkpoints").exists());
    let ignoring = place.shell("trap '' HUP INT; exec \"$@\"", &["demo", "--out", "stopped"]);
    let ended = interrupted(ignoring, "-INT", Duration::from_millis(1500));
    assert_eq!(ended.code, Some(130), "Ctrl-C is still heard: {:?}", ended.said);
}

/// The data set of `demo` takes its time, and so does training on it.
#[test]
fn the_demo_can_be_interrupted_while_it_makes_its_data_and_trains() {
    let place = Place::untrained();
    let mut stopped = 0;
    for (at, wait) in [100, 200, 400, 600, 800, 1000, 1300, 1600, 2000, 2500].into_iter().enumerate() {
        let out = format!("demo-{at}");
        let ended = interrupted(place.program(&["demo", "--out", &out]), "-INT", Duration::from_millis(wait));
        stopped += stops(&ended);
        assert!(place.leftovers().is_empty());
    }
    assert!(stopped > 0, "no signal came in time");
}

/// 1 if a command that had not finished ended as it should, 0 if the signal came before the program listened.
#[track_caller]
fn stops(ended: &Ended) -> usize {
    match ended.code {
        Some(130) => assert!(ended.acknowledged(), "{:?}", ended.said),
        None => assert!(ended.said.is_empty(), "{:?}", ended.said),
        Some(code) => panic!("it ends with {code}: {:?}", ended.said),
    }
    usize::from(ended.code.is_some())
}

/// Tables so long that reading them takes a while: there is no step that could end.
#[test]
fn reading_a_long_table_ends_in_the_middle_of_it() {
    const ROWS: usize = 400_000;
    let place = Place::untrained();
    let mut table = std::io::BufWriter::new(fs::File::create(place.path("long.csv")).unwrap());
    writeln!(table, "id,image_save_path,caption,rating").unwrap();
    for row in 0..ROWS {
        writeln!(table, "{row},images/{row}.png,a caption of some length for row {row},{row}").unwrap();
    }
    table.into_inner().unwrap().sync_all().unwrap();
    let commands: [&[&str]; 3] = [
        &["train", "--config", "config.json", "--data", "long.csv", "--out", "long-run"],
        &["encode", "--config", "config.json", "--data", "long.csv", "--out", "long-tokens"],
        &["plant", "--data", "long.csv", "--out", "long-planted"],
    ];
    let mut stopped = 0;
    for arguments in commands {
        let ended = interrupted(place.program(arguments), "-INT", Duration::from_millis(120));
        // Read to its end, the table is of no use.
        stopped += if ended.code == Some(1) { 0 } else { stops(&ended) };
        assert!(place.leftovers().is_empty());
        place.clear("long-");
    }
    assert!(stopped > 0, "no signal came in time");
}

/// Starts a run without end and waits for its first step; its lines on stderr are received.
fn endless(place: &Place, out: &str) -> (Child, Receiver<String>) {
    let endless =
        ["train", "--config", "config.json", "--set", "ep=1000000", "--set", "record_every=0", "--out", out];
    let mut child = place.program(&endless).stdout(Stdio::null()).spawn().unwrap();
    let stderr = lines(child.stderr.take().unwrap());
    let metrics = place.path(out).join("metrics.jsonl");
    let begun = Instant::now();
    while !fs::metadata(&metrics).is_ok_and(|about| about.len() > 0) {
        assert!(
            begun.elapsed() < 4 * PATIENCE && child.try_wait().unwrap().is_none(),
            "no step: {:?}",
            stderr.try_iter().collect::<Vec<_>>()
        );
        sleep(Duration::from_millis(5));
    }
    (child, stderr)
}

/// Waits until a command has ended by a signal.
fn expect_end(child: &mut Child) {
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(begun.elapsed() < PATIENCE, "it goes on after two signals");
        sleep(Duration::from_millis(2));
    }
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_second_signal_ends_a_command_at_once() {
    let place = Place::untrained();
    let (mut child, _stderr) = endless(&place, "endless");
    send("-TERM", &child);
    sleep(Duration::from_millis(250));
    send("-TERM", &child);
    expect_end(&mut child);
}

/// `timeout` and schedulers signal a process and then its group.
#[test]
fn signals_that_arrive_together_count_as_one() {
    let place = Place::untrained();
    let (mut child, stderr) = endless(&place, "endless");
    send("-TERM", &child);
    send("-INT", &child);
    expect_end(&mut child);
    let said: Vec<String> = stderr.iter().collect();
    assert!(said.iter().any(|line| line.contains("is saved; continue with")), "{said:?}");
}
