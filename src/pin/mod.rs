//! Trust in exactly one server key: the one whose hash is in the token. No authority, no name, no date;
//! a wrong server is refused before anything is sent to it. Nodes and `ovctl` share it.

#![forbid(unsafe_code)]

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
struct WrongPin;

/// Accepts a certificate by the SHA-256 of its SubjectPublicKeyInfo, and by nothing else: no names, no
/// dates, no authorities. That the peer holds the key is proved by its handshake signature, which
/// rustls checks.
#[derive(Debug)]
struct PinVerifier {
    pin: Secret,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A TLS configuration that talks to the server with this pin and to no other.
///
/// # Errors
///
/// When ring offers no usable protocol version, which no build of this program has.
pub fn client_config(pin: &Secret) -> Result<ClientConfig, rustls::Error> {
    let provider: Arc<CryptoProvider> = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        PinVerifier { pin: pin.clone(), algorithms: provider.signature_verification_algorithms };
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// Whether the pin is why `error` happened, however deep TLS and HTTP have wrapped it.
#[must_use]
pub fn is_wrong_pin(error: &(dyn std::error::Error + 'static)) -> bool {
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

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;

    /// A self-signed P-256 certificate, made for this test; its private key was thrown away.
    const CERTIFICATE: &str = "\
         MIIBgzCCASmgAwIBAgIUbrkBZocKSuYTLDF1UMyn/D5YEZcwCgYIKoZIzj0EAwIwFjEUMBIGA1UEAwwL\
         b3ZtZXNoLXRlc3QwIBcNMjYxMTIzMTUyMzU2WhgPMjEyNjEwMzAxNTIzNTZaMBYxFDASBgNVBAMMC292\
         bWVzaC10ZXN0MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEpqC/FyRCSVN/5JspWvfM0lN2nqwifAQJ\
         /+pf79DZP2I+lzZ5iHVhfUwfRzyBhapcBVvxHrKLWpwGv2aKhm4wMqNTMFEwHQYDVR0OBBYEFG8jihPo\
         1hihYhlmccXlTP4uSr1DMB8GA1UdIwQYMBaAFG8jihPo1hihYhlmccXlTP4uSr1DMA8GA1UdEwEB/wQF\
         MAMBAf8wCgYIKoZIzj0EAwIDSAAwRQIhAK+lz/ERoTEMt7UdxPUaT1z+yKLOXQxmwcvv/NAGOR1QAiAZ\
         xd51/2UWSF3U1KaFN4FCxeXbLiR2/Aiiy13oZZKWZw==";
    /// `openssl x509 -pubkey | openssl pkey -pubin -outform DER | sha256sum` of it.
    const PIN: &str = "54c45f82e8a607a4f4e9abcb53fb18cc76943f0555f96c6f340bd00d4f91fd6a";

    fn verify(pin: Secret, certificate: &[u8]) -> Result<ServerCertVerified, rustls::Error> {
        let provider = rustls::crypto::ring::default_provider();
        let algorithms = provider.signature_verification_algorithms;
        PinVerifier { pin, algorithms }.verify_server_cert(
            &CertificateDer::from(certificate),
            &[],
            &ServerName::try_from("192.0.2.1").unwrap(),
            &[],
            UnixTime::since_unix_epoch(std::time::Duration::ZERO),
        )
    }

    #[test]
    fn only_the_pinned_key_is_accepted() {
        let certificate = base64::engine::general_purpose::STANDARD.decode(CERTIFICATE).unwrap();
        let pin = Secret::try_from(PIN.to_owned()).unwrap();
        let other = Secret::new([7; 32]);

        assert!(verify(pin.clone(), &certificate).is_ok());
        assert!(is_wrong_pin(&verify(other, &certificate).unwrap_err()));
        let cut = verify(pin, &certificate[..40]).unwrap_err();
        assert!(!is_wrong_pin(&cut));
    }

    #[test]
    fn a_refused_key_is_found_however_deep_it_is_wrapped() {
        let refused = rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(
            Arc::new(WrongPin),
        )));
        let deep = std::io::Error::other(std::io::Error::other(refused.clone()));

        assert!(is_wrong_pin(&refused) && is_wrong_pin(&deep));
        assert!(!is_wrong_pin(&std::io::Error::other(rustls::Error::DecryptError)));
        assert!(!is_wrong_pin(&std::io::Error::from(std::io::ErrorKind::ConnectionRefused)));
    }
}
