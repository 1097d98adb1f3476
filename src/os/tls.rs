//! The TLS of clients and servers.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::protocol::token::SpkiPin;

/// Where systems keep the authorities that they trust.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// The variable by which administrators name another list for all programs that use TLS.
const VARIABLE: &str = "SSL_CERT_FILE";

/// The TLS of a server with this certificate.
///
/// # Errors
/// The key cannot be used, or does not belong to the certificate.
pub fn server(
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
}

/// The TLS of a client that trusts the authorities which the system trusts at this moment.
///
/// # Errors
/// There is no list of them, or it cannot be read.
pub fn client_of_system() -> io::Result<ClientConfig> {
    Ok(client_of_roots(roots_of_system()?))
}

/// The TLS of a client that trusts these authorities.
#[must_use]
pub fn client_of_roots(roots: RootCertStore) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has what these versions need")
        .with_root_certificates(roots)
        .with_no_client_auth()
}

/// The authorities that the system trusts at this moment.
fn roots_of_system() -> io::Result<RootCertStore> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let known = BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let bundle = named.or(known.map(Path::to_owned)).ok_or_else(|| {
        io::Error::other(
            "the system's list of trusted authorities is missing: install ca-certificates",
        )
    })?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(&bundle).map_err(|error| {
        let bundle = bundle.display();
        io::Error::other(format!(
            "the list of trusted authorities {bundle} cannot be read: {error}"
        ))
    })?;
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    Ok(roots)
}

/// The TLS of a client that knows the key of its server by this hash.
#[must_use]
pub fn client_of_pin(pin: SpkiPin) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("the ring provider speaks TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(PinVerifier { pin, provider }))
        .with_no_client_auth()
}

/// Accepts a certificate whose public key has the pinned hash, and nothing else.
#[derive(Debug)]
struct PinVerifier {
    pin: SpkiPin,
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
    ) -> Result<ServerCertVerified, rustls::Error> {
        let (_, certificate) = x509_parser::parse_x509_certificate(end_entity)
            .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if SpkiPin::of(certificate.tbs_certificate.subject_pki.raw) == self.pin {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::InvalidCertificate(
                CertificateError::ApplicationVerificationFailure,
            ))
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
