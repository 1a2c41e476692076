//! Text work on URLs. Pure.

/// The URL as it may be shown: without `user:password@`, and without a query, which may hold the signature of an object
/// store.
pub fn redacted(url: &str) -> String {
    let (plain, query) = url.split_once('?').map_or((url, ""), |(plain, _)| (plain, "?..."));
    let Some((scheme, rest)) = plain.split_once("://") else { return format!("{plain}{query}") };
    let (authority, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // A password with a slash in it, which should have been escaped, ends the authority in its middle.
    let port = host.rsplit_once(':').filter(|_| !host.ends_with(']')).map_or("", |(_, port)| port);
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        let rest = rest.rsplit_once('@').map_or("...", |(_, rest)| rest);
        return format!("{scheme}://{rest}{query}");
    }
    format!("{scheme}://{host}{path}{query}")
}

/// A base URL, to which paths are appended.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Base {
    /// Everything before the query, without a slash at the end.
    plain: String,
    /// The query with its question mark, or nothing. It goes behind every path: a token for a whole container.
    query: String,
}

impl Base {
    pub(super) fn new(url: &str) -> Self {
        let at = url.find('?').unwrap_or(url.len());
        let (plain, query) = url.split_at(at);
        Self { plain: plain.trim_end_matches('/').to_owned(), query: query.to_owned() }
    }

    /// The URL of the base itself.
    pub(super) fn itself(&self) -> String {
        format!("{}{}", self.plain, self.query)
    }

    /// The URL of a path below the base.
    pub(super) fn join(&self, path: &str) -> String {
        format!("{}/{path}{}", self.plain, self.query)
    }
}

/// Takes `user:password@` out of a URL: the URL without it, and the two, decoded, if they were there.
pub(super) fn without_credentials(url: &str) -> (String, Option<Vec<u8>>) {
    let Some((scheme, rest)) = url.split_once("://") else { return (url.to_owned(), None) };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let Some((credentials, host)) = authority.rsplit_once('@') else { return (url.to_owned(), None) };
    // The first colon ends the user, before anything is decoded.
    let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
    let pair = [percent_decoded(user), percent_decoded(password)].join(&b':');
    (format!("{scheme}://{host}{path}"), Some(pair))
}

/// Scheme, host and port of a URL without credentials, for comparison.
pub(super) fn origin(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let scheme = scheme.to_ascii_lowercase();
    let default_port = if scheme == "https" { ":443" } else { ":80" };
    let authority = authority.strip_suffix(default_port).unwrap_or(&authority);
    format!("{scheme}://{authority}")
}

/// A `Location` as servers send it, with everything that a URL cannot have escaped: spaces, and letters beyond ASCII.
pub(super) fn escaped(location: &[u8]) -> String {
    let mut out = String::with_capacity(location.len());
    for &byte in location {
        if byte.is_ascii_graphic() && !matches!(byte, b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Whether the path can be appended to a base URL or directory and stays below it.
pub fn is_relative(path: &str) -> bool {
    !path.is_empty()
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'))
        })
}

/// The URL a `Location` header means when it was received from `base` (RFC 3986 section 5). `None` when it cannot be a
/// URL.
pub fn located(base: &str, location: &str) -> Option<String> {
    let target = resolved(base, location)?;
    let path_at = target.find("://")? + "://".len();
    let path_at = path_at + target[path_at..].find(['/', '?']).unwrap_or(target.len() - path_at);
    let (before, path) = target.split_at(path_at);
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    Some(format!("{before}{}{query}", without_dots(path)))
}

/// A path without `.` and `..` (RFC 3986 section 5.2.4): stores take them for part of the name, and proxies refuse
/// them.
fn without_dots(path: &str) -> String {
    if !path.split('/').any(|part| matches!(part, "." | "..")) {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let slash = if matches!(path.rsplit('/').next(), Some("." | "..")) && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}", parts.join("/"))
}

/// The URL before its path is cleaned up.
fn resolved(base: &str, location: &str) -> Option<String> {
    let location = location.split('#').next().unwrap_or_default();
    let (scheme, rest) = base.split_once("://")?;
    let path_at = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(path_at);
    if location.is_empty() {
        return None;
    }
    if let Some((before, _)) = location.split_once("://")
        && before.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return Some(location.to_owned());
    }
    if let Some(other) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{other}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let path = path.split('?').next().unwrap_or_default();
    if location.starts_with('?') {
        return Some(format!("{scheme}://{authority}{path}{location}"));
    }
    let directory = path.rfind('/').map_or("/", |slash| &path[..=slash]);
    Some(format!("{scheme}://{authority}{directory}{location}"))
}

