//! Decompresses on one thread what another consumes, and takes the digests of both sides.
//!
//! Memory is a few buffers, whatever the length: the producer waits when the consumer is behind.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use tokio_util::sync::CancellationToken;

use crate::digest::{Hash, Hasher};
use crate::download::{self, Arriving};
use crate::tar::Source;
use crate::unpack::UnpackError;
use crate::{ImageError, Limits, Progress};

/// The size of one buffer, and how many are on their way.
const BUFFER: usize = 256 << 10;
const BUFFERS: usize = 4;

/// A part of a file: a blob, alone, in an archive, or on its way.
#[derive(Clone, Debug)]
pub(crate) struct Section {
    file: Arc<File>,
    offset: u64,
    length: u64,
    /// If it is on its way: how much of it is there, and where it started.
    arriving: Option<(Arc<Arriving>, u64)>,
}

impl Section {
    pub(crate) fn new(file: Arc<File>, offset: u64, length: u64) -> Self {
        Self { file, offset, length, arriving: None }
    }

    /// A part that is being written by others. Reading waits for what is not there yet.
    pub(crate) fn arriving(file: Arc<File>, offset: u64, length: u64, arriving: Arc<Arriving>) -> Self {
        Self { file, offset, length, arriving: Some((arriving, offset)) }
    }

    pub(crate) fn whole(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::new(Arc::new(file), 0, length))
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// Returns where it starts in its file.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }

    /// Returns why the rest does not arrive, if so and if nobody was told yet.
    pub(crate) fn take_failure(&self) -> Option<ImageError> {
        self.arriving.as_ref()?.0.take_failure()
    }

    /// Lets go whoever waits for what is not there yet: nobody wants it any more.
    fn give_up(&self) {
        if let Some((arriving, _)) = &self.arriving {
            arriving.end(None);
        }
    }

    /// Gives back the space of what arrived. It is not read again.
    pub(crate) fn forget(self) {
        if self.arriving.is_some() {
            download::forget(&self.file, self.offset, self.length);
        }
    }

    /// Returns the first bytes, up to the length of `buffer`.
    pub(crate) fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut copy = self.clone();
        let mut have = 0;
        while have < buffer.len() {
            match copy.read(&mut buffer[have..])? {
                0 => break,
                got => have += got,
            }
        }
        Ok(have)
    }
}

impl Read for Section {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut left = self.length;
        if let Some((arriving, start)) = &self.arriving
            && left > 0
        {
            let passed = self.offset - start;
            left = left.min(arriving.wait_beyond(passed)? - passed);
        }
        let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let got = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += got as u64;
        self.length -= got as u64;
        Ok(got)
    }
}

/// How a stream is packed, told by its first bytes: names and media types lie.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
    Xz,
    /// Known, and not supported.
    Bzip2,
}

impl Compression {
    pub(crate) fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A zstd stream may start with a frame that is to be skipped.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            _ => Self::None,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
        }
    }
}

/// The digests that a stream must have; [`Hash::None`] where none is known.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected {
    pub(crate) stored: Hash,
    pub(crate) unpacked: Hash,
}

/// What the producer hears and obeys.
pub(crate) struct Watch<'a> {
    pub(crate) limits: &'a Limits,
    pub(crate) cancel: &'a CancellationToken,
    pub(crate) progress: &'a dyn Progress,
    /// Bytes read before this stream, and in all streams together.
    pub(crate) done: u64,
    pub(crate) total: u64,
}

