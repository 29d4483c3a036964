//! What the override says of a service whose place a relay takes.

use super::ComposeError;

/// The relay that takes a service's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayService {
    pub service: String,
    /// With its tag: `zdap/zdap-proxyd:<version>`. It has to be on the machine: compose is told never to pull it.
    pub image: String,
    /// The port that the original's `ports` publishes, inside the container.
    pub listen_port: u16,
    /// The port of this machine to publish it at, instead of what the original's `ports` say.
    pub published_port: Option<u16>,
    pub resource: String,
    pub clone: String,
    pub node: String,
    pub owner: String,
    /// `host:port` of nodes: the clone's own, then others that pass connections on to it.
    pub servers: Vec<String>,
    /// The directory of the relay's identity on this machine, relative to the compose project or absolute.
    pub identity_dir: String,
    /// `uid:gid` to run as instead of the image's own user, for an identity that only its owner may read.
    pub user: Option<String>,
    /// `host:address`, added to the project's own.
    pub extra_hosts: Vec<String>,
    /// Whether the engine knows `start_interval` (API 1.44 and later); compose refuses to start it on others.
    pub start_interval: bool,
}

impl RelayService {
    /// Returns a compose file with this service in it and nothing else.
    pub fn as_services(&self) -> Result<String, ComposeError> {
        self.check()?;
        Ok(format!("services:\n{}\n", self.block(2, 2).join("\n")))
    }

    /// Returns the lines of the service's entry in a block mapping: `indent` spaces before its name, `step`
    /// more for each level.
    pub(super) fn block(&self, indent: usize, step: usize) -> Vec<String> {
        let pad = |level: usize| " ".repeat(indent + level * step);
        let mut lines = vec![format!("{}{}:", pad(0), key(&self.service))];
        for (name, value) in self.attributes() {
            let (tag, value) = match &value {
                Value::Tagged(tag, value) => (format!(" {tag}"), value.as_ref()),
                Value::Text(_) | Value::Bare(_) | Value::List(_) | Value::Map(_) => (String::new(), &value),
            };
            if let Value::Map(entries) = value {
                lines.push(format!("{}{name}:{tag}", pad(1)));
                let entry = |(name, value): &(&str, Value)| format!("{}{name}: {}", pad(2), value.flow());
                lines.extend(entries.iter().map(entry));
            } else {
                lines.push(format!("{}{name}:{tag} {}", pad(1), value.flow()));
            }
        }
        lines
    }

    /// Returns the lines of the service's entry in a flow mapping, with the comma that ends it.
    pub(super) fn flow(&self, indent: usize, step: usize) -> Vec<String> {
        let (outer, inner) = (" ".repeat(indent), " ".repeat(indent + step));
        let mut lines = vec![format!("{outer}{}: {{", key(&self.service))];
        lines.extend(
            self.attributes()
                .iter()
                .map(|(name, value)| format!("{inner}{name}: {},", value.flow())),
        );
        lines.push(format!("{outer}}},"));
        lines
    }

    /// Checks what cannot be written down as it is.
    pub(super) fn check(&self) -> Result<(), ComposeError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if self.service.is_empty() || !self.service.chars().all(allowed) {
            return Err(ComposeError::ServiceName {
                name: self.service.clone(),
            });
        }
        Ok(())
    }

    /// Ports, networks, profiles, restart policy, resolver, names, logging and whatever else is not here
    /// stay as the project has them; labels and extra hosts are added to the project's.
    fn attributes(&self) -> Vec<(&'static str, Value)> {
        let mut attributes = vec![
            ("image", text(&self.image)),
            // The image comes from the node. A registry has nothing to say about that name, least of all
            // in the moment when somebody has pruned it.
            ("pull_policy", Value::Bare("never")),
            (
                "environment",
                replaced(Value::Map(vec![
                    ("LISTEN_PORT", text(&self.listen_port.to_string())),
                    ("ZDAP_CLONE", text(&self.clone)),
                    ("ZDAP_SERVERS", text(&self.servers.join(","))),
                    ("ZDAP_IDENTITY", text(IDENTITY)),
                ])),
            ),
            (
                "volumes",
                replaced(Value::List(vec![Value::Map(vec![
                    ("type", Value::Bare("bind")),
                    ("source", text(&self.identity_source())),
                    ("target", text(IDENTITY)),
                    ("read_only", Value::Bare("true")),
                    // Else the engine makes an empty directory, owned by root, where the identity should be.
                    (
                        "bind",
                        Value::Map(vec![("create_host_path", Value::Bare("false"))]),
                    ),
                ])])),
            ),
            ("healthcheck", replaced(self.healthcheck())),
            (
                "labels",
                Value::Map(vec![
                    (LABELS[0], text(&self.resource)),
                    (LABELS[1], text(&self.clone)),
                    (LABELS[2], text(&self.node)),
                    (LABELS[3], text(&self.owner)),
                ]),
            ),
        ];
        if let Some(port) = self.published_port {
            let published = format!("{port}:{}", self.listen_port);
            attributes.push(("ports", replaced(Value::List(vec![text(&published)]))));
        }
        if !self.extra_hosts.is_empty() {
            attributes.push((
                "extra_hosts",
                Value::List(self.extra_hosts.iter().map(|host| text(host)).collect()),
            ));
        }
        match &self.user {
            Some(user) => attributes.push(("user", replaced(text(user)))),
            None => attributes.push(("user", reset())),
        }
        // Limits are the database's, the number of replicas is the project's.
        attributes.push(("deploy", Value::Map(vec![("resources", reset())])));
        attributes.extend(CUT_OFF.iter().map(|name| (*name, reset())));
        attributes
    }

    /// The check runs as soon as its interval has passed once, and whoever waits for `service_healthy` waits
    /// for that; failures within the start period do not count.
    fn healthcheck(&self) -> Value {
        let mut check = vec![
            (
                "test",
                Value::List(["CMD", "/zdap-proxyd", "health"].map(text).into()),
            ),
            (
                "interval",
                Value::Bare(if self.start_interval { "10s" } else { "1s" }),
            ),
            // A connection through the tunnel, also where it has to be set up anew.
            ("timeout", Value::Bare("5s")),
            ("retries", Value::Bare("5")),
            ("start_period", Value::Bare("30s")),
        ];
        if self.start_interval {
            check.push(("start_interval", Value::Bare("250ms")));
        }
        Value::Map(check)
    }

    /// Without the `./`, a relative path looks like the name of a volume.
    fn identity_source(&self) -> String {
        let spelled_out = ["/", "./", "../"]
            .iter()
            .any(|start| self.identity_dir.starts_with(start));
        if spelled_out {
            self.identity_dir.clone()
        } else {
            format!("./{}", self.identity_dir)
        }
    }
}

