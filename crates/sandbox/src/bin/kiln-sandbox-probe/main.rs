//! Looks around inside a sandbox for the tests of this crate, or starts one that can be killed.
//!
//! * `probe call ABI NUMBER [ARGUMENT…]`: makes a system call by the ABI `native`, `i386` or `x32`, and prints `ok` or
//!   `errno N`. Numbers may be hexadecimal (`0x…`).
//! * `probe capability FILE BITS`: gives a file capabilities, permitted and effective, and prints `ok`.
//! * `probe crowd N`: starts N processes that do nothing, prints how many there are, and waits for ever.
//! * `probe connect ADDRESS PORT [INTERFACE]`: connects, by a socket bound to the interface if that is given, and prints `got`
//!   and what comes, or `errno N`.
//! * `probe send ADDRESS PORT TEXT [INTERFACE]`: sends a datagram, and prints `ok` or `errno N`.
//! * `probe ask ADDRESS PORT TEXT`: sends a datagram, and prints `got` and the answer.
//! * `probe ping ADDRESS`: sends an echo request by the socket that takes no capability, and prints `got` and the type of the
//!   answer, which is 0, or `errno N`.
//! * `probe flush`: asks the kernel to drop the packet filter, and prints `ok` or `errno N`.
//! * `probe run ROOT HELPER KIND SCRIPT`: runs a shell script in the sandbox, its output on our stdout, and prints the
//!   outcome on stderr; `run-private` with a private network. KIND: `runc`, `crun`, or the native one, where users are its
//!   `own` or the `host`'s.

mod network;
mod sys;

use std::os::fd::AsFd;
use std::process::ExitCode;

use kiln_sandbox::{
    Io, Limits, NativeSandbox, Network, OciSandbox, Process, Root, Runtime, Sandbox, Seccomp, User, UserNamespace,
};
use tokio_util::sync::CancellationToken;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words[..] {
        ["call", abi, ref numbers @ ..] => call(abi, numbers),
        ["capability", file, bits] => capability(file, bits),
        ["crowd", count] => crowd(count),
        ["connect", address, port] => network::connect(address, port, None),
        ["connect", address, port, interface] => network::connect(address, port, Some(interface)),
        ["send", address, port, text] => network::send(address, port, text, None),
        ["send", address, port, text, interface] => network::send(address, port, text, Some(interface)),
        ["ask", address, port, text] => network::ask(address, port, text),
        ["ping", address] => network::ping(address),
        ["flush"] => network::flush(),
        ["run", root, helper, kind, script] => run(root, helper, kind, script, Network::None),
        ["run-private", root, helper, kind, script] => {
            run(root, helper, kind, script, Network::Private { allow: Vec::new() })
        }
        _ => ExitCode::from(2),
    }
}

fn call(abi: &str, numbers: &[&str]) -> ExitCode {
    let numbers: Option<Vec<u64>> = numbers.iter().map(|text| number(text)).collect();
    let mut padded = [0; 7];
    match numbers {
        Some(numbers) if (1..=7).contains(&numbers.len()) => padded[..numbers.len()].copy_from_slice(&numbers),
        _ => return ExitCode::from(2),
    }
    let result = match abi {
        "native" => sys::native(padded),
        "x32" => {
            sys::native([padded[0] | 0x4000_0000, padded[1], padded[2], padded[3], padded[4], padded[5], padded[6]])
        }
        "i386" => sys::i386(padded),
        _ => return ExitCode::from(2),
    };
    match result {
        // The kernel's errnos.
        -4095..0 => println!("errno {}", -result),
        _ => println!("ok"),
    }
    ExitCode::SUCCESS
}

fn capability(file: &str, bits: &str) -> ExitCode {
    let Some(bits) = number(bits).and_then(|bits| u32::try_from(bits).ok()) else { return ExitCode::from(2) };
    // `struct vfs_cap_data` of version 2, with VFS_CAP_FLAGS_EFFECTIVE.
    let value = [0x0200_0001, bits, 0, 0, 0].map(u32::to_le_bytes).concat();
    match rustix::fs::setxattr(file, "security.capability", &value, rustix::fs::XattrFlags::empty()) {
        Ok(()) => println!("ok"),
        Err(error) => println!("errno {}", error.raw_os_error()),
    }
    ExitCode::SUCCESS
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse::<i64>().ok().map(i64::cast_unsigned),
    }
}

fn crowd(count: &str) -> ExitCode {
    let Some(count) = number(count) else { return ExitCode::from(2) };
    let started = (0..count).take_while(|_| sys::fork_and_wait()).count();
    println!("{started}");
    loop {
        std::thread::park();
    }
}

#[tokio::main]
async fn run(root: &str, helper: &str, kind: &str, script: &str, network: Network) -> ExitCode {
    let mut process = Process {
        argv: ["/bin/sh", "-c", script].map(Into::into).to_vec(),
        env: vec![("PATH".into(), "/bin".into())],
        cwd: "/".into(),
        user: User { uid: 0, gid: 0 },
        hostname: "builder".to_owned(),
        network,
        mounts: Vec::new(),
        limits: Limits::default(),
        user_namespace: UserNamespace::Host,
        allow_namespaces: false,
        seccomp: Seccomp::Default,
        fast_sync: false,
        held: Vec::new(),
    };
    let ended = async {
        let output = std::io::stdout().as_fd().try_clone_to_owned().map_err(kiln_sandbox::SandboxError::StartHelper)?;
        let path = std::env::var_os("PATH").unwrap_or_default();
        let sandbox: Box<dyn Sandbox> = match kind {
            "runc" => Box::new(OciSandbox::new(helper, Runtime::Runc, &path)?),
            "crun" => Box::new(OciSandbox::new(helper, Runtime::Crun, &path)?),
            _ => Box::new(NativeSandbox::new(helper)?),
        };
        if kind != "host" {
            process.user_namespace = sandbox.user_namespace()?;
        }
        sandbox.run(Root::Dir(root.into()), &process, Io::Output(output), &CancellationToken::new()).await
    };
    match ended.await {
        Ok(ended) => eprintln!("{:?}", ended.status),
        Err(error) => eprintln!("error: {error}"),
    }
    ExitCode::SUCCESS
}
