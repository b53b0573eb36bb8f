//! The body of an upload: a part of a file, read as it is sent, that tells how much has gone.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::sync::mpsc;

use super::site::lock;

/// How much is read at once.
const PIECE_BYTES: u64 = 128 << 10;
/// How many pieces are read ahead.
const PIECES: usize = 4;

/// How far a body has got.
#[derive(Debug, Default)]
pub(super) struct Progress {
    sent: AtomicU64,
    failure: Mutex<Option<io::Error>>,
}

impl Progress {
    /// Returns how many bytes were handed to the connection.
    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Takes the error that reading the file gave.
    pub(super) fn take_failure(&self) -> Option<io::Error> {
        lock(&self.failure).take()
    }
}

/// A part of a file as a body.
pub(super) struct FileBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
    progress: Arc<Progress>,
}

impl FileBody {
    /// Returns the body of `length` bytes from `offset` on. A thread reads ahead until the body is dropped.
    pub(super) fn new(file: Arc<File>, offset: u64, length: u64, progress: Arc<Progress>) -> Self {
        let (sender, pieces) = mpsc::channel(PIECES);
        // It ends by itself: at the end of the part, or when nobody takes its pieces any more.
        tokio::task::spawn_blocking(move || {
            let mut at = offset;
            while at < offset + length {
                let size = PIECE_BYTES.min(offset + length - at);
                let mut piece = vec![0; usize::try_from(size).expect("a small number")];
                let read = file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece));
                let has_failed = read.is_err();
                if sender.blocking_send(read).is_err() || has_failed {
                    return;
                }
                at += size;
            }
        });
        Self { pieces, left: length, progress }
    }
}

impl http_body::Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self.pieces.poll_recv(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Ok(piece))) => {
                let length = piece.len() as u64;
                self.left = self.left.saturating_sub(length);
                self.progress.sent.fetch_add(length, Ordering::Relaxed);
                Poll::Ready(Some(Ok(Frame::data(piece))))
            }
            Poll::Ready(Some(Err(error))) => {
                let kind = error.kind();
                *lock(&self.progress.failure) = Some(error);
                Poll::Ready(Some(Err(kind.into())))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
