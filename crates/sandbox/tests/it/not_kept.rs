//! Promises that OCI runtimes do not keep, or not in the words of the native sandbox, each with the reason.

use kiln_sandbox::Runtime;

const BOTH: &[Runtime] = &[Runtime::Runc, Runtime::Crun];

/// Tests that do not hold, by the end of their names.
const NOT_KEPT: &[(&[Runtime], &str, &str)] = &[
    (BOTH, "ends::the_exit_status_is_the_commands", "the command is PID 1, which cannot kill itself by a signal"),
    (BOTH, "ends::orphans_are_reaped", "the command is PID 1, so reaping is its own business"),
    (
        BOTH,
        "devices::root_makes_nodes_as_the_kernel_would_and_users_make_none",
        "PID 1 is the command, whose working directory is no secret",
    ),
    (BOTH, "isolation::the_environment_is_the_given_one", "`HOME` is added if it is missing; a build always gives it"),
    (
        BOTH,
        "hostile::the_helper_cannot_be_overwritten_by_a_command_that_gets_hold_of_it",
        "PID 1 is the command; runtimes protect their own binaries in their own ways",
    ),
    (BOTH, "hostile::the_helpers_binary_is_on_a_read_only_mount", "it is about the native sandbox itself"),
    (
        BOTH,
        "system_calls::init_cannot_be_traced_but_ones_own_processes_can",
        "PID 1 is the command, which may be traced",
    ),
    (
        BOTH,
        "system_calls::the_other_abis_of_the_processor_are_no_way_around",
        "libseccomp kills who tries x32; `the_other_abis_are_refused_or_kill` looks at the rest",
    ),
    (
        &[Runtime::Crun],
        "network::what_is_missing_is_said_before_anything_runs",
        "the test's own `$PATH` lacks the runtime too",
    ),
];

/// Returns whether this is such a test, and says why.
pub(crate) fn is_not_kept(function: &str, runtime: Runtime) -> bool {
    let test = function.trim_end_matches("::here").trim_end_matches("::{{closure}}");
    let listed = NOT_KEPT.iter().find(|(runtimes, name, _)| runtimes.contains(&runtime) && test.ends_with(name));
    if let Some((.., reason)) = listed {
        println!("NOT KEPT by {runtime}: {reason}");
    }
    listed.is_some()
}

/// What a runtime keeps of those promises.
mod instead {
    use kiln_sandbox::ExitStatus;

    use crate::harness::{Jail, RUNTIME, shell};
    use crate::needs_sandbox;

    #[tokio::test]
    async fn exit_codes_are_the_commands() {
        needs_sandbox!();
        let jail = Jail::new();
        for code in [0, 1, 42, 137, 255] {
            assert_eq!(jail.run(&shell(&format!("exit {code}"))).await.unwrap().0, ExitStatus::Code(code));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[tokio::test]
    async fn the_other_abis_are_refused_or_kill() {
        needs_sandbox!();
        let x32 = if RUNTIME.is_some() { "Bad system call" } else { "errno 38" };
        // x32: getpid; i386: getpid, mount, keyctl, clone3, ioctl(TIOCSTI), clone(CLONE_NEWUSER), personality, socket.
        let script =
            "/probe call x32 39 2>&1; /probe call i386 20; /probe call i386 21 0 0 0 0 0; /probe call i386 288 -1
                      /probe call i386 435 0 0; /probe call i386 54 0 0x5412 0; /probe call i386 120 0x10000011 0 0 0 0
                      /probe call i386 136 0x400000; /probe call i386 359 40 1 0";
        let output = Jail::new().with_probe().ok(&shell(script)).await;
        let rest = "ok\nerrno 1\nerrno 1\nerrno 38\nerrno 1\nerrno 1\nerrno 1\nerrno 97\n";
        assert_eq!(output, format!("{x32}\n{rest}"));
    }
}
