//! What a process may use, what it used, and how it ended: plain data.

use serde::{Deserialize, Serialize};

use crate::ExitStatus;

/// Resource limits. `None`: as much as the host has.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Open files of one process, soft and hard (`RLIMIT_NOFILE`).
    pub open_files: u64,
    /// Memory of all processes together: theirs, what the kernel holds for them, and files in memory (`/dev/shm`, secrets).
    pub memory_bytes: Option<u64>,
    /// Swap space beyond that.
    pub swap_bytes: Option<u64>,
    /// Processes and threads at once, the sandbox's own init among them: at least 2.
    pub processes: Option<u64>,
    /// Thousandths of a processor's time, at least 10.
    pub cpu_millis: Option<u32>,
    /// Share of the processors when they are busy, from 1 to 10 000; everyone's is 100.
    pub cpu_weight: Option<u32>,
    /// Share of the disks when they are busy, from 1 to 10 000; everyone's is 100.
    pub io_weight: Option<u32>,
}

impl Default for Limits {
    /// 1024 open files: the kernel's own default. Larger soft limits slow down programs that close
    /// every possible descriptor, and break `select(2)`. Nothing else is limited.
    fn default() -> Self {
        Self {
            open_files: 1024,
            memory_bytes: None,
            swap_bytes: None,
            processes: None,
            cpu_millis: None,
            cpu_weight: None,
            io_weight: None,
        }
    }
}

/// What all processes of a run used together, as far as this host counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Usage {
    /// Processor time in their own code, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_user_ms: Option<u64>,
    /// Processor time in the kernel, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_system_ms: Option<u64>,
    /// Most memory at one time; the cache of the files that they used counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<u64>,
    /// Bytes read from disks. What was in memory already is not among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_read_bytes: Option<u64>,
    /// Bytes written to disks until the end. What the kernel writes later is not among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub io_written_bytes: Option<u64>,
    /// Most processes and threads at one time, the sandbox's own init among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_processes: Option<u64>,
}

/// A limit that a run came up against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// [`Limits::memory_bytes`]: the kernel killed processes.
    Memory(u64),
    /// [`Limits::processes`]: the kernel refused to make more.
    Processes(u64),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// How the main process ended.
    pub status: ExitStatus,
    /// What it all took.
    pub usage: Usage,
    /// The limit that it came up against. The command may have coped with that: see `status`.
    pub hit: Option<Limit>,
}

impl From<ExitStatus> for Ended {
    /// A run of which nothing else is known.
    fn from(status: ExitStatus) -> Self {
        Self { status, usage: Usage::default(), hit: None }
    }
}
