//! What a step's identity is made of.

use bstr::BString;
use kiln_spec::User;
use kiln_store::Id;

use crate::error::{At, BuildError};

/// Every input that can change a step's result. Nothing else is hashed: not the values of secrets, not
/// names of files on the host. If anything in here changes, the step is another one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum StepKey<'a> {
    /// The import of a base image.
    Base {
        /// See `kiln_image::Resolved::identity`.
        identity: &'a str,
    },
    /// A layer of an image.
    Layer {
        /// See `kiln_image::Layer::chain`.
        chain: &'a str,
    },
    /// A command.
    Run {
        parent: &'a Id,
        env: &'a [(BString, BString)],
        user: &'a User,
        workdir: &'a BString,
        shell: &'a [BString],
        command: &'a BString,
        networks: &'a [BString],
        /// Names and targets.
        caches: &'a [(&'a BString, &'a BString)],
        /// Names and targets.
        secrets: &'a [(&'a BString, &'a BString)],
    },
    /// A copy.
    Copy {
        parent: &'a Id,
        user: &'a User,
        /// Absolute; ends in `/` if it is a directory.
        dst: &'a BString,
        /// See [`crate::manifest::Manifest::digest`].
        manifest: &'a [u8; 32],
    },
}

impl StepKey<'_> {
    /// Returns the digest of the key: the step's id.
    pub(crate) fn id(&self) -> Id {
        let mut encoder = Encoder::new("kiln step 1");
        match self {
            Self::Base { identity } => {
                encoder.bytes(b"base").bytes(identity.as_bytes());
            }
            Self::Layer { chain } => {
                encoder.bytes(b"layer").bytes(chain.as_bytes());
            }
            Self::Run { parent, env, user, workdir, shell, command, networks, caches, secrets } => {
                encoder.bytes(b"run").bytes(parent.to_string().as_bytes());
                encoder.count(env.len());
                for (name, value) in *env {
                    encoder.bytes(name).bytes(value);
                }
                encoder.user(user).bytes(workdir).count(shell.len());
                for word in *shell {
                    encoder.bytes(word);
                }
                encoder.bytes(command).count(networks.len());
                for network in *networks {
                    encoder.bytes(network);
                }
                for list in [caches, secrets] {
                    encoder.count(list.len());
                    for (name, target) in *list {
                        encoder.bytes(name).bytes(target);
                    }
                }
            }
            Self::Copy { parent, user, dst, manifest } => {
                encoder.bytes(b"copy").bytes(parent.to_string().as_bytes());
                encoder.user(user).bytes(dst).bytes(*manifest);
            }
        }
        Id::new(encoder.finish())
    }
}

/// Returns bytes that nobody has come upon before.
pub(crate) fn random() -> Result<[u8; 32], BuildError> {
    let mut bytes = [0; 32];
    // So many are written, or none.
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).at("get", "random bytes")?;
    Ok(bytes)
}

/// Returns the id under which a step is made anew, by what all ids of this renewal have in common.
pub(crate) fn renewed(key: &Id, renewal: &[u8; 32]) -> Id {
    let mut encoder = Encoder::new("kiln renewal 1");
    encoder.bytes(key.as_bytes()).bytes(renewal);
    Id::new(encoder.finish())
}

/// A hash over fields that cannot be confused: each is preceded by its length.
pub(crate) struct Encoder(blake3::Hasher);

impl Encoder {
    /// Starts with a name and version of what is encoded.
    pub(crate) fn new(domain: &str) -> Self {
        let mut encoder = Self(blake3::Hasher::new());
        encoder.bytes(domain.as_bytes());
        encoder
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.count(bytes.len());
        self.0.update(bytes);
        self
    }

    pub(crate) fn count(&mut self, count: usize) -> &mut Self {
        self.0.update(&(count as u64).to_le_bytes());
        self
    }

    fn user(&mut self, user: &User) -> &mut Self {
        match user {
            User::Unix { uid, gid } => self.bytes(b"unix").bytes(&uid.to_le_bytes()).bytes(&gid.to_le_bytes()),
            User::Named(name) => self.bytes(b"named").bytes(name),
        }
    }

    pub(crate) fn finish(&self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_counts_and_none_runs_into_the_next() {
        let parent = Id::new([7; 32]);
        let text = |text: &str| BString::from(text);
        let (ab, c, a, bc) = (text("ab"), text("c"), text("a"), text("bc"));
        let root = User::Unix { uid: 0, gid: 0 };
        let run = |workdir, command, caches: &[(&BString, &BString)], secrets: &[(&BString, &BString)]| {
            StepKey::Run {
                parent: &parent,
                env: &[],
                user: &root,
                workdir,
                shell: &[],
                command,
                networks: &[],
                caches,
                secrets,
            }
            .id()
        };
        let ids = [
            run(&ab, &c, &[], &[]),
            run(&a, &bc, &[], &[]),
            run(&a, &bc, &[(&a, &c)], &[]),
            run(&a, &bc, &[], &[(&a, &c)]),
            StepKey::Base { identity: "scratch" }.id(),
            StepKey::Layer { chain: "scratch" }.id(),
            StepKey::Copy { parent: &parent, user: &root, dst: &a, manifest: &[0; 32] }.id(),
            StepKey::Copy { parent: &parent, user: &User::Named(text("root")), dst: &a, manifest: &[0; 32] }.id(),
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id), "{at}");
        }
    }

    #[test]
    fn ids_do_not_change_between_versions() {
        // If this fails, every store's cache is lost to the new version: raise the number in
        // "kiln step 1" and say so in the change log.
        let base = StepKey::Base { identity: "scratch" }.id();
        let (name, value) = (BString::from("name"), BString::from("value"));
        let run = StepKey::Run {
            parent: &base,
            env: &[(name.clone(), value.clone())],
            user: &User::Unix { uid: 1, gid: 2 },
            workdir: &value,
            shell: std::slice::from_ref(&name),
            command: &value,
            networks: std::slice::from_ref(&name),
            caches: &[(&name, &value)],
            secrets: &[(&value, &name)],
        };
        let user = User::Named(name.clone());
        let copy = StepKey::Copy { parent: &base, user: &user, dst: &value, manifest: &[1; 32] };
        let layer = StepKey::Layer { chain: "sha256:00" };
        let ids = [base, run.id(), copy.id(), layer.id()].map(|id| id.short());
        assert_eq!(ids, ["6ce904290fd3", "c1d0cfcca651", "d8563adc4b56", "f4a0d857f55f"]);
    }
}
