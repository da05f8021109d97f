//! Trust in exactly one server key: the one whose hash is in the join token.

use std::sync::Arc;

use ring::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, OtherError, SignatureScheme};
use subtle::ConstantTimeEq as _;

use crate::types::Secret;

/// The server showed another key than the pinned one. Found in the sources of a failed request.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the server's key is not the pinned one")]
pub(crate) struct WrongPin;

/// Accepts a certificate by the SHA-256 of its SubjectPublicKeyInfo, and by nothing else: no names, no
/// dates, no authorities. That the peer holds the key is proved by its handshake signature, which
/// rustls checks.
#[derive(Debug)]
pub(crate) struct PinVerifier {
    pin: Secret,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A TLS configuration that talks to the server with this pin and to no other.
pub(crate) fn client_config(pin: &Secret) -> Result<ClientConfig, rustls::Error> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        PinVerifier { pin: pin.clone(), algorithms: provider.signature_verification_algorithms };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Whether the pin is why `error` happened.
pub(crate) fn is_wrong_pin(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.is::<WrongPin>() {
            return true;
        }
        if let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) =
            error.downcast_ref::<rustls::Error>()
        {
            return other.0.is::<WrongPin>();
        }
        // An `io::Error` names its inner error's source as its own and so skips the inner error.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let key_info = ParsedCertificate::try_from(end_entity)?.subject_public_key_info();
        let hash = digest::digest(&digest::SHA256, key_info.as_ref());
        if bool::from(hash.as_ref().ct_eq(self.pin.expose())) {
            Ok(ServerCertVerified::assertion())
        } else {
            let wrong = CertificateError::Other(OtherError(Arc::new(WrongPin)));
            Err(rustls::Error::InvalidCertificate(wrong))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
