//! Turns rules into a classic BPF program (`bpf(4)` of the BSDs, `Documentation/networking/filter.rst` of Linux).
//!
//! A step makes millions of calls, so the program is a binary search over ranges of numbers with equal
//! outcome: some eight comparisons a call. (Since Linux 5.11 the kernel also remembers the numbers that are allowed
//! whatever their arguments, and does not run the program for them.)

use super::arch::Arch;
use super::table;
use super::{Action, Asked, Check, conditions, rules};

/// `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) if_true: u8,
    pub(crate) if_false: u8,
    pub(crate) operand: u32,
}

// linux/bpf_common.h: class | size or operation | mode or source.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;

// linux/seccomp.h.
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;
const RET_USER_NOTIF: u32 = 0x7fc0_0000;

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

impl Instruction {
    /// Returns it in the kernel's layout and this machine's byte order.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.if_true;
        bytes[3] = self.if_false;
        bytes[4..].copy_from_slice(&self.operand.to_ne_bytes());
        bytes
    }
}

fn plain(code: u16, operand: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, operand }
}

fn branch(code: u16, operand: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, operand }
}

fn errno(number: u16) -> Instruction {
    plain(RETURN, RET_ERRNO | u32::from(number))
}

fn allow() -> Instruction {
    plain(RETURN, RET_ALLOW)
}

/// Returns the program that applies the tables to `arches`, tried in this order.
pub(super) fn generate(arches: &[Arch], asked: Asked) -> Vec<Instruction> {
    let missing = || Action::Errno(table::ENOSYS);
    let body = |arch| Body { arch, rules: rules(arch, asked), newer: missing(), x32: missing() };
    assemble(arches.iter().map(body), &missing())
}

/// What becomes of one architecture's calls.
pub(super) struct Body<'a> {
    pub(super) arch: &'a Arch,
    /// By number, up to the newest known.
    pub(super) rules: Vec<Action>,
    /// Above those.
    pub(super) newer: Action,
    /// Of the x32 ABI, whose numbers have bit 30 set.
    pub(super) x32: Action,
}

/// Returns the program that decides by these, tried in this order; what no architecture fits becomes `foreign`.
pub(super) fn assemble<'a>(bodies: impl Iterator<Item = Body<'a>>, foreign: &Action) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD, ARCH)];
    for body in bodies {
        let code = body.code();
        program.push(branch(JUMP_EQUAL, body.arch.audit, 1, 0));
        program.push(plain(JUMP, length(&code)));
        program.extend(code);
    }
    program.extend(simple(foreign));
    program
}

impl Body<'_> {
    /// Decides one architecture's call; every path through it ends in a return.
    fn code(&self) -> Vec<Instruction> {
        const X32: u32 = 0x4000_0000;
        let Self { arch, rules, newer, x32 } = self;
        let mut ranges: Vec<(u32, &Action)> = Vec::new();
        let numbers = (0_u32..).zip(rules);
        let private = arch.private.iter().flat_map(|(first, last)| [(*first, &Action::Allow), (*last + 1, newer)]);
        // Above the table everything is newer than it.
        for (number, action) in numbers.chain([(arch.newest + 1, newer)]).chain(private).chain([(X32, x32)]) {
            if ranges.last().is_none_or(|(_, last)| *last != action) {
                ranges.push((number, action));
            }
        }
        let mut code = vec![plain(LOAD, NUMBER)];
        code.extend(search(arch, &ranges));
        code
    }
}

/// Searches `ranges`, each given by its first number, for the one in the accumulator.
fn search(arch: &Arch, ranges: &[(u32, &Action)]) -> Vec<Instruction> {
    if let [(_, action)] = ranges {
        return decide(arch, action);
    }
    let (low, high) = ranges.split_at(ranges.len() / 2);
    let below = search(arch, low);
    let mut found = match u8::try_from(below.len()) {
        Ok(distance) => vec![branch(JUMP_GREATER_OR_EQUAL, high[0].0, distance, 0)],
        // A conditional jump reaches 255 instructions.
        Err(_) => vec![branch(JUMP_GREATER_OR_EQUAL, high[0].0, 0, 1), plain(JUMP, length(&below))],
    };
    found.extend(below);
    found.extend(search(arch, high));
    found
}

