//! Limits of a step, what it used, and what is said of both. Pure.

use std::fmt;
use std::time::Duration;

use kiln_store::Meta;
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
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(kiln_sandbox::Limit::Memory(bytes)) => write!(f, "memory limit {} reached", Size(*bytes)),
            Self::Sandbox(kiln_sandbox::Limit::Processes(count)) => write!(f, "limit of {count} processes reached"),
            Self::Time(time) => write!(f, "ran longer than {}", humantime::format_duration(*time)),
            Self::Log(bytes) => write!(f, "the log reached {}", Size(*bytes)),
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
        ]
        .map(|limit| limit.to_string());
        let expected = [
            "memory limit 4 GiB reached",
            "memory limit 1000 bytes reached",
            "limit of 4096 processes reached",
            "ran longer than 1h 30m",
            "the log reached 100 MiB",
        ];
        assert_eq!(told, expected);
    }

    #[test]
    fn what_is_kept_is_read_again_and_unknown_numbers_do_not_hurt() {
        let mut sandbox = kiln_sandbox::Usage::default();
        sandbox.peak_memory_bytes = Some(5);
        let usage = StepUsage { wall_ms: 7, sandbox };
        let json = serde_json::to_value(usage).unwrap();
        assert_eq!(json, serde_json::json!({ "wall_ms": 7, "peak_memory_bytes": 5 }));
        let newer = serde_json::json!({ "wall_ms": 7, "peak_memory_bytes": 5, "energy_joules": 3 });
        assert_eq!(serde_json::from_value::<StepUsage>(newer).unwrap(), usage);
    }
}
