//! Init's part where an OCI runtime starts the command: `oci/mod.rs` draws the processes.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::fs::{FileType, Mode, Uid};
use rustix::mount::{UnmountFlags, unmount};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions, setsid};

use super::command::{CANNOT_EXECUTE, NOT_FOUND};
use super::helper::Descriptors;
use super::mknod;
use super::mounts;
use super::sys::{self, SingleThread, Words};
use super::walk::{Missing, open_on_host, walk};
use super::wire::{At, Failure, Report};
use crate::error::Step;
use crate::oci::{LISTENER, PLACE, Said, said};
use crate::plan::{Attributes, Filesystem, Plan, RuntimeGroups, RuntimePlan};

/// [`PLACE`], where everything is gathered.
pub(super) const STAGING_PLACE: &CStr = c"/run/kiln/oci";
const CGROUPS: &CStr = c"/sys/fs/cgroup";
/// Most bytes that are read of a runtime's log.
const MAX_LOG: u64 = 64 << 10;

/// Makes this mount namespace one in which a runtime finds itself.
pub(super) fn prepare(runtime: &RuntimePlan) -> Result<(), Failure> {
    // It looks itself and its children up, by the numbers of our pid namespace.
    cover(c"/proc", c"proc").at_path(Step::MountFilesystem, c"/proc")?;
    show_groups(&runtime.groups).at_path(Step::MountFilesystem, CGROUPS)?;
    Ok(())
}

/// Lets the runtime see no control groups that it need not see: it makes what it needs in all of them, and crun refuses a host
/// with both versions.
fn show_groups(groups: &RuntimeGroups) -> io::Result<()> {
    let devices = match groups {
        RuntimeGroups::All => return Ok(()),
        RuntimeGroups::None => None,
        RuntimeGroups::Devices(path) => Some(mounts::copy_from_host(path, Attributes::NOSUID)?),
    };
    // Not only covered: a runtime finds what is below in its mountinfo.
    match unmount(CGROUPS, UnmountFlags::DETACH) {
        // Nobody has mounted any; or there is no such directory.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) if devices.is_none() => return Ok(()),
        done => done?,
    }
    cover(CGROUPS, c"tmpfs")?;
    if let Some(devices) = devices {
        let place = c"/sys/fs/cgroup/devices";
        rustix::fs::mkdir(place, Mode::from_raw_mode(0o755))?;
        mounts::attach(devices.as_fd(), open_on_host(place)?.as_fd())?;
    }
    Ok(())
}

fn cover(place: &CStr, kind: &CStr) -> io::Result<()> {
    let attributes = Attributes::NOSUID.and(Attributes::NODEV).and(Attributes::NOEXEC);
    let filesystem = Filesystem { target: place.to_owned(), kind: kind.to_owned(), options: Vec::new(), attributes };
    mounts::attach(mounts::make(&filesystem)?.as_fd(), open_on_host(place)?.as_fd())
}

/// Runs the bundle, reaps whatever comes to us meanwhile, and says how the command ended.
pub(super) fn start_and_reap(
    runtime: &RuntimePlan,
    plan: &Plan,
    (descriptors, listens): (Descriptors, Option<OwnedFd>),
    (root, cwd): (BorrowedFd<'_>, BorrowedFd<'_>),
    thread: &SingleThread,
) -> Result<Report, Failure> {
    let Some(output) = descriptors.io.into_iter().next() else {
        return Err(rustix::io::Errno::BADF).at(Step::ConnectStdio);
    };
    // Both runtimes would fail themselves here, and not as a command fails.
    if let Err((reason, code)) = look_up(&plan.command.candidates, root, cwd) {
        complain(output.as_fd(), plan, reason);
        return Ok(Report::Exited(code));
    }
    for target in &runtime.remounted {
        // Nobody but us writes in the root now, and these were no links when they were mounted.
        let path = [STAGING_PLACE.to_bytes(), b"/root", target.to_bytes()].concat();
        unmount(path.as_slice(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).at_path(Step::WriteBundle, target)?;
    }
    write_bundle(runtime).at_path(Step::WriteBundle, STAGING_PLACE)?;
    if let Some(link) = listens {
        listen().and_then(|socket| mknod::send(&link, &socket)).at_path(Step::WriteBundle, STAGING_PLACE)?;
    }
    let pid = start(runtime, plan, output.as_fd(), thread).at_path(Step::StartRuntime, &runtime.program)?;
    drop((descriptors.mounts, output));
    let mut reaped = Vec::new();
    let status = wait_for(pid, &mut reaped).at(Step::Wait)?;
    if status.code() != Some(0) {
        let log = read_log().at_path(Step::Wait, STAGING_PLACE)?;
        return Ok(match said(&log) {
            Said::CannotExecute => Report::Exited(CANNOT_EXECUTE),
            Said::NotFound => Report::Exited(NOT_FOUND),
            Said::Failed(message) => Report::Runtime(runtime.name.clone(), message),
            Said::Nothing => Report::Runtime(runtime.name.clone(), format!("it ended ({status}) without a word")),
        });
    }
    // The command's parent is gone, so it is our child now.
    let command = read_pid().at_path(Step::Wait, STAGING_PLACE)?;
    let status = wait_for(command, &mut reaped).at(Step::Wait)?;
    Ok(match (status.code(), status.signal()) {
        (Some(code), _) => Report::Exited(code),
        (None, signal) => Report::Killed(signal.unwrap_or(libc::SIGKILL)),
    })
}

/// Looks for the command as execvp(3) does, but for who may execute it. Otherwise returns why there is none, as a shell says it.
fn look_up(candidates: &[CString], root: BorrowedFd<'_>, cwd: BorrowedFd<'_>) -> Result<(), (&'static str, i32)> {
    let mut refused = false;
    for candidate in candidates {
        // One without a slash at its beginning starts at the working directory, of which only the descriptor is sure to be inside.
        let start = if candidate.to_bytes().starts_with(b"/") { root } else { cwd };
        let found = if candidate.to_bytes().starts_with(b"/") || !candidate.to_bytes().starts_with(b"..") {
            walk(start, candidate, Missing::Fail)
        } else {
            // Upwards: the runtime finds it, or not.
            return Ok(());
        };
        let Ok(found) = found else { continue };
        match rustix::fs::fstat(&found) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_mode & 0o111 != 0 => {
                return Ok(());
            }
            _ => refused = true,
        }
    }
    Err(if refused { ("Permission denied (os error 13)", CANNOT_EXECUTE) } else { ("not found", NOT_FOUND) })
}

