//! The same rules as an OCI runtime's `linux.seccomp`, which the runtime hands to libseccomp.
//!
//! Three things of libseccomp shape this:
//! * It knows names only up to its own release. What is not named gets the default, so that is `ENOSYS`, as if the kernel did
//!   not have it, and what we refuse is named.
//! * It compares all 64 bits of an argument, unless with a mask; the kernel looks at the low half
//!   (CVE-2019-10063). So every comparison has a mask of 32 bits or fewer.
//! * A rule can ask only one thing of an argument, and which of two rules that both fit wins is not for us to say. So "any but
//!   these" is a list of masks that fit all other values, and rules with different answers never fit the same call.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::arch::{self, Arch};
use super::{Action, Asked, Check, rules, table};

/// All bits that count.
const LOW: u32 = u32::MAX;
/// What of [`arch::ARM`]'s private calls has which name.
const ARM_PRIVATE: &[&str] = &["breakpoint", "cacheflush", "get_tls", "set_tls", "usr26", "usr32"];

/// One entry: what becomes of the calls with these names whose arguments fit.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    names: Vec<&'static str>,
    answer: Answer,
    args: Vec<Masked>,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Answer {
    Allow,
    Errno(u16),
    /// Whoever listens decides.
    Ask,
}

/// `argument & mask == value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Masked {
    index: u8,
    mask: u32,
    value: u32,
}

/// Returns `linux.seccomp` of the default rules, for this machine's architectures.
pub(super) fn of_default(asked: Asked) -> Value {
    let rules = all(arch::NATIVE, asked);
    let syscalls: Vec<Value> = rules.iter().map(to_json).collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": table::ENOSYS,
        "architectures": arch::NATIVE.iter().map(|arch| arch.libseccomp).collect::<Vec<_>>(),
        "syscalls": syscalls,
    })
}

fn to_json(rule: &Rule) -> Value {
    let args: Vec<Value> = rule.args.iter().map(|arg| arg.to_json()).collect();
    let mut entry = match rule.answer {
        Answer::Allow => json!({ "names": rule.names, "action": "SCMP_ACT_ALLOW" }),
        Answer::Errno(errno) => json!({ "names": rule.names, "action": "SCMP_ACT_ERRNO", "errnoRet": errno }),
        Answer::Ask => json!({ "names": rule.names, "action": "SCMP_ACT_NOTIFY" }),
    };
    if !args.is_empty() {
        entry["args"] = args.into();
    }
    entry
}

