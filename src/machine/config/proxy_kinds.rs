//! The kinds of values that say which requests go through a proxy. Pure.

use std::net::IpAddr;

use super::error::ConfigError;
use super::keys::{Shape, ValueKind, refused};
use super::ports::with_usable_port;

/// The URL of a proxy.
#[derive(Debug)]
pub struct ProxyUrl;

impl ValueKind for ProxyUrl {
    type Written = String;
    type Checked = String;
    const SHAPE: Shape = Shape::Text("^http://");

    fn expected() -> String {
        "http://[user:password@]host:port".to_owned()
    }

    fn example() -> String {
        "http://proxy.example.com:3128".to_owned()
    }

    fn from_text(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    fn check(key: &'static str, written: String) -> Result<String, ConfigError> {
        if !written.starts_with("http://") {
            return Err(refused::<Self>(key, &written));
        }
        with_usable_port(key, written)
    }
}

/// Hosts that are reached without the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DirectHosts {
    /// Every host, whatever its name.
    All,
    /// A name, with all names below it.
    Domain(String),
    /// The addresses that begin with the first bits of this one; only where a URL names its host by an address.
    Addresses {
        /// An address of them.
        address: IpAddr,
        /// Number of those bits.
        prefix_len: u8,
    },
}

impl DirectHosts {
    /// Reads `*`, a name with or without a dot before it, an address, or `ADDRESS/PREFIX`, as `no_proxy` of other
    /// programs has them.
    fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::All);
        }
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address = address.trim_start_matches('[').trim_end_matches(']');
        if let Ok(address) = address.parse::<IpAddr>() {
            let most = if address.is_ipv4() { 32 } else { 128 };
            let prefix_len = prefix.map_or(Some(most), |prefix| prefix.parse().ok())?;
            return (prefix_len <= most).then_some(Self::Addresses { address, prefix_len });
        }
        let name = text.strip_prefix("*.").or(text.strip_prefix('.')).unwrap_or(text).trim_end_matches('.');
        let is_name = !name.is_empty()
            && name.split('.').all(|label| !label.is_empty())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        is_name.then(|| Self::Domain(name.to_ascii_lowercase()))
    }

    /// Whether a host of a URL, a name or an address with or without brackets, is one of them.
    #[must_use]
    pub fn has(&self, host: &str) -> bool {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        match (self, host.parse::<IpAddr>()) {
            (Self::All, _) => true,
            (Self::Addresses { address, prefix_len }, Ok(host)) => bits_agree(*address, host, *prefix_len),
            (Self::Domain(name), Err(_)) => {
                let host = host.trim_end_matches('.').to_ascii_lowercase();
                host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            }
            _ => false,
        }
    }
}

/// Whether two addresses of the same kind begin with the same bits.
fn bits_agree(one: IpAddr, other: IpAddr, prefix_len: u8) -> bool {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (u128::from(address.to_bits()) << 96, 4),
        IpAddr::V6(address) => (address.to_bits(), 6),
    };
    let ((one, kind), (other, other_kind)) = (bits(one), bits(other));
    let differing = (one ^ other).checked_shr(128 - u32::from(prefix_len)).unwrap_or_default();
    kind == other_kind && differing == 0
}

/// A list of hosts that are reached without the proxy.
#[derive(Debug)]
pub struct DirectHostList;

impl ValueKind for DirectHostList {
    type Written = Vec<String>;
    type Checked = Vec<DirectHosts>;
    const SHAPE: Shape = Shape::Texts("^[^, ]+$");

    fn expected() -> String {
        "names, addresses, ADDRESS/PREFIX, or *".to_owned()
    }

    fn example() -> String {
        "factory.example,192.0.2.0/24".to_owned()
    }

    fn from_text(text: &str) -> Option<Vec<String>> {
        Some(text.split(',').filter(|one| !one.is_empty()).map(str::to_owned).collect())
    }

    fn check(key: &'static str, written: Vec<String>) -> Result<Vec<DirectHosts>, ConfigError> {
        written.iter().map(|one| DirectHosts::parse(one).ok_or_else(|| refused::<Self>(key, one))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::DirectHosts;

    #[test]
    fn hosts_are_direct_by_name_address_or_network() {
        for (rule, direct, by_proxy) in [
            ("*", &["a", "192.0.2.1", "[2001:db8::1]"][..], &[][..]),
            (
                "example.com",
                &["example.com", "EXAMPLE.com.", "a.b.example.com"],
                &["myexample.com", "com", "example.com.evil"],
            ),
            (".example.com", &["example.com", "a.example.com"], &["aexample.com"]),
            ("*.Example.com", &["a.example.com"], &["example.org"]),
            ("192.0.2.7", &["192.0.2.7"], &["192.0.2.8", "192.0.2.7.example", "2001:db8::7"]),
            ("192.0.2.0/24", &["192.0.2.255"], &["192.0.3.0"]),
            ("0.0.0.0/0", &["203.0.113.9"], &["name", "::1"]),
            ("2001:db8::/32", &["[2001:db8:ff::1]", "2001:db8::"], &["2001:db9::", "192.0.2.1"]),
            ("::/0", &["::1"], &["192.0.2.1"]),
        ] {
            let parsed = DirectHosts::parse(rule).unwrap_or_else(|| panic!("{rule}"));
            direct.iter().for_each(|host| assert!(parsed.has(host), "{rule} has {host}"));
            by_proxy.iter().for_each(|host| assert!(!parsed.has(host), "{rule} has not {host}"));
        }
        for wrong in ["", ".", "a..b", "192.0.2.0/33", "192.0.2.0/", "::/129", "http://a", "a b", "a:8080", "a/8"] {
            assert_eq!(DirectHosts::parse(wrong), None, "{wrong:?}");
        }
    }
}