fn length(program: &[Instruction]) -> u32 {
    u32::try_from(program.len()).expect("programs are short")
}

/// Loads half of an argument.
pub(super) fn argument(arch: &Arch, index: u8, high: bool) -> Instruction {
    plain(LOAD, ARGUMENTS + 8 * u32::from(index) + if arch.big_endian == high { 0 } else { 4 })
}

pub(super) fn and(mask: u32) -> Instruction {
    plain(AND, mask)
}

pub(super) fn equal(value: u32, if_true: u8, if_false: u8) -> Instruction {
    branch(JUMP_EQUAL, value, if_true, if_false)
}

pub(super) fn greater(value: u32, if_true: u8, if_false: u8) -> Instruction {
    branch(JUMP_GREATER, value, if_true, if_false)
}

pub(super) fn greater_or_equal(value: u32, if_true: u8, if_false: u8) -> Instruction {
    branch(JUMP_GREATER_OR_EQUAL, value, if_true, if_false)
}

/// Decides what depends on nothing.
fn simple(action: &Action) -> Option<Instruction> {
    match action {
        Action::Allow => Some(allow()),
        Action::Errno(number) => Some(errno(*number)),
        Action::Other(answer) => Some(plain(RETURN, *answer)),
        Action::Check(_) | Action::Cases(_) => None,
    }
}

pub(super) fn decide(arch: &Arch, action: &Action) -> Vec<Instruction> {
    let argument = |index: u8| argument(arch, index, false);
    match action {
        Action::Allow | Action::Errno(_) | Action::Other(_) => simple(action).into_iter().collect(),
        Action::Cases(cases) => conditions::decide(arch, cases),
        Action::Check(Check::Clone) => vec![
            argument(arch.clone_flags),
            branch(JUMP_ANY_BIT, table::NEW_NAMESPACES, 0, 1),
            errno(table::EPERM),
            allow(),
        ],
        Action::Check(Check::Ioctl) => vec![
            argument(1),
            branch(JUMP_EQUAL, table::TIOCSTI, 3, 0),
            branch(JUMP_EQUAL, table::TIOCLINUX, 2, 0),
            branch(JUMP_EQUAL, table::BTRFS_SNAP_DESTROY_V2, 1, 0),
            branch(JUMP_EQUAL, table::BTRFS_SNAP_DESTROY_V2_POWERPC, 0, 1),
            errno(table::EPERM),
            allow(),
        ],
        Action::Check(Check::Node { mode }) => vec![
            argument(*mode),
            plain(AND, table::FILE_KIND),
            branch(JUMP_EQUAL, table::DEVICES[0], 2, 0),
            branch(JUMP_EQUAL, table::DEVICES[1], 1, 0),
            allow(),
            plain(RETURN, RET_USER_NOTIF),
        ],
        Action::Check(Check::Personality) => vec![
            argument(0),
            branch(JUMP_EQUAL, table::PERSONALITY_QUERY, 2, 0),
            plain(AND, !table::HARMLESS_PERSONALITY),
            branch(JUMP_EQUAL, 0, 0, 1),
            allow(),
            errno(table::EPERM),
        ],
        Action::Check(Check::Socket) => {
            let families = table::ADDRESS_FAMILIES;
            let mut code = vec![argument(0)];
            for (index, family) in (0_u8..).zip(families) {
                let remaining = u8::try_from(families.len()).expect("a handful") - index;
                code.push(branch(JUMP_EQUAL, *family, remaining + 1, 0));
            }
            code.extend([
                branch(JUMP_EQUAL, table::AF_NETLINK, 2, 0),
                errno(table::EAFNOSUPPORT),
                allow(),
                argument(2),
                branch(JUMP_EQUAL, table::NETLINK_AUDIT, 0, 1),
                errno(table::EPROTONOSUPPORT),
                allow(),
            ]);
            code
        }
    }
}

