//! What is reported about a card: each line once, until it says something else. Pure.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// What a card has at a time.
pub(super) struct AddressFacts<'a> {
    pub(super) name: &'a str,
    /// Addresses to set, those of IPv4 among them.
    pub(super) addresses: Vec<(IpAddr, u8)>,
    pub(super) usable_ipv6: Vec<(Ipv6Addr, u8)>,
    /// IPv6 addresses that another machine has too.
    pub(super) taken_ipv6: &'a [Ipv6Addr],
    pub(super) gateway: Option<IpAddr>,
    pub(super) ipv6_router: Option<IpAddr>,
    pub(super) name_servers: Vec<IpAddr>,
    pub(super) mtu: Option<u16>,
    /// Duration of the lease, unless it is endless.
    pub(super) duration: Option<Duration>,
}

impl AddressFacts<'_> {
    fn ipv4_line(&self) -> Option<String> {
        let of_ipv4 = self.addresses.iter().filter(|(address, _)| address.is_ipv4());
        let addresses: Vec<String> = of_ipv4.map(|(address, prefix_len)| format!("{address}/{prefix_len}")).collect();
        if addresses.is_empty() {
            return None;
        }
        let mut text = format!("{}: address {}", self.name, addresses.join(" "));
        match self.gateway {
            Some(gateway) => _ = write!(text, ", gateway {gateway}"),
            None => text.push_str(", no gateway"),
        }
        if self.name_servers.is_empty() {
            text.push_str(", no name server (URLs must have numeric addresses)");
        } else {
            _ = write!(text, ", name servers {}", joined(self.name_servers.iter()));
        }
        if let Some(mtu) = self.mtu {
            _ = write!(text, ", MTU {mtu}");
        }
        Some(text)
    }

    fn ipv6_line(&self) -> Option<String> {
        if self.usable_ipv6.is_empty() {
            return None;
        }
        let addresses: Vec<String> =
            self.usable_ipv6.iter().map(|(address, prefix_len)| format!("{address}/{prefix_len}")).collect();
        let mut text = format!("{}: IPv6 address {}", self.name, addresses.join(" "));
        match self.ipv6_router {
            Some(router) => _ = write!(text, ", router {router}"),
            None => text.push_str(", no router"),
        }
        let of_ipv6 = joined(self.name_servers.iter().filter(|server| server.is_ipv6()));
        if !of_ipv6.is_empty() {
            _ = write!(text, ", name servers {of_ipv6}");
        }
        Some(text)
    }
}

fn joined<'a>(addresses: impl Iterator<Item = &'a IpAddr>) -> String {
    addresses.map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// Lines that were reported last.
#[derive(Debug, Default)]
pub(super) struct Said {
    ipv4: String,
    ipv6: String,
    taken: Vec<Ipv6Addr>,
    usage: String,
}

impl Said {
    /// Lines about addresses, if they have changed.
    pub(super) fn news_of_addresses(&mut self, facts: &AddressFacts<'_>) -> Vec<String> {
        let mut lines = Vec::new();
        let four = facts.ipv4_line().unwrap_or_default();
        if four != self.ipv4 {
            // Servers count the time down: another time alone is no news.
            let time = facts.duration.filter(|_| !four.is_empty());
            lines.push(time.map_or_else(|| four.clone(), |time| format!("{four}, leased for {} s", time.as_secs())));
            self.ipv4 = four;
        }
        let six = facts.ipv6_line().unwrap_or_default();
        if six != self.ipv6 {
            lines.push(six.clone());
            self.ipv6 = six;
        }
        if facts.taken_ipv6 != self.taken {
            let fresh = facts.taken_ipv6.iter().filter(|address| !self.taken.contains(address));
            let line = |address| {
                format!("{}: another machine has the IPv6 address {address} too; it is not used here", facts.name)
            };
            lines.extend(fresh.map(line));
            self.taken = facts.taken_ipv6.to_vec();
        }
        lines.retain(|line| !line.is_empty());
        lines
    }

    /// Line about the use of the card, if it has changed.
    pub(super) fn news_of_use(&mut self, line: String) -> Option<String> {
        if line == self.usage {
            return None;
        }
        self.usage.clone_from(&line);
        Some(line)
    }
}
