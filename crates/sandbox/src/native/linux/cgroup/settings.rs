//! Which limit is written into which file. Pure.

use super::host::{Controller, Version};
use crate::Limits;

/// In which the kernel keeps a quota of processor time, in microseconds: its default.
const PERIOD_US: u64 = 100_000;

/// Something to write into the files of a control group, in order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Setting {
    /// The limit, for people.
    pub(super) limit: &'static str,
    /// With which value; each that exists is written. One must.
    pub(super) files: Vec<(&'static str, String)>,
}

/// Returns the limits that are asked for, each with its controller and its name for people.
pub(super) fn asked(limits: &Limits) -> Vec<(Controller, &'static str)> {
    let Limits { memory_bytes, swap_bytes, processes, cpu_millis, cpu_weight, io_weight, open_files: _ } = limits;
    let asked = [
        (memory_bytes.is_some(), Controller::Memory, MEMORY),
        (swap_bytes.is_some(), Controller::Memory, SWAP),
        (processes.is_some(), Controller::Processes, PROCESSES),
        (cpu_millis.is_some(), Controller::Cpu, CPU),
        (cpu_weight.is_some(), Controller::Cpu, CPU_WEIGHT),
        (io_weight.is_some(), Controller::Io, IO_WEIGHT),
    ];
    asked.into_iter().filter(|(is_asked, ..)| *is_asked).map(|(_, controller, limit)| (controller, limit)).collect()
}

const MEMORY: &str = "memory";
const SWAP: &str = "swap";
const PROCESSES: &str = "processes";
const CPU: &str = "processor time";
const CPU_WEIGHT: &str = "the share of the processors";
const IO_WEIGHT: &str = "the share of the disks";