/// The kernel's part, for tests.
#[cfg(test)]
pub(super) mod machine {
    use super::*;

    /// `struct seccomp_data` as the program sees it: words by offset.
    pub(in super::super) struct Call<'a> {
        pub(in super::super) arch: &'a Arch,
        pub(in super::super) number: u32,
        pub(in super::super) arguments: [u64; 6],
    }

    impl Call<'_> {
        fn word(&self, offset: u32) -> u32 {
            match offset {
                NUMBER => self.number,
                ARCH => self.arch.audit,
                _ => {
                    let argument = self.arguments[((offset - ARGUMENTS) / 8) as usize];
                    let first = offset.is_multiple_of(8);
                    if first == self.arch.big_endian { (argument >> 32) as u32 } else { argument as u32 }
                }
            }
        }
    }

    /// Runs `program` as the kernel does. Fails the test on what its verifier would refuse.
    pub(in super::super) fn interpret(program: &[Instruction], call: &Call<'_>) -> u32 {
        let (mut accumulator, mut at) = (0, 0_usize);
        loop {
            let Instruction { code, if_true, if_false, operand } = program[at];
            at += 1;
            let mut jump = |condition| at += usize::from(if condition { if_true } else { if_false });
            match code {
                LOAD => accumulator = call.word(operand),
                AND => accumulator &= operand,
                JUMP => at += operand as usize,
                JUMP_EQUAL => jump(accumulator == operand),
                JUMP_GREATER => jump(accumulator > operand),
                JUMP_GREATER_OR_EQUAL => jump(accumulator >= operand),
                JUMP_ANY_BIT => jump(accumulator & operand != 0),
                RETURN => return operand,
                other => panic!("unknown instruction {other:#x}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::arch::{self, ALL, X86, X86_64};
    use super::machine::{Call, interpret};
    use super::*;

    fn answer(arches: &[Arch], arch: &Arch, number: u32, arguments: [u64; 6]) -> u32 {
        interpret(&generate(arches, Asked::default()), &Call { arch, number, arguments })
    }

    const fn refused(number: u16) -> u32 {
        RET_ERRNO | number as u32
    }

    #[test]
    fn every_number_gets_what_the_table_says_on_every_architecture() {
        for asked in [Asked::default(), Asked::all()] {
            let program = generate(ALL, asked);
            for arch in ALL {
                for (number, rule) in (0..).zip(rules(arch, asked)) {
                    let expected = match rule {
                        Action::Allow => RET_ALLOW,
                        Action::Errno(errno) => refused(errno),
                        Action::Check(_) | Action::Other(_) | Action::Cases(_) => continue,
                    };
                    let got = interpret(&program, &Call { arch, number, arguments: [u64::MAX; 6] });
                    assert_eq!(got, expected, "{} {number}", arch.label);
                }
            }
        }
    }

    #[test]
    fn newer_calls_and_x32_do_not_exist() {
        for arch in ALL {
            for number in [arch.newest + 1, 5000, 0x4000_0000, 0x4000_0001, 0x7fff_ffff, 0xffff_ffff] {
                assert_eq!(answer(ALL, arch, number, [0; 6]), refused(table::ENOSYS), "{} {number}", arch.label);
            }
        }
    }

    #[test]
    fn an_architecture_without_a_table_has_no_calls() {
        assert_eq!(answer(&[X86_64, X86], &arch::S390X, 1, [0; 6]), refused(table::ENOSYS));
        assert_eq!(answer(&[], &X86_64, 0, [0; 6]), refused(table::ENOSYS));
    }

    #[test]
    fn arms_private_calls_are_allowed() {
        let arm = arch::ARM;
        assert_eq!(answer(ALL, &arm, 0x000f_0005, [0; 6]), RET_ALLOW);
        assert_eq!(answer(ALL, &arm, 0x000f_0007, [0; 6]), refused(table::ENOSYS));
        assert_eq!(answer(ALL, &arch::AARCH64, 0x000f_0005, [0; 6]), refused(table::ENOSYS));
    }

    #[test]
    fn arguments_are_compared_by_their_low_half_in_either_byte_order() {
        for arch in ALL {
            let call = |name: &str, position: usize, value: u64| {
                let mut arguments = [0; 6];
                arguments[position] = value;
                answer(ALL, arch, arch.number(name).expect("everywhere"), arguments)
            };
            let (eperm, flags) = (refused(table::EPERM), usize::from(arch.clone_flags));
            assert_eq!(call("clone", flags, 0x0100_0011), RET_ALLOW, "{}", arch.label);
            assert_eq!(call("clone", flags, 0x1000_0011), eperm, "{}", arch.label);
            assert_eq!(call("ioctl", 1, u64::from(table::TIOCSTI)), eperm);
            assert_eq!(call("ioctl", 1, u64::from(table::TIOCLINUX)), eperm);
            assert_eq!(call("ioctl", 1, u64::from(table::BTRFS_SNAP_DESTROY_V2)), eperm);
            assert_eq!(call("ioctl", 1, u64::from(table::BTRFS_SNAP_DESTROY_V2_POWERPC)), eperm);
            assert_eq!(call("ioctl", 1, 1 << 32 | u64::from(table::TIOCSTI)), eperm);
            assert_eq!(call("ioctl", 1, 0x5401), RET_ALLOW);
            assert_eq!(call("personality", 0, 0xffff_ffff), RET_ALLOW);
            assert_eq!(call("personality", 0, 0x0006_0008), RET_ALLOW);
            assert_eq!(call("personality", 0, 0x0040_0000), eperm);
            for (family, expected) in [
                (1, RET_ALLOW),
                (2, RET_ALLOW),
                (10, RET_ALLOW),
                (16, RET_ALLOW),
                (17, refused(table::EAFNOSUPPORT)),
                (38, refused(table::EAFNOSUPPORT)),
                (40, refused(table::EAFNOSUPPORT)),
            ] {
                assert_eq!(call("socket", 0, family), expected, "family {family}");
            }
        }
        let audit = [u64::from(table::AF_NETLINK), 3, u64::from(table::NETLINK_AUDIT), 0, 0, 0];
        assert_eq!(answer(ALL, &X86_64, 41, audit), refused(table::EPROTONOSUPPORT));
    }

    #[test]
    fn only_device_nodes_are_left_to_the_helper() {
        for arch in ALL {
            for (name, position) in table::NODES {
                // Newer architectures have `mknodat` alone.
                let Some(number) = arch.number(name) else { continue };
                let made = |asks_for_nodes, mode: u64| {
                    let mut arguments = [0o020_666; 6];
                    arguments[usize::from(*position)] = mode;
                    let program = generate(ALL, Asked { asks_for_nodes, ..Asked::default() });
                    interpret(&program, &Call { arch, number, arguments })
                };
                // The kernel looks at 16 bits.
                for device in [0o020_666, 0o060_000, 0o067_777, 1 << 32 | 0o020_666, 1 << 16 | 0o060_000] {
                    assert_eq!(
                        (made(true, device), made(false, device)),
                        (RET_USER_NOTIF, RET_ALLOW),
                        "{name} {device:o}"
                    );
                }
                for other in [0, 0o666, 0o010_666, 0o040_755, 0o100_644, 0o120_777, 0o140_777] {
                    assert_eq!(made(true, other), RET_ALLOW, "{name} {other:o}");
                }
            }
        }
    }

    #[test]
    fn a_call_is_decided_in_a_few_steps() {
        // 4096 is the kernel's limit (BPF_MAXINSNS).
        let program = generate(&[X86_64, X86], Asked::all());
        assert!(program.len() < 700, "{} instructions", program.len());
    }
}
