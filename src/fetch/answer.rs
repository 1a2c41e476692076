//! The head of an HTTP answer, and whether it may be believed.

use std::ops::Range;
use std::time::{Duration, SystemTime};

use ureq::Body;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, Response, StatusCode, Uri};

use super::error::{FetchError, FetchErrorKind, passes};
use super::url;
use crate::machine::config::has_usable_port;

/// The longest pause that a server may ask for: one that asks for more is treated like one that is down.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(600);

/// An answer with its final URL, redirects followed.
pub(super) struct HttpAnswer {
    pub url: String,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Body,
}

/// Whether the answer sends the client elsewhere.
pub(super) fn is_redirect(status: StatusCode) -> bool {
    matches!(status.as_u16(), 300..=303 | 307 | 308)
}

impl HttpAnswer {
    /// The value of a header, if it is text.
    pub fn header(&self, name: HeaderName) -> Option<&str> {
        text(&self.headers, name)
    }

    /// Whether the server calls the answer a web page.
    pub fn is_called_html(&self) -> bool {
        self.header(CONTENT_TYPE).is_some_and(|value| value.trim().to_ascii_lowercase().starts_with("text/html"))
    }
}

/// Turns the answers that carry no object into errors. 416 is for the caller, who knows what was asked for.
pub(super) fn sorted_out(url: String, response: Response<Body>) -> Result<HttpAnswer, FetchError> {
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    let refused = |kind, problem: String| FetchError::new(kind, &url, problem).retry_after(retry_after(&head.headers));
    match status {
        200..=299 | 416 => {}
        404 | 410 => {
            return Err(refused(FetchErrorKind::Missing, format!("not there (HTTP status {status})")).denied());
        }
        511 => {
            let problem = format!("HTTP status {}: {WEB_PAGE}", head.status);
            return Err(refused(FetchErrorKind::Refused(status), problem));
        }
        400..=599 => {
            let error = refused(FetchErrorKind::Refused(status), format!("HTTP status {}", head.status));
            return Err(if passes(status) { error } else { error.denied() });
        }
        _ => {
            // Only a post does not follow redirects.
            let problem = match redirected(&url, &head.headers) {
                Ok(target) if is_redirect(head.status) => {
                    let to = url::redacted(&target);
                    format!("redirected to {to}, where nothing is posted: a login page, or the URL to configure")
                }
                _ => format!("unexpected HTTP status {}", head.status),
            };
            return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem));
        }
    }
    if let Some(coding) = coding(&head.headers) {
        // Offsets would then count bytes of the encoding.
        let problem = format!("the answer is encoded as {coding:?} although that was not offered");
        return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem));
    }
    Ok(HttpAnswer { url, status, headers: head.headers, body })
}

/// What an answer is that has a page for people in place of a file.
pub(super) const WEB_PAGE: &str = "the answer is a web page, as of a captive portal or a login page";

/// Whether the beginning of a body is that of a web page. The server's word for it is not enough: some call every file
/// without an extension `text/html`.
pub(super) fn is_web_page(beginning: &[u8]) -> bool {
    let text = beginning.strip_prefix(b"\xef\xbb\xbf").unwrap_or(beginning).trim_ascii_start();
    let begins = |with: &str| text.get(..with.len()).is_some_and(|start| start.eq_ignore_ascii_case(with.as_bytes()));
    ["<!doctype html", "<html", "<head", "<body", "<script", "<meta"].iter().any(|tag| begins(tag))
}

/// The coding of a body that its server applied to it.
///
/// Only the codings that servers and proxies apply by themselves are one. Stores repeat whatever was said at the
/// upload, such as `aws-chunked`, an empty value, or `utf-8`, of a body that they deliver as it is, some servers look
/// into a file and call zstd what is zstd; and what is not as it should be has the wrong digest.
fn coding(headers: &HeaderMap) -> Option<String> {
    const APPLIED: [&str; 6] = ["gzip", "x-gzip", "deflate", "br", "compress", "x-compress"];
    let values = headers.get_all(CONTENT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(',')).map(|coding| coding.trim().to_ascii_lowercase());
    codings.find(|coding| APPLIED.contains(&coding.as_str()))
}

pub(super) fn redirected(url: &str, headers: &HeaderMap) -> Result<String, FetchError> {
    let protocol = |problem: String| FetchError::new(FetchErrorKind::Protocol, url, problem);
    let location = headers.get(LOCATION).map(|location| url::escaped(location.as_bytes().trim_ascii()));
    let location = location.ok_or_else(|| protocol("a redirect without a Location".to_owned()))?;
    let target = url::located(url, &location)
        .filter(|target| has_usable_port(target))
        .filter(|target| target.parse::<Uri>().is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty())))
        .ok_or_else(|| protocol("a redirect to something that is no URL".to_owned()))?;
    let shown = url::redacted(&target);
    let secure = |url: &str| url.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"));
    let plain = |url: &str| url.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("http://"));
    match (secure(url), secure(&target), plain(&target)) {
        (true, false, true) => Err(protocol(format!("a redirect from https to {shown} is not followed"))),
        (_, true, _) | (_, _, true) => Ok(target),
        _ => Err(protocol(format!("a redirect to {shown} is not followed"))),
    }
}

