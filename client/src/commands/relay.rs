//! The relay of a clone as a compose service.

use std::net::IpAddr;

use zdap_proto::message::CloneView;
use zdap_proto::name::ResourceName;

use crate::compose::{ComposeService, RelayService};
use crate::engine;
use crate::project::Project;

/// Returns the relay as far as it is known without a clone.
pub(super) fn draft(service: &ComposeService, resource: &ResourceName) -> RelayService {
    RelayService {
        service: service.name.clone(),
        image: engine::relay_image(),
        listen_port: service.container_port,
        published_port: None,
        resource: resource.to_string(),
        clone: String::new(),
        node: String::new(),
        owner: String::new(),
        servers: Vec::new(),
        identity_dir: Project::identity_mount(resource),
        user: Some(own_user()),
        extra_hosts: Vec::new(),
        start_interval: false,
    }
}

/// Returns the relay of a clone that is reached by these addresses.
pub(super) fn of(
    draft: RelayService,
    service: &ComposeService,
    clone: &CloneView,
    addresses: &[String],
) -> RelayService {
    let (servers, extra_hosts) = servers(addresses, service.network_mode.as_deref());
    RelayService {
        clone: clone.id.to_string(),
        node: clone.node.to_string(),
        owner: clone.owner.to_string(),
        servers,
        extra_hosts,
        ..draft
    }
}

/// Returns the addresses as the relay can use them from inside its container, and the host names it needs for that: the
/// loopback address is this machine's for us and the container's own for the relay. On the machine's own network it is the
/// same for both, and in another container's the engine allows no host names.
fn servers(addresses: &[String], network_mode: Option<&str>) -> (Vec<String>, Vec<String>) {
    if network_mode == Some("host") {
        return (addresses.iter().fold(Vec::new(), with), Vec::new());
    }
    let mut servers: Vec<String> = Vec::new();
    let mut extra_hosts = Vec::new();
    for address in addresses {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
        let server = match is_this_machine(host) {
            true => format!("{HOST}:{port}"),
            false => address.clone(),
        };
        if is_this_machine(host) && extra_hosts.is_empty() && network_mode.is_none() {
            extra_hosts.push(format!("{HOST}:host-gateway"));
        }
        servers = with(servers, &server);
    }
    (servers, extra_hosts)
}

fn with(mut servers: Vec<String>, server: &String) -> Vec<String> {
    if !servers.contains(server) {
        servers.push(server.clone());
    }
    servers
}

/// Returns who the relay runs as, `uid:gid`: only we can read the identity.
fn own_user() -> String {
    let (user, group) = (rustix::process::geteuid(), rustix::process::getegid());
    format!("{}:{}", user.as_raw(), group.as_raw())
}

fn is_this_machine(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

/// The name that Docker gives this machine inside containers.
const HOST: &str = "host.docker.internal";

#[cfg(test)]
mod tests {
    use super::*;

    fn servers_in(addresses: &[&str], network_mode: Option<&str>) -> (Vec<String>, Vec<String>) {
        let addresses: Vec<String> = addresses.iter().map(|&address| address.to_owned()).collect();
        servers(&addresses, network_mode)
    }

    #[test]
    fn a_relay_is_given_every_address_once_as_it_can_use_it() {
        assert_eq!(
            servers_in(&["10.0.0.1:43210", "10.0.0.1:43210", "db2:43210"], None),
            (vec!["10.0.0.1:43210".to_owned(), "db2:43210".to_owned()], vec![])
        );
    }

    #[test]
    fn the_loopback_address_is_the_machine_as_seen_from_a_container() {
        for loopback in [
            "127.0.0.1:4000",
            "[::1]:4000",
            "localhost:4000",
            "0.0.0.0:4000",
            "127.1.2.3:4000",
        ] {
            assert_eq!(
                servers_in(&[loopback, "127.0.0.1:4000"], None),
                (
                    vec!["host.docker.internal:4000".to_owned()],
                    vec!["host.docker.internal:host-gateway".to_owned()]
                ),
                "{loopback}"
            );
        }
    }

    #[test]
    fn a_relay_in_a_network_that_is_not_its_own_is_given_no_host_names() {
        let host = servers_in(&["127.0.0.1:4000", "127.0.0.1:4000"], Some("host"));
        assert_eq!(host, (vec!["127.0.0.1:4000".to_owned()], vec![]));
        let (_, extra_hosts) = servers_in(&["127.0.0.1:4000"], Some("service:web"));
        assert_eq!(extra_hosts, [] as [&str; 0]);
    }
}
