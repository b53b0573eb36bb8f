//! Profiles of the user's own as an OCI runtime's `linux.seccomp`: what their entries come to on this machine.
//!
//! What libseccomp makes of it is the profile, but for calls that it does not know yet: those get the default. It takes
//! one answer for what is asked of a call's arguments, and the default for all else, and asks each argument once in a rule. A profile
//! that says more than that is refused.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::arch::Arch;
use super::conditions::{Cases, Condition};
use super::profile::{Host, Profile};
use super::{Action, Asked, Check, answer_ourselves, oci};

/// Returns `linux.seccomp` for a profile.
///
/// # Errors
///
/// What it says and libseccomp cannot do.
pub(super) fn of_profile(arches: &[Arch], profile: &Profile, host: Host, asked: Asked) -> Result<Value, String> {
    let covered = profile.covered(arches);
    let rules = covered.map(|arch| {
        let mut rules = profile.rules(arch, host);
        answer_ourselves(arch, &mut rules, asked);
        (arch, rules)
    });
    seccomp(profile.default(), rules)
}

/// Returns `linux.seccomp` that refuses nothing, or `None` if nothing is to be answered for the kernel.
pub(super) fn unconfined(arches: &[Arch], asked: Asked) -> Option<Value> {
    let rules = (asked.fast_sync || asked.asks_for_nodes).then(|| {
        arches.iter().map(|arch| {
            let mut rules = vec![Action::Allow; arch.newest as usize + 1];
            answer_ourselves(arch, &mut rules, asked);
            (arch, rules)
        })
    })?;
    // No argument is compared, so nothing is beyond libseccomp.
    seccomp(&Action::Allow, rules).ok()
}

