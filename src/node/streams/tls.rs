//! The TLS of streams. A relay that ends TLS itself has a key whose hash is in its record. Any other relay is behind a proxy that ends
//! TLS, and the certificate of the proxy must be one that this system trusts.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rcgen::{CertificateParams, KeyPair, PublicKeyData as _};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::os::{file, tls};
use crate::protocol::token::SpkiPin;

/// The file in the state directory with the key.
const FILE: &str = "relay.key";
const MAX_FILE: u64 = 64 * 1024;
/// The name in the certificate. Nodes do not read it, since they know the key.
const NAME: &str = "meshd";

/// The TLS of a relay.
pub(super) struct RelayTls {
    pub(super) config: Arc<ServerConfig>,
    pub(super) pin: SpkiPin,
}

/// Reads the key in `state_dir`, or makes one.
///
/// # Errors
/// The key cannot be read, made or written.
pub(super) fn of_relay(state_dir: &Path) -> io::Result<RelayTls> {
    let path = state_dir.join(FILE);
    if !path.exists() {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let written = file::write_atomic(&path, key.serialize_pem().as_bytes(), 0o600);
        written.map_err(io::Error::other)?;
    }
    let text = file::read_private(&path, MAX_FILE).map_err(io::Error::other)?;
    let damaged = |why: &dyn std::fmt::Display| {
        let text = format!(
            "the TLS key {} cannot be used ({why}); delete it, and a new one is made",
            path.display()
        );
        io::Error::other(text)
    };
    let pem = std::str::from_utf8(&text).map_err(|error| damaged(&error))?;
    let key = KeyPair::from_pem(pem).map_err(|error| damaged(&error))?;
    let pin = SpkiPin::of(&key.subject_public_key_info());
    let parameters = CertificateParams::new(vec![NAME.to_owned()]).map_err(io::Error::other)?;
    let certificate = parameters.self_signed(&key).map_err(io::Error::other)?;
    let certificate = CertificateDer::from(certificate.der().to_vec());
    let key = PrivateKeyDer::from_pem_slice(&text).map_err(|error| damaged(&error))?;
    let config = tls::server(certificate, key).map_err(|error| damaged(&error))?;
    Ok(RelayTls {
        config: Arc::new(config),
        pin,
    })
}

/// The TLS of a node that opens a stream.
///
/// # Errors
/// There is no pin, and the authorities that this system trusts cannot be read.
pub(super) fn of_node(pin: Option<SpkiPin>) -> io::Result<ClientConfig> {
    pin.map_or_else(tls::client_of_system, |pin| Ok(tls::client_of_pin(pin)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_relay_is_made_once_and_one_that_is_damaged_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pin = of_relay(dir.path()).expect("writable").pin;
        assert_eq!(of_relay(dir.path()).expect("readable").pin, pin);
        let path = dir.path().join(FILE);
        file::write_atomic(&path, b"garbage", 0o600).expect("writable");
        let Err(error) = of_relay(dir.path()) else {
            panic!("it is damaged")
        };
        assert!(error.to_string().contains("delete it"), "{error}");
        assert_eq!(std::fs::read(&path).expect("kept"), b"garbage");
    }
}