/// Says on the step's own output why its command did not start.
fn complain(output: BorrowedFd<'_>, plan: &Plan, reason: &str) {
    let name = plan.command.argv.first().map_or(c"", |name| name.as_c_str());
    let _ = rustix::io::write(output, format!("kiln: {}: {reason}\n", name.to_string_lossy()).as_bytes());
}

fn write_bundle(runtime: &RuntimePlan) -> io::Result<()> {
    for dir in ["bundle", "state"] {
        rustix::fs::mkdir(format!("{PLACE}/{dir}"), Mode::from_raw_mode(0o700))?;
    }
    fs::write(format!("{PLACE}/bundle/config.json"), &runtime.config)
}

/// Makes the socket to which the runtime sends the filter's listener.
fn listen() -> io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new(LISTENER)?)?;
    listen(&socket, 1)?;
    Ok(socket)
}

/// Starts the runtime. Its environment is empty, since it would hand some of it on.
fn start(runtime: &RuntimePlan, plan: &Plan, output: BorrowedFd<'_>, thread: &SingleThread) -> io::Result<Pid> {
    // Not /dev/null: crun gives what it gets here to the command's user, and that would be the host's.
    let (stdin, _) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    for descriptor in [stdin.as_fd(), output] {
        // Or the user could write to stdout, but not open /dev/stdout. Only a pipe: that has no other owner.
        if FileType::from_raw_mode(rustix::fs::fstat(descriptor)?.st_mode) == FileType::Fifo {
            rustix::fs::fchown(descriptor, Some(Uid::from_raw(plan.owner.0)), None)?;
        }
    }
    let words: Vec<CString> = [&runtime.program].into_iter().chain(&runtime.arguments).cloned().collect();
    let (argv, env) = (Words::new(&words), Words::new(&[]));
    // Not by posix_spawn(3): the C library would leave two signals ignored, in the command too.
    match sys::fork(thread)? {
        Some(pid) => Ok(pid),
        None => {
            let error = match become_ready(stdin.as_fd(), output) {
                Ok(()) => sys::execute(&runtime.program, &argv, &env),
                Err(error) => error,
            };
            let _ = rustix::io::write(output, format!("kiln: {}: {error}\n", runtime.name).as_bytes());
            sys::exit_now(NOT_FOUND)
        }
    }
}

/// Gives the runtime what the command will inherit.
fn become_ready(stdin: BorrowedFd<'_>, output: BorrowedFd<'_>) -> io::Result<()> {
    setsid()?;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(output)?;
    rustix::stdio::dup2_stderr(output)?;
    sys::reset_signals()?;
    sys::close_on_exec_from(3)
}

/// Waits for `wanted`, and reaps what comes to us meanwhile: the command may end before we know its number.
fn wait_for(wanted: Pid, reaped: &mut Vec<(Pid, ExitStatus)>) -> io::Result<ExitStatus> {
    loop {
        if let Some((_, status)) = reaped.iter().find(|(pid, _)| *pid == wanted) {
            return Ok(*status);
        }
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) => reaped.push((pid, ExitStatus::from_raw(status.as_raw()))),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Returns the command's number, as the runtime wrote it down.
fn read_pid() -> io::Result<Pid> {
    let text = fs::read_to_string(format!("{PLACE}/pid"))?;
    text.trim().parse().ok().and_then(Pid::from_raw).ok_or_else(|| io::Error::from_raw_os_error(libc::EBADMSG))
}

fn read_log() -> io::Result<String> {
    let log = match File::open(format!("{PLACE}/log")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        log => OwnedFd::from(log?),
    };
    let mut bytes = Vec::new();
    File::from(log).take(MAX_LOG).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
