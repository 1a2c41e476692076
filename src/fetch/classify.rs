//! Classifies what ureq, rustls and the kernel report as a [`FetchError`].

use std::error::Error;
use std::io;

use ureq::Timeout;

use super::connect::{LookupError, NoTls};
use super::error::{FetchError, FetchErrorKind};
use super::exchange::UnansweredOnKept;
use super::head::EndlessHead;
use super::proxy::{NoProxy, ProxyRefusal};
use super::tls::time_disagreement;
use crate::machine::clock::CertificateTime;
use crate::utc::Utc;

/// The error of a request or of a read of its body.
pub(super) fn classified(url: &str, error: ureq::Error) -> FetchError {
    if let Some(tls) = find::<rustls::Error>(&error) {
        return from_tls(url, tls);
    }
    if let Some(lookup) = find::<LookupError>(&error) {
        let problem = lookup.to_string();
        let cause = lookup.source().map(ToString::to_string).unwrap_or_default();
        return FetchError::new(FetchErrorKind::Unreachable, url, problem).because(cause);
    }
    if let Some(refusal) = find::<ProxyRefusal>(&error) {
        return FetchError::new(FetchErrorKind::Unreachable, url, refusal.to_string());
    }
    if let Some(no_proxy) = find::<NoProxy>(&error) {
        return FetchError::new(FetchErrorKind::Unreachable, url, no_proxy.to_string());
    }
    if let Some(no_tls) = find::<NoTls>(&error) {
        return FetchError::new(FetchErrorKind::Tls, url, "there is no way to trust a server")
            .because(no_tls.to_string());
    }
    if let Some(endless) = find::<EndlessHead>(&error) {
        return FetchError::new(FetchErrorKind::Protocol, url, endless.to_string());
    }
    if let Some(UnansweredOnKept(cause)) = find::<UnansweredOnKept>(&error) {
        return from_io(url, cause.kind()).because(cause.to_string());
    }
    match &error {
        ureq::Error::Timeout(Timeout::Connect | Timeout::Resolve) => {
            FetchError::new(FetchErrorKind::Unreachable, url, "no connection within the connect timeout")
        }
        ureq::Error::Timeout(_) => FetchError::new(FetchErrorKind::Stalled, url, "no byte within the stall timeout"),
        ureq::Error::Io(cause) => from_io(url, cause.kind()).because(error),
        ureq::Error::HostNotFound => FetchError::new(FetchErrorKind::Unreachable, url, "the host name has no address"),
        ureq::Error::ConnectionFailed | ureq::Error::ConnectProxyFailed(_) => {
            FetchError::new(FetchErrorKind::Unreachable, url, "no connection").because(error)
        }
        ureq::Error::Tls(_) | ureq::Error::TlsRequired => {
            FetchError::new(FetchErrorKind::Tls, url, "no trusted connection").because(error)
        }
        ureq::Error::BadUri(_) | ureq::Error::InvalidProxyUrl => {
            FetchError::new(FetchErrorKind::Settings, url, "the URL cannot be used")
        }
        ureq::Error::BodyStalled => FetchError::new(FetchErrorKind::Broken, url, "the connection ended"),
        _ => FetchError::new(FetchErrorKind::Protocol, url, "the answer is not HTTP").because(error),
    }
}

/// How a kept connection failed that brought no byte of an answer, so that the request can be sent on another one.
pub(super) fn unanswered_on_kept(error: &ureq::Error) -> Option<io::ErrorKind> {
    find::<UnansweredOnKept>(error).map(|UnansweredOnKept(cause)| cause.kind())
}

/// Whether the other side of a TLS connection does not speak TLS.
pub(super) fn is_no_tls(error: &ureq::Error) -> bool {
    matches!(find::<rustls::Error>(error), Some(rustls::Error::InvalidMessage(_)))
}

/// The error of a read of the body, which ureq wraps once more.
pub(super) fn classified_read(url: &str, error: io::Error) -> FetchError {
    // The conversion takes a ureq error out of the io::Error it was wrapped in.
    classified(url, ureq::Error::from(error))
}

