//! The key that a vat is known by.

use std::fmt;
use std::sync::Arc;

use hmac::{Hmac, Mac as _};
use rcgen::{PublicKeyData, SigningKey as CertificateSigner};
use rustls::SignatureScheme;
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SigningKey};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use x509_parser::prelude::{FromDer as _, SubjectPublicKeyInfo};

use crate::uri::{Fingerprint, ServiceId};

/// A private key, with a certificate that it signed itself.
///
/// A scheduler's key is in a file and makes the ids of its services; a client's is made anew for each process, because OCaml's vats
/// allow one connection for each key.
#[derive(Clone)]
pub struct Key {
    certified: Arc<CertifiedKey>,
    fingerprint: Fingerprint,
    /// SHA-256 of the file.
    secret: [u8; 32],
}

/// Why there is no key.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages say it, and the fields are what they insert")]
pub enum KeyError {
    #[error("no private key in PEM format (`-----BEGIN PRIVATE KEY-----`)")]
    NotPem(#[source] rustls::pki_types::pem::Error),
    #[error("neither RSA (2048 bits or more), ECDSA P-256 or P-384, nor Ed25519")]
    Unsupported(#[source] rustls::Error),
    #[error("its public key cannot be found")]
    NoPublicKey,
    #[error("cannot make a key")]
    Generate(#[source] rcgen::Error),
    #[error("cannot make a certificate for it")]
    Certificate(#[source] rcgen::Error),
}

impl Key {
    /// Makes a new key, ECDSA on P-256, and returns it with the PEM text that [`Key::from_pem`] takes.
    ///
    /// # Errors
    ///
    /// If the system gives no randomness.
    pub fn generate() -> Result<(Self, String), KeyError> {
        let pair = rcgen::KeyPair::generate().map_err(KeyError::Generate)?;
        let pem = pair.serialize_pem();
        Ok((Self::from_pem(pem.as_bytes())?, pem))
    }

    /// Reads a key of any kind that OCaml's programs use or make. All bytes of `pem` count for the ids of services.
    ///
    /// # Errors
    ///
    /// If it is no such key.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let der = PrivateKeyDer::from_pem_slice(pem).map_err(KeyError::NotPem)?;
        let signer = any_supported_type(&der).map_err(KeyError::Unsupported)?;
        let spki = signer.public_key().ok_or(KeyError::NoPublicKey)?.to_vec();
        let certificate = self_signed(signer.as_ref(), &spki)?;
        Ok(Self {
            certified: Arc::new(CertifiedKey::new(vec![certificate], signer)),
            fingerprint: Fingerprint::of(&spki),
            secret: Sha256::digest(pem).into(),
        })
    }

    /// Returns what peers know the key by.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Returns the id of the service called `name`, which nobody can guess who does not know the key.
    pub fn service_id(&self, name: &[u8]) -> ServiceId {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret).expect("HMAC takes keys of any length");
        mac.update(name);
        ServiceId(mac.finalize().into_bytes().to_vec())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl ServiceId {
    /// Makes an id that nobody can guess, of 20 bytes as OCluster's are.
    ///
    /// # Panics
    ///
    /// If the system gives no randomness, without which nothing here is safe.
    pub fn random() -> Self {
        Self(random::<20>().into())
    }
}

/// Returns random bytes that nobody can guess.
pub(crate) fn random<const COUNT: usize>() -> [u8; COUNT] {
    let mut bytes = [0; COUNT];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random.fill(&mut bytes).expect("the system gives randomness");
    bytes
}

impl Fingerprint {
    /// Returns the fingerprint of a public key (DER, SubjectPublicKeyInfo).
    pub fn of(spki: &[u8]) -> Self {
        Self(Sha256::digest(spki).into())
    }
}

/// Makes a certificate as OCaml's programs make theirs: `CN=capnp`, signed by itself. Nobody looks at anything but its key.
fn self_signed(signer: &dyn SigningKey, spki: &[u8]) -> Result<CertificateDer<'static>, KeyError> {
    let (_, parsed) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| KeyError::NoPublicKey)?;
    let public = parsed.subject_public_key.data.to_vec();
    let kinds = [
        (SignatureScheme::ECDSA_NISTP256_SHA256, &rcgen::PKCS_ECDSA_P256_SHA256),
        (SignatureScheme::ECDSA_NISTP384_SHA384, &rcgen::PKCS_ECDSA_P384_SHA384),
        (SignatureScheme::ED25519, &rcgen::PKCS_ED25519),
        (SignatureScheme::RSA_PKCS1_SHA256, &rcgen::PKCS_RSA_SHA256),
    ];
    let (signer, algorithm) = kinds
        .into_iter()
        .find_map(|(scheme, algorithm)| Some((signer.choose_scheme(&[scheme])?, algorithm)))
        .ok_or(KeyError::NoPublicKey)?;

    let mut parameters = rcgen::CertificateParams::default();
    parameters.distinguished_name = rcgen::DistinguishedName::new();
    parameters.distinguished_name.push(rcgen::DnType::CommonName, "capnp");
    let certificate = parameters.self_signed(&Signer { signer, public, algorithm }).map_err(KeyError::Certificate)?;
    Ok(certificate.into())
}

/// One of rustls' keys for rcgen, whose own read fewer kinds of files.
struct Signer {
    signer: Box<dyn rustls::sign::Signer>,
    public: Vec<u8>,
    algorithm: &'static rcgen::SignatureAlgorithm,
}

impl PublicKeyData for Signer {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.algorithm
    }
}

impl CertificateSigner for Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer.sign(message).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
