//! The secrets of a job, as files for the programs that it runs.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bstr::ByteSlice;
use kiln_api::Secret;
use tempfile::TempDir;
use thiserror::Error;

/// Why a job cannot have its secrets.
#[derive(Debug, Error)]
pub enum SecretError {
    /// It cannot be a file's name, or an option.
    #[error("`{id}` is no id of a secret: use letters, digits, `_`, `-` and `.`, and not `.` first")]
    Id {
        /// What the job has.
        id: String,
    },
    /// There are two of it.
    #[error("the secret `{id}` is given twice")]
    Twice {
        /// Its id.
        id: String,
    },
    /// The file cannot be written.
    #[error("cannot write the secret `{id}`")]
    Write {
        /// Its id.
        id: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl SecretError {
    /// Whether the job is wrong, and not the worker.
    pub fn is_the_jobs_fault(&self) -> bool {
        matches!(self, Self::Id { .. } | Self::Twice { .. })
    }
}

/// A directory with a file for each secret, named by its id, which only the worker's user can read. It is gone with this value.
#[derive(Debug)]
pub struct SecretFiles {
    directory: TempDir,
    ids: Vec<String>,
}

impl SecretFiles {
    /// Writes them in a directory of their own in `directory`.
    ///
    /// # Errors
    ///
    /// An id is none, or a file cannot be written. Nothing is left behind.
    pub fn write(directory: &Path, secrets: &[Secret]) -> Result<Self, SecretError> {
        let mut ids: Vec<String> = Vec::with_capacity(secrets.len());
        for secret in secrets {
            let id = secret.id.to_str_lossy().into_owned();
            let letters = |letter: u8| letter.is_ascii_alphanumeric() || b"_-.".contains(&letter);
            if id.is_empty() || id.starts_with('.') || id.len() > 200 || !id.bytes().all(letters) {
                return Err(SecretError::Id { id });
            }
            if ids.contains(&id) {
                return Err(SecretError::Twice { id });
            }
            ids.push(id);
        }
        let broken = |id: &str| {
            let id = id.to_owned();
            |source| SecretError::Write { id, source }
        };
        let first = ids.first().map_or("", |id| &**id);
        let made = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir_in(directory);
        let directory = made.map_err(broken(first))?;
        for (id, secret) in ids.iter().zip(secrets) {
            let file = File::options().write(true).create_new(true).mode(0o600).open(directory.path().join(id));
            file.and_then(|mut file| file.write_all(&secret.value)).map_err(broken(id))?;
        }
        Ok(Self { directory, ids })
    }

    /// Returns the directory.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the ids and their files.
    pub fn files(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        self.ids.iter().map(|id| (&**id, self.directory.path().join(id)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(id: &str) -> Secret {
        Secret { id: id.into(), value: "hush".into() }
    }

    #[test]
    fn a_secret_is_a_file_that_only_we_read_and_that_goes() {
        let dir = tempfile::tempdir().unwrap();
        let files = SecretFiles::write(dir.path(), &[secret("a.b-C_1"), secret("x")]).unwrap();
        let paths: Vec<_> = files.files().map(|(_, path)| path).collect();
        assert_eq!(std::fs::read(&paths[0]).unwrap(), b"hush");
        assert_eq!(std::fs::metadata(&paths[0]).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(files.path()).unwrap().permissions().mode() & 0o777, 0o700);
        drop(files);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_id_is_a_name_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for id in ["", ".", "..", "../x", "a/b", "a,src=/etc/shadow", "a\"b", "a b", "é"] {
            let error = SecretFiles::write(dir.path(), &[secret(id)]).unwrap_err();
            assert!(matches!(error, SecretError::Id { .. }) && error.is_the_jobs_fault(), "{id}");
        }
        assert!(matches!(SecretFiles::write(dir.path(), &[secret("a"), secret("a")]), Err(SecretError::Twice { .. })));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
