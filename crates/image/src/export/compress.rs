//! Packs a stream on all processors, and takes the digests of both sides.
//!
//! ```text
//! produce ──Feed──► chunks, numbered ──► N workers: compress ──► one thread: put in order, write
//!          (digest of the stream)                                (digest of what is written)
//! ```
//!
//! The chunks are the same on every machine, so the bytes are too. Memory is a few chunks for each worker.
//!
//! gzip: a member for each chunk, zstd: a frame for each chunk. Either may follow each other, as their specifications have it
//! (RFC 1952, RFC 8878); layers that are read lazily (eStargz) have been written so for years. Members have neither time nor
//! system.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Mutex, PoisonError};

use libdeflater::{CompressionLvl, Compressor};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;

use super::{Compression, ExportError};
use crate::Digest;

/// The numbers are of 170 MB of a Debian system, on one processor. `gzip -6` makes 60.9 MB of them in 6 s; Buildah and Skopeo
/// make 63.3 MB in 2 s.
///
/// Level 1 of libdeflate: 64.4 MB in 0.75 s. Level 2: 61.8 MB in 1.0 s, level 6: 59.5 MB in 1.7 s. Who wants it smaller than
/// everybody's gzip takes zstd, which is faster still.
const GZIP_LEVEL: i32 = 1;
/// Level 3: 53.4 MB in 0.7 s. Level 6 makes 52 MB, in 1.9 s.
const ZSTD_LEVEL: i32 = 3;

/// How a stream is cut.
struct Cut {
    /// What is compressed at once.
    chunk: usize,
    /// More workers than one producer can feed need memory only.
    most_workers: usize,
}

impl Cut {
    fn of(compression: Compression) -> Self {
        match compression {
            Compression::Gzip | Compression::None => Self { chunk: 1 << 20, most_workers: 16 },
            // Frames know nothing of each other: chunks of half the length would make 5 % more.
            Compression::Zstd => Self { chunk: 2 << 20, most_workers: 8 },
        }
    }
}

/// What was packed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Packed {
    /// The digest of the stream.
    pub(super) unpacked: Digest,
    /// The digest of what was written.
    pub(super) stored: Digest,
    /// How long that is.
    pub(super) size: u64,
}

/// Packs what `produce` feeds, into `output`. `failed` says what it means if `output` cannot be written.
///
/// # Errors
///
/// `produce`'s own; writing failed; cancelled.
pub(super) fn pack(
    compression: Compression,
    output: &mut (dyn Write + Send),
    failed: &(dyn Fn(io::Error) -> ExportError + Sync),
    cancel: &CancellationToken,
    produce: impl FnOnce(&mut Feed<'_>) -> Result<(), ExportError>,
) -> Result<Packed, ExportError> {
    let Cut { chunk: size, most_workers } = Cut::of(compression);
    let workers = std::thread::available_parallelism().map_or(1, usize::from).min(most_workers);
    let buffers = workers + 3;
    let (emptied, empty) = sync_channel(buffers);
    let (filled, full) = sync_channel(buffers);
    let (packed, unordered) = channel();
    for _ in 0..buffers {
        emptied.send(Chunk::default()).expect("its other end is here");
    }
    let full = Mutex::new(full);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            let (full, packed) = (&full, packed.clone());
            scope.spawn(move || work(compression, full, &packed));
        }
        // The writer sees the end when the last worker is gone.
        drop(packed);
        let writer = scope.spawn(move || write(output, &unordered, &emptied));
        let feed =
            Feed { empty, filled, size, chunk: Chunk::default(), number: 0, unpacked: Sha256::new(), bytes: 0, cancel };
        match (feed.run(produce), writer.join()) {
            (_, Err(_) | Ok(Err(Lost::Panicked))) => Err(ExportError::Panicked),
            // The producer saw only that nobody wants more.
            (_, Ok(Err(Lost::Io(error)))) => Err(failed(error)),
            (Err(error), Ok(Ok(_))) => Err(error),
            (Ok(unpacked), Ok(Ok((stored, size)))) => Ok(Packed { unpacked, stored, size }),
        }
    })
}

/// Why there will be no more packed chunks.
enum Lost {
    Io(io::Error),
    Panicked,
}

/// A part of the stream on its way.
#[derive(Default)]
struct Chunk {
    number: u64,
    data: Vec<u8>,
    packed: Vec<u8>,
}

/// Where the stream goes in.
pub(super) struct Feed<'a> {
    empty: Receiver<Chunk>,
    filled: SyncSender<Chunk>,
    /// How long a chunk is.
    size: usize,
    chunk: Chunk,
    number: u64,
    unpacked: Sha256,
    bytes: u64,
    cancel: &'a CancellationToken,
}

