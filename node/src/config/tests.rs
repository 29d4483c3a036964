use proptest::prelude::*;

use super::*;

fn machine() -> Machine {
    Machine {
        state_dir: Some("/home/ada/.local/state/zdapd".into()),
        node_name: "db1".parse().unwrap(),
        address: Ipv4Addr::new(10, 0, 0, 1).into(),
    }
}

fn flag<T: FromStr<Err: std::fmt::Debug>>(text: &str) -> Option<Given<T>> {
    Some(text.parse().unwrap())
}

fn least() -> Flags {
    Flags {
        data_dir: flag("/srv/zdap"),
        config_dir: flag("/etc/zdap"),
        ..Flags::default()
    }
}

#[test]
fn storage_and_resources_are_enough_and_the_rest_has_defaults() {
    assert_eq!(
        Config::new(&least(), &machine()).unwrap(),
        Config {
            storage: StorageChoice::Directory {
                path: "/srv/zdap".into(),
                size: None,
            },
            config_dir: "/etc/zdap".into(),
            network_address: NetworkAddress::Ip(Ipv4Addr::new(10, 0, 0, 1).into()),
            api_port: 43210,
            state_dir: "/home/ada/.local/state/zdapd".into(),
            node_name: "db1".parse().unwrap(),
            runtime: None,
        }
    );
}

#[test]
fn a_directory_may_be_given_a_size() {
    let flags = Flags {
        data_size: flag("1.5g"),
        ..least()
    };
    assert_eq!(
        Config::new(&flags, &machine()).unwrap().storage,
        StorageChoice::Directory {
            path: "/srv/zdap".into(),
            size: Some(3 << 29),
        }
    );
}

#[test]
fn what_is_given_counts_for_more_than_a_default() {
    let flags = Flags {
        zpool: flag("tank"),
        data_dir: flag(""),
        network_address: flag("db.example.com"),
        api_port: flag("1"),
        state_dir: flag("/state"),
        node_name: flag("n1"),
        runtime: flag("process"),
        ..least()
    };
    let config = Config::new(&flags, &machine()).unwrap();
    assert_eq!(config.storage, StorageChoice::Zfs(ZfsPool("tank".to_owned())));
    assert_eq!(
        config.network_address.with_port(config.api_port),
        "db.example.com:1"
    );
    assert_eq!(config.state_dir, Path::new("/state"));
    assert_eq!(config.node_name.as_str(), "n1");
    assert_eq!(config.runtime, Some(RuntimeKind::Process));
}

#[test]
fn exactly_one_storage_and_the_resource_files_must_be_named() {
    let error = |flags: Flags| {
        let error = Config::new(&flags, &machine()).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        error.to_string()
    };
    let neither = error(Flags {
        data_dir: flag(""),
        ..least()
    });
    assert!(neither.contains("--zpool or ZPOOL") && neither.contains("--data-dir or ZDAP_DATA_DIR"));
    let both = error(Flags {
        zpool: flag("tank"),
        ..least()
    });
    assert!(both.contains("`tank`") && both.contains("/srv/zdap"), "{both}");
    let no_resources = error(Flags {
        config_dir: None,
        ..least()
    });
    assert!(no_resources.contains("--config-dir or CONFIG_DIR"));
}

#[test]
fn a_relative_path_is_made_absolute() {
    let flags = Flags {
        data_dir: flag("data"),
        ..least()
    };
    let here = std::env::current_dir().unwrap();
    let config = Config::new(&flags, &machine()).unwrap();
    assert_eq!(
        config.storage,
        StorageChoice::Directory {
            path: here.join("data"),
            size: None,
        }
    );
}

#[test]
fn state_lies_where_the_user_keeps_state() {
    let directory = |is_root, state_home: Option<&str>, home: Option<&str>| {
        default_state_dir(is_root, state_home.map(Path::new), home.map(Path::new))
    };
    assert_eq!(directory(true, None, None), Some("/var/lib/zdapd".into()));
    assert_eq!(
        directory(false, None, Some("/home/ada")),
        Some("/home/ada/.local/state/zdapd".into())
    );
    assert_eq!(
        directory(false, Some("/s"), Some("/home/ada")),
        Some("/s/zdapd".into())
    );
    assert_eq!(
        directory(false, Some("relative"), Some("/h")),
        Some("/h/.local/state/zdapd".into())
    );
    assert_eq!(directory(false, None, None), None);
    let homeless = Machine {
        state_dir: None,
        ..machine()
    };
    assert_eq!(state_dir(&least(), &homeless).unwrap_err().exit_code(), 2);
}

#[test]
fn an_address_is_an_ip_or_a_host_name_without_a_port() {
    let shown = |text: &str| text.parse::<NetworkAddress>().unwrap().with_port(1);
    assert_eq!(shown("10.0.0.1"), "10.0.0.1:1");
    assert_eq!(shown("fd00::1"), "[fd00::1]:1");
    assert_eq!(shown("[fd00::1]"), "[fd00::1]:1");
    assert_eq!(shown("db-1.example.com"), "db-1.example.com:1");
    for text in [
        "10.0.0.1:43210",
        "0.0.0.0",
        "::",
        "10.0.0",
        "a b",
        "-a",
        "a..b",
        "https://a",
        "å",
        "a/b",
    ] {
        assert!(text.parse::<NetworkAddress>().is_err(), "{text}");
    }
}

#[test]
fn a_pool_is_named_as_zfs_names_pools() {
    for text in ["tank", "zdap-pool", "tank/databases", "a.b_c:d"] {
        assert!(text.parse::<ZfsPool>().is_ok(), "{text}");
    }
    for text in ["-f", "1tank", "tank/", "/tank", "a b", "tank@snap", "a//b"] {
        assert!(text.parse::<ZfsPool>().is_err(), "{text}");
    }
}

#[test]
fn a_host_name_becomes_a_node_name() {
    for (host, node) in [
        ("db1.example.com", "db1.example.com"),
        ("Ada's Laptop", "Ada-s-Laptop"),
        ("--x..y--", "x.y"),
        ("", "node"),
        ("日本", "node"),
    ] {
        assert_eq!(node_name(host).as_str(), node, "{host}");
    }
}

#[test]
fn this_machine_has_an_address_that_can_be_bound() {
    let address = Machine::observe().address;
    assert!(!address.is_unspecified());
    assert!(UdpSocket::bind((address, 0)).is_ok(), "{address}");
}

proptest! {
    #[test]
    fn every_host_name_becomes_a_node_name_that_begins_as_it_does(host in "[a-z0-9]\\PC{0,100}") {
        let name = node_name(&host);
        prop_assert_eq!(&name.as_str()[..1], &host[..1]);
    }

    #[test]
    fn no_text_panics(text in "\\PC*") {
        let _ = (text.parse::<NetworkAddress>(), text.parse::<ZfsPool>(), node_name(&text));
    }
}
