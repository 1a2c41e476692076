//! The DHCPv4 lease of one link: obtained, kept and renewed for as long as the link is used.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::conflict;
use super::dhcp::{self, DhcpError, Lease};
use crate::mac;
use crate::sys::net::link::Link;

/// Interval at which the condition to stop is checked while nothing is due.
const LOOK: Duration = Duration::from_millis(250);
/// Time that one renewal waits for an answer.
const RENEWAL: Duration = Duration::from_secs(25);
/// Least pause between two attempts to renew.
const RENEWAL_PAUSE_MIN: Duration = Duration::from_secs(30);
/// Least time between renewals: a server with a lease of seconds would keep us and the console busy.
const RENEW_AFTER_MIN: Duration = Duration::from_secs(20);
/// Least time between exchanges that a cable causes: one that comes and goes all the time must not cause a storm.
const CABLE_PAUSE: Duration = Duration::from_secs(5);

/// Time in which another DHCP server is looked for, and the part of it in which it has to be one that was not tried
/// yet. A server may take 3 s to check an address before it offers it, and the third question follows after 14 s at
/// most.
const OTHER: Duration = Duration::from_secs(20);
const NEW: Duration = Duration::from_secs(10);
/// DHCP servers that are known to have been tried; one that is hostile may have any number of addresses.
const MOST_TRIED: usize = 8;

/// Times in a row that an address is declined because another machine has it, each of which costs the server an address
/// for a while, and the pause after each, so that no more than one question a second is asked.
const MOST_DECLINED: usize = 5;
const DECLINED_PAUSE: Duration = Duration::from_secs(1);

/// What the keeper of a lease asks and reports while it runs.
pub(super) struct Keeper<'a> {
    /// Whether the link is no longer used.
    pub(super) stop: &'a dyn Fn() -> bool,
    /// Whether the cable was away since the last call, so that it may lead to another network now.
    pub(super) cable_moved: &'a dyn Fn() -> bool,
    /// Whether another DHCP server was asked for since the last call: what this one gave leads nowhere.
    pub(super) wants_other: &'a dyn Fn() -> bool,
    /// Gets each lease that is granted.
    pub(super) on_lease: &'a dyn Fn(Lease),
    /// Gets a sentence now and then.
    pub(super) on_event: &'a dyn Fn(&str),
}

/// Obtains a lease and keeps it, until [`Keeper::stop`] says to end.
///
/// A renewal is a broadcast and not unicast: no packet socket has to stay open in between, on which the kernel would
/// run a filter for every packet of the download, and a server that has taken over is found too.
///
/// # Errors
/// The link is gone or switched off.
pub(super) fn keep(link: &Link, keeper: &Keeper<'_>) -> Result<(), DhcpError> {
    let mut tried = Vec::new();
    let mut lease = match obtain_free(link, None, &[], keeper.stop, keeper.on_event) {
        Err(DhcpError::Stopped { .. }) => return Ok(()),
        result => result?,
    };
    loop {
        let acquired = Instant::now();
        // Noted before the caller sees the lease: what moved until then is answered by it.
        let _ = (keeper.cable_moved)();
        (keeper.on_lease)(lease.clone());
        lease = match renew(link, &lease, acquired, &mut tried, keeper)? {
            Some(renewed) => renewed,
            None => return Ok(()),
        };
    }
}