fn from_io(url: &str, kind: io::ErrorKind) -> FetchError {
    match kind {
        io::ErrorKind::ConnectionRefused => FetchError::new(FetchErrorKind::Unreachable, url, "the port is closed"),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable | io::ErrorKind::NetworkDown => {
            FetchError::new(FetchErrorKind::Unreachable, url, "there is no route")
        }
        // ICMPv6 has its own word for it, and the firewall of a running system too.
        io::ErrorKind::PermissionDenied => {
            FetchError::new(FetchErrorKind::Unreachable, url, "a router or a firewall forbids the connection")
        }
        io::ErrorKind::AddrNotAvailable => {
            FetchError::new(FetchErrorKind::Unreachable, url, "no address to connect from")
        }
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => {
            FetchError::new(FetchErrorKind::Stalled, url, "no answer")
        }
        _ => FetchError::new(FetchErrorKind::Broken, url, "the connection broke"),
    }
}

/// Whether the two sides have no version, cipher or kind of key in common.
fn is_nothing_in_common(error: &rustls::Error) -> bool {
    use rustls::{AlertDescription, CertificateError, Error};
    match error {
        Error::PeerIncompatible(_) => true,
        Error::AlertReceived(alert) => matches!(
            alert,
            AlertDescription::HandshakeFailure
                | AlertDescription::ProtocolVersion
                | AlertDescription::InsufficientSecurity
        ),
        Error::InvalidCertificate(CertificateError::Other(_)) => false,
        // A key of RSA that is too short for it verifies nothing.
        Error::InvalidCertificate(CertificateError::BadSignature) => true,
        Error::InvalidCertificate(certificate) => format!("{certificate:?}").contains("UnsupportedSignature"),
        _ => false,
    }
}

fn from_tls(url: &str, error: &rustls::Error) -> FetchError {
    let Some((now, why)) = time_disagreement(error) else {
        let problem = match error {
            rustls::Error::InvalidMessage(_) => "no trusted connection: what answers at this port is not TLS",
            rustls::Error::InvalidCertificate(certificate)
                if format!("{certificate:?}").contains("CaUsedAsEndEntity") =>
            {
                "no trusted connection: the server's certificate is one of an authority (CA:TRUE), as `openssl req \
                 -x509` makes it by default; give the server one made with basicConstraints=CA:FALSE"
            }
            rustls::Error::InvalidCertificate(certificate)
                if format!("{certificate:?}").contains("UnsupportedCertVersion") =>
            {
                "no trusted connection: the server's certificate is of version 1, as `openssl x509 -req` makes it \
                 without -extfile; give the server one made with subjectAltName=DNS:NAME"
            }
            rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired) => {
                "no trusted connection: the server wants a certificate of this machine, and this agent shows none; let \
                 the server ask for a user and a password, or for nothing, since releases are signed"
            }
            error if is_nothing_in_common(error) => {
                "no trusted connection: the server offers nothing that this agent knows, which is TLS 1.2 and 1.3 by \
                 ECDHE with AES-GCM or ChaCha20, and certificates with keys of RSA (2048 bits or more), P-256, P-384 or \
                 Ed25519"
            }
            _ => {
                "no trusted connection (network.ca_file decides which authorities are trusted; the server has to send \
                 those in between)"
            }
        };
        return FetchError::new(FetchErrorKind::Tls, url, problem).because(error.clone());
    };
    let (not_before, not_after, problem) = match why {
        CertificateTime::NotYetValid { not_before } => {
            let problem =
                format!("the certificate is valid from {}, this machine's clock says {}", Utc(not_before), Utc(now));
            (Some(not_before), None, problem)
        }
        CertificateTime::Expired { not_after } => {
            let problem =
                format!("the certificate was valid until {}, this machine's clock says {}", Utc(not_after), Utc(now));
            (None, Some(not_after), problem)
        }
    };
    FetchError::new(FetchErrorKind::TlsTime { now, not_before, not_after }, url, problem)
}

