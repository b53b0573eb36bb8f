//! Comparisons of whole arguments, 64 bits, as profiles ask for them.

use super::Action;
use super::arch::Arch;
use super::bpf::{self, Instruction};

/// One comparison of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    /// The bits in `mask` are those of `value`.
    MaskedEqual { index: u8, mask: u64, value: u64 },
    /// It is another number.
    NotEqual { index: u8, value: u64 },
    /// It is `value` or more; or, with `not`, less.
    AtLeast { index: u8, value: u64, not: bool },
    /// It is more than `value`; or, with `not`, that or less.
    MoreThan { index: u8, value: u64, not: bool },
}

impl Condition {
    /// Returns which argument it is about.
    pub(super) fn index(self) -> u8 {
        match self {
            Self::MaskedEqual { index, .. }
            | Self::NotEqual { index, .. }
            | Self::AtLeast { index, .. }
            | Self::MoreThan { index, .. } => index,
        }
    }
}

/// What happens if all conditions hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Case {
    pub(crate) all: Vec<Condition>,
    pub(crate) then: Box<Action>,
}

/// The first case that fits counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cases {
    pub(crate) cases: Vec<Case>,
    pub(crate) otherwise: Box<Action>,
}

/// Returns the code that decides between `cases`.
pub(super) fn decide(arch: &Arch, Cases { cases, otherwise }: &Cases) -> Vec<Instruction> {
    let mut code = Vec::new();
    for Case { all, then } in cases {
        // From its end: each comparison knows how far it is to the next case.
        let mut case = bpf::decide(arch, then);
        for condition in all.iter().rev() {
            let mut compare = comparison(arch, *condition, case.len());
            compare.append(&mut case);
            case = compare;
        }
        code.append(&mut case);
    }
    code.extend(bpf::decide(arch, otherwise));
    code
}

/// Returns code that goes on behind itself if the condition holds, and else `rest` instructions further.
fn comparison(arch: &Arch, condition: Condition, rest: usize) -> Vec<Instruction> {
    // At most six comparisons of six instructions and a return.
    let rest = u8::try_from(rest).expect("cases are short");
    let high = |index: u8| bpf::argument(arch, index, true);
    let low = |index: u8| bpf::argument(arch, index, false);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    // The last instruction of each: where it goes if the answer is yes, and if it is no.
    let (yes, no) = (0, rest);
    match condition {
        Condition::MaskedEqual { index, mask, value } => {
            let ((mask_high, mask_low), (value_high, value_low)) = (halves(mask), halves(value));
            vec![
                high(index),
                bpf::and(mask_high),
                bpf::equal(value_high, 0, rest + 3),
                low(index),
                bpf::and(mask_low),
                bpf::equal(value_low, yes, no),
            ]
        }
        Condition::NotEqual { index, value } => {
            let (value_high, value_low) = halves(value);
            vec![high(index), bpf::equal(value_high, 0, 2), low(index), bpf::equal(value_low, no, yes)]
        }
        Condition::AtLeast { index, value, not } | Condition::MoreThan { index, value, not } => {
            let (value_high, value_low) = halves(value);
            let (larger, smaller) = if not { (no, yes) } else { (yes, no) };
            let last = match condition {
                Condition::MoreThan { .. } => bpf::greater(value_low, larger, smaller),
                _ => bpf::greater_or_equal(value_low, larger, smaller),
            };
            vec![
                high(index),
                bpf::greater(value_high, larger + 3, 0),
                bpf::equal(value_high, 0, smaller + 2),
                low(index),
                last,
            ]
        }
    }
}
