//! The head of an HTTP answer, and whether it may be believed.

use std::ops::Range;
use std::time::Duration;

use ureq::Body;
use ureq::http::header::{CONTENT_ENCODING, CONTENT_RANGE, LOCATION, RETRY_AFTER};
use ureq::http::{HeaderMap, HeaderName, Response, StatusCode, Uri};

use super::error::{FetchError, FetchErrorKind};
use super::url;

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
    matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
}

/// Turns the answers that carry no object into errors.
pub(super) fn sorted_out(url: String, response: Response<Body>) -> Result<HttpAnswer, FetchError> {
    let (head, body) = response.into_parts();
    let status = head.status.as_u16();
    match status {
        200..=299 => {}
        404 | 410 => {
            return Err(FetchError::new(FetchErrorKind::Missing, &url, format!("not there (HTTP status {status})")));
        }
        400..=599 if status != 416 => {
            let problem = format!("HTTP status {}", head.status);
            return Err(
                FetchError::new(FetchErrorKind::Refused(status), &url, problem).retry_after(retry_after(&head.headers))
            );
        }
        416 => {
            return Err(FetchError::new(
                FetchErrorKind::Protocol,
                &url,
                "the object is shorter than it has to be (HTTP 416)",
            ));
        }
        _ => {
            return Err(FetchError::new(
                FetchErrorKind::Protocol,
                &url,
                format!("unexpected HTTP status {}", head.status),
            ));
        }
    }
    let encoding = text(&head.headers, CONTENT_ENCODING).unwrap_or("identity").trim();
    if !encoding.eq_ignore_ascii_case("identity") {
        // Offsets would then count bytes of the encoding.
        let problem = format!("the answer is encoded as {encoding:?} although that was not offered");
        return Err(FetchError::new(FetchErrorKind::Protocol, &url, problem));
    }
    Ok(HttpAnswer { url, status, headers: head.headers, body })
}

pub(super) fn redirected(url: &str, headers: &HeaderMap) -> Result<String, FetchError> {
    let protocol = |problem: String| FetchError::new(FetchErrorKind::Protocol, url, problem);
    let location = text(headers, LOCATION).ok_or_else(|| protocol("a redirect without a Location".to_owned()))?;
    let target = url::located(url, location)
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

pub(super) fn check_content_range(url: &str, headers: &HeaderMap, range: &Range<u64>) -> Result<(), FetchError> {
    let value = text(headers, CONTENT_RANGE).unwrap_or("");
    if parse_content_range(value).is_some_and(|answered| answered == *range) {
        return Ok(());
    }
    let problem =
        format!("asked for bytes {} to {}, the answer's Content-Range is {value:?}", range.start, range.end - 1);
    Err(FetchError::new(FetchErrorKind::Protocol, url, problem))
}

/// `bytes FIRST-LAST/TOTAL` as a half-open range.
fn parse_content_range(value: &str) -> Option<Range<u64>> {
    let (range, _total) = value.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.trim().split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some(first..last.checked_add(1)?)
}

/// The pause in `Retry-After`, capped. Its other form, a date, says nothing to a machine that doubts its clock.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = text(headers, RETRY_AFTER)?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER))
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ureq::http::HeaderMap;

    use super::{parse_content_range, redirected, retry_after};

    #[test]
    fn content_ranges() {
        assert_eq!(parse_content_range("bytes 0-99/500"), Some(0..100));
        assert_eq!(parse_content_range("bytes 5-5/*"), Some(5..6));
        for bad in ["", "bytes */500", "bytes 9-5/500", "0-99/500", "bytes 0-18446744073709551615/*", "bytes 0-9"] {
            assert_eq!(parse_content_range(bad), None, "{bad}");
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
    fn retry_after_is_capped() {
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", value.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        assert_eq!(of("86400"), Some(Duration::from_secs(600)));
        assert_eq!(of("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