/// Hands the unpacked bytes of `section` to `consume`; what it leaves is read and hashed too.
///
/// # Errors
///
/// `consume`'s own; reading or decompressing failed; a digest is not as `expected`.
pub(crate) fn unpack<T>(
    section: Section,
    expected: Expected,
    watch: &Watch<'_>,
    consume: impl FnOnce(&mut Unpacked) -> Result<T, UnpackError>,
) -> Result<T, UnpackError> {
    let (filled, full) = sync_channel(BUFFERS);
    let (emptied, empty) = sync_channel(BUFFERS);
    for _ in 0..BUFFERS {
        emptied.send(vec![0; BUFFER]).expect("its other end is here");
    }
    std::thread::scope(|scope| {
        let source = section.clone();
        let producer = scope.spawn(move || produce(section, Hasher::for_hash(expected.stored), watch, &filled, &empty));
        let mut unpacked = Unpacked {
            full,
            emptied,
            current: Vec::new(),
            start: 0,
            has_ended: false,
            hasher: Hasher::for_hash(expected.unpacked),
        };
        let result = consume(&mut unpacked).and_then(|done| {
            unpacked.drain(watch.cancel)?;
            Ok(done)
        });
        let Unpacked { full, emptied, has_ended, hasher, .. } = unpacked;
        // Lets the producer go if it is not done.
        drop((full, emptied));
        if result.is_err() {
            source.give_up();
        }
        let produced = producer.join().unwrap_or(Err(UnpackError::Panicked));
        let (done, stored) = match (result, produced) {
            (Ok(done), produced) => (done, produced?),
            // The stream broke, and the consumer saw only its end. Before that, the producer fails because of the consumer.
            (Err(UnpackError::Tar(_)), Err(error)) if has_ended => return Err(error),
            (Err(error), _) => return Err(error),
        };
        check("stored", expected.stored, stored)?;
        check("unpacked", expected.unpacked, hasher.finish())?;
        Ok(done)
    })
}

fn check(what: &'static str, wanted: Hash, found: Hash) -> Result<(), UnpackError> {
    if wanted == found {
        return Ok(());
    }
    Err(UnpackError::WrongDigest { what, wanted: wanted.to_string(), found: found.to_string() })
}

/// The consumer's end of a stream.
pub(crate) struct Unpacked {
    full: Receiver<Vec<u8>>,
    emptied: SyncSender<Vec<u8>>,
    current: Vec<u8>,
    start: usize,
    /// There is no more, for whatever reason.
    has_ended: bool,
    hasher: Hasher,
}

impl Unpacked {
    fn drain(&mut self, cancel: &CancellationToken) -> Result<(), UnpackError> {
        loop {
            let length = self.fill().map_err(UnpackError::Read)?.len();
            if length == 0 {
                return Ok(());
            }
            if cancel.is_cancelled() {
                return Err(UnpackError::Cancelled);
            }
            self.consume(length);
        }
    }
}

impl Source for Unpacked {
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.start == self.current.len() {
            let used = std::mem::take(&mut self.current);
            self.start = 0;
            if used.capacity() > 0 {
                // The producer may be done already.
                let _ = self.emptied.send(used);
            }
            // Closed at the end, and when the producer failed: it says so when it is joined.
            match self.full.recv() {
                Ok(next) => {
                    self.hasher.update(&next);
                    self.current = next;
                }
                Err(_) => self.has_ended = true,
            }
        }
        Ok(&self.current[self.start..])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}

