//! What a disk was told, and what it may hold after losing power: the log that QEMU's `blklogwrites` keeps, in the format of
//! the kernel's `dm-log-writes` (`Documentation/admin-guide/device-mapper/log-writes.rst`).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::Random;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FORCED: u64 = 2;
const DISCARD: u64 = 4;
const MARK: u64 = 8;

/// What a disk has whole or not at all. Filesystems count on that for their superblocks.
const ATOMIC_BYTES: usize = 4096;

/// What a disk was told from when it was put in until its machine ended.
#[derive(Debug)]
pub struct WriteLog {
    file: File,
    entries: Vec<Entry>,
}

/// One thing that a disk was told.
#[derive(Clone, Copy, Debug)]
struct Entry {
    flags: u64,
    /// Where on the disk, in bytes.
    at: u64,
    length: u64,
    /// Where its data is in the log.
    data: u64,
}

impl WriteLog {
    /// Returns the options of a drive (see [`Guest::with_drive`](crate::Guest::with_drive)) that writes what `disk` is told
    /// to `log` as well. Both are files that exist; the log is empty.
    pub fn drive(disk: &Path, log: &Path) -> String {
        let (disk, log) = (disk.display(), log.display());
        format!("driver=blklogwrites,file.driver=file,file.filename={disk},log.driver=file,log.filename={log}")
    }

    /// Reads a log whose machine has ended.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no log.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        let [magic, version, count, sector_bytes] = words(&file, 0)?;
        let sector_bytes = sector_bytes & u64::from(u32::MAX);
        if magic != MAGIC || version != 1 || sector_bytes < 512 {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "not a log of writes"));
        }
        let mut entries = Vec::new();
        let mut next = sector_bytes;
        for _ in 0..count {
            let [sector, sectors, flags, _] = words(&file, next)?;
            let data = next + sector_bytes;
            let entry = Entry { flags, at: sector * sector_bytes, length: sectors * sector_bytes, data };
            next = if flags & (DISCARD | MARK) == 0 { data + entry.length } else { data };
            if next > length {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the log of writes is cut off"));
            }
            entries.push(entry);
        }
        Ok(Self { file, entries })
    }

    /// Returns how many things the disk was told.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns true if it was told nothing.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns the numbers of the entries that asked for all before them to be safe.
    pub fn flushes(&self) -> Vec<usize> {
        (0..self.len()).filter(|&number| self.entries[number].flags & FLUSH != 0).collect()
    }

    /// Returns what was written at exactly this place, in order, each with its number in the log.
    ///
    /// # Errors
    ///
    /// The log cannot be read.
    pub fn written_at(&self, at: u64) -> io::Result<Vec<(usize, Vec<u8>)>> {
        let numbered = self.entries.iter().enumerate();
        let here = numbered.filter(|(_, entry)| entry.at == at && entry.length > 0 && entry.flags & DISCARD == 0);
        here.map(|(number, entry)| Ok((number, self.data(entry)?))).collect()
    }

    fn data(&self, entry: &Entry) -> io::Result<Vec<u8>> {
        let mut data = vec![0; usize::try_from(entry.length).expect("it was in memory once")];
        self.file.read_exact_at(&mut data, entry.data)?;
        Ok(data)
    }

    /// Applies entry `number` to `disk`; of its blocks those that `keep` says.
    fn apply(&self, number: usize, disk: &File, mut keep: impl FnMut() -> bool) -> io::Result<()> {
        let entry = &self.entries[number];
        if entry.length == 0 || entry.flags & (DISCARD | MARK) != 0 {
            // What is discarded may stay as it was.
            return Ok(());
        }
        for (block, at) in self.data(entry)?.chunks(ATOMIC_BYTES).zip((entry.at..).step_by(ATOMIC_BYTES)) {
            if keep() {
                disk.write_all_at(block, at)?;
            }
        }
        Ok(())
    }
}

/// How much a disk has of what it was told after its last flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All: the machine crashed, the disk did not.
    Nothing,
    /// Nothing.
    Everything,
    /// Some of the writes, and of some of these a part.
    Some,
}

/// A disk at one moment after another: power is cut at each of them.
#[derive(Debug)]
pub struct PowerCuts<'a> {
    log: &'a WriteLog,
    /// The disk with all up to a flush.
    safe: PathBuf,
    applied: usize,
}

