//! Profiles of one's own, in the format that Docker, Podman and containerd share. Pure.
//!
//! Read as they read it: entries are for the capabilities, the kind of processor and the kernel that they say; names that no kernel
//! of ours has are passed over; of the entries for one call, those that look at arguments are tried first, in their
//! order. What differs: calls newer than our tables fail with `ENOSYS` where the default is an error, so that programs fall
//! back, and the x32 ABI never exists.

use serde::Deserialize;
use thiserror::Error;

use super::arch::Arch;
use super::conditions::{Case, Cases, Condition};
use super::{Action, Asked, table};

/// Longest profile. Docker's own has 20 kB.
const MAX_LENGTH: usize = 1 << 20;
/// Arguments of a call; libseccomp allows one comparison each.
const ARGUMENTS: usize = 6;

/// Which system calls a step may make: a profile of the user's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    default: Action,
    architectures: Vec<String>,
    entries: Vec<Entry>,
}

/// Why a text is no profile.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct ProfileError {
    /// The line, from 1.
    pub line: usize,
    /// The column, from 1.
    pub column: usize,
    /// What is wrong there.
    pub reason: String,
}

/// What entries ask about the sandbox.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host {
    /// As Go calls it.
    pub(crate) arch: &'static str,
    /// Major and minor version.
    pub(crate) kernel: (u32, u32),
    /// The bounding set.
    pub(crate) capabilities: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct File {
    default_action: Word<Kind>,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    /// How the filter is loaded and logged, which is no part of what it allows.
    #[serde(default, rename = "flags")]
    _flags: Option<Vec<String>>,
    #[serde(default)]
    syscalls: Option<Vec<Entry>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Entry {
    #[serde(default)]
    names: Vec<String>,
    name: Option<String>,
    action: Word<Kind>,
    errno_ret: Option<u16>,
    #[serde(default, deserialize_with = "arguments")]
    args: Vec<Argument>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
    #[serde(default)]
    includes: Terms,
    #[serde(default)]
    excludes: Terms,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Argument {
    index: Index,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: Word<Operator>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Terms {
    caps: Vec<Word<Capability>>,
    arches: Vec<String>,
    min_kernel: Option<Word<Version>>,
}

/// A word with a meaning; an unknown one is an error where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String", bound = "T: Meaning")]
struct Word<T>(T);

trait Meaning: Sized {
    fn of(word: &str) -> Result<Self, String>;
}

impl<T: Meaning> TryFrom<String> for Word<T> {
    type Error = String;

    fn try_from(word: String) -> Result<Self, String> {
        T::of(&word).map(Self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Allow,
    Errno,
    Other(u32),
}

/// Other answers (`linux/seccomp.h`).
const ANSWERS: &[(&str, u32)] = &[
    ("SCMP_ACT_KILL", 0),
    ("SCMP_ACT_KILL_PROCESS", 0x8000_0000),
    ("SCMP_ACT_TRAP", 0x0003_0000),
    ("SCMP_ACT_LOG", 0x7ffc_0000),
];

/// Returns the word for one of the other answers.
pub(super) fn word(answer: u32) -> &'static str {
    ANSWERS.iter().find(|(_, known)| *known == answer).map_or("SCMP_ACT_KILL", |(name, _)| name)
}

impl Meaning for Kind {
    fn of(word: &str) -> Result<Self, String> {
        Ok(match word {
            "SCMP_ACT_ALLOW" => Self::Allow,
            "SCMP_ACT_ERRNO" => Self::Errno,
            "SCMP_ACT_KILL_THREAD" => Self::Other(0),
            "SCMP_ACT_TRACE" | "SCMP_ACT_NOTIFY" => {
                return Err(format!("action `{word}` needs somebody who decides, and there is nobody here"));
            }
            _ => match ANSWERS.iter().find(|(name, _)| *name == word) {
                Some((_, answer)) => Self::Other(*answer),
                None => return Err(format!("unknown action `{word}`")),
            },
        })
    }
}

impl Kind {
    fn action(self, errno: Option<u16>) -> Action {
        match self {
            Self::Allow => Action::Allow,
            Self::Errno => Action::Errno(errno.unwrap_or(table::EPERM)),
            Self::Other(answer) => Action::Other(answer),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual,
}

impl Meaning for Operator {
    fn of(word: &str) -> Result<Self, String> {
        Ok(match word {
            "SCMP_CMP_EQ" => Self::Equal,
            "SCMP_CMP_NE" => Self::NotEqual,
            "SCMP_CMP_LT" => Self::Less,
            "SCMP_CMP_LE" => Self::LessOrEqual,
            "SCMP_CMP_GT" => Self::Greater,
            "SCMP_CMP_GE" => Self::GreaterOrEqual,
            "SCMP_CMP_MASKED_EQ" => Self::MaskedEqual,
            _ => return Err(format!("unknown operator `{word}`")),
        })
    }
}

/// Which argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u64")]
struct Index(u8);

impl TryFrom<u64> for Index {
    type Error = String;

    fn try_from(index: u64) -> Result<Self, String> {
        match u8::try_from(index) {
            Ok(small) if usize::from(small) < ARGUMENTS => Ok(Self(small)),
            _ => Err(format!("a call has arguments 0 to 5, not {index}")),
        }
    }
}

fn arguments<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Vec<Argument>, D::Error> {
    let arguments = Option::<Vec<Argument>>::deserialize(value)?.unwrap_or_default();
    if arguments.len() > ARGUMENTS {
        return Err(serde::de::Error::custom("more than 6 comparisons in one entry; make several of it"));
    }
    Ok(arguments)
}

/// The number of a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Capability(u32);

/// By number (`linux/capability.h`).
const CAPABILITIES: &[&str] = &[
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl Meaning for Capability {
    fn of(word: &str) -> Result<Self, String> {
        let name = word.strip_prefix("CAP_").unwrap_or_default();
        let number = CAPABILITIES.iter().position(|other| *other == name);
        number.map(|number| Self(number as u32)).ok_or_else(|| format!("unknown capability `{word}`"))
    }
}

/// Major and minor version of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version(u32, u32);

impl Meaning for Version {
    fn of(word: &str) -> Result<Self, String> {
        version(word)
            .map(|(major, minor)| Self(major, minor))
            .ok_or_else(|| format!("`{word}` is no kernel's version, as 4.8"))
    }
}

/// Reads the first two numbers of a kernel's version.
pub(crate) fn version(text: &str) -> Option<(u32, u32)> {
    let (major, rest) = text.split_once('.')?;
    let minor = rest.split(|other: char| !other.is_ascii_digit()).next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

impl Profile {
    /// Reads a profile: JSON, as `docker run --security-opt seccomp=FILE` takes it.
    ///
    /// # Errors
    ///
    /// Where it is no profile, or says something that cannot be done.
    pub fn parse(text: &str) -> Result<Self, ProfileError> {
        if text.len() > MAX_LENGTH {
            return Err(ProfileError { line: 1, column: 1, reason: "a profile is no longer than 1 MiB".to_owned() });
        }
        let file: File = serde_json::from_str(text).map_err(|error| ProfileError {
            line: error.line().max(1),
            column: error.column().max(1),
            // serde_json says the place once more.
            reason: error.to_string().split(" at line ").next().unwrap_or_default().to_owned(),
        })?;
        let mapped = file.arch_map.unwrap_or_default().into_iter();
        let mapped =
            mapped.flat_map(|map| std::iter::once(map.architecture).chain(map.sub_architectures.unwrap_or_default()));
        let profile = Self {
            default: file.default_action.0.action(file.default_errno_ret),
            architectures: mapped.chain(file.architectures.unwrap_or_default()).collect(),
            entries: file.syscalls.unwrap_or_default(),
        };
        // As new as can be, so that what a new kernel brings is counted.
        match super::of_profile(&profile, (u32::MAX, 0), Asked::all()) {
            Some(_) => Ok(profile),
            None => Err(ProfileError {
                line: 1,
                column: 1,
                reason: "it compares more arguments than fit into the kernel's 4096 instructions".to_owned(),
            }),
        }
    }

    /// Returns those of `arches` that it is for. What is said of none is for the processor's own, the first.
    pub(super) fn covered<'a>(&self, arches: &'a [Arch]) -> impl Iterator<Item = &'a Arch> {
        let is_for = |(index, arch): (usize, &Arch)| match self.architectures.is_empty() {
            true => index == 0,
            false => self.architectures.iter().any(|name| name == arch.libseccomp),
        };
        arches.iter().enumerate().filter(move |(index, arch)| is_for((*index, arch))).map(|(_, arch)| arch)
    }

    /// Returns what becomes of calls that it does not name.
    pub(super) fn default(&self) -> &Action {
        &self.default
    }

    /// Returns what becomes of calls that no table has.
    pub(super) fn newer(&self) -> Action {
        match &self.default {
            Action::Errno(_) => Action::Errno(table::ENOSYS),
            other => other.clone(),
        }
    }

    /// Returns what becomes of each system call number of `arch`, from 0 to the newest known.
    pub(super) fn rules(&self, arch: &Arch, host: Host) -> Vec<Action> {
        let numbers = 0..=arch.newest;
        let mut rules: Vec<_> = numbers
            .map(|number| if arch.name(number).is_some() { self.default.clone() } else { self.newer() })
            .collect();
        let mut cases: Vec<Vec<Case>> = vec![Vec::new(); rules.len()];
        for entry in self.entries.iter().filter(|entry| entry.is_for(host)) {
            let action = entry.action.0.action(entry.errno_ret);
            for number in entry.names.iter().chain(&entry.name).filter_map(|name| arch.number(name)) {
                let number = number as usize;
                match entry.args.is_empty() {
                    true => rules[number] = action.clone(),
                    false => cases[number].push(Case { all: entry.conditions(), then: Box::new(action.clone()) }),
                }
            }
        }
        let with_cases = |(otherwise, cases): (Action, Vec<Case>)| match cases.is_empty() {
            true => otherwise,
            false => Action::Cases(Cases { cases, otherwise: Box::new(otherwise) }),
        };
        rules.into_iter().zip(cases).map(with_cases).collect()
    }
}

impl Entry {
    fn is_for(&self, host: Host) -> bool {
        let has = |Word(Capability(number)): &Word<Capability>| host.capabilities & 1 << number != 0;
        let is_here = |arch: &String| arch == host.arch;
        let is_new = |Word(Version(major, minor)): &Word<Version>| host.kernel >= (*major, *minor);
        let Self { includes, excludes, .. } = self;
        includes.caps.iter().all(has)
            && (includes.arches.is_empty() || includes.arches.iter().any(is_here))
            && includes.min_kernel.as_ref().is_none_or(is_new)
            && !excludes.caps.iter().any(has)
            && !excludes.arches.iter().any(is_here)
            && !excludes.min_kernel.as_ref().is_some_and(is_new)
    }

    fn conditions(&self) -> Vec<Condition> {
        let condition = |argument: &Argument| {
            let Argument { index: Index(index), value, value_two, op: Word(operator) } = *argument;
            match operator {
                Operator::Equal => Condition::MaskedEqual { index, mask: u64::MAX, value },
                Operator::MaskedEqual => Condition::MaskedEqual { index, mask: value, value: value_two & value },
                Operator::NotEqual => Condition::NotEqual { index, value },
                Operator::GreaterOrEqual => Condition::AtLeast { index, value, not: false },
                Operator::Less => Condition::AtLeast { index, value, not: true },
                Operator::Greater => Condition::MoreThan { index, value, not: false },
                Operator::LessOrEqual => Condition::MoreThan { index, value, not: true },
            }
        };
        self.args.iter().map(condition).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::arch::{AARCH64, ALL, Arch, X86, X86_64};
    use super::super::bpf::machine::{Call, interpret};
    use super::super::{Asked, assemble_profile};
    use super::*;

    const ALLOW: u32 = 0x7fff_0000;

    fn errno(number: u32) -> u32 {
        0x0005_0000 | number
    }

    /// A profile for every architecture with these entries.
    fn profile(default: &str, entries: &str) -> Profile {
        let names = ALL.iter().map(|arch| format!("\"{}\"", arch.libseccomp)).collect::<Vec<_>>().join(",");
        let text =
            format!("{{\"defaultAction\": \"{default}\", \"architectures\": [{names}], \"syscalls\": [{entries}]}}");
        Profile::parse(&text).unwrap()
    }

    fn answer(profile: &Profile, arch: &Arch, name: &str, arguments: [u64; 6]) -> u32 {
        let program = assemble_profile(ALL, profile, (6, 1), Asked::default());
        interpret(&program, &Call { arch, number: arch.number(name).unwrap(), arguments })
    }

    fn wrong(text: &str) -> String {
        let ProfileError { line, column, reason } = Profile::parse(text).unwrap_err();
        format!("{line}:{column}: {reason}")
    }

    #[test]
    fn every_operator_compares_all_64_bits_on_every_architecture() {
        let value = 0x1_0000_0005_u64;
        type Holds = fn(u64, u64) -> bool;
        let operators: [(&str, Holds); 7] = [
            ("EQ", |a, b| a == b),
            ("NE", |a, b| a != b),
            ("LT", |a, b| a < b),
            ("LE", |a, b| a <= b),
            ("GT", |a, b| a > b),
            ("GE", |a, b| a >= b),
            ("MASKED_EQ", |a, b| a & b == 4),
        ];
        for (operator, holds) in operators {
            let entry = format!(
                r#"{{"names": ["dup3"], "action": "SCMP_ACT_ALLOW",
                    "args": [{{"index": 2, "value": {value}, "valueTwo": 4, "op": "SCMP_CMP_{operator}"}}]}}"#
            );
            let profile = profile("SCMP_ACT_ERRNO", &entry);
            for arch in ALL {
                for other in [0, 4, 5, 6, value - 1, value, value + 1, 0x2_0000_0000, 0x2_0000_0004, u64::MAX] {
                    let expected = if holds(other, value) { ALLOW } else { errno(1) };
                    let got = answer(&profile, arch, "dup3", [0, 0, other, 0, 0, 0]);
                    assert_eq!(got, expected, "{operator} {other:#x} on {}", arch.label);
                }
            }
        }
    }

    #[test]
    fn comparisons_of_one_entry_hold_together_and_entries_each_by_themselves() {
        let args = |first: u64, second: u64| {
            let arg = |index: u8, value: u64| format!(r#"{{"index": {index}, "value": {value}, "op": "SCMP_CMP_EQ"}}"#);
            format!(r#""args": [{}, {}]"#, arg(0, first), arg(1, second))
        };
        let profile = profile(
            "SCMP_ACT_KILL_PROCESS",
            &format!(
                r#"{{"name": "dup2", "action": "SCMP_ACT_ALLOW", {}}}, {{"name": "dup2", "action": "SCMP_ACT_ERRNO", "errnoRet": 9, {}}}"#,
                args(1, 2),
                args(3, 4)
            ),
        );
        let call = |first, second| answer(&profile, &X86_64, "dup2", [first, second, 0, 0, 0, 0]);
        assert_eq!((call(1, 2), call(3, 4), call(1, 4)), (ALLOW, errno(9), 0x8000_0000));
    }

    #[test]
    fn entries_are_for_the_capabilities_and_kernels_that_they_say() {
        let is_allowed = |terms: &str| {
            let entry = format!(r#"{{"names": ["dup3"], "action": "SCMP_ACT_ALLOW", {terms}}}"#);
            answer(&profile("SCMP_ACT_ERRNO", &entry), &AARCH64, "dup3", [0; 6]) == ALLOW
        };
        for (terms, expected) in [
            (r#""includes": {}"#, true),
            (r#""includes": {"caps": ["CAP_CHOWN"]}"#, true),
            (r#""includes": {"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]}"#, false),
            (r#""excludes": {"caps": ["CAP_SYS_ADMIN"]}"#, true),
            (r#""excludes": {"caps": ["CAP_SYS_ADMIN", "CAP_CHOWN"]}"#, false),
            (r#""includes": {"minKernel": "4.8"}"#, true),
            (r#""includes": {"minKernel": "6.2"}"#, false),
            (r#""excludes": {"minKernel": "4.8"}"#, false),
            (r#""includes": {"arches": ["vax"]}"#, false),
            (r#""excludes": {"arches": ["vax"]}"#, true),
        ] {
            assert_eq!(is_allowed(terms), expected, "{terms}");
        }
    }

    #[test]
    fn what_the_profile_does_not_name_gets_its_default_and_the_rest_does_not_exist() {
        let denied = profile("SCMP_ACT_ALLOW", r#"{"names": ["mount", "nonesuch"], "action": "SCMP_ACT_ERRNO"}"#);
        let program = assemble_profile(&[X86_64, X86], &denied, (6, 1), Asked { fast_sync: true, ..Asked::default() });
        let call = |arch: &Arch, number| interpret(&program, &Call { arch, number, arguments: [0; 6] });
        assert_eq!(call(&X86_64, X86_64.number("mount").unwrap()), errno(1));
        assert_eq!(call(&X86, X86.number("mount").unwrap()), errno(1));
        assert_eq!(call(&X86_64, X86_64.number("bpf").unwrap()), ALLOW);
        assert_eq!(call(&X86_64, X86_64.number("fsync").unwrap()), errno(0));
        assert_eq!(call(&X86_64, X86_64.newest + 1), ALLOW);
        // By x32's numbers every ban could be stepped around.
        assert_eq!(call(&X86_64, 0x4000_0000 | X86_64.number("mount").unwrap()), errno(38));
        let native = Profile::parse(r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13}"#).unwrap();
        let program = assemble_profile(&[X86_64, X86], &native, (6, 1), Asked::default());
        let call = |arch: &Arch, number| interpret(&program, &Call { arch, number, arguments: [0; 6] });
        assert_eq!(
            (call(&X86_64, 0), call(&X86_64, X86_64.newest + 1), call(&X86, 3)),
            (errno(13), errno(38), errno(38))
        );
    }

    #[test]
    fn an_error_says_where_and_what() {
        let entry = |rest: &str| {
            format!("{{\"defaultAction\": \"SCMP_ACT_ERRNO\",\n\"syscalls\": [{{\"name\": \"dup\",\n{rest}}}]}}")
        };
        assert_eq!(wrong(&entry("\"action\": \"ALLOW\"")), "3:18: unknown action `ALLOW`");
        assert_eq!(
            wrong(&entry("\"action\": \"SCMP_ACT_NOTIFY\"")),
            "3:28: action `SCMP_ACT_NOTIFY` needs somebody who decides, and there is nobody here"
        );
        let args = |text: &str| wrong(&entry(&format!("\"action\": \"SCMP_ACT_ALLOW\", \"args\": [{text}]")));
        assert!(args(r#"{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}"#).contains("arguments 0 to 5, not 6"));
        assert!(args(r#"{"index": 0, "value": 0, "op": "EQ"}"#).contains("unknown operator `EQ`"));
        let one = r#"{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}"#;
        assert!(args(&[one; 7].join(",")).contains("more than 6"));
        assert!(
            wrong(&entry("\"action\": \"SCMP_ACT_ALLOW\", \"includes\": {\"caps\": [\"CAP_X\"]}"))
                .contains("unknown capability `CAP_X`")
        );
        assert!(wrong("{}").contains("missing field `defaultAction`"));
        assert!(wrong("{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"listenerPath\": \"/x\"}").contains("listenerPath"));
        assert!(wrong("").starts_with("1:"));
        let entry = format!(r#"{{"name": "dup", "action": "SCMP_ACT_ERRNO", "args": [{}]}}"#, [one; 6].join(","));
        let many = vec![entry; 200].join(",");
        assert!(wrong(&format!("{{\"defaultAction\": \"SCMP_ACT_ALLOW\", \"syscalls\": [{many}]}}")).contains("4096"));
    }
}
