//! The coordinator's TLS key. It is made at the first start, and nodes pin its hash.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PublicKeyData as _};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;

use super::{Failure, MarkKey};
use crate::model::Label;
use crate::model::time::UnixSeconds;
use crate::os::{file, tls};
use crate::protocol::api::ErrorCode;
use crate::protocol::token::SpkiPin;
use crate::protocol::url::CoordinatorUrl;

/// The files in the state directory with the TLS certificate and its key.
pub(super) const FILES: [&str; 2] = ["tls.crt", "tls.key"];
const MAX_FILE: u64 = 64 * 1024;
/// The name of the certificate's subject, which is also one of its DNS names.
const NAME: &str = "mesh-coordinator";
/// The names of the subjects of certificates that this program makes, and that earlier versions made.
const OWN_NAMES: [&str; 2] = [NAME, "rcgen self signed cert"];
/// A day in seconds. A certificate is valid from a day before it was made, for machines whose clocks differ.
const DAY: u64 = 24 * 3600;
/// How long a certificate is valid, in seconds. It is renewed at a start of the coordinator when less than [`RENEWAL`] is left.
const LIFETIME: u64 = 10 * 365 * DAY;
const RENEWAL: u64 = 5 * 365 * DAY;
/// The latest date that a clock may show. A later one does not fit into a certificate with its lifetime (year 9999).
const MAX_DATE: UnixSeconds = UnixSeconds(4_000_000_000);

/// The TLS configuration, and what is derived from the key.
pub(super) struct Identity {
    /// TLS 1.3 only.
    pub config: Arc<ServerConfig>,
    /// The hash of the key, which join tokens contain.
    pub pin: SpkiPin,
    /// The key for marks, which is derived from the TLS key.
    pub marks: MarkKey,
}

/// What the certificate says about the coordinator. Nodes do not read it, since they pin the key. People read it in the output of
/// TLS tools, and programs that scan networks report a certificate without names or with impossible dates.
pub(super) struct Subject {
    hosts: Vec<String>,
    domain: Label,
}

impl Subject {
    /// The coordinator of the mesh with names under `domain`, which is reached at `urls`.
    pub(super) fn new(urls: &[CoordinatorUrl], domain: &Label) -> Self {
        let host = |url: &CoordinatorUrl| match url.host().parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => url.host().to_ascii_lowercase(),
        };
        let hosts = urls.iter().map(host);
        let mut hosts: Vec<String> = hosts.chain([NAME.to_owned()]).collect();
        hosts.sort();
        hosts.dedup();
        Self {
            hosts,
            domain: domain.clone(),
        }
    }

    /// Makes a self-signed certificate for `key`.
    fn certify(&self, key: &KeyPair, now: UnixSeconds) -> Result<String, rcgen::Error> {
        let mut parameters = CertificateParams::new(self.hosts.clone())?;
        parameters.distinguished_name = DistinguishedName::new();
        let name = &mut parameters.distinguished_name;
        name.push(DnType::CommonName, NAME);
        name.push(DnType::OrganizationName, self.domain.as_str());
        let date = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        parameters.not_before = date(now.0.saturating_sub(DAY)).into();
        parameters.not_after = date(now.0.saturating_add(LIFETIME)).into();
        Ok(parameters.self_signed(key)?.pem())
    }

    /// Whether `certificate`, which this program made, does not say this or is not valid for long enough.
    fn is_outdated(&self, certificate: &X509Certificate<'_>, now: UnixSeconds) -> bool {
        let validity = certificate.validity();
        let [from, until] = [validity.not_before, validity.not_after].map(|date| date.timestamp());
        let second = |seconds: u64| i64::try_from(seconds).unwrap_or(i64::MAX);
        let is_valid = from <= second(now.0)
            && until >= second(now.0.saturating_add(RENEWAL))
            && until <= second(now.0.saturating_add(2 * LIFETIME));
        let organization = certificate.subject().iter_organization().next();
        let domain = organization.and_then(|name| name.as_str().ok());
        let names = certificate.subject_alternative_name().ok().flatten();
        let names: Vec<String> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(host_in)
            .collect();
        let has_hosts = self.hosts.iter().all(|host| names.contains(host));
        !is_valid || !has_hosts || domain != Some(self.domain.as_str())
    }
}

fn host_in(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            let v4 = <[u8; 4]>::try_from(*bytes).map(IpAddr::from);
            let v6 = || <[u8; 16]>::try_from(*bytes).map(IpAddr::from);
            v4.or_else(|_| v6()).ok().map(|ip| ip.to_string())
        }
        _ => None,
    }
}

