//! TLS: the trusted roots, and certificates that disagree with the clock.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, KeyProvider};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::SigningKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::error::{FetchError, FetchErrorKind};
use crate::machine::clock::{CertificateTime, ClockPolicy, Start};

/// A function that reads a clock: seconds since 1970.
pub type ReadClock = Box<dyn Fn() -> u64 + Send + Sync>;
/// A function that sets a clock to seconds since 1970.
pub type SetClock = Box<dyn Fn(u64) + Send + Sync>;

/// The machine's clock as TLS sees it, and the policy that may move it.
pub struct CertificateClock {
    read: ReadClock,
    set: Option<SetClock>,
    policy: Mutex<ClockPolicy>,
}

impl CertificateClock {
    /// A clock that stays as it is, for a running system: a certificate that disagrees with it is an error.
    pub fn fixed() -> Self {
        Self { read: Box::new(system_time), set: None, policy: Mutex::new(ClockPolicy::new(0, None)) }
    }

    /// The system's clock, moved through `set` where the policy says so, for the recovery system, where nothing else
    /// keeps time.
    pub fn adjustable(policy: ClockPolicy, set: SetClock) -> Self {
        Self::new(Box::new(system_time), Some(set), policy)
    }

    /// A clock with every part given.
    pub fn new(read: ReadClock, set: Option<SetClock>, policy: ClockPolicy) -> Self {
        Self { read, set, policy: Mutex::new(policy) }
    }

    /// Brings a clock that cannot be right to the floor of the policy, before the first request. A fixed
    /// clock is left alone.
    pub fn start(&self) {
        let policy = self.policy.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(set), Start::SetTo(seconds)) = (&self.set, policy.start((self.read)())) {
            set(seconds);
        }
    }

    fn now(&self) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs((self.read)()))
    }
}

fn system_time() -> u64 {
    // Before 1970 is as wrong as 1970.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The disagreement with the clock that a certificate error is about, if it is about one.
pub fn time_disagreement(error: &rustls::Error) -> Option<(u64, CertificateTime)> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before }) => {
            Some((time.as_secs(), CertificateTime::NotYetValid { not_before: not_before.as_secs() }))
        }
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            Some((time.as_secs(), CertificateTime::Expired { not_after: not_after.as_secs() }))
        }
        _ => None,
    }
}

/// The usual verification, repeated at the times that the clock policy proposes. The clock itself is moved only once
/// the chain was found good in all other respects: webpki looks at the dates before the signatures, so that any machine
/// on the network could otherwise move the clock with a certificate that it signed itself.
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Arc<CertificateClock>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |now| self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let now = self.clock.now();
        let mut result = verify(now);
        let Some(set) = &self.clock.set else { return result };
        // The lock is held throughout: two connections at once must not both spend moves on the same discovery.
        let mut policy = self.clock.policy.lock().unwrap_or_else(PoisonError::into_inner);
        let mut trial = policy.clone();
        let mut at = now.as_secs();
        loop {
            match result {
                Ok(good) => {
                    if at != now.as_secs() {
                        *policy = trial;
                        set(at);
                    }
                    return Ok(good);
                }
                Err(error) => {
                    let moved = time_disagreement(&error).and_then(|(_, why)| trial.on_certificate_error(at, why));
                    let Some(next) = moved else { return Err(error) };
                    at = next;
                    result = verify(UnixTime::since_unix_epoch(Duration::from_secs(at)));
                }
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A provider without keys: no client certificate is ever shown. The code that signs with every kind of private key is
/// a hundredth of the agent.
#[derive(Debug)]
struct NoPrivateKeys;

impl KeyProvider for NoPrivateKeys {
    fn load_private_key(&self, _: PrivateKeyDer<'static>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
        Err(rustls::Error::General("this client has no private key".to_owned()))
    }
}

/// The TLS settings for all connections: roots from `ca_file` only, or the bundled Mozilla roots.
pub(super) fn client_config(
    ca_file: Option<&Path>,
    clock: Arc<CertificateClock>,
) -> Result<Arc<ClientConfig>, FetchError> {
    let provider = CryptoProvider { key_provider: &NoPrivateKeys, ..rustls::crypto::ring::default_provider() };
    let provider = Arc::new(provider);
    let (name, roots) = match ca_file {
        Some(path) => (path.display().to_string(), roots_from(path)?),
        None => {
            let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
            ("the bundled CA roots".to_owned(), roots)
        }
    };
    let unusable =
        |error: String| FetchError::new(FetchErrorKind::Settings, &name, "TLS cannot be set up").because(error);
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .build()
        .map_err(|error| unusable(error.to_string()))?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(error.to_string()))?
        .dangerous() // The name of the method; the verifier above only adds to the usual one.
        .with_custom_certificate_verifier(Arc::new(Verifier { inner, clock }))
        .with_no_client_auth();
    Ok(Arc::new(config))
}

fn roots_from(path: &Path) -> Result<RootCertStore, FetchError> {
    let name = path.display().to_string();
    let error = |problem: &str| FetchError::new(FetchErrorKind::Settings, &name, problem);
    let pem = std::fs::read(path).map_err(|cause| error("the CA file cannot be read").because(cause))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|cause| error("the CA file is not PEM").because(cause.to_string()))?;
        roots.add(certificate).map_err(|cause| error("the CA file has a certificate that is no CA").because(cause))?;
    }
    if roots.is_empty() {
        return Err(error("the CA file has no certificate"));
    }
    Ok(roots)
}
