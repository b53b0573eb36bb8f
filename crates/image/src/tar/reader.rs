//! Members, one after the other.

use std::io;

use super::header::{BLOCK, Header};
use super::pax::Extended;
use super::sparse::{self, PaxMap};
use super::{Entry, Kind, Segment, TarError, Time};

/// What the kernel accepts as a path, and as a link's target.
const NAME_LENGTH: usize = 4095;

/// Where the archive's bytes come from.
pub(crate) trait Source {
    /// Returns the next bytes, at least one, or none at the end.
    fn fill(&mut self) -> io::Result<&[u8]>;
    /// Passes over the first `count` of the bytes that [`Source::fill`] returned.
    fn consume(&mut self, count: usize);
    /// Passes over `count` bytes. Returns how many there were.
    fn skip(&mut self, count: u64) -> io::Result<u64> {
        let mut left = count;
        while left > 0 {
            let here = self.fill()?.len();
            if here == 0 {
                break;
            }
            let part = usize::try_from(left).map_or(here, |left| left.min(here));
            self.consume(part);
            left -= part as u64;
        }
        Ok(count - left)
    }
}

impl<S: Source> Source for &mut S {
    fn fill(&mut self) -> io::Result<&[u8]> {
        (**self).fill()
    }

    fn consume(&mut self, count: usize) {
        (**self).consume(count);
    }

    fn skip(&mut self, count: u64) -> io::Result<u64> {
        (**self).skip(count)
    }
}

/// Reads the members of one archive.
pub(crate) struct Reader<S> {
    source: S,
    /// How many bytes have been taken from the source.
    offset: u64,
    /// How much of the current member's stored content is still to come, and the padding after it.
    content: u64,
    padding: u64,
    entries: u64,
    max_entries: u64,
    max_extension: u64,
    global: Extended,
}

impl<S: Source> Reader<S> {
    pub(crate) fn new(source: S, limits: &crate::Limits) -> Self {
        Self {
            source,
            offset: 0,
            content: 0,
            padding: 0,
            entries: 0,
            max_entries: limits.entries,
            max_extension: limits.extended_header_bytes,
            global: Extended::default(),
        }
    }

