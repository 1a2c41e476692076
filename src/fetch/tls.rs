//! TLS: the trusted roots, and certificates that disagree with the clock.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, KeyProvider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::SigningKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::error::{FetchError, FetchErrorKind};
use super::roots;
use crate::machine::clock::{CertificateTime, ClockPolicy, Judgement, Refusals, Start, Validity};
use crate::sys::clock::now_unix_s;
use crate::sys::thread::lock;

/// A function that reads a clock: seconds since 1970.
pub type ReadClock = Box<dyn Fn() -> u64 + Send + Sync>;
/// A function that sets a clock to seconds since 1970.
pub type SetClock = Box<dyn Fn(u64) + Send + Sync>;

/// A time after every certificate: the end of the year 9999, which X.509 uses for one that never ends (RFC 5280,
/// section 4.1.2.5).
const AFTER_ALL_S: u64 = 253_402_300_799;
/// Certificates of a chain that are looked at for their dates: more than any chain has.
const MAX_CHAIN: usize = 16;
/// Names of servers that are remembered as refused: more than a configuration has.
const MAX_REFUSED: usize = 64;

/// The machine's clock as TLS sees it, and the policy that may move it.
pub struct CertificateClock {
    read: ReadClock,
    set: Option<SetClock>,
    state: Mutex<ClockState>,
}

/// What is decided under one lock: connections that are made at once must not decide on different times.
struct ClockState {
    policy: ClockPolicy,
    /// Servers whose certificates were refused for their dates since the last one that was good.
    refused: BTreeSet<String>,
    first_refusal: Option<Instant>,
}

impl ClockState {
    fn refusals(&self, server: &str) -> Refusals {
        Refusals {
            same_server: self.refused.contains(server),
            since_first: self.first_refusal.map(|first| first.elapsed()).unwrap_or_default(),
        }
    }

    fn refuse(&mut self, server: String) {
        self.first_refusal.get_or_insert_with(Instant::now);
        if self.refused.len() < MAX_REFUSED {
            self.refused.insert(server);
        }
    }

    fn accept(&mut self) {
        self.refused.clear();
        self.first_refusal = None;
    }
}

impl CertificateClock {
    /// A clock that stays as it is, for a running system: a certificate that disagrees with it is an error.
    pub fn fixed() -> Self {
        Self::new(Box::new(now_unix_s), None, ClockPolicy::new(0, None))
    }

    /// The system's clock, moved through `set` where the policy says so, for the recovery system, where nothing else
    /// keeps time.
    pub fn adjustable(policy: ClockPolicy, set: SetClock) -> Self {
        Self::new(Box::new(now_unix_s), Some(set), policy)
    }

    /// A clock with every part given.
    pub fn new(read: ReadClock, set: Option<SetClock>, policy: ClockPolicy) -> Self {
        let state = ClockState { policy, refused: BTreeSet::new(), first_refusal: None };
        Self { read, set, state: Mutex::new(state) }
    }

    /// Brings a clock that cannot be right to the floor of the policy, before the first request. Returns what the clock
    /// showed and what it shows now, if it was set. A fixed clock is left alone.
    pub fn start(&self) -> Option<(u64, u64)> {
        let set = self.set.as_ref()?;
        let mut state = lock(&self.state);
        let found = (self.read)();
        match state.policy.start(found) {
            Start::SetTo(seconds) => {
                set(seconds);
                Some((found, seconds))
            }
            Start::Keep => None,
        }
    }

    /// The time, seconds since 1970, if the clock can be relied on.
    pub fn known_time(&self) -> Option<u64> {
        let now = (self.read)();
        lock(&self.state).policy.is_sure(now).then_some(now)
    }

    /// The time that the clock would show had nothing moved it, seconds since 1970.
    pub fn of_hardware(&self) -> u64 {
        lock(&self.state).policy.unmoved((self.read)())
    }

    /// Takes the creation time of an authentic manifest that is meant for this machine, seconds since 1970. It moves a
    /// clock that seems to be behind, as far as the policy believes it.
    pub fn learn(&self, created_unix_s: u64) {
        let Some(set) = &self.set else { return };
        let mut state = lock(&self.state);
        if let Some(target) = state.policy.learn((self.read)(), created_unix_s) {
            set(target);
        }
    }
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

/// The usual verification, with a clock that the policy may move. It is moved only once the chain was found good in all
/// other respects: webpki looks at the dates before the signatures, so that any machine on the network could otherwise
/// move the clock with a certificate that it signed itself.
struct Verifier {
    inner: Arc<WebPkiServerVerifier>,
    clock: Arc<CertificateClock>,
}

type Verify<'a> = &'a dyn Fn(u64) -> Result<ServerCertVerified, rustls::Error>;

/// Finds the time in which a chain is valid: webpki names the dates only of a certificate that fails, so the chain is
/// verified before and after all of them. The dates are those of an unproven chain.
fn validity(verify: Verify<'_>) -> Validity {
    let mut not_before = 0;
    for _ in 0..MAX_CHAIN {
        match verify(not_before).as_ref().err().and_then(time_disagreement) {
            Some((_, CertificateTime::NotYetValid { not_before: later })) if later > not_before => not_before = later,
            _ => break,
        }
    }
    let mut not_after = AFTER_ALL_S;
    for _ in 0..MAX_CHAIN {
        match verify(not_after).as_ref().err().and_then(time_disagreement) {
            Some((_, CertificateTime::Expired { not_after: earlier })) if earlier < not_after => not_after = earlier,
            _ => break,
        }
    }
    Validity { not_before, not_after }
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
        let verify = |now| {
            let now = UnixTime::since_unix_epoch(Duration::from_secs(now));
            self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
        };
        let Some(set) = &self.clock.set else { return verify((self.clock.read)()) };
        // The lock is held throughout, and the clock read under it: of several connections at once the first may move
        // it, and the others must see where to.
        let mut state = lock(&self.clock.state);
        let now = (self.clock.read)();
        let result = verify(now);
        if result.as_ref().is_err_and(|error| time_disagreement(error).is_none()) {
            return result;
        }
        let server = server_name.to_str().into_owned();
        let (validity, refusals) = (validity(&verify), state.refusals(&server));
        let mut trial = state.policy.clone();
        let good = match trial.judge(now, validity, refusals) {
            Judgement::Valid => result?,
            Judgement::SetTo(time) => verify(time).inspect(|_| set(time))?,
            Judgement::Refused => {
                // A chain that is not trusted at any time says nothing about the clock.
                if verify(validity.not_after).is_ok() {
                    state.refuse(server);
                }
                return result;
            }
        };
        state.policy = trial;
        state.accept();
        Ok(good)
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
        Some(path) => (path.display().to_string(), roots::from_file(path)?),
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