impl Feed<'_> {
    /// Consumes itself, whatever happens: the workers end when it is gone.
    fn run(mut self, produce: impl FnOnce(&mut Self) -> Result<(), ExportError>) -> Result<Digest, ExportError> {
        self.next()?;
        produce(&mut self)?;
        self.send()?;
        Ok(self.unpacked.into())
    }

    /// Appends bytes.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), ExportError> {
        while !bytes.is_empty() {
            let room = self.room()?;
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.chunk.data.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Appends the next `length` bytes of `file`. Returns how many are missing, if it has not that many.
    pub(super) fn copy(
        &mut self,
        file: &mut impl Read,
        mut length: u64,
        failed: impl Fn(io::Error) -> ExportError,
    ) -> Result<u64, ExportError> {
        while length > 0 {
            let room = self.room()?;
            let part = usize::try_from(length).map_or(room, |length| length.min(room));
            let start = self.chunk.data.len();
            self.chunk.data.resize(start + part, 0);
            let read = file.read(&mut self.chunk.data[start..]);
            self.chunk.data.truncate(start + read.as_ref().map_or(0, |&got| got));
            match read {
                Ok(0) => break,
                Ok(got) => length -= got as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(length)
    }

    /// Returns how many bytes went in.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes + self.chunk.data.len() as u64
    }

    /// Returns how much fits into the chunk at hand, which is more than nothing.
    fn room(&mut self) -> Result<usize, ExportError> {
        if self.chunk.data.len() == self.size {
            self.send()?;
            self.next()?;
        }
        Ok(self.size - self.chunk.data.len())
    }

    fn send(&mut self) -> Result<(), ExportError> {
        if self.cancel.is_cancelled() {
            return Err(ExportError::Cancelled);
        }
        let data = &self.chunk.data;
        self.unpacked.update(data);
        self.bytes += data.len() as u64;
        self.filled.send(std::mem::take(&mut self.chunk)).map_err(|_| ExportError::Panicked)
    }

    /// Takes an empty chunk. There is none any more once the writer failed.
    fn next(&mut self) -> Result<(), ExportError> {
        self.chunk = self.empty.recv().map_err(|_| ExportError::Panicked)?;
        self.chunk.data.reserve_exact(self.size);
        self.chunk.number = self.number;
        self.number += 1;
        Ok(())
    }
}

/// Compresses chunks until there are no more.
fn work(compression: Compression, full: &Mutex<Receiver<Chunk>>, packed: &Sender<Result<Chunk, Lost>>) {
    let mut packer = Packer::new(compression);
    loop {
        let next = full.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(mut chunk) = next else { return };
        // A lost chunk would be waited for.
        let done = catch_unwind(AssertUnwindSafe(|| match &mut packer {
            Ok(packer) => packer.pack(&mut chunk),
            Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
        }));
        let done = match done {
            Ok(packed) => packed.map(|()| chunk).map_err(Lost::Io),
            Err(_) => Err(Lost::Panicked),
        };
        if packed.send(done).is_err() {
            return;
        }
    }
}

/// One worker's compressor.
enum Packer {
    Gzip(Compressor),
    Zstd(zstd::bulk::Compressor<'static>),
    None,
}

impl Packer {
    fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::Gzip => {
                Self::Gzip(Compressor::new(CompressionLvl::new(GZIP_LEVEL).expect("the level is between 0 and 12")))
            }
            Compression::Zstd => {
                let mut compressor = zstd::bulk::Compressor::new(ZSTD_LEVEL)?;
                compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true))?;
                Self::Zstd(compressor)
            }
            Compression::None => Self::None,
        })
    }

    fn pack(&mut self, chunk: &mut Chunk) -> io::Result<()> {
        let Chunk { data, packed, .. } = chunk;
        match self {
            Self::Gzip(compressor) => {
                packed.resize(compressor.gzip_compress_bound(data.len()), 0);
                let length = compressor.gzip_compress(data, packed).map_err(io::Error::other)?;
                packed.truncate(length);
                Ok(())
            }
            Self::Zstd(compressor) => {
                packed.reserve(zstd::zstd_safe::compress_bound(data.len()));
                compressor.compress_to_buffer(data, packed).map(drop)
            }
            Self::None => {
                packed.extend_from_slice(data);
                Ok(())
            }
        }
    }
}

