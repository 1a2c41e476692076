//! The port in a URL. Pure.

use super::error::ConfigError;

/// What a port in a URL has to be.
const EXPECTED: &str = "http(s)://HOST:PORT with a port from 1 to 65535";

/// Returns the URL if its port is [usable](has_usable_port).
pub(super) fn with_usable_port(key: &'static str, url: String) -> Result<String, ConfigError> {
    if has_usable_port(&url) { Ok(url) } else { Err(ConfigError::value(key, &url, EXPECTED)) }
}

/// Whether a URL names no port, or one that there is. What is none is otherwise dropped without a word where the URL is
/// taken apart, and the usual port of the scheme asked: a slip of one digit would look like a server that is away.
#[must_use]
pub fn has_usable_port(url: &str) -> bool {
    let Some((_, rest)) = url.split_once("://") else { return true };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // The colons of an IPv6 address are within its brackets.
    let behind_address = host.rsplit_once(']').map_or(host, |(_, behind)| behind);
    let Some((_, port)) = behind_address.rsplit_once(':') else { return true };
    // A colon and nothing behind it names the usual port (RFC 3986, 3.2.3).
    port.is_empty() || port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::super::keys::ValueKind;
    use super::super::kinds::{HttpUrl, ReleaseUrls};
    use super::super::proxy_kinds::ProxyUrl;
    use super::has_usable_port;

    #[test]
    fn only_ports_that_exist_are_usable() {
        for good in [
            "http://h",
            "http://h/a:99999",
            "http://h?a:b",
            "http://h:/a",
            "https://h:65535/a",
            "http://u:p:x@h:1/",
            "http://[2001:db8::99999]/",
            "http://[::1]:8080",
            "file:///a:b",
            "h:99999",
        ] {
            assert!(has_usable_port(good), "{good}");
        }
        for bad in
            ["http://h:99999/a", "http://h:65536", "http://h:0/", "http://u:p@h:80a", "http://[::1]:x", "http://h:+80"]
        {
            assert!(!has_usable_port(bad), "{bad}");
        }
    }

    #[test]
    fn every_url_of_the_configuration_is_refused_by_its_port_and_the_others_stay() {
        let wrong = || "http://user:secret@h:99999/a".to_owned();
        let errors = [
            ReleaseUrls::check("release.urls", vec!["http://h/a".to_owned(), wrong()]).unwrap_err(),
            HttpUrl::check("report.url", wrong()).unwrap_err(),
            ProxyUrl::check("network.proxy", wrong()).unwrap_err(),
        ];
        for error in errors.map(|error| error.to_string()) {
            assert!(error.contains("a port from 1 to 65535") && !error.contains("secret"), "{error}");
        }
        let (mut problems, good) = (Vec::new(), vec!["http://h:8080/a".to_owned()]);
        let urls = [vec![wrong()], good.clone()].concat();
        assert_eq!(ReleaseUrls::usable("release.urls", urls, &mut problems), Some(good));
        assert_eq!(problems.len(), 1);
    }
}