/// Reads the key in `state_dir`, or makes a new one (ECDSA P-256). A certificate that this program made is made again with the same
/// key if it does not say what `subject` does. So the pin stays.
///
/// # Errors
/// The files cannot be read or written, or the key does not belong to the certificate.
pub(super) fn load_or_make(
    state_dir: &Path,
    subject: &Subject,
    now: SystemTime,
) -> Result<Identity, Failure> {
    let now = UnixSeconds::from_system(now).min(MAX_DATE);
    let (key_path, certificate_path) = (state_dir.join("tls.key"), state_dir.join("tls.crt"));
    let damaged = |what: &dyn std::fmt::Display| {
        let text = format!(
            "the TLS key in {} cannot be used ({what}); restore tls.key and tls.crt from a backup (join tokens and nodes know the coordinator by this key)",
            state_dir.display()
        );
        Failure::new(ErrorCode::Configuration, text)
    };
    if !key_path.exists() {
        let internal = |error| Failure::new(ErrorCode::Internal, error);
        let key = KeyPair::generate().map_err(internal)?;
        let certificate = subject.certify(&key, now).map_err(internal)?;
        // The key is written last. If it exists, the pair is complete.
        file::write_atomic(&certificate_path, certificate.as_bytes(), 0o600)?;
        file::write_atomic(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
        tracing::info!(path = %key_path.display(), "made a TLS key");
    }
    let key_text = file::read_private(&key_path, MAX_FILE)?;
    let certificate = file::read_private(&certificate_path, MAX_FILE)?;
    let key = PrivateKeyDer::from_pem_slice(&key_text).map_err(|e| damaged(&e))?;
    let mut certificate = CertificateDer::from_pem_slice(&certificate).map_err(|e| damaged(&e))?;
    let pin = pin_of(&certificate).ok_or_else(|| damaged(&"not a certificate"))?;
    if let Some(renewed) = renewed(&certificate, &key_text, subject, now)
        && let Ok(parsed) = CertificateDer::from_pem_slice(renewed.as_bytes())
    {
        // The coordinator serves without it, and tries again at the next start.
        match file::write_atomic(&certificate_path, renewed.as_bytes(), 0o600) {
            Ok(()) => {
                tracing::info!(path = %certificate_path.display(), "made a new TLS certificate with the same key");
                certificate = parsed;
            }
            Err(error) => tracing::warn!(%error, "the TLS certificate cannot be renewed"),
        }
    }
    let marks = MarkKey::derive(key.secret_der());
    let config = tls::server(certificate, key).map_err(|e| damaged(&e))?;
    Ok(Identity {
        config: Arc::new(config),
        pin,
        marks,
    })
}

/// A new certificate in place of `certificate`, if this program made that one and it is out of date. None if the certificate belongs
/// to another key: the new one would hide that the files do not belong together.
fn renewed(
    certificate: &CertificateDer<'_>,
    key: &[u8],
    subject: &Subject,
    now: UnixSeconds,
) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let name = parsed.subject().iter_common_name().next()?.as_str().ok()?;
    let is_ours = OWN_NAMES.contains(&name) && parsed.issuer() == parsed.subject();
    if !is_ours || !subject.is_outdated(&parsed, now) {
        return None;
    }
    let key = KeyPair::from_pem(std::str::from_utf8(key).ok()?).ok()?;
    let belongs = key.subject_public_key_info() == parsed.tbs_certificate.subject_pki.raw;
    if !belongs {
        return None;
    }
    subject.certify(&key, now).ok()
}

