//! The routes of a lease, from the options that name some. Pure.

use std::net::Ipv4Addr;

use super::addresses::{MOST_ENTRIES, address_at, class_prefix_len, is_host};
use crate::sys::net::items::{Route, network_of};

/// Routers that are used: the others stand by.
const MOST_ROUTERS: usize = 4;

/// What a message says of routes.
pub(super) struct RouteOptions<'m> {
    /// Options with classless routes (RFC 3442), the better first.
    pub(super) classless: [&'m [u8]; 2],
    /// Option 33: a destination and its router, in turns.
    pub(super) classful: &'m [u8],
    /// Option 3, in order of preference (RFC 2132, 3.5).
    pub(super) routers: &'m [Ipv4Addr],
}

/// The routes that count. With classless routes, routers and classful routes must not be used (RFC 3442), unless the
/// option is cut short before it came to a default route.
pub(super) fn of(options: &RouteOptions<'_>) -> Vec<Route> {
    let defaults = options.routers.iter().take(MOST_ROUTERS).map(|router| Route::default_through((*router).into()));
    let classless = options.classless.into_iter().map(classless);
    let Some((mut routes, is_whole)) = classless.into_iter().find(|(routes, _)| !routes.is_empty()) else {
        return defaults.chain(classful(options.classful)).collect();
    };
    if !is_whole && !routes.iter().any(Route::is_default) {
        routes.extend(defaults);
    }
    routes
}

/// Prefix length, as many bytes of the destination as that needs, router; and whether it makes sense to its end.
fn classless(mut rest: &[u8]) -> (Vec<Route>, bool) {
    let mut routes = Vec::new();
    while let Some((&prefix_len, after)) = rest.split_first() {
        if prefix_len > 32 || routes.len() == MOST_ENTRIES {
            return (routes, false);
        }
        let significant_bytes = usize::from(prefix_len).div_ceil(8);
        let Some((significant, after)) = after.split_at_checked(significant_bytes) else { return (routes, false) };
        let Some((router, after)) = after.split_at_checked(4) else { return (routes, false) };
        let mut destination = [0; 4];
        destination[..significant.len()].copy_from_slice(significant);
        let destination = network_of(Ipv4Addr::from(destination).into(), prefix_len);
        let router = address_at(router, 0).unwrap_or(Ipv4Addr::BROADCAST);
        // 0.0.0.0 means that the destination is on the link itself.
        if router.is_unspecified() || is_host(router) {
            let gateway = Some(router.into()).filter(|_| !router.is_unspecified());
            routes.push(Route { destination, prefix_len, gateway });
        }
        rest = after;
    }
    (routes, true)
}

/// A destination is the network of its class, or one machine in it where it has bits of one.
fn classful(pairs: &[u8]) -> impl Iterator<Item = Route> {
    let pairs = pairs.chunks_exact(8).take(MOST_ENTRIES);
    let addresses = pairs.filter_map(|pair| Some((address_at(pair, 0)?, address_at(pair, 4)?)));
    addresses.filter(|(destination, router)| is_host(*destination) && is_host(*router)).map(|(destination, router)| {
        let of_class = class_prefix_len(destination);
        let is_network = network_of(destination.into(), of_class) == destination;
        let prefix_len = if is_network { of_class } else { 32 };
        Route { destination: destination.into(), prefix_len, gateway: Some(router.into()) }
    })
}

#[cfg(test)]
mod tests {
    use super::{RouteOptions, of};
    use std::net::Ipv4Addr;

    fn shown(classless: [&[u8]; 2], classful: &[[u8; 4]], routers: &[[u8; 4]]) -> Vec<String> {
        let classful = classful.concat();
        let routers: Vec<Ipv4Addr> = routers.iter().copied().map(Ipv4Addr::from).collect();
        let routes = of(&RouteOptions { classless, classful: &classful, routers: &routers });
        let gateway = |gateway: Option<std::net::IpAddr>| gateway.map_or("link".to_owned(), |one| one.to_string());
        routes.iter().map(|one| format!("{}/{} {}", one.destination, one.prefix_len, gateway(one.gateway))).collect()
    }

    #[test]
    fn classless_routes_of_either_number_replace_the_others() {
        let (default, net) = ([0, 10, 0, 0, 1], [16, 172, 16, 10, 0, 0, 2]);
        let both = [&default[..], &net].concat();
        let routers = [[10, 0, 0, 9]];
        assert_eq!(shown([&both, &[]], &[], &routers), ["0.0.0.0/0 10.0.0.1", "172.16.0.0/16 10.0.0.2"]);
        assert_eq!(shown([&[], &net], &[], &routers), ["172.16.0.0/16 10.0.0.2"], "the network means it");
        assert_eq!(shown([&net, &default], &[], &routers), ["172.16.0.0/16 10.0.0.2"]);
        assert_eq!(shown([&[33], &default], &[], &routers), ["0.0.0.0/0 10.0.0.1"]);
        assert_eq!(shown([&[33], &[]], &[], &routers), ["0.0.0.0/0 10.0.0.9"]);
    }

    #[test]
    fn routers_fill_what_a_list_that_was_cut_short_lacks() {
        let cut = [16, 172, 16, 10, 0, 0, 2, 0, 10, 0];
        let routers = [[10, 0, 0, 9]];
        assert_eq!(shown([&cut, &[]], &[], &routers), ["172.16.0.0/16 10.0.0.2", "0.0.0.0/0 10.0.0.9"]);
        let default_then_cut = [0, 10, 0, 0, 1, 16, 172];
        assert_eq!(shown([&default_then_cut, &[]], &[], &routers), ["0.0.0.0/0 10.0.0.1"]);
    }

    #[test]
    fn classful_routes_are_networks_or_machines_beside_the_routers() {
        let pairs = [
            [0, 0, 0, 0],
            [10, 0, 0, 1],
            [192, 0, 2, 0],
            [10, 0, 0, 2],
            [198, 51, 100, 7],
            [10, 0, 0, 3],
            [172, 20, 0, 0],
        ];
        assert_eq!(
            shown([&[], &[]], &pairs, &[[10, 0, 0, 9]]),
            ["0.0.0.0/0 10.0.0.9", "192.0.2.0/24 10.0.0.2", "198.51.100.7/32 10.0.0.3"]
        );
    }
}
