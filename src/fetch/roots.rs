//! The authorities of `network.ca_file`, in the forms in which people have them.

use std::borrow::Cow;
use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::error::{FetchError, FetchErrorKind};
use crate::sys::files;

/// Size of the largest file of CA roots, bytes: all public ones together have 250 KB.
const MAX_CA_BYTES: u64 = 4 << 20;
/// The bytes with which some editors begin a text.
const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";
/// OpenSSL's own form of a certificate: one with a list of what it is trusted for. It is refused and not taken for the
/// certificate alone, since the list may say that it is not trusted.
const TRUSTED_LABEL: &str = "TRUSTED CERTIFICATE";

/// Reads the file of authorities to trust.
pub(super) fn from_file(path: &Path) -> Result<RootCertStore, FetchError> {
    let name = path.display().to_string();
    let error = |problem: String| FetchError::new(FetchErrorKind::Settings, &name, problem);
    let content = files::read_named(path, MAX_CA_BYTES);
    let content = content.map_err(|cause| error("the CA file cannot be read".to_owned()).because(cause))?;
    let certificates = certificates(&content).map_err(|problem| error(format!("the CA file {problem}")))?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        let no_ca = "the CA file has a certificate that is no CA".to_owned();
        roots.add(certificate).map_err(|cause| error(no_ca).because(cause))?;
    }
    Ok(roots)
}

/// The certificates in a file, at least one; or what is wrong with the file, to be continued from "the CA file".
fn certificates(content: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    if content.starts_with(b"\xff\xfe") || content.starts_with(b"\xfe\xff") {
        return Err("is UTF-16; save it as plain text".to_owned());
    }
    // DER begins with a sequence of more than 255 bytes, which no text does.
    if content.starts_with(&[0x30, 0x82]) {
        return Ok(vec![CertificateDer::from(content.to_vec())]);
    }
    let text = String::from_utf8_lossy(content.strip_prefix(UTF8_MARK).unwrap_or(content));
    let labels: Vec<&str> = text.lines().filter_map(label).collect();
    if labels.contains(&TRUSTED_LABEL) {
        return Err(format!("has a {TRUSTED_LABEL}, which is a form of OpenSSL alone; `openssl x509` converts it"));
    }
    let found = CertificateDer::pem_slice_iter(plain_labels(&text).as_bytes()).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|cause| format!("is not PEM: {cause}"))?;
    match (found.is_empty(), &labels[..]) {
        (false, _) => Ok(found),
        (true, []) => Err("has no certificate".to_owned()),
        (true, labels) => Err(format!("has no certificate, only {}", labels.join(", "))),
    }
}

/// The label in the first line of a PEM section.
fn label(line: &str) -> Option<&str> {
    line.trim().strip_prefix("-----BEGIN ")?.strip_suffix("-----")
}

/// The text with the old label of certificates replaced by today's.
fn plain_labels(text: &str) -> Cow<'_, str> {
    if text.contains(" X509 CERTIFICATE-----") {
        return text.replace(" X509 CERTIFICATE-----", " CERTIFICATE-----").into();
    }
    text.into()
}

#[cfg(test)]
mod tests {
    use super::certificates;

    const PEM: &str = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";

    #[test]
    fn certificates_are_found_in_every_form_of_the_text() {
        for text in [
            PEM.to_owned(),
            format!("\u{feff}{PEM}"),
            format!("# comment\r\n{}", PEM.replace('\n', "\r\n")),
            PEM.replace("CERTIFICATE", "X509 CERTIFICATE"),
            format!("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n{PEM}"),
        ] {
            assert_eq!(certificates(text.as_bytes()).map(|found| found.len()), Ok(1), "{text}");
        }
        assert_eq!(certificates(&[0x30, 0x82, 1, 0, 0]).unwrap().len(), 1);
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        let utf_16: Vec<u8> = format!("\u{feff}{PEM}").encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (content, words) in [
            (&utf_16[..], "UTF-16"),
            (b"", "has no certificate"),
            (b"nothing", "has no certificate"),
            (PEM.replace("CERTIFICATE", "TRUSTED CERTIFICATE").as_bytes(), "TRUSTED CERTIFICATE"),
            (PEM.replace("CERTIFICATE", "PKCS7").as_bytes(), "only PKCS7"),
            (PEM.replace("MIIB", "MI!B").as_bytes(), "is not PEM"),
        ] {
            let problem = certificates(content).unwrap_err();
            assert!(problem.contains(words), "{words}: {problem}");
        }
    }
}
