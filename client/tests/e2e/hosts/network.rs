//! Several machines on this one: network namespaces, each with an address of its own, on one switch.

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::lab::variable;
use crate::program::run;

/// A switch and the machines on it; all gone when dropped.
#[derive(Debug)]
pub(crate) struct Network {
    name: String,
    machines: AtomicU32,
}

/// One machine of a [`Network`].
#[derive(Debug)]
pub(crate) struct Machine {
    namespace: String,
    address: String,
}

impl Network {
    /// Lays a network; skips `test` where that cannot be done.
    pub(crate) fn lay(test: &str) -> Option<Self> {
        variable(test, "ZDAP_TEST_NAMESPACES")?;
        static NETWORKS: AtomicU32 = AtomicU32::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let network = Self {
            name: format!("zdap{}-{number}", std::process::id()),
            machines: AtomicU32::new(0),
        };
        let switch = network.switch();
        ip(&["netns", "add", &switch]);
        ip(&["-n", &switch, "link", "add", "switch", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "switch", "up"]);
        Some(network)
    }

    /// Plugs in one more machine.
    pub(crate) fn machine(&self) -> Machine {
        let number = self.machines.fetch_add(1, Ordering::Relaxed);
        let machine = Machine {
            namespace: format!("{}-{number}", self.name),
            address: format!("10.77.0.{}", 10 + number),
        };
        let (switch, port) = (self.switch(), format!("port{number}"));
        let inside = ["-n", machine.namespace.as_str()];
        let inside = |arguments: &[&str]| ip(&[&inside, arguments].concat());
        ip(&["netns", "add", &machine.namespace]);
        ip(&[
            "-n",
            &switch,
            "link",
            "add",
            &port,
            "type",
            "veth",
            "peer",
            "name",
            "net",
            "netns",
            &machine.namespace,
        ]);
        ip(&["-n", &switch, "link", "set", &port, "master", "switch", "up"]);
        inside(&["link", "set", "lo", "up"]);
        inside(&["link", "set", "net", "up"]);
        machine.take_address(&machine.address);
        machine
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "delete", &self.switch()]));
    }
}

impl Machine {
    /// Returns the machine's first address.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Returns a command that runs on this machine.
    pub(crate) fn command(&self, program: impl Into<PathBuf>) -> Command {
        // Of all that makes a container, only the network: datasets are mounted for everybody.
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net=/run/netns/{}", self.namespace))
            .arg("--")
            .arg(program.into());
        command
    }

    /// Drops all packets between this machine and the others.
    pub(crate) fn cut(&self) {
        self.drop_packets("meta iif != lo drop", "meta oif != lo drop");
    }

    /// Drops all packets between this machine and one other.
    pub(crate) fn cut_from(&self, other: &Self) {
        let other = other.address();
        self.drop_packets(
            &format!("ip saddr {other} drop"),
            &format!("ip daddr {other} drop"),
        );
    }

    /// Lets all packets through again.
    pub(crate) fn heal(&self) {
        self.nft("delete table inet cut");
    }

    /// Adds an address.
    pub(crate) fn take_address(&self, address: &str) {
        ip(&[
            "-n",
            &self.namespace,
            "address",
            "add",
            &format!("{address}/24"),
            "dev",
            "net",
        ]);
    }

    /// Removes an address.
    pub(crate) fn lose_address(&self, address: &str) {
        ip(&[
            "-n",
            &self.namespace,
            "address",
            "delete",
            &format!("{address}/24"),
            "dev",
            "net",
        ]);
    }

    fn drop_packets(&self, incoming: &str, outgoing: &str) {
        self.nft("add table inet cut");
        for (hook, rule) in [("input", incoming), ("output", outgoing)] {
            self.nft(&format!(
                "add chain inet cut {hook} {{ type filter hook {hook} priority 0; }}"
            ));
            self.nft(&format!("add rule inet cut {hook} {rule}"));
        }
    }

    fn nft(&self, rule: &str) {
        run(self.command("nft").arg(rule)).done();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        run(Command::new("ip").args(["netns", "delete", &self.namespace]));
    }
}

fn ip(arguments: &[&str]) {
    run(Command::new("ip").args(arguments)).done();
}
