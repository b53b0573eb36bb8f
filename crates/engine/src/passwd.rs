//! Names and homes of users, as the image's `/etc/passwd` has them.

use std::io::{self, Read};
use std::os::fd::OwnedFd;

use bstr::{BString, ByteSlice};
use rustix::fs::OFlags;
use rustix::io::Errno;

/// A stranger's file is not read further than this.
const LONGEST: u64 = 1 << 20;

/// One line of the file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: BString,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) home: BString,
}

/// Reads `/etc/passwd` of the image whose root is open. A missing file, and lines that are no entries,
/// count for nothing.
pub(crate) fn read(root: &OwnedFd) -> io::Result<Vec<Entry>> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = match crate::copy::open_in_root(root, b"/etc/passwd", flags) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => return Ok(Vec::new()),
        opened => std::fs::File::from(opened?),
    };
    if !file.metadata()?.is_file() {
        return Ok(Vec::new());
    }
    let mut text = Vec::new();
    file.take(LONGEST).read_to_end(&mut text)?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut fields = line.split_str(":");
    let name = fields.next()?.into();
    let number = |field: Option<&[u8]>| field?.to_str().ok()?.parse().ok();
    let (uid, gid) = (number(fields.nth(1))?, number(fields.next())?);
    Some(Entry { name, uid, gid, home: fields.nth(1)?.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_a_name_two_numbers_and_a_home() {
        let entry = parse(b"opam:x:1000:100:Opam:/home/opam:/bin/bash").unwrap();
        assert_eq!(entry, Entry { name: "opam".into(), uid: 1000, gid: 100, home: "/home/opam".into() });
        assert_eq!(parse(b"opam:x:1000"), None);
        assert_eq!(parse(b"+::::::"), None);
    }
}