/// Returns what to write for a controller.
///
/// # Errors
///
/// The limit that this version of control groups does not have, and why.
pub(super) fn settings(
    limits: &Limits,
    controller: Controller,
    version: Version,
) -> Result<Vec<Setting>, (&'static str, &'static str)> {
    let mut settings = Vec::new();
    let mut set = |limit, files: &[(&'static str, String)]| settings.push(Setting { limit, files: files.to_vec() });
    match (controller, version) {
        (Controller::Memory, Version::One) => {
            if let Some(memory) = limits.memory_bytes {
                set(MEMORY, &[("memory.limit_in_bytes", memory.to_string())]);
            }
            match (limits.memory_bytes, limits.swap_bytes) {
                // Both together, and never less than the memory, so it comes second.
                (Some(memory), Some(swap)) => {
                    set(SWAP, &[("memory.memsw.limit_in_bytes", memory.saturating_add(swap).to_string())]);
                }
                (None, Some(_)) => return Err((SWAP, "with control groups v1 it needs a limit of memory too")),
                (_, None) => {}
            }
        }
        (Controller::Memory, Version::Two) => {
            if let Some(memory) = limits.memory_bytes {
                set(MEMORY, &[("memory.max", memory.to_string())]);
                // A step without one of its processes would go on and fail of something else, or succeed wrongly.
                set(MEMORY, &[("memory.oom.group", "1".to_owned())]);
            }
            if let Some(swap) = limits.swap_bytes {
                set(SWAP, &[("memory.swap.max", swap.to_string())]);
            }
        }
        (Controller::Processes, _) => {
            if let Some(processes) = limits.processes {
                set(PROCESSES, &[("pids.max", processes.to_string())]);
            }
        }
        (Controller::Cpu, version) => {
            let quota_us = limits.cpu_millis.map(|millis| u64::from(millis) * PERIOD_US / 1000);
            match (quota_us, version) {
                (Some(quota), Version::One) => {
                    set(CPU, &[("cpu.cfs_period_us", PERIOD_US.to_string())]);
                    set(CPU, &[("cpu.cfs_quota_us", quota.to_string())]);
                }
                (Some(quota), Version::Two) => set(CPU, &[("cpu.max", format!("{quota} {PERIOD_US}"))]),
                (None, _) => {}
            }
            if let Some(weight) = limits.cpu_weight {
                // v1 counts from 2 to 262 144, and everyone's share is 1024.
                let shares = (u64::from(weight) * 1024 / 100).max(2);
                match version {
                    Version::One => set(CPU_WEIGHT, &[("cpu.shares", shares.to_string())]),
                    Version::Two => set(CPU_WEIGHT, &[("cpu.weight", weight.to_string())]),
                }
            }
        }
        (Controller::Io, version) => {
            if let Some(weight) = limits.io_weight {
                let bfq = bfq_weight(weight).to_string();
                match version {
                    Version::One => set(IO_WEIGHT, &[("blkio.bfq.weight", bfq)]),
                    // One for disks with a cost model, one for those with the scheduler BFQ.
                    Version::Two => {
                        set(IO_WEIGHT, &[("io.weight", weight.to_string()), ("io.bfq.weight", bfq)]);
                    }
                }
            }
        }
        (Controller::CpuAccounting, _) => {}
    }
    Ok(settings)
}

/// BFQ's weights end at 1000; everyone's is 100 too.
fn bfq_weight(weight: u32) -> u32 {
    if weight <= 100 { weight } else { 100 + (weight - 100) / 11 }
}

/// What lifts a quota of processor time again.
pub(super) fn without_quota(version: Version) -> (&'static str, &'static str) {
    match version {
        Version::One => ("cpu.cfs_quota_us", "-1"),
        Version::Two => ("cpu.max", "max"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(limits: &Limits, version: Version) -> Vec<String> {
        let controllers = [Controller::Memory, Controller::Processes, Controller::Cpu, Controller::Io];
        let settings = controllers.into_iter().flat_map(|controller| settings(limits, controller, version).unwrap());
        settings.flat_map(|set| set.files).map(|(file, value)| format!("{file} {value}")).collect()
    }

    fn all() -> Limits {
        Limits {
            memory_bytes: Some(4 << 30),
            swap_bytes: Some(0),
            processes: Some(4096),
            cpu_millis: Some(1500),
            cpu_weight: Some(50),
            io_weight: Some(10_000),
            ..Limits::default()
        }
    }

    #[test]
    fn each_version_has_its_files_and_units() {
        assert_eq!(
            written(&all(), Version::Two),
            [
                "memory.max 4294967296",
                "memory.oom.group 1",
                "memory.swap.max 0",
                "pids.max 4096",
                "cpu.max 150000 100000",
                "cpu.weight 50",
                "io.weight 10000",
                "io.bfq.weight 1000",
            ]
        );
        assert_eq!(
            written(&all(), Version::One),
            [
                "memory.limit_in_bytes 4294967296",
                "memory.memsw.limit_in_bytes 4294967296",
                "pids.max 4096",
                "cpu.cfs_period_us 100000",
                "cpu.cfs_quota_us 150000",
                "cpu.shares 512",
                "blkio.bfq.weight 1000",
            ]
        );
    }

    #[test]
    fn what_is_not_asked_for_is_not_written() {
        for version in [Version::One, Version::Two] {
            assert!(written(&Limits::default(), version).is_empty());
        }
        assert!(asked(&Limits::default()).is_empty());
        assert_eq!(asked(&all()).len(), 6);
    }

    #[test]
    fn swap_alone_is_beyond_v1() {
        let limits = Limits { swap_bytes: Some(0), ..Limits::default() };
        assert_eq!(settings(&limits, Controller::Memory, Version::One).unwrap_err().0, "swap");
        assert_eq!(written(&limits, Version::Two), ["memory.swap.max 0"]);
    }

    #[test]
    fn the_least_weight_is_one_that_the_kernel_takes() {
        let limits = Limits { cpu_weight: Some(1), ..Limits::default() };
        assert_eq!(written(&limits, Version::One), ["cpu.shares 10"]);
        assert_eq!((bfq_weight(1), bfq_weight(100), bfq_weight(10_000)), (1, 100, 1000));
    }
}
