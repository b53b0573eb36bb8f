//! Limits of steps, as flags of `kiln build` and as settings: both are read by the same functions.

use std::fmt::Display;
use std::time::Duration;

use clap::Args;
use kiln_engine::{Isolation, Limit};
use kiln_sandbox::NativeSandbox;
use serde::de::Error;
use serde::{Deserialize, Deserializer};

use crate::args;
use crate::exit::Failure;
use crate::rootless;

/// How many processes and threads a step may have unless told otherwise: more than builds have, and half of what the
/// smallest kernels can number, so that a fork bomb leaves the machine usable.
const DEFAULT_PROCESSES: u64 = 16 << 10;

/// The least memory that a step may have. The sandbox and a static `/bin/true` need half a MiB (measured, control groups v1), and
/// with a C library to load some more: less than this is a unit that was forgotten.
const LEAST_MEMORY_BYTES: u64 = 4 << 20;
/// The most processes that a kernel can number: `PID_MAX_LIMIT` of Linux, on 64 bits. It takes no higher limit.
const MOST_PROCESSES: u64 = 4 << 20;

/// A limit, or `none`, which lifts one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Most<T> {
    Unlimited,
    Of(T),
}

impl<T> Most<T> {
    /// Returns the limit, if there is one.
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Unlimited => None,
            Self::Of(value) => Some(value),
        }
    }
}

/// How much steps may use: flags, or settings of the same names.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub(crate) struct Limits {
    /// Memory of a step, as 4G; files in /dev/shm count. This and the others may be `none`
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    #[serde(deserialize_with = "word::<_, u64, Memory>")]
    pub(crate) memory: Option<Most<u64>>,
    /// Swap space that a step may use beyond its memory, as 0 or 1G
    #[arg(long, value_name = "SIZE", value_parser = size)]
    #[serde(deserialize_with = "word::<_, u64, Size>")]
    pub(crate) swap: Option<Most<u64>>,
    /// Processes and threads of a step [default: 16384]
    #[arg(long, value_name = "N", value_parser = processes)]
    #[serde(deserialize_with = "word::<_, u64, Processes>")]
    pub(crate) pids: Option<Most<u64>>,
    /// Processor time of a step, in processors, as 2 or 0.5
    #[arg(long, value_name = "N", value_parser = cpus)]
    #[serde(deserialize_with = "word::<_, u32, Cpus>")]
    pub(crate) cpus: Option<Most<u32>>,
    /// A step's share of busy processors, from 1 to 10000; other programs have 100
    #[arg(long, value_name = "N", value_parser = weight)]
    #[serde(deserialize_with = "word::<_, u32, Weight>")]
    pub(crate) cpu_weight: Option<Most<u32>>,
    /// A step's share of busy disks, from 1 to 10000; other programs have 100
    #[arg(long, value_name = "N", value_parser = weight)]
    #[serde(deserialize_with = "word::<_, u32, Weight>")]
    pub(crate) io_weight: Option<Most<u32>>,
    /// What it may add to its tree, and to each of its caches, as 10G; needs a store that has quotas
    #[arg(long, value_name = "SIZE", value_parser = disk)]
    #[serde(deserialize_with = "word::<_, u64, Disk>")]
    pub(crate) disk: Option<Most<u64>>,
    /// How many files, directories and links it may add to its tree, and to each of its caches
    #[arg(long, value_name = "N", value_parser = inodes)]
    #[serde(deserialize_with = "word::<_, u64, Inodes>")]
    pub(crate) inodes: Option<Most<u64>>,
    /// How long it may run, as 1h
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    #[serde(deserialize_with = "word::<_, Duration, Time>")]
    pub(crate) timeout: Option<Most<Duration>>,
    /// How long the log of a step may become: see `args::LogArgs`.
    #[arg(skip)]
    #[serde(deserialize_with = "word::<_, u64, LogSize>")]
    pub(crate) log_limit: Option<Most<u64>>,
}

impl Limits {
    /// Returns these limits, and `before`'s where these say nothing.
    pub(crate) fn or(self, before: Self) -> Self {
        Self {
            memory: self.memory.or(before.memory),
            swap: self.swap.or(before.swap),
            pids: self.pids.or(before.pids),
            cpus: self.cpus.or(before.cpus),
            cpu_weight: self.cpu_weight.or(before.cpu_weight),
            io_weight: self.io_weight.or(before.io_weight),
            disk: self.disk.or(before.disk),
            inodes: self.inodes.or(before.inodes),
            timeout: self.timeout.or(before.timeout),
            log_limit: self.log_limit.or(before.log_limit),
        }
    }

