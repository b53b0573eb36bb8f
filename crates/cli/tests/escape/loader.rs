//! CVE-2019-5736 as it was done: kiln, executed inside by its own command, is loaded by what the image has for a loader.

use crate::arena::in_each;
use crate::needs_attackers;
use crate::processes::state_of_kiln;

/// Returns a program for x86-64: `code`, at [`ADDRESS`] + [`CODE`], and what it needs. With `loader`, the kernel starts that instead.
fn program(code: &[u8], loader: Option<&str>) -> Vec<u8> {
    let length = (CODE + code.len()) as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    // An executable for x86-64; where it begins, and its two program headers, behind this one.
    elf.extend([2_u16, 62].map(u16::to_le_bytes).concat());
    elf.extend(1_u32.to_le_bytes());
    elf.extend([ADDRESS + CODE as u64, 64, 0].map(u64::to_le_bytes).concat());
    elf.extend(0_u32.to_le_bytes());
    elf.extend([64_u16, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    let mut header = |kind: u32, from: usize, length: u64| {
        elf.extend([kind, 5].map(u32::to_le_bytes).concat());
        let (from, place) = (from as u64, ADDRESS + from as u64);
        elf.extend([from, place, place, length, length, 4096].map(u64::to_le_bytes).concat());
    };
    match loader {
        Some(loader) => header(3, LOADER, loader.len() as u64 + 1),
        // A header that says nothing.
        None => header(0, 0, 0),
    }
    header(1, 0, length);
    assert!(elf.len() <= LOADER);
    elf.resize(LOADER, 0);
    elf.extend(loader.unwrap_or_default().bytes());
    elf.resize(CODE, 0);
    elf.extend(code);
    elf
}

const ADDRESS: u64 = 0x1000_0000;
const LOADER: usize = 0x100;
const CODE: usize = 0x200;

/// Opens `/proc/self/exe` as descriptor 9, then executes `sh /hostile`: as the exploit of CVE-2019-5736 does, so that the file
/// is not busy any more when it is written to.
fn takes_what_runs() -> Vec<u8> {
    const DATA: u32 = ADDRESS as u32 + CODE as u32 + 0x80;
    let number = |instruction: u8, value: u32| [&[instruction][..], &value.to_le_bytes()].concat();
    let (to_rax, to_rdi, to_rsi, to_rdx) = (0xb8, 0xbf, 0xbe, 0xba);
    let syscall = vec![0x0f, 0x05];
    let system_call = |call: i64| [number(to_rax, u32::try_from(call).unwrap()), syscall.clone()].concat();
    let mut code = [
        [number(to_rdi, DATA), number(to_rsi, 0), system_call(libc::SYS_open)].concat(),
        // What it returned is the first argument.
        vec![0x89, 0xc7],
        [number(to_rsi, 9), system_call(libc::SYS_dup2)].concat(),
        [
            number(to_rdi, DATA + 0x10),
            number(to_rsi, DATA + 0x40),
            number(to_rdx, DATA + 0x50),
            system_call(libc::SYS_execve),
        ]
        .concat(),
        [number(to_rdi, 99), system_call(libc::SYS_exit)].concat(),
    ]
    .concat();
    assert!(code.len() <= 0x80);
    code.resize(0x80, 0);
    for (text, length) in [("/proc/self/exe", 0x10), ("/bin/busybox", 0x10), ("sh", 0x10), ("/hostile", 0x10)] {
        let end = code.len() + length;
        code.extend(text.bytes());
        code.resize(end, 0);
    }
    // The words of the command, and an empty environment.
    code.extend([DATA + 0x20, 0, DATA + 0x30, 0, 0, 0, 0, 0].map(u32::to_le_bytes).concat());
    code
}

#[test]
fn kiln_is_not_overwritten_by_a_loader_that_the_image_brings() {
    needs_attackers!();
    let kilns_loader = "/lib64/ld-linux-x86-64.so.2";
    let before = state_of_kiln();
    in_each(|arena| {
        arena.env.write("src/loader", program(&takes_what_runs(), None));
        arena.env.write("src/own", program(&[], Some("/loader")));
        arena.env.write(
            "src/hostile",
            "echo got $(readlink /proc/self/fd/9)
             for i in 1 2 3 4 5 6 7 8 9 10; do printf x 2>/dev/null >> /proc/self/fd/9 && echo wrote; done; true",
        );
        let attack = |way: &str, command: &str| {
            let prepare = format!("chmod 755 /loader /own; rm -f {kilns_loader}; cp /loader {kilns_loader}; {way}");
            let files = "(copy (src loader own hostile) (dst /))";
            let spec = format!(r#"{files} (run (shell "{prepare}")) (shell {command}) (run (shell version))"#);
            arena.build(&[], &spec)
        };
        // By the same means it gets hold of a program of its own.
        let own = attack("true", "/own").ok();
        assert!(own.stderr.contains("got /own\nwrote\n"), "{}", own.stderr);
        for way in ["ln -s /proc/self/exe /evil", r"printf '#!/proc/self/exe\\n' > /evil; chmod 755 /evil"] {
            let built = attack(way, "/evil");
            assert!(matches!(built.code, 0 | 1), "{}", built.stderr);
            assert!(!built.stderr.contains("wrote\n"), "{}", built.stderr);
            println!(
                "{way}: {}",
                built.stderr.lines().find(|line| line.starts_with("got ")).unwrap_or("it does not run")
            );
        }
    });
    assert_eq!(state_of_kiln(), before);
}