/// Writes packed chunks in their order. Returns the digest and the length of all that is written.
fn write(
    output: &mut dyn Write,
    packed: &Receiver<Result<Chunk, Lost>>,
    emptied: &SyncSender<Chunk>,
) -> Result<(Digest, u64), Lost> {
    let mut output = Hashed { output, digest: Sha256::new(), size: 0 };
    let (mut waiting, mut next) = (BTreeMap::new(), 0);
    for chunk in packed {
        let chunk = chunk?;
        waiting.insert(chunk.number, chunk);
        while let Some(mut chunk) = waiting.remove(&next) {
            output.write(&chunk.packed)?;
            next += 1;
            chunk.data.clear();
            chunk.packed.clear();
            // The producer may be done already.
            let _ = emptied.send(chunk);
        }
    }
    output.output.flush().map_err(Lost::Io)?;
    Ok((output.digest.into(), output.size))
}

struct Hashed<'a> {
    output: &'a mut dyn Write,
    digest: Sha256,
    size: u64,
}

impl Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), Lost> {
        self.output.write_all(bytes).map_err(Lost::Io)?;
        self.digest.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: usize = 1 << 20;

    /// Bytes that compress about as well as programs do.
    fn sample(length: usize) -> Vec<u8> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state >> 16
        };
        let words: Vec<Vec<u8>> =
            (0..500).map(|_| (0..next() % 12 + 2).map(|_| (next() % 64 + 48) as u8).collect()).collect();
        let mut bytes = Vec::with_capacity(length + 16);
        while bytes.len() < length {
            bytes.extend_from_slice(&words[(next() % 500) as usize]);
        }
        bytes.truncate(length);
        bytes
    }

    fn pack_all(compression: Compression, bytes: &[u8]) -> (Vec<u8>, Packed) {
        let mut output = Vec::new();
        let failed = |error| panic!("{error}");
        let cancel = CancellationToken::new();
        let packed = pack(compression, &mut output, &failed, &cancel, |feed| {
            // In odd pieces.
            bytes.chunks(70_001).try_for_each(|piece| feed.write(piece))
        });
        (output, packed.expect("in memory"))
    }

    #[test]
    fn what_is_packed_unpacks_to_what_was_fed() {
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 12_345] {
            let bytes = sample(length);
            for compression in [Compression::Gzip, Compression::Zstd, Compression::None] {
                let (output, packed) = pack_all(compression, &bytes);
                let mut unpacked = Vec::new();
                match compression {
                    Compression::Gzip => flate2::read::MultiGzDecoder::new(&*output).read_to_end(&mut unpacked),
                    Compression::Zstd => zstd::stream::read::Decoder::new(&*output)
                        .and_then(|mut decoder| decoder.read_to_end(&mut unpacked)),
                    Compression::None => (&*output).read_to_end(&mut unpacked),
                }
                .expect("it is whole");
                assert!(unpacked == bytes, "{compression:?} {length}");
                let expected =
                    Packed { unpacked: Digest::of(&bytes), stored: Digest::of(&output), size: output.len() as u64 };
                assert_eq!(packed, expected);
                assert_eq!(pack_all(compression, &bytes).1, expected, "the same bytes each time");
            }
        }
    }

    #[test]
    fn gzip_packs_about_as_small_as_others() {
        let bytes = sample(4 * CHUNK);
        let mut whole = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
        whole.write_all(&bytes).expect("in memory");
        let (whole, ours) = (whole.finish().expect("in memory").len(), pack_all(Compression::Gzip, &bytes).0.len());
        assert!(ours < whole + whole / 20, "{ours} instead of {whole}");
    }

    #[test]
    fn a_full_disk_and_a_failing_producer_end_it() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let cancel = CancellationToken::new();
        let bytes = sample(CHUNK);
        let full = pack(Compression::None, &mut Full(3 * CHUNK), &ExportError::Stream, &cancel, |feed| {
            (0..100).try_for_each(|_| feed.write(&bytes))
        });
        assert!(matches!(full, Err(ExportError::Stream(error)) if error.kind() == io::ErrorKind::StorageFull));
        let failed = pack(Compression::Gzip, &mut Vec::new(), &ExportError::Stream, &cancel, |feed| {
            (0..10).try_for_each(|_| feed.write(&bytes))?;
            Err(ExportError::NoTree)
        });
        assert!(matches!(failed, Err(ExportError::NoTree)));
        cancel.cancel();
        let cancelled = pack(Compression::Zstd, &mut Vec::new(), &ExportError::Stream, &cancel, |feed| {
            (0..100).try_for_each(|_| feed.write(&bytes))
        });
        assert!(cancelled.is_err_and(|error| error.is_cancelled()));
    }
}