/// Waits until the lease has to be renewed, and tries until it is. `None` when the link is no longer used.
fn renew(
    link: &Link,
    held: &Lease,
    acquired: Instant,
    tried: &mut Vec<Ipv4Addr>,
    keeper: &Keeper<'_>,
) -> Result<Option<Lease>, DhcpError> {
    let mut renew_at = renew_after(held).map(|after| acquired + after);
    loop {
        if (keeper.stop)() {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
        if (keeper.cable_moved)() {
            renew_at = Some((acquired + CABLE_PAUSE).max(Instant::now()));
        }
        if (keeper.wants_other)() {
            // Where the address belongs to another machine by now, the same server has a better one.
            if let Some(holder) = conflict::holder(link, held.address).ok().flatten() {
                refuse(link, held, holder, keeper.on_event)?;
                if let Some(free) = obtain_within(RENEWAL, link, None, &[], keeper, keeper.on_event)? {
                    return Ok(Some(free));
                }
            } else if let Some(other) = other(link, held, tried, keeper)? {
                return Ok(Some(other));
            }
            // The only server may give something else by now.
            renew_at = Some(Instant::now());
        }
        if renew_at.is_none_or(|at| Instant::now() < at) {
            continue;
        }
        if let Some(renewed) = obtain_within(RENEWAL, link, Some(held), &[], keeper, &|_| {})? {
            return Ok(Some(renewed));
        }
        let left = held.duration.map(|duration| duration.saturating_sub(acquired.elapsed()));
        let pause = (left.unwrap_or_default() / 2).max(RENEWAL_PAUSE_MIN);
        renew_at = Some(Instant::now() + pause);
        if !(keeper.stop)() {
            (keeper.on_event)(&unanswered(link, left, pause));
        }
    }
}

/// Asks for the lease of another server, first of one that was not tried yet. The lease that is held stays in use until
/// there is another.
fn other(
    link: &Link,
    held: &Lease,
    tried: &mut Vec<Ipv4Addr>,
    keeper: &Keeper<'_>,
) -> Result<Option<Lease>, DhcpError> {
    let name = &link.name;
    (keeper.on_event)(&format!(
        "{name}: the lease of {} leads to no source; looking for another DHCP server",
        held.server
    ));
    tried.retain(|server| *server != held.server);
    tried.drain(..tried.len().saturating_sub(MOST_TRIED - 1));
    tried.push(held.server);
    let passed_over: Vec<(Ipv4Addr, Duration)> =
        tried.iter().map(|server| (*server, if *server == held.server { OTHER } else { NEW })).collect();
    obtain_within(OTHER, link, None, &passed_over, keeper, &|_| {})
}

/// Obtains a lease as [`obtain_free`] does, if that takes no longer than `time`.
fn obtain_within(
    time: Duration,
    link: &Link,
    held: Option<&Lease>,
    passed_over: &[(Ipv4Addr, Duration)],
    keeper: &Keeper<'_>,
    on_event: &dyn Fn(&str),
) -> Result<Option<Lease>, DhcpError> {
    let until = Instant::now() + time;
    let stop = || (keeper.stop)() || Instant::now() >= until;
    match obtain_free(link, held, passed_over, &stop, on_event) {
        Ok(lease) => Ok(Some(lease)),
        Err(DhcpError::Stopped { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Obtains a lease as [`dhcp::obtain`] does, of an address that no other machine has: one that is in use is declined,
/// and another asked for. An address that is held already is not asked about.
///
/// A server may grant the same one again and mean it, and some machines claim every address: at last the address is
/// used all the same, since without one nothing works.
fn obtain_free(
    link: &Link,
    held: Option<&Lease>,
    passed_over: &[(Ipv4Addr, Duration)],
    stop: &dyn Fn() -> bool,
    on_event: &dyn Fn(&str),
) -> Result<Lease, DhcpError> {
    let mut lease = dhcp::obtain(link, held, passed_over, stop, on_event)?;
    let mut declined = 0;
    while held.is_none_or(|held| held.address != lease.address) {
        // Without the answer the address is as good as it was.
        let Some(holder) = conflict::holder(link, lease.address).ok().flatten() else { break };
        if declined >= MOST_DECLINED {
            let (name, address, mac) = (&link.name, lease.address, mac::text(holder));
            on_event(&format!(
                "{name}: {address} is used although another machine ({mac}) has it: the server gives no other"
            ));
            break;
        }
        // One line is enough: the next address may be in use as well.
        refuse(link, &lease, holder, &|line| {
            if declined == 0 {
                on_event(line)
            }
        })?;
        declined += 1;
        std::thread::sleep(DECLINED_PAUSE);
        lease = dhcp::obtain(link, None, passed_over, stop, on_event)?;
    }
    Ok(lease)
}

/// Tells the server of a lease that another machine has its address.
///
/// RFC 2131 (3.1) wants ten seconds until the next question, so that a client and a server that do not agree load no
/// network for ever. Here the number of rounds is limited instead: a robot should not lie still for half a minute.
fn refuse(link: &Link, lease: &Lease, holder: [u8; 6], on_event: &dyn Fn(&str)) -> Result<(), DhcpError> {
    let (name, address, server, mac) = (&link.name, lease.address, lease.server, mac::text(holder));
    on_event(&format!(
        "{name}: the DHCP server {server} grants {address}, which another machine ({mac}) has; asking for another \
         address"
    ));
    dhcp::decline(link, lease).map_err(|source| DhcpError::Link { interface: name.clone(), source })
}

/// By its specification, DHCP requires a client to stop using the address when the lease ends. A machine in recovery is
/// better off finishing its download while the server is away; when the server is back, it decides.
fn unanswered(link: &Link, left: Option<Duration>, pause: Duration) -> String {
    let lease = match left {
        Some(left) if left.is_zero() => "the lease has ended, the address is kept in use".to_owned(),
        Some(left) => format!("{} s of the lease are left", left.as_secs()),
        None => "the lease has no end".to_owned(),
    };
    let (name, pause_s) = (&link.name, pause.as_secs());
    format!("{name}: no DHCP server answers to renew the lease; {lease}, next try in {pause_s} s")
}

/// Returns the time after which the lease is renewed: the server's value, if it lies within the lease, or half of the
/// lease, and never less than [`RENEW_AFTER_MIN`].
fn renew_after(lease: &Lease) -> Option<Duration> {
    let duration = lease.duration?;
    let asked = lease.renew_after.filter(|after| !after.is_zero() && *after < duration);
    Some(asked.unwrap_or(duration / 2).max(RENEW_AFTER_MIN))
}

#[cfg(test)]
mod tests {
    use super::renew_after;
    use crate::net::dhcp::Lease;
    use std::net::Ipv4Addr;
    use std::time::Duration;

    #[test]
    fn a_lease_is_renewed_when_its_server_says_or_at_half_of_it_and_never_all_the_time() {
        let after = |duration: Option<u64>, asked: Option<u64>| {
            let seconds = |seconds: Option<u64>| seconds.map(Duration::from_secs);
            let lease = Lease {
                address: Ipv4Addr::new(192, 0, 2, 7),
                prefix_len: 24,
                routes: Vec::new(),
                dns: Vec::new(),
                search: Vec::new(),
                mtu: None,
                duration: seconds(duration),
                renew_after: seconds(asked),
                server: Ipv4Addr::new(192, 0, 2, 1),
                has_duration: true,
                has_mask: true,
            };
            renew_after(&lease).map(|time| time.as_secs())
        };
        assert_eq!(after(None, Some(60)), None);
        assert_eq!((after(Some(1000), None), after(Some(1000), Some(300))), (Some(500), Some(300)));
        assert_eq!((after(Some(1000), Some(0)), after(Some(1000), Some(1000))), (Some(500), Some(500)));
        assert_eq!((after(Some(0), Some(0)), after(Some(2), Some(1))), (Some(20), Some(20)));
        assert_eq!(after(Some(u64::from(u32::MAX) - 1), None), Some(2_147_483_647));
    }
}
