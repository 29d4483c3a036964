//! What `zdapd` says when it cannot start, or cannot do what is asked.

use std::fs;
use std::net::UdpSocket;
use std::path::PathBuf;
use std::process::Command;

use crate::lab;
use crate::site::{Disk, Engine, Site, ends, run};

#[test]
fn two_nodes_do_not_share_a_state_directory_or_a_data_directory() {
    let test = "two_nodes_do_not_share_a_state_directory_or_a_data_directory";
    let Some(mut site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    site.start();
    refused(&site.flags(), "another zdapd runs on the state directory");
    let twin = twin_of(&site);
    refused(&twin, &format!("another zdapd (process {}) works on", site.pid()));
    site.kill();
    let stranger = replaced(&site.flags(), "--state-dir", &site.directory.path().join("empty"));
    refused(&stranger, "belongs to");
    site.start();
}

#[test]
fn two_nodes_do_not_share_a_tree_in_a_pool() {
    let test = "two_nodes_do_not_share_a_tree_in_a_pool";
    let Some(mut site) = Site::new(test, Disk::Zfs, Engine::Process) else {
        return;
    };
    site.start();
    let twin = twin_of(&site);
    refused(&twin, &format!("another zdapd (process {}) works on", site.pid()));
    site.kill();
    let stranger = replaced(&site.flags(), "--state-dir", &site.directory.path().join("empty"));
    refused(&stranger, "belongs to");
    site.start();
}

#[test]
fn a_pool_that_is_missing_or_holds_a_tree_of_somebody_else_is_refused_by_name() {
    let test = "a_pool_that_is_missing_or_holds_a_tree_of_somebody_else_is_refused_by_name";
    let Some(site) = Site::new(test, Disk::Zfs, Engine::Process) else {
        return;
    };
    let missing = replaced(&site.flags(), "--zpool", &PathBuf::from("zdap-nowhere"));
    refused(&missing, "zdap-nowhere");
    let dataset = site.dataset.clone().unwrap();
    let (tree, theirs) = (format!("{dataset}/zdap"), format!("{dataset}/zdap/precious"));
    run("zfs", &["create", "-p", &theirs]);
    refused(&site.flags(), &tree);
    assert_eq!(run("zfs", &["list", "-H", "-o", "name", &theirs]).trim(), theirs);
}

#[test]
fn a_data_directory_on_a_read_only_disk_is_refused() {
    let test = "a_data_directory_on_a_read_only_disk_is_refused";
    let Some(site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    let Some(disk) = ReadOnly::mount(test, site.directory.path().join("data")) else {
        return;
    };
    let said = refused(&site.flags(), &disk.0.display().to_string());
    assert!(said.contains("read-only") || said.contains("Read-only"), "{said}");
}

#[test]
fn a_port_in_use_a_missing_directory_and_a_node_that_does_not_run_are_named() {
    let test = "a_port_in_use_a_missing_directory_and_a_node_that_does_not_run_are_named";
    let Some(site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    let taken = UdpSocket::bind("[::]:0")
        .or_else(|_| UdpSocket::bind("0.0.0.0:0"))
        .unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let flags = replaced(&site.flags(), "--api-port", &PathBuf::from(&port));
    let said = refused(&flags, &format!("listen on UDP port {port}"));
    assert!(said.contains("--api-port"), "{said}");

    let nowhere = site.directory.path().join("nowhere");
    let flags = replaced(&site.flags(), "--config-dir", &nowhere);
    refused(&flags, &nowhere.display().to_string());

    let flags = [format!("--state-dir={}", nowhere.display())];
    let (code, said) = ends(&flags, &["list", "clones"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no node runs on the state directory"), "{said}");

    let (code, said) = ends(&site.flags(), &["serve", "--join", "zdap1-nonsense"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the token is cut off or mistyped"), "{said}");
}

#[test]
fn a_resource_that_is_not_served_is_told_from_one_of_which_there_is_nothing() {
    let test = "a_resource_that_is_not_served_is_told_from_one_of_which_there_is_nothing";
    let Some(mut site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    site.start();
    for what in ["resources", "snaps", "clones"] {
        let said = site.ask(&["list", what, "nope"]).unwrap_err();
        assert!(
            said.contains("this node serves no resource `nope`; it serves orders"),
            "{said}"
        );
        site.ask(&["list", what, "orders"]).unwrap();
    }
}

#[test]
fn a_node_that_is_drained_makes_no_clone() {
    let test = "a_node_that_is_drained_makes_no_clone";
    let Some(mut site) = Site::new(test, Disk::Directory, Engine::Process) else {
        return;
    };
    site.start();
    site.restore("orders");
    site.ask(&["drain"]).unwrap();
    let said = site.ask(&["create", "clone", "orders"]).unwrap_err();
    assert!(said.contains("this node is being drained"), "{said}");
    site.ask(&["undrain"]).unwrap();
    site.clone_of("orders");
}

#[test]
fn what_is_typed_wrong_ends_with_2_and_names_the_flag() {
    let ok = ["--data-dir=/tmp/d", "--config-dir=/tmp/c", "--state-dir=/tmp/s"];
    let with =
        |flag: &str| -> Vec<String> { ok.iter().chain([&flag]).map(|flag| (*flag).to_owned()).collect() };
    let without = |name: &str| -> Vec<String> {
        let kept = ok.iter().filter(|flag| !flag.starts_with(name));
        kept.map(|flag| (*flag).to_owned()).collect()
    };
    let cases = [
        (with("--zpool=tank"), "not in both"),
        (without("--data-dir"), "where is the data to lie?"),
        (without("--config-dir"), "where are the resource files?"),
        (with("--api-port=70000"), "--api-port"),
        (with("--runtime=podman"), "neither `docker` nor `process`"),
        (with("--node-name=a/b"), "--node-name"),
        (with("--network-address=0.0.0.0"), "nobody can connect to this"),
        (with("--nonsense"), "--nonsense"),
    ];
    for (flags, words) in cases {
        let (code, said) = ends(&flags, &["serve"]);
        assert_eq!(code, Some(2), "{flags:?}: {said}");
        assert!(said.contains(words), "{flags:?}: {said}");
    }
    for command in [
        &["create", "clone", "no such"][..],
        &["destroy", "clone", "../x"],
        &["list"],
        &[],
    ] {
        let (code, said) = ends(&with("--runtime=process"), command);
        assert_eq!(code, Some(2), "{command:?}: {said}");
    }
}

/// Checks that a node does not start: exit code 1, one error, with `words` in it.
fn refused(flags: &[String], words: &str) -> String {
    let (code, said) = ends(flags, &["serve"]);
    assert_eq!(code, Some(1), "{said}");
    let errors: Vec<_> = said.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{said}");
    assert!(said.contains(words), "{said}");
    said
}

/// The flags of a node that is the same member, from a copy of its state directory.
fn twin_of(site: &Site) -> Vec<String> {
    let copy = site.directory.path().join("twin");
    fs::create_dir(&copy).unwrap();
    for file in ["ca.pem", "identity.pem"] {
        let from = site.state().join(file);
        run("cp", &["-p", &from.to_string_lossy(), &copy.to_string_lossy()]);
    }
    replaced(&site.flags(), "--state-dir", &copy)
}

fn replaced(flags: &[String], name: &str, value: &std::path::Path) -> Vec<String> {
    let prefix = format!("{name}=");
    let replace = |flag: &String| match flag.starts_with(&prefix) {
        true => format!("{prefix}{}", value.display()),
        false => flag.clone(),
    };
    flags.iter().map(replace).collect()
}

/// A file system that nothing can be written to.
struct ReadOnly(PathBuf);

impl ReadOnly {
    fn mount(test: &str, path: PathBuf) -> Option<Self> {
        fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "ro", "none"])
            .arg(&path)
            .status();
        match mounted {
            Ok(status) if status.success() => Some(Self(path)),
            Ok(_) | Err(_) => lab::skip(test, "a file system cannot be mounted here"),
        }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
