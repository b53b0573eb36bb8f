//! SHA-256 digests as images write them.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::tree::shown;

/// The SHA-256 digest of a blob: `sha256:` and 64 hex digits.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct Digest([u8; 32]);

/// A text that is not a digest that can be checked here.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not a digest: `sha256:` and 64 lower-case hex digits")]
pub struct DigestError(String);

impl Digest {
    /// Returns the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Returns the 64 hex digits: the blob's file name.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

/// Returns `bytes` as lower-case hex digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let bad = || DigestError(shown(text.as_bytes()));
        let digits = text.strip_prefix("sha256:").ok_or_else(bad)?.as_bytes();
        // Strict, because the digits become a file name.
        if digits.len() != 64 || !digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            let pair = str::from_utf8(pair).expect("hex digits are ASCII");
            *byte = u8::from_str_radix(pair, 16).expect("two hex digits");
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Sha256> for Digest {
    fn from(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }
}

/// Which digest to take of a stream.
pub(crate) enum Hasher {
    /// For blobs and layers.
    Sha256(Sha256),
    /// For archives that are identified by us.
    Blake3(Box<blake3::Hasher>),
    /// When nobody asks.
    None,
}

/// What a [`Hasher`] found.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Hash {
    Sha256(Digest),
    Blake3([u8; 32]),
    None,
}

impl Hasher {
    /// Returns the hasher that can confirm `expected`.
    pub(crate) fn for_hash(expected: Hash) -> Self {
        match expected {
            Hash::Sha256(_) => Self::Sha256(Sha256::new()),
            Hash::Blake3(_) => Self::Blake3(Box::new(blake3::Hasher::new())),
            Hash::None => Self::None,
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Blake3(hasher) => drop(hasher.update(bytes)),
            Self::None => {}
        }
    }

    pub(crate) fn finish(self) -> Hash {
        match self {
            Self::Sha256(hasher) => Hash::Sha256(Digest(hasher.finalize().into())),
            Self::Blake3(hasher) => Hash::Blake3(hasher.finalize().into()),
            Self::None => Hash::None,
        }
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Blake3(bytes) => write!(f, "blake3:{}", hex(bytes)),
            Self::None => f.write_str("none"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_reads_what_it_prints() {
        let digest = Digest::of(b"");
        assert_eq!(digest.to_string(), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }

    #[test]
    fn a_digest_cannot_be_a_path() {
        for text in ["sha256:../../etc/passwd", "sha512:00", "", "sha256:", "md5:d41d8cd98f00b204e9800998ecf8427e"] {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<Digest>().is_err());
    }
}
