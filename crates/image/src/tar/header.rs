//! The 512 bytes before each member.

use super::TarError;

pub(super) const BLOCK: usize = 512;

/// One header block, checked against its checksum.
pub(super) struct Header<'a> {
    bytes: &'a [u8; BLOCK],
    offset: u64,
}

/// Which of the dialects a header is written in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Dialect {
    /// Before POSIX: nothing behind the link's name.
    Old,
    /// A prefix of 155 bytes continues the name to the left.
    Posix,
    /// `star`: a shorter prefix, then times.
    Star,
    /// Times and sparse files stand where POSIX has the prefix.
    Gnu,
}

impl<'a> Header<'a> {
    /// Returns the header in `bytes`, which lie at `offset`, or `None` for a block of zeros.
    pub(super) fn parse(bytes: &'a [u8; BLOCK], offset: u64) -> Result<Option<Self>, TarError> {
        if bytes.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let header = Self { bytes, offset };
        let bad = || if offset == 0 { TarError::NotTar } else { TarError::Checksum { offset } };
        let wanted = octal(&bytes[148..156]).ok_or_else(bad)?;
        // The sum is taken as if its own field were spaces. Some old programs summed signed bytes.
        let counted = bytes[..148].iter().chain(&[b' '; 8]).chain(&bytes[156..]);
        let unsigned: u64 = counted.clone().map(|&byte| u64::from(byte)).sum();
        let signed: i64 = counted.map(|&byte| i64::from(byte.cast_signed())).sum();
        if wanted != unsigned && i64::try_from(wanted) != Ok(signed) { Err(bad()) } else { Ok(Some(header)) }
    }

    fn dialect(&self) -> Dialect {
        match &self.bytes[257..265] {
            b"ustar  \0" => Dialect::Gnu,
            magic if magic[..5] != *b"ustar" => Dialect::Old,
            _ if self.bytes[508..] == *b"tar\0" => Dialect::Star,
            _ => Dialect::Posix,
        }
    }

    pub(super) fn kind(&self) -> u8 {
        self.bytes[156]
    }

    /// Returns true if the dialect marks directories by a slash at the end of the name.
    pub(super) fn is_old(&self) -> bool {
        self.dialect() == Dialect::Old
    }

    pub(super) fn name(&self) -> Vec<u8> {
        let name = until_nul(&self.bytes[..100]);
        let prefix = match self.dialect() {
            Dialect::Posix => until_nul(&self.bytes[345..500]),
            Dialect::Star => until_nul(&self.bytes[345..476]),
            Dialect::Old | Dialect::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link(&self) -> Vec<u8> {
        until_nul(&self.bytes[157..257]).to_vec()
    }

    pub(super) fn mode(&self) -> Result<u32, TarError> {
        // Some programs store the file's type above the twelve bits.
        Ok(u32::try_from(self.number(100..108, "mode")? & 0o7777).expect("twelve bits"))
    }

    pub(super) fn uid(&self) -> Result<u64, TarError> {
        self.number(108..116, "owner")
    }

    pub(super) fn gid(&self) -> Result<u64, TarError> {
        self.number(116..124, "group")
    }

    pub(super) fn size(&self) -> Result<u64, TarError> {
        self.number(124..136, "size")
    }

    pub(super) fn mtime(&self) -> Result<i64, TarError> {
        signed(&self.bytes[136..148]).ok_or(TarError::Field { offset: self.offset, field: "time" })
    }

    pub(super) fn device(&self) -> Result<(u32, u32), TarError> {
        let field = |range, field| {
            u32::try_from(self.number(range, field)?).map_err(|_| TarError::Field { offset: self.offset, field })
        };
        Ok((field(329..337, "device")?, field(337..345, "device")?))
    }

    /// Returns the four segments that a GNU header has room for, whether more follow, and the size
    /// of the whole file.
    pub(super) fn sparse(&self) -> Result<(&[u8], bool, u64), TarError> {
        Ok((&self.bytes[386..482], self.bytes[482] != 0, self.number(483..495, "size")?))
    }

    fn number(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, TarError> {
        let bad = TarError::Field { offset: self.offset, field };
        signed(&self.bytes[range]).and_then(|value| u64::try_from(value).ok()).ok_or(bad)
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len())]
}

/// Reads a field of octal digits, with spaces or NULs around. An empty field is zero.
fn octal(field: &[u8]) -> Option<u64> {
    let start = field.iter().position(|&byte| byte != b' ').unwrap_or(field.len());
    let digits = &field[start..];
    let end = digits.iter().position(|byte| !matches!(byte, b'0'..=b'7')).unwrap_or(digits.len());
    let rest_is_padding = digits[end..].iter().all(|byte| matches!(byte, 0 | b' '));
    // Twelve octal digits at most, so that nothing overflows.
    let value = digits[..end].iter().fold(0, |value, digit| value << 3 | u64::from(digit - b'0'));
    rest_is_padding.then_some(value)
}

/// Reads a field of octal digits, or of the big-endian two's complement that GNU tar writes for what
/// octal has no room for; its mark is the top bit.
pub(super) fn signed(field: &[u8]) -> Option<i64> {
    let first = *field.first()?;
    if first & 0x80 == 0 {
        return octal(field).and_then(|value| i64::try_from(value).ok());
    }
    // The mark itself is not part of the number; the bit below it is its sign.
    let negative = first & 0x40 != 0;
    let top = if negative { first } else { first & 0x7f };
    let start = if negative { -1_i128 } else { 0 };
    field[1..]
        .iter()
        .try_fold(start << 8 | i128::from(top), |value, &byte| {
            let value = value << 8 | i128::from(byte);
            (i64::MIN.into()..=i64::MAX.into()).contains(&value).then_some(value)
        })?
        .try_into()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_binary() {
        assert_eq!(signed(b"0000644\0"), Some(0o644));
        assert_eq!(signed(b"   644 \0"), Some(0o644));
        assert_eq!(signed(b"\0\0\0\0"), Some(0));
        assert_eq!(signed(b"12x\0"), None);
        assert_eq!(signed(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(signed(&[0xff; 12]), Some(-1));
        assert_eq!(signed(&[0x80, 0, 0, 0, 0xff, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
