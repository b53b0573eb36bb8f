//! Jobs that leave marks: when they begin and end is written to a file beside the cluster, so it can be counted what was done how often.
//!
//! The file is the order of all that happens: tests write into it too.

use std::fs::{self, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};

use crate::env::TestEnv;

/// What workers run for a job. Its payload has `<NAME LINES PAUSE STATUS>`: it prints so many lines, with a pause after each, and ends with that
/// status. Half-way it waits until there is a writer for the pipe `gate`, if there is one.
const SCRIPT: &str = r#"
cd "$1"
worker=$2
set -- $(LC_ALL=C tr -cd 'a-z0-9<>. ' | sed 's/.*<\(.*\)>.*/\1/')
echo "begin $1 $worker" >> marks
line=0
while [ $line -lt $2 ]; do
    line=$((line + 1))
    echo "line $line"
    sleep $3
    if [ $line -eq $(($2 / 2)) ] && [ -p gate ]; then : < gate; fi
done
printf 'of %s' "$1" > "$KILN_RESULT"
echo "end $1 $worker" >> marks
exit $4
"#;

/// A job that prints numbered lines.
#[derive(Clone, Debug)]
pub(crate) struct Marked {
    pub(crate) name: String,
    /// `count`, or `heavy`, which counts for two.
    pub(crate) kind: &'static str,
    pub(crate) lines: usize,
    /// After each line, in seconds.
    pub(crate) pause: &'static str,
    /// How it ends: 0 is success.
    pub(crate) status: u8,
}

impl Marked {
    /// Writes its payload, and returns the file's name.
    fn payload(&self, env: &TestEnv) -> String {
        let Self { name, lines, pause, status, .. } = self;
        let mut text = format!("<{name} {lines} {pause} {status}>\0").into_bytes();
        let length = u32::try_from(text.len()).unwrap();
        text.resize(text.len().next_multiple_of(8), 0);
        // A message of one segment, with a pointer to a text: a list of bytes, right after it.
        let words = u32::try_from(text.len() / 8).unwrap() + 1;
        let numbers = [0, words, 1, 2 | (length << 3)];
        let mut message: Vec<u8> = numbers.iter().flat_map(|number: &u32| number.to_le_bytes()).collect();
        message.extend(text);
        env.write(&format!("payload/{name}"), message);
        format!("--payload=payload/{name}")
    }

    /// Returns what submits it to the pool `linux`.
    pub(crate) fn submit(&self, env: &TestEnv, more: &[&str]) -> Command {
        let (payload, kind) = (self.payload(env), format!("--kind={}", self.kind));
        let submit = ["submit", "custom", "-c", "caps/submit-alice.cap", "--pool=linux", &kind, &payload];
        env.kiln(&[&submit[..], more].concat())
    }

    /// Checks a job's log, which has each of its lines once and in order, and those of workers that were lost up to some line. Returns how
    /// many were.
    pub(crate) fn check_log(&self, log: &str) -> Result<usize, String> {
        let wrong = |what: &str| Err(format!("{}: {what} in its log:\n{log}", self.name));
        let mut runs = log.split("\n[worker ");
        let mut losses = 0;
        let mut run = runs.next().unwrap_or_default();
        for next in runs {
            losses += 1;
            if !self.is_part(run) {
                return wrong("there is a hole");
            }
            let Some((note, rest)) = next.split_once("]\n") else { return wrong("a note has no end") };
            if !note.contains(" is lost; the job starts again on ") {
                return wrong("there is another note");
            }
            run = rest;
        }
        let end = match self.status {
            0 => "Job succeeded\n",
            _ => "Job failed: ",
        };
        let Some((lines, last)) = run.split_once(end) else { return wrong("there is no end") };
        match self.whole(lines) == lines && last.lines().count() <= 1 {
            true => Ok(losses),
            false => wrong("there is a hole, or a line twice,"),
        }
    }

    /// Returns all that it prints on the worker that a text says.
    fn whole(&self, text: &str) -> String {
        let worker =
            text.strip_prefix("Building on ").and_then(|rest| rest.split_once('\n')).map_or("", |(worker, _)| worker);
        let lines: String = (1..=self.lines).map(|line| format!("line {line}\n")).collect();
        format!("Building on {worker}\n{lines}")
    }

    /// Returns true for what a worker told before it was lost.
    fn is_part(&self, run: &str) -> bool {
        let whole = self.whole(run);
        whole.starts_with(run) || run.strip_prefix(&whole).is_some_and(|end| end.starts_with("Job "))
    }
}

/// Makes what marked jobs need.
pub(crate) fn prepare(env: &TestEnv) {
    env.write("job.sh", SCRIPT);
    fs::create_dir(env.at("caps")).unwrap();
}

/// Returns the command of a scheduler that is reached at one of these addresses, `HOST:PORT`, all of which its capability files
/// name. Its client is alice, its pool linux.
pub(crate) fn scheduler(env: &TestEnv, listen: &str, all: &[String], state: &str) -> Command {
    env.kiln(&[
        "scheduler",
        "--capnp-secret-key-file=caps/key.pem",
        &format!("--capnp-listen-address=tcp:{listen}"),
        &format!("--capnp-public-address=tcp:{}", all.join(",")),
        &format!("--state-dir={state}"),
        "--secrets-dir=caps",
        "--pools=linux",
        "--default-clients=alice",
    ])
}

/// Returns what starts a worker that does marked jobs.
pub(crate) fn worker(env: &TestEnv, name: &str, capacity: usize) -> Command {
    let custom = |kind| format!("--custom={kind}=sh {0}/job.sh {0} {name}", env.path().display());
    let (capacity, state) = (format!("--capacity={capacity}"), format!("--state-dir=worker-{name}"));
    env.kiln(&[
        "worker",
        "-c",
        "caps/pool-linux.cap",
        "--name",
        name,
        &capacity,
        &state,
        "--no-docker",
        "--no-healthcheck",
        &custom("count"),
        &custom("heavy"),
        "--weight=heavy=2",
    ])
}

/// Adds a mark.
pub(crate) fn mark(env: &TestEnv, line: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(env.at("marks")).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Returns all marks, in the order of time, each as its words.
pub(crate) fn marks(env: &TestEnv) -> Vec<Vec<String>> {
    let text = fs::read_to_string(env.at("marks")).unwrap_or_default();
    text.lines().map(|line| line.split(' ').map(str::to_owned).collect()).collect()
}

/// A program that is to run until it is killed. What it says is kept in a file.
pub(crate) struct Service {
    child: Child,
    said: Receiver<String>,
}

impl Service {
    /// Starts it. What it says is added to the file `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut log = OpenOptions::new().append(true).create(true).open(log).unwrap();
        let (sender, said) = channel();
        // It ends with the program.
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                writeln!(log, "{line}").unwrap();
                // Nobody may be listening.
                let _ = sender.send(line);
            }
        });
        Self { child, said }
    }

    /// Waits until it has said a line with `text`. Returns false if it ended instead.
    pub(crate) fn says(&self, text: &str) -> bool {
        self.said.iter().any(|line| line.contains(text))
    }

    /// Ends it with no warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it has ended, and returns how.
    pub(crate) fn ended(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.child), signal).unwrap();
    }

    /// Returns true if it runs.
    pub(crate) fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // It was killed already, unless the test is over.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
