//! `kiln log`: the log of a result, of a failed step, or of one that runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use kiln_store::{Id, State, Store};
use rustix::event::{PollFd, PollFlags, poll};

use super::print;
use crate::args;
use crate::exit::Failure;
use crate::settings::open_store;

pub(super) fn run(arguments: &args::Log) -> Result<(), Failure> {
    let store = open_store(&arguments.store.store)?;
    let found = store.find(&arguments.id)?;
    match found.state {
        State::Result => match store.lookup(&found.id)? {
            Some(snapshot) => copy(snapshot.log()?),
            None => Err(kiln_store::StoreError::NoSuchResult(arguments.id.clone()).into()),
        },
        State::Failed => match store.failure(&found.id)? {
            Some((_, log)) => copy(log),
            None => Err(kiln_store::StoreError::NoSuchResult(arguments.id.clone()).into()),
        },
        State::Running => follow(&store, &found.id),
    }
}

fn copy(mut log: File) -> Result<(), Failure> {
    io::copy(&mut log, &mut io::stdout().lock()).map(|_| ()).map_err(Failure::Stdout)
}

/// Prints a log as it grows, until its step has ended.
fn follow(store: &Store, id: &Id) -> Result<(), Failure> {
    let mut follower = store.follow(id)?;
    let mut offset = 0;
    loop {
        // Looked at before the log, so that all that was written before the end is seen.
        let has_ended = store.holder(id).is_none();
        if let Some((log, length)) = follower.look()? {
            let mut buffer = vec![0; 64 << 10];
            while offset < length {
                let read = log.read_at(&mut buffer, offset).map_err(Failure::Stdout)?;
                if read == 0 {
                    break;
                }
                print(&buffer[..read])?;
                offset += read as u64;
            }
        }
        if has_ended {
            return Ok(());
        }
        // Woken when the log grows, and when the step's builder ends or dies.
        match poll(&mut [PollFd::new(&follower, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Failure::Runtime(error.into())),
        }
    }
}