/// Reads, hashes and decompresses `section` to its end, or until nobody wants more.
fn produce(
    section: Section,
    hasher: Hasher,
    watch: &Watch<'_>,
    filled: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Hash, UnpackError> {
    let mut start = [0; 8];
    let have = section.peek(&mut start).map_err(UnpackError::Read)?;
    let compression = Compression::of(&start[..have]);
    let length = section.len();
    let mut input = Input::new(section, hasher, watch);
    let sent = match compression {
        Compression::None => send(&mut input, length, watch, filled, empty),
        Compression::Gzip => send(flate2::bufread::MultiGzDecoder::new(&mut input), length, watch, filled, empty),
        Compression::Zstd => zstd::stream::read::Decoder::with_buffer(&mut input)
            .and_then(|mut decoder| {
                decoder.window_log_max(watch.limits.decompressor_bytes.max(1).ilog2())?;
                Ok(decoder)
            })
            .map_or_else(|error| Ok(Some(error)), |decoder| send(decoder, length, watch, filled, empty)),
        Compression::Xz => {
            let flags = liblzma::stream::CONCATENATED;
            match liblzma::stream::Stream::new_stream_decoder(watch.limits.decompressor_bytes, flags) {
                Ok(stream) => {
                    send(liblzma::bufread::XzDecoder::new_stream(&mut input, stream), length, watch, filled, empty)
                }
                Err(error) => Ok(Some(error.into())),
            }
        }
        Compression::Bzip2 => return Err(UnpackError::UnsupportedCompression(compression.name())),
    }?;
    if let Some(source) = sent {
        // A decompressor passes on what its input said.
        return Err(match input.failed {
            true if watch.cancel.is_cancelled() => UnpackError::Cancelled,
            true => UnpackError::Read(source),
            false => UnpackError::Corrupt { compression: compression.name(), source },
        });
    }
    input.finish()
}

/// Sends what `from` gives, buffer by buffer. Returns the error that reading gave.
fn send(
    mut from: impl Read,
    stored: u64,
    watch: &Watch<'_>,
    filled: &SyncSender<Vec<u8>>,
    empty: &Receiver<Vec<u8>>,
) -> Result<Option<io::Error>, UnpackError> {
    let mut unpacked = 0;
    loop {
        if watch.cancel.is_cancelled() {
            return Err(UnpackError::Cancelled);
        }
        // The consumer stopped early, for a reason of its own.
        let Ok(mut buffer) = empty.recv() else { return Ok(None) };
        buffer.resize(BUFFER, 0);
        let mut have = 0;
        while have < buffer.len() {
            match from.read(&mut buffer[have..]) {
                Ok(0) => break,
                Ok(got) => have += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Ok(Some(error)),
            }
        }
        if have == 0 {
            return Ok(None);
        }
        buffer.truncate(have);
        unpacked += have as u64;
        if unpacked > watch.limits.unpacked_bytes {
            return Err(UnpackError::TooLarge(watch.limits.unpacked_bytes));
        }
        let Limits { dense_bytes, ratio, .. } = *watch.limits;
        if unpacked > dense_bytes && unpacked / ratio.max(1) > stored {
            return Err(UnpackError::TooDense { unpacked, stored, ratio });
        }
        if filled.send(buffer).is_err() {
            return Ok(None);
        }
    }
}

/// The stored bytes, hashed as they are read.
struct Input<'a> {
    section: Section,
    length: u64,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    hasher: Hasher,
    failed: bool,
    watch: &'a Watch<'a>,
}

impl<'a> Input<'a> {
    fn new(section: Section, hasher: Hasher, watch: &'a Watch<'a>) -> Self {
        let length = section.len();
        Self { section, length, buffer: vec![0; BUFFER], start: 0, end: 0, hasher, failed: false, watch }
    }

    /// Reads what the decompressor left and returns the digest of it all.
    fn finish(mut self) -> Result<Hash, UnpackError> {
        loop {
            if self.watch.cancel.is_cancelled() {
                return Err(UnpackError::Cancelled);
            }
            let length = self.fill_buf().map_err(UnpackError::Read)?.len();
            if length == 0 {
                return Ok(self.hasher.finish());
            }
            self.consume(length);
        }
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let from = self.fill_buf()?;
        let length = from.len().min(buffer.len());
        buffer[..length].copy_from_slice(&from[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            let read = self.section.read(&mut self.buffer);
            self.failed = read.is_err();
            (self.start, self.end) = (0, read?);
            self.hasher.update(&self.buffer[..self.end]);
            let here = self.length - self.section.len();
            self.watch.progress.bytes(self.watch.done + here, self.watch.total);
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn consume(&mut self, count: usize) {
        self.start += count;
    }
}