    /// Returns the next member, passing over what is left of the current one.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extended = self.global.clone();
        // GNU's long names and pax records can stand side by side; pax wins.
        let (mut long_name, mut long_link) = (None, None);
        loop {
            self.skip(self.content + self.padding)?;
            (self.content, self.padding) = (0, 0);
            let offset = self.offset;
            let mut block = [0; BLOCK];
            if !self.block(&mut block)? {
                return Ok(None);
            }
            // One block of zeros is the end, although two should be there.
            let Some(header) = Header::parse(&block, offset)? else { return Ok(None) };
            self.entries += 1;
            if self.entries > self.max_entries {
                return Err(TarError::TooManyEntries(self.max_entries));
            }
            let size = header.size()?;
            let field = |field| TarError::Field { offset, field };
            match header.kind() {
                b'x' | b'X' => extended.read(&self.extension(size, offset)?).map_err(field)?,
                b'g' => {
                    let mut global = self.global.clone();
                    global.read(&self.extension(size, offset)?).map_err(field)?;
                    self.global = global.into_global();
                    extended = self.global.clone();
                }
                b'L' => long_name = Some(name_of(self.extension(size, offset)?)),
                b'K' => long_link = Some(name_of(self.extension(size, offset)?)),
                // The name of the volume.
                b'V' => self.set_content(size, offset)?,
                _ => {
                    extended.name = extended.name.take().or(long_name);
                    extended.link = extended.link.take().or(long_link);
                    return self.member(&header, extended, offset).map(Some);
                }
            }
        }
    }

    /// Returns the next part of the current member's stored content, or nothing at its end.
    pub(crate) fn content(&mut self) -> Result<&[u8], TarError> {
        if self.content == 0 {
            return Ok(&[]);
        }
        let bytes = self.source.fill().map_err(TarError::Read)?;
        if bytes.is_empty() {
            return Err(TarError::Truncated { offset: self.offset });
        }
        let length = usize::try_from(self.content).map_or(bytes.len(), |left| left.min(bytes.len()));
        Ok(&bytes[..length])
    }

    /// Passes over the first `count` bytes that [`Reader::content`] returned.
    pub(crate) fn consume(&mut self, count: usize) {
        self.source.consume(count);
        self.offset += count as u64;
        self.content -= count as u64;
    }

    /// Returns where the next bytes lie in the archive: at first, where the content starts.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    fn member(&mut self, header: &Header<'_>, extended: Extended, offset: u64) -> Result<Entry, TarError> {
        let field = |field| TarError::Field { offset, field };
        let id = |value: u64, name| u32::try_from(value).ok().filter(|&id| id != u32::MAX).ok_or(field(name));
        let stored = extended.size.map_or_else(|| header.size(), Ok)?;
        let name = extended.sparse.name.clone().or(extended.name).unwrap_or_else(|| header.name());
        let link = extended.link.unwrap_or_else(|| header.link());
        if name.len() > NAME_LENGTH || link.len() > NAME_LENGTH {
            return Err(TarError::NameTooLong { offset });
        }
        // Only pax can say this; it would end the name early.
        if name.contains(&0) || link.contains(&0) {
            return Err(field("name"));
        }
        let kind = match header.kind() {
            // Links and special files have no content, even if a size is given: for links it is that of the
            // target, as POSIX has it. An old name for a directory ends with a slash.
            b'0' | 0 | b'7' if header.is_old() && name.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' => {
                self.set_content(stored, offset)?;
                let (size, segments) = match extended.sparse.map().map_err(field)? {
                    PaxMap::NotSparse => (stored, None),
                    PaxMap::Here(segments) => (extended.sparse.real_size.unwrap_or(stored), Some(segments)),
                    PaxMap::InData => (extended.sparse.real_size.unwrap_or(stored), Some(self.map_in_data(offset)?)),
                };
                self.file(size, segments, offset)?
            }
            b'S' => {
                let (fields, mut more, size) = header.sparse()?;
                let mut segments = Vec::new();
                sparse::gnu(fields, &mut segments).map_err(field)?;
                while more {
                    let mut block = [0; BLOCK];
                    if !self.block(&mut block)? {
                        return Err(TarError::Truncated { offset: self.offset });
                    }
                    sparse::gnu(&block[..504], &mut segments).map_err(field)?;
                    more = block[504] != 0;
                    if self.offset - offset > self.max_extension {
                        return Err(TarError::ExtensionTooLong { offset, limit: self.max_extension });
                    }
                }
                self.set_content(stored, offset)?;
                self.file(size, Some(segments), offset)?
            }
            b'1' => Kind::HardLink(link),
            b'2' => Kind::Symlink(link),
            b'3' | b'4' => {
                let (major, minor) = header.device()?;
                if header.kind() == b'3' {
                    Kind::CharDevice { major, minor }
                } else {
                    Kind::BlockDevice { major, minor }
                }
            }
            b'5' => Kind::Directory,
            // GNU's directories with a list of their files.
            b'D' => {
                self.set_content(stored, offset)?;
                Kind::Directory
            }
            b'6' => Kind::Fifo,
            kind => return Err(TarError::Kind { offset, kind }),
        };
        Ok(Entry {
            name,
            kind,
            mode: header.mode()?,
            uid: id(extended.uid.map_or_else(|| header.uid(), Ok)?, "owner")?,
            gid: id(extended.gid.map_or_else(|| header.gid(), Ok)?, "group")?,
            mtime: match extended.mtime {
                Some(time) => time,
                None => Time { seconds: header.mtime()?, nanoseconds: 0 },
            },
            xattrs: extended.xattrs,
        })
    }

    fn file(&self, size: u64, segments: Option<Vec<Segment>>, offset: u64) -> Result<Kind, TarError> {
        match &segments {
            Some(segments) if !sparse::fits(segments, size, self.content) => {
                Err(TarError::Field { offset, field: "map of a sparse file" })
            }
            _ => Ok(Kind::File { size, segments }),
        }
    }

    /// Reads the map before the content of a sparse file: the count of segments, then their numbers.
    fn map_in_data(&mut self, offset: u64) -> Result<Vec<Segment>, TarError> {
        let bad = || TarError::Field { offset, field: "map of a sparse file" };
        let start = self.content;
        let mut numbers = Vec::new();
        let mut wanted = None;
        let mut digits = Vec::new();
        while wanted.is_none_or(|wanted| (numbers.len() as u64) < wanted) {
            let part = self.content()?;
            if part.is_empty() {
                return Err(bad());
            }
            let line = part.iter().position(|&byte| byte == b'\n');
            let taken = line.map_or(part.len(), |end| end + 1);
            digits.extend_from_slice(&part[..line.unwrap_or(taken)]);
            self.consume(taken);
            if start - self.content > self.max_extension {
                return Err(TarError::ExtensionTooLong { offset, limit: self.max_extension });
            }
            if line.is_some() {
                let number = super::pax::decimal(&digits).ok_or_else(bad)?;
                digits.clear();
                match wanted {
                    None => wanted = Some(number.checked_mul(2).ok_or_else(bad)?),
                    Some(_) => numbers.push(number),
                }
            }
        }
        let used = start - self.content;
        let rest = used.next_multiple_of(BLOCK as u64) - used;
        self.content = self.content.checked_sub(rest).ok_or_else(bad)?;
        self.skip(rest)?;
        sparse::pairs(&numbers).ok_or_else(bad)
    }

    /// Reads the whole content of a header that describes the next one.
    fn extension(&mut self, size: u64, offset: u64) -> Result<Vec<u8>, TarError> {
        if size > self.max_extension {
            return Err(TarError::ExtensionTooLong { offset, limit: self.max_extension });
        }
        self.set_content(size, offset)?;
        let mut bytes = Vec::new();
        loop {
            let part = self.content()?;
            if part.is_empty() {
                return Ok(bytes);
            }
            bytes.extend_from_slice(part);
            let length = part.len();
            self.consume(length);
        }
    }

    fn set_content(&mut self, size: u64, offset: u64) -> Result<(), TarError> {
        // So that sums of offsets cannot overflow.
        if size > u64::MAX / 4 || self.offset > u64::MAX / 4 {
            return Err(TarError::Field { offset, field: "size" });
        }
        self.content = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    fn skip(&mut self, count: u64) -> Result<(), TarError> {
        let skipped = self.source.skip(count).map_err(TarError::Read)?;
        self.offset += skipped;
        if skipped < count { Err(TarError::Truncated { offset: self.offset }) } else { Ok(()) }
    }

    /// Reads one block. Returns false at the end of the archive.
    fn block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut have = 0;
        while have < BLOCK {
            let part = self.source.fill().map_err(TarError::Read)?;
            let length = part.len().min(BLOCK - have);
            block[have..have + length].copy_from_slice(&part[..length]);
            self.source.consume(length);
            self.offset += length as u64;
            have += length;
            if length == 0 {
                return match (have, self.offset) {
                    (0, _) => Ok(false),
                    (_, short) if short < BLOCK as u64 => Err(TarError::NotTar),
                    _ => Err(TarError::Truncated { offset: self.offset }),
                };
            }
        }
        Ok(true)
    }
}

/// Cuts the NUL that ends GNU's long names.
fn name_of(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len()));
    bytes
}
