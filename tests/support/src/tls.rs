//! Certificate authorities made for a test.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

/// Year, month, day.
pub type Date = (i32, u8, u8);

/// Long enough for any test.
pub const ALWAYS: [Date; 2] = [(2000, 1, 1), (2100, 1, 1)];

/// Seconds since 1970 of a date.
pub fn unix((year, month, day): Date) -> u64 {
    u64::try_from(date_time_ymd(year, month, day).unix_timestamp()).unwrap()
}

fn valid(params: &mut CertificateParams, [from, to]: [Date; 2]) {
    params.not_before = date_time_ymd(from.0, from.1, from.2);
    params.not_after = date_time_ymd(to.0, to.1, to.2);
}

/// TLS settings of a server whose certificate is that of an authority, as openssl makes it by default, and the
/// certificate as a file for `ca_file`.
pub fn authority_as_server(name: &str) -> (Arc<rustls::ServerConfig>, tempfile::NamedTempFile) {
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    valid(&mut params, ALWAYS);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), certificate.pem()).unwrap();
    (server_config(certificate.der().clone(), &key), file)
}

fn server_config(certificate: CertificateDer<'static>, key: &KeyPair) -> Arc<rustls::ServerConfig> {
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}

/// A certificate authority, and its certificate as a file for `ca_file`.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// Its certificate, for `ca_file`.
    pub file: tempfile::NamedTempFile,
}

impl Authority {
    /// Makes an authority with a name of its own.
    pub fn new() -> Self {
        let mut params = CertificateParams::new([]).unwrap();
        // Authorities differ by name, as they do in the world.
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!("authority {}", COUNT.fetch_add(1, Ordering::SeqCst));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        valid(&mut params, ALWAYS);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), file }
    }

    /// TLS settings of a server whose certificate is valid in that time.
    pub fn issue(&self, name: &str, validity: [Date; 2]) -> Arc<rustls::ServerConfig> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        valid(&mut params, validity);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        server_config(certificate.der().clone(), &key)
    }
}
