//! Blobs on their way from elsewhere: several at once, and read while they arrive.
//!
//! All blobs of an image have their places in one file without a name, so that it is gone with its last descriptor, and
//! one descriptor does for a thousand layers. Whoever reads a place waits until more of it is there. The space of what was
//! unpacked is given back.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::FallocateFlags;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::ImageError;
use crate::stream::Section;
use crate::temporary::nameless;

/// How many blobs arrive at once. More do not come faster from one server, and the lowest is wanted first.
const AT_ONCE: usize = 4;

/// How much of a blob is there.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Bytes from its start.
    there: u64,
    has_ended: bool,
    failure: Option<ImageError>,
}

impl Arriving {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until more than `count` bytes are there, and returns how many. Always ends: a download is ended by its task,
    /// and when that is dropped.
    pub(crate) fn wait_beyond(&self, count: u64) -> io::Result<u64> {
        let mut state = self.lock();
        loop {
            if state.there > count {
                return Ok(state.there);
            }
            if state.has_ended {
                // Whoever sees this asks for the failure.
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Returns why it did not arrive, if so and if nobody was told yet.
    pub(crate) fn take_failure(&self) -> Option<ImageError> {
        self.lock().failure.take()
    }

    fn grow(&self, count: u64) {
        self.lock().there += count;
        self.changed.notify_all();
    }

    /// No more arrives. What was said first counts.
    pub(crate) fn end(&self, failure: Option<ImageError>) {
        let mut state = self.lock();
        if !state.has_ended {
            (state.has_ended, state.failure) = (true, failure);
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Where a blob is written, from its start to its end.
pub(crate) struct Sink {
    file: Arc<File>,
    offset: u64,
    left: u64,
    arriving: Arc<Arriving>,
}

impl Sink {
    /// Adds bytes.
    ///
    /// # Errors
    ///
    /// The disk is full; it is more than was announced.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let count = bytes.len() as u64;
        self.left = self.left.checked_sub(count).ok_or(io::ErrorKind::FileTooLarge)?;
        self.file.write_all_at(bytes, self.offset)?;
        self.offset += count;
        self.arriving.grow(count);
        Ok(())
    }
}

/// Ends a download however its task ends.
struct Ending(Arc<Arriving>);

impl Drop for Ending {
    fn drop(&mut self) {
        self.0.end(Some(ImageError::Cancelled));
    }
}

/// Starts to bring blobs of these `lengths`, the first ones first. `get` brings one of them, by its number, into the sink.
/// Dropping the handle stops them all.
///
/// # Errors
///
/// No file can be made in `temp`.
pub(crate) fn start<F>(
    lengths: &[u64],
    temp: &Path,
    get: impl Fn(usize, Sink) -> F + Send + 'static,
) -> io::Result<(Vec<Section>, AbortOnDropHandle<()>)>
where
    F: Future<Output = Result<(), ImageError>> + Send + 'static,
{
    let file = Arc::new(nameless(temp)?);
    let mut offset = 0;
    let (mut sections, mut sinks) = (Vec::new(), Vec::new());
    for &length in lengths {
        let arriving = Arc::new(Arriving::default());
        sections.push(Section::arriving(Arc::clone(&file), offset, length, Arc::clone(&arriving)));
        sinks.push((Ending(Arc::clone(&arriving)), Sink { file: Arc::clone(&file), offset, left: length, arriving }));
        offset += length;
    }
    let task = tokio::spawn(async move {
        let mut running = JoinSet::new();
        for (at, (ending, sink)) in sinks.into_iter().enumerate() {
            if running.len() == AT_ONCE {
                running.join_next().await;
            }
            let blob = get(at, sink);
            running.spawn(async move {
                let failure = blob.await.err();
                ending.0.end(failure);
            });
        }
        while running.join_next().await.is_some() {}
    });
    Ok((sections, AbortOnDropHandle::new(task)))
}

/// Gives back the space of `length` bytes of `file` from `offset` on, where the filesystem can.
pub(crate) fn forget(file: &File, offset: u64, length: u64) {
    if length > 0 {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // If not now, then with the file.
        let _ = rustix::fs::fallocate(file, flags, offset, length);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn read(section: &mut Section) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        section.read_to_end(&mut bytes).map(|_| bytes)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_blob_is_read_while_it_arrives() {
        let dir = tempfile::tempdir().unwrap();
        let (more, wanted) = tokio::sync::watch::channel(0);
        let (sections, _task) = start(&[3, 6], dir.path(), move |at, mut sink| {
            let mut wanted = wanted.clone();
            async move {
                for byte in 0..[3, 6][at] {
                    wanted.wait_for(|wanted| *wanted > byte).await.expect("the test goes on");
                    sink.write(&[byte]).expect("written");
                }
                Ok(())
            }
        })
        .unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        tokio::task::spawn_blocking(move || {
            let mut last = sections[1].clone();
            for byte in 0..6 {
                more.send_replace(byte + 1);
                let mut buffer = [9; 100];
                assert_eq!((last.read(&mut buffer).unwrap(), buffer[0]), (1, byte));
            }
            assert_eq!(last.read(&mut [0]).unwrap(), 0);
            assert_eq!(read(&mut sections[0].clone()).unwrap(), [0, 1, 2]);
        })
        .await
        .unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_reads_a_failed_download_is_told_why() {
        let dir = tempfile::tempdir().unwrap();
        let (sections, _task) = start(&[4, 4], dir.path(), |at, mut sink| async move {
            sink.write(b"ab").expect("written");
            if at == 0 { Err(ImageError::NoMoreLayers) } else { Ok(()) }
        })
        .unwrap();
        tokio::task::spawn_blocking(move || {
            for section in sections {
                let mut reader = section.clone();
                assert_eq!(read(&mut reader).unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
                let _ = section.take_failure();
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nobody_waits_for_downloads_that_were_stopped() {
        let dir = tempfile::tempdir().unwrap();
        let (sections, task) = start(&[4; 9], dir.path(), |_, sink| async move {
            std::future::pending::<()>().await;
            drop(sink);
            Ok(())
        })
        .unwrap();
        let readers = sections.into_iter().map(|mut section| {
            tokio::task::spawn_blocking(move || (read(&mut section).is_err(), section.take_failure()))
        });
        let readers: Vec<_> = readers.collect();
        drop(task);
        for reader in readers {
            let (failed, why) = reader.await.unwrap();
            assert!(failed && matches!(why, Some(ImageError::Cancelled)));
        }
    }
}
