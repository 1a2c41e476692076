//! Supervisor of the network: one thread that searches for a network, then keeps it, and owns the configuration for the
//! life of the agent.

use std::fmt::Write;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use crate::machine::config::Network;

use super::dhcp::{self, DhcpError};
use super::error::NetError;
use super::options::{NetworkOptions, OnEvent};
use super::search::search;
use super::settings::{Settings, Up};
use crate::chain::chain;
use crate::sys::net::link::{links, set_mtu};
use crate::sys::net::rtnl::{Route, Rtnl};

/// Interval at which the link in use is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Time that a link may be away before other cards are tried: longer than a switch takes to renegotiate, shorter than a
/// person waits after moving a cable.
const GRACE: Duration = Duration::from_secs(10);

/// Time that one renewal waits for an answer.
const RENEWAL: Duration = Duration::from_secs(25);
/// Least pause between two attempts to renew.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(30);

/// Least time between renewals: a server with a lease of seconds would keep us and the console busy.
const RENEW_AFTER_MIN: Duration = Duration::from_secs(20);

/// Pause after the kernel refused a configuration that had worked before.
const TROUBLE: Duration = Duration::from_secs(10);

pub(super) struct Supervisor {
    network: Network,
    options: NetworkOptions,
    on_event: OnEvent,
    rtnl: Rtnl,
}

impl Supervisor {
    pub(super) fn new(network: Network, options: NetworkOptions, on_event: OnEvent) -> Result<Self, NetError> {
        Ok(Self { network, options, on_event, rtnl: Rtnl::open()? })
    }

    /// Searches for a network and keeps it, for ever. `first` gets the first result; a first error ends the thread,
    /// while later errors are reported and the search is tried again.
    pub(super) fn run(&mut self, first: &Sender<Result<Up, NetError>>) {
        // Loopback is switched on for name servers and proxies on the machine itself, which are rare in an initramfs,
        // but cost only one request. Outside of an initramfs it is up already, and without the right to change it the
        // next step fails with a better message.
        let _ = self.rtnl.set_up("lo", 1);
        let mut reported = false;
        loop {
            let result = search(&self.network, &self.options.stop, &mut self.rtnl, &self.on_event)
                .and_then(|settings| self.apply(&settings, None).map(|()| settings));
            match result {
                Ok(settings) => {
                    if !reported {
                        reported = true;
                        // The caller may have gone away; the network stays up nevertheless.
                        let _ = first.send(Ok(settings.up()));
                    }
                    self.hold(settings);
                }
                Err(error) if !reported => {
                    let _ = first.send(Err(error));
                    return;
                }
                Err(error) => {
                    if !self.options.stop.requested() {
                        (self.on_event)(&format!("network: {}", chain(&error)));
                        std::thread::sleep(TROUBLE);
                    }
                }
            }
            if self.options.stop.requested() {
                return;
            }
        }
    }

    /// Configures the link and the resolver; `before` is what the same link had until now.
    fn apply(&mut self, settings: &Settings, before: Option<&Settings>) -> Result<(), NetError> {
        let Settings { link, address, prefix_len, dns, .. } = settings;
        let gateway = settings.gateway();
        let changed = before.filter(|before| (before.address, before.prefix_len) != (*address, *prefix_len));
        self.apply_mtu(settings);
        if let Some(before) = changed {
            self.rtnl.remove_address(&link.name, link.index, before.address, before.prefix_len)?;
        }
        self.rtnl.add_address(&link.name, link.index, *address, *prefix_len)?;
        for stale in
            before.into_iter().flat_map(|before| &before.routes).filter(|route| !settings.routes.contains(route))
        {
            self.rtnl.remove_route(&link.name, link.index, *stale)?;
        }
        // Routes on the link come first: the others may lead through them.
        let (through, on_link): (Vec<&Route>, Vec<&Route>) =
            settings.routes.iter().partition(|route| route.gateway.is_some());
        for route in on_link.into_iter().chain(through) {
            let outside = route.gateway.is_some_and(|gateway| !same_subnet(*address, gateway, *prefix_len));
            self.rtnl.set_route(&link.name, link.index, *route, outside)?;
        }
        self.write_resolver(settings)?;
        if before.is_none() || changed.is_some() {
            let mut text = format!("{}: address {address}/{prefix_len}", link.name);
            match gateway {
                Some(gateway) => _ = write!(text, ", gateway {gateway}"),
                None => text.push_str(", no gateway"),
            }
            match dns.first() {
                Some(_) => {
                    let servers: Vec<String> = dns.iter().map(ToString::to_string).collect();
                    _ = write!(text, ", name servers {}", servers.join(" "));
                }
                None => text.push_str(", no name server (URLs must have numeric addresses)"),
            }
            if let Some(duration) = settings.lease.as_ref().and_then(|lease| lease.duration) {
                _ = write!(text, ", leased for {} s", duration.as_secs());
            }
            if let Some(mtu) = settings.mtu {
                _ = write!(text, ", MTU {mtu}");
            }
            (self.on_event)(&text);
        }
        Ok(())
    }

