//! Measures the sandbox. Needs root.
//!
//! ```text
//! cargo run --release -p kiln-sandbox --example measure -- ROOT HELPER [RUNS]
//! … -- ROOT HELPER cancel PROCESSES [RUNS]
//! … -- ROOT HELPER turns
//! ```
//!
//! ROOT is a directory with a root filesystem, HELPER the built `kiln-sandbox-helper` or `kiln`. The first runs `/bin/true` in
//! each of the ways below, in turn; the second cancels a run that has so many processes. `turns` is for `bench/run`: it reads the
//! name of a way a line, runs `/bin/true` in that way, and prints how many seconds it took.

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_sandbox::{
    ExitStatus, Limits, NativeSandbox, Network, Process, Root, Sandbox as _, SandboxError, Seccomp, User, UserNamespace,
};
use tokio_util::sync::CancellationToken;

type Failed = Box<dyn Error>;

/// Whether the users are the sandbox's own, what is limited, which network, and whether system calls are filtered.
type Way = (&'static str, bool, bool, Network, Seccomp);

const WAYS: [Way; 6] = [
    ("everything", true, true, Network::None, Seccomp::Default),
    ("no limits", true, false, Network::None, Seccomp::Default),
    ("the host's users", false, true, Network::None, Seccomp::Default),
    ("the host's users, no limits", false, false, Network::None, Seccomp::Default),
    ("the host's network", true, true, Network::Host, Seccomp::Default),
    ("no filter", true, true, Network::None, Seccomp::Unconfined),
];

struct Measure {
    root: PathBuf,
    sandbox: NativeSandbox,
    /// Made before: as in a build, it serves one run after another.
    own: UserNamespace,
}

#[tokio::main]
async fn main() -> Result<(), Failed> {
    kiln_sandbox::run_helper_if_asked();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [root, helper, rest @ ..] = &args[..] else {
        return Err("usage: measure ROOT HELPER [RUNS | cancel PROCESSES [RUNS] | turns]".into());
    };
    let sandbox = NativeSandbox::new(helper)?;
    let measure = Measure { root: root.into(), own: sandbox.user_namespace()?, sandbox };
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match rest[..] {
        [] => measure.all(200).await,
        ["turns"] => measure.turns().await,
        ["cancel", processes] => measure.cancel(processes.parse()?, 5).await,
        ["cancel", processes, runs] => measure.cancel(processes.parse()?, runs.parse()?).await,
        [runs] => measure.all(runs.parse()?).await,
        _ => Err("too many arguments".into()),
    }
}

impl Measure {
    async fn all(&self, runs: usize) -> Result<(), Failed> {
        let mut took: [Vec<Duration>; WAYS.len()] = Default::default();
        for _ in 0..runs {
            for (way, took) in WAYS.iter().zip(&mut took) {
                took.push(self.once(way).await?);
            }
        }
        for ((name, ..), took) in WAYS.iter().zip(&mut took) {
            println!("{name}: {}", spread(took));
        }
        Ok(())
    }

    async fn turns(&self) -> Result<(), Failed> {
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let way = WAYS.iter().find(|(name, ..)| *name == line).ok_or("no such way")?;
            println!("{}", self.once(way).await?.as_secs_f64());
            std::io::stdout().flush()?;
        }
        Ok(())
    }

    async fn once(&self, way: &Way) -> Result<Duration, Failed> {
        let process = self.process("/bin/true", way);
        let (_reader, writer) = std::io::pipe()?;
        let start = Instant::now();
        let root = Root::Dir(self.root.clone());
        let ended = self.sandbox.run(root, &process, writer.into(), &CancellationToken::new()).await?;
        let took = start.elapsed();
        if ended.status == ExitStatus::Code(0) { Ok(took) } else { Err(format!("{ended:?}").into()) }
    }

    async fn cancel(&self, processes: usize, runs: usize) -> Result<(), Failed> {
        let script =
            format!("i=0; while [ $i -lt {processes} ]; do sleep 1000000 & i=$((i+1)); done; echo ready; wait");
        let mut took = Vec::new();
        for _ in 0..runs {
            let process = self.process(&script, &WAYS[0]);
            let cancel = CancellationToken::new();
            let (reader, writer) = std::io::pipe()?;
            let run = self.sandbox.run(Root::Dir(self.root.clone()), &process, writer.into(), &cancel);
            let reading =
                tokio::task::spawn_blocking(move || std::io::BufReader::new(reader).lines().next().transpose());
            let canceller = async {
                let line = reading.await;
                cancel.cancel();
                (line, Instant::now())
            };
            let (ended, (line, start)) = tokio::join!(run, canceller);
            took.push(start.elapsed());
            if line??.as_deref() != Some("ready") || !matches!(ended, Err(SandboxError::Cancelled(_))) {
                return Err(format!("not all were started: {ended:?}").into());
            }
        }
        println!("cancel {processes} processes: {}", spread(&mut took));
        Ok(())
    }

    fn process(&self, script: &str, (_, has_own_users, is_limited, network, seccomp): &Way) -> Process {
        let argv: &[&str] = if script.contains(' ') { &["/bin/sh", "-c", script] } else { &[script] };
        let mut limits = Limits::default();
        if *is_limited {
            (limits.memory_bytes, limits.processes) = (Some(4 << 30), Some(16384));
            limits.cpu_millis = Some(2000);
        }
        Process {
            argv: argv.iter().map(|word| (*word).into()).collect(),
            env: vec![("PATH".into(), "/bin:/usr/bin".into())],
            cwd: "/".into(),
            user: User { uid: 0, gid: 0 },
            hostname: "builder".to_owned(),
            network: network.clone(),
            mounts: Vec::new(),
            limits,
            user_namespace: if *has_own_users { self.own.clone() } else { UserNamespace::Host },
            allow_namespaces: false,
            seccomp: seccomp.clone(),
            fast_sync: true,
            held: Vec::new(),
        }
    }
}

fn spread(took: &mut [Duration]) -> String {
    took.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let (middle, most) = (took[took.len() / 2], took[took.len() * 95 / 100]);
    format!("median {:.2} ms, least {:.2}, 95% {:.2} ({} runs)", ms(middle), ms(took[0]), ms(most), took.len())
}
