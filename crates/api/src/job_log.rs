//! What a job prints, for whoever reads it while it grows and afterwards.
//!
//! A log is a file, so its memory is the kernel's page cache; one without a name is gone with its last handle. Readers never hold up who
//! appends, and each reads where it likes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::{Errno, ReadWriteFlags};
use tokio::sync::watch;

use crate::interface::{LogChunk, MAX_CHUNK};

/// The log of one job. Clones are handles of the same log.
#[derive(Clone, Debug)]
pub struct JobLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: Arc<File>,
    /// How many bytes are kept of what is appended.
    limit: u64,
    /// Readers get what is [shown](JobLog::show), not all that there is.
    is_held_back: bool,
    writer: Mutex<Writer>,
    progress: watch::Sender<Progress>,
}

/// What only who appends needs to know.
#[derive(Debug, Default)]
struct Writer {
    length: u64,
    /// The limit was reached: what comes is dropped.
    full: bool,
    ended: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// All before this is in the file.
    length: u64,
    /// All before this is for readers.
    shown: u64,
    ended: bool,
}

impl JobLog {
    /// Makes an empty log in a file without a name in `dir`, which keeps `limit` bytes.
    ///
    /// # Errors
    ///
    /// No file can be made in `dir`.
    pub fn new(dir: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self::over(tempfile::tempfile_in(dir)?, limit, false, Writer::default()))
    }

    /// Opens the log in the file at `path`, to append to it: an empty one if there is none. Nobody else may append to it meanwhile.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or made.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        Self::open_to_append(path, limit, false)
    }

    /// The same, but readers get what is there now, and of what is appended as much as is [shown](Self::show), until the log has ended.
    ///
    /// # Errors
    ///
    /// The file cannot be opened or made.
    pub fn open_held_back(path: &Path, limit: u64) -> io::Result<Self> {
        Self::open_to_append(path, limit, true)
    }

    fn open_to_append(path: &Path, limit: u64, is_held_back: bool) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self::over(file, limit, is_held_back, Writer { length, full: length > limit, ended: false }))
    }

    /// Opens the log of a job that has ended.
    ///
    /// # Errors
    ///
    /// There is no such file, or it cannot be read.
    pub fn complete(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok(Self::over(file, length, false, Writer { length, full: true, ended: true }))
    }

    fn over(file: File, limit: u64, is_held_back: bool, writer: Writer) -> Self {
        let Writer { length, ended, .. } = writer;
        let progress = watch::Sender::new(Progress { length, shown: length, ended });
        let (file, writer) = (Arc::new(file), Mutex::new(writer));
        Self { shared: Arc::new(Shared { file, limit, is_held_back, writer, progress }) }
    }

    /// Lets readers of a log that is [held back](Self::open_held_back) have all before `end`.
    pub fn show(&self, end: u64) {
        self.shared.progress.send_modify(|progress| progress.shown = progress.shown.max(end.min(progress.length)));
    }

    /// Adds `bytes`. Beyond the limit they are dropped, and a last line says so. What comes after the end is dropped too.
    ///
    /// It writes to the page cache, so it waits only if the disk cannot keep up.
    ///
    /// # Errors
    ///
    /// The file cannot be written: a full disk. What was appended before can be read.
    pub fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut writer = self.writer();
        if writer.full || writer.ended {
            return Ok(());
        }
        let room = self.shared.limit.saturating_sub(writer.length);
        let kept = usize::try_from(room).map_or(bytes, |room| &bytes[..room.min(bytes.len())]);
        self.write(&mut writer, kept)?;
        if kept.len() < bytes.len() {
            writer.full = true;
            let limit = self.shared.limit;
            self.write(
                &mut writer,
                format!("\n[the log is longer than {limit} bytes; the rest is not kept]\n").as_bytes(),
            )?;
        }
        Ok(())
    }

    /// Ends the log with `last`, whatever the limit. Readers get the rest, and then its end. Only the first call does something.
    ///
    /// # Errors
    ///
    /// `last` cannot be written. The log has ended nevertheless.
    pub fn end(&self, last: &[u8]) -> io::Result<()> {
        let mut writer = self.writer();
        if writer.ended {
            return Ok(());
        }
        let written = self.write(&mut writer, last);
        writer.ended = true;
        self.shared.progress.send_modify(|progress| (progress.shown, progress.ended) = (progress.length, true));
        written
    }

    /// Returns what stands at `start`, and where to read on. A negative `start` counts from what is the end now.
    ///
    /// It waits until there is something after `start`, or the log has ended; then there is nothing. It returns [`MAX_CHUNK`] bytes at most,
    /// and may be dropped while it waits.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub async fn read(&self, start: i64) -> io::Result<(Vec<u8>, u64)> {
        let mut progress = self.shared.progress.subscribe();
        let start = match u64::try_from(start) {
            Ok(start) => start,
            Err(_) => progress.borrow().shown.saturating_sub(start.unsigned_abs()),
        };
        let known = progress.wait_for(|now| now.shown > start || now.ended).await;
        let length = known.expect("this handle keeps the sender").shown;
        let Some(more) = length.checked_sub(start).filter(|&more| more > 0) else { return Ok((Vec::new(), start)) };
        let wanted = usize::try_from(more).map_or(MAX_CHUNK, |more| more.min(MAX_CHUNK));
        let bytes = read_at(&self.shared.file, start, wanted).await?;
        let next = start + bytes.len() as u64;
        Ok((bytes, next))
    }

    /// Returns what stands at `start` now, `most` bytes of it or what there is. Waits for nothing but the disk.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub async fn part(&self, start: u64, most: usize) -> io::Result<Vec<u8>> {
        let there = usize::try_from(self.length().saturating_sub(start)).unwrap_or(most);
        if there == 0 { Ok(Vec::new()) } else { read_at(&self.shared.file, start, there.min(most)).await }
    }

    /// Answers `Job.log`.
    ///
    /// # Errors
    ///
    /// As [`read`](Self::read).
    pub async fn chunk(&self, start: i64) -> io::Result<LogChunk> {
        let (bytes, next) = self.read(start).await?;
        Ok(LogChunk { bytes, next: i64::try_from(next).unwrap_or(i64::MAX) })
    }

    /// Waits until everything that was appended survives the machine. Blocks.
    ///
    /// # Errors
    ///
    /// The disk is full or broken.
    pub fn sync(&self) -> io::Result<()> {
        self.shared.file.sync_data()
    }

    /// Returns true if nothing more is kept of what is appended.
    pub fn is_full(&self) -> bool {
        let writer = self.writer();
        writer.full || writer.ended
    }

    /// Returns how many bytes there are.
    pub fn length(&self) -> u64 {
        self.shared.progress.borrow().length
    }

    fn writer(&self) -> std::sync::MutexGuard<'_, Writer> {
        // What the lock guards is right after each of its statements.
        self.shared.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, writer: &mut Writer, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.shared.file.write_all_at(bytes, writer.length)?;
        writer.length += bytes.len() as u64;
        let length = writer.length;
        self.shared.progress.send_modify(|progress| {
            progress.length = length;
            if !self.shared.is_held_back {
                progress.shown = length;
            }
        });
        Ok(())
    }
}

