//! The server's key: made at the first start, known to nodes by the SHA-256 of its public part.

use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use super::files;
use crate::api::{Problem, ProblemCode};
use crate::types::Secret;

/// The server's key, ready to accept connections.
#[derive(Clone)]
pub struct Identity {
    pub(crate) acceptor: TlsAcceptor,
    /// SHA-256 of the certificate's SubjectPublicKeyInfo.
    pub pin: Secret,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("pin", &self.pin).finish_non_exhaustive()
    }
}

/// Refuses what is no key of a server; `path` is where it comes from.
pub(crate) fn check_key(pem: &str, path: &Path) -> Result<(), Problem> {
    KeyPair::from_pem(pem).map(drop).map_err(|error| {
        Problem::new(
            ProblemCode::Failed,
            format!("there is no usable server key in {}", path.display()),
        )
        .why(error.to_string())
        .fix("nodes know the server by this key alone: take another backup")
    })
}

impl Identity {
    /// Loads the key in `data_dir`, or makes one. The certificate around it is made anew at each start:
    /// nodes look at the key alone, so it can never expire.
    ///
    /// # Errors
    ///
    /// When the file is damaged, or others may read it.
    pub fn load_or_make(data_dir: &Path) -> Result<Self, Problem> {
        let path = data_dir.join("server.key");
        let broken = |error: &dyn std::error::Error| {
            Problem::new(ProblemCode::Failed, format!("cannot use the key in {}", path.display()))
                .why(error.to_string())
                .fix("restore it from a backup: nodes know the server by this key alone")
        };
        let key = match files::read_private(&path)? {
            Some(text) => KeyPair::from_pem(&text).map_err(|error| broken(&error))?,
            None => {
                let key = KeyPair::generate().map_err(|error| broken(&error))?;
                files::write_private(&path, &key.serialize_pem())?;
                key
            }
        };
        let params =
            CertificateParams::new(vec!["ovmesh".to_owned()]).map_err(|error| broken(&error))?;
        let certificate = params.self_signed(&key).map_err(|error| broken(&error))?;
        let mut pin = [0; 32];
        let info = key.subject_public_key_info();
        pin.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, &info).as_ref());
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(
            rustls::crypto::ring::default_provider(),
        ))
        .with_safe_default_protocol_versions()
        .map_err(|error| broken(&error))?
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from(certificate.der().to_vec())],
            PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        )
        .map_err(|error| broken(&error))?;
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(config)), pin: Secret::new(pin) })
    }
}
