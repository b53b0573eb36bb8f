//! What processes take of the machine, as `/proc` says (proc(5)).

use std::fs;
use std::path::Path;

/// What a process has taken, so far.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Processor time of all threads, and of the first, in ticks of 1/100 s.
    pub(crate) ticks: u64,
    pub(crate) ticks_of_first_thread: u64,
    /// Memory that is there (`VmRSS`), and of that what is in no file (`RssAnon`), in KiB.
    pub(crate) resident_kib: u64,
    pub(crate) anonymous_kib: u64,
    pub(crate) open_files: usize,
}

impl Process {
    /// Looks at a process. There may be none.
    pub(crate) fn look(pid: u32) -> Option<Self> {
        let directory = Path::new("/proc").join(pid.to_string());
        let status = fs::read_to_string(directory.join("status")).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_default()
        };
        Some(Self {
            pid,
            ticks: ticks(&directory)?,
            ticks_of_first_thread: ticks(&directory.join("task").join(pid.to_string()))?,
            resident_kib: kib("VmRSS"),
            anonymous_kib: kib("RssAnon"),
            open_files: fs::read_dir(directory.join("fd")).ok()?.count(),
        })
    }
}

fn ticks(directory: &Path) -> Option<u64> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    // The name before it may have anything in it.
    let fields: Vec<_> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Returns the processor time of the whole machine that was used, in ticks.
pub(crate) fn machine_ticks() -> u64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields = stat.lines().next().unwrap_or_default().split_whitespace().skip(1);
    let numbers: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // All but idle and waiting for disks; what guests use is in what users do.
    numbers.iter().take(8).sum::<u64>() - numbers.iter().skip(3).take(2).sum::<u64>()
}
