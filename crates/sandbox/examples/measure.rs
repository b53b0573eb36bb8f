//! Measures `/bin/true` in the whole sandbox: `cargo run --release -p kiln-sandbox --example measure -- ROOT HELPER [RUNS]`.
//!
//! ROOT is a directory with a root filesystem, HELPER the built `kiln-sandbox-helper`. Needs root.

use std::error::Error;
use std::time::{Duration, Instant};

use kiln_sandbox::{
    ExitStatus, Limits, NativeSandbox, Network, Process, Root, Sandbox as _, Seccomp, User, UserNamespace,
};
use tokio_util::sync::CancellationToken;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    kiln_sandbox::run_helper_if_asked();
    let mut args = std::env::args().skip(1);
    let (Some(root), Some(helper)) = (args.next(), args.next()) else {
        return Err("usage: measure ROOT HELPER [RUNS]".into());
    };
    let runs: usize = args.next().map_or(Ok(200), |runs| runs.parse())?;
    let sandbox = NativeSandbox::new(helper)?;
    let host = UserNamespace::Host;
    // Made before: as in a build, it serves one run after another.
    let own = sandbox.user_namespace()?;
    let cases = [(Network::None, &host), (Network::None, &own), (Network::Host, &host), (Network::Host, &own)];
    for (network, user_namespace) in cases {
        let process = Process {
            argv: vec!["/bin/true".into()],
            env: vec![("PATH".into(), "/bin:/usr/bin".into())],
            cwd: "/".into(),
            user: User { uid: 0, gid: 0 },
            hostname: "builder".to_owned(),
            network: network.clone(),
            mounts: Vec::new(),
            limits: Limits::default(),
            user_namespace: user_namespace.clone(),
            allow_namespaces: false,
            seccomp: Seccomp::Default,
            fast_sync: true,
            held: Vec::new(),
        };
        let mut took = Vec::with_capacity(runs);
        for _ in 0..runs {
            let (_reader, writer) = std::io::pipe()?;
            let start = Instant::now();
            let ended =
                sandbox.run(Root::Dir((&root).into()), &process, writer.into(), &CancellationToken::new()).await?;
            took.push(start.elapsed());
            if ended.status != ExitStatus::Code(0) {
                return Err(format!("{ended:?}").into());
            }
        }
        took.sort();
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        println!(
            "network {network:?}, users {}: median {:.2} ms, least {:.2}, 95% {:.2} ({runs} runs)",
            if user_namespace.mapped().is_some() { "its own" } else { "the host's" },
            ms(took[runs / 2]),
            ms(took[0]),
            ms(took[runs * 95 / 100]),
        );
    }
    Ok(())
}