/// The labels that say what is attached, in the order of [`super::Attached`].
pub(super) const LABELS: [&str; 4] = ["zdap.resource", "zdap.clone", "zdap.node", "zdap.owner"];

/// Where the relay finds its identity, inside its container.
const IDENTITY: &str = "/identity";

/// What the original service would merge into the relay and break it, or give to it without need. Written
/// whether the original has it or not, because the compose file may change while a clone is attached.
const CUT_OFF: [&str; 34] = [
    // There is one program in the image and nothing else: no shell, no other user, no other directory.
    "build",
    "command",
    "entrypoint",
    "working_dir",
    "group_add",
    "develop",
    "post_start",
    "pre_stop",
    // Compose reads these files and mounts these directories before it starts anything.
    "env_file",
    "tmpfs",
    "volumes_from",
    "secrets",
    "configs",
    // The database's memory, devices and privileges: not needed, and not all given to user 65534.
    "shm_size",
    "ulimits",
    "sysctls",
    "devices",
    "device_cgroup_rules",
    "gpus",
    "runtime",
    "cap_add",
    "privileged",
    "security_opt",
    "pid",
    "ipc",
    "storage_opt",
    // The image is of this machine's architecture, whatever the database's image had to be.
    "platform",
    // The relay ends on SIGTERM, at once.
    "stop_signal",
    "stop_grace_period",
    // What the database needs to start (a job that prepares its volume, a store for its archive), the relay
    // does not: to wait for it takes time, and can fail.
    "depends_on",
    "links",
    "external_links",
    // A provider would take the container's place.
    "provider",
    "use_api_socket",
];

/// The few shapes of YAML that a relay's entry consists of.
enum Value {
    /// Anything at all, in quotes.
    Text(String),
    /// A word that needs no quotes and must not have them.
    Bare(&'static str),
    List(Vec<Self>),
    Map(Vec<(&'static str, Self)>),
    Tagged(&'static str, Box<Self>),
}

impl Value {
    fn flow(&self) -> String {
        let joined = |items: Vec<String>| items.join(", ");
        match self {
            Self::Text(text) => quoted(text),
            Self::Bare(word) => (*word).to_owned(),
            Self::List(items) => format!("[{}]", joined(items.iter().map(Self::flow).collect())),
            Self::Map(entries) => {
                let entry = |(name, value): &(&str, Self)| format!("{name}: {}", value.flow());
                format!("{{{}}}", joined(entries.iter().map(entry).collect()))
            }
            Self::Tagged(tag, value) => format!("{tag} {}", value.flow()),
        }
    }
}

fn text(text: &str) -> Value {
    // Compose would take a dollar for the beginning of a variable.
    Value::Text(text.replace('$', "$$"))
}

fn replaced(value: Value) -> Value {
    Value::Tagged("!override", Box::new(value))
}

fn reset() -> Value {
    Value::Tagged("!reset", Box::new(Value::Bare("null")))
}

/// Every JSON string is a YAML one, but for the delete character, which YAML wants escaped.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text)
        .to_string()
        .replace('\u{7f}', "\\u007f")
}

/// A name that could be read as a number or a word of YAML's stands in quotes.
fn key(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && !matches!(
            name.to_ascii_lowercase().as_str(),
            "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null"
        );
    if plain { name.to_owned() } else { quoted(name) }
}
