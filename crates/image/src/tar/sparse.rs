//! Where the stored parts of a sparse file go. There are four ways to write it down: GNU's own header,
//! and three generations of pax records.

use super::pax::decimal;
use super::{Segment, header};

/// The pax records about a sparse file.
#[derive(Clone, Debug, Default)]
pub(super) struct PaxSparse {
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    major: u64,
    /// Generations 0.0 and 0.1: the map itself, as offset, length, offset, length.
    numbers: Vec<u64>,
    seen: bool,
}

/// Where the map of a sparse file stands.
pub(super) enum PaxMap {
    NotSparse,
    Here(Vec<Segment>),
    /// Before the content, as lines of decimal numbers in whole blocks.
    InData,
}

impl PaxSparse {
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), &'static str> {
        const BAD: &str = "pax sparse file";
        let number = || decimal(value).ok_or(BAD);
        self.seen = true;
        match key {
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(number()?),
            b"major" => self.major = number()?,
            b"offset" | b"numbytes" => self.numbers.push(number()?),
            b"map" if value.is_empty() => self.numbers.clear(),
            b"map" => {
                let numbers: Option<Vec<u64>> = value.split(|&byte| byte == b',').map(decimal).collect();
                self.numbers = numbers.ok_or(BAD)?;
            }
            // `minor` and the count of segments say nothing that is needed.
            _ => {}
        }
        Ok(())
    }

    pub(super) fn map(&self) -> Result<PaxMap, &'static str> {
        Ok(match (self.seen, self.major) {
            (false, _) => PaxMap::NotSparse,
            (true, 0) => PaxMap::Here(pairs(&self.numbers).ok_or("pax sparse file")?),
            (true, 1) => PaxMap::InData,
            (true, _) => return Err("pax sparse file"),
        })
    }
}

/// Makes segments of offset, length, offset, length.
pub(super) fn pairs(numbers: &[u64]) -> Option<Vec<Segment>> {
    let (pairs, []) = numbers.as_chunks::<2>() else { return None };
    Some(pairs.iter().map(|&[offset, length]| Segment { offset, length }).collect())
}

/// Reads segments from a GNU header: twelve bytes of offset and of length each. Empty ones are unused.
pub(super) fn gnu(fields: &[u8], segments: &mut Vec<Segment>) -> Result<(), &'static str> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let number = |field| header::signed(field).and_then(|value| u64::try_from(value).ok());
        match (number(&pair[..12]), number(&pair[12..])) {
            (Some(offset), Some(length)) => segments.push(Segment { offset, length }),
            _ => return Err("sparse file"),
        }
    }
    Ok(())
}

/// Returns true if `segments` are in order, end within `size`, and store just `stored` bytes.
pub(super) fn fits(segments: &[Segment], size: u64, stored: u64) -> bool {
    let mut end = 0;
    let mut sum = 0_u64;
    for segment in segments {
        let Some(next) = segment.offset.checked_add(segment.length) else { return false };
        if segment.offset < end || next > size {
            return false;
        }
        end = next;
        // Cannot overflow: disjoint parts of `size`.
        sum += segment.length;
    }
    sum == stored
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_must_be_in_order_and_complete() {
        let map = |numbers: &[u64]| pairs(numbers).expect("pairs");
        assert!(fits(&map(&[0, 5, 10, 5]), 20, 10));
        assert!(!fits(&map(&[0, 5, 4, 5]), 20, 10));
        assert!(!fits(&map(&[0, 5, 10, 5]), 12, 10));
        assert!(!fits(&map(&[0, 5]), 20, 6));
        assert!(!fits(&map(&[u64::MAX, 5]), u64::MAX, 5));
        assert!(pairs(&[1]).is_none());
    }
}
