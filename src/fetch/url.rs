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

/// Whether the path can be appended to a base URL or directory and stays below it.
pub fn is_relative(path: &str) -> bool {
    !path.is_empty()
        && path.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'+'))
        })
}

/// The URL a `Location` header means when it was received from `base` (RFC 3986 section 5, without `..` folding,
/// which servers do themselves). `None` when it cannot be a URL.
pub fn located(base: &str, location: &str) -> Option<String> {
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

/// Undoes `%20` and the like in the path of a `file:` URL.
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
    use super::{is_relative, located, percent_decoded, redacted};

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