/// Undoes `%20` and the like.
pub fn percent_decoded(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let escaped =
            text.get(at + 1..at + 3).filter(|_| byte == b'%').and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(escaped.unwrap_or(byte));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Base, escaped, is_relative, located, origin, percent_decoded, redacted, without_credentials};

    #[test]
    fn credentials_and_queries_are_not_shown() {
        for (url, shown) in [
            ("http://u:p@h:8080/a/b", "http://h:8080/a/b"),
            ("http://u:p@w@h", "http://h"),
            ("https://h/a?X-Signature=abc", "https://h/a?..."),
            ("https://h?token=a@b/c", "https://h?..."),
            ("https://h/a@b", "https://h/a@b"),
            ("http://[::1]/a", "http://[::1]/a"),
            ("http://u:p@[fe80::1]:80/a", "http://[fe80::1]:80/a"),
            ("http://u:p/w@h:1/a", "http://h:1/a"),
            ("http://u:password", "http://..."),
            ("stable/manifest.json", "stable/manifest.json"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }

    #[test]
    fn a_path_goes_before_the_query_of_its_base() {
        for (base, joined) in [
            ("http://h/r", "http://h/r/objects/ab"),
            ("http://h/r/", "http://h/r/objects/ab"),
            ("http://h?sig=a/b", "http://h/objects/ab?sig=a/b"),
            ("https://h/c/?sv=1&sig=x%2F", "https://h/c/objects/ab?sv=1&sig=x%2F"),
        ] {
            assert_eq!(Base::new(base).join("objects/ab"), joined);
        }
        assert_eq!(Base::new("http://h/report?key=1").itself(), "http://h/report?key=1");
        assert_eq!(redacted(&Base::new("http://h/c?sig=x").join("objects/ab")), "http://h/c/objects/ab?...");
    }

    #[test]
    fn credentials_are_taken_out_and_decoded() {
        let of = |url: &str| {
            let (plain, pair) = without_credentials(url);
            (plain, pair.map(|pair| String::from_utf8(pair).unwrap()))
        };
        for (url, plain, pair) in [
            ("http://u:p%40ss%3Aw%2Frd@h:1/a?b@c", "http://h:1/a?b@c", Some("u:p@ss:w/rd")),
            ("https://token@h", "https://h", Some("token:")),
            ("https://u:a@b@h/x", "https://h/x", Some("u:a@b")),
            ("http://h/a@b", "http://h/a@b", None),
            ("http://h?a@b", "http://h?a@b", None),
        ] {
            assert_eq!(of(url), (plain.to_owned(), pair.map(str::to_owned)), "{url}");
        }
        assert_eq!(origin("HTTP://H.example:80/x"), origin("http://h.example?y"));
        assert_ne!(origin("http://h/x"), origin("https://h/x"));
        assert_ne!(origin("http://h/x"), origin("http://h:81/x"));
        assert_eq!(escaped("/a b/ü?x=%20".as_bytes()), "/a%20b/%C3%BC?x=%20");
    }

    #[test]
    fn a_path_stays_below_its_base() {
        for good in ["stable/manifest.json", "objects/00ff", "a+b_c-1.0"] {
            assert!(is_relative(good), "{good}");
        }
        for bad in ["", "/a", "a//b", "../a", "a/../b", "a/.hidden", "a?b", "a b", "a%2e", "http://x/"] {
            assert!(!is_relative(bad), "{bad}");
        }
    }

    #[test]
    fn redirect_targets() {
        let base = "http://h:1/a/b?q=/x";
        for (location, target) in [
            ("https://o/x", "https://o/x"),
            ("//o/x", "http://o/x"),
            ("/x?u=http://y", "http://h:1/x?u=http://y"),
            ("c#f", "http://h:1/a/c"),
            ("?z", "http://h:1/a/b?z"),
            ("../c/./d/../e?f=/../g", "http://h:1/c/e?f=/../g"),
            ("../../..", "http://h:1/"),
            ("/x/y/..", "http://h:1/x/"),
            ("/x/..y/.z/", "http://h:1/x/..y/.z/"),
        ] {
            assert_eq!(located(base, location).as_deref(), Some(target));
        }
        assert_eq!(located("http://h", "c").as_deref(), Some("http://h/c"));
        assert_eq!(located(base, ""), None);
    }

    #[test]
    fn percent_escapes() {
        assert_eq!(percent_decoded("/a%20b%2"), b"/a b%2");
        assert_eq!(percent_decoded("/%zz%C3%A4"), "/%zz\u{e4}".as_bytes());
    }
}
