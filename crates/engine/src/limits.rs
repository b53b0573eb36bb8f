//! Limits of a step, what it used, and what is said of both. Pure.

use std::fmt;
use std::time::Duration;

use kiln_sandbox::ExitStatus;
use kiln_store::{Meta, Quota};
use serde::{Deserialize, Serialize};

/// A limit that a step came up against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Limit {
    /// One that the sandbox keeps.
    Sandbox(kiln_sandbox::Limit),
    /// It ran longer than this.
    Time(Duration),
    /// It wrote more than this.
    Log(u64),
    /// Its tree, or what it added to a cache, took so many bytes.
    Disk(u64),
    /// So many files, directories and links.
    Files(u64),
}

impl Limit {
    /// Returns the limit of `quota` that a command came up against which left so much of it: it failed, or not.
    ///
    /// Filesystems refuse what does not fit as a whole, and count ahead for what they may need; so nearly full is full.
    pub(crate) fn of_quota(quota: &Quota, left: &Quota) -> Option<Self> {
        const NEARLY_BYTES: u64 = 1 << 20;
        const NEARLY_FILES: u64 = 1;
        if let (Some(bytes), Some(left)) = (quota.bytes, left.bytes)
            && left <= NEARLY_BYTES.max(bytes / 64)
        {
            return Some(Self::Disk(bytes));
        }
        match (quota.files, left.files) {
            (Some(files), Some(left)) if left <= NEARLY_FILES => Some(Self::Files(files)),
            _ => None,
        }
    }

    /// Returns whether a command that ended so was killed for it.
    pub(crate) fn has_killed(&self, status: ExitStatus) -> bool {
        // Quotas kill nobody.
        matches!(status, ExitStatus::Signal(_)) && !matches!(self, Self::Disk(_) | Self::Files(_))
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(kiln_sandbox::Limit::Memory(bytes)) => write!(f, "memory limit {} reached", Size(*bytes)),
            Self::Sandbox(kiln_sandbox::Limit::Processes(count)) => write!(f, "limit of {count} processes reached"),
            Self::Time(time) => write!(f, "ran longer than {}", humantime::format_duration(*time)),
            Self::Log(bytes) => write!(f, "the log reached {}", Size(*bytes)),
            Self::Disk(bytes) => write!(f, "disk limit {} reached", Size(*bytes)),
            Self::Files(count) => write!(f, "limit of {count} files reached"),
        }
    }
}

/// A size as people wrote it: exact if it can be.
struct Size(u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        match units.into_iter().find(|(unit, _)| self.0 >= *unit && self.0.is_multiple_of(*unit)) {
            Some((unit, name)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// What a step used, kept with its result and with the log of one that failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUsage {
    /// How long it ran, in milliseconds.
    pub wall_ms: u64,
    /// What its tree took on the disk, in bytes; kept where that was limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_bytes: Option<u64>,
    /// How many files, directories and links it made; kept where that was limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// The rest.
    #[serde(flatten)]
    pub sandbox: kiln_sandbox::Usage,
}

impl StepUsage {
    /// Returns what is kept in the description of a step. `None`: it ran no command, or an earlier version made it.
    pub fn of(meta: &Meta) -> Option<Self> {
        serde_json::from_value(meta.detail.get("usage")?.clone()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_as_they_were_given() {
        let told = [
            Limit::Sandbox(kiln_sandbox::Limit::Memory(4 << 30)),
            Limit::Sandbox(kiln_sandbox::Limit::Memory(1000)),
            Limit::Sandbox(kiln_sandbox::Limit::Processes(4096)),
            Limit::Time(Duration::from_secs(5400)),
            Limit::Log(100 << 20),
            Limit::Disk(10 << 30),
            Limit::Files(1000),
        ]
        .map(|limit| limit.to_string());
        let expected = [
            "memory limit 4 GiB reached",
            "memory limit 1000 bytes reached",
            "limit of 4096 processes reached",
            "ran longer than 1h 30m",
            "the log reached 100 MiB",
            "disk limit 10 GiB reached",
            "limit of 1000 files reached",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_nearly_full_is_full() {
        let quota = Quota { bytes: Some(100 << 20), files: Some(1000) };
        let limit = |bytes, files| Limit::of_quota(&quota, &Quota { bytes: Some(bytes), files: Some(files) });
        assert_eq!(limit(50 << 20, 500), None);
        assert_eq!(limit(1 << 20, 500), Some(Limit::Disk(100 << 20)));
        assert_eq!(limit(50 << 20, 0), Some(Limit::Files(1000)));
        assert_eq!(Limit::of_quota(&Quota::NONE, &Quota::NONE), None);
    }

    #[test]
    fn what_is_kept_is_read_again_and_unknown_numbers_do_not_hurt() {
        let mut sandbox = kiln_sandbox::Usage::default();
        sandbox.peak_memory_bytes = Some(5);
        let usage = StepUsage { wall_ms: 7, sandbox, ..StepUsage::default() };
        let json = serde_json::to_value(usage).unwrap();
        assert_eq!(json, serde_json::json!({ "wall_ms": 7, "peak_memory_bytes": 5 }));
        let newer = serde_json::json!({ "wall_ms": 7, "peak_memory_bytes": 5, "energy_joules": 3 });
        assert_eq!(serde_json::from_value::<StepUsage>(newer).unwrap(), usage);
    }
}