/// So that programs can be told to write into it.
impl Write for &JobLog {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads up to `length` bytes that are in the file: at once if they are in memory, which they nearly always are.
async fn read_at(file: &Arc<File>, start: u64, length: usize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; length];
    match rustix::io::preadv2(&**file, &mut [io::IoSliceMut::new(&mut bytes)], start, ReadWriteFlags::NOWAIT) {
        Ok(read) if read > 0 => {
            bytes.truncate(read);
            return Ok(bytes);
        }
        // Not in memory, or a filesystem that cannot tell.
        Ok(_) | Err(Errno::AGAIN | Errno::OPNOTSUPP | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let file = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || file.read_exact_at(&mut bytes, start).map(|()| bytes));
    read.await.map_err(io::Error::from)?
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const PLENTY: u64 = 1 << 40;

    fn log(limit: u64) -> JobLog {
        JobLog::new(&std::env::temp_dir(), limit).unwrap()
    }

    /// Reads to the end as a client does.
    async fn all(log: &JobLog) -> Vec<u8> {
        let (mut text, mut start) = (Vec::new(), 0);
        loop {
            let (bytes, next) = log.read(start).await.unwrap();
            if bytes.is_empty() {
                return text;
            }
            assert!(bytes.len() <= MAX_CHUNK);
            text.extend(bytes);
            start = i64::try_from(next).unwrap();
        }
    }

    #[tokio::test]
    async fn a_reader_gets_what_is_there_and_where_to_go_on() {
        let log = log(PLENTY);
        log.append(b"Building on w1\n").unwrap();
        assert_eq!(log.read(0).await.unwrap(), (b"Building on w1\n".to_vec(), 15));
        assert_eq!(log.read(9).await.unwrap(), (b"on w1\n".to_vec(), 15));
        log.append(&[b'x'; 2 * MAX_CHUNK]).unwrap();
        assert_eq!(log.read(15).await.unwrap(), (vec![b'x'; MAX_CHUNK], 15 + MAX_CHUNK as u64));
    }

    #[tokio::test]
    async fn a_negative_start_counts_from_the_end() {
        let log = log(PLENTY);
        log.append(b"one two").unwrap();
        assert_eq!(log.read(-3).await.unwrap(), (b"two".to_vec(), 7));
        assert_eq!(log.read(-100).await.unwrap(), (b"one two".to_vec(), 7));
        assert_eq!(log.read(i64::MIN).await.unwrap(), (b"one two".to_vec(), 7));
    }

    #[tokio::test]
    async fn a_reader_at_the_end_waits_for_more_or_for_the_end() {
        let log = log(PLENTY);
        log.append(b"a").unwrap();
        let more = tokio::spawn({
            let log = log.clone();
            async move { log.read(1).await.unwrap() }
        });
        tokio::task::yield_now().await;
        assert!(!more.is_finished());
        log.append(b"b").unwrap();
        assert_eq!(more.await.unwrap(), (b"b".to_vec(), 2));

        let beyond = tokio::spawn({
            let log = log.clone();
            async move { log.read(1000).await.unwrap() }
        });
        tokio::task::yield_now().await;
        assert!(!beyond.is_finished());
        log.end(b"").unwrap();
        assert_eq!(beyond.await.unwrap(), (vec![], 1000));
        assert_eq!(log.read(2).await.unwrap(), (vec![], 2));
        assert_eq!(log.read(0).await.unwrap(), (b"ab".to_vec(), 2));
    }

    #[tokio::test]
    async fn readers_of_a_log_that_is_held_back_get_what_is_shown_and_at_its_end_the_rest() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "one ").unwrap();
        let log = JobLog::open_held_back(&path, PLENTY).unwrap();
        log.append(b"two three").unwrap();
        assert_eq!(log.length(), 13);
        assert_eq!(log.read(0).await.unwrap(), (b"one ".to_vec(), 4));
        assert_eq!(log.read(-2).await.unwrap(), (b"e ".to_vec(), 4));
        log.show(7);
        log.show(5);
        assert_eq!(log.read(4).await.unwrap(), (b"two".to_vec(), 7));
        // No more than there is.
        log.show(100);
        log.append(b" four").unwrap();
        assert_eq!(log.read(7).await.unwrap(), (b" three".to_vec(), 13));
        log.end(b"").unwrap();
        assert_eq!(log.read(13).await.unwrap(), (b" four".to_vec(), 18));
    }

    #[tokio::test]
    async fn a_log_beyond_its_limit_says_so_and_still_gets_its_last_line() {
        let log = log(10);
        log.append(b"0123456").unwrap();
        log.append(b"789abcdef").unwrap();
        log.append(b"more").unwrap();
        log.end(b"Job failed\n").unwrap();
        log.append(b"too late").unwrap();
        log.end(b"again").unwrap();
        let text = String::from_utf8(all(&log).await).unwrap();
        assert_eq!(text, "0123456789\n[the log is longer than 10 bytes; the rest is not kept]\nJob failed\n");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn several_readers_each_get_all_of_it() {
        let log = log(PLENTY);
        let readers: Vec<_> = (0..4)
            .map(|_| {
                let log = log.clone();
                tokio::spawn(async move { all(&log).await })
            })
            .collect();
        let mut whole = Vec::new();
        for number in 0..20_000 {
            let line = format!("line {number}\n");
            log.append(line.as_bytes()).unwrap();
            whole.extend(line.bytes());
        }
        log.end(b"end\n").unwrap();
        whole.extend(b"end\n");
        for reader in readers {
            assert!(reader.await.unwrap() == whole);
        }
    }

    /// How fast a gigabyte goes through; not run with the others. `cargo test --release -- --ignored --nocapture`.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[ignore = "it measures"]
    async fn how_fast_it_is() {
        const BYTES: usize = 1 << 30;
        fn rate(what: &str, took: Duration) {
            println!("{what}: {:.2} GB/s", BYTES as f64 / 1e9 / took.as_secs_f64());
        }
        let log = log(PLENTY);
        let begun = std::time::Instant::now();
        let reader = tokio::spawn({
            let log = log.clone();
            async move {
                let (mut total, mut start) = (0, 0);
                loop {
                    let (bytes, next) = log.read(start).await.unwrap();
                    if bytes.is_empty() {
                        return total;
                    }
                    total += bytes.len();
                    start = i64::try_from(next).unwrap();
                }
            }
        });
        let piece = vec![b'x'; 64 << 10];
        for _ in 0..BYTES / piece.len() {
            log.append(&piece).unwrap();
        }
        rate("append, beside a reader", begun.elapsed());
        log.end(b"").unwrap();
        assert_eq!(reader.await.unwrap(), BYTES);
        rate("append and read, beside each other", begun.elapsed());
        let begun = std::time::Instant::now();
        let mut start = 0;
        while start < BYTES as u64 {
            start = log.read(i64::try_from(start).unwrap()).await.unwrap().1;
        }
        rate("read", begun.elapsed());
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap());
    }
}
