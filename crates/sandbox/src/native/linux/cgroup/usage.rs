//! What a control group says of its use, and of the limits that it came up against. Pure.

use super::host::{Controller, Version};
use crate::{Limit, Limits, Usage};

/// Adds to `usage` what the files of a controller say. `read` returns a file's content, `None` if this kernel has no such file.
pub(super) fn add(usage: &mut Usage, controller: Controller, version: Version, read: impl Fn(&str) -> Option<String>) {
    let number = |file: &str| read(file)?.trim().parse::<u64>().ok();
    let field = |file: &str, name: &str| field(&read(file)?, name);
    match (controller, version) {
        (Controller::Memory, Version::One) => usage.peak_memory_bytes = number("memory.max_usage_in_bytes"),
        (Controller::Memory, Version::Two) => usage.peak_memory_bytes = number("memory.peak"),
        (Controller::Processes, _) => usage.peak_processes = number("pids.peak"),
        (Controller::CpuAccounting, Version::One) => {
            usage.cpu_user_ms = number("cpuacct.usage_user").map(|ns| ns / 1_000_000);
            usage.cpu_system_ms = number("cpuacct.usage_sys").map(|ns| ns / 1_000_000);
        }
        (Controller::Cpu | Controller::CpuAccounting, Version::Two) => {
            usage.cpu_user_ms = field("cpu.stat", "user_usec").map(|us| us / 1000);
            usage.cpu_system_ms = field("cpu.stat", "system_usec").map(|us| us / 1000);
        }
        (Controller::Cpu, Version::One) => {}
        (Controller::Io, Version::One) => {
            let text = read("blkio.throttle.io_service_bytes");
            let sum = |kind: &str| text.as_ref().map(|text| sum_of_lines(text, kind));
            (usage.io_read_bytes, usage.io_written_bytes) = (sum("Read"), sum("Write"));
        }
        (Controller::Io, Version::Two) => {
            let text = read("io.stat");
            let sum = |key: &str| text.as_ref().map(|text| sum_of_keys(text, key));
            (usage.io_read_bytes, usage.io_written_bytes) = (sum("rbytes="), sum("wbytes="));
        }
    }
}

/// Returns the limit of a controller that the group came up against.
pub(super) fn hit(
    limits: &Limits,
    controller: Controller,
    version: Version,
    read: impl Fn(&str) -> Option<String>,
) -> Option<Limit> {
    let count = |file: &str, name: &str| read(file).and_then(|text| field(&text, name)).unwrap_or(0);
    match (controller, version) {
        // Killed, and for this limit: the whole host's shortage kills too.
        (Controller::Memory, Version::One) => {
            let is_killed = count("memory.oom_control", "oom_kill") > 0;
            limits.memory_bytes.filter(|_| is_killed).map(Limit::Memory)
        }
        (Controller::Memory, Version::Two) => {
            let is_killed = count("memory.events", "oom") > 0 && count("memory.events", "oom_kill") > 0;
            limits.memory_bytes.filter(|_| is_killed).map(Limit::Memory)
        }
        (Controller::Processes, _) => {
            limits.processes.filter(|_| count("pids.events", "max") > 0).map(Limit::Processes)
        }
        (Controller::Cpu | Controller::CpuAccounting | Controller::Io, _) => None,
    }
}

/// Returns the number of the line `NAME NUMBER`.
fn field(text: &str, name: &str) -> Option<u64> {
    let of_line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok();
    text.lines().find_map(of_line)
}

/// Adds up lines of `DEVICE KIND NUMBER`.
fn sum_of_lines(text: &str, kind: &str) -> u64 {
    let of_line = |line: &str| {
        let mut words = line.split(' ').skip(1);
        (words.next() == Some(kind)).then(|| words.next()?.parse::<u64>().ok()).flatten()
    };
    text.lines().filter_map(of_line).sum()
}

/// Adds up the `KEY=NUMBER` of lines of several.
fn sum_of_keys(text: &str, key: &str) -> u64 {
    text.split_whitespace().filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &[(&str, &str)] = &[
        ("memory.max_usage_in_bytes", "1048576\n"),
        ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"),
        ("cpuacct.usage_user", "1500000000\n"),
        ("cpuacct.usage_sys", "2999999\n"),
        ("blkio.throttle.io_service_bytes", "8:0 Read 10\n8:0 Write 3\n8:0 Total 13\n8:16 Read 5\nTotal 18\n"),
        ("pids.peak", "7\n"),
        ("pids.events", "max 0\n"),
    ];
    const V2: &[(&str, &str)] = &[
        ("memory.peak", "2048\n"),
        ("memory.events", "low 0\nhigh 0\nmax 31\noom 1\noom_kill 3\noom_group_kill 1\n"),
        ("cpu.stat", "usage_usec 4000\nuser_usec 3000\nsystem_usec 1000\nnr_periods 0\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=3 rios=1 wios=1 dbytes=0 dios=0\n8:16 rbytes=5 wbytes=0\n"),
        ("pids.events", "max 12\n"),
    ];

    fn read<'a>(files: &'a [(&str, &str)]) -> impl Fn(&str) -> Option<String> + Copy + 'a {
        |wanted| files.iter().find(|(name, _)| *name == wanted).map(|(_, content)| (*content).to_owned())
    }

    fn limits() -> Limits {
        Limits { memory_bytes: Some(1 << 20), processes: Some(9), ..Limits::default() }
    }

    fn hits(version: Version, files: &[(&str, &str)]) -> [Option<Limit>; 2] {
        [Controller::Memory, Controller::Processes].map(|controller| hit(&limits(), controller, version, read(files)))
    }

    #[test]
    fn both_versions_are_read() {
        let usage = |version, files| {
            let mut usage = Usage::default();
            for controller in [Controller::Memory, Controller::Processes, Controller::CpuAccounting, Controller::Io] {
                add(&mut usage, controller, version, read(files));
            }
            usage
        };
        let both = Usage { io_read_bytes: Some(15), io_written_bytes: Some(3), ..Usage::default() };
        let one = Usage {
            cpu_user_ms: Some(1500),
            cpu_system_ms: Some(2),
            peak_memory_bytes: Some(1 << 20),
            peak_processes: Some(7),
            ..both
        };
        assert_eq!(usage(Version::One, V1), one);
        let two = Usage { cpu_user_ms: Some(3), cpu_system_ms: Some(1), peak_memory_bytes: Some(2048), ..both };
        assert_eq!(usage(Version::Two, V2), two);
        assert_eq!(usage(Version::Two, &[]), Usage::default());
    }

    #[test]
    fn what_was_hit_is_told_and_nothing_else() {
        assert_eq!(hits(Version::One, V1), [Some(Limit::Memory(1 << 20)), None]);
        assert_eq!(hits(Version::Two, V2), [Some(Limit::Memory(1 << 20)), Some(Limit::Processes(9))]);
        // Killed because the host was short of memory.
        let host = [("memory.events", "max 0\noom 0\noom_kill 1\n")];
        assert_eq!(hits(Version::Two, &host), [None, None]);
        assert_eq!(hit(&Limits::default(), Controller::Memory, Version::One, read(V1)), None);
    }
}
