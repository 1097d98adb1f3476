//! The coordinator's TLS key. It is made at the first start, and nodes pin its hash.

use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use sha2::{Digest as _, Sha256};

use super::{Failure, MarkKey};
use crate::os::file;
use crate::protocol::api::ErrorCode;
use crate::protocol::token::SpkiPin;

/// The files in the state directory with the TLS certificate and its key.
pub(super) const FILES: [&str; 2] = ["tls.crt", "tls.key"];
const MAX_FILE: u64 = 64 * 1024;

/// The TLS configuration, and what is derived from the key.
pub(super) struct Identity {
    /// TLS 1.3 only.
    pub config: Arc<ServerConfig>,
    /// The hash of the key, which join tokens contain.
    pub pin: SpkiPin,
    /// The key for marks, which is derived from the TLS key.
    pub marks: MarkKey,
}

/// Reads the key in `state_dir`, or makes a new one (ECDSA P-256).
///
/// # Errors
/// The files cannot be read or written, or the key does not belong to the certificate.
pub(super) fn load_or_make(state_dir: &Path) -> Result<Identity, Failure> {
    let (key_path, certificate_path) = (state_dir.join("tls.key"), state_dir.join("tls.crt"));
    let damaged = |what: &dyn std::fmt::Display| {
        let text = format!(
            "the TLS key in {} cannot be used ({what}); restore tls.key and tls.crt from a backup (join tokens and nodes know the coordinator by this key)",
            state_dir.display()
        );
        Failure::new(ErrorCode::Configuration, text)
    };
    if !key_path.exists() {
        let key = rcgen::KeyPair::generate().map_err(|e| Failure::new(ErrorCode::Internal, e))?;
        let certificate = rcgen::CertificateParams::new(vec!["mesh-coordinator".to_owned()])
            .and_then(|parameters| parameters.self_signed(&key))
            .map_err(|e| Failure::new(ErrorCode::Internal, e))?;
        // The key is written last. If it exists, the pair is complete.
        file::write_atomic(&certificate_path, certificate.pem().as_bytes(), 0o600)?;
        file::write_atomic(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        tracing::info!(path = %key_path.display(), "made a TLS key");
    }
    let key = file::read_private(&key_path, MAX_FILE)?;
    let certificate = file::read_private(&certificate_path, MAX_FILE)?;
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| damaged(&e))?;
    let certificate = CertificateDer::from_pem_slice(&certificate).map_err(|e| damaged(&e))?;
    let marks = MarkKey::derive(key.secret_der());
    let pin = pin_of(&certificate).ok_or_else(|| damaged(&"not a certificate"))?;
    let config =
        ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the ring provider speaks TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![certificate], key)
            .map_err(|e| damaged(&e))?;
    Ok(Identity {
        config: Arc::new(config),
        pin,
        marks,
    })
}

fn pin_of(certificate: &CertificateDer<'_>) -> Option<SpkiPin> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(SpkiPin(
        Sha256::digest(parsed.tbs_certificate.subject_pki.raw).into(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = load_or_make(dir.path()).expect("writable").pin;
        let second = load_or_make(dir.path()).expect("readable").pin;
        assert_eq!(first, second);
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        load_or_make(dir.path()).expect("writable");
        file::write_atomic(&dir.path().join("tls.key"), b"garbage", 0o600).expect("writable");
        let error = load_or_make(dir.path())
            .map(|_| ())
            .expect_err("damaged")
            .to_string();
        assert!(error.contains("restore"), "{error}");
        assert_eq!(
            std::fs::read(dir.path().join("tls.key")).expect("readable"),
            b"garbage"
        );
    }
}
