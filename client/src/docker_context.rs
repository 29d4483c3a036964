//! Which engine the `docker` command would talk to.

use std::fs;
use std::path::PathBuf;

use serde::Deserialize;

/// Returns the engine's address, as docker itself finds it: by `DOCKER_HOST`, else by the context that `DOCKER_CONTEXT` or
/// docker's settings name. None: the usual socket.
pub fn host(variable: impl Fn(&str) -> Option<String>) -> Result<Option<String>, ContextError> {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if let Some(host) = set("DOCKER_HOST") {
        return Ok(Some(host));
    }
    let directory = set("DOCKER_CONFIG").map(PathBuf::from);
    let Some(directory) = directory.or_else(|| Some(PathBuf::from(set("HOME")?).join(".docker"))) else {
        return Ok(None);
    };
    let current = || {
        let config = fs::read(directory.join("config.json")).ok()?;
        serde_json::from_slice::<Config>(&config).ok()?.current_context
    };
    match set("DOCKER_CONTEXT").or_else(current) {
        None => Ok(None),
        Some(name) if name.is_empty() || name == DEFAULT => Ok(None),
        Some(name) => {
            // Each is in a directory whose name is the hash of its own.
            let contexts = fs::read_dir(directory.join("contexts/meta"));
            let mut contexts = contexts.into_iter().flatten().flatten().filter_map(|entry| {
                let meta = fs::read(entry.path().join("meta.json")).ok()?;
                serde_json::from_slice::<Meta>(&meta).ok()
            });
            let context = contexts.find(|context| context.name == name);
            let host = context.and_then(|context| context.endpoints.docker.host);
            host.map(Some).ok_or(ContextError { name })
        }
    }
}

/// There is no such context.
#[derive(Debug, thiserror::Error)]
#[error("docker has no context `{name}`, which it is set to use")]
pub struct ContextError {
    name: String,
}

/// What docker's settings say.
#[derive(Deserialize)]
struct Config {
    #[serde(rename = "currentContext")]
    current_context: Option<String>,
}

/// What docker says of a context.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Meta {
    name: String,
    #[serde(default)]
    endpoints: Endpoints,
}

#[derive(Default, Deserialize)]
struct Endpoints {
    #[serde(default)]
    docker: Endpoint,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    host: Option<String>,
}

/// The context that is not written down anywhere.
const DEFAULT: &str = "default";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_that_of_the_variable_or_of_the_current_context() {
        let home = tempfile::tempdir().unwrap();
        let docker = home.path().join(".docker");
        let meta = docker.join("contexts/meta/2f53");
        fs::create_dir_all(&meta).unwrap();
        fs::write(
            docker.join("config.json"),
            r#"{"auths": {}, "currentContext": "rootless"}"#,
        )
        .unwrap();
        let context = r#"{"Name":"rootless","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///run/user/1/docker.sock","SkipTLSVerify":false}}}"#;
        fs::write(meta.join("meta.json"), context).unwrap();
        let host = |variables: &[(&str, &str)]| {
            host(|name| match name {
                "HOME" => Some(home.path().display().to_string()),
                name => {
                    let found = variables.iter().find(|(known, _)| *known == name);
                    found.map(|(_, value)| (*value).to_owned())
                }
            })
        };
        let rootless = Some("unix:///run/user/1/docker.sock".to_owned());
        assert_eq!(host(&[]).unwrap(), rootless);
        assert_eq!(host(&[("DOCKER_CONTEXT", "default")]).unwrap(), None);
        let named = [("DOCKER_HOST", "unix:///x"), ("DOCKER_CONTEXT", "other")];
        assert_eq!(host(&named).unwrap(), Some("unix:///x".to_owned()));
        let error = host(&[("DOCKER_CONTEXT", "other")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "docker has no context `other`, which it is set to use"
        );
        fs::remove_file(docker.join("config.json")).unwrap();
        assert_eq!(host(&[]).unwrap(), None);
    }
}