/// `bytes FIRST-LAST/TOTAL` as a half-open range, with the total where it is known. The name of the unit is in any
/// case, and what follows it need not be a space.
pub(super) fn parse_content_range(value: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (unit, rest) = value.trim().split_at_checked("bytes".len())?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let rest = rest.trim_start_matches([' ', '\t', '=', ':']);
    let (range, total) = rest.split_once('/').unwrap_or((rest, "*"));
    let (first, last) = range.trim().split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    (first <= last).then_some((first..last.checked_add(1)?, total.trim().parse().ok()))
}

/// The pause in `Retry-After`, capped. A date is compared with the date of the answer itself: this machine's clock may
/// be wrong, and is asked only where the server gives no date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, RETRY_AFTER)?.trim();
    if value.bytes().all(|byte| byte.is_ascii_digit()) && !value.is_empty() {
        // A number beyond all numbers is a very long time.
        let seconds = value.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = text(headers, DATE).and_then(|date| httpdate::parse_http_date(date.trim()).ok());
    let pause = until.duration_since(now.unwrap_or_else(SystemTime::now)).ok()?;
    Some(pause.min(MAX_RETRY_AFTER))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ureq::http::HeaderMap;

    use super::{coding, is_web_page, parse_content_range, redirected, retry_after};

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 0-99/500"), Some((0..100, Some(500))));
        assert_eq!(parse_content_range("Bytes 5-5/*"), Some((5..6, None)));
        assert_eq!(parse_content_range(" BYTES=5 - 6/9"), Some((5..7, Some(9))));
        assert_eq!(parse_content_range("bytes 5-6"), Some((5..7, None)));
        for bad in ["", "bytes */500", "bytes 9-5/500", "0-99/500", "bytes 0-18446744073709551615/*", "bytes 0", "bÿ"]
        {
            assert_eq!(parse_content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn codings_that_encode_nothing_are_no_codings() {
        let of = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("content-encoding", value.parse().unwrap());
            }
            coding(&headers)
        };
        for harmless in
            [&[][..], &[""], &["identity"], &["aws-chunked"], &["identity, aws-chunked", "utf-8"], &["none"]]
        {
            assert_eq!(of(harmless), None, "{harmless:?}");
        }
        for (applied, name) in [(&["GZIP"][..], "gzip"), (&["aws-chunked, br"], "br"), (&["", "deflate"], "deflate")] {
            assert_eq!(of(applied).as_deref(), Some(name));
        }
    }

    #[test]
    fn pages_for_people_are_known_by_how_they_begin() {
        for page in ["<!DOCTYPE html>", "\u{feff}\r\n <HTML lang=en>", "<script>location='/login'</script>"] {
            assert!(is_web_page(page.as_bytes()), "{page}");
        }
        for file in [&b"{\"format\":1}"[..], b"untrusted comment: x", b"\x28\xb5\x2f\xfd", b"", b"<", b"<?xml"] {
            assert!(!is_web_page(file), "{file:?}");
        }
    }

    #[test]
    fn a_redirect_must_not_leave_https() {
        let to = |from: &str, location: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("location", location.parse().unwrap());
            redirected(from, &headers)
        };
        assert_eq!(to("http://a/x", "https://b/y").unwrap(), "https://b/y");
        assert_eq!(to("https://a/x", "/y").unwrap(), "https://a/y");
        for (from, location) in [
            ("https://a/x", "http://b/y"),
            ("HTTPS://a/x", "HTTP://b/y"),
            ("http://a/x", "ftp://b/y"),
            ("http://a/x", "http:///y"),
        ] {
            assert!(to(from, location).is_err(), "{from} -> {location}");
        }
        let shown = to("https://a/x", "http://u:secret@b/y?token=secret").unwrap_err().to_string();
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn retry_after_is_capped_and_a_date_is_compared_with_the_servers_own() {
        let of = |pairs: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in pairs {
                headers.insert(*name, value.parse().unwrap());
            }
            retry_after(&headers)
        };
        let seconds = |value: &str| of(&[("retry-after", value)]).map(|pause| pause.as_secs());
        assert_eq!((seconds("7"), seconds("86400"), seconds(&"9".repeat(40))), (Some(7), Some(600), Some(600)));
        for nothing in ["", "-5", "soon", "1e3", "Wed, 21 Oct 2026 07:28:00 MEZ"] {
            assert_eq!(seconds(nothing), None, "{nothing}");
        }
        let (date, until) = ("Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:44 GMT");
        assert_eq!(of(&[("retry-after", until), ("date", date)]), Some(Duration::from_secs(7)));
        assert_eq!(of(&[("retry-after", date), ("date", until)]), None, "past");
        assert_eq!(of(&[("retry-after", "Sunday, 06-Nov-94 08:49:44 GMT"), ("date", date)]).unwrap().as_secs(), 7);
        // Without the server's date, by this machine's clock.
        assert_eq!((seconds(until), seconds("Fri, 31 Dec 9999 23:59:59 GMT")), (None, Some(600)));
    }
}
