//! The environment of a relay, read once: what is wrong with it is said with the name of the variable and an example.

use std::path::PathBuf;

use zdap_proto::name::CloneId;

/// What the environment says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// `LISTEN_PORT`: where databases' clients connect.
    pub listen_port: u16,
    /// `ZDAP_CLONE`: the clone that is served.
    pub clone: CloneId,
    /// `ZDAP_SERVERS`: nodes, `host:port`, the clone's own first.
    pub servers: Vec<String>,
    /// `ZDAP_IDENTITY`: the directory of the relay's certificate and key.
    pub identity: PathBuf,
}

/// A variable that is missing or wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} {problem}; set it as in {variable}={example}")]
pub struct ConfigError {
    /// Which.
    pub variable: &'static str,
    /// What is wrong with it, the value included.
    pub problem: String,
    /// A value that would do.
    pub example: &'static str,
}

impl Config {
    /// Reads the variables through `get`, which returns the value of one, if it is set.
    pub fn read(get: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let listen_port = listen_port(&get)?;
        let clone = required(&get, CLONE)?;
        let clone = clone
            .parse()
            .map_err(|error| CLONE.wrong(format!("is wrong: {error}")))?;
        let servers: Vec<String> = required(&get, SERVERS)?
            .split(',')
            .map(|server| server.trim().to_owned())
            .filter(|server| !server.is_empty())
            .collect();
        if servers.is_empty() {
            return Err(SERVERS.wrong("names no server".to_owned()));
        }
        if let Some(server) = servers.iter().find(|server| !has_port(server)) {
            return Err(SERVERS.wrong(format!("holds `{server}`, which is not host:port")));
        }
        let identity = PathBuf::from(required(&get, IDENTITY)?);
        Ok(Self {
            listen_port,
            clone,
            servers,
            identity,
        })
    }
}

/// Reads `LISTEN_PORT`, which is 5432 when it is not set.
pub fn listen_port(get: impl Fn(&str) -> Option<String>) -> Result<u16, ConfigError> {
    match get(LISTEN_PORT.name) {
        None => Ok(5432),
        Some(text) => match text.parse() {
            Ok(port) if port > 0 => Ok(port),
            Ok(_) | Err(_) => {
                Err(LISTEN_PORT.wrong(format!("is `{text}`, which is not a port from 1 to 65535")))
            }
        },
    }
}

fn required(get: impl Fn(&str) -> Option<String>, variable: Variable) -> Result<String, ConfigError> {
    match get(variable.name) {
        Some(text) if !text.is_empty() => Ok(text),
        Some(_) => Err(variable.wrong("is empty".to_owned())),
        None => Err(variable.wrong("is not set".to_owned())),
    }
}

fn has_port(server: &str) -> bool {
    match server.rsplit_once(':') {
        Some((host, port)) => !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0),
        None => false,
    }
}

#[derive(Clone, Copy)]
struct Variable {
    name: &'static str,
    example: &'static str,
}

impl Variable {
    fn wrong(self, problem: String) -> ConfigError {
        ConfigError {
            variable: self.name,
            problem,
            example: self.example,
        }
    }
}

const LISTEN_PORT: Variable = Variable {
    name: "LISTEN_PORT",
    example: "5432",
};
const CLONE: Variable = Variable {
    name: "ZDAP_CLONE",
    example: "orders-k3v9x2mq",
};
const SERVERS: Variable = Variable {
    name: "ZDAP_SERVERS",
    example: "10.0.0.1:43210,db2.example.com:43210",
};
const IDENTITY: Variable = Variable {
    name: "ZDAP_IDENTITY",
    example: "/zdap/identity",
};

#[cfg(test)]
mod tests {
    use super::*;

    fn read(changes: &[(&str, Option<&str>)]) -> Result<Config, ConfigError> {
        let set = [
            ("ZDAP_CLONE", "orders-k3v9x2mq"),
            ("ZDAP_SERVERS", "10.0.0.1:43210, db2:43210"),
            ("ZDAP_IDENTITY", "/identity"),
        ];
        Config::read(
            |name| match changes.iter().find(|(changed, _)| *changed == name) {
                Some((_, value)) => value.map(str::to_owned),
                None => set
                    .iter()
                    .find(|(given, _)| *given == name)
                    .map(|(_, value)| (*value).to_owned()),
            },
        )
    }

    #[test]
    fn what_compose_gives_is_understood() {
        let config = read(&[("LISTEN_PORT", Some("5433"))]).unwrap();
        assert_eq!(config.listen_port, 5433);
        assert_eq!(config.clone.as_str(), "orders-k3v9x2mq");
        assert_eq!(config.servers, ["10.0.0.1:43210", "db2:43210"]);
        assert_eq!(config.identity, PathBuf::from("/identity"));
        assert_eq!(read(&[]).unwrap().listen_port, 5432);
    }

    #[test]
    fn each_variable_that_is_wrong_is_named_with_an_example() {
        for (name, value, message) in [
            (
                "ZDAP_CLONE",
                None,
                "ZDAP_CLONE is not set; set it as in ZDAP_CLONE=orders-k3v9x2mq",
            ),
            ("ZDAP_CLONE", Some(""), "ZDAP_CLONE is empty; "),
            (
                "ZDAP_CLONE",
                Some("../x"),
                "ZDAP_CLONE is wrong: clone id `../x` ",
            ),
            ("ZDAP_SERVERS", None, "ZDAP_SERVERS is not set; "),
            ("ZDAP_SERVERS", Some(" , "), "ZDAP_SERVERS names no server; "),
            (
                "ZDAP_SERVERS",
                Some("db1"),
                "ZDAP_SERVERS holds `db1`, which is not host:port; ",
            ),
            (
                "ZDAP_SERVERS",
                Some("a:1,b:0"),
                "ZDAP_SERVERS holds `b:0`, which is not host:port; ",
            ),
            ("ZDAP_IDENTITY", None, "ZDAP_IDENTITY is not set; "),
            (
                "LISTEN_PORT",
                Some("0"),
                "LISTEN_PORT is `0`, which is not a port from 1 to 65535; ",
            ),
            (
                "LISTEN_PORT",
                Some("pg"),
                "LISTEN_PORT is `pg`, which is not a port from 1 to 65535; ",
            ),
        ] {
            let error = read(&[(name, value)]).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }
}