fn pin_of(certificate: &CertificateDer<'_>) -> Option<SpkiPin> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(SpkiPin::of(parsed.tbs_certificate.subject_pki.raw))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(urls: &[&str]) -> Subject {
        let urls: Vec<CoordinatorUrl> = urls
            .iter()
            .map(|url| url.parse().expect("a literal"))
            .collect();
        Subject::new(&urls, &Label::parse("mesh").expect("a literal"))
    }

    fn at(year: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs((year - 1970) * 365 * DAY)
    }

    fn load(dir: &Path, urls: &[&str], year: u64) -> Result<SpkiPin, Failure> {
        load_or_make(dir, &subject(urls), at(year)).map(|identity| identity.pin)
    }

    /// The certificate in `dir`, in the form that files have.
    fn stored(dir: &Path) -> String {
        std::fs::read_to_string(dir.join("tls.crt")).expect("it was made")
    }

    /// Whether the certificate in `dir` names all of `hosts` and is valid in `year`.
    fn is_good(dir: &Path, hosts: &[&str], year: u64) -> bool {
        let der = CertificateDer::from_pem_slice(stored(dir).as_bytes()).expect("a certificate");
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).expect("a certificate");
        let names = parsed
            .subject_alternative_name()
            .expect("one")
            .expect("one");
        let names: Vec<String> = names
            .value
            .general_names
            .iter()
            .filter_map(host_in)
            .collect();
        let validity = parsed.validity();
        let now = i64::try_from(UnixSeconds::from_system(at(year)).0).expect("a date");
        hosts.iter().all(|host| names.contains(&(*host).to_owned()))
            && (validity.not_before.timestamp()..validity.not_after.timestamp()).contains(&now)
    }

    #[test]
    fn the_key_is_made_once_and_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let first = load(dir.path(), &[], 2026).expect("writable");
        let certificate = stored(dir.path());
        let second = load(dir.path(), &[], 2027).expect("readable");
        assert_eq!(first, second);
        assert_eq!(certificate, stored(dir.path()), "it is still good");
    }

    #[test]
    fn the_certificate_has_the_public_names_and_sane_dates_and_the_pin_stays() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path();
        // As earlier versions made it.
        let key = KeyPair::generate().expect("random numbers");
        let old = CertificateParams::new(vec![NAME.to_owned()]).expect("a name");
        let old = old.self_signed(&key).expect("a certificate").pem();
        file::write_atomic(&path.join("tls.crt"), old.as_bytes(), 0o600).expect("writable");
        let text = key.serialize_pem();
        file::write_atomic(&path.join("tls.key"), text.as_bytes(), 0o600).expect("writable");
        let pin = SpkiPin::of(&key.subject_public_key_info());
        let urls = [
            "https://Coord.example.com:7443",
            "https://192.0.2.1:1",
            "https://[2001:DB8:0::1]:1",
        ];
        let hosts = [NAME, "coord.example.com", "192.0.2.1", "2001:db8::1"];
        let found = load(path, &urls, 2026).expect("usable");
        assert_eq!(found, pin);
        assert!(is_good(path, &hosts, 2026) && is_good(path, &hosts, 2035));
        assert!(!is_good(path, &hosts, 2045), "it ends");

        let renewed = stored(path);
        load(path, &urls[..1], 2027).expect("usable");
        assert_eq!(stored(path), renewed, "it names more than it has to");
        load(path, &["https://other.example.com"], 2027).expect("usable");
        assert!(is_good(path, &["other.example.com"], 2027));
        for year in [2034, 1971] {
            assert_eq!(load(path, &urls, year).expect("usable"), found);
            assert!(is_good(path, &hosts, year + 6), "{year}");
        }
        assert_eq!(
            text,
            std::fs::read_to_string(path.join("tls.key")).expect("kept")
        );
    }

    #[test]
    fn a_certificate_of_the_operator_and_one_of_another_key_are_not_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        load(dir.path(), &[], 2026).expect("writable");
        let key = std::fs::read_to_string(dir.path().join("tls.key")).expect("made");
        let key = KeyPair::from_pem(&key).expect("made");
        let mut parameters = CertificateParams::new(vec!["x.example".to_owned()]).expect("a name");
        parameters
            .distinguished_name
            .push(DnType::CommonName, "x.example");
        let theirs = parameters.self_signed(&key).expect("a certificate").pem();
        let path = dir.path().join("tls.crt");
        file::write_atomic(&path, theirs.as_bytes(), 0o600).expect("writable");
        load(dir.path(), &["https://y.example"], 2026).expect("usable");
        assert_eq!(stored(dir.path()), theirs);

        let other = KeyPair::generate().expect("random numbers");
        let foreign = subject(&[])
            .certify(&other, UnixSeconds(0))
            .expect("a certificate");
        file::write_atomic(&path, foreign.as_bytes(), 0o600).expect("writable");
        let error = load(dir.path(), &["https://y.example"], 2026).expect_err("another key");
        assert!(error.to_string().contains("restore"), "{error}");
        assert_eq!(stored(dir.path()), foreign);
    }

    #[test]
    fn a_clock_far_in_the_future_makes_a_certificate_all_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        load(dir.path(), &[], 30_000).expect("no panic");
    }

    #[test]
    fn a_damaged_key_is_not_replaced() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        load(dir.path(), &[], 2026).expect("writable");
        file::write_atomic(&dir.path().join("tls.key"), b"garbage", 0o600).expect("writable");
        let error = load(dir.path(), &["https://y.example"], 2026)
            .expect_err("damaged")
            .to_string();
        assert!(error.contains("restore"), "{error}");
        assert_eq!(
            std::fs::read(dir.path().join("tls.key")).expect("readable"),
            b"garbage"
        );
    }
}
