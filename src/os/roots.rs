//! The certificate authorities that the system trusts.

use std::io;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// Where systems keep the authorities that they trust.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
];
/// The variable by which administrators name another list for all programs that use TLS.
const VARIABLE: &str = "SSL_CERT_FILE";

/// The authorities that the system trusts at this moment.
///
/// # Errors
/// There is no list of them, or it cannot be read.
pub fn of_system() -> io::Result<RootCertStore> {
    let named = std::env::var_os(VARIABLE).map(PathBuf::from);
    let known = BUNDLES.iter().map(Path::new).find(|path| path.exists());
    let bundle = named.or(known.map(Path::to_owned)).ok_or_else(|| {
        io::Error::other(
            "the system's list of trusted authorities is missing: install ca-certificates",
        )
    })?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(bundle).map_err(io::Error::other)?;
    roots.add_parsable_certificates(certificates.filter_map(Result::ok));
    Ok(roots)
}
