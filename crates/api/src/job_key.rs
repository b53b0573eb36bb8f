//! What jobs are called for their whole life.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// Names a job, whatever becomes of its connections, its workers and its scheduler: 80 random bits, chosen by its client. It is no secret:
/// only the client whose job it is can do something with it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobKey(pub [u8; 10]);

/// What is not the name of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the id of a job is 20 hexadecimal digits")]
pub struct JobKeyError;

impl JobKey {
    /// Returns a name that no job has.
    pub fn random() -> Self {
        Self(crate::key::random())
    }

    pub(crate) fn read(bytes: &[u8]) -> Result<Self, capnp::Error> {
        bytes.try_into().map(Self).map_err(|_| capnp::Error::failed("the id of a job is 10 bytes".to_owned()))
    }
}

impl fmt::Display for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JobKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for JobKey {
    type Err = JobKeyError;

    fn from_str(text: &str) -> Result<Self, JobKeyError> {
        let mut bytes = [0; 10];
        if text.len() != 20 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(JobKeyError);
        }
        for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digits = str::from_utf8(digits).map_err(|_| JobKeyError)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| JobKeyError)?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_understood() {
        let key = JobKey([0, 1, 2, 3, 4, 5, 6, 7, 8, 255]);
        assert_eq!(key.to_string(), "000102030405060708ff");
        assert_eq!("000102030405060708FF".parse(), Ok(key));
        for wrong in [
            "",
            "00010203040506070",
            "000102030405060708f",
            "000102030405060708fg",
            "+0010203040506070809",
            "é00102030405060708f",
        ] {
            assert_eq!(wrong.parse::<JobKey>(), Err(JobKeyError), "{wrong}");
        }
        assert_ne!(JobKey::random(), JobKey::random());
    }
}
