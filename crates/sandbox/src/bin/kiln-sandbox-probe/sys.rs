//! Raw system calls, as a hostile program would make them.
#![expect(unsafe_code, reason = "the probe's one place for it")]

/// Makes system call `words[0]` and returns what the kernel returned, `-errno` for an error.
pub(crate) fn native(words: [u64; 7]) -> i64 {
    let [number, a, b, c, d, e, f] = words.map(|word| word as libc::c_long);
    // SAFETY: none in general: the tests pass only calls that are refused, or that touch no memory of ours.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    if result == -1 { -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { result }
}

/// As [`native`], by the gate of 32-bit programs.
#[cfg(target_arch = "x86_64")]
pub(crate) fn i386(words: [u64; 7]) -> i64 {
    let [number, a, b, c, d, e, _] = words;
    let result: u64;
    // SAFETY: as for `native`. rbx belongs to the compiler, so it is put back; the gate clobbers r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg {a}, rbx",
            "int 0x80",
            "xchg {a}, rbx",
            a = inout(reg) a => _,
            inout("rax") number => result,
            in("rcx") b,
            in("rdx") c,
            in("rsi") d,
            in("rdi") e,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    i64::from(result as u32 as i32)
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn i386(_: [u64; 7]) -> i64 {
    -38
}

/// Starts a process that waits for ever. Returns whether that went well.
pub(crate) fn fork_and_wait() -> bool {
    // SAFETY: the child only calls pause(2), which is async-signal-safe.
    match unsafe { libc::fork() } {
        0 => loop {
            // SAFETY: takes nothing and touches no memory.
            unsafe { libc::pause() };
        },
        pid => pid > 0,
    }
}

/// Binds `socket` to the interface with this name, past which it then sends nothing.
pub(crate) fn bind_to_device(socket: std::os::fd::BorrowedFd<'_>, interface: &str) -> std::io::Result<()> {
    use std::os::fd::AsRawFd;
    let length = interface.len() as libc::socklen_t;
    // SAFETY: setsockopt(2) reads `length` bytes at the pointer, which are those of `interface`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, interface.as_ptr().cast(), length)
    };
    if result == -1 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}