    /// Sets the MTU. A link that does not take it is used as it is: small packets still pass.
    fn apply_mtu(&self, settings: &Settings) {
        let Some(mtu) = settings.mtu else { return };
        if let Err(error) = set_mtu(&settings.link.name, mtu) {
            (self.on_event)(&format!("{}: the MTU of {mtu} cannot be set: {error}", settings.link.name));
        }
    }

    /// Writes the file under another name and renames it, so that a resolver never reads half a file.
    fn write_resolver(&self, settings: &Settings) -> Result<(), NetError> {
        let path = &self.options.resolv_conf;
        let mut text: String = settings.dns.iter().map(|server| format!("nameserver {server}\n")).collect();
        if !settings.search.is_empty() {
            _ = writeln!(text, "search {}", settings.search.join(" "));
        }
        let beside = path.with_extension("new");
        let write = || {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            fs::write(&beside, text)?;
            fs::rename(&beside, path)
        };
        write().map_err(|source| NetError::Resolver { path: path.clone(), source })
    }

    /// Keeps the lease alive and watches the cable. Returns when the network has to be searched anew.
    fn hold(&mut self, mut settings: Settings) {
        let mut acquired = Instant::now();
        let mut renew_at = settings.renew_after(RENEW_AFTER_MIN).map(|after| acquired + after);
        let mut lost: Option<Instant> = None;
        while !self.options.stop.requested() {
            std::thread::sleep(LOOK);
            if !has_carrier(&settings) {
                let since = *lost.get_or_insert_with(|| {
                    (self.on_event)(&format!("{}: link lost", settings.card.name));
                    Instant::now()
                });
                if since.elapsed() >= GRACE {
                    // The address must not answer on a network that it does not belong to.
                    let Settings { link, address, prefix_len, .. } = &settings;
                    let _ = self.rtnl.remove_address(&link.name, link.index, *address, *prefix_len);
                    return;
                }
                continue;
            }
            if lost.take().is_some() {
                (self.on_event)(&format!("{}: link up again", settings.card.name));
                // The cable may lead to another network now.
                renew_at = renew_at.map(|_| Instant::now());
            }
            if renew_at.is_none_or(|at| Instant::now() < at) {
                continue;
            }
            match self.renew(&settings) {
                Ok(renewed) => {
                    acquired = Instant::now();
                    renew_at = renewed.renew_after(RENEW_AFTER_MIN).map(|after| acquired + after);
                    settings = renewed;
                }
                Err(problem) => {
                    let lease = settings.lease.as_ref().and_then(|lease| lease.duration).unwrap_or_default();
                    let left = lease.saturating_sub(acquired.elapsed());
                    let pause = (left / 2).max(RENEWAL_PAUSE_MIN);
                    renew_at = Some(Instant::now() + pause);
                    // By its specification, DHCP requires a client to stop using the address when the lease ends. A
                    // machine in recovery is better off finishing its download while the server is away; when the
                    // server is back, it decides.
                    let lease = if left.is_zero() {
                        "the lease has ended, the address is kept in use".into()
                    } else {
                        format!("{} s of the lease are left", left.as_secs())
                    };
                    (self.on_event)(&format!("{problem}; {lease}, next try in {} s", pause.as_secs()));
                }
            }
        }
    }

    /// Asks any server to keep the address, and for a new one where no server knows the address any more; applies the
    /// answer. The request is a broadcast and not unicast: no packet socket has to stay open in between, on which the
    /// kernel would run a filter for every packet of the download, and a server that has taken over is found too.
    fn renew(&mut self, settings: &Settings) -> Result<Settings, String> {
        let name = &settings.link.name;
        let until = Instant::now() + RENEWAL;
        let stop = || self.options.stop.requested() || Instant::now() >= until || !has_carrier(settings);
        let lease =
            dhcp::obtain(&settings.link, settings.lease.as_ref(), &stop, &|_| {}).map_err(|error| match error {
                DhcpError::Stopped { .. } => format!("{name}: no DHCP server answers to renew the lease"),
                other => chain(&other),
            })?;
        let renewed = Settings::leased(&self.network, settings.card.clone(), settings.link.clone(), lease);
        self.apply(&renewed, Some(settings)).map_err(|error| chain(&error))?;
        if renewed.address == settings.address
            && let Some(duration) = renewed.lease.as_ref().and_then(|lease| lease.duration)
        {
            (self.on_event)(&format!("{name}: lease renewed for {} s", duration.as_secs()));
        }
        Ok(renewed)
    }
}

fn has_carrier(settings: &Settings) -> bool {
    // A passing error of sysfs is not a lost cable.
    links().map_or(true, |links| {
        links.iter().any(|link| link.index == settings.card.index && link.carrier)
            && links.iter().any(|link| link.index == settings.link.index)
    })
}

fn same_subnet(one: Ipv4Addr, other: Ipv4Addr, prefix_len: u8) -> bool {
    let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
    u32::from(one) & mask == u32::from(other) & mask
}

#[cfg(test)]
mod tests {
    use super::same_subnet;

    #[test]
    fn subnets_of_every_length() {
        let same = |prefix_len| same_subnet([192, 0, 2, 7].into(), [192, 0, 2, 200].into(), prefix_len);
        assert!(same(0) && same(24));
        assert!(!same(25) && !same(32));
    }
}