    /// Sets what is said.
    pub(crate) fn set(&self, isolation: &mut Isolation) {
        let limits = &mut isolation.limits;
        limits.memory_bytes = self.memory.and_then(Most::value);
        limits.swap_bytes = self.swap.and_then(Most::value);
        limits.processes = self.pids.unwrap_or(Most::Of(DEFAULT_PROCESSES)).value();
        limits.cpu_millis = self.cpus.and_then(Most::value);
        limits.cpu_weight = self.cpu_weight.and_then(Most::value);
        limits.io_weight = self.io_weight.and_then(Most::value);
        isolation.quota.bytes = self.disk.and_then(Most::value);
        isolation.quota.files = self.inodes.and_then(Most::value);
        isolation.timeout = self.timeout.and_then(Most::value);
        if let Some(log_limit) = self.log_limit {
            isolation.log_limit_bytes = log_limit.value();
        }
    }

    /// Looks whether this host can keep the limits. One that nobody asked for is dropped if it cannot, and `tell` hears of it:
    /// but not without root, where that is so everywhere.
    pub(crate) fn check(
        &self,
        isolation: &mut Isolation,
        sandbox: &NativeSandbox,
        tell: impl FnOnce(&str),
    ) -> Result<(), Failure> {
        let failed = match sandbox.check(&isolation.limits) {
            Ok(()) => return Ok(()),
            Err(failed) if self.pids.is_some() => return Err(failed.into()),
            Err(failed) => failed,
        };
        isolation.limits.processes = None;
        sandbox.check(&isolation.limits)?;
        if rootless::is_root() {
            tell(&format!("steps may start any number of processes: {failed}; `--pids none` asks for just that"));
        }
        Ok(())
    }
}

/// Returns the flag for a limit.
pub(crate) fn flag(limit: &Limit) -> &'static str {
    match limit {
        Limit::Sandbox(kiln_sandbox::Limit::Memory(_)) => "--memory",
        Limit::Sandbox(kiln_sandbox::Limit::Processes(_)) => "--pids",
        Limit::Time(_) => "--timeout",
        Limit::Log(_) => "--log-limit",
        Limit::Disk(_) => "--disk",
        Limit::Files(_) => "--inodes",
        // There are no others yet.
        _ => "kiln build --help",
    }
}

/// Reads a limit from a word of a command line or a file.
trait Word<T> {
    fn read(text: &str) -> Result<Most<T>, String>;
}

/// Makes a reader of words that may be `none`.
macro_rules! words {
    ($($name:ident $function:ident -> $type:ty: $read:expr;)+) => {$(
        struct $name;

        impl Word<$type> for $name {
            fn read(text: &str) -> Result<Most<$type>, String> {
                let read: fn(&str) -> Result<$type, String> = $read;
                if text == "none" { Ok(Most::Unlimited) } else { read(text).map(Most::Of) }
            }
        }

        pub(crate) fn $function(text: &str) -> Result<Most<$type>, String> {
            $name::read(text)
        }
    )+};
}

words! {
    Size size -> u64: args::size;
    Memory memory -> u64: |text| within(args::size(text)?, LEAST_MEMORY_BYTES.., "a step needs at least 4M");
    LogSize log_size -> u64: |text| within(args::size(text)?, 1.., "a log holds at least a byte");
    Disk disk -> u64: |text| within(args::size(text)?, 1 << 20.., "it is at least 1M");
    Inodes inodes -> u64: |text| within(number(text)?, 10.., "it is at least 10");
    Processes processes -> u64: |text| match number(text)? {
        ..2 => Err("a step has at least 2, with the sandbox's own".to_owned()),
        count => within(count, ..=MOST_PROCESSES, "no kernel has more than 4194304"),
    };
    Cpus cpus -> u32: |text| {
        let cpus: f64 = number(text)?;
        // Less is not taken by the kernel, more is no processor's.
        let millis = if (0.01..=100_000.0).contains(&cpus) { (cpus * 1000.0).round() } else { 0.0 };
        within(millis as u32, 10.., "it is from 0.01 to 100000")
    };
    Weight weight -> u32: |text| within(number(text)?, 1..=10_000, "it is from 1 to 10000");
    Time duration -> Duration: |text| {
        let time = humantime::parse_duration(text).map_err(|_| format!("`{text}` is not a duration, as 1h 30m is"))?;
        within(time, Duration::from_nanos(1).., "it is longer than nothing")
    };
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("`{text}` is not such a number"))
}

