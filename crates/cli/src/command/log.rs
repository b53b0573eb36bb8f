//! `kiln log`: the log of a result, of a failed step, or of one that runs.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;

use kiln_engine::StepUsage;
use kiln_store::{Id, LogFollower, State, Store, StoreError};
use rustix::event::{PollFd, PollFlags, poll};

use super::print;
use crate::args;
use crate::exit::Failure;
use crate::settings::open_store;

pub(super) fn run(arguments: &args::Log) -> Result<(), Failure> {
    let store = open_store(&arguments.store)?;
    if arguments.stats {
        return stats(&store, &arguments.id);
    }
    let none = || StoreError::NoSuchResult(arguments.id.clone());
    let mut is_first = true;
    loop {
        let found = store.find(&arguments.id)?;
        let log = match found.state {
            State::Result => store.lookup(&found.id)?.map(|snapshot| snapshot.log()).transpose()?,
            State::Failed => store.failure(&found.id)?.map(|(_, log)| log),
            State::Running if follow(&store, &found.id)? => return Ok(()),
            // It has ended since it was found: its log is elsewhere now, or was never begun.
            State::Running if std::mem::take(&mut is_first) => continue,
            State::Running => None,
        };
        return copy(log.ok_or_else(none)?);
    }
}

/// Prints what a step used, a line for each that is known.
fn stats(store: &Store, id: &str) -> Result<(), Failure> {
    let found = store.find(id)?;
    let usage = match found.state {
        State::Result => store.lookup(&found.id)?.and_then(|snapshot| StepUsage::of(snapshot.meta())),
        State::Failed => store.failure(&found.id)?.and_then(|(meta, _)| StepUsage::of(&meta)),
        State::Running => None,
    };
    let StepUsage { wall_ms, disk_bytes, files, sandbox, .. } = usage.ok_or_else(|| Failure::NoStats(id.to_owned()))?;
    let seconds = |ms: u64| format!("{}.{:03} s", ms / 1000, ms % 1000);
    let size = |bytes: u64| bytesize::ByteSize(bytes).to_string();
    let lines = [
        ("time", Some(seconds(wall_ms))),
        ("processor, own code", sandbox.cpu_user_ms.map(seconds)),
        ("processor, kernel", sandbox.cpu_system_ms.map(seconds)),
        ("most memory", sandbox.peak_memory_bytes.map(size)),
        ("taken on the disk", disk_bytes.map(size)),
        ("files made", files.map(|count| count.to_string())),
        ("read from disks", sandbox.io_read_bytes.map(size)),
        ("written to disks", sandbox.io_written_bytes.map(size)),
        ("most processes", sandbox.peak_processes.map(|count| count.to_string())),
    ];
    let told = lines.into_iter().filter_map(|(name, value)| Some(format!("{name:<20} {}\n", value?)));
    print(told.collect::<String>())
}

fn copy(mut log: File) -> Result<(), Failure> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        match log.read(&mut buffer).map_err(|source| StoreError::disk("read", "the log", source))? {
            0 => return Ok(()),
            length => print(&buffer[..length])?,
        }
    }
}

/// Prints a log as it grows, until its step has ended. Returns false if there was none to print.
fn follow(store: &Store, id: &Id) -> Result<bool, Failure> {
    let mut follower = store.follow(id)?;
    let mut buffer = vec![0; 64 << 10];
    let mut offset = None;
    let patience = LogFollower::PATIENCE.try_into().expect("a second is a time");
    loop {
        follower.drain();
        // Looked at before the log, so that all that was written before the end is seen. Who can have the lease knows that
        // nobody builds, even if the builder was killed.
        let has_ended = store.lease(id)?.is_some();
        if let Some((log, length)) = follower.look()? {
            let offset = offset.get_or_insert(0);
            while *offset < length {
                let read =
                    log.read_at(&mut buffer, *offset).map_err(|source| StoreError::disk("read", "the log", source))?;
                if read == 0 {
                    break;
                }
                print(&buffer[..read])?;
                *offset += read as u64;
            }
        }
        if has_ended {
            return Ok(offset.is_some());
        }
        // Woken when the log grows, and when the step's builder ends or dies.
        match poll(&mut [PollFd::new(&follower, PollFlags::IN)], Some(&patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(StoreError::disk("watch", store.path(), error.into()).into()),
        }
    }
}