impl<'a> PowerCuts<'a> {
    /// Starts with the disk before it was told anything, the file `disk`, which is then changed.
    pub fn new(log: &'a WriteLog, disk: PathBuf) -> Self {
        Self { log, safe: disk, applied: 0 }
    }

    /// Makes the file `to` what the disk may be if power is cut after it was told `told` things, no fewer than at the cut
    /// before.
    ///
    /// # Errors
    ///
    /// A file cannot be read or written.
    pub fn cut(&mut self, told: usize, loss: Loss, random: &mut Random, to: &Path) -> io::Result<()> {
        let told_so_far = &self.log.entries[..told];
        let flushed = told_so_far.iter().rposition(|entry| entry.flags & FLUSH != 0).unwrap_or(0);
        let safe = File::options().write(true).open(&self.safe)?;
        for number in self.applied..flushed {
            self.log.apply(number, &safe, || true)?;
        }
        self.applied = self.applied.max(flushed);
        // A new file: the old one may still be in use. It has holes, and they stay.
        let _ = std::fs::remove_file(to);
        crate::loopfs::run(std::process::Command::new("cp").arg("--sparse=always").arg(&self.safe).arg(to))?;
        let disk = File::options().write(true).open(to)?;
        for number in flushed..told {
            let is_forced = self.log.entries[number].flags & FORCED != 0;
            let is_kept = is_forced || loss == Loss::Nothing || loss == Loss::Some && random.below(2) == 0;
            if is_kept {
                let is_torn = !is_forced && loss == Loss::Some && random.below(8) == 0;
                self.log.apply(number, &disk, || !is_torn || random.below(2) == 0)?;
            }
        }
        Ok(())
    }
}

/// Reads four numbers, little-endian.
fn words(file: &File, at: u64) -> io::Result<[u64; 4]> {
    let mut bytes = [0; 32];
    file.read_exact_at(&mut bytes, at)?;
    let word = |number: usize| u64::from_le_bytes(bytes[8 * number..][..8].try_into().expect("eight bytes"));
    Ok([0, 1, 2, 3].map(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A log of writes of one sector each: flags, and the byte that it is filled with, at the sector of its number.
    fn log(path: &Path, told: &[(u64, u8)]) -> WriteLog {
        let mut bytes = Vec::new();
        let sector = |words: [u64; 4]| {
            let mut sector: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            sector.resize(512, 0);
            sector
        };
        bytes.extend(sector([MAGIC, 1, told.len() as u64, 512]));
        for (number, (flags, byte)) in told.iter().enumerate() {
            let is_write = *byte != 0;
            bytes.extend(sector([number as u64, u64::from(is_write), *flags, 0]));
            bytes.extend(vec![*byte; if is_write { 512 } else { 0 }]);
        }
        fs::write(path, bytes).unwrap();
        WriteLog::read(path).unwrap()
    }

    #[test]
    fn what_was_flushed_or_forced_stays_and_the_rest_may_go() {
        let dir = tempfile::tempdir().unwrap();
        let [path, disk, cut] = ["log", "disk", "cut"].map(|name| dir.path().join(name));
        let log = log(&path, &[(0, 1), (0, 2), (FLUSH, 0), (0, 4), (FORCED, 5), (0, 6)]);
        fs::write(&disk, [9; 6 * 512]).unwrap();
        let mut cuts = PowerCuts::new(&log, disk);
        let mut random = Random::new(1);
        let mut after = |told, loss| {
            cuts.cut(told, loss, &mut random, &cut).unwrap();
            let disk = fs::read(&cut).unwrap();
            [0, 1, 3, 4, 5].map(|sector| disk[sector * 512])
        };
        assert_eq!(after(2, Loss::Everything), [9, 9, 9, 9, 9]);
        assert_eq!(after(2, Loss::Nothing), [1, 2, 9, 9, 9]);
        assert_eq!(after(3, Loss::Everything), [1, 2, 9, 9, 9]);
        assert_eq!(after(6, Loss::Everything), [1, 2, 9, 5, 9]);
        let some: Vec<_> = (0..50).map(|_| after(6, Loss::Some)).collect();
        assert!(some.iter().all(|disk| disk[..2] == [1, 2] && disk[3] == 5));
        assert!(some.iter().any(|disk| disk[2] == 4) && some.iter().any(|disk| disk[2] == 9));
        assert_eq!(log.written_at(4 * 512).unwrap(), [(4, vec![5; 512])]);
    }

    #[test]
    fn what_is_no_log_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, [0; 1024]).unwrap();
        assert_eq!(WriteLog::read(&path).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