fn within<T: PartialOrd>(value: T, range: impl std::ops::RangeBounds<T>, why: &str) -> Result<T, String> {
    if range.contains(&value) { Ok(value) } else { Err(why.to_owned()) }
}

/// Reads a setting: a string, or a number where that says all.
fn word<'de, D: Deserializer<'de>, T, W: Word<T>>(value: D) -> Result<Option<Most<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a number")]
    enum Value {
        Text(String),
        Whole(u64),
        Real(f64),
    }
    let read = |word: &dyn Display| W::read(&word.to_string()).map(Some).map_err(D::Error::custom);
    match Value::deserialize(value)? {
        Value::Text(text) => read(&text),
        Value::Whole(number) => read(&number),
        Value::Real(number) => read(&number),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Command, Kiln};

    fn flags(flags: &[&str]) -> Result<Limits, String> {
        let arguments = ["kiln", "build"].iter().chain(flags);
        match Kiln::try_parse_from(arguments).map_err(|error| error.to_string())?.command {
            Command::Build(build) => Ok(build.policy().limits),
            _ => panic!("another command"),
        }
    }

    fn file(text: &str) -> Result<Limits, String> {
        toml::from_str(text).map_err(|error| error.message().to_owned())
    }

    #[test]
    fn flags_and_files_say_the_same() {
        let all = "memory = \"4G\"\nswap = 0\npids = 4096\ncpus = 1.5\ncpu_weight = 50\nio_weight = 10000\n\
                   disk = \"10G\"\ninodes = 1000\ntimeout = \"1h 30m\"\nlog_limit = \"none\"";
        let words = "--memory=4G --swap=0 --pids=4096 --cpus=1.5 --cpu-weight=50 --io-weight=10000 --log-limit=none \
                     --disk=10G --inodes=1000";
        let words: Vec<&str> = words.split(' ').chain(["--timeout=1h 30m"]).collect();
        let limits = file(all).unwrap();
        assert_eq!(flags(&words).unwrap(), limits);
        let mut isolation = Isolation::default();
        limits.set(&mut isolation);
        assert_eq!(isolation.limits.memory_bytes, Some(4 << 30));
        assert_eq!((isolation.limits.swap_bytes, isolation.limits.processes), (Some(0), Some(4096)));
        assert_eq!((isolation.limits.cpu_millis, isolation.limits.cpu_weight), (Some(1500), Some(50)));
        assert_eq!(isolation.quota, kiln_store::Quota { bytes: Some(10 << 30), files: Some(1000) });
        assert_eq!((isolation.timeout, isolation.log_limit_bytes), (Some(Duration::from_secs(5400)), None));
    }

    #[test]
    fn what_nobody_says_is_processes_and_log_only() {
        let mut isolation = Isolation::default();
        Limits::default().set(&mut isolation);
        assert_eq!(isolation.limits.processes, Some(DEFAULT_PROCESSES));
        assert_eq!((isolation.limits.memory_bytes, isolation.timeout), (None, None));
        assert_eq!(isolation.log_limit_bytes, Some(1 << 30));
        assert_eq!(file("").unwrap(), Limits::default());
    }

    #[test]
    fn what_is_said_later_wins_and_none_is_said_too() {
        let system = file("memory = \"4G\"\npids = 100").unwrap();
        let user = flags(&["--pids=none"]).unwrap().or(system);
        assert_eq!((user.memory, user.pids), (Some(Most::Of(4 << 30)), Some(Most::Unlimited)));
        let mut isolation = Isolation::default();
        user.set(&mut isolation);
        assert_eq!(isolation.limits.processes, None);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [
            "--memory=4095K",
            "--pids=4194305",
            "--memory=much",
            "--pids=1",
            "--cpus=0",
            "--cpus=nan",
            "--cpu-weight=0",
            "--io-weight=10001",
            "--disk=1K",
            "--inodes=0",
        ] {
            assert!(flags(&[bad]).unwrap_err().contains("invalid value"), "{bad}");
        }
        assert_eq!(flags(&["--memory=4M", "--pids=4194304"]).unwrap().pids, Some(Most::Of(4_194_304)));
        assert!(flags(&["--timeout=0s"]).is_err() && flags(&["--log-limit=0"]).is_err());
        assert_eq!(file("pids = 1").unwrap_err(), "a step has at least 2, with the sandbox's own");
        assert_eq!(file("pids = true").unwrap_err(), "a string or a number");
    }
}
