//! System call numbers per architecture, by name.

use std::str::FromStr;

/// One calling convention of the kernel.
pub(super) struct Arch {
    /// For messages of tests.
    #[cfg(test)]
    pub(super) label: &'static str,
    /// What profiles call it.
    pub(super) libseccomp: &'static str,
    /// `AUDIT_ARCH_*` of `linux/audit.h`: the machine of the ELF header, with bits for 64-bit and little-endian.
    pub(super) audit: u32,
    pub(super) big_endian: bool,
    /// Which argument of `clone(2)` holds the flags.
    pub(super) clone_flags: u8,
    /// The highest number that our table knows.
    pub(super) newest: u32,
    /// First and last of a range of private calls far above the table, all harmless.
    pub(super) private: Option<(u32, u32)>,
    number: fn(&str) -> Option<u32>,
    name: fn(u32) -> Option<&'static str>,
}

impl Arch {
    pub(super) fn number(&self, name: &str) -> Option<u32> {
        (self.number)(name).filter(|number| *number <= self.newest)
    }

    pub(super) fn name(&self, number: u32) -> Option<&'static str> {
        (self.name)(number)
    }
}

macro_rules! arch {
    ($constant:ident, $module:ident, $libseccomp:literal, $audit:expr, $big_endian:expr, $clone_flags:expr, $private:expr) => {
        pub(super) const $constant: Arch = Arch {
            #[cfg(test)]
            label: stringify!($module),
            libseccomp: concat!("SCMP_ARCH_", $libseccomp),
            audit: $audit,
            big_endian: $big_endian,
            clone_flags: $clone_flags,
            newest: syscalls::$module::Sysno::last().id() as u32,
            private: $private,
            number: |name| Some(syscalls::$module::Sysno::from_str(name).ok()?.id() as u32),
            name: |number| Some(syscalls::$module::Sysno::new(number as usize)?.name()),
        };
    };
}

const BITS_64: u32 = 0x8000_0000;
const LITTLE_ENDIAN: u32 = 0x4000_0000;

arch!(X86_64, x86_64, "X86_64", 62 | BITS_64 | LITTLE_ENDIAN, false, 0, None);
arch!(X86, x86, "X86", 3 | LITTLE_ENDIAN, false, 0, None);
arch!(AARCH64, aarch64, "AARCH64", 183 | BITS_64 | LITTLE_ENDIAN, false, 0, None);
// breakpoint, cacheflush, usr26, usr32, set_tls, get_tls: arch/arm/include/uapi/asm/unistd.h.
arch!(ARM, arm, "ARM", 40 | LITTLE_ENDIAN, false, 0, Some((0x000f_0001, 0x000f_0006)));
arch!(PPC64LE, powerpc64, "PPC64LE", 21 | BITS_64 | LITTLE_ENDIAN, false, 0, None);
// clone(2): on s390x the stack comes first.
arch!(S390X, s390x, "S390X", 22 | BITS_64, true, 1, None);
arch!(RISCV64, riscv64, "RISCV64", 243 | BITS_64 | LITTLE_ENDIAN, false, 0, None);

/// Every architecture with a table; tests cover all of them on any machine.
#[cfg(test)]
pub(super) const ALL: &[Arch] = &[X86_64, X86, AARCH64, ARM, PPC64LE, S390X, RISCV64];

/// What this machine can run, the most used first. Without a table (another machine) nothing is allowed:
/// `NativeSandbox::new` says so before a step is run.
pub(super) const NATIVE: &[Arch] = if cfg!(target_arch = "x86_64") {
    &[X86_64, X86]
} else if cfg!(target_arch = "aarch64") {
    &[AARCH64, ARM]
} else if cfg!(all(target_arch = "powerpc64", target_endian = "little")) {
    &[PPC64LE]
} else if cfg!(target_arch = "s390x") {
    &[S390X]
} else if cfg!(target_arch = "riscv64") {
    &[RISCV64]
} else {
    &[]
};

/// What Go calls this machine's processor, and profiles with it.
pub(super) const GO: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "aarch64") {
    "arm64"
} else if cfg!(target_arch = "powerpc64") {
    "ppc64le"
} else if cfg!(target_arch = "s390x") {
    "s390x"
} else {
    "riscv64"
};