/// A rule's action, its errno and `args`.
type Rule = ((&'static str, Option<u16>), Vec<Value>);

fn seccomp<'a>(default: &Action, arches: impl Iterator<Item = (&'a Arch, Vec<Action>)>) -> Result<Value, String> {
    // A name means the same on all architectures.
    let mut names: BTreeMap<&'static str, Action> = BTreeMap::new();
    let mut architectures = Vec::new();
    for (arch, rules) in arches {
        architectures.push(arch.libseccomp);
        for (number, action) in (0..).zip(rules) {
            if let Some(name) = arch.name(number) {
                names.insert(name, action);
            }
        }
    }
    // libseccomp refuses rules that say the default once more.
    names.retain(|_, action| action != default);
    let mut entries: Vec<(Rule, Vec<&'static str>)> = Vec::new();
    for (name, action) in names {
        for rule in rules(name, action, default)? {
            match entries.iter_mut().find(|(known, _)| *known == rule) {
                Some((_, names)) => names.push(name),
                None => entries.push((rule, vec![name])),
            }
        }
    }
    let entry = |(((action, errno), args), names): (Rule, Vec<&'static str>)| {
        let mut entry = json!({ "names": names, "action": action });
        if let Some(errno) = errno {
            entry["errnoRet"] = errno.into();
        }
        if !args.is_empty() {
            entry["args"] = args.into();
        }
        entry
    };
    let (action, errno) = words(default);
    let mut seccomp = json!({
        "defaultAction": action,
        "architectures": architectures,
        "syscalls": entries.into_iter().map(entry).collect::<Vec<_>>(),
    });
    if let Some(errno) = errno {
        seccomp["defaultErrnoRet"] = errno.into();
    }
    Ok(seccomp)
}

/// Returns the rules for one call, which the default is not the only answer to.
fn rules(name: &str, action: Action, default: &Action) -> Result<Vec<Rule>, String> {
    let Cases { mut cases, otherwise } = match action {
        Action::Cases(cases) => cases,
        Action::Check(Check::Node { mode }) => return Ok(of_nodes(mode, default)),
        action => return Ok(vec![(words(&action), Vec::new())]),
    };
    if *otherwise != *default {
        return Err(format!("what `{name}` gets if its arguments do not fit is not the default"));
    }
    // The last ones that change nothing may go; before others they are exceptions.
    while cases.last().is_some_and(|case| *case.then == *default) {
        cases.pop();
    }
    if cases.windows(2).any(|pair| pair[0].then != pair[1].then) {
        return Err(format!("`{name}` gets different answers to different arguments"));
    }
    let rule = |case: super::conditions::Case| {
        let indices: BTreeSet<u8> = case.all.iter().map(|condition| condition.index()).collect();
        if indices.len() < case.all.len() {
            return Err(format!("of `{name}` it compares an argument twice in one entry"));
        }
        Ok((words(&case.then), case.all.into_iter().map(argument).collect()))
    };
    cases.into_iter().map(rule).collect()
}

/// Returns the rules for a call that makes files, of which devices are left to who listens.
fn of_nodes(mode: u8, default: &Action) -> Vec<Rule> {
    let cases = oci::cases_of_nodes(mode).into_iter();
    let rule = |(answer, args): (oci::Answer, Vec<oci::Masked>)| {
        let answer = if answer == oci::Answer::Ask { ("SCMP_ACT_NOTIFY", None) } else { words(&Action::Allow) };
        (answer, args.into_iter().map(oci::Masked::to_json).collect())
    };
    cases.map(rule).filter(|(answer, _)| *answer != words(default)).collect()
}

fn argument(condition: Condition) -> Value {
    let compared = |index: u8, operator: &str, value: u64| json!({ "index": index, "value": value, "op": operator });
    match condition {
        Condition::MaskedEqual { index, mask: u64::MAX, value } => compared(index, "SCMP_CMP_EQ", value),
        Condition::MaskedEqual { index, mask, value } => {
            json!({ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" })
        }
        Condition::NotEqual { index, value } => compared(index, "SCMP_CMP_NE", value),
        Condition::AtLeast { index, value, not: false } => compared(index, "SCMP_CMP_GE", value),
        Condition::AtLeast { index, value, not: true } => compared(index, "SCMP_CMP_LT", value),
        Condition::MoreThan { index, value, not: false } => compared(index, "SCMP_CMP_GT", value),
        Condition::MoreThan { index, value, not: true } => compared(index, "SCMP_CMP_LE", value),
    }
}

/// Returns what libseccomp calls an action, and its errno.
fn words(action: &Action) -> (&'static str, Option<u16>) {
    match action {
        Action::Allow => ("SCMP_ACT_ALLOW", None),
        Action::Errno(errno) => ("SCMP_ACT_ERRNO", Some(*errno)),
        Action::Other(answer) => (super::profile::word(*answer), None),
        Action::Check(_) | Action::Cases(_) => unreachable!("what looks at arguments is taken apart before"),
    }
}

#[cfg(test)]
mod tests {
    use super::super::arch::{S390X, X86, X86_64};
    use super::*;

    const HOST: Host = Host { arch: "amd64", kernel: (6, 1), capabilities: crate::plan::CAPABILITIES };

    fn made(default: &str, entries: &str, fast_sync: bool) -> Result<Value, String> {
        let text = format!(
            r#"{{"defaultAction": "{default}", "syscalls": [{entries}],
                "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]}}"#
        );
        let asked = Asked { fast_sync, ..Asked::default() };
        of_profile(&[X86_64, X86, S390X], &Profile::parse(&text).unwrap(), HOST, asked)
    }

    fn on(argument: u8, operator: &str, value: u64) -> String {
        format!(r#"{{"index": {argument}, "value": {value}, "valueTwo": 4, "op": "SCMP_CMP_{operator}"}}"#)
    }

    #[test]
    fn what_a_profile_comes_to_here_is_said_in_a_runtimes_words() {
        let args =
            [on(0, "NE", 40), on(1, "MASKED_EQ", 12), on(2, "LT", 1), on(3, "LE", 2), on(4, "GT", 3), on(5, "GE", 4)];
        let entries = format!(
            r#"{{"names": ["getpid", "nonesuch", "waitpid"], "action": "SCMP_ACT_ALLOW"}},
               {{"name": "bpf", "action": "SCMP_ACT_ALLOW", "includes": {{"caps": ["CAP_SYS_ADMIN"]}}}},
               {{"name": "acct", "action": "SCMP_ACT_ERRNO", "errnoRet": 13}},
               {{"name": "syslog", "action": "SCMP_ACT_KILL_PROCESS"}},
               {{"name": "socket", "action": "SCMP_ACT_ALLOW", "args": [{}]}},
               {{"name": "personality", "action": "SCMP_ACT_ALLOW", "args": [{}]}},
               {{"name": "personality", "action": "SCMP_ACT_ALLOW", "args": [{}]}}"#,
            args.join(","),
            on(0, "EQ", 0),
            on(0, "EQ", 8),
        );
        insta::assert_snapshot!(format!("{:#}", made("SCMP_ACT_ERRNO", &entries, true).unwrap()));
    }

    #[test]
    fn what_libseccomp_would_mix_up_is_refused_by_name() {
        let entry = |action: &str, args: &[String]| {
            format!(r#"{{"name": "dup3", "action": "SCMP_ACT_{action}", "args": [{}]}}"#, args.join(","))
        };
        let one = entry("ALLOW", &[on(0, "EQ", 1)]);
        let refused = |entries: &[&str]| made("SCMP_ACT_ERRNO", &entries.join(","), false).unwrap_err();
        let other = entry("KILL", &[on(0, "EQ", 2)]);
        assert!(refused(&[&one, &other]).contains("`dup3` gets different answers"));
        assert!(refused(&[&one, &entry("TRAP", &[])]).contains("`dup3` gets if its arguments do not fit"));
        assert!(refused(&[&entry("ALLOW", &[on(0, "GE", 1), on(0, "LE", 3)])]).contains("of `dup3`"));
        // An exception of what is allowed.
        assert!(
            refused(&[&entry("ERRNO", &[on(0, "EQ", 1)]), &entry("ALLOW", &[on(0, "LE", 3)])]).contains("different")
        );
        assert!(made("SCMP_ACT_ERRNO", &[one, entry("ERRNO", &[on(0, "LE", 3)])].join(","), false).is_ok());
    }

    #[test]
    fn nothing_is_refused_and_only_what_waits_for_the_disk_is_answered() {
        assert_eq!(unconfined(&[X86_64], Asked::default()), None);
        let seccomp = unconfined(&[X86_64], Asked { fast_sync: true, ..Asked::default() }).unwrap();
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ALLOW");
        let entries = seccomp["syscalls"].as_array().unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!((&entries[0]["action"], &entries[0]["errnoRet"]), (&json!("SCMP_ACT_ERRNO"), &json!(0)));
        let seccomp = unconfined(&[X86_64], Asked { asks_for_nodes: true, ..Asked::default() }).unwrap();
        let asked = seccomp["syscalls"].as_array().unwrap().iter().map(|entry| &entry["args"][0]["valueTwo"]);
        assert_eq!(asked.collect::<Vec<_>>(), [0o020_000, 0o060_000, 0o020_000, 0o060_000], "{seccomp}");
    }
}