/// Looks for a cause of one type through every kind of wrapping on the way: `source()` skips what is directly inside
/// an `io::Error`, and ureq's error names no source at all.
fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    if let Some(found) = error.downcast_ref::<T>() {
        return Some(found);
    }
    if let Some(io) = error.downcast_ref::<io::Error>()
        && let Some(inner) = io.get_ref()
    {
        return find(inner);
    }
    match error.downcast_ref::<ureq::Error>() {
        Some(ureq::Error::Io(io)) => return find(io),
        Some(ureq::Error::Other(inner)) => return find(&**inner),
        _ => {}
    }
    error.source().and_then(find)
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use rustls::CertificateError;
    use rustls::pki_types::UnixTime;

    use super::{classified, classified_read};
    use crate::fetch::FetchErrorKind;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    #[test]
    fn a_certificate_error_is_found_through_any_wrapping() {
        let error = || rustls::Error::from(CertificateError::NotValidYetContext { time: at(5), not_before: at(9) });
        let expected = FetchErrorKind::TlsTime { now: 5, not_before: Some(9), not_after: None };
        let once = io::Error::new(io::ErrorKind::InvalidData, error());
        assert_eq!(classified("u", ureq::Error::Io(once)).kind(), expected);
        let twice = io::Error::other(io::Error::new(io::ErrorKind::InvalidData, error()));
        assert_eq!(classified("u", ureq::Error::Io(twice)).kind(), expected);
        let wrapped = ureq::Error::Other(Box::new(ureq::Error::Io(io::Error::other(error()))));
        assert_eq!(classified_read("u", wrapped.into_io()).kind(), expected);
    }

    #[test]
    fn a_server_that_wants_a_certificate_is_called_that() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let error = classified("u", ureq::Error::Io(io::Error::other(alert)));
        assert_eq!(error.kind(), FetchErrorKind::Tls);
        assert!(error.to_string().contains("wants a certificate of this machine"), "{error}");
    }

    /// As the verifier names it, in an error of its own.
    #[derive(Debug, thiserror::Error)]
    #[error("unsupported version")]
    struct UnsupportedCertVersion;

    #[test]
    fn certificates_that_people_make_by_mistake_are_named() {
        let problem = |error: CertificateError| {
            let error = rustls::Error::InvalidCertificate(error);
            classified("u", ureq::Error::Io(io::Error::other(error))).to_string()
        };
        let version = rustls::OtherError(std::sync::Arc::new(UnsupportedCertVersion));
        assert!(problem(CertificateError::Other(version)).contains("of version 1"));
        assert!(problem(CertificateError::BadSignature).contains("2048 bits or more"));
        assert!(problem(CertificateError::UnknownIssuer).contains("those in between"));
    }

    #[test]
    fn timeouts_are_told_apart() {
        let connect = ureq::Error::Timeout(ureq::Timeout::Connect);
        assert_eq!(classified("u", connect).kind(), FetchErrorKind::Unreachable);
        let read = ureq::Error::Timeout(ureq::Timeout::PerRead).into_io();
        assert_eq!(classified_read("u", read).kind(), FetchErrorKind::Stalled);
    }

    #[test]
    fn closed_ports_and_broken_connections_are_told_apart() {
        for (kind, expected) in [
            (io::ErrorKind::ConnectionRefused, FetchErrorKind::Unreachable),
            (io::ErrorKind::NetworkUnreachable, FetchErrorKind::Unreachable),
            (io::ErrorKind::PermissionDenied, FetchErrorKind::Unreachable),
            (io::ErrorKind::ConnectionReset, FetchErrorKind::Broken),
            (io::ErrorKind::UnexpectedEof, FetchErrorKind::Broken),
        ] {
            assert_eq!(classified("u", ureq::Error::Io(kind.into())).kind(), expected, "{kind:?}");
        }
    }
}
