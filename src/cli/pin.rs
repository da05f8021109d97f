//! Trusts one server by the SHA-256 of its public key, and nothing else: no authority, no name, no
//! date. The pin comes with the token, so a wrong server is refused before anything is sent to it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use subtle::ConstantTimeEq as _;

/// A TLS client that accepts only the key whose SubjectPublicKeyInfo hashes to `pin`.
///
/// # Errors
///
/// When ring offers no usable protocol version, which no build of this program has.
pub(crate) fn client_config(pin: [u8; 32]) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = Arc::new(PinVerifier { pin, provider: Arc::clone(&provider) });
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| {
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        })
        .map_err(|error| error.to_string())
}

/// Whether a handshake failed because of another key.
pub(crate) fn is_mismatch(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(_))
}

#[derive(Debug)]
struct PinVerifier {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let certificate = ParsedCertificate::try_from(end_entity)?;
        let key = certificate.subject_public_key_info();
        let digest = ring::digest::digest(&ring::digest::SHA256, key.as_ref());
        if bool::from(digest.as_ref().ct_eq(&self.pin)) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        // The certificate is public; only this proves that the peer holds its key.
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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

    fn verify(pin: [u8; 32], certificate: &[u8]) -> Result<ServerCertVerified, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        PinVerifier { pin, provider }.verify_server_cert(
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
        let pin = *crate::types::Secret::try_from(PIN.to_owned()).unwrap().expose();
        let mut other = pin;
        other[31] ^= 1;

        assert!(verify(pin, &certificate).is_ok());
        assert!(is_mismatch(&verify(other, &certificate).unwrap_err()));
        assert!(verify(pin, &certificate[..40]).is_err());
    }
}