/// Returns the rules for `arches`. A name means the same on all of them.
fn all(arches: &[Arch], asked: Asked) -> Vec<Rule> {
    let mut names: BTreeMap<&'static str, Action> = BTreeMap::new();
    for arch in arches {
        for (number, action) in (0..).zip(rules(arch, asked)) {
            if let Some(name) = arch.name(number) {
                names.insert(name, action);
            }
        }
        if arch.private.is_some() {
            names.extend(ARM_PRIVATE.iter().map(|name| (*name, Action::Allow)));
        }
    }
    let mut plain: BTreeMap<Answer, Vec<&'static str>> = BTreeMap::new();
    let mut checked: Vec<(Check, Vec<&'static str>)> = Vec::new();
    for (name, action) in names {
        match action {
            Action::Allow => plain.entry(Answer::Allow).or_default().push(name),
            // The default. The others only profiles have.
            Action::Errno(table::ENOSYS) | Action::Other(_) | Action::Cases(_) => {}
            Action::Errno(errno) => plain.entry(Answer::Errno(errno)).or_default().push(name),
            Action::Check(check) => match checked.iter_mut().find(|(known, _)| *known == check) {
                Some((_, names)) => names.push(name),
                None => checked.push((check, vec![name])),
            },
        }
    }
    let clone_flags = arches.first().map_or(0, |arch| arch.clone_flags);
    let plain = plain.into_iter().map(|(answer, names)| Rule { names, answer, args: Vec::new() });
    let checked = checked.into_iter().flat_map(|(check, names)| {
        let cases = cases(check, clone_flags);
        cases.into_iter().map(move |(answer, args)| Rule { names: names.clone(), answer, args })
    });
    plain.chain(checked).collect()
}

/// An answer, and the arguments that get it.
type Case = (Answer, Vec<Masked>);

impl Masked {
    pub(super) fn to_json(self) -> Value {
        json!({ "index": self.index, "value": self.mask, "valueTwo": self.value, "op": "SCMP_CMP_MASKED_EQ" })
    }
}

/// Returns what is asked of the argument with a file's mode: devices are left to who listens.
pub(super) fn cases_of_nodes(index: u8) -> Vec<Case> {
    let kinds = (0..=0o17).map(|kind: u32| kind << 12);
    let answer = |kind| if table::DEVICES.contains(&kind) { Answer::Ask } else { Answer::Allow };
    kinds.map(|value| (answer(value), vec![Masked { index, mask: table::FILE_KIND, value }])).collect()
}

/// Returns what is asked of arguments. Every value gets one answer.
fn cases(check: Check, clone_flags: u8) -> Vec<Case> {
    let eperm = Answer::Errno(table::EPERM);
    let one = |answer, index, (mask, value)| (answer, vec![Masked { index, mask, value }]);
    match check {
        Check::Clone => {
            let ours = table::NEW_NAMESPACES;
            let refused = bits(ours).map(|bit| one(eperm, clone_flags, (bit, bit)));
            [one(Answer::Allow, clone_flags, (ours, 0))].into_iter().chain(refused).collect()
        }
        Check::Ioctl => {
            let refused =
                [table::TIOCSTI, table::TIOCLINUX, table::BTRFS_SNAP_DESTROY_V2, table::BTRFS_SNAP_DESTROY_V2_POWERPC];
            let allowed = others(&refused).into_iter().map(|masked| one(Answer::Allow, 1, masked));
            refused.iter().map(|value| one(eperm, 1, (LOW, *value))).chain(allowed).collect()
        }
        Check::Node { mode } => cases_of_nodes(mode),
        Check::Personality => {
            // All bits set is the question; otherwise no bit of these may be. Bit 31 is one of them and tells the question from
            // the rest.
            let (harmful, top) = (!table::HARMLESS_PERSONALITY, 1 << 31);
            let with_top = bits(LOW & !top).map(|bit| one(eperm, 0, (top | bit, top)));
            let without_top = bits(harmful & !top).map(|bit| one(eperm, 0, (top | bit, bit)));
            [one(Answer::Allow, 0, (harmful, 0)), one(Answer::Allow, 0, (LOW, table::PERSONALITY_QUERY))]
                .into_iter()
                .chain(with_top)
                .chain(without_top)
                .collect()
        }
        Check::Socket => {
            let families = table::ADDRESS_FAMILIES;
            let known: Vec<u32> = families.iter().copied().chain([table::AF_NETLINK]).collect();
            let netlink = |answer, (mask, value)| {
                let family = Masked { index: 0, mask: LOW, value: table::AF_NETLINK };
                (answer, vec![family, Masked { index: 2, mask, value }])
            };
            let allowed = families.iter().map(|family| one(Answer::Allow, 0, (LOW, *family)));
            let unknown = others(&known).into_iter().map(|masked| one(Answer::Errno(table::EAFNOSUPPORT), 0, masked));
            let other_protocols =
                others(&[table::NETLINK_AUDIT]).into_iter().map(|masked| netlink(Answer::Allow, masked));
            let audit = netlink(Answer::Errno(table::EPROTONOSUPPORT), (LOW, table::NETLINK_AUDIT));
            allowed.chain(unknown).chain(other_protocols).chain([audit]).collect()
        }
    }
}

fn bits(set: u32) -> impl Iterator<Item = u32> {
    (0..32).map(|shift| 1 << shift).filter(move |bit| set & bit != 0)
}

/// Returns masks and values that together fit each number but `values`, and each only once: the branches that leave
/// the ways to `values` in the tree of all numbers, by their bits from the highest on.
fn others(values: &[u32]) -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for shift in (0..32).rev() {
        let (above, here) = (!((1_u64 << (shift + 1)) - 1) as u32, 1_u32 << shift);
        for (index, value) in values.iter().enumerate() {
            let (mask, branch) = (above | here, (value & (above | here)) ^ here);
            let is_way = values.iter().any(|other| other & mask == branch);
            // Two values that share their way leave it once.
            let is_known = values[..index].iter().any(|other| other & mask == value & mask);
            if !is_way && !is_known {
                found.push((mask, branch));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::bpf::generate;
    use super::super::bpf::machine::{Call, interpret};
    use super::*;

    /// `SECCOMP_RET_USER_NOTIF`.
    const ASK: u32 = 0x7fc0_0000;

    /// What the rules say of a call; fails the test if they disagree.
    fn answer(rules: &[Rule], name: &str, arguments: [u64; 6]) -> Action {
        let fits = |rule: &&Rule| {
            let fits = |arg: &Masked| arguments[usize::from(arg.index)] & u64::from(arg.mask) == u64::from(arg.value);
            rule.names.contains(&name) && rule.args.iter().all(fits)
        };
        let mut answers: Vec<_> = rules.iter().filter(fits).map(|rule| rule.answer).collect();
        answers.dedup();
        assert!(answers.len() <= 1, "{name} {arguments:x?}: {answers:?}");
        match answers.first() {
            None => Action::Errno(table::ENOSYS),
            Some(Answer::Allow) => Action::Allow,
            Some(Answer::Errno(errno)) => Action::Errno(*errno),
            Some(Answer::Ask) => Action::Other(ASK),
        }
    }

    #[test]
    fn it_says_the_same_as_the_native_program() {
        let values = [
            0,
            1,
            2,
            8,
            9,
            10,
            16,
            17,
            40,
            0x11,
            0o020_644,
            0o060_600,
            0o100_644,
            0x5401,
            0x0004_0000,
            0x0006_0008,
            0x0040_0000,
            0x8000_0000,
        ];
        let special = [table::TIOCSTI, table::TIOCLINUX, table::BTRFS_SNAP_DESTROY_V2, LOW, LOW - 1, LOW >> 1];
        let special = special.into_iter().chain([table::BTRFS_SNAP_DESTROY_V2_POWERPC]).chain(bits(LOW));
        let values: Vec<u64> = values.into_iter().chain(special).map(u64::from).collect();
        for arch in arch::ALL {
            for (fast_sync, asks_for_nodes) in [(false, false), (true, false), (true, true)] {
                let asked = Asked { fast_sync, asks_for_nodes, ..Asked::default() };
                let program = generate(std::slice::from_ref(arch), asked);
                let rules = all(std::slice::from_ref(arch), asked);
                for number in 0..=arch.newest {
                    let Some(name) = arch.name(number) else { continue };
                    for low in &values {
                        for high in [0, 1 << 32, 0xffff_ffff_0000_0000] {
                            for third in [0, 9] {
                                let arguments = [low | high, low | high, high | third, 0, 0, 0];
                                let expected = match interpret(&program, &Call { arch, number, arguments }) {
                                    0x7fff_0000 => Action::Allow,
                                    ASK => Action::Other(ASK),
                                    refused => Action::Errno((refused & 0xffff) as u16),
                                };
                                assert_eq!(
                                    answer(&rules, name, arguments),
                                    expected,
                                    "{name} {arguments:x?} on {}",
                                    arch.label
                                );
                            }
                        }
                        let checked = table::CHECKED.iter().map(|(name, _)| name);
                        if !checked.chain(table::NODES.iter().map(|(name, _)| name)).any(|checked| *checked == name) {
                            break;
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn all_numbers_but_these_are_fitted_once() {
        for values in [&[0_u32][..], &[9], &[LOW], &[1, 2, 10, 16], &[0x5412, 0x541c, 0x5000_943f, 0x9000_943f]] {
            let others = others(values);
            let fitted: u64 = others.iter().map(|(mask, _)| 1_u64 << mask.count_zeros()).sum();
            assert_eq!(fitted, (1 << 32) - values.len() as u64);
            for (index, (mask, value)) in others.iter().enumerate() {
                assert!(values.iter().all(|listed| listed & mask != *value));
                assert!(others[..index].iter().all(|(other, fits)| (fits ^ value) & other & mask != 0));
            }
        }
    }
}
