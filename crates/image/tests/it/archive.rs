//! Archives made member by member, with whatever names and headers a test wants.

use tar::{EntryType, Header};

/// An archive being written.
#[derive(Default)]
pub(crate) struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Adds a member whose header `edit` may change at will.
    pub(crate) fn raw(mut self, kind: u8, name: &[u8], content: &[u8], edit: impl FnOnce(&mut Header)) -> Self {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.as_gnu_mut().expect("a GNU header").name[..name.len()].copy_from_slice(name);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(rustix::process::geteuid().as_raw().into());
        header.set_gid(rustix::process::getegid().as_raw().into());
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        edit(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &str) -> Self {
        self.raw(b'0', name.as_bytes(), content.as_bytes(), |_| {})
    }

    pub(crate) fn dir(self, name: &str) -> Self {
        self.raw(b'5', name.as_bytes(), b"", |_| {})
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Self {
        self.link(b'2', name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Self {
        self.link(b'1', name, target)
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Self {
        self.raw(kind, name.as_bytes(), b"", |header| {
            header.as_gnu_mut().expect("a GNU header").linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    /// Adds pax records for the next member.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let mut content = Vec::new();
        for (key, value) in records {
            // Key, value, space, equals sign and newline, and the digits of the length itself.
            let body = key.len() + value.len() + 3;
            let length = (1..).find(|digits| (body + digits).to_string().len() == *digits).expect("some length") + body;
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.raw(b'x', b"pax", &content, |_| {})
    }

    /// Adds bytes as they are.
    pub(crate) fn bytes(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}
