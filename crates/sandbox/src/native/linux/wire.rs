//! What goes over the socket between caller and helper: one plan with its descriptors, then reports.
//!
//! Each message is its length (`u32`, this machine's byte order: both ends are the same program) and that
//! many bytes of postcard. The plan's descriptors come with its first byte, and so does the terminal that is handed over.

use std::ffi::{CStr, CString};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::error::Step;
use crate::plan::{MAX_DESCRIPTORS, MAX_PLAN, Plan};
use crate::{ExitStatus, SandboxError};

/// What the helper's side says. The first end or failure counts.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// The terminal's master comes with this; the command is not running yet.
    Terminal,
    Exited(i32),
    Killed(i32),
    Failed(Failure),
    /// The runtime of this name failed, and this is what it says.
    Runtime(String, String),
}

/// One step that failed.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Failure {
    step: Step,
    path: Option<CString>,
    errno: i32,
    why: Option<String>,
}

impl Failure {
    /// A failure with a reason that no errno names.
    pub(super) fn explained(step: Step, why: String) -> Self {
        Self { step, path: None, errno: 0, why: Some(why) }
    }
}

impl From<Failure> for SandboxError {
    fn from(failure: Failure) -> Self {
        if let Some(why) = failure.why {
            return SandboxError::Explained { step: failure.step, why };
        }
        SandboxError::Setup {
            step: failure.step,
            path: failure.path.map(|path| PathBuf::from(std::ffi::OsString::from_vec(path.into_bytes()))),
            source: io::Error::from_raw_os_error(failure.errno),
        }
    }
}

/// Says which step an error belongs to.
pub(super) trait At<T> {
    fn at(self, step: Step) -> Result<T, Failure>;
    fn at_path(self, step: Step, path: &CStr) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, step: Step) -> Result<T, Failure> {
        self.map_err(|error| Failure { step, path: None, errno: errno(&error.into()), why: None })
    }

    fn at_path(self, step: Step, path: &CStr) -> Result<T, Failure> {
        self.map_err(|error| Failure { step, path: Some(path.to_owned()), errno: errno(&error.into()), why: None })
    }
}

/// Errors that the helper makes itself carry an errno too.
fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Returns the message for `plan`.
pub(super) fn encode(plan: &Plan) -> Result<Vec<u8>, SandboxError> {
    let mut message = postcard::to_extend(plan, vec![0; 4]).expect("a plan has no unserializable part");
    let length = message.len() - 4;
    if length > MAX_PLAN {
        return Err(SandboxError::Invalid { what: "arguments, environment and secrets are larger than 16 MiB" });
    }
    message[..4].copy_from_slice(&u32::try_from(length).expect("bounded above").to_ne_bytes());
    Ok(message)
}

/// Sends what fits of `message`, with all `descriptors`. Returns how much was sent.
pub(super) fn send_with(socket: BorrowedFd<'_>, message: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(descriptors)), "space for MAX_DESCRIPTORS");
    Ok(sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Returns two ends of a link.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?)
}

/// Receives one descriptor, or `None` if the other end was closed without sending one.
pub(super) fn receive_descriptor(link: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    recvmsg(link, &mut [IoSliceMut::new(&mut [0])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    Ok(descriptors(&mut ancillary).next())
}

fn descriptors<'a>(ancillary: &'a mut RecvAncillaryBuffer<'_>) -> impl Iterator<Item = OwnedFd> + 'a {
    ancillary
        .drain()
        .filter_map(|message| if let RecvAncillaryMessage::ScmRights(rights) = message { Some(rights) } else { None })
        .flatten()
}

/// Receives the plan and its descriptors, in the helper.
pub(super) fn receive(socket: BorrowedFd<'_>) -> io::Result<(Plan, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut length = [0; 4];
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut length)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    if received.bytes != length.len() || received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::from_raw_os_error(libc::EBADMSG));
    }
    let descriptors = descriptors(&mut ancillary).collect();
    let length = u32::from_ne_bytes(length) as usize;
    if length > MAX_PLAN {
        return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut bytes = vec![0; length];
    let mut filled = 0;
    while filled < length {
        match rustix::io::read(socket, &mut bytes[filled..])? {
            0 => return Err(io::Error::from_raw_os_error(libc::EBADMSG)),
            read => filled += read,
        }
    }
    let plan = postcard::from_bytes(&bytes).map_err(|_| io::Error::from_raw_os_error(libc::EBADMSG))?;
    Ok((plan, descriptors))
}

/// Sends a report. If the caller is gone nobody needs it.
pub(super) fn report(socket: impl AsFd, report: &Report) {
    let mut none = SendAncillaryBuffer::default();
    let _ = sendmsg(socket, &[IoSlice::new(&message_of(report))], &mut none, SendFlags::NOSIGNAL);
}

/// Sends the terminal's master to the caller.
pub(super) fn hand_over(socket: impl AsFd, master: &OwnedFd) -> io::Result<()> {
    send_with(socket.as_fd(), &message_of(&Report::Terminal), &[master.as_fd()]).map(drop)
}

/// Receives what there is of reports, and the descriptor that comes with them. Returns how many bytes came: 0 at the end.
pub(super) fn receive_reports(socket: BorrowedFd<'_>, reports: &mut Vec<u8>) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 4096];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    reports.extend_from_slice(&buffer[..received.bytes]);
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    Ok((received.bytes, descriptors.next()))
}

fn message_of(report: &Report) -> Vec<u8> {
    let bytes = postcard::to_stdvec(report).expect("a report has no unserializable part");
    let length = u32::try_from(bytes.len()).expect("reports are short");
    [&length.to_ne_bytes()[..], &bytes].concat()
}

/// Returns the first end or failure that `reports` tell of, or `None` if there is none.
pub(super) fn outcome(reports: &[u8]) -> Option<Result<ExitStatus, SandboxError>> {
    let (length, rest) = reports.split_first_chunk::<4>()?;
    let (report, rest) = rest.split_at_checked(u32::from_ne_bytes(*length) as usize)?;
    Some(match postcard::from_bytes(report).ok()? {
        Report::Terminal => return outcome(rest),
        Report::Exited(code) => Ok(ExitStatus::Code(code)),
        Report::Killed(signal) => Ok(ExitStatus::Signal(signal)),
        Report::Failed(failure) => Err(failure.into()),
        Report::Runtime(runtime, message) => Err(SandboxError::Runtime { runtime, message }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_report_counts_and_half_a_report_is_none() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        report(&theirs, &Report::Terminal);
        let failed = Err::<(), _>(io::Error::from_raw_os_error(libc::ENOSPC)).at_path(Step::MountFile, c"/etc/hosts");
        report(&theirs, &Report::Failed(failed.unwrap_err()));
        report(&theirs, &Report::Exited(0));
        drop(theirs);
        let mut bytes = Vec::new();
        io::Read::read_to_end(&mut &ours, &mut bytes).unwrap();
        let error = outcome(&bytes).unwrap().unwrap_err();
        assert_eq!(error.to_string(), "cannot mount the file /etc/hosts");
        assert!(outcome(&bytes[..12]).is_none());
        assert!(outcome(&[]).is_none());
    }
}
