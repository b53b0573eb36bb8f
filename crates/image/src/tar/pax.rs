//! The records of pax extended headers: `LENGTH KEY=VALUE\n`.

use super::Time;
use super::sparse::PaxSparse;

/// What extended headers say about the next member. What they do not mention is `None`.
#[derive(Clone, Debug, Default)]
pub(super) struct Extended {
    pub(super) name: Option<Vec<u8>>,
    pub(super) link: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u64>,
    pub(super) gid: Option<u64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) sparse: PaxSparse,
}

impl Extended {
    /// Adds the records in `bytes`. Returns which part is wrong, if one is.
    pub(super) fn read(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        while !bytes.is_empty() {
            let space = bytes.iter().position(|&byte| byte == b' ').ok_or("pax record")?;
            let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok());
            let length = length.filter(|&length| length > space + 1 && length <= bytes.len()).ok_or("pax record")?;
            let (record, rest) = bytes.split_at(length);
            bytes = rest;
            let record = record[space + 1..].strip_suffix(b"\n").ok_or("pax record")?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or("pax record")?;
            self.set(&record[..equals], &record[equals + 1..])?;
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        // An empty value takes an earlier record back.
        let bytes = || (!value.is_empty()).then(|| value.to_vec());
        let number = |what| match value {
            [] => Ok(None),
            _ => decimal(value).map(Some).ok_or(what),
        };
        match key {
            b"path" => self.name = bytes(),
            b"linkpath" => self.link = bytes(),
            b"size" => self.size = number("pax size")?,
            b"uid" => self.uid = number("pax owner")?,
            b"gid" => self.gid = number("pax group")?,
            b"mtime" => {
                self.mtime = if value.is_empty() { None } else { Some(time(value).ok_or("pax time")?) };
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.xattrs.retain(|(known, _)| known != name);
                    self.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(name) = key.strip_prefix(b"GNU.sparse.") {
                    self.sparse.set(name, value)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the values that a global header may preset: those that make sense for every member.
    pub(super) fn into_global(self) -> Self {
        Self { uid: self.uid, gid: self.gid, mtime: self.mtime, ..Self::default() }
    }
}

/// Reads decimal digits, and nothing else.
pub(super) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// Reads `-12.345`.
fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let point = text.iter().position(|&byte| byte == b'.');
    let (whole, fraction) = point.map_or((text, &b""[..]), |point| (&text[..point], &text[point + 1..]));
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds =
        (0..9).fold(0, |value, place| value * 10 + fraction.get(place).map_or(0, |digit| u32::from(digit - b'0')));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_keep_their_nanoseconds() {
        assert_eq!(time(b"1.5"), Some(Time { seconds: 1, nanoseconds: 500_000_000 }));
        assert_eq!(time(b"-1.25"), Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(time(b"7.1234567899"), Some(Time { seconds: 7, nanoseconds: 123_456_789 }));
        assert_eq!(time(b"1.x"), None);
        assert_eq!(time(b""), None);
    }

    #[test]
    fn records_must_add_up() {
        let read = |bytes: &[u8]| Extended::default().read(bytes);
        assert_eq!(read(b"8 uid=1\n"), Ok(()));
        assert_eq!(read(b"9 uid=1\n"), Err("pax record"));
        assert_eq!(read(b"2 "), Err("pax record"));
        assert_eq!(read(b"99999999999999999999 a=b\n"), Err("pax record"));
        assert_eq!(read(b"8 uid=x\n"), Err("pax owner"));
    }
}
